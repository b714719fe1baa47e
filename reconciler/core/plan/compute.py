"""The whole plan from desired, observed and remembered. Pure: same input, byte-identical plan."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from reconciler.core.actions import Action
from reconciler.core.desired import Desired, Target
from reconciler.core.diff import diff
from reconciler.core.names import InstanceKey
from reconciler.core.observed import Observed
from reconciler.core.plan import Finding, Plan, Waiting, plan_id_of
from reconciler.core.plan.blobs import blob_findings, hold_blobs, wanted_of_blobs
from reconciler.core.plan.budgets import approved_sets, removals_id, removals_wanted
from reconciler.core.plan.findings import all_findings
from reconciler.core.plan.guards import Situation, guard_findings, hold_back
from reconciler.core.plan.instances import Case, decide
from reconciler.core.plan.keys import hold_keys, key_findings, wanted_of_keys
from reconciler.core.plan.moves import moving, put_off
from reconciler.core.plan.order import ordered, stopped_dependencies
from reconciler.core.plan.stepped import step_back_findings
from reconciler.core.plan.terms import in_force, sort_out
from reconciler.core.plan.trust import trust_findings
from reconciler.core.records import InstanceRecord, Intent

Records = Mapping[InstanceKey, InstanceRecord]


def compute_plan(
    desired: Desired,
    observed: Observed,
    records: Records,
    intents: Sequence[Intent],
    now_ms: int,
    approved: frozenset[str] = frozenset(),
) -> Plan:
    """`records` is our inventory, `intents` what nodes were asked for and have not yet finished.

    `approved` are ids of plans that a person asked to have carried out.
    """
    followed, later = moving(desired, records), put_off(desired, records)
    actions: list[Action] = []
    waiting: list[Waiting] = []
    findings: list[Finding] = []
    unchanged = 0
    for case in _all_cases(desired, observed, records, intents, followed, later, now_ms):
        verdict = decide(case)
        if verdict is None:
            unchanged += case.target is not None
        elif isinstance(verdict, Waiting):
            waiting.append(verdict)
        elif isinstance(verdict, Finding):
            findings.append(verdict)
        else:
            actions.append(verdict)
    waiting += [
        Waiting(record.key, record.node, "to_be_moved", f"becomes {key} once that name is free")
        for key, record in sorted(later.items())
    ]
    base = observed.fingerprint
    keys = wanted_of_keys(desired.keys, observed, intents)
    blobs = wanted_of_blobs(desired.prefetch, observed, intents)
    plan_id = plan_id_of(desired.revision, base, actions, keys, blobs)
    asked_for = "" if plan_id in approved else plan_id
    situation = Situation(desired, observed, records, followed, now_ms, asked_for)
    actions = hold_back(actions, situation)
    keys = hold_keys(keys, desired, asked_for, now_ms)
    blobs = hold_blobs(blobs, desired, asked_for, now_ms)
    findings += [
        *all_findings(desired, observed, records, actions, followed),
        *guard_findings(actions, records),
        *stopped_dependencies(actions, records),
        *trust_findings(desired, observed, records, now_ms),
        *key_findings(desired.keys, observed, keys),
        *blob_findings(blobs),
        *step_back_findings(desired),
        *_moved_on(approved, plan_id),
    ]
    told, ignored = sort_out(findings, desired.guards, now_ms)
    removals = removals_id(removals_wanted(actions, records))
    held = [one.held for one in (*actions, *keys, *blobs) if one.held is not None]
    opens = [one.until_ms for one in held if one.until_ms is not None]
    return Plan(
        revision=desired.revision,
        base=base,
        actions=ordered(actions),
        waiting=tuple(waiting),
        findings=_sorted(told),
        unchanged=unchanged,
        ignored=_sorted(ignored),
        removals_id=removals,
        break_glass=in_force(desired.guards.break_glass, now_ms),
        wake_at_ms=min((at_ms for at_ms in opens if at_ms > now_ms), default=None),
        approved=not asked_for,
        removals_approved=removals in approved_sets(desired.guards, now_ms),
        keys=keys,
        blobs=blobs,
    )


def _sorted(findings: Sequence[Finding]) -> tuple[Finding, ...]:
    return tuple(sorted(findings, key=lambda f: (f.level, f.code, f.object, f.message)))


def _moved_on(approved: frozenset[str], plan_id: str) -> list[Finding]:
    message = "what it was made from has changed since: the plan is {now} now"
    return [
        Finding("info", "plan_outdated", f"Plan/{one}", message.format(now=plan_id), "look again")
        for one in sorted(approved - {plan_id})
    ]


def _all_cases(
    desired: Desired,
    observed: Observed,
    records: Records,
    intents: Sequence[Intent],
    followed: Records,
    later: Records,
    now_ms: int,
) -> Iterator[Case]:
    """`followed` are to be renamed, `later` too, once their new name is free."""
    open_intents = {intent.instance: intent for intent in intents}
    spared = {record.key for record in (*followed.values(), *later.values())}
    for key, target, record in _cases(desired, records):
        if key in spared:
            continue
        former = followed.get(key)
        there = former or record
        yield Case(
            key=key,
            target=target,
            record=record,
            seen=observed.workload(_node_of(target, there), there.key if there else key),
            observed=observed,
            intent=open_intents.get(there.key if there else key),
            now_ms=now_ms,
            trust=desired.trust,
            former=former,
            stepped=desired.stepped.get(key),
        )


def _cases(
    desired: Desired, records: Records
) -> list[tuple[InstanceKey, Target | None, InstanceRecord | None]]:
    """Every instance once; those in quarantine are left out, so that nothing happens to them."""
    wanted = {k: t for k, t in desired.targets.items() if k not in desired.held}
    owned = {k: r for k, r in records.items() if k not in desired.held}
    keyed = diff(wanted, owned)
    return [
        *((key, target, None) for key, target in keyed.add),
        *((key, target, record) for key, target, record in keyed.both),
        *((key, None, record) for key, record in keyed.remove),
    ]


def _node_of(target: Target | None, record: InstanceRecord | None) -> str:
    """Where to look: where it is known to be, else where it should go."""
    if record is not None and record.state.value != "decommissioned":
        return record.node
    assert target is not None or record is not None
    return target.instance.node if target else record.node if record else ""
