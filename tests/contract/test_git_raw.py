"""What is read of a commit's and a tree's own bytes, as Git and libgit2 read them."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reconciler.adapters.git_chain import GitCommitLog
from reconciler.adapters.git_pygit2 import GitReader
from reconciler.adapters.git_raw import armor_of, read_commit
from reconciler.core.authority.facts import CommitFacts, Signature
from reconciler.core.names import Revision
from reconciler.errors import Refused
from reconciler.settings import Settings
from tests.services.commit_graph import TREE, Change, Graph, changes

BLOB = 3


@pytest.fixture
def graph(tmp_path: Path) -> Graph:
    return Graph(tmp_path / "graph.git")


_FILE_MODES = ("100644", "100755", "100664", "0100644")
_ODD_MODES = ("100640", "100600", "0644", "120755", "160100", "160644", "1100644", "40755", "0")
_MODES = ("40000", *_FILE_MODES, "120000", "160000", *_ODD_MODES)


@given(modes=st.lists(st.sampled_from(_MODES), min_size=1, max_size=4))
@settings(max_examples=60, deadline=None)
def test_only_modes_that_git_writes_make_a_file(modes: list[str]) -> None:
    """Others may name what is not here at all, as a submodule does, or a folder as a file."""
    with tempfile.TemporaryDirectory() as folder:
        graph = Graph(Path(folder))
        blob = graph.repository.create_blob(b"x").raw
        below = bytes.fromhex(graph.write(TREE, b"100644 in.yaml\0" + blob))
        ids = {"40000": below, **dict.fromkeys(_FILE_MODES, blob)}
        raw = b"".join(
            f"{mode} {number}.yaml\0".encode() + ids.get(mode, b"\xab" * 20)
            for number, mode in enumerate(modes)
        )
        commit = graph.raw_commit(tree=graph.write(TREE, raw).encode())
        files = GitReader(graph.folder, "HEAD", Settings()).snapshot(commit).files
        (step,) = graph.log().chain(None, commit)
        paths = [
            f"{number}.yaml" + ("/in.yaml" if mode == "40000" else "")
            for number, mode in enumerate(modes)
            if mode in ids
        ]
        assert changes(step) == [(path, None, b"x") for path in paths]
        assert [(f.path, f.content) for f in files if f.kind == "file"] == [
            (path, b"x") for path in paths
        ]
        assert len(files) == len(modes)


@pytest.mark.parametrize("names", [[b"a", b"a"], [b"a/b.yaml"]])
def test_a_tree_that_can_be_read_in_several_ways(graph: Graph, names: list[bytes]) -> None:
    blob = graph.repository.create_blob(b"x")
    tree = graph.write(TREE, b"".join(b"100644 " + name + b"\0" + blob.raw for name in names))
    commit = graph.raw_commit(tree=tree.encode())
    with pytest.raises(Refused, match="can be read in several ways") as refused:
        list(graph.log().chain(None, commit))
    assert refused.value.code == "git_bad_objects"
    with pytest.raises(Refused, match="can be read in several ways"):
        GitReader(graph.folder, "HEAD", Settings()).snapshot(commit)


@pytest.mark.parametrize("mode", ["40000 a", "100644 a.yaml"])
def test_what_is_not_what_its_mode_says_is_damage(graph: Graph, mode: str) -> None:
    """A file whose bytes are those of a tree is no folder, and the other way round."""
    blob = graph.repository.create_blob(b"x").raw
    rows = b"100644 in.yaml\0" + blob
    wrong = graph.write(TREE, rows) if "yaml" in mode else graph.write(BLOB, rows)
    tree = graph.write(TREE, mode.encode() + b"\0" + bytes.fromhex(wrong))
    commit = graph.raw_commit(tree=tree.encode())
    with pytest.raises(Refused, match="git_repo_damaged"):
        list(graph.log().chain(None, commit))
    with pytest.raises(Refused, match="git_repo_damaged"):
        GitReader(graph.folder, "HEAD", Settings()).snapshot(commit)


NAMES: Mapping[bytes, str] = {
    b"a\xff.yaml": "a\\xff.yaml",
    rb"a\xff.yaml": r"a\\xff.yaml",
    rb"a\\xff.yaml": r"a\\\\xff.yaml",
    b"a\\\xff.yaml": r"a\\\xff.yaml",
    "ä.yaml".encode(): "ä.yaml",
    "ä.yaml".encode("latin-1"): r"\xe4.yaml",
}


def _read_both_ways(graph: Graph, names: Iterable[bytes]) -> list[Change]:
    """What the chain says a commit touched, where its snapshot says the same."""
    rows = [(name, graph.repository.create_blob(name).raw) for name in sorted(names)]
    tree = graph.write(TREE, b"".join(b"100644 " + name + b"\0" + blob for name, blob in rows))
    below = graph.write(TREE, b"40000 \xff\\\0" + bytes.fromhex(tree))
    commit = graph.raw_commit(tree=below.encode())
    (step,) = graph.log().chain(None, commit)
    files = GitReader(graph.folder, "HEAD", Settings()).snapshot(commit).files
    yaml = [file for file in files if file.path.endswith(".yaml")]
    assert changes(step) == [(file.path, None, file.content) for file in yaml]
    return changes(step)


def test_a_path_tells_what_is_escaped_in_it_from_what_looks_like_it(graph: Graph) -> None:
    found = {content: path for path, _, content in _read_both_ways(graph, NAMES)}
    assert found == {raw: r"\xff\\/" + text for raw, text in NAMES.items()}


_PIECES = (b"\\", b"x", b"f", b"\xff", b"\xc3", b"\xa4", "ä".encode(), b"\\xff", b" ")


@given(st.sets(st.lists(st.sampled_from(_PIECES), max_size=5).map(b"".join), max_size=6))
@settings(max_examples=60, deadline=None)
def test_no_two_names_are_one_path(stems: set[bytes]) -> None:
    names = {stem + b".yaml" for stem in stems}
    with tempfile.TemporaryDirectory() as folder:
        found = _read_both_ways(Graph(Path(folder)), names)
    assert {content for _, _, content in found} == names
    assert len({path for path, _, _ in found}) == len(names)


def facts_of(graph: Graph, commit: Revision, commit_bytes_max: int = 1_000_000) -> CommitFacts:
    log = GitCommitLog(graph.folder, Settings(commit_bytes_max=commit_bytes_max))
    return log.chain(None, commit)[0].facts


LONG = b"Subject\n\n" + b"word " * 2000 + b"\n\nApproves: App/hello\nReason: x\n"
MESSAGES: Mapping[str, tuple[bytes, str]] = {
    "plain": (b"Subject\n\nReason: why\n", "Subject\n\nReason: why"),
    "blank lines before it": (b"\n\nSubject\n", "Subject"),
    "windows line ends": (b"Subject\r\n\r\nReason: why\r\n", "Subject\n\nReason: why"),
    "what follows a NUL is seen by nobody": (b"Subject\0\n\nApproves: App/a\n", "Subject"),
    "not UTF-8": (b"Subj\xffect\n", "Subj\ufffdect"),
    "control characters": (b"Sub\x1b[2Jject\n", "Sub\ufffd[2Jject"),
    "none": (b"", ""),
    "long": (LONG, "Subject\n\n[...]\n\nApproves: App/hello\nReason: x"),
    "one long line": (b"x" * 100_000, "x" * 1024 + "\n\n[...]\n\n"),
    "half a paragraph": (
        b"Subject\n\n" + b"word " * 2000 + b"\nApproves: App/hello\n", "Subject\n\n[...]\n\n",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", MESSAGES)
def test_messages(graph: Graph, case: str) -> None:
    message, text = MESSAGES[case]
    assert facts_of(graph, graph.raw_commit(message)).message == text


def test_of_a_commit_that_is_too_large_only_its_subject(graph: Graph) -> None:
    raw = graph.raw_commit(b"Subject\n\n" + b"x\n" * 1000)
    assert facts_of(graph, raw, commit_bytes_max=1000).message == "Subject"


@pytest.mark.parametrize(
    "people",
    [
        b"Ada <ada@example.com> <eve@example.com> 1700000000 +0000",
        b"Ada <ada@example.com>1700000000 +0000",
        b"Ada <ada@example.com> 17000000000000000 +0000",
    ],
)
def test_a_person_that_git_would_not_write_is_nobody(graph: Graph, people: bytes) -> None:
    facts = facts_of(graph, graph.raw_commit(people=people))
    assert (facts.author_name, facts.author_email, facts.committed_at_ms) == ("", "", 0)


def test_an_address_is_kept_as_it_is(graph: Graph) -> None:
    raw = graph.raw_commit(people=b" Ada < Ada@Example.com > 1700000000 +0000")
    assert facts_of(graph, raw).author_email == " Ada@Example.com "


@given(
    st.lists(
        st.sampled_from(
            [
                b"tree " + b"1" * 40,
                b"parent " + b"2" * 40,
                b"author A <a> 1 +0000",
                b"committer A <a> 1 +0000",
                b"gpgsig -----BEGIN SSH SIGNATURE-----",
                b" -----END SSH SIGNATURE-----",
                b"gpgsig",
                b" ",
                b"",
                b"\0",
                b"\xff: x",
            ]
        )
    )
)
def test_no_commit_is_a_surprise(lines: list[bytes]) -> None:
    """Either no commit at all, or facts and a signature, or why there is none."""
    raw = b"\n".join(lines)
    try:
        facts = read_commit(Revision("3" * 40), raw).facts
    except ValueError:
        assert not raw.startswith(b"tree " + b"1" * 40 + b"\n")
        return
    said = armor_of(raw)
    assert facts.committed_at_ms in (0, 1000)
    assert said in ("ssh", "openpgp") or (
        isinstance(said, Signature) and said.state in ("none", "unsupported")
    )
