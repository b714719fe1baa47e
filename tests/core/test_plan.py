"""What the plan says, case by case: one table row a situation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node_agent.wire import FailureReason, Phase, Stray, WorkloadReport
from reconciler.core.actions import Launch, Remove, Replace
from reconciler.core.desired import Desired, Guards, Target
from reconciler.core.lifecycle import begin
from reconciler.core.observed import ArtifactSeen, Known, Observed, Unknown
from reconciler.core.plan import Plan
from reconciler.core.plan.compute import compute_plan
from reconciler.core.records import InstanceRecord, Intent, State
from reconciler.core.settle import settle_all
from reconciler.views.plan import verb_of
from tests.core.fleet import (
    CLEAN,
    NODE,
    NOW_MS,
    deploying,
    desired,
    intent,
    inventory,
    node,
    observed,
    removed,
    report,
    running,
    target,
)

OLD, NEW = target(version="1.0.0"), target(version="1.1.0")


def plan(
    want: Desired,
    see: Observed,
    records: Sequence[InstanceRecord] = (),
    intents: Sequence[Intent] = (),
    now_ms: int = NOW_MS,
) -> Plan:
    return compute_plan(want, see, inventory(*records), intents, now_ms)


def said(p: Plan) -> list[str]:
    """The plan in words: what is done, held, under way or found."""
    words = [
        f"held {verb_of(a)}: {a.held.code}" if a.held else f"{verb_of(a)}: {a.reason}"
        for a in p.actions
    ]
    words += [f"waiting: {w.code}" for w in p.waiting]
    return [*words, *(f"{f.level} {f.code}" for f in p.findings)]


@dataclass(frozen=True)
class Case:
    name: str
    want: Desired
    see: Observed
    records: tuple[InstanceRecord, ...]
    expect: list[str]
    intents: tuple[Intent, ...] = ()
    now_ms: int = NOW_MS


OFFLINE = Observed(nodes={NODE: Unknown("node_offline", "node node-a last reported 90 s ago")})
FAILED = report(OLD, Phase.FAILED, reason=FailureReason.EXITED)
GAVE_UP = report(NEW, Phase.FAILED, runs=OLD, reason=FailureReason.NOT_READY_IN_TIME, retained=True)
STOPPED = target(run="stopped")
DONE = target(run="decommissioned")
LATE_MS = NOW_MS + 3_600_000

CASES = [
    Case("nothing at all", desired(), observed(), (), []),
    Case("new", desired(OLD), observed(), (), ["launch: new instance"]),
    Case("as desired", desired(OLD), observed(report(OLD)), (running(OLD),), []),
    Case("launch queued", desired(OLD), observed(), (deploying(OLD),), ["waiting: queued"],
         (intent(OLD),)),
    Case("pulling", desired(OLD), observed(report(OLD, Phase.PULLING)), (deploying(OLD),),
         ["waiting: pulling"], (intent(OLD, state="accepted"),)),
    Case("accepted, not yet in the report", desired(NEW), observed(report(OLD)), (running(OLD),),
         ["waiting: queued"], (intent(NEW, "replace", state="accepted"),)),
    Case("accepted, then the node forgot it", desired(OLD), observed(), (deploying(OLD),),
         ["launch: new instance"], (intent(OLD, state="accepted"),), LATE_MS),
    Case("a rollback asked for again stays one", desired(OLD), observed(report(NEW)),
         (replace(running(OLD, previous="1.1.0"), state=State.ROLLING_BACK,
                  applied_version="1.1.0"),),
         ["rollback: version 1.1.0 → 1.0.0"]),
    Case("upgrade", desired(NEW), observed(report(OLD)), (running(OLD),),
         ["upgrade: version 1.0.0 → 1.1.0"]),
    Case("rollback to the version before", desired(OLD), observed(report(NEW)),
         (running(NEW, previous="1.0.0"),), ["rollback: version 1.1.0 → 1.0.0"]),
    Case("upgrade queued", desired(NEW), observed(report(OLD)), (running(OLD),),
         ["waiting: queued"], (intent(NEW, "replace"),)),
    Case("upgrade given up is not tried again", desired(NEW), observed(GAVE_UP), (running(OLD),),
         ["stalled not_ready_in_time"]),
    Case("upgrade given up while the old one starts", desired(NEW),
         observed(GAVE_UP.model_copy(update={"retained": False})),
         (replace(running(OLD), target_hash=NEW.workload.spec_hash, state=State.FAILED),),
         ["waiting: putting_back"], (), LATE_MS),
    Case("upgrade given up, the old one is down for a moment", desired(NEW),
         observed(GAVE_UP.model_copy(update={"retained": False, "running_hash": None})),
         (replace(running(OLD), target_hash=NEW.workload.spec_hash, state=State.FAILED,
                  since_ms=NOW_MS - 60_000),),
         ["waiting: putting_back"]),
    Case("upgrade given up, and nothing is put back: the old one had flapped before", desired(NEW),
         observed(GAVE_UP.model_copy(update={"retained": False, "running_hash": None})),
         (replace(running(OLD), target_hash=NEW.workload.spec_hash, state=State.FAILED,
                  since_ms=NOW_MS - 300_000, attempts=1),),
         ["launch: retry after not_ready_in_time"]),
    Case("upgrade given up twice, and nothing was put back", desired(NEW),
         observed(GAVE_UP.model_copy(update={"retained": False, "running_hash": None})),
         (replace(running(OLD), target_hash=NEW.workload.spec_hash, state=State.FAILED,
                  since_ms=NOW_MS, attempts=2),),
         ["held launch: backing_off"]),
    Case("upgrade given up, and the old one flapped too", desired(NEW),
         observed(report(NEW, Phase.FAILED, reason=FailureReason.FLAPPING)),
         (replace(running(OLD), target_hash=NEW.workload.spec_hash, state=State.FAILED,
                  since_ms=NOW_MS, attempts=8),),
         ["held launch: backing_off"]),
    Case("revert of a given-up upgrade", desired(OLD), observed(GAVE_UP),
         (replace(running(OLD), target_version="1.1.0",
                  target_hash=NEW.workload.spec_hash),), ["rollback: back to version 1.0.0"]),
    Case("failed launch backs off", desired(OLD), observed(FAILED),
         (replace(deploying(OLD), state=State.FAILED, attempts=1),), ["held launch: backing_off"]),
    Case("failed launch is tried again", desired(OLD), observed(FAILED),
         (replace(deploying(OLD), state=State.FAILED, attempts=1),),
         ["launch: retry after exited"], (), LATE_MS),
    Case("drift: gone from its node", desired(OLD), observed(), (running(OLD),),
         ["launch: drift: its node no longer has it"]),
    Case("drift: agent lost its state", desired(OLD),
         observed(report(OLD).model_copy(update={"target_hash": None})), (running(OLD),),
         ["launch: drift: its agent lost track of it"]),
    Case("node offline, new", desired(OLD), OFFLINE, (),
         ["held launch: node_offline", "info node_offline"]),
    Case("node offline, running", desired(OLD), OFFLINE, (running(OLD),), ["info node_offline"]),
    Case("node offline, removed manifest", desired(), OFFLINE, (running(OLD),),
         ["held remove: node_offline", "info node_offline"]),
    Case("node never joined", desired(OLD), Observed(), (),
         ["held launch: node_never_joined", "info node_never_joined"]),
    Case("artifact missing", desired(OLD), observed(versions=()), (),
         ["held launch: not_observed"]),
    Case("deprecated version starts nothing new", desired(target(may_start=False)), observed(), (),
         ["held launch: version_deprecated", "stalled version_deprecated"]),
    Case("deprecated version: what runs goes on", desired(target(may_start=False)),
         observed(report(OLD)), (running(OLD),), []),
    Case("removed manifest", desired(), observed(report(OLD)), (running(OLD),),
         ["remove: its manifest was removed"]),
    Case("desired: decommissioned", desired(DONE), observed(report(OLD)), (running(OLD),),
         ["remove: desired: decommissioned"]),
    Case("removal queued", desired(), observed(report(OLD)), (running(OLD),),
         ["waiting: queued"], (intent(OLD, "remove"),)),
    Case("removing", desired(), observed(report(OLD, Phase.REMOVING)),
         (replace(running(OLD), state=State.DECOMMISSIONING),), ["waiting: removing"],
         (intent(OLD, "remove", state="accepted"),)),
    Case("wanted again while it is torn down", desired(OLD), observed(report(OLD, Phase.REMOVING)),
         (replace(running(OLD), state=State.DECOMMISSIONING),), ["waiting: removing"]),
    Case("wanted again afterwards", desired(OLD), observed(removed(OLD)),
         (replace(running(OLD), state=State.DECOMMISSIONED, applied_hash=""),),
         ["launch: new instance"]),
    Case("not ours, not wanted: left alone", desired(), observed(report(OLD)), (),
         ["info not_in_inventory"]),
    Case("stop", desired(STOPPED), observed(report(STOPPED)), (running(OLD),),
         ["stop: desired: stopped"]),
    Case("stopped", desired(STOPPED), observed(report(STOPPED, Phase.STOPPED)),
         (running(OLD),), []),
    Case("start again", desired(OLD), observed(report(OLD, Phase.STOPPED)), (running(OLD),),
         ["start: desired: running"]),
    Case("task refused by the node", desired(OLD), observed(), (deploying(OLD),),
         ["held launch: task_refused"], (intent(OLD, state="refused", detail="expired: late"),)),
    Case("moved to another node", desired(target(node="node-b"), nodes=frozenset({NODE})),
         Observed(nodes={NODE: node(report(OLD)), "node-b": node(name="node-b")}), (running(OLD),),
         ["remove: it belongs on node node-b now"]),
    Case("moved to a node nobody can see", desired(target(node="node-b"), nodes=frozenset({NODE})),
         observed(report(OLD)), (running(OLD),),
         ["held remove: node_never_joined", "info node_never_joined"]),
    Case("moved, and the registry lost its artifact",
         desired(target(node="node-b"), nodes=frozenset({NODE})),
         Observed(nodes={NODE: node(report(OLD)), "node-b": node(name="node-b")},
                  artifacts={OLD.instance.artifact: Known(ArtifactSeen(False))}),
         (running(OLD),), ["held remove: artifact_missing"]),
    Case("wanted again while its node is silent", desired(OLD), Observed(),
         (replace(running(OLD), state=State.DECOMMISSIONED),),
         ["held launch: node_never_joined", "info node_never_joined"]),
    Case("wanted again after its end", desired(OLD), observed(),
         (replace(running(OLD), state=State.DECOMMISSIONED),), ["launch: new instance"]),
    Case("quarantined", desired(OLD, held={OLD.instance.key: "its version is missing"}),
         observed(), (running(OLD),), ["stalled quarantined"]),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_case(case: Case) -> None:
    assert said(plan(case.want, case.see, case.records, case.intents, case.now_ms)) == case.expect


def test_missing_artifact_is_named() -> None:
    see = observed(versions=())
    key = OLD.instance.artifact

    see = replace(see, artifacts={key: Known(ArtifactSeen(exists=False))})
    (action,) = plan(desired(OLD), see).actions
    assert action.held is not None
    assert action.held.code == "artifact_missing"
    assert action.held.message == f"the registry has no {key}"


def test_a_launch_waits_for_the_gpu_of_what_is_removed() -> None:
    leaving, coming = target("a", gpus=("GPU-1",)), target("b", gpus=("GPU-1",))
    p = plan(desired(coming), observed(report(leaving)), [running(leaving)])
    remove, launch = p.actions
    assert isinstance(remove, Remove)
    assert isinstance(launch, Launch)
    assert launch.held is not None
    assert launch.held.code == "resource_in_use"
    assert launch.held.message == "waits for GPUs or ports still held by acme/research/a"
    assert len(launch.depends_on) == 1


def test_a_launch_waits_for_a_host_port_but_not_for_its_own() -> None:
    leaving = target("a", host_port=8080)
    p = plan(desired(target("b", host_port=8080)), observed(report(leaving)), [running(leaving)])
    assert [a.held.code if a.held else "" for a in p.actions] == ["", "resource_in_use"]
    again = target("a", version="1.1.0", host_port=8080)
    (only,) = plan(desired(again), observed(report(leaving)), [running(leaving)]).actions
    assert isinstance(only, Replace)
    assert only.held is None


def test_strays_are_shown_and_left_alone() -> None:
    seen = node()
    assert isinstance(seen, Known)
    stray = Stray(name="gpuaas-x", instance="acme/research/x", spec_hash=None)
    p = plan(desired(), Observed(nodes={NODE: Known(replace(seen.value, strays=(stray,)))}))
    assert p.empty
    assert [f.code for f in p.findings] == ["stray"]


def test_what_its_node_forgot_is_no_stray() -> None:
    """Attempted: to have a person remove what serves, because its agent lost its memory."""
    seen = node()
    assert isinstance(seen, Known)
    stray = Stray(name="gpuaas-x", instance=str(OLD.instance.key), spec_hash=None)
    forgotten = Observed(nodes={NODE: Known(replace(seen.value, strays=(stray,)))})
    assert plan(desired(OLD), forgotten).findings == ()
    assert plan(desired(), forgotten, [running(OLD)]).findings == ()
    elsewhere = replace(running(OLD), node="node-b")
    assert [f.code for f in plan(desired(), forgotten, [elsewhere]).findings] == ["stray"]


@pytest.mark.parametrize("wanted", [OLD, STOPPED])
@pytest.mark.parametrize(
    ("alive", "spec_hash", "expect"),
    [
        (True, OLD.workload.spec_hash, ["launch: drift: its agent lost track of it"]),
        (True, None, ["held launch: artifact_missing"]),
        (False, None, []),
        (None, None, []),
    ],
)
def test_what_runs_and_its_agent_forgot_is_handed_to_it_anew(
    wanted: Target, alive: bool | None, spec_hash: str | None, expect: list[str]
) -> None:
    """Attempted: to stop what its agent knows nothing of, so that it runs on for ever."""
    seen = node()
    assert isinstance(seen, Known)
    name = str(OLD.instance.key)
    stray = Stray(name="gpuaas-x", instance=name, spec_hash=spec_hash, alive=alive)
    missing = {OLD.instance.artifact: Known(ArtifactSeen(exists=False))}
    nodes = {NODE: Known(replace(seen.value, strays=(stray,)))}
    there = Observed(nodes=nodes, artifacts=missing)
    if not alive and wanted is OLD:
        expect = ["held launch: artifact_missing"]
    assert said(plan(desired(wanted), there, [running(OLD)])) == expect


def test_an_engine_that_does_not_answer_is_told_of_before_anything_needs_it() -> None:
    seen = node(report(OLD))
    assert isinstance(seen, Known)
    errors = {"compose": "Compose 2.20 or later is needed"}
    inventory_ = seen.value.inventory.model_copy(update={"engine_errors": errors})
    there = observed(report(OLD))
    there = replace(there, nodes={NODE: Known(replace(seen.value, inventory=inventory_))})
    found = plan(desired(OLD), there, (running(OLD),))
    (finding,) = found.findings
    assert (finding.level, finding.code, finding.object) == (
        "info", "engine_unavailable", f"Node/{NODE}",
    )  # fmt: skip
    assert finding.message == "compose: Compose 2.20 or later is needed"
    assert "look at that engine" in finding.hint
    assert not found.stalled


@pytest.mark.parametrize(
    ("refusal", "hint"),
    [
        ("unknown_key: signed by no key that is trusted here", "gpuaas-agent join --again"),
        ("state_not_written: No space left on device", "make room"),
    ],
)
def test_a_node_that_takes_no_tasks_is_told_of(refusal: str, hint: str) -> None:
    seen = node()
    assert isinstance(seen, Known)
    wary = Observed(nodes={NODE: Known(replace(seen.value, refusal=refusal))})
    (finding,) = plan(desired(nodes=frozenset({NODE})), wary).findings
    assert (finding.level, finding.code, finding.object) == (
        "stalled", "task_refused", "Node/node-a",
    )  # fmt: skip
    assert refusal in finding.message
    assert hint in finding.hint


REPORTS = st.sampled_from([None, *Phase])


@given(
    wanted=st.sets(st.integers(0, 5)),
    owned=st.sets(st.integers(0, 5)),
    phases=st.lists(REPORTS, min_size=6, max_size=6),
    silent=st.booleans(),
)
def test_nothing_is_removed_on_a_guess(
    wanted: set[int], owned: set[int], phases: list[Phase | None], silent: bool
) -> None:
    """Only what we own, no longer want, and whose node answered is ever removed."""
    targets = [target(f"i{n}") for n in range(6)]
    reports: list[WorkloadReport] = [
        report(t, p) for t, p in zip(targets, phases, strict=True) if p is not None
    ]
    see = OFFLINE if silent else observed(*reports)
    want = desired(*(targets[n] for n in sorted(wanted)), guards=Guards(9, 100))
    p = plan(want, see, [running(targets[n]) for n in sorted(owned)])
    for action in p.ready:
        if isinstance(action, Remove):
            number = int(action.instance[-1])
            assert number in owned
            assert number not in wanted
            assert not silent
    if silent:
        assert p.ready == ()
    assert p == plan(want, see, [running(targets[n]) for n in sorted(owned)])


HASHES = st.sampled_from([None, OLD.workload.spec_hash, NEW.workload.spec_hash, "sha256:other"])
CLAIMS = st.builds(
    WorkloadReport,
    instance=st.just(OLD.instance.key),
    target_hash=HASHES,
    running_hash=HASHES,
    phase=st.sampled_from(Phase),
    reason=st.sampled_from([None, *FailureReason]),
    retained=st.booleans(),
    proof=st.sampled_from([None, CLEAN]),
)


@given(
    claim=CLAIMS,
    state=st.sampled_from([None, *State]),
    wanted=st.sampled_from([None, OLD, NEW]),
    known=st.sampled_from([OLD, NEW]),
)
def test_whatever_a_node_claims_each_action_can_begin(
    claim: WorkloadReport, state: State | None, wanted: Target | None, known: Target
) -> None:
    """Attempted: to crash every pass with a workload that its node should not have."""
    records = inventory(*([replace(running(known), state=state)] if state else []))
    want, see = desired(*([wanted] if wanted else [])), observed(claim)
    after = settle_all(want, see, records, NOW_MS).records
    for action in compute_plan(want, see, after, (), NOW_MS).actions:
        begin(action, wanted, after.get(action.instance), want.revision, NOW_MS)


@pytest.mark.parametrize("state", [None, State.REQUESTED, State.DECOMMISSIONED])
def test_what_a_node_runs_under_a_name_that_is_not_ours_is_not_upgraded(
    state: State | None,
) -> None:
    records = [replace(running(OLD), state=state)] if state else []
    assert said(plan(desired(NEW), observed(report(OLD)), records)) == ["launch: new instance"]


def test_what_was_never_begun_but_is_there_is_torn_down() -> None:
    requested = replace(running(OLD), state=State.REQUESTED)
    assert said(plan(desired(), observed(report(NEW)), [requested])) == [
        "remove: its manifest was removed"
    ]


def test_what_is_still_there_after_its_end_is_shown() -> None:
    gone = replace(running(OLD), state=State.DECOMMISSIONED)
    found = plan(desired(), observed(report(OLD)), [gone]).findings
    assert [finding.code for finding in found] == ["not_in_inventory"]


def test_a_node_full_of_strangers_does_not_fill_the_plan() -> None:
    """Attempted: to bloat every plan and page with things that nobody asked for."""
    strangers = [report(target(f"stranger-{n}")) for n in range(25)]
    found = [f.message for f in plan(desired(), observed(*strangers)).findings]
    assert len(found) == 21
    assert "5 more that nothing asked for" in found
