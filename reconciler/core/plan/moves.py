"""Instances that got another name: who follows whom, and what nodes call them.

Rules:
- A move is of the record alone. On its node an instance keeps the name it was launched under until
  its teardown is proved, so that nothing is restarted for the sake of a word.
- What a node reports is put under our names in one place (`under_our_names`), right after it was
  observed. Our names become the node's in one place too: the Workload, and with it the task.
- An instance moves only where its own manifest is gone. Whatever else `moved_from` may claim, it
  takes nothing from anybody.
- One that is wanted again under the name its node knows it by moves back: that is how the revert of
  a rename reads.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from operator import itemgetter

from node_agent.wire import Phase, WorkloadReport
from reconciler.core.desired import Desired, Instance, StateObject
from reconciler.core.kinds.app_instance import AppInstanceSpec
from reconciler.core.names import InstanceKey, instance_key, member_key
from reconciler.core.observed import Known, NodeSeen, Observed, Seen
from reconciler.core.records import UNBEGUN, InstanceRecord, State, node_name

Records = Mapping[InstanceKey, InstanceRecord]
Nodes = Mapping[str, Seen[NodeSeen]]

_LEAVING = (*UNBEGUN, State.DECOMMISSIONING)


def moving(desired: Desired, records: Records) -> dict[InstanceKey, InstanceRecord]:
    """New name → the record that is to become it; also of one in quarantine, which has to wait.

    What is itself in quarantine is not taken from there.
    """
    wanted = {key: target.instance for key, target in desired.targets.items()}
    return _followed(wanted, records, frozenset(desired.held))


def put_off(desired: Desired, records: Records) -> dict[InstanceKey, InstanceRecord]:
    """The same for those that have to wait until the former bearer of the new name is gone."""
    wanted = {key: target.instance for key, target in desired.targets.items()}
    leaving = (State.DECOMMISSIONING,)
    return _followed(wanted, records, frozenset(desired.held), onto=leaving)


def _followed(
    instances: Mapping[InstanceKey, Instance],
    records: Records,
    spared: frozenset[InstanceKey],
    onto: tuple[State, ...] = UNBEGUN,
) -> dict[InstanceKey, InstanceRecord]:
    found: dict[InstanceKey, InstanceRecord] = {}
    taken: set[InstanceKey] = set()
    called = _called(records)
    # Few are ever renamed: only those are put in order.
    renamed = [(k, i) for k, i in instances.items() if i.moved_from or k in called]
    for key, instance in sorted(renamed, key=itemgetter(0)):
        former = instance.moved_from or called[key]
        if former in taken or former in instances or former in spared:
            continue
        record, own = records.get(former), records.get(key)
        if record is None or record.state in _LEAVING or instance.run == "decommissioned":
            continue
        if (State.DECOMMISSIONED if own is None else own.state) in onto:
            found[key] = record
            taken.add(former)
    return found


def runtime_names(
    instances: Mapping[InstanceKey, Instance], records: Records, nodes: Nodes
) -> dict[InstanceKey, InstanceKey]:
    """Our name → its node's, for those that differ.

    When our store was lost, a node that reports the former name of an instance and not the new one
    has it under the former.
    """
    names = {
        key: node_name(record)
        for key, record in records.items()
        # On another node it begins anew, and there its former name may be somebody else's.
        if _begun(record) and (key not in instances or instances[key].node == record.node)
    }
    followed = _followed(instances, records, frozenset())
    names |= {key: node_name(record) for key, record in followed.items()}
    renamed = [(k, i) for k, i in instances.items() if i.moved_from]
    for key, instance in sorted(renamed, key=itemgetter(0)):
        former = instance.moved_from
        if former is None or key in names or former in instances:
            continue
        if former in names or former in names.values():
            continue
        own = _reported(nodes, instance.node, key)
        if own is None and _reported(nodes, instance.node, former) is not None:
            names[key] = former
        elif own is not None and own.instance == former:
            names[key] = former  # It is under our names already.
    return {key: name for key, name in sorted(names.items()) if name != key}


def _called(records: Records) -> dict[InstanceKey, InstanceKey]:
    """What a node calls it → what we call it, of those that were moved and are there."""
    moved = [r for r in records.values() if r.runtime_name and r.state not in _LEAVING]
    return {
        node_name(record): record.key
        for record in sorted(moved, key=lambda record: record.key)
        if node_name(record) != record.key
    }


def _begun(record: InstanceRecord | None) -> bool:
    return record is not None and record.state not in UNBEGUN


def _former(instance: Instance) -> InstanceKey:
    return instance.moved_from or instance.key


def _reported(nodes: Nodes, node: str, name: InstanceKey) -> WorkloadReport | None:
    """What is there, or is going from there."""
    seen = nodes.get(node)
    report = seen.value.workloads.get(name) if isinstance(seen, Known) else None
    return None if report is None or report.phase is Phase.REMOVED else report


def under_our_names(
    observed: Observed,
    instances: Mapping[InstanceKey, Instance],
    records: Records,
    names: Mapping[InstanceKey, InstanceKey],
) -> Observed:
    """What nodes report, keyed by the names of our records. Doing it twice changes nothing."""
    ours: dict[str, dict[InstanceKey, InstanceKey]] = {}
    for key, record in records.items():
        if _begun(record) and node_name(record) != key:
            ours.setdefault(record.node, {})[node_name(record)] = key
    for key, name in names.items():
        # What is still to be moved is reported under the record there is.
        if not _begun(records.get(key)) and not _begun(records.get(_former(instances[key]))):
            ours.setdefault(instances[key].node, {})[name] = key
    if not ours:
        return observed
    nodes = {
        name: _rekeyed(seen, ours[name]) if name in ours else seen
        for name, seen in observed.nodes.items()
    }
    return replace(observed, nodes=nodes)


def _rekeyed(seen: Seen[NodeSeen], ours: Mapping[InstanceKey, InstanceKey]) -> Seen[NodeSeen]:
    if not isinstance(seen, Known):
        return seen
    # What bears a name of ours by chance, such as the tombstone of a former life, is not it.
    told = seen.value.workloads
    others = {name for name in ours.values() if name in told and told[name].instance == name}
    workloads = {name: one for name, one in told.items() if name not in ours.keys() | others}
    workloads |= {ours[name]: report for name, report in told.items() if name in ours}
    return Known(replace(seen.value, workloads=dict(sorted(workloads.items()))))


def holding(objects: Iterable[StateObject], records: Records) -> dict[InstanceKey, tuple[str, ...]]:
    """Instance → the GPUs it holds by its record; one that is to be moved holds them already.

    So does its former self, which may yet have to stay: only one of the two is ever accepted.
    """
    ended = State.DECOMMISSIONED
    held = {key: record.gpu_uuids for key, record in records.items() if record.state is not ended}
    there = {instance_key(one.ref): one for one in objects if one.ref.kind == "AppInstance"}
    called = _called(records)
    for key, one in there.items():
        spec = one.manifest.spec
        if not isinstance(spec, AppInstanceSpec) or not (spec.moved_from or called):
            continue
        named = _sibling(key, spec.moved_from) if spec.moved_from else called.get(key)
        if named is None or named in there:
            continue
        for name in ("", *(member.name for member in spec.members)):
            new, old = (member_key(k, name) if name else k for k in (key, named))
            record, own = records.get(old), records.get(new)
            if record is not None and (own is None or own.state in UNBEGUN):
                held[new] = record.gpu_uuids
    return held


def _sibling(key: InstanceKey, name: str) -> InstanceKey:
    return InstanceKey(f"{key.rpartition('/')[0]}/{name}")
