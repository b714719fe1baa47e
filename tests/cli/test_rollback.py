"""`gpuaas rollback`: the branch it writes, what it leaves alone, what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from reconciler.cli.rollback import rollback
from reconciler.errors import Refused
from tests.cli.state_repo import HELLO, INSTANCE, PROMOTION, Done, StateRepo, make, run

NODES = "platform/nodes/all.yaml"
TWO = INSTANCE.replace("hello.yaml", "two.yaml")


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StateRepo:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    return make(tmp_path / "state")


def back(state: StateRepo, *args: Any, of: str = HELLO) -> Done:
    return run(rollback, of, "--repo", state.folder, *args)


def test_the_form_before(state: StateRepo) -> None:
    head, before = state.repo.head(), state.repo.head("HEAD~1")
    done = back(state)
    branch = f"rollback/acme-research-hello-{before[:12]}"
    assert done.code == 0
    assert state.show(INSTANCE, branch) == state.show(INSTANCE, before)
    assert state.repo.git("diff", "--name-only", head, branch).split() == [INSTANCE]
    assert (state.repo.head(), state.repo.git("status", "--porcelain")) == (head, "")
    assert state.repo.git("log", "-1", "--format=%B", branch).strip().splitlines() == [
        f"Roll back {HELLO} to the form it had in {before[:12]}",
        "",
        f"From {head[:12]} (More memory for hello)",
        f"back to {before[:12]} (Move hello to 1.1.0).",
        "",
        "~ spec.parameters.memory_gib  0.5 → 0.25",
        "",
        f"Gpuaas-Rollback: {HELLO} {before}",
    ]
    trailer = state.repo.git("log", "-1", "--format=%(trailers:key=Gpuaas-Rollback)", branch)
    assert trailer.strip() == f"Gpuaas-Rollback: {HELLO} {before}"


def test_what_people_see(state: StateRepo) -> None:
    done = back(state, "--to", "HEAD~2", "--branch", "undo")
    made, head = state.repo.head("undo")[:12], state.repo.head()[:12]
    assert done.output.splitlines() == [
        f"Rolled back {HELLO} to version 1.0.0",
        f"  branch undo, commit {made} on top of {head}",
        "",
        "  ~ spec.version                1.1.0 → 1.0.0",
        "  ~ spec.parameters.memory_gib  0.5 → 0.25",
        "",
        f"--- a/{INSTANCE}",
        f"+++ b/{INSTANCE}",
        "@@ -4,10 +4,10 @@",
        "   name: hello",
        " spec:",
        "   app: hello",
        '-  version: "1.1.0"',
        '+  version: "1.0.0"',
        "   placement_intent:",
        "     allocation: lease",
        "   parameters:",
        "     cpu_cores: 0.5",
        "-    memory_gib: 0.5",
        "+    memory_gib: 0.25",
        "   desired: running",
        "",
        "Nothing changes until it is merged. To propose it:",
        "  git push origin undo",
        "  gh pr create --head undo --fill    # or open it in your forge",
    ]


def test_json(state: StateRepo) -> None:
    found = back(state, "--format", "json", "--branch", "undo").document
    assert found["format"] == "gpuaas.dev/rollback/v1"
    assert found["commit"] == state.repo.head("undo")
    assert (found["to"], found["paths"]) == (state.repo.head("HEAD~1"), [INSTANCE])
    assert found["in_the_way"] == []


def test_a_rollback_of_a_rollback_goes_forward(state: StateRepo) -> None:
    text = state.read(INSTANCE)
    back(state, "--branch", "undo")
    state.repo.git("merge", "--quiet", "undo")
    back(state, "--branch", "redo")
    assert state.show(INSTANCE, "redo") == text


def nodes(*documents: str, cores: int = 2) -> str:
    one = """apiVersion: gpuaas.dev/v1
kind: Node
metadata: {{name: {name}}}   # {name}, by hand
spec:
  pool: default
  capacity_shape: baremetal
  accelerator_family: cpu
  cpu_cores:   {cores}
  memory_mib: 4096
  engines: [docker]
