"""A memo makes the next revision cheap, and never another one."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench import manifests
from reconciler.adapters.schema_files import load_schemas
from reconciler.adapters.tree_limits import blob_id
from reconciler.core.desired import Candidate
from reconciler.core.names import ObjectRef, Revision
from reconciler.core.parse import ParseLimits
from reconciler.core.schema import SchemaSet
from reconciler.core.source import FileKind, Snapshot, SourceFile
from reconciler.core.validate import ValidateMemo, validate

SCHEMAS = SchemaSet.build(load_schemas())
LIMITS = ParseLimits()
ALLOCATIONS = "tenants/acme/projects/research/allocations"
_MADE = manifests.files(60)
SOME = {path: _MADE[path] for path in sorted(_MADE)[::7]}
Files = dict[str, str]


def snapshot(files: Files, kind: FileKind = "file") -> Snapshot:
    ordered = (
        SourceFile(path, blob_id(text.encode()), text.encode(), kind)
        for path, text in sorted(files.items())
    )
    return Snapshot(Revision("a" * 40), tuple(ordered), "Ada", "a change", 0)


def fresh(found: Snapshot) -> Candidate:
    return validate(found, SCHEMAS, LIMITS)


def allocation(*names: str, cpu_cores: int = 1) -> str:
    return "---\n".join(
        f"apiVersion: gpuaas.dev/v1\nkind: Allocation\nmetadata:\n  name: {name}\nspec:\n"
        f"  node: n\n  state: active\n  cpu_cores: {cpu_cores}\n  memory_mib: 1\n"
        for name in names
    )


def test_one_changed_file_is_read_and_all_other_objects_are_the_same_ones() -> None:
    memo = ValidateMemo()
    before = validate(snapshot(SOME), SCHEMAS, LIMITS, memo)
    assert memo.files_checked == len(SOME)
    path = next(path for path in SOME if "/allocations/" in path)
    changed = {**SOME, path: SOME[path].replace("cpu_cores: 96", "cpu_cores: 95")}
    after = validate(snapshot(changed), SCHEMAS, LIMITS, memo)
    assert memo.files_checked == len(SOME) + 1
    assert after == fresh(snapshot(changed))
    differing = [ref for ref in after.objects if after.objects[ref] is not before.objects[ref]]
    assert [after.objects[ref].path for ref in differing] == [path]
    assert before == fresh(snapshot(SOME)), "the last candidate stays as it was"


def test_nothing_changed_nothing_is_read() -> None:
    memo = ValidateMemo()
    first = validate(snapshot(SOME), SCHEMAS, LIMITS, memo)
    again = validate(snapshot(SOME), SCHEMAS, LIMITS, memo)
    assert memo.files_checked == len(SOME)
    assert again.objects is not None
    assert list(again.objects.values()) == list(first.objects.values())


def test_other_schemas_or_limits_read_everything_again() -> None:
    memo = ValidateMemo()
    validate(snapshot(SOME), SCHEMAS, LIMITS, memo)
    other = SchemaSet.build({**load_schemas(), "Allocation": {"not": {}}})
    found = validate(snapshot(SOME), other, LIMITS, memo)
    assert any("/allocations/" in problem.path for problem in found.problems)
    small = validate(snapshot(SOME), SCHEMAS, ParseLimits(file_bytes_max=10), memo)
    assert {problem.code for problem in small.problems} == {"file_too_large"}
    assert validate(snapshot(SOME), SCHEMAS, LIMITS, memo) == fresh(snapshot(SOME))


def test_a_file_that_becomes_a_link_is_no_longer_read() -> None:
    memo = ValidateMemo()
    files = {f"{ALLOCATIONS}/a.yaml": allocation("a")}
    validate(snapshot(files), SCHEMAS, LIMITS, memo)
    found = validate(snapshot(files, "symlink"), SCHEMAS, LIMITS, memo)
    assert [problem.code for problem in found.problems] == ["symlink"]


def test_an_exception_on_the_way_leaves_nothing_half_done(monkeypatch: pytest.MonkeyPatch) -> None:
    memo = ValidateMemo()
    validate(snapshot(SOME), SCHEMAS, LIMITS, memo)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    changed = {path: text + "# note\n" for path, text in SOME.items()}
    monkeypatch.setattr("reconciler.core.validate.check_files", interrupt)
    with pytest.raises(KeyboardInterrupt):
        validate(snapshot(changed), SCHEMAS, LIMITS, memo)
    monkeypatch.undo()
    assert validate(snapshot(SOME), SCHEMAS, LIMITS, memo) == fresh(snapshot(SOME))


STEPS = {
    "a/twice": {
        f"{ALLOCATIONS}/a.yaml": allocation("a"),
        f"{ALLOCATIONS}/b.yaml": allocation("b", "a"),
    },
    "moved": {f"{ALLOCATIONS}/c.yaml": allocation("a", "b")},
    "moved back": {f"{ALLOCATIONS}/b.yaml": allocation("b", "a")},
    "broken": {f"{ALLOCATIONS}/a.yaml": "a: [\n", f"{ALLOCATIONS}/b.yaml": allocation("b")},
    "wrong": {f"{ALLOCATIONS}/a.yaml": allocation("a").replace("active", "on")},
    "three": {f"{ALLOCATIONS}/{name}.yaml": allocation("a", name) for name in "abc"},
    "elsewhere": {"docs/a.yaml": allocation("a"), "tenant/x.yaml": allocation("a")},
    "nothing": {},
}


@given(st.lists(st.sampled_from(sorted(STEPS)), min_size=1, max_size=6), st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_any_history_ends_where_a_fresh_look_does(steps: list[str], seed: int) -> None:
    memo, rng = ValidateMemo(), random.Random(seed)
    for step in steps:
        files = {path: text for path, text in SOME.items() if rng.random() < 0.9} | STEPS[step]
        found = snapshot(files)
        after, expected = validate(found, SCHEMAS, LIMITS, memo), fresh(found)
        assert after == expected
        assert list(after.objects) == list(expected.objects) == sorted(after.objects)


def test_an_object_that_stood_twice_stands_once_again() -> None:
    memo = ValidateMemo()
    first = validate(snapshot(STEPS["a/twice"]), SCHEMAS, LIMITS, memo)
    codes = [problem.code for problem in first.problems]
    assert codes == ["duplicate_object"] * 2
    one = {f"{ALLOCATIONS}/a.yaml": allocation("a")}
    found = validate(snapshot(one), SCHEMAS, LIMITS, memo)
    assert found.problems == ()
    assert list(found.objects) == [ObjectRef("Allocation", ("acme", "research", "a"))]
