"""CommitLog.chain: one suite for the fake and for Git, then the shapes only Git has."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reconciler.adapters import git_chain
from reconciler.adapters.git_chain import GitCommitLog
from reconciler.adapters.git_fetch import fetch_branch
from reconciler.adapters.git_pygit2 import GitReader
from reconciler.adapters.git_remote import parse_remote
from reconciler.adapters.tree_limits import blob_id
from reconciler.core.authority.facts import ChainStep
from reconciler.core.names import Revision
from reconciler.errors import Refused, Transient
from reconciler.ports import CommitLog
from reconciler.settings import Settings
from tests.fakes.commit_log import FakeCommitLog
from tests.fakes.state_source import FakeRemote
from tests.services.commit_graph import AT, Graph, changes
from tests.services.git_repo import GitRepo
from tests.services.git_upstream import GitUpstream, Submodule, Symlink

LIMIT = 1000


@dataclass
class World:
    """A remote to push to, and the log of what was pushed."""

    remote: Any
    log: Callable[[], CommitLog]
    symlink: Any
    submodule: Any


@pytest.fixture(params=["fake", "git"])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> World:
    if request.param == "fake":
        remote = FakeRemote(file_bytes_max=LIMIT)
        link = ("symlink", "elsewhere")
        return World(remote, lambda: FakeCommitLog(remote), link, ("submodule", "1" * 40))
    upstream = GitUpstream(tmp_path / "state.git")
    chosen = Settings(file_bytes_max=LIMIT)
    return World(
        upstream,
        lambda: GitCommitLog(upstream.path, chosen),
        Symlink("elsewhere"),
        Submodule(),
    )


def revisions(steps: Sequence[ChainStep]) -> list[Revision]:
    return [step.facts.revision for step in steps]


def test_each_commit_with_what_it_touched(world: World) -> None:
    first = world.remote.push({"a.yaml": b"1", "b/c.yml": b"1", "d.txt": b"1"}, "one")
    second = world.remote.push({"a.yaml": b"2", "b/c.yml": b"1", "d.txt": b"2"}, "two")
    third = world.remote.push({"a.yaml": b"2", "b/e.yml": b"1"}, "three")
    steps = world.log().chain(first, third)
    assert revisions(steps) == [second, third]
    assert [step.onto for step in steps] == [first, second]
    assert [changes(step) for step in steps] == [
        [("a.yaml", b"1", b"2")],
        [("b/c.yml", b"1", None), ("b/e.yml", None, b"1")],
    ]
    facts = steps[0].facts
    assert (facts.parents, facts.subject) == ((first,), "two")
    assert (facts.author_name, facts.author_email) == ("Ada", "ada@example.com")
    assert facts.committed_at_ms == AT * 1000
    assert all(step.side == () for step in steps)


def test_from_the_first_commit_on(world: World) -> None:
    first = world.remote.push({"a.yaml": b"1"}, "one")
    second = world.remote.push({"a.yaml": b"2"}, "two")
    steps = world.log().chain(None, second)
    assert revisions(steps) == [first, second]
    assert (steps[0].onto, changes(steps[0])) == (None, [("a.yaml", None, b"1")])


def test_there_is_nothing_between_a_revision_and_itself(world: World) -> None:
    only = world.remote.push({"a.yaml": b"1"})
    assert list(world.log().chain(only, only)) == []


def test_a_file_that_is_too_large_is_named_but_not_read(world: World) -> None:
    first = world.remote.push({"a.yaml": b"1"})
    second = world.remote.push({"a.yaml": b"#" * (LIMIT + 1)})
    (file,) = world.log().chain(first, second)[0].touched
    assert file.after is not None
    assert (file.after.content, len(file.after.blob_id)) == (None, 40)


def test_what_is_no_file_is_as_if_not_there(world: World) -> None:
    first = world.remote.push({"a.yaml": b"1", "b.yaml": world.symlink})
    second = world.remote.push({"a.yaml": world.symlink, "b.yaml": world.submodule})
    assert changes(world.log().chain(first, second)[0]) == [("a.yaml", b"1", None)]


def test_a_history_that_was_rewritten(world: World) -> None:
    first = world.remote.push({"a.yaml": b"1"})
    second = world.remote.push({"a.yaml": b"2"})
    other = world.remote.force_push({"a.yaml": b"3"})
    for since, head in ((second, other), (second, first), (Revision("9" * 40), second)):
        with pytest.raises(Refused) as refused:
            world.log().chain(since, head)
        assert refused.value.code == "history_rewritten"


def test_a_head_that_is_not_here(world: World) -> None:
    with pytest.raises(Refused) as refused:
        world.log().chain(world.remote.push({}), Revision("9" * 40))
    assert refused.value.code == "unknown_revision"


@pytest.fixture
def graph(tmp_path: Path) -> Graph:
    return Graph(tmp_path / "graph.git")


def test_a_merge_and_what_it_brings_in(graph: Graph) -> None:
    graph.add("root", a="0", b="0")
    graph.add("side1", ["root"], a="0", b="1")
    graph.add("side2", ["side1"], a="0", b="2", c="2")
    graph.add("main", ["root"], a="1", b="0")
    graph.add("merge", ["main", "side2"], a="1", b="2", c="3")
    assert graph.shape("root", "merge") == [("main", "root", ""), ("merge", "main", "side1 side2")]
    merge = graph.log().chain(graph.ids["main"], graph.ids["merge"])[0]
    assert changes(merge) == [("b.yaml", b"0", b"2"), ("c.yaml", None, b"3")]
    assert [changes(side) for side in merge.side] == [
        [("b.yaml", b"0", b"1")],
        [("b.yaml", b"1", b"2"), ("c.yaml", None, b"2")],
    ]


def test_what_was_accepted_may_be_the_second_parent(graph: Graph) -> None:
    graph.add("root", a="0")
    graph.add("stray", ["root"], a="x")
    graph.add("accepted", ["root"], b="0")
    graph.add("merge", ["stray", "accepted"], a="x", b="0")
    assert graph.shape("accepted", "merge") == [("merge", "accepted", "stray")]


def test_the_first_parent_that_was_built_on_it(graph: Graph) -> None:
    graph.add("root")
    graph.add("one", ["root"], a="1")
    graph.add("two", ["root"], b="1")
    graph.add("both", ["two", "one"], a="1", b="1")
    assert graph.shape("root", "both") == [("two", "root", ""), ("both", "two", "one")]
    assert graph.shape("one", "both") == [("both", "one", "two")]


def test_an_octopus(graph: Graph) -> None:
    graph.add("root")
    for name in ("one", "two", "three"):
        graph.add(name, ["root"], **{name: "1"})
    graph.add("octopus", ["one", "two", "three"], one="1", two="1", three="1")
    steps = graph.shape("root", "octopus")
    assert steps[0] == ("one", "root", "")
    assert steps[1][:2] == ("octopus", "one")
    assert set(steps[1][2].split()) == {"two", "three"}


def test_a_criss_cross(graph: Graph) -> None:
    graph.add("root")
    graph.add("a1", ["root"], a="1")
    graph.add("b1", ["root"], b="1")
    graph.add("a2", ["a1", "b1"], a="1", b="1")
    graph.add("b2", ["b1", "a1"], a="1", b="1")
    graph.add("last", ["b2", "a2"], a="1", b="1")
    assert graph.shape("root", "last") == [
        ("b1", "root", ""), ("b2", "b1", "a1"), ("last", "b2", "a2"),
    ]  # fmt: skip


def test_another_history_that_was_merged_in(graph: Graph) -> None:
    graph.add("root", a="0")
    graph.add("other", b="0")
    graph.add("merge", ["root", "other"], a="0", b="0")
    (step,) = graph.log().chain(graph.ids["root"], graph.ids["merge"])
    assert changes(step.side[0]) == [("b.yaml", None, b"0")]
    assert graph.shape(None, "merge") == [("root", "", ""), ("merge", "root", "other")]


def test_a_file_where_a_folder_was(graph: Graph) -> None:
    graph.add("root", **{"a.yaml/b": "0"})
    graph.add("next", ["root"], a="1")
    (step,) = graph.log().chain(graph.ids["root"], graph.ids["next"])
    assert changes(step) == [("a.yaml", None, b"1"), ("a.yaml/b.yaml", b"0", None)]


def test_a_revert_is_a_change_like_any_other(graph: Graph) -> None:
    graph.add("one", a="1")
    graph.add("two", ["one"], a="2")
    graph.add("back", ["two"], a="1")
    steps = graph.log().chain(graph.ids["one"], graph.ids["back"])
    assert [changes(step) for step in steps] == [
        [("a.yaml", b"1", b"2")], [("a.yaml", b"2", b"1")],
    ]  # fmt: skip


_TIMES = st.integers(min_value=0, max_value=4).map(lambda days: AT + 86_400 * days)
_PATHS = ("a", "b_c", "b_d_e")


@st.composite
def graphs(draw: st.DrawFn) -> list[tuple[list[int], int, dict[str, str]]]:
    """(parents by number, time, files) of each commit. Clocks are as wrong as they like."""
    found: list[tuple[list[int], int, dict[str, str]]] = []
    for number in range(draw(st.integers(min_value=1, max_value=12))):
        older = st.integers(min_value=0, max_value=max(0, number - 1))
        some = st.lists(older, min_size=1, max_size=3, unique=True)
        parents = draw(some | st.just([])) if number else []
        files = draw(st.dictionaries(st.sampled_from(_PATHS), st.sampled_from("12")))
        found.append((parents, draw(_TIMES), files))
    return found


@settings(max_examples=40, deadline=None)
@given(made=graphs(), picked=st.integers(min_value=0))
def test_any_graph_against_the_definition(
    made: list[tuple[list[int], int, dict[str, str]]], picked: int
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        graph = Graph(Path(folder))
        for number, (parents, at, files) in enumerate(made):
            graph.at = at
            graph.add(str(number), [str(one) for one in parents], **files)
        above = _reachable([parents for parents, _, _ in made])
        head = len(made) - 1
        for since in (picked % len(made), None):
            if since is not None and since not in above[head]:
                with pytest.raises(Refused, match="is not among"):
                    graph.shape(str(since), str(head))
                continue
            shape = graph.shape(None if since is None else str(since), str(head))
            assert [_with_sorted_side(step) for step in shape] == _defined(made, above, since)
            _check_touched(graph, since, head)


def _reachable(parents: list[list[int]]) -> list[set[int]]:
    above: list[set[int]] = []
    for number, those in enumerate(parents):
        above.append({number}.union(*(above[one] for one in those)))
    return above


def _defined(
    made: list[tuple[list[int], int, dict[str, str]]], above: list[set[int]], since: int | None
) -> list[tuple[str, str, list[str]]]:
    steps = []
    at: int | None = len(made) - 1
    while at is not None and at != since:
        onto = next((p for p in made[at][0] if since is None or since in above[p]), None)
        side = above[at] - {at} - (set() if onto is None else above[onto])
        steps.append((str(at), "" if onto is None else str(onto), sorted(map(str, side))))
        at = onto
    return steps[::-1]


def _with_sorted_side(step: tuple[str, str, str]) -> tuple[str, str, list[str]]:
    return step[0], step[1], sorted(step[2].split())


def _check_touched(graph: Graph, since: int | None, head: int) -> None:
    """What each step touched is how its snapshot differs from the one it is judged against."""
    reader = GitReader(graph.folder, "HEAD", Settings())

    def contents(revision: Revision | None) -> dict[str, bytes]:
        files = reader.snapshot(revision).files if revision else ()
        return {file.path: file.content for file in files}

    started = None if since is None else graph.ids[str(since)]
    for step in graph.log().chain(started, graph.ids[str(head)]):
        before, after = contents(step.onto), contents(step.facts.revision)
        paths = sorted(before.keys() | after.keys())
        differs = [(p, before.get(p), after.get(p)) for p in paths]
        assert changes(step) == [row for row in differs if row[1] != row[2]]


def test_no_replacement_stands_in_for_a_commit(graph: Graph) -> None:
    graph.add("root", a="0")
    real = graph.add("real", ["root"], a="1")
    other = graph.add("other", a="9")
    graph.repository.references.create(f"refs/replace/{real}", other)
    (step,) = graph.log().chain(graph.ids["root"], real)
    assert changes(step) == [("a.yaml", b"0", b"1")]


@contextmanager
def refused(code: str, *words: str) -> Iterator[None]:
    with pytest.raises(Refused) as found:
        yield
    assert found.value.code == code
    assert all(word in str(found.value) for word in words), str(found.value)


def test_a_shallow_clone(tmp_path: Path) -> None:
    repo = GitRepo(tmp_path / "whole")
    for number in range(3):
        repo.commit({"a.yaml": str(number)})
    url = f"file://{repo.folder}"
    repo.git("clone", "--quiet", "--bare", "--depth", "2", url, str(tmp_path / "cut"))
    with refused("history_incomplete", "the clone is shallow", "git fetch --unshallow"):
        GitCommitLog(tmp_path / "cut", Settings()).chain(None, repo.head())


def test_grafts(graph: Graph) -> None:
    graph.add("root")
    graph.add("next", ["root"])
    (graph.folder / "info").mkdir(exist_ok=True)
    (graph.folder / "info/grafts").write_text(f"{graph.ids['next']}\n")
    with refused("history_incomplete", "the repository has grafts", "remove "):
        graph.log().chain(None, graph.ids["next"])


def test_a_history_of_too_many_commits(graph: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(git_chain, "COMMITS_MAX", 3)
    names = [str(number) for number in range(5)]
    graph.add("0")
    for one, other in itertools.pairwise(names):
        graph.add(other, [one])
    with refused("too_many_commits", "more than 3 commits", "set trust_root"):
        graph.log().chain(None, graph.ids["4"])
    assert len(graph.log().chain(graph.ids["1"], graph.ids["4"])) == 3


def _line_of(graph: Graph, names: Sequence[str]) -> None:
    for older, newer in itertools.pairwise(names):
        graph.add(newer, [older], a=newer)


def test_what_was_accepted_is_no_side_commit_whatever_the_clocks_said(graph: Graph) -> None:
    """A merge of an accepted commit must not bring back what that one did: libgit2 alone gives
    up looking for it behind some commits that say they are old.
    """
    graph.add("granted", a="help")
    graph.at = 1
    old = ["granted", *map(str, range(20)), "revoked"]
    _line_of(graph, old[:-1])
    graph.at = AT
    graph.add("revoked", [old[-2]])
    graph.add("again", ["revoked", "granted"], a="help")
    assert graph.shape("revoked", "again") == [("again", "revoked", "")]
    graph.add("other", ["granted"], a="x")
    graph.add("late", ["revoked", "other"], a="x")
    assert graph.shape("revoked", "late") == [("late", "revoked", "other")]
    graph.add("root")
    graph.add("later", ["again", "root", "3"])
    assert graph.shape("revoked", "later")[1] == ("later", "again", "root")


def test_what_the_line_has_is_no_side_commit_whatever_the_clocks_said(graph: Graph) -> None:
    graph.add("root", a="0")
    graph.add("granted", ["root"], a="help")
    graph.at = 1
    line = ["granted", *map(str, range(20))]
    _line_of(graph, line)
    graph.at = AT
    graph.add("again", [line[-1], "granted"], a="help")
    steps = graph.shape("root", "again")
    assert [step[0] for step in steps] == [*line, "again"]
    assert all(side == "" for _, _, side in steps)


def test_a_merge_of_too_many(graph: Graph) -> None:
    graph.add("root")
    names = [str(number) for number in range(git_chain.PARENTS_MAX + 1)]
    for name in names:
        graph.add(name, ["root"], a=name)
    graph.add("many", names[:-1])
    assert len(graph.shape("root", "many")) == 2
    graph.add("more", names)
    graph.add("after", ["more"])
    with refused("history_too_large", "more than 16 parents", "set trust_root"):
        graph.log().chain(graph.ids["root"], graph.ids["after"])
    assert graph.shape("more", "after") == [("after", "more", "")]


@pytest.mark.parametrize(
    ("name", "most", "words"),
    [
        ("TOUCHED_FILES_MAX", 4, "more than 4 files"),
        ("TOUCHED_BYTES_MAX", 5, "more than 5 bytes"),
        ("_ENTRIES_READ_MAX", 4, "more than 4 entries"),
    ],
)
def test_a_history_that_touches_too_much(
    graph: Graph, monkeypatch: pytest.MonkeyPatch, name: str, most: int, words: str
) -> None:
    monkeypatch.setattr(git_chain, name, most)
    graph.add("0", a="0")
    _line_of(graph, ["0", "1", "2", "3"])
    steps = graph.log().chain(graph.ids["0"], graph.ids["3"])
    if name != "TOUCHED_BYTES_MAX":
        assert len(list(steps)) == 3
    _line_of(graph, ["3", "4", "5"])
    with refused("history_too_large", words, "set trust_root"):
        list(graph.log().chain(graph.ids["0"], graph.ids["5"]))
    assert len(list(graph.log().chain(graph.ids["3"], graph.ids["5"]))) == 2


def test_what_is_read_again_is_not_touched_again(
    graph: Graph, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(git_chain, "TOUCHED_FILES_MAX", 4)
    monkeypatch.setattr(git_chain, "_KEPT_BYTES_MAX", 0)
    graph.add("0", a="0")
    _line_of(graph, ["0", "1", "2", "3"])
    steps = graph.log().chain(graph.ids["0"], graph.ids["3"])
    assert list(steps) == list(steps) == list(steps)


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        ({"files_max": 8}, "more than 16 files in one step"),
        ({"snapshot_bytes_max": 10}, "more than 20 bytes in one step"),
    ],
)
def test_a_merge_of_more_than_can_be_held(graph: Graph, limits: dict[str, int], words: str) -> None:
    graph.add("0", a="0")
    _line_of(graph, list(map(str, range(20))))
    graph.add("main", ["0"], b="1")
    graph.add("merge", ["main", "19"], a="19", b="1")
    chosen = Settings.model_validate(limits)
    steps = GitCommitLog(graph.folder, chosen).chain(graph.ids["0"], graph.ids["19"])
    assert len(list(steps)) == 19
    steps = GitCommitLog(graph.folder, chosen).chain(graph.ids["main"], graph.ids["merge"])
    with refused("history_too_large", words, "set trust_root"):
        list(steps)


def test_a_folder_of_too_many(graph: Graph) -> None:
    """Although none of it is a manifest."""
    blob = graph.repository.create_blob(b"x").raw
    rows = b"".join(b"100644 %d\0" % number + blob for number in range(10, 20))
    commit = graph.raw_commit(tree=graph.write(2, rows).encode())
    log = GitCommitLog(graph.folder, Settings(files_max=9))
    with refused("too_many_files", "more than 9 files"):
        list(log.chain(None, commit))


def test_steps_that_are_not_kept_are_read_again(
    graph: Graph, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph.add("0", a="0")
    for number in range(1, 20):
        graph.add(str(number), [str(number - 1)], a=str(number))
    kept = list(graph.log().chain(None, graph.ids["19"]))
    monkeypatch.setattr(git_chain, "_KEPT_BYTES_MAX", 5000)
    again = graph.log().chain(None, graph.ids["19"])
    assert list(again) == list(again) == kept
    assert list(again[3:5]) == kept[3:5]
    assert again[-1] == kept[-1]


def test_in_a_further_work_tree(tmp_path: Path) -> None:
    repo = GitRepo(tmp_path / "first")
    repo.commit({"a.yaml": "1"})
    repo.git("worktree", "add", "--quiet", "-b", "other", str(tmp_path / "other"))
    folder = repo.folder / ".git/worktrees/other"
    log = GitCommitLog(folder, Settings())
    assert revisions(log.chain(None, repo.head())) == [repo.head()]
    assert log.signatures([repo.head()], ())[repo.head()].state == "none"


def test_a_damaged_mirror_is_cloned_again(tmp_path: Path) -> None:
    upstream = GitUpstream(tmp_path / "upstream")
    first = upstream.push({"a.yaml": b"1"})
    second = upstream.push({"a.yaml": b"2"})
    mirror = tmp_path / "state/mirror.git"
    chosen = Settings(state_dir=tmp_path / "state")
    fetch_branch(parse_remote(str(upstream.path)), "main", mirror, chosen)
    (pack,) = mirror.glob("objects/pack/*.pack")
    kept = pack.rename(tmp_path / "kept.pack").read_bytes()
    GitRepo(mirror, config={}, make=False).git("unpack-objects", "-q", given=kept)
    blob = blob_id(b"2")
    (mirror / "objects" / blob[:2] / blob[2:]).unlink()
    log = GitCommitLog(mirror, chosen)
    with pytest.raises(Transient) as damaged:
        list(log.chain(first, second))
    assert damaged.value.code == "git_mirror_damaged"
    fetch_branch(parse_remote(str(upstream.path)), "main", mirror, chosen)
    assert changes(log.chain(first, second)[0]) == [("a.yaml", b"1", b"2")]
