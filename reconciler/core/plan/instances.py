"""One instance: what is wanted, remembered and seen, in; at most one action out.

Rules: an Unknown node yields held actions only. Nothing without a record is ever removed. What a
node was already asked for is waited for, not asked again.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from node_agent.wire import FailureReason, Phase, Stray, WorkloadReport
from reconciler.core.actions import (
    Action,
    Cause,
    Control,
    Held,
    Launch,
    Move,
    Precondition,
    Remove,
    Replace,
)
from reconciler.core.custody.referred import secret_hold
from reconciler.core.desired import Stepped, Target
from reconciler.core.lifecycle import next_epoch
from reconciler.core.names import InstanceKey, member_name
from reconciler.core.observed import ArtifactSeen, Observed, Seen, Unknown, is_there
from reconciler.core.plan import Finding, Waiting
from reconciler.core.plan.stepped import is_step_back, step_back_hold, with_reason
from reconciler.core.plan.trust import start_hold, trust_hold
from reconciler.core.records import InstanceRecord, Intent, State, node_name
from reconciler.core.services import reason_words, serves, services_words
from reconciler.core.trust.rules import TrustRules

RETRY_BASE_MS = 15_000
RETRY_MAX_MS = 30 * 60_000
REFUSED_PAUSE_MS = 60_000
ACCEPTED_SHOWS_MS = 30_000
PUTTING_BACK_MS = 300_000
"""How long what ran before may be down before nobody waits for it any more."""


@dataclass(frozen=True)
class Case:
    """All that is known about one instance."""

    key: InstanceKey
    target: Target | None
    record: InstanceRecord | None
    seen: Seen[WorkloadReport | None]
    observed: Observed
    intent: Intent | None
    now_ms: int
    trust: TrustRules = field(default_factory=TrustRules)
    former: InstanceRecord | None = None
    """The record of its former name that is to become its own; `seen` is of that one then."""
    stepped: Stepped | None = None
    """Where the canary that it asks for went back."""

    @property
    def artifact(self) -> Seen[ArtifactSeen]:
        """Of what is to be launched, the first, as the registry serves it."""
        if self.target is None:
            return Unknown("not_needed", "nothing is launched")
        return self.observed.artifact(self.target.instance.artifact)

    @property
    def destination(self) -> Unknown | None:
        """Why nobody could look at the node where it should be; None when its report is at hand."""
        seen = self.observed.node(self.target.instance.node) if self.target is not None else None
        return seen if isinstance(seen, Unknown) else None

    @property
    def report(self) -> WorkloadReport | None:
        return None if isinstance(self.seen, Unknown) else self.seen.value

    @property
    def owned(self) -> bool:
        return self.record is not None and self.record.state is not State.DECOMMISSIONED

    @property
    def begun(self) -> bool:
        """Whether an operation on it was ever handed to a node since it was last absent."""
        return self.owned and self.record is not None and self.record.state is not State.REQUESTED

    @property
    def unnoted(self) -> Stray | None:
        """What runs of it on its node, whose agent knows nothing of it any more."""
        if self.record is None or not self.begun:
            return None
        return self.observed.unnoted(self.record.node, node_name(self.record))

    @property
    def precondition(self) -> Precondition:
        return Precondition(self.report.target_hash if self.report else None)


Verdict = Action | Waiting | Finding | None


def decide(case: Case) -> Verdict:
    """The next thing to do for one instance; None when it is as it should be."""
    verdict = _decide(case)
    if case.stepped is None or verdict is None or isinstance(verdict, Waiting | Finding):
        return verdict
    held = step_back_hold(verdict, case.stepped, case.record)
    return verdict if held is None else replace(verdict, held=held)


def _decide(case: Case) -> Verdict:
    if case.former is not None:
        return _move(case, case.former)
    leaving = _leaving(case)
    if leaving:
        return _removal(case, leaving) if case.owned else None
    assert case.target is not None
    if isinstance(case.seen, Unknown):
        return _unseen(case, case.target, case.seen)
    report = case.seen.value
    if report is None or report.phase is Phase.REMOVED:
        return _absent(case, case.target)
    if report.phase is Phase.REMOVING:
        return Waiting(case.key, case.target.instance.node, "removing", "teardown is under way")
    if report.target_hash == case.target.workload.spec_hash:
        return _present(case, case.target, report)
    return _different(case, case.target, report)


def _move(case: Case, former: InstanceRecord) -> Move:
    held = None
    if _queued(case, "launch", "replace", "control", "remove"):
        held = Held("operation_under_way", f"moves once {former.key} has taken over its task")
    return Move(
        case.key,
        former.key,
        former.node,
        max(next_epoch(former), next_epoch(case.record)),
        f"renamed from {former.key}; {_after_move(case, former)}",
        case.precondition,
        held=held,
    )


def _after_move(case: Case, former: InstanceRecord) -> str:
    """What follows the new name, for who reviews the plan that only shows the first step."""
    assert case.target is not None
    instance = case.target.instance
    if instance.node != former.node:
        return f"then it goes to node {instance.node}"
    if instance.version != former.target_version:
        return f"then version {former.target_version} → {instance.version}"
    same = case.target.workload.spec_hash == former.target_hash
    return "it runs on" if same else "then its parameters change"


def _leaving(case: Case) -> str:
    """Why the instance must go from where it is; empty when it may stay."""
    if case.target is None:
        gone = "its manifest was removed"
        return "its instance has it no longer" if member_name(case.key) else gone
    if case.target.instance.run == "decommissioned":
        return "desired: decommissioned"
    if case.record is None or not case.owned:
        return ""
    if case.record.state is State.DECOMMISSIONING:
        return "its teardown began before it was wanted again"
    if case.record.node != case.target.instance.node:
        return f"it belongs on node {case.target.instance.node} now"
    return ""


def _unseen(case: Case, target: Target, unknown: Unknown) -> Verdict:
    record = case.record if case.owned else None
    if record and record.applied_hash == record.target_hash == target.workload.spec_hash:
        return None  # As far as we know it runs; the node's silence is reported once, for the node.
    held = Held(unknown.code, unknown.reason)
    if record is None or not record.applied_hash:
        return _launch(case, target, "new instance", held)
    return _replace(case, target, held)


def _absent(case: Case, target: Target) -> Verdict:
    lost = case.unnoted
    if target.instance.run == "stopped" and lost is None:
        return None
    under_way = _under_way(case, target)
    if under_way:
        return under_way
    if lost is not None:
        # Also of what is to be stopped: its agent can stop only what it knows.
        held = None if lost.spec_hash == target.workload.spec_hash else _supplies_hold(case)
        return _launch(case, target, "drift: its agent lost track of it", held)
    record = case.record if case.owned else None
    if record is None or not record.applied_hash:
        if not target.instance.may_start:
            return _launch(case, target, "new instance", Held("version_deprecated", _DEPRECATED))
        return _launch(case, target, "new instance", _supplies_hold(case))
    return _launch(case, target, "drift: its node no longer has it", _supplies_hold(case))


def _present(case: Case, target: Target, report: WorkloadReport) -> Verdict:
    if target.instance.run == "stopped":
        return None if _rests(report) else _control(case, target, report, run=False)
    if report.phase is Phase.FAILED:
        return _failed(case, target, report)
    if report.phase is Phase.STOPPED:
        return _control(case, target, report, run=True)
    if serves(report):
        return None
    message = services_words(report.services) if report.services else report.phase.value
    why = reason_words(report) or report.message or message
    return Waiting(case.key, target.instance.node, report.phase.value, why)


def _rests(report: WorkloadReport) -> bool:
    """Whether nothing of it runs, and its node will not start it by itself."""
    failed = report.phase is Phase.FAILED and report.running_hash is None
    return report.phase is Phase.STOPPED or failed


def _control(case: Case, target: Target, report: WorkloadReport, *, run: bool) -> Verdict:
    node = target.instance.node
    if _queued(case, "control"):
        return Waiting(case.key, node, "queued", "waiting for the node to take it over")
    if case.record is None:
        return Waiting(case.key, node, report.phase.value, "being adopted")
    return Control(
        case.key,
        node,
        run,
        next_epoch(case.record),
        "desired: running" if run else "desired: stopped",
        case.precondition,
        held=(_start_hold(case, target) if run else None) or _refusal(case),
    )


def _start_hold(case: Case, target: Target) -> Held | None:
    return start_hold(target.instance, case.trust, case.observed, case.now_ms)


def _different(case: Case, target: Target, report: WorkloadReport) -> Verdict:
    under_way = _under_way(case, target)
    if under_way:
        return under_way
    if report.target_hash is None and report.running_hash == target.workload.spec_hash:
        return _launch(case, target, "drift: its agent lost track of it", None)
    if not case.begun:
        # Not ours yet, whatever the node says it runs under this name: there is nothing to upgrade.
        held = None if target.instance.may_start else Held("version_deprecated", _DEPRECATED)
        return _launch(case, target, "new instance", held or _supplies_hold(case))
    return _replace(case, target, _supplies_hold(case))


def _failed(case: Case, target: Target, report: WorkloadReport) -> Verdict:
    reason = report.reason.value if report.reason else "failed"
    if report.retained:
        return Finding(
            "stalled",
            reason,
            f"AppInstance/{case.key}",
            f"version {target.instance.version} was given up: {report.message or reason}; "
            "what ran before runs on",
            f"fix it with a new commit, or go back with one: gpuaas rollback {target.instance.ref}",
        )
    record = case.record
    if record is not None and _may_come_back(record, report, case.now_ms):
        # Trying the newer one again would only keep the one that works from coming back.
        message = f"{reason_words(report)}; version {record.applied_version} is put back"
        return Waiting(case.key, target.instance.node, "putting_back", message)
    under_way = _under_way(case, target)
    if under_way:
        return under_way
    held = _backing_off(case, report) or _supplies_hold(case)
    return replace(_launch(case, target, f"retry after {reason}", held), cause="retry")


def _may_come_back(record: InstanceRecord, report: WorkloadReport, now_ms: int) -> bool:
    """Whether its node still puts back what ran before a newer one failed.

    It has nothing to put back once that one flapped, or when it lost its notes of it. Then the
    newer one is tried again, with the pauses of any other launch that fails.
    """
    if record.applied_hash in ("", report.target_hash):
        return False
    if report.reason is FailureReason.FLAPPING:
        return False
    there = report.running_hash == record.applied_hash
    return there or (record.attempts <= 1 and now_ms < record.since_ms + PUTTING_BACK_MS)


def retry_pause_ms(attempts: int) -> int:
    """The pause before the next launch of the same target: doubles, up to half an hour."""
    return int(min(RETRY_MAX_MS, RETRY_BASE_MS * 2 ** max(0, min(attempts, 12) - 1)))


def _removal(case: Case, why: str) -> Verdict:
    record = case.record
    assert record is not None
    report = case.report
    if record.state is State.REQUESTED and not is_there(case.seen):
        return None  # Never handed to a node: `settle` withdraws it.
    if report is not None and report.phase is Phase.REMOVING:
        return Waiting(case.key, record.node, "removing", "teardown is under way")
    if _queued(case, "remove"):
        return Waiting(case.key, record.node, "queued", "waiting for the node to take it over")
    held = Held(case.seen.code, case.seen.reason) if isinstance(case.seen, Unknown) else None
    if report is not None and report.reason is FailureReason.TEARDOWN_INCOMPLETE:
        held = _backing_off(case, report)
    if record.state is not State.DECOMMISSIONING:
        held = held or _nowhere_to_go(case, record)
    return Remove(
        case.key,
        record.node,
        record.applied_version or record.target_version,
        next_epoch(record),
        why,
        case.precondition,
        held=held or _refusal(case),
        cause="retry" if record.state is State.DECOMMISSIONING else "change",
    )


def _nowhere_to_go(case: Case, record: InstanceRecord) -> Held | None:
    """What is to move stays where it is until the other node can be seen to take it."""
    target = case.target
    if target is None or target.instance.run != "running" or target.instance.node == record.node:
        return None
    if case.destination is not None:
        return Held(case.destination.code, f"{case.destination.reason}; it stays until then")
    if isinstance(case.artifact, Unknown) and case.artifact.code == "not_observed":
        return None  # The other node has it already.
    return _supplies_hold(case)


def _under_way(case: Case, target: Target) -> Waiting | None:
    intent = case.intent
    if intent is None or intent.target_hash != target.workload.spec_hash:
        return None
    if not _queued(case, "launch", "replace"):
        return None
    message = "waiting for the node to take it over"
    return Waiting(case.key, target.instance.node, "queued", message)


def _queued(case: Case, *kinds: str) -> bool:
    """Whether such a task is on its way into the node's report.

    What a node accepted shows in its report, but perhaps not yet in the one that came first; a
    node that lost it again is asked anew after a while.
    """
    intent = case.intent
    if intent is None or intent.kind not in kinds:
        return False
    fresh = case.now_ms < intent.created_at_ms + ACCEPTED_SHOWS_MS
    return intent.state == "queued" or (intent.state == "accepted" and fresh)


def _refusal(case: Case) -> Held | None:
    """A task that the node would not take is not sent again at once."""
    intent = case.intent
    if intent is None or intent.state != "refused":
        return None
    due_ms = intent.created_at_ms + REFUSED_PAUSE_MS
    if case.now_ms >= due_ms:
        return None
    return Held("task_refused", f"node {intent.node} refused its task: {intent.detail}", due_ms)


def _backing_off(case: Case, report: WorkloadReport) -> Held | None:
    attempts = case.record.attempts if case.record else 0
    due_ms = (case.record.since_ms if case.record else 0) + retry_pause_ms(attempts)
    if case.now_ms >= due_ms:
        return None
    why = reason_words(report) or report.message or "failed"
    pause_s = retry_pause_ms(attempts) // 1000
    return Held("backing_off", f"{why}; tried again {pause_s} s after it failed", due_ms)


def _supplies_hold(case: Case) -> Held | None:
    """Why its node could not get all that a launch takes."""
    assert case.target is not None
    instance = case.target.instance
    return (
        _artifact_hold(case)
        or trust_hold(instance, case.trust, case.observed, case.now_ms)
        or secret_hold(instance, case.observed)
    )


def _artifact_hold(case: Case) -> Held | None:
    assert case.target is not None
    for key in case.target.instance.artifacts:
        seen = case.observed.artifact(key)
        if isinstance(seen, Unknown):
            return Held(seen.code, f"{key}: {seen.reason}")
        if not seen.value.exists:
            return Held("artifact_missing", f"the registry has no {key}")
    return None


def _cause(case: Case, target: Target) -> Cause:
    """Drift is only what worked already, and just as it is wanted now."""
    record = case.record if case.begun else None
    if record is None or record.target_hash != target.workload.spec_hash:
        return "retry" if record and is_step_back(case.stepped, record, target) else "change"
    return "drift" if record.applied_hash == record.target_hash else "retry"


def _launch(case: Case, target: Target, reason: str, held: Held | None) -> Launch:
    return Launch(
        instance=case.key,
        node=target.instance.node,
        workload=target.workload,
        version=target.instance.version,
        epoch=next_epoch(case.record),
        reason=reason,
        precondition=case.precondition,
        held=held or _refusal(case),
        cause=_cause(case, target),
    )


def _replace(case: Case, target: Target, held: Held | None) -> Replace:
    record = case.record
    version = target.instance.version
    running = (record.applied_version or record.target_version) if record else ""
    back = record is not None and version in (record.previous_version, record.applied_version)
    changed = record is not None and record.target_version != version
    again = record is not None and record.state is State.ROLLING_BACK and not changed
    reason = f"version {running} → {version}" if running != version else "its parameters changed"
    if record and running == version and record.target_version != version:
        reason = f"back to version {version}"
    return Replace(
        instance=case.key,
        node=target.instance.node,
        workload=target.workload,
        version=version,
        version_from=running,
        direction="rollback" if again or (back and changed) else "upgrade",
        epoch=next_epoch(record),
        reason=with_reason(reason, case.stepped, record, target),
        precondition=case.precondition,
        held=held or _refusal(case),
        cause=_cause(case, target),
    )


_DEPRECATED = "this version is deprecated: what runs goes on, new instances are not started"
