"""What only a real Git gets wrong: hostile addresses, wrong keys, dead servers, broken mirrors."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from reconciler.adapters.git_pygit2 import GitSource
from reconciler.errors import Refused, Transient
from reconciler.settings import Settings
from tests.services.git_http import PASSWORD, USER, GitHttp, git_http
from tests.services.git_upstream import GitUpstream
from tests.services.sshd import Sshd, new_key, sshd


@pytest.fixture
def upstream(tmp_path: Path) -> GitUpstream:
    made = GitUpstream(tmp_path / "up.git")
    made.push({"a.yaml": b"1", "folder/b.yaml": b"2"})
    return made


@pytest.fixture
def http(tmp_path: Path) -> Iterator[GitHttp]:
    with git_http(tmp_path) as server:
        yield server


@pytest.fixture(scope="module")
def ssh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    with sshd(tmp_path_factory.mktemp("sshd")) as server:
        yield server


def source_of(url: str | Path, tmp_path: Path, **changes: Any) -> GitSource:
    settings = Settings(**({"fetch_timeout_s": 20} | changes))
    return GitSource(str(url), "main", tmp_path / "state" / "mirror.git", settings)


@pytest.mark.parametrize("branch", ["-f", "a..b", "a b", "x~1", "", "a\nb", "@{", "end.lock"])
def test_a_hostile_branch_is_refused(branch: str, tmp_path: Path) -> None:
    with pytest.raises(Refused, match="git_branch_refused: not a branch name"):
        GitSource(str(tmp_path), branch, tmp_path / "m.git", Settings())


def test_no_hook_and_no_command_of_an_address_runs(upstream: GitUpstream, tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    source = source_of(upstream.path, tmp_path)
    source.fetch()
    hooks = tmp_path / "state" / "mirror.git" / "hooks"
    hooks.mkdir(exist_ok=True)
    for name in ("reference-transaction", "post-fetch", "pre-auto-gc"):
        (hooks / name).write_text(f"#!/bin/sh\ntouch '{ran}'\n")
        (hooks / name).chmod(0o755)
    upstream.push({"a.yaml": b"3"})
    source.fetch()
    with pytest.raises(Refused):
        source_of(f"ext::sh -c 'touch {ran}'", tmp_path)
    assert not ran.exists()


def test_variables_of_our_caller_do_not_reach_git(
    upstream: GitUpstream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "nowhere"))
    monkeypatch.setenv("GIT_OBJECT_DIRECTORY", str(tmp_path / "nowhere"))
    monkeypatch.setenv("GIT_CONFIG_COUNT", "x")
    source = source_of(upstream.path, tmp_path)
    assert source.fetch() == source.head()


@pytest.mark.real
class TestSsh:
    def test_an_unknown_host_key_is_refused(
        self, ssh: Sshd, upstream: GitUpstream, tmp_path: Path
    ) -> None:
        empty = tmp_path / "none"
        empty.touch()
        source = source_of(
            ssh.url(upstream.path), tmp_path, git_known_hosts=empty, git_ssh_key=ssh.client_key
        )
        with pytest.raises(Refused, match=r"git_host_key_unknown.*known-hosts"):
            source.fetch()
        assert empty.read_text() == ""

    def test_a_changed_host_key_is_refused(
        self, ssh: Sshd, upstream: GitUpstream, tmp_path: Path
    ) -> None:
        other = new_key(tmp_path / "other").split()
        known = tmp_path / "known"
        place = ssh.known_hosts.read_text().split()[0]
        known.write_text(f"{place} {other[0]} {other[1]}\n")
        source = source_of(
            ssh.url(upstream.path), tmp_path, git_known_hosts=known, git_ssh_key=ssh.client_key
        )
        with pytest.raises(Refused, match=r"git_host_key_changed.*nobody is in between"):
            source.fetch()

    def test_a_wrong_key_is_refused(
        self, ssh: Sshd, upstream: GitUpstream, tmp_path: Path
    ) -> None:
        new_key(tmp_path / "stranger")
        source = source_of(
            ssh.url(upstream.path),
            tmp_path,
            git_known_hosts=ssh.known_hosts,
            git_ssh_key=tmp_path / "stranger",
        )
        with pytest.raises(Refused, match=r"git_auth_failed.*deploy key"):
            source.fetch()

    def test_a_missing_repository_is_refused(self, ssh: Sshd, tmp_path: Path) -> None:
        source = source_of(
            ssh.url(tmp_path / "nothing.git"),
            tmp_path,
            git_known_hosts=ssh.known_hosts,
            git_ssh_key=ssh.client_key,
        )
        with pytest.raises(Refused, match="git_repo_missing"):
            source.fetch()


@pytest.mark.parametrize(
    "credentials", ["", f"{USER}:wrong-pass-8", "some-token-9", f":{USER}-pass-8"]
)
def test_a_wrong_password_is_refused_and_not_shown(
    http: GitHttp, upstream: GitUpstream, tmp_path: Path, credentials: str
) -> None:
    source = source_of(http.url("basic", "up.git", credentials), tmp_path)
    with pytest.raises(Refused, match="git_auth_failed: the server refused our cred") as caught:
        source.fetch()
    shown = f"{caught.value} {caught.value!r} {caught.value.where}"
    assert "pass-8" not in shown
    assert "token-9" not in shown


def test_a_password_is_neither_in_argv_nor_on_disk(
    http: GitHttp, upstream: GitUpstream, tmp_path: Path
) -> None:
    secret = "correct-horse"
    source = source_of(http.url("basic", "up.git", f"{USER}:{secret}"), tmp_path)
    http.hold()
    with ThreadPoolExecutor() as pool:
        fetching = pool.submit(source.fetch)
        assert http.waiting.wait(20)
        commands = _command_lines()
        http.release()
        assert isinstance(fetching.exception(30), Refused)
    assert any("remote-http" in line for line in commands)
    assert not any(secret in line for line in commands)
    held = [path for path in (tmp_path / "state").rglob("*") if path.is_file()]
    assert not any(secret.encode() in path.read_bytes() for path in held)


def _command_lines() -> list[str]:
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            lines.append(path.read_bytes().replace(b"\0", b" ").decode("utf-8", "replace"))
        except OSError:
            continue
    return lines


def test_a_server_that_is_gone_is_transient(tmp_path: Path) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    with pytest.raises(Transient, match=r"git_fetch_failed: .*(refused|Failed to connect)"):
        source_of(f"http://127.0.0.1:{port}/up.git", tmp_path).fetch()


def test_a_missing_repository_is_refused(http: GitHttp, tmp_path: Path) -> None:
    for url in (http.url("open", "nothing.git"), str(tmp_path / "nothing")):
        with pytest.raises(Refused, match="git_repo_missing"):
            source_of(url, tmp_path).fetch()


def test_a_server_that_never_answers_times_out_and_leaves_no_process(tmp_path: Path) -> None:
    closed = threading.Event()

    def swallow(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection:
            while connection.recv(4096):
                pass
            closed.set()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=swallow, args=(listener,))
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/up.git"
        with pytest.raises(Transient, match=r"git_timeout: no end after 0\.7 s"):
            source_of(url, tmp_path, fetch_timeout_s=0.7).fetch()
        thread.join(20)
    assert closed.is_set()
    assert sorted(path.name for path in (tmp_path / "state").iterdir()) == ["mirror.git.lock"]


def test_a_fetch_waits_for_another_one_and_not_forever(
    http: GitHttp, upstream: GitUpstream, tmp_path: Path
) -> None:
    patient = source_of(http.url("open", "up.git"), tmp_path)
    hasty = source_of(http.url("open", "up.git"), tmp_path, fetch_timeout_s=0.3)
    http.hold()
    with ThreadPoolExecutor() as pool:
        fetching = pool.submit(patient.fetch)
        assert http.waiting.wait(20)
        with pytest.raises(Transient, match="git_busy: another fetch of this mirror"):
            hasty.fetch()
        http.release()
        assert fetching.result(30) == patient.head()


FETCH = """
import sys
from pathlib import Path
from reconciler.adapters.git_pygit2 import GitSource
from reconciler.settings import Settings
print(GitSource(sys.argv[1], "main", Path(sys.argv[2]), Settings()).fetch())
"""


def fetch_elsewhere(url: str | Path, tmp_path: Path) -> subprocess.Popen[bytes]:
    mirror = tmp_path / "state" / "mirror.git"
    return subprocess.Popen(
        [sys.executable, "-c", FETCH, str(url), str(mirror)],
        cwd=Path(__file__).parents[2], stdout=subprocess.PIPE,
    )  # fmt: skip


def test_processes_may_share_a_mirror(upstream: GitUpstream, tmp_path: Path) -> None:
    source = source_of(upstream.path, tmp_path)
    for round_number in range(2):
        head = upstream.push({"a.yaml": b"round %d" % round_number})
        fetches = [fetch_elsewhere(upstream.path, tmp_path) for _ in range(4)]
        assert source.fetch() == head
        for process in fetches:
            assert process.communicate(timeout=60)[0].decode().strip() == head
            assert process.returncode == 0


def test_a_clone_killed_in_the_middle_is_made_again(
    http: GitHttp, upstream: GitUpstream, tmp_path: Path
) -> None:
    http.hold()
    process = fetch_elsewhere(http.url("open", "up.git"), tmp_path)
    assert http.waiting.wait(20)
    process.kill()
    process.communicate(timeout=20)
    assert not (tmp_path / "state" / "mirror.git").exists()
    assert len(_clones(tmp_path)) == 1
    http.release()
    source = source_of(http.url("open", "up.git"), tmp_path)
    assert source.fetch() == source.head()
    _eventually(lambda: len(_clones(tmp_path)) == 1, source)


def _clones(tmp_path: Path) -> list[Path]:
    return list((tmp_path / "state").glob("mirror.git.clone-*"))


def _eventually(holds: Any, source: GitSource) -> None:
    # The killed one's git may write once more before it notices; a later fetch clears that too.
    for _ in range(100):
        if holds():
            return
        time.sleep(0.05)
        source.fetch()
    raise AssertionError("never held")


def test_locks_of_a_killed_git_do_not_block(upstream: GitUpstream, tmp_path: Path) -> None:
    source = source_of(upstream.path, tmp_path)
    source.fetch()
    mirror = tmp_path / "state" / "mirror.git"
    (mirror / "refs" / "heads" / "main.lock").touch()
    (mirror / "packed-refs.lock").touch()
    (mirror / "objects" / "pack" / "tmp_pack_x").touch()
    head = upstream.push({"a.yaml": b"later"})
    assert source.fetch() == head
    assert not list(mirror.rglob("*.lock"))
    assert not list(mirror.rglob("tmp_pack*"))


def test_the_state_folder_may_be_reached_through_a_link(
    upstream: GitUpstream, tmp_path: Path
) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "state").symlink_to(tmp_path / "real")
    head = source_of(upstream.path, tmp_path).fetch()
    first = _clones(tmp_path)
    source = source_of(upstream.path, tmp_path)
    assert source.fetch() == head
    assert _clones(tmp_path) == first
    _half_written(tmp_path / "state" / "mirror.git")
    assert source.fetch() == head


def _half_written(mirror: Path) -> None:
    shutil.rmtree(mirror / "objects")
    (mirror / "HEAD").unlink()


def _empty_ref(mirror: Path) -> None:
    (mirror / "refs" / "heads" / "main").write_bytes(b"")


def _damaged_pack(mirror: Path) -> None:
    for pack in mirror.glob("objects/pack/*.pack"):
        pack.chmod(0o600)
        pack.write_bytes(b"PACK")


def _bad_config(mirror: Path) -> None:
    (mirror / "config").write_text("[core\n")


@pytest.mark.parametrize("damage", [_half_written, _empty_ref, _damaged_pack, _bad_config])
def test_a_damaged_mirror_is_set_aside_and_cloned_again(
    damage: Any, upstream: GitUpstream, tmp_path: Path
) -> None:
    head = source_of(upstream.path, tmp_path).fetch()
    mirror = tmp_path / "state" / "mirror.git"
    source = source_of(upstream.path, tmp_path)
    source.snapshot(head)
    damage(mirror)
    assert source.fetch() == head
    assert len(source.snapshot(head).files) == 2
    assert (tmp_path / "state" / "mirror.git.corrupt").is_dir()


def test_a_lost_object_is_found_when_read_and_healed_by_the_next_fetch(
    upstream: GitUpstream, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    head = source_of(upstream.path, tmp_path).fetch()
    source = source_of(upstream.path, tmp_path)
    blob = source.snapshot(head).files[0].blob_id
    _lose(tmp_path / "state" / "mirror.git", blob)
    reader = source_of(upstream.path, tmp_path)
    with pytest.raises(Transient, match=r"git_mirror_damaged.*the next fetch clones it again"):
        reader.snapshot(head)
    assert reader.fetch() == head
    assert len(reader.snapshot(head).files) == 2
    assert "git_mirror_damaged" in caplog.text
    assert len(source.snapshot(head).files) == 2


def _lose(mirror: Path, blob: str) -> None:
    for pack in list(mirror.glob("objects/pack/*.pack")):
        content = pack.read_bytes()
        for part in pack.parent.glob(pack.stem + ".*"):
            part.unlink()
        subprocess.run(
            ["git", f"--git-dir={mirror}", "unpack-objects", "-q"], input=content, check=True
        )
    (mirror / "objects" / blob[:2] / blob[2:]).unlink()


def test_a_one_file_commit_reads_one_blob(upstream: GitUpstream, tmp_path: Path) -> None:
    files = {f"tenants/t{n % 5}/f{n}.yaml": b"n: %d" % n for n in range(100)}
    source = source_of(upstream.path, tmp_path)
    upstream.push(files)
    source.snapshot(source.fetch())
    assert source.blobs_read == 100
    upstream.push(files | {"tenants/t3/f3.yaml": b"n: changed"})
    after = source.snapshot(source.fetch())
    assert source.blobs_read == 101
    assert {f.path: f.content for f in after.files}["tenants/t3/f3.yaml"] == b"n: changed"
    fresh = source_of(upstream.path, tmp_path).snapshot(source.head())
    assert fresh == after


def test_a_path_that_is_not_utf8_is_escaped(upstream: GitUpstream, tmp_path: Path) -> None:
    tree = subprocess.run(
        ["git", f"--git-dir={upstream.path}", "mktree", "-z"],
        input=b"100644 blob " + _blob(upstream) + b"\todd\xff.yaml\0",
        capture_output=True, check=True,
    ).stdout.strip().decode()  # fmt: skip
    subprocess.run(
        ["git", f"--git-dir={upstream.path}", "-c", "user.name=A", "-c", "user.email=a@b.c",
         "update-ref", "refs/heads/main", _commit_tree(upstream, tree)], check=True,
    )  # fmt: skip
    source = source_of(upstream.path, tmp_path)
    files = source.snapshot(source.fetch()).files
    assert [(file.path, file.content) for file in files] == [("odd\\xff.yaml", b"1")]


def _blob(upstream: GitUpstream) -> bytes:
    return subprocess.run(
        ["git", f"--git-dir={upstream.path}", "hash-object", "-w", "--stdin"],
        input=b"1", capture_output=True, check=True,
    ).stdout.strip()  # fmt: skip


def _commit_tree(upstream: GitUpstream, tree: str) -> str:
    names = {f"GIT_{who}_{what}": "a@b.c" for who in ("AUTHOR", "COMMITTER")
             for what in ("NAME", "EMAIL")}  # fmt: skip
    return subprocess.run(
        ["git", f"--git-dir={upstream.path}", "commit-tree", tree, "-m", "x\x1b[31m red"],
        env=os.environ | names, capture_output=True, check=True,
    ).stdout.strip().decode()  # fmt: skip


def test_a_tree_that_multiplies_itself_is_refused(upstream: GitUpstream, tmp_path: Path) -> None:
    def mktree(rows: bytes) -> bytes:
        return subprocess.run(
            ["git", f"--git-dir={upstream.path}", "mktree", "-z"],
            input=rows, capture_output=True, check=True,
        ).stdout.strip()  # fmt: skip

    tree = mktree(b"")
    for _ in range(12):
        tree = mktree(b"".join(b"040000 tree %s\tf%d\0" % (tree, n) for n in range(10)))
    commit = _commit_tree(upstream, tree.decode())
    subprocess.run(
        ["git", f"--git-dir={upstream.path}", "update-ref", "refs/heads/main", commit], check=True
    )
    source = source_of(upstream.path, tmp_path, files_max=5000)
    with pytest.raises(Refused, match="too_many_files"):
        source.snapshot(source.fetch())


def test_too_many_bytes_are_refused(upstream: GitUpstream, tmp_path: Path) -> None:
    upstream.push({f"f{n}.yaml": b"x" * 900 for n in range(3)})
    source = source_of(upstream.path, tmp_path, snapshot_bytes_max=2000)
    with pytest.raises(Refused, match="too_many_bytes: more than 2000 bytes of YAML"):
        source.snapshot(source.fetch())


def test_a_reader_goes_on_while_the_mirror_is_packed(
    upstream: GitUpstream, tmp_path: Path
) -> None:
    source = source_of(upstream.path, tmp_path)
    first = source.fetch()
    source.snapshot(first)
    second = upstream.push({"a.yaml": b"packed later"})
    source.fetch()
    subprocess.run(
        ["git", f"--git-dir={tmp_path / 'state' / 'mirror.git'}", "gc", "--quiet"], check=True
    )
    assert source.snapshot(second).files[0].content == b"packed later"


def test_a_head_that_was_pushed_away_outlives_a_gc(upstream: GitUpstream, tmp_path: Path) -> None:
    source = source_of(upstream.path, tmp_path)
    old = source.fetch()
    upstream.force_push({"a.yaml": b"other"})
    source.fetch()
    mirror = tmp_path / "state" / "mirror.git"
    subprocess.run(["git", f"--git-dir={mirror}", "gc", "--quiet"], check=True)
    assert len(source_of(upstream.path, tmp_path).snapshot(old).files) == 2


def test_the_password_in_use_is_the_decoded_one(
    http: GitHttp, upstream: GitUpstream, tmp_path: Path
) -> None:
    quoted = PASSWORD.replace("/", "%2F").replace("@", "%40")
    source = source_of(http.url("basic", "up.git", f"{USER}:{quoted}"), tmp_path)
    assert source.fetch() == source.head()
