"""What a change of the state repo means for instances, by itself."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from reconciler.adapters.schema_files import load_schemas
from reconciler.core.effects import Comparison
from reconciler.core.names import Revision
from reconciler.core.schema import SchemaSet
from reconciler.core.source import Snapshot, SourceFile
from reconciler.settings import Settings
from reconciler.use_cases.compare import compare
from tests.cli.state_repo import second_version
from tests.core.builders import (
    ALLOCATION_FILE,
    ENVIRONMENT_FILE,
    INSTANCE_FILE,
    NODE_FILE,
    PROJECT,
    PROMOTION_FILE,
    VERSION_FILE,
    add_instance,
    document,
    world,
)

SCHEMAS = SchemaSet.build(load_schemas())
TWO = f"{PROJECT}/instances/two.yaml"
Files = dict[str, Any]


def snapshot(files: Files, revision: str) -> Snapshot:
    listed = tuple(
        SourceFile(path, "", one if isinstance(one, bytes) else json.dumps(one).encode())
        for path, one in sorted(files.items())
    )
    return Snapshot(Revision(revision * 40), listed, "", "", 0)


def compared(change: Callable[[Files], Any], environment: str = "") -> Comparison:
    before, after = world(), world()
    for one in (before, after):
        second_version(one)
    change(after)
    settings = Settings(environment=environment)
    return compare(snapshot(before, "1"), snapshot(after, "2"), SCHEMAS, settings)


def spec(files: Files, path: str = INSTANCE_FILE) -> Files:
    found: Files = files[path]["spec"]
    return found


def second_node(files: Files) -> None:
    node = {**spec(files, NODE_FILE), "accelerators": []}
    files["platform/nodes/gpu-2.yaml"] = document("platform/nodes/gpu-2.yaml", "gpu-2", node)
    spec(files, ALLOCATION_FILE).update(node="gpu-2", gpus=[])
    spec(files)["parameters"]["gpu_count"] = 0


def renamed(files: Files) -> None:
    files[TWO] = document(TWO, "two", {**spec(files), "moved_from": "one"})
    del files[INSTANCE_FILE]


EFFECTS: dict[str, tuple[Callable[[Files], Any], list[tuple[str, str, str]]]] = {
    "nothing": (lambda f: f[NODE_FILE]["metadata"].update(labels={"a": "b"}), []),
    "launch": (
        lambda f: add_instance(f, "two"),
        [("launch", "two", "version 1.0.0 (aaaaaaaaaaaa)")],
    ),
    "upgrade": (
        lambda f: spec(f).update(version="1.1.0"),
        [("replace", "one", "version 1.0.0 → 1.1.0, image aaaaaaaaaaaa → bbbbbbbbbbbb")],
    ),
    "parameters": (
        lambda f: spec(f)["parameters"].update(memory_gib=8),
        [("replace", "one", "version 1.0.0, limits.memory_mib")],
    ),
    "the app manifest": (
        lambda f: spec(f, VERSION_FILE)["runtime_profile"].update(stop_grace_s=3),
        [("replace", "one", "version 1.0.0, stop_grace_ms")],
    ),
    "stop": (lambda f: spec(f).update(desired="stopped"), [("stop", "one", "desired: stopped")]),
    "decommission": (
        lambda f: spec(f).update(desired="decommissioned"),
        [("remove", "one", "version 1.0.0, desired: decommissioned")],
    ),
    "a file removed": (
        lambda f: f.pop(INSTANCE_FILE),
        [("remove", "one", "version 1.0.0, its manifest is gone")],
    ),
    "another node": (second_node, [("move", "one", "from gpu-1 to gpu-2, version 1.0.0")]),
    "a rename": (renamed, [("rename", "two", "was acme/research/one, keeps running")]),
    "a new instance that is refused": (
        lambda f: add_instance(f, "two", gpu_count=5),
        [("held", "two", "not launched, exceeds_allocation: 5 GPUs asked")],
    ),
    "a version that is withdrawn keeps what runs": (
        lambda f: spec(f, PROMOTION_FILE).update(state="draft"),
        [("held", "one", "version_not_offered: AppVersion/hello/1.0.0 is draft")],
    ),
    "a file that can't be read keeps what it held": (
        lambda f: f.update({INSTANCE_FILE: b"kind: [x"}),
        [],
    ),
    "an environment that can't be read holds all": (
        lambda f: f.update({ENVIRONMENT_FILE: b"kind: [x"}),
        [],
    ),
}  # fmt: skip


@pytest.mark.parametrize(("change", "effects"), EFFECTS.values(), ids=EFFECTS.keys())
def test_effects(change: Callable[[Files], Any], effects: list[tuple[str, str, str]]) -> None:
    found = compared(change).effects["eval"]
    told = [(one.kind, one.instance.removeprefix("acme/research/"), one.text) for one in found]
    assert [(kind, name) for kind, name, _ in told] == [(kind, name) for kind, name, _ in effects]
    for (_, _, text), (_, _, begin) in zip(told, effects, strict=True):
        assert text.startswith(begin)


def test_the_gpus_of_others_stay_where_they_are() -> None:
    """A new instance that comes first by name takes no GPU from one that has it."""
    (found,) = compared(lambda f: add_instance(f, "aaa", gpu_count=2)).effects["eval"]
    assert (found.kind, found.instance) == ("launch", "acme/research/aaa")


def test_problems_of_both_sides() -> None:
    found = compared(lambda f: f.update({INSTANCE_FILE: b"kind: [x"}))
    assert found.problems_before == ()
    assert [(p.path, p.line) for p in found.problems_after] == [(INSTANCE_FILE, 1)]
    assert [(str(c.ref), c.kind) for c in found.changes] == [
        ("AppInstance/acme/research/one", "unreadable")
    ]


def test_an_environment_that_is_not_there() -> None:
    found = compared(lambda _: None, "prod")
    assert [problem.code for problem in found.problems_after] == ["unknown_environment"]
    assert found.same
