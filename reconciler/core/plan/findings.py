"""What a person should know beside the actions: nodes, strangers, quarantine, likely renames."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from node_agent.wire import Phase
from reconciler.core.actions import Action, Launch, Remove
from reconciler.core.desired import Desired
from reconciler.core.names import InstanceKey, instance_of, member_name
from reconciler.core.observed import NodeSeen, Observed, Unknown
from reconciler.core.plan import Finding
from reconciler.core.records import InstanceRecord, State, node_name

STRANGERS_SHOWN_MAX = 20
"""Findings a node about what nobody asked for: it may report any number of them."""

Records = Mapping[InstanceKey, InstanceRecord]


def all_findings(
    desired: Desired,
    observed: Observed,
    records: Records,
    actions: Sequence[Action],
    followed: Records,
) -> list[Finding]:
    """`followed` are those that are to be moved, by their new names."""
    return [
        *_node_findings(desired, observed),
        *_stray_findings(desired, observed, records),
        *_quarantined(desired),
        *_renames(desired, records, actions),
        *_idle_moves(desired, observed, records, followed),
    ]


def _quarantined(desired: Desired) -> list[Finding]:
    return [
        Finding("stalled", "quarantined", f"AppInstance/{key}", why, "fix it with a new commit")
        for key, why in sorted(desired.held.items())
        if key == instance_of(key) or instance_of(key) not in desired.held
    ]


def _renames(desired: Desired, records: Records, actions: Sequence[Action]) -> list[Finding]:
    """A removal and a launch of the same thing in one project: more likely one word changed."""
    leaving: dict[tuple[object, ...], list[InstanceKey]] = {}
    for action in actions:
        if isinstance(action, Remove) and action.instance not in desired.targets:
            record = records[action.instance]
            if record.state is not State.DECOMMISSIONING:
                leaving.setdefault(_likeness(action.instance, record), []).append(record.key)
    found = []
    for action in actions:
        if not isinstance(action, Launch) or action.cause != "change" or not leaving:
            continue
        instance = desired.targets[action.instance].instance
        gpus = len(action.workload.limits.gpu_uuids)
        project = action.instance.rpartition("/")[0]
        alike = leaving.get((project, instance.app, action.version, action.node, gpus), [])
        if len(alike) != 1 or instance.moved_from is not None:
            continue
        if instance.member_of is not None or member_name(alike[0]):
            continue  # Members come and go under names of their own.
        former = alike[0].rpartition("/")[2]
        found.append(
            Finding(
                "info",
                "maybe_renamed",
                f"AppInstance/{action.instance}",
                f"looks like {alike[0]} under another name, which would be torn down for it",
                f"to keep what runs, add moved_from: {former} to its spec",
            )
        )
    return found


def _likeness(key: InstanceKey, record: InstanceRecord) -> tuple[object, ...]:
    project = key.rpartition("/")[0]
    return project, record.app, record.target_version, record.node, len(record.gpu_uuids)


def _idle_moves(
    desired: Desired, observed: Observed, records: Records, followed: Records
) -> list[Finding]:
    found = []
    for key, target in sorted(desired.targets.items()):
        former = target.instance.moved_from
        if former is None or key in followed or key in desired.held:
            continue
        other, own = records.get(former), records.get(key)
        if own is not None and own.state is not State.REQUESTED and other is None:
            continue  # Long done; the line may stay.
        if target.instance.member_of is not None and other is None:
            continue  # One more than there were: it is the instance that moved.
        if other is None and isinstance(observed.node(target.instance.node), Unknown):
            continue  # After the loss of the store it may well run there under its former name.
        message = f"there is nothing called {former} that it could have been"
        if other is not None and other.state is not State.DECOMMISSIONED:
            message = f"{former} does not become this one: each has a life of its own"
        found.append(
            Finding("info", "nothing_to_move", f"AppInstance/{key}", message, "take moved_from out")
        )
    return found


_JOIN_AGAIN = "join it again: gpuaas node join {node}, then there gpuaas-agent join --again"
_HINTS = {
    "node_never_joined": "join it: gpuaas node join {node}",
    "node_offline": "what runs there goes on; the log of the agent on that host says why",
    "engine_unavailable": "look at that engine on the host; its agent goes on by itself",
    "report_unreadable": "update the agent on that host",
    "node_revoked": f"what runs there goes on; to trust that host once more, {_JOIN_AGAIN}",
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
            continue
        if seen.value.refusal:
            found.append(_refusal_finding(name, seen.value.refusal))
        for engine, why in sorted(seen.value.inventory.engine_errors.items()):
            # It shows before something is to run on it, not only then.
            code, told = "engine_unavailable", f"{engine}: {why}"
            found.append(Finding("info", code, f"Node/{name}", told, _HINTS[code]))
    return found


def _refusal_finding(name: str, refusal: str) -> Finding:
    """A node that believes no NodeConfig takes tasks all the same, as long as it knows their key.
    """
    refuses = "does not believe its configuration" if _is_of_config(refusal) else "takes no tasks"
    full = refusal.startswith("state_not_written")
    hint = "make room for the agent's state on that host" if full else _JOIN_AGAIN
    code = "config_refused" if _is_of_config(refusal) else "task_refused"
    why = f"node {name} {refuses}: {refusal}"
    return Finding("stalled", code, f"Node/{name}", why, hint.format(node=name))


def _is_of_config(refusal: str) -> bool:
    return refusal.startswith("config_refused")


def _stray_findings(desired: Desired, observed: Observed, records: Records) -> list[Finding]:
    ours = _ours(desired, records)
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
            if (name, stray.instance) not in ours
        ]
        strangers += _unowned(name, seen.value, desired, records)
        found += strangers[:STRANGERS_SHOWN_MAX]
        more = len(strangers) - STRANGERS_SHOWN_MAX
        if more > 0:
            what = f"{more} more that nothing asked for"
            found.append(Finding("info", "strays", f"Node/{name}", what, "see the node's report"))
    return found


def _ours(desired: Desired, records: Records) -> frozenset[tuple[str, str]]:
    """(node, its name for it) of all that belongs there.

    An agent that lost its memory finds its own containers strange until it has its tasks.
    """
    wanted = ((t.instance.node, t.workload.instance) for t in desired.targets.values())
    live = (r for r in records.values() if r.state is not State.DECOMMISSIONED)
    return frozenset({*wanted, *((record.node, str(node_name(record))) for record in live)})


def _unowned(name: str, node: NodeSeen, desired: Desired, records: Records) -> list[Finding]:
    return [
        Finding(
            "info",
            "not_in_inventory",
            f"AppInstance/{key}",
            f"node {name} runs it but neither the state repo nor the inventory knows it",
            "it is left alone; gpuaas import --list says how to declare it, else remove it there",
        )
        for key, report in sorted(node.workloads.items())
        if (key not in records or records[key].state is State.DECOMMISSIONED)
        and key not in desired.targets
        and key not in desired.held
        and report.phase is not Phase.REMOVED
    ]
