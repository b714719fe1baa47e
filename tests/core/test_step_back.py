"""When a canary goes back, what it goes back to, and who is in it: cases and properties."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node_agent.wire import FailureReason
from reconciler.core.accept import AcceptedState, accept, parse_accepted
from reconciler.core.checks.catalog import in_canary
from reconciler.core.desired import Stepped
from reconciler.core.kinds.promotion import PromotionSpec
from reconciler.core.names import InstanceKey
from reconciler.core.plan.stepped import in_its_place
from reconciler.core.records import InstanceRecord, State, StepBack
from reconciler.core.step_back import (
    NOT_THE_VERSION,
    content_of,
    decided,
    due,
    has_failed,
    in_force,
    stepped_back,
)
from reconciler.core.world import Entry
from tests.core import builders as b
from tests.core import spread as s

NOW_MS = 1_700_000_000_000
PROMOTION = "Promotion/hello/1.1.0"
NEW = ("hello", "1.1.0")
IMAGE = b.IMAGE.replace("a" * 64, "b" * 64)


def record(name: str, state: State = State.RUNNING, **fields: Any) -> InstanceRecord:
    made = InstanceRecord(
        key=InstanceKey(f"acme/research/{name}"),
        app="hello",
        org_id="org-1",
        project_id="prj-1",
        node="gpu-1",
        state=state,
        epoch=2,
        correlation_id="c",
        revision=b.REVISION,
        target_version="1.1.0",
        target_hash="sha256:" + "1" * 64,
        target_digest="sha256:" + "b" * 64,
        applied_version="1.0.0",
    )
    return replace(made, **fields)


def failed(name: str, **fields: Any) -> InstanceRecord:
    return record(name, **{"reason": "exited", "attempts": 1, **fields})


def documents(failed_max: int = 0, *names: str, **promotion: Any) -> b.Documents:
    """Both versions, and instances that ask for the one in canary."""
    found = b.world()
    b.add(found, b.VERSION_FILE.replace("1.0.0", "1.1.0"), b.version_spec("1.1.0"), "1.1.0")
    canary = {"percent": 100, "step_back": {"failed_max": failed_max}}
    wanted = {"state": "canary", "canary": canary, "reason": "try", **promotion}
    b.add(found, b.PROMOTION_FILE.replace("1.0.0", "1.1.0"), wanted, "1.1.0")
    del found[b.INSTANCE_FILE]
    for name in names:
        b.add_instance(found, name)
        found[f"{b.PROJECT}/instances/{name}.yaml"]["spec"]["version"] = "1.1.0"
    return found


def state(found: b.Documents) -> AcceptedState:
    made = accept(b.candidate(found), b.accepted(found), parse_accepted, b.ENVIRONMENT)
    assert made.problems == ()
    return made


def records(*given: InstanceRecord) -> dict[InstanceKey, InstanceRecord]:
    return {one.key: one for one in given}


def back(of: AcceptedState, **fields: Any) -> dict[str, StepBack]:
    (canary,) = of.canaries
    made = StepBack(PROMOTION, content_of(canary), 5, ("acme/research/one",), "1 of 3 failed")
    return {PROMOTION: replace(made, **fields)}


FAILURES = {
    "given up": (record("x", State.FAILED, reason="exited"), True),
    "put back by its node": (record("x", reason="not_ready_in_time"), True),
    "runs": (record("x"), False),
    "on its way": (record("x", State.UPGRADING), False),
    "tried again": (record("x", State.DEPLOYING, attempts=3), False),
    "no reason known": (record("x", State.FAILED), True),
    **{
        f"not the version's: {reason}": (record("x", State.FAILED, reason=reason), False)
        for reason in sorted(NOT_THE_VERSION)
    },
}


@pytest.mark.parametrize("case", FAILURES)
def test_what_counts_as_failed(case: str) -> None:
    given, expected = FAILURES[case]
    assert has_failed(given) is expected


def test_every_reason_is_either_the_versions_or_not() -> None:
    counts = {reason.value for reason in FailureReason} - NOT_THE_VERSION
    assert counts == {
        "image_not_found", "digest_mismatch", "create_refused", "command_not_found", "exited",
        "out_of_memory", "not_ready_in_time", "flapping", "packages_failed",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("failed_max", "failing", "goes_back"),
    [(0, 0, False), (0, 1, True), (1, 1, False), (1, 2, True), (2, 2, False), (2, 3, True)],
)
def test_above_as_many_as_may(failed_max: int, failing: int, goes_back: bool) -> None:
    of = state(documents(failed_max, "a", "b", "c"))
    seen = [failed(name) if number < failing else record(name) for number, name in enumerate("abc")]
    found = due(of, records(*seen), {}, NOW_MS)
    assert bool(found) is goes_back
    for one in found:
        names = tuple(f"acme/research/{name}" for name in "abc"[:failing])
        words = f"{failing} of its 3 instances failed, and {failed_max} may"
        assert (one.promotion, one.failed, one.message) == (PROMOTION, names, words)


NOT_DUE = {
    "a target of another version": failed("a", target_version="1.0.0"),
    "another app": failed("a", app="other"),
    "nobody asks for it any more": failed("gone"),
}


@pytest.mark.parametrize("case", NOT_DUE)
def test_what_does_not_count(case: str) -> None:
    assert due(state(documents(0, "a")), records(NOT_DUE[case]), {}, NOW_MS) == ()


def test_one_to_be_decommissioned_does_not_count() -> None:
    found = documents(0, "a")
    found[f"{b.PROJECT}/instances/a.yaml"]["spec"]["desired"] = "decommissioned"
    assert due(state(found), records(failed("a")), {}, NOW_MS) == ()


@pytest.mark.parametrize(
    "promotion",
    [
        {"state": "staged"},
        {"state": "active"},
        {"canary": {"percent": 100}},
        {"canary": {"projects": ["acme/research"]}},
    ],
)
def test_only_a_canary_that_says_so_steps_back(promotion: dict[str, Any]) -> None:
    found = documents(0, **promotion)
    assert state(found).canaries == ()


def test_several_members_of_one_instance_are_one_instance() -> None:
    found = s.spread(s.member("w1"), s.member("w2", "lease"))
    version = found[b.VERSION_FILE]["spec"]
    spec = {**version, "version": "1.1.0"}
    b.add(found, b.VERSION_FILE.replace("1.0.0", "1.1.0"), spec, "1.1.0")
    canary = {"percent": 100, "step_back": {"failed_max": 1}}
    wanted = {"state": "canary", "canary": canary, "reason": "try"}
    b.add(found, b.PROMOTION_FILE.replace("1.0.0", "1.1.0"), wanted, "1.1.0")
    found[b.INSTANCE_FILE]["spec"]["version"] = "1.1.0"
    of, head = state(found), InstanceKey(s.HEAD)
    members = [InstanceKey(f"{s.HEAD}.{name}") for name in ("w1", "w2")]
    seen = records(*(failed("x", key=key) for key in (head, *members)))
    assert due(of, seen, {}, NOW_MS) == ()
    carried = stepped_back(of, back(of), seen)
    assert {carried.instances[key].version for key in (head, *members)} == {"1.0.0"}


# --- what holds ----------------------------------------------------------------------------------


def test_it_holds_for_one_content_alone() -> None:
    of = state(documents(0, "a"))
    assert [*in_force(of, back(of))] == [NEW]
    assert in_force(of, back(of, content="other")) == {}
    assert in_force(state(documents(0, "a", reason="once more")), back(of)) == {}
    assert due(of, records(failed("a")), back(of), NOW_MS) == ()


def test_one_that_no_more_holds_is_over_and_nothing_is_told_twice() -> None:
    of, seen = state(documents(0, "a")), records(failed("a"))
    known = back(of)
    assert decided(of, seen, known, (), NOW_MS).over == ()
    other = state(documents(0, "a", reason="once more"))
    found = decided(other, seen, known, (), NOW_MS)
    assert (found.over, found.events, found.audit) == ((PROMOTION,), (), ())


def test_without_an_environment_nobody_knows() -> None:
    of = state(documents(0, "a"))
    nowhere = replace(of, environment=None, canaries=())
    assert decided(nowhere, {}, back(of), (), NOW_MS).over == ()


RAN: dict[str, tuple[dict[str, Any], str]] = {
    "upgraded from it": ({"applied_version": "1.1.0", "previous_version": "1.0.0"}, "1.0.0"),
    "runs it still": ({"applied_version": "1.0.0", "previous_version": "0.9.0"}, "1.0.0"),
    "back at it": ({"applied_version": "1.0.0", "previous_version": "1.1.0"}, "1.0.0"),
    "began with the canary": ({"applied_version": "1.1.0", "previous_version": ""}, ""),
    "never ran": ({"applied_version": ""}, ""),
    "gone since": ({"state": State.DECOMMISSIONED, "applied_version": "1.0.0"}, ""),
}


@pytest.mark.parametrize("case", RAN)
def test_what_it_goes_back_to(case: str) -> None:
    fields, version = RAN[case]
    of = state(documents(0, "a"))
    found = stepped_back(of, back(of), records(record("a", **fields)))
    key = InstanceKey("acme/research/a")
    assert found.stepped[key].instead == version
    assert found.instances[key].version == (version or "1.1.0")
    assert found.accepted is of.accepted


def test_a_version_that_is_not_offered_is_no_way_back() -> None:
    documented = documents(0, "a")
    documented[b.PROMOTION_FILE]["spec"]["state"] = "retired"
    of = state(documented)
    found = stepped_back(of, back(of), records(record("a")))
    (stepped,) = found.stepped.values()
    assert stepped.why.startswith("it can't go back to 1.0.0: version_not_offered")
    assert found.instances == of.instances
    assert in_its_place(stepped).startswith("asks for 1.1.0, of which the canary stepped back; it")


def test_of_two_canaries_that_went_back_neither_is_a_way_back() -> None:
    found = documents(0, "a")
    canary = {"percent": 100, "step_back": {}}
    found[b.PROMOTION_FILE]["spec"] = {"state": "canary", "canary": canary, "reason": "try"}
    of = state(found)
    both = {
        str(one.ref): StepBack(str(one.ref), content_of(one), 5, (), "x") for one in of.canaries
    }
    ran = record("a", applied_version="1.0.0", previous_version="0.9.0")
    assert (
        "it can't go back to 0.9.0"
        in next(iter(stepped_back(of, both, records(ran)).stepped.values())).why
    )


def test_others_are_left_as_they_are() -> None:
    found = documents(0, "a")
    b.add_instance(found, "old")
    of = state(found)
    carried = stepped_back(of, back(of), records(record("a"), record("old")))
    key = InstanceKey("acme/research/old")
    assert carried.instances[key] is of.instances[key]
    assert [*carried.stepped.values()] == [Stepped("1.1.0", "1.0.0")]


# --- who is in a canary --------------------------------------------------------------------------


def within(percent: int, project: str, projects: tuple[str, ...] = ()) -> bool:
    wanted = {"state": "canary", "canary": {"percent": percent, "projects": projects}}
    promotion = b.document(b.PROMOTION_FILE, "1.0.0", {**wanted, "reason": "try"})
    (found,) = b.objects({b.PROMOTION_FILE: promotion}).values()
    spec = found.manifest.spec
    assert isinstance(spec, PromotionSpec)
    return in_canary(Entry(found, spec), ("acme", project))


NAMES = st.from_regex(r"[a-z][a-z0-9]{0,10}", fullmatch=True)


@given(NAMES, st.lists(st.integers(0, 100), min_size=2, max_size=6))
def test_who_is_in_stays_in_as_it_grows(project: str, percents: list[int]) -> None:
    inside = [within(percent, project) for percent in sorted(percents)]
    assert inside == sorted(inside)


@given(NAMES)
def test_none_and_all_are_exact_and_the_named_are_always_in(project: str) -> None:
    assert not within(0, project)
    assert within(100, project)
    assert within(0, project, (f"acme/{project}",))


@pytest.mark.parametrize("percent", [1, 10, 25, 50, 90, 99])
def test_about_as_many_as_it_says(percent: int) -> None:
    inside = sum(within(percent, f"p{number}") for number in range(1_000))
    assert abs(inside - percent * 10) <= 45


@given(st.integers(0, 3), st.sets(st.sampled_from("abcd")), st.sets(st.sampled_from("abcd")))
def test_due_depends_on_how_many_failed_and_on_nothing_else(
    failed_max: int, asking: set[str], failing: set[str]
) -> None:
    of = state(documents(failed_max, *sorted(asking), reason="x"))
    seen = records(*(failed(name) if name in failing else record(name) for name in "abcd"))
    assert bool(due(of, seen, {}, NOW_MS)) is (len(asking & failing) > failed_max)
