"""Who gets how much of what: demands, sums per allocation and node, GPUs and host ports.

GPUs stay where they are. An instance keeps the GPUs it already holds as long as its allocation has
them; only then are free ones handed out, in order of instance name and GPU UUID, those that nobody
holds any more first. So adding, changing or removing one instance moves no other.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from operator import itemgetter
from typing import NamedTuple

from reconciler.core.kinds.allocation import AllocationSpec
from reconciler.core.kinds.app_instance import AppInstanceSpec
from reconciler.core.kinds.app_version import AppVersionSpec
from reconciler.core.kinds.node import NodeSpec
from reconciler.core.names import InstanceKey, instance_key
from reconciler.core.topology import Least
from reconciler.core.world import Entry, Findings, Path, World, finding

Member = Entry[AppInstanceSpec]
PortClaim = tuple[str, int, Member]
"""(node, host port, who asks)"""
Holding = Mapping[InstanceKey, tuple[str, ...]]
"""Instance → the GPU UUIDs it holds by its record, until its teardown is proved."""
_NONE: Mapping[str, object] = {}
_NOTHING = Least(0, 0)
_NUMBERS = (int, float)
_NAMES_MAX = 8


class Demand(NamedTuple):
    """What one instance asks: its parameters, else the schema's defaults, else the version's
    minimum, else (CPU and memory) all that is leased.
    """

    gpus: int
    cpu_millis: int
    memory_mib: int
    host_port: int | None
    published: tuple[int, ...] = ()
    """Ports of its node that it takes without having asked, for the other members to reach."""

    def fits(self, lease: AllocationSpec) -> bool:
        return (
            self.gpus <= len(lease.gpus)
            and self.cpu_millis <= cores_millis(lease.cpu_cores)
            and self.memory_mib <= lease.memory_mib
        )


Demands = Mapping[Path, Demand]
"""By instance path."""


def cores_millis(cores: float) -> int:
    return round(cores * 1000)


def demand_of(
    entry: Member,
    version: AppVersionSpec | None,
    defaults: Mapping[str, object] = _NONE,
    lease: AllocationSpec | None = None,
    least: Least = _NOTHING,
) -> Demand:
    """Values of the wrong type count as not given here; `checks.instances` reports them."""
    asked = {**defaults, **entry.spec.parameters}
    gpus = whole(asked.get("gpu_count"))
    cpu, memory = number(asked.get("cpu_cores")), number(asked.get("memory_gib"))
    if cpu is None:
        cpu = least.vcpu or (lease.cpu_cores if lease else 0)
    if memory is None:
        least_mib = least.memory_mib or (lease.memory_mib if lease else 0)
    if gpus is None:
        gpus = version.compatibility.min_gpu_count if version else 0
    return Demand(
        gpus=max(gpus, 0),
        cpu_millis=cores_millis(cpu),
        memory_mib=least_mib if memory is None else round(memory * 1024),
        host_port=whole(asked.get("host_port")),
    )


def number(value: object) -> float | None:
    """A finite number of a size that arithmetic can bear, else None."""
    if isinstance(value, bool) or not isinstance(value, _NUMBERS):
        return None
    return value if -1e15 < value < 1e15 else None


def whole(value: object) -> int | None:
    """An integer, 5.0 included as in JSON Schema, else None."""
    found = number(value)
    return None if found is None or found != int(found) else int(found)


def check_lease_gpus(world: World) -> Findings:
    """An active allocation leases GPUs that its node has."""
    for node, leases in world.leases.items():
        owner = world.nodes.get((node,))
        if owner is None:
            continue
        there = {gpu.uuid for gpu in owner.spec.accelerators}
        for lease in leases:
            for missing in sorted(set(lease.spec.gpus) - there):
                message = f"GPU {missing} is not on {owner.ref}"
                hint = "list it under the node's accelerators, or lease another"
                yield finding(lease, "gpu_not_on_node", message, "/spec/gpus", hint)


def check_gpu_leased_once(world: World) -> Findings:
    for leases in world.leases.values():
        holders: dict[str, list[Entry[AllocationSpec]]] = defaultdict(list)
        for lease in leases:
            for gpu in lease.spec.gpus:
                holders[gpu].append(lease)
        for gpu, claims in sorted(holders.items()):
            for claim in claims[1:]:
                message = f"GPU {gpu} is leased by {claims[0].ref} already"
                hint = "a GPU is in one active allocation at a time; release the other first"
                first = (claims[0].ref,)
                yield finding(claim, "gpu_leased_twice", message, "/spec/gpus", hint, first)


def check_exclusive_lease(world: World) -> Findings:
    for leases in world.leases.values():
        exclusive = next((lease for lease in leases if lease.spec.exclusive), None)
        if exclusive is not None and len(leases) > 1:
            others = tuple(other.ref for other in leases if other is not exclusive)
            message = f"exclusive, but Node/{exclusive.spec.node} is leased to {others[0]} as well"
            hint = "an exclusive allocation has the node to itself"
            yield finding(exclusive, "node_not_exclusive", message, "/spec/exclusive", hint, others)


def check_leases_fit_node(world: World) -> Findings:
    for node, leases in world.leases.items():
        owner = world.nodes.get((node,))
        if owner is not None:
            yield from _leases_fit(owner, leases)


def _leases_fit(owner: Entry[NodeSpec], leases: tuple[Entry[AllocationSpec], ...]) -> Findings:
    millis = sum(cores_millis(lease.spec.cpu_cores) for lease in leases)
    mib = sum(lease.spec.memory_mib for lease in leases)
    everyone = tuple(lease.ref for lease in leases)
    for asked, there, unit, pointer in (
        (millis / 1000, owner.spec.cpu_cores, "CPU cores", "/spec/cpu_cores"),
        (mib, owner.spec.memory_mib, "MiB of memory", "/spec/memory_mib"),
    ):
        if asked > there:
            message = (
                f"the allocations on {owner.ref} lease {asked:.10g} {unit}, it has {there:.10g}"
            )
            hint = f"lease less, or release one of {_listed(everyone)}"
            yield finding(leases[-1], "node_overcommitted", message, pointer, hint, everyone[:-1])


def check_members_fit(
    lease: Entry[AllocationSpec], members: tuple[Member, ...], demands: Demands
) -> Findings:
    """The sum over an allocation's instances; one that doesn't fit alone is reported by itself."""
    fitting = tuple(m for m in members if demands[m.path].fits(lease.spec))
    asked = [demands[member.path] for member in fitting]
    sums = (
        (sum(d.gpus for d in asked), len(lease.spec.gpus), "GPUs", "gpu_count"),
        (sum(d.cpu_millis for d in asked) / 1000, lease.spec.cpu_cores, "CPU cores", "cpu_cores"),
        (sum(d.memory_mib for d in asked), lease.spec.memory_mib, "MiB of memory", "memory_gib"),
    )
    for total, there, unit, parameter in sums:
        if total > there:
            names = _listed([member.name for member in fitting])
            message = f"instances {names} ask {total:.10g} {unit} in all, {there:.10g} are leased"
            hint = f"lower or state the parameter {parameter}, or lease more"
            refs = tuple(member.ref for member in fitting)
            yield finding(lease, "allocation_overcommitted", message, "/spec", hint, refs)


def _listed(names: Sequence[object]) -> str:
    """Some of them: whatever is not accepted for their sake says so too, each with all of this."""
    more = f" and {len(names) - _NAMES_MAX} more" if len(names) > _NAMES_MAX else ""
    return ", ".join(map(str, names[:_NAMES_MAX])) + more


def ports_asked(
    lease: Entry[AllocationSpec], members: tuple[Member, ...], demands: Demands
) -> tuple[PortClaim, ...]:
    """Fixed host ports that an allocation's instances ask for on its node."""
    asked = ((member, demands[member.path]) for member in members)
    return tuple(
        (lease.spec.node, port, member)
        for member, demand in asked
        if demand.host_port is not None or demand.published
        for port in (demand.host_port, *demand.published)
        if port is not None
    )


