"""Instances of several services: when they serve, what is told, and that every image counts."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node_agent.wire import FailureReason, Phase, ServicePhase, WorkloadReport
from reconciler.adapters.store_rows import RECORD
from reconciler.core.convergence import followed
from reconciler.core.effects import effects
from reconciler.core.health import Health, HealthLimits, healths, told_health
from reconciler.core.lifecycle import settle
from reconciler.core.observed import ArtifactSeen, Known, Observed, Seen, Unknown
from reconciler.core.plan import Plan, Waiting
from reconciler.core.plan.compute import compute_plan
from reconciler.core.plan.stuck import with_stuck
from reconciler.core.records import InstanceRecord, State, digests_of
from reconciler.core.services import further_images, missing_of, serves, services_words
from reconciler.core.settle import settle_all
from reconciler.core.status import with_conditions
from reconciler.core.steps_taken import uses_of
from tests.core import fleet
from tests.core.fleet import NOW_MS
from tests.core.topologies import (
    NAMES,
    VITAL,
    key_of,
    observed,
    phases,
    report,
    running,
    topology,
)

SHOP, NEWER = topology(), topology(version="1.1.0")
LATER_MS = NOW_MS + 1_000_000
LIMITS = HealthLimits(degraded_ms=600_000)
PARTLY = report(SHOP, Phase.DEGRADED, metrics="failed")
DOWN = report(SHOP, Phase.DEGRADED, db="starting", metrics="failed")

# --- whether it serves ---------------------------------------------------------------------------

SERVES: dict[str, tuple[WorkloadReport, bool]] = {
    "all ready": (report(SHOP), True),
    "one is through": (report(SHOP, metrics="completed"), True),
    "without one that is not vital": (PARTLY, True),
    "such a one starts anew": (report(SHOP, Phase.DEGRADED, metrics="starting"), True),
    "without a vital one": (DOWN, False),
    "a vital one fails its probe": (report(SHOP, Phase.DEGRADED, api="degraded"), False),
    "changed by hand, and all of them up": (report(SHOP, Phase.DEGRADED), False),
    "on trial": (report(SHOP, Phase.STARTING, metrics="waiting"), False),
    "one container, degraded": (fleet.report(SHOP, Phase.DEGRADED), False),
    "of an agent that tells no services": (fleet.report(SHOP), True),
    "stopped": (report(SHOP, Phase.STOPPED, **dict.fromkeys(NAMES, "stopped")), False),
}


@pytest.mark.parametrize("case", SERVES)
def test_what_serves(case: str) -> None:
    said, does = SERVES[case]
    assert serves(said) is does


_PHASE = st.sampled_from(
    ["waiting", "starting", "ready", "completed", "degraded", "failed", "stopped"]
)


@given(st.fixed_dictionaries(dict.fromkeys(NAMES, _PHASE)), st.sampled_from(Phase))
def test_no_degraded_instance_serves_without_its_vital_services(
    how: dict[str, str], phase: Phase
) -> None:
    said = report(SHOP, phase, **how)
    whole = all(how[name] in ("ready", "completed") for name in VITAL)
    assert not (serves(said) and phase is not Phase.READY and not whole)
    words = services_words(said.services)
    for one in missing_of(said.services):
        assert f"{one.name} is {one.phase}" in words


def test_it_is_told_in_words_vital_ones_first() -> None:
    failed = ServicePhase(name="db", phase="failed", detail="exited", exit_code=3)
    other = ServicePhase(name="cache", phase="waiting", vital=False)
    many = [ServicePhase(name=f"w-{n}", phase="starting", vital=False) for n in range(5)]
    assert services_words(phases()) == "3/3 services ready"
    assert services_words((other, failed)) == (
        "0/2 services ready: db is failed (exited, exit code 3), cache is waiting"
    )
    ended = failed.model_copy(update={"detail": "tried 5 times, last: exited with 3"})
    assert services_words((ended,)).endswith("db is failed (tried 5 times, last: exited with 3)")
    assert services_words((*many, failed)).endswith("w-3 is starting and 1 more")
    long = ServicePhase(name="db", phase="failed", detail="x" * 9_999)
    assert len(services_words((long,))) < 300


# --- its life ------------------------------------------------------------------------------------


def after(record: InstanceRecord, said: WorkloadReport) -> tuple[InstanceRecord, list[str]]:
    moved, events = settle(record, Known(said), LATER_MS)
    return moved, [event.type.removeprefix("apps.instance.") for event in events]


def test_degraded_is_no_failure() -> None:
    record, told = after(fleet.deploying(SHOP), PARTLY)
    assert (record.state, told) == (State.RUNNING, ["running"])
    assert (record.applied_version, record.reason) == ("1.0.0", "")
    assert record.services == PARTLY.services
    mended, told = after(record, report(SHOP))
    assert (mended.state, told) == (State.RUNNING, [])
    worse, told = after(record, DOWN)
    assert (worse.state, told) == (State.RUNNING, [])


def test_without_its_vital_services_nothing_has_come_true() -> None:
    record, told = after(fleet.deploying(SHOP), DOWN)
    assert (record.state, told) == (State.DEPLOYING, [])
    assert record.applied_version == ""


def test_an_upgrade_goes_back_as_a_whole() -> None:
    upgrading = replace(
        running(SHOP), state=State.UPGRADING, target_version="1.1.0",
        target_hash=NEWER.workload.spec_hash, target_images=further_images(NEWER.workload),
        target_digest=NEWER.workload.image.digest,
    )  # fmt: skip
    back = fleet.report(
        NEWER, Phase.FAILED, runs=SHOP, reason=FailureReason.NOT_READY_IN_TIME, retained=True
    )
    record, told = after(upgrading, back.model_copy(update={"services": phases()}))
    assert told == ["failed", "rollback_requested", "rolled_back"]
    assert (record.state, record.applied_version) == (State.RUNNING, "1.0.0")
    assert record.applied_images == further_images(SHOP.workload)


def test_what_is_gone_has_no_services() -> None:
    going = replace(running(SHOP), state=State.DECOMMISSIONING)
    record, told = after(going, fleet.removed(SHOP))
    assert (record.services, told) == ((), ["decommissioned"])


def test_a_lost_store_finds_one_that_serves() -> None:
    settled = settle_all(fleet.desired(SHOP), observed(PARTLY), {}, NOW_MS)
    record = settled.records[SHOP.instance.key]
    assert (record.state, record.services) == (State.RUNNING, PARTLY.services)
    assert record.applied_images == further_images(SHOP.workload)


@pytest.mark.parametrize("services", [(), PARTLY.services])
def test_an_agent_that_tells_no_services_is_taken_at_its_word(
    services: tuple[ServicePhase, ...],
) -> None:
    degraded = PARTLY.model_copy(update={"services": services})
    record, _ = after(fleet.deploying(SHOP), degraded)
    assert record.state is (State.RUNNING if services else State.DEPLOYING)
    ready, _ = after(fleet.deploying(SHOP), fleet.report(SHOP))
    assert ready.state is State.RUNNING


def test_a_node_that_tells_of_far_too_many_fills_no_record() -> None:
    many = tuple(ServicePhase(name=f"s{n}", phase="ready") for n in range(1000))
    record, _ = after(running(SHOP), report(SHOP).model_copy(update={"services": many}))
    assert len(record.services) == 32


def test_a_record_is_kept_with_its_services() -> None:
    record, _ = after(fleet.deploying(SHOP), PARTLY)
    assert RECORD.validate_json(RECORD.dump_json(record)) == record
    assert record.engine == "compose"
    before = {k: v for k, v in RECORD.dump_python(record, mode="json").items() if k != "services"}
    assert RECORD.validate_python(before | {"state": State.RUNNING}).services == ()


# --- every image counts --------------------------------------------------------------------------


def test_each_image_is_in_use() -> None:
    record = running(SHOP)
    assert digests_of(record) == {str(key_of(name).digest) for name in NAMES}
    assert uses_of(fleet.inventory(record))[record.key].digests == digests_of(record)
    upgrading = replace(record, target_images=further_images(NEWER.workload))
    assert str(key_of("db", "1.1.0").digest) in digests_of(upgrading)
    assert str(key_of("db").digest) in digests_of(upgrading)


def planned(world: Observed, *records: InstanceRecord, of: object = SHOP) -> Plan:
    want = fleet.desired(of if of is not None else SHOP)  # type: ignore[arg-type]
    return compute_plan(want, world, fleet.inventory(*records), (), NOW_MS)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("seen", "code", "message"),
    [
        (Known(ArtifactSeen(exists=False)), "artifact_missing", "the registry has no {key}"),
        (Unknown("registry_timeout", "no answer"), "registry_timeout", "{key}: no answer"),
        (None, "not_observed", "{key}: {key} was not looked up"),
    ],
)
def test_a_launch_waits_for_each_of_them(
    name: str, seen: Seen[ArtifactSeen] | None, code: str, message: str
) -> None:
    world, key = observed(), key_of(name)
    there = {one: found for one, found in world.artifacts.items() if one != key}
    world = replace(world, artifacts={**there, **({key: seen} if seen is not None else {})})
    (action,) = planned(world).actions
    assert action.held is not None
    assert (action.held.code, action.held.message) == (code, message.format(key=key))
    (action,) = planned(observed()).actions
    assert action.held is None


# --- what is planned and told --------------------------------------------------------------------


def test_nothing_is_done_about_one_that_serves() -> None:
    plan = planned(observed(PARTLY), running(SHOP))
    assert (plan.empty, plan.unchanged, plan.findings) == (True, 1, ())


def test_what_does_not_serve_is_waited_for_and_named() -> None:
    (waiting,) = planned(observed(DOWN), running(SHOP)).waiting
    assert waiting == Waiting(
        SHOP.instance.key, fleet.NODE, "degraded",
        "1/3 services ready: db is starting, metrics is failed",
    )  # fmt: skip


def test_what_is_waited_for_says_why_with_the_code_to_look_up() -> None:
    words = 'Get "http://registry:5000/v2/": connection refused'
    update = {"reason": FailureReason.IMAGE_PULL_FAILED, "message": words}
    (waiting,) = planned(observed(DOWN.model_copy(update=update)), running(SHOP)).waiting
    assert waiting.message == f"image_pull_failed: {words}"


def test_a_pause_after_a_failure_says_the_code_of_it() -> None:
    why = {"reason": FailureReason.EXITED, "message": "db: exited with 3", "running_hash": None}
    said = report(SHOP, Phase.FAILED).model_copy(update=why)
    failed = replace(fleet.deploying(SHOP), state=State.FAILED, attempts=1)
    (action,) = planned(observed(said), failed).actions
    assert action.held is not None
    assert (action.held.code, action.held.message.partition(";")[0]) == (
        "backing_off", "exited: db: exited with 3",
    )  # fmt: skip


def test_what_depends_on_it_starts_once_it_serves() -> None:
    web = fleet.target("web", depends_on=("shop",))
    records = fleet.inventory(running(SHOP))
    for said, code in ((PARTLY, None), (DOWN, "dependency_not_ready")):
        world = replace(observed(said), artifacts={**fleet.observed().artifacts})
        plan = compute_plan(fleet.desired(SHOP, web), world, records, (), NOW_MS)
        (action,) = plan.actions
        assert (action.held.code if action.held else None) == code


def test_a_plan_is_of_what_serves_and_what_does_not() -> None:
    assert observed(PARTLY).fingerprint != observed(DOWN).fingerprint
    plain = fleet.observed(fleet.report(fleet.target()))
    assert observed(report(SHOP)).fingerprint != plain.fingerprint


def told(
    record: InstanceRecord, world: Observed, now_ms: int = NOW_MS
) -> tuple[InstanceRecord, Plan, Health]:
    """The record with its conditions after a pass, the plan, and how it is."""
    want = fleet.desired(SHOP)
    records = settle_all(want, world, fleet.inventory(record), now_ms).records
    plan = compute_plan(want, world, records, (), now_ms)
    found = healths(records, want, world, set(), now_ms, LIMITS)
    plan = with_stuck(plan, found, want, now_ms)
    (done,) = with_conditions(records, want, found, plan, now_ms).values()
    return done, plan, found[done.key].health


def conditions(record: InstanceRecord) -> dict[str, tuple[str, str, str]]:
    return {one.type: (one.status, one.reason, one.message) for one in record.conditions}


def test_its_conditions_name_the_services() -> None:
    whole, _, health = told(running(SHOP), observed(report(SHOP)))
    assert health is Health.READY
    assert conditions(whole) == {
        "Ready": ("True", "Ready", ""),
        "Converged": ("True", "AsDesired", ""),
        "ServicesReady": ("True", "AllReady", "3/3 services ready"),
    }
    assert told(whole, observed(report(SHOP)))[0] is whole
    partly, _, health = told(whole, observed(PARTLY))
    assert health is Health.DEGRADED
    words = "2/3 services ready: metrics is failed"
    assert conditions(partly) == {
        "Ready": ("True", "Degraded", words),
        "Converged": ("True", "AsDesired", ""),
        "ServicesReady": ("False", "NotAllReady", words),
    }
    down, _, health = told(partly, observed(DOWN), NOW_MS + 5)
    assert health is Health.DEGRADED
    words = "1/3 services ready: db is starting, metrics is failed"
    assert conditions(down) == {
        "Ready": ("False", "Degraded", words),
        "Converged": ("False", "Degraded", words),
        "ServicesReady": ("False", "NotAllReady", words),
    }
    assert told_health(down).since_ms == NOW_MS + 5


def test_it_is_degraded_since_the_first_service_was_missing() -> None:
    whole, _, _ = told(running(SHOP), observed(report(SHOP)))
    partly, _, _ = told(whole, observed(PARTLY), NOW_MS + 10)
    later, _, _ = told(partly, observed(PARTLY), NOW_MS + 20)
    seen = told_health(later)
    assert (seen.health, seen.since_ms) == (Health.DEGRADED, NOW_MS + 10)
    assert seen.why == "2/3 services ready: metrics is failed"


def test_one_that_stays_without_a_service_needs_a_person_and_serves_on() -> None:
    partly, _, _ = told(running(SHOP), observed(PARTLY))
    assert told(partly, observed(PARTLY), NOW_MS + 599_999)[2] is Health.DEGRADED
    late, plan, health = told(partly, observed(PARTLY), NOW_MS + 600_000)
    assert health is Health.STUCK
    assert conditions(late)["Ready"][:2] == ("True", "Stuck")
    (finding,) = plan.findings
    assert (finding.level, finding.code) == ("stalled", "stuck")
    assert finding.message == (
        "serves, but not whole since 2027-01-15T08:00:00Z: 2/3 services ready: metrics is failed"
    )
    assert "docker logs of what is missing" in finding.hint


def test_what_nobody_can_see_is_neither() -> None:
    whole, _, _ = told(running(SHOP), observed(report(SHOP)))
    away = Unknown("node_offline", "node node-a last reported 80 s ago")
    blind, _, _ = told(whole, replace(observed(), nodes={fleet.NODE: away}))
    assert conditions(blind)["ServicesReady"] == ("Unknown", "NodeOffline", away.reason)


def test_one_that_is_stopped_says_so() -> None:
    stopped = topology(run="stopped")
    rests = report(stopped, Phase.STOPPED, **dict.fromkeys(NAMES, "stopped"))
    done, _, _ = told(running(stopped), observed(rests))
    assert conditions(done)["ServicesReady"][:2] == ("False", "Stopped")


def test_while_it_starts_the_services_are_told() -> None:
    begins = report(SHOP, Phase.STARTING, api="waiting", db="starting", metrics="waiting")
    done, plan, health = told(fleet.deploying(SHOP), observed(begins))
    assert health is Health.STARTING
    words = "0/3 services ready: api is waiting, db is starting, metrics is waiting"
    assert conditions(done)["Ready"] == ("False", "Starting", words)
    assert [one.message for one in plan.waiting] == [words]


@pytest.mark.parametrize(("said", "came_true"), [(PARTLY, True), (DOWN, False)])
def test_a_commit_comes_true_once_its_vital_services_are_up(
    said: WorkloadReport, came_true: bool
) -> None:
    want = fleet.desired(SHOP)
    first = compute_plan(want, observed(), {}, (), NOW_MS)
    asked = fleet.inventory(fleet.deploying(SHOP))
    records, _ = followed(asked, first.actions, want, NOW_MS, NOW_MS)
    done, plan, _ = told(records[SHOP.instance.key], observed(said), LATER_MS)
    _, arrived = followed(fleet.inventory(done), plan.actions, want, NOW_MS, LATER_MS)
    assert [one.took_ms for one in arrived] == ([LATER_MS - NOW_MS] if came_true else [])


# --- between two revisions -----------------------------------------------------------------------


def test_a_comparison_names_the_services_that_change() -> None:
    after = topology(version="1.1.0", images={"metrics": "1.0.0", "api": "1.0.0"})
    (effect,) = effects(fleet.desired(SHOP), fleet.desired(after))
    assert effect.kind == "replace"
    assert effect.text == "version 1.0.0 → 1.1.0, service db"
    pointers = {field.pointer for field in effect.fields}
    assert "/topology/services/db/image/digest" in pointers
    assert not any("services/api" in one for one in pointers)