"""
    numbers = {"b": cores}
    return "---\n".join(one.format(name=name, cores=numbers.get(name, 2)) for name in documents)


def test_one_document_of_several(state: StateRepo) -> None:
    """Byte for byte: the other documents of the file keep what changed in them meanwhile."""
    state.repo.commit({NODES: nodes("a", "b", "c")}, "nodes")
    state.repo.commit({NODES: "# all\n" + nodes("a", "b", "c", cores=4)}, "more cores")
    later = "# all\n" + nodes("a", "b", "c", cores=4).replace("# c, by hand", "# c, by robot")
    state.repo.commit({NODES: later + "---\n" + nodes("d")}, "others")
    back(state, "--branch", "undo", of="Node/b")
    assert state.show(NODES, "undo") == later.replace("4\n", "2\n", 1) + "---\n" + nodes("d")


def test_a_removed_object_comes_back(state: StateRepo) -> None:
    before = state.repo.head()
    text = state.read(INSTANCE)
    state.repo.commit({INSTANCE: None}, "remove")
    done = back(state, "--branch", "undo")
    assert done.output.splitlines()[0] == (f"Rolled back {HELLO} to version 1.1.0")
    assert state.show(INSTANCE, "undo") == text
    assert f"Gpuaas-Rollback: {HELLO} {before}" in state.repo.git("log", "-1", "undo")
    state.repo.commit({NODES: nodes("a", "b")}, "nodes")
    state.repo.commit({NODES: nodes("a")}, "one less")
    back(state, "--branch", "node", of="Node/b")
    assert state.show(NODES, "node") == nodes("a", "b")


def test_an_added_object_goes(state: StateRepo) -> None:
    text = state.read(INSTANCE).replace("name: hello", "name: two")
    state.repo.commit({TWO: text.replace("0.5", "0.2")}, "add")
    done = back(state, "--branch", "undo", of="acme/research/two")
    assert "to what was before it: it is removed" in done.output
    assert TWO not in state.repo.git("ls-tree", "-r", "--name-only", "undo")
    state.repo.commit({NODES: nodes("a")}, "nodes")
    state.repo.commit({NODES: nodes("a", "b")}, "one more")
    back(state, "--branch", "node", of="Node/b")
    assert state.show(NODES, "node") == nodes("a")


def test_a_file_that_was_broken_is_mended(state: StateRepo) -> None:
    text = state.read(INSTANCE)
    state.repo.commit({INSTANCE: text + "  x: [1\n"}, "break")
    back(state, "--branch", "undo")
    assert state.show(INSTANCE, "undo") == text
    state.repo.commit({NODES: nodes("a", "b")}, "nodes")
    state.repo.commit({NODES: nodes("a", "b") + "  x: [1\n"}, "break")
    with pytest.raises(Refused, match=r"form_unreadable: Node/b can't be read.*by hand"):
        back(state, of="Node/b")


def test_another_base(state: StateRepo) -> None:
    back(state, "--base", "HEAD~1", "--branch", "undo")
    assert state.repo.head("undo~1") == state.repo.head("HEAD~1")
    assert state.show(INSTANCE, "undo") == state.show(INSTANCE, "HEAD~2")


def test_what_stands_in_the_way(state: StateRepo) -> None:
    """The version before was withdrawn meanwhile: nothing is written."""
    file = PROMOTION.replace("1.1.0", "1.0.0")
    state.edit(file, "state: active", "state: draft", "withdraw")
    done = back(state, "--to", "HEAD~3", "--branch", "undo")
    lines = done.output.splitlines()
    assert done.code == 1
    assert lines[0] == (
        f"Not rolled back: with {HELLO} at version 1.0.0, 1 problem(s) would be new"
    )
    assert "version_not_offered: AppVersion/hello/1.0.0 is draft" in lines[1]
    assert lines[2] == "Nothing was written."
    assert state.repo.git("branch", "--list", "undo") == ""
    found = back(state, "--to", "HEAD~3", "--format", "json").document
    assert (found["commit"], found["in_the_way"][0]["code"]) == (None, "version_not_offered")


def test_a_problem_that_is_there_already_is_not_in_the_way(state: StateRepo) -> None:
    state.repo.commit({PROMOTION.replace("1.1.0", "9.9.9"): "kind: ["}, "broken elsewhere")
    assert back(state).code == 0


@pytest.mark.parametrize(
    ("args", "of", "says"),
    [
        (["--to", "HEAD"], HELLO, f"nothing_to_roll_back: {HELLO} says the same in "),
        (["--to", "v9"], HELLO, "unknown_revision: no such commit here"),
        (["--base", "v9"], HELLO, "unknown_revision: no such commit here"),
        (["--branch", "main"], HELLO, "git_branch_exists: there is a branch main already"),
        (["--branch", "a..b"], HELLO, "git_branch_refused: not a branch name"),
        ([], "acme/research/hallo", f"no_such_object: .*did you mean {HELLO}"),
        (["--to", "HEAD~1"], "App/nothing", "no_such_object: App/nothing is neither in .* nor in "),
        ([], "App/hello", "no_earlier_form: App/hello came with the first commit"),
        ([], INSTANCE, "bad_object_name: .*a file may hold several"),
    ],
)
def test_refusals(state: StateRepo, args: list[str], of: str, says: str) -> None:
    head = state.repo.git("for-each-ref")
    with pytest.raises(Refused, match=says):
        back(state, *args, of=of)
    assert state.repo.git("for-each-ref") == head


def test_a_form_that_could_not_be_read(state: StateRepo) -> None:
    text = state.read(INSTANCE)
    state.repo.commit({INSTANCE: text + "  x: [1\n"}, "break")
    state.repo.commit({INSTANCE: text}, "mend")
    with pytest.raises(Refused, match=r"form_unreadable: .* can't be read in .*--to"):
        back(state)


def test_a_shallow_clone(state: StateRepo, tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    state.repo.git("clone", "--quiet", "--depth", "1", state.folder.as_uri(), str(clone))
    with pytest.raises(Refused, match=r"no_earlier_form: this clone is shallow.*--unshallow"):
        run(rollback, HELLO, "--repo", clone)


def test_what_an_offered_version_runs_stays(state: StateRepo) -> None:
    file, version = PROMOTION.replace("promotions", "versions"), "AppVersion/hello/1.1.0"
    document = yaml.safe_load(state.read(file))
    document["spec"]["runtime_profile"]["command"] = ["other"]
    state.repo.commit({file: yaml.safe_dump(document)}, "in place")
    with pytest.raises(Refused, match=r"version_changed_in_place: runtime_profile of .* is active"):
        back(state, of=version)
