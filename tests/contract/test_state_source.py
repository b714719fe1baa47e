"""StateSource: one suite for the fake and for Git over every transport we promise."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from reconciler.adapters.git_pygit2 import GitSource
from reconciler.core.names import Revision
from reconciler.errors import Refused, Transient
from reconciler.ports import StateSource
from reconciler.settings import Settings
from tests.fakes.state_source import FakeRemote, FakeStateSource
from tests.services.git_http import PASSWORD, USER, GitHttp, git_http
from tests.services.git_upstream import GitUpstream, Submodule, Symlink
from tests.services.sshd import Sshd, sshd

LIMIT = 1000
TRANSPORTS = [
    "fake", "path", "file_url", "http", "http_basic", pytest.param("ssh", marks=pytest.mark.real),
]  # fmt: skip


@dataclass
class World:
    """A remote to push to, and sources that fetch from it."""

    remote: Any
    source: Callable[..., StateSource]
    symlink: Any
    submodule: Any


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("upstreams")


@pytest.fixture(scope="module")
def http(root: Path) -> Iterator[GitHttp]:
    with git_http(root) as server:
        yield server


@pytest.fixture(scope="module")
def ssh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    with sshd(tmp_path_factory.mktemp("sshd")) as server:
        yield server


@pytest.fixture(params=TRANSPORTS)
def world(request: pytest.FixtureRequest, tmp_path: Path, root: Path) -> World:
    transport: str = request.param
    if transport == "fake":
        remote = FakeRemote(file_bytes_max=LIMIT, files_max=2500)
        return World(
            remote,
            lambda branch="main": FakeStateSource(remote, branch),
            ("symlink", "elsewhere"),
            ("submodule", "1" * 40),
        )
    upstream = GitUpstream(root / f"{tmp_path.name}.git")
    url, changes = _address(transport, upstream.path, request)
    settings = Settings(file_bytes_max=LIMIT, files_max=2500, fetch_timeout_s=30, **changes)

    def source(branch: str = "main") -> StateSource:
        return GitSource(url, branch, tmp_path / "mirror.git", settings)

    return World(upstream, source, Symlink("elsewhere"), Submodule())


def _address(
    transport: str, path: Path, request: pytest.FixtureRequest
) -> tuple[str, dict[str, Any]]:
    if transport == "path":
        return str(path), {}
    if transport == "file_url":
        return f"file://{path}", {}
    if transport == "ssh":
        server: Sshd = request.getfixturevalue("ssh")
        keys = {"git_known_hosts": server.known_hosts, "git_ssh_key": server.client_key}
        return server.url(path), keys
    http: GitHttp = request.getfixturevalue("http")
    if transport == "http":
        return http.url("open", path.name), {}
    return http.url("basic", path.name, f"{USER}:{PASSWORD.replace('@', '%40')}".replace(
        "/", "%2F")), {}


def test_reads_what_was_pushed(world: World) -> None:
    pushed = world.remote.push(
        {"b/x.yaml": b"two", "a.yml": b"one", "b.txt": b"not ours"}, "Add two files"
    )
    source = world.source()
    assert source.fetch() == source.head() == source.resolve("main") == pushed
    snapshot = source.snapshot(pushed)
    assert snapshot.revision == pushed
    assert snapshot.author == "Ada <ada@example.com>"
    assert snapshot.subject == "Add two files"
    assert snapshot.committed_at_ms == 1_700_000_000_000
    assert [(file.path, file.content, file.kind) for file in snapshot.files] == [
        ("a.yml", b"one", "file"), ("b.txt", b"", "file"), ("b/x.yaml", b"two", "file"),
    ]  # fmt: skip
    assert all(len(file.blob_id) == 40 for file in snapshot.files)


def test_new_commits_are_seen_only_after_fetch(world: World) -> None:
    first = world.remote.push({"a.yaml": b"1"})
    source = world.source()
    source.fetch()
    second = world.remote.push({"a.yaml": b"2"})
    assert source.head() == first
    assert source.fetch() == source.head() == second
    assert source.snapshot(first).files[0].content == b"1"
    assert source.snapshot(second).files[0].content == b"2"
    assert source.resolve(second[:12]) == second


def test_a_branch_under_review_is_found_as_it_is_now(world: World) -> None:
    main = world.remote.push({"a.yaml": b"1"})
    source = world.source()
    source.fetch()
    first = world.remote.push({"a.yaml": b"2"}, branch="review")
    with pytest.raises(Refused, match="unknown_revision"):
        source.resolve("review")
    assert source.find("review") == first
    assert source.snapshot(first).files[0].content == b"2"
    second = world.remote.push({"a.yaml": b"3"}, branch="review")
    assert source.find("origin/review") == source.find("review") == second
    assert source.find(main) == source.find(main[:12]) == source.find("HEAD") == main
    assert source.find("main") == source.head() == main
    with pytest.raises(Refused, match="unknown_revision: no such commit here: 'nowhere'"):
        source.find("nowhere")


def test_ancestry(world: World) -> None:
    first = world.remote.push({"a.yaml": b"1"})
    second = world.remote.push({"a.yaml": b"2"})
    source = world.source()
    source.fetch()
    assert source.is_ancestor(first, second)
    assert source.is_ancestor(second, second)
    assert not source.is_ancestor(second, first)
    assert not source.is_ancestor(Revision("ab" * 20), second)
    with pytest.raises(Refused, match="unknown_revision"):
        source.is_ancestor(first, Revision("ab" * 20))


def test_a_force_push_is_fetched_and_the_old_head_stays_readable(world: World) -> None:
    old = world.remote.push({"a.yaml": b"1"})
    source = world.source()
    source.fetch()
    new = world.remote.force_push({"a.yaml": b"other"})
    assert source.fetch() == new
    assert not source.is_ancestor(old, new)
    assert source.snapshot(old).files[0].content == b"1"


def test_a_missing_branch_is_refused(world: World) -> None:
    world.remote.push({"a.yaml": b"1"})
    with pytest.raises(Refused, match="git_branch_missing: the repository has no such branch"):
        world.source("release").fetch()


def test_a_deleted_branch_is_refused_and_the_last_head_stays(world: World) -> None:
    pushed = world.remote.push({"a.yaml": b"1"})
    source = world.source()
    source.fetch()
    world.remote.delete_branch("main")
    with pytest.raises(Refused, match="git_branch_missing"):
        source.fetch()
    assert source.head() == pushed


def test_nothing_is_known_before_the_first_fetch(world: World) -> None:
    with pytest.raises(Transient, match="git_not_fetched"):
        world.source().head()


def test_commits_are_counted_up_to_a_number(world: World) -> None:
    first, *_, last = [world.remote.push({"a.yaml": b"%d" % number}) for number in range(5)]
    source = world.source()
    source.fetch()
    assert [source.commits_since(first, last, most) for most in (2, 4, 9)] == [2, 4, 4]
    assert source.commits_since(last, last, 9) == source.commits_since(last, first, 9) == 0
    assert source.commits_since(Revision("f" * 40), last, 9) == 9


@pytest.mark.parametrize("ref", ["", "nothing-like-this", "-n", "f" * 40, "a\nb", "x" * 300])
def test_an_unknown_ref_is_refused(world: World, ref: str) -> None:
    world.remote.push({"a.yaml": b"1"})
    source = world.source()
    source.fetch()
    with pytest.raises(Refused, match="unknown_revision"):
        source.resolve(ref)
    with pytest.raises(Refused, match="unknown_revision"):
        source.snapshot(Revision(ref))
    assert source.fetch() == source.head()


def test_what_is_not_a_plain_file_is_marked(world: World) -> None:
    pushed = world.remote.push(
        {
            "big.yaml": b"x" * (LIMIT + 1),
            "fits.yaml": b"x" * LIMIT,
            "link.yaml": world.symlink,
            "vendor": world.submodule,
        }
    )
    source = world.source()
    source.fetch()
    files = source.snapshot(pushed).files
    assert [(file.path, file.kind, len(file.content)) for file in files] == [
        ("big.yaml", "too_large", 0),
        ("fits.yaml", "file", LIMIT),
        ("link.yaml", "symlink", 0),
        ("vendor", "submodule", 0),
    ]


def test_two_thousand_files(world: World) -> None:
    files = {f"tenants/t{n % 20}/p{n % 7}/f{n}.yaml": b"n: %d" % n for n in range(2000)}
    pushed = world.remote.push(files)
    source = world.source()
    source.fetch()
    snapshot = source.snapshot(pushed)
    assert {file.path: file.content for file in snapshot.files} == files
    assert [file.path for file in snapshot.files] == sorted(files)


def test_more_files_than_allowed_are_refused(world: World) -> None:
    pushed = world.remote.push({f"f{n}.yaml": b"" for n in range(2501)})
    source = world.source()
    source.fetch()
    with pytest.raises(Refused, match="too_many_files: more than 2500 files"):
        source.snapshot(pushed)