def check_host_ports(claims: Iterable[PortClaim]) -> Findings:
    """A fixed host port is asked by one instance a node."""
    asked: dict[tuple[str, int], list[Member]] = defaultdict(list)
    for node, port, member in claims:
        asked[node, port].append(member)
    for (node, port), clashing in sorted(asked.items(), key=itemgetter(0)):
        for member in clashing if len(clashing) > 1 else ():
            other = clashing[1] if member is clashing[0] else clashing[0]
            message = f"host port {port} on Node/{node} is asked by {other.ref} as well"
            hint = "take another, or leave host_port out and get a free one"
            if "host_port" not in member.spec.parameters:
                hint = "it is for other members to reach: give one of the two another host_port"
            yield finding(member, "host_port_taken", message, "/spec/parameters/host_port", hint)


def holders_of(holding: Holding) -> Counter[str]:
    """How many instances hold each GPU by their records."""
    return Counter(gpu for held in holding.values() for gpu in held)


def assign_gpus(
    lease: AllocationSpec,
    members: tuple[Member, ...],
    demands: Demands,
    holding: Holding,
    holders: Mapping[str, int],
) -> dict[InstanceKey, tuple[str, ...]]:
    """GPU UUIDs of every instance of an allocation, sorted; see the module's rules."""
    free = set(lease.gpus)
    fitting = [member for member in members if demands[member.path].fits(lease)]
    wanted = {instance_key(member.ref): demands[member.path].gpus for member in fitting}
    kept: dict[InstanceKey, list[str]] = {}
    for key, count in wanted.items():
        kept[key] = sorted(free.intersection(holding.get(key, ())))[:count]
        free.difference_update(kept[key])
    queue = sorted(free, key=lambda gpu: (holders.get(gpu, 0), gpu))
    for key, count in wanted.items():
        more = max(count - len(kept[key]), 0)
        kept[key] += queue[:more]
        del queue[:more]
    return {key: tuple(sorted(gpus)) for key, gpus in kept.items()}
