"""What a comparison with the base tells: whose a problem is, what differs, what only it can see."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest

from reconciler.core.names import Revision
from reconciler.core.parse import ParseLimits
from reconciler.core.problems import Problem
from reconciler.core.source import Snapshot, SourceFile
from reconciler.use_cases.review import Review, review
from reconciler.use_cases.validation import Checked
from tests.core import builders as b

BASE, HEAD = Revision("b" * 40), Revision("h" * 40)
TWO_FILE = f"{b.PROJECT}/instances/two.yaml"
PLACED = "apiVersion: gpuaas.dev/v1\nspec:\n  moved_from: gone\n  artifact_ref: x\n"


def checked(
    documents: b.Documents,
    problems: tuple[Problem, ...] = (),
    revision: Revision = HEAD,
    **how: Any,
) -> Checked:
    candidate = b.candidate(documents, revision=revision, **how)
    files = tuple(SourceFile(path, "", PLACED.encode()) for path in sorted(documents))
    snapshot = Snapshot(revision, files, "", "", 0)
    return Checked(snapshot, candidate, tuple(sorted({*problems, *candidate.problems})))


def compare(before: b.Documents, now: b.Documents, **how: Any) -> Review:
    return review(checked(before, revision=BASE), checked(now, **how), ParseLimits())


def guarded(tombstones: bool = True) -> b.Documents:
    documents = b.world()
    b.add_instance(documents, "two", gpu_count=0)
    documents[b.ENVIRONMENT_FILE]["spec"]["guards"] = {"tombstones": tombstones}
    return documents


def problem(path: str = "a.yaml", line: int = 1, **changes: Any) -> Problem:
    return replace(Problem(path, line, 1, "unknown_field", "unknown field 'x'"), **changes)


IDENTITY: dict[str, tuple[list[Problem], list[Problem], list[Problem]]] = {
    "the same": ([problem()], [problem()], []),
    "further down": ([problem(line=1)], [problem(line=9)], []),
    "in another words": ([problem()], [problem(message="unknown field 'y'")], []),
    "another code": ([problem()], [problem(code="tag")], [problem(code="tag")]),
    "another file": ([problem()], [problem("b.yaml")], [problem("b.yaml")]),
    "another file, the same object": (
        [problem(object="App/x")],
        [problem("b.yaml", object="App/x")],
        [],
    ),
    "another field": (
        [problem(pointer="/spec/a")],
        [problem(pointer="/spec/b")],
        [problem(pointer="/spec/b")],
    ),
    "one more, with words of its own, above": (
        [problem(line=5, message="old")],
        [problem(line=2, message="new"), problem(line=8, message="old")],
        [problem(line=2, message="new")],
    ),
    "one less": ([problem(line=1), problem(line=2)], [problem(line=2)], []),
    "mended": ([problem()], [], []),
}


@pytest.mark.parametrize(("before", "now", "new"), IDENTITY.values(), ids=IDENTITY.keys())
def test_a_problem_is_new_by_what_it_is_about(
    before: list[Problem], now: list[Problem], new: list[Problem]
) -> None:
    world = b.world()
    base, head = checked(world, tuple(before), BASE), checked(world, tuple(now))
    found = review(base, head, ParseLimits())
    assert found.introduced == frozenset(new)
    assert found.problems == tuple(sorted(now))
    assert found.fixed == len(before) - (len(now) - len(new))


def test_objects_that_differ_by_what_they_mean() -> None:
    before, now = b.world(), b.world()
    b.add_instance(before, "old")
    b.add_instance(now, "new")
    now[b.VERSION_FILE]["spec"]["release_notes"] = "better"
    now[b.VERSION_FILE]["spec"] = dict(reversed(now[b.VERSION_FILE]["spec"].items()))
    now[b.NODE_FILE]["spec"] = dict(reversed(now[b.NODE_FILE]["spec"].items()))
    found = compare(before, now).changes
    assert [(change.verb, change.object) for change in found] == [
        ("added", "AppInstance/acme/research/new"),
        ("removed", "AppInstance/acme/research/old"),
        ("changed", "AppVersion/hello/1.0.0"),
    ]


@pytest.mark.parametrize("how", [{"broken": [TWO_FILE]}, {"invalid": [TWO_FILE]}])
def test_what_cannot_be_read_was_not_removed(how: dict[str, Any]) -> None:
    documents = guarded()
    found = compare(documents, documents, **how)
    assert [(c.verb, c.object) for c in found.changes] == [
        ("unreadable", "AppInstance/acme/research/two")
    ]
    assert {p.code for p in found.problems} & {"tombstone_missing"} == set()


def test_what_could_not_be_read_at_the_base_was_there() -> None:
    documents = guarded()
    base = checked(documents, revision=BASE, broken=[TWO_FILE])
    found = review(base, checked(documents), ParseLimits())
    assert [(c.verb, c.path) for c in found.changes] == [("changed", TWO_FILE)]


def test_an_instance_removed_without_a_tombstone() -> None:
    before, now = guarded(), guarded()
    del now[TWO_FILE]
    (told,) = compare(before, now).introduced
    assert str(told) == (
        f"{TWO_FILE}: tombstone_missing: AppInstance/acme/research/two is removed without having "
        "been decommissioned (guards.tombstones is on: set desired: decommissioned, and remove "
        "the file later)"
    )


def test_removals_that_need_no_tombstone() -> None:
    before, now = guarded(False), guarded(False)
    del now[TWO_FILE]
    assert compare(before, now).problems == ()
    before, now = guarded(), guarded()
    before[TWO_FILE]["spec"]["desired"] = "decommissioned"
    del now[TWO_FILE]
    assert compare(before, now).problems == ()


@pytest.mark.parametrize("moved", [{}, {"desired": "decommissioned"}])
def test_no_tombstone_is_saved_by_a_rename_that_is_none(moved: dict[str, str]) -> None:
    """Attempted: `moved_from` on an instance that runs already, or on one that goes as well."""
    before, now = guarded(), guarded()
    if not moved:
        b.add_instance(before, "three", gpu_count=0)
    del now[TWO_FILE]
    b.add_instance(now, "three", gpu_count=0)
    now[f"{b.PROJECT}/instances/three.yaml"]["spec"].update({"moved_from": "two", **moved})
    (found,) = (p for p in compare(before, now).problems if p.code == "tombstone_missing")
    assert found.object == "AppInstance/acme/research/two"


def test_a_rename_needs_no_tombstone() -> None:
    before, now = guarded(), guarded()
    moved = now.pop(TWO_FILE)
    b.add(now, TWO_FILE.replace("two", "three"), {**moved["spec"], "moved_from": "two"})
    assert compare(before, now).problems == ()


def test_only_the_environment_asked_for_guards() -> None:
    before, now = guarded(), guarded()
    del now[TWO_FILE]
    base, head = checked(before, revision=BASE), checked(now)
    assert review(base, head, ParseLimits(), "other").problems == ()
    assert len(review(base, head, ParseLimits(), b.ENVIRONMENT).problems) == 1


@pytest.mark.parametrize("state", ["draft", "staged", "canary", "active", "deprecated", "retired"])
def test_a_version_that_is_offered_stays_what_it_is(state: str) -> None:
    before = b.world()
    before[b.PROMOTION_FILE]["spec"] = {"state": state, "canary": {"percent": 1}, "reason": "x"}
    now = copy.deepcopy(before)
    now[b.VERSION_FILE]["spec"]["artifact_ref"] = b.IMAGE.replace("a" * 64, "c" * 64)
    now[b.VERSION_FILE]["spec"]["runtime_profile"]["command"] = ["other"]
    found = sorted(compare(before, now).introduced)
    if state in ("draft", "staged"):
        assert found == []
        return
    assert [told.pointer for told in found] == ["/spec/runtime_profile", "/spec/artifact_ref"]
    assert str(found[1]) == (
        f"{b.VERSION_FILE}:4:3: version_changed_in_place: artifact_ref of AppVersion/hello/1.0.0 "
        f"changes, which is {state} already (a version that is offered stays what was reviewed: "
        "add catalog/hello/versions/<new version>.yaml)"
    )


def test_words_about_a_version_may_change() -> None:
    before, now = b.world(), b.world()
    now[b.VERSION_FILE]["spec"]["release_notes"] = "fewer typing errors"
    assert compare(before, now).problems == ()


def test_a_move_from_nowhere() -> None:
    before, now = b.world(), b.world()
    b.add(now, TWO_FILE, {**b.instance_spec(), "moved_from": "gone"})
    (told,) = compare(before, now).introduced
    assert str(told) == (
        f"{TWO_FILE}:3:3: moved_from_unknown: moved from AppInstance/acme/research/gone, which the "
        "base does not have (name an instance that is there, or take moved_from out)"
    )


def test_a_move_that_was_made_may_stay_in_the_file() -> None:
    before = b.world()
    b.add(before, TWO_FILE, {**b.instance_spec(), "moved_from": "gone"})
    now = copy.deepcopy(before)
    now[TWO_FILE]["spec"]["desired"] = "stopped"
    assert compare(before, now).problems == ()


def test_a_move_from_what_the_base_could_not_read() -> None:
    before, now = guarded(False), guarded(False)
    b.add(now, f"{b.PROJECT}/instances/three.yaml", {**b.instance_spec(), "moved_from": "two"})
    del now[TWO_FILE]
    base = checked(before, revision=BASE, invalid=[TWO_FILE])
    assert not review(base, checked(now), ParseLimits()).introduced


def test_a_rename_without_word_of_it_is_told() -> None:
    before, now = guarded(False), guarded(False)
    moved = now.pop(TWO_FILE)
    b.add(now, TWO_FILE.replace("two", "three"), moved["spec"])
    (found,) = compare(before, now).introduced
    assert (found.code, found.object) == ("looks_renamed", "AppInstance/acme/research/three")
    assert "say moved_from: two there; else delete and add in two commits" in found.hint


def steps(state: str, before: str = "staged", most: int | None = 1, **authority: Any) -> list[str]:
    """What is said of a Promotion that goes from one state to another."""
    was, now = b.world(), b.world()
    for documents, one in ((was, before), (now, state)):
        spec = {"state": one, "canary": {"percent": 1}, "reason": "x"}
        documents[b.PROMOTION_FILE]["spec"] = spec
        if not one:
            del documents[b.PROMOTION_FILE]
    found = review(
        checked(was, revision=BASE), checked(now), ParseLimits(), steps_max=most, **authority
    )
    return [str(told) for told in sorted(found.introduced)]


def test_a_step_too_far_is_told() -> None:
    assert steps("canary") == steps("active", most=2) == steps("active", most=None) == []
    assert steps("active") == [
        f"{b.PROMOTION_FILE}:2:1: illegal_step: Promotion/hello/1.0.0 can't go from staged to "
        "active: canary may follow (one step a commit: staged → canary → active)"
    ]
    assert steps("active", "deprecated", most=None) == [
        f"{b.PROMOTION_FILE}:2:1: illegal_step: Promotion/hello/1.0.0 can't go from deprecated to "
        "active: retired may follow (publish what replaces it as a version of its own)"
    ]


def test_so_is_one_to_nowhere() -> None:
    assert steps("", "draft") == []
    assert steps("", "active") == [
        f"{b.PROMOTION_FILE}: illegal_step: Promotion/hello/1.0.0 is active, and can't be removed: "
        "deprecated may follow (one step a commit: active → deprecated → retired → removed)"
    ]


def test_what_its_commits_were_told_of_is_not_told_twice() -> None:
    told = Problem(b.PROMOTION_FILE, 1, 1, "illegal_step", "x", object="Promotion/hello/1.0.0")
    assert steps("active", authority=(told,)) == [str(told)]


def test_a_file_that_cannot_be_read_has_made_no_step() -> None:
    documents = b.world()
    base = checked(documents, revision=BASE)
    ways: tuple[dict[str, Any], ...] = (
        {"broken": [b.PROMOTION_FILE]},
        {"invalid": [b.PROMOTION_FILE]},
    )
    for how in ways:
        found = review(base, checked(documents, **how), ParseLimits(), steps_max=1)
        assert "illegal_step" not in {one.code for one in found.problems}


def test_the_first_commit_begins_anywhere() -> None:
    found = review(checked({}, revision=BASE), checked(b.world()), ParseLimits(), steps_max=1)
    assert found.problems == ()
