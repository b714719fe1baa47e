"""The whole plan from desired, observed and remembered. Pure: same input, byte-identical plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from node_agent.wire import Phase
from reconciler.core.actions import Action
from reconciler.core.desired import Desired, Target
from reconciler.core.diff import diff
from reconciler.core.names import InstanceKey
from reconciler.core.observed import ArtifactSeen, NodeSeen, Observed, Seen, Unknown
from reconciler.core.plan import Finding, Plan, Waiting
from reconciler.core.plan.guards import hold_for_resources, hold_removals
from reconciler.core.plan.instances import Case, decide
from reconciler.core.plan.order import ordered
from reconciler.core.records import InstanceRecord, Intent, State

STRANGERS_SHOWN_MAX = 20
"""Findings a node about what nobody asked for: it may report any number of them."""

Records = Mapping[InstanceKey, InstanceRecord]


def compute_plan(
    desired: Desired,
    observed: Observed,
    records: Records,
    intents: Sequence[Intent],
    now_ms: int,
) -> Plan:
    """`records` is our inventory, `intents` what nodes were asked for and have not yet finished."""
    open_intents = {intent.instance: intent for intent in intents}
    actions: list[Action] = []
    waiting: list[Waiting] = []
    findings = [*_node_findings(desired, observed), *_stray_findings(desired, observed, records)]
    unchanged = 0
    for key, target, record in _cases(desired, records):
        case = Case(
            key=key,
            target=target,
            record=record,
            seen=observed.workload(_node_of(target, record), key),
            artifact=_artifact(observed, target),
            intent=open_intents.get(key),
            now_ms=now_ms,
            destination=_destination(observed, target),
        )
        verdict = decide(case)
        if verdict is None:
            unchanged += target is not None
        elif isinstance(verdict, Waiting):
            waiting.append(verdict)
        elif isinstance(verdict, Finding):
            findings.append(verdict)
        else:
            actions.append(verdict)
    findings += [
        Finding("stalled", "quarantined", f"AppInstance/{key}", why, "fix it with a new commit")
        for key, why in sorted(desired.held.items())
    ]
    actions = hold_removals(actions, desired.guards, records)
    actions = hold_for_resources(actions, records)
    return Plan(
        revision=desired.revision,
        base=observed.fingerprint,
        actions=ordered(actions),
        waiting=tuple(waiting),
        findings=tuple(sorted(findings, key=lambda f: (f.level, f.code, f.object))),
        unchanged=unchanged,
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


def _destination(observed: Observed, target: Target | None) -> Unknown | None:
    seen = observed.node(target.instance.node) if target is not None else None
    return seen if isinstance(seen, Unknown) else None


def _artifact(observed: Observed, target: Target | None) -> Seen[ArtifactSeen]:
    if target is None:
        return Unknown("not_needed", "nothing is launched")
    return observed.artifact(target.instance.artifact)


_JOIN_AGAIN = "join it again: gpuaas node join {node}, then there gpuaas-agent join --again"
_HINTS = {
    "node_never_joined": "join it: gpuaas node join {node}",
    "node_offline": "what runs there goes on; the log of the agent on that host says why",
    "engine_unavailable": "look at that engine on the host; its agent goes on by itself",
    "report_unreadable": "update the agent on that host",
}


def _node_findings(desired: Desired, observed: Observed) -> list[Finding]:
    used = {target.instance.node for target in desired.targets.values()}
    found = []
    for name in sorted(desired.nodes | used):
        seen = observed.node(name)
        if isinstance(seen, Unknown):
            hint = _HINTS.get(seen.code, "the log of the agent on that host says why")
            hint = hint.format(node=name)
            found.append(Finding("info", seen.code, f"Node/{name}", seen.reason, hint))
        elif seen.value.refusal:
            why = f"node {name} takes no tasks: {seen.value.refusal}"
            full = seen.value.refusal.startswith("state_not_written")
            hint = "make room for the agent's state on that host" if full else _JOIN_AGAIN
            hint = hint.format(node=name)
            found.append(Finding("stalled", "task_refused", f"Node/{name}", why, hint))
    return found


def _stray_findings(desired: Desired, observed: Observed, records: Records) -> list[Finding]:
    found = []
    for name, seen in sorted(observed.nodes.items()):
        if isinstance(seen, Unknown):
            continue
        strangers = [
            Finding(
                "info",
                "stray",
                f"Node/{name}",
                f"{stray.name} carries our label for {stray.instance} but nothing asked for it",
                "it is left alone; remove it by hand if it is not needed",
            )
            for stray in seen.value.strays
            if not _belongs(name, InstanceKey(stray.instance), desired, records)
        ]
        strangers += _unowned(name, seen.value, desired, records)
        found += strangers[:STRANGERS_SHOWN_MAX]
        more = len(strangers) - STRANGERS_SHOWN_MAX
        if more > 0:
            what = f"{more} more that nothing asked for"
            found.append(Finding("info", "strays", f"Node/{name}", what, "see the node's report"))
    return found


def _belongs(node: str, key: InstanceKey, desired: Desired, records: Records) -> bool:
    """An agent that lost its memory finds its own containers strange until it has its tasks."""
    target, record = desired.targets.get(key), records.get(key)
    if target is not None and target.instance.node == node:
        return True
    return (
        record is not None and record.node == node and record.state is not State.DECOMMISSIONED
    )


def _unowned(name: str, node: NodeSeen, desired: Desired, records: Records) -> list[Finding]:
    return [
        Finding(
            "info",
            "not_in_inventory",
            f"AppInstance/{key}",
            f"node {name} runs it but neither the state repo nor the inventory knows it",
            "it is left alone; declare it, or remove it on the node",
        )
        for key, report in sorted(node.workloads.items())
        if (key not in records or records[key].state is State.DECOMMISSIONED)
        and key not in desired.targets
        and key not in desired.held
        and report.phase is not Phase.REMOVED
    ]
