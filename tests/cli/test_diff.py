"""`gpuaas diff`, as people and programs see it."""

from __future__ import annotations

from pathlib import Path

import pytest

from reconciler.cli.diff import diff
from reconciler.errors import Refused
from tests.cli.state_repo import HELLO, INSTANCE, PROMOTION, StateRepo, make, run
from tests.core.builders import ALLOCATION_FILE, NODE_FILE


@pytest.fixture
def state(tmp_path: Path) -> StateRepo:
    return make(tmp_path / "state")


def test_two_revisions(state: StateRepo) -> None:
    done = run(diff, "HEAD~2", "HEAD", state.folder)
    head, first = state.repo.head()[:12], state.repo.head("HEAD~2")[:12]
    assert done.code == 2
    assert done.output.splitlines() == [
        f"{first} → {head}",
        "",
        f"~ {HELLO}  {INSTANCE}",
        "    ~ spec.version                1.0.0 → 1.1.0",
        "    ~ spec.parameters.memory_gib  0.25 → 0.5",
        "",
        "What it means for instances in eval, by itself: 1 to replace",
        "  ~ replace acme/research/hello on gpu-1: version 1.0.0 → 1.1.0, "
        "image aaaaaaaaaaaa → bbbbbbbbbbbb, limits.memory_mib",
        "",
        "1 object differs: 1 changed. Instances: 1 to replace.",
    ]


def test_the_same(state: StateRepo) -> None:
    done = run(diff, "HEAD", state.folder)
    assert (done.code, done.output.splitlines()[-1]) == (0, "Nothing differs.")


@pytest.mark.parametrize("spelt", [("HEAD~1", "HEAD"), ("HEAD~1..HEAD",), ("HEAD~1..",)])
def test_ways_to_name_two_revisions(state: StateRepo, spelt: tuple[str, ...]) -> None:
    done = run(diff, *spelt, state.folder)
    assert done.code == 2
    assert "~ spec.parameters.memory_gib  0.25 → 0.5" in done.output


def test_comments_and_order_are_no_difference(state: StateRepo) -> None:
    file = state.folder / INSTANCE
    file.write_text("# why\n" + file.read_text())
    assert run(diff, "HEAD", state.folder).code == 0


def test_the_working_tree_with_a_broken_file(state: StateRepo) -> None:
    """A document that can't be read is said to be unreadable, and nothing is said to go."""
    (state.folder / INSTANCE).write_text("kind: [AppInstance\n")
    done = run(diff, "HEAD", state.folder)
    assert done.code == 1
    assert "→ the working tree" in done.output
    assert f"! {HELLO}  can't be read any more, so it counts as it was: {INSTANCE}" in done.output
    assert "Problems in the working tree: 1" in done.output
    assert "- AppInstance" not in done.output
    assert "to remove" not in done.output
    back = run(diff, "HEAD~1", "HEAD", state.folder)
    assert back.code == 2


def test_a_rename_without_word_of_it(state: StateRepo) -> None:
    moved = INSTANCE.replace("hello.yaml", "hi.yaml")
    text = state.read(INSTANCE).replace("name: hello", "name: hi")
    state.repo.commit({INSTANCE: None, moved: text}, "rename")
    lines = run(diff, "HEAD~1", "HEAD", state.folder).output.splitlines()
    assert (
        f"+ AppInstance/acme/research/hi  renamed? {HELLO} is gone and said the same; "
        in (lines[3].partition("without")[0])
    )
    assert "without `moved_from: hello` that one is kept and this one waits" in lines[3]
    assert lines[-1] == "2 objects differ: 1 added, 1 removed. Instances: 1 held as they are."
    text = text.replace("spec:\n", "spec:\n  moved_from: hello\n")
    state.repo.commit({moved: text}, "say so")
    lines = run(diff, "HEAD~2", "HEAD", state.folder).output.splitlines()
    assert f"+ AppInstance/acme/research/hi  renamed from {HELLO}" in lines
    assert lines[-1].endswith("Instances: 1 renamed.")


def test_json(state: StateRepo) -> None:
    done = run(diff, "HEAD~1", "HEAD", state.folder, "--format", "json")
    found = done.document
    assert (found["format"], found["same"]) == ("gpuaas.dev/diff/v1", False)
    (changed,) = found["objects"]
    assert changed["fields"] == [
        {
            "field": "spec.parameters.memory_gib",
            "pointer": "/spec/parameters/memory_gib",
            "old": 0.25,
            "new": 0.5,
        }
    ]
    (effect,) = found["effects"]["eval"]
    assert (effect["effect"], effect["fields"][0]["field"]) == ("replace", "limits.memory_mib")
    assert run(diff, "HEAD", state.folder, "--format", "json").document["to"] is None


def test_markdown_cannot_be_broken_out_of(state: StateRepo) -> None:
    hostile = "</td> | [x](http://evil) `@everyone` *a*"
    state.edit(PROMOTION, "reason:", f"reason: '{hostile}' #", "hostile")
    text = run(diff, "HEAD~1", "HEAD", state.folder, "--format", "markdown").output
    (row,) = [line for line in text.splitlines() if "spec.reason" in line]
    assert row.count("|") - row.count("\\|") == 5
    assert "](http" not in row.replace("\\]", "")
    assert "@everyone" not in row
    assert "http://" not in row
    assert "<" not in row.replace("\\<", "").replace("<!-- -->", "")


def test_one_environment(state: StateRepo) -> None:
    done = run(diff, "HEAD~1", "HEAD", state.folder, "-e", "prod")
    assert done.code == 1
    assert "unknown_environment: Environment/prod does not exist (known: eval)" in done.output


def test_a_move_to_another_node(state: StateRepo) -> None:
    node = state.read(NODE_FILE).replace("gpu-1", "gpu-2").replace("GPU-", "OTHER-")
    files = {
        "platform/nodes/gpu-2.yaml": node,
        ALLOCATION_FILE: state.read(ALLOCATION_FILE)
        .replace("gpu-1", "gpu-2")
        .replace("GPU-", "OTHER-"),
    }
    state.repo.commit(files, "move")
    done = run(diff, "HEAD~1", "HEAD", state.folder)
    assert "  ~ move    acme/research/hello: from gpu-1 to gpu-2, version 1.1.0" in done.output


def test_a_revision_that_is_not_there(state: StateRepo) -> None:
    with pytest.raises(Refused, match="unknown_revision: no such commit here: 'v9'"):
        run(diff, "v9", "HEAD", state.folder)
