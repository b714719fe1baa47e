"""Manifests for what is already there: a node that joined, an instance that runs undeclared.

Rules:
- Nothing is taken over silently. What comes out is a file for a person to review and commit.
- An instance's manifest is written only when it is proved that committing it changes nothing: it
  renders to the very workload that runs, and the plan with it has nothing to do there.
- Pure but for `Look`: the caller reads and writes files.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from pydantic import ValidationError

from node_agent.wire import Gpu, Inventory, Origin, Phase, Report, WorkloadReport
from reconciler.core.desired import Desired, StateObject
from reconciler.core.kinds.allocation import AllocationSpec
from reconciler.core.kinds.app_version import AppVersionSpec
from reconciler.core.names import Digest, InstanceKey, ObjectRef, instance_of, member_name
from reconciler.core.observed import NodeSeen, Observed, Unknown
from reconciler.core.problems import Problem
from reconciler.core.records import EnrolledNode, InstanceRecord, State
from reconciler.core.schema import SchemaSet
from reconciler.core.services import serves
from reconciler.core.source import Snapshot, SourceFile
from reconciler.core.validate import validate
from reconciler.cycle import LoadMemo
from reconciler.errors import Refused
from reconciler.settings import Settings
from reconciler.use_cases.planning import Look, Planned, plan_revision

GIB_MIB = 1024
_TRADE_NAMES = {
    "nvidia", "amd", "geforce", "instinct", "tesla", "radeon", "quadro", "graphics", "pro", "tm",
}  # fmt: skip


@dataclass(frozen=True)
class Manifest:
    """A file to add to the state repo. `proof` says what was checked, for people."""

    path: str
    text: str
    proof: str


@dataclass(frozen=True)
class Importable:
    """Something that is there and not declared; `why_not` is empty when it can be imported."""

    kind: str
    name: str
    where: str
    why_not: str = ""


# --- nodes ---------------------------------------------------------------------------------------


def node_manifest(
    node: EnrolledNode | None,
    name: str,
    pool: str,
    source: Snapshot,
    schemas: SchemaSet,
    settings: Settings,
) -> Manifest:
    """The Node manifest of a host, by its agent's own inventory.

    Refused: import_unknown_node, import_no_report, import_invalid.
    """
    if node is None:
        raise Refused(
            "import_unknown_node",
            f"no node {name} has joined",
            hint=f"join it: gpuaas node join {name}; gpuaas import --list shows what there is",
        )
    inventory = _inventory(node)
    path = f"platform/nodes/{name}.yaml"
    text = _node_text(name, pool, inventory)
    made = validate(with_file(source, path, text), schemas, settings.parse_limits)
    _refuse_declared(source, path, name, schemas, settings)
    _refuse_invalid(made.problems, path, f"Node/{name}")
    gpus = f", {len(inventory.gpus)} GPUs" if inventory.gpus else ""
    proof = f"{inventory.cpu_count} cores, {inventory.memory_mib} MiB{gpus}, as its agent reports"
    return Manifest(path, text, proof)


def _inventory(node: EnrolledNode) -> Inventory:
    try:
        inventory = Report.model_validate_json(node.report_json or "").inventory
    except ValidationError:
        why = "has not reported yet" if node.report_json is None else "runs an agent we can't read"
        raise Refused(
            "import_no_report",
            f"node {node.name} {why}",
            hint="start gpuaas-agent there, or update it; gpuaas status shows when it reports",
        ) from None
    if not inventory.engines:
        said = "; ".join(f"{name}: {why}" for name, why in sorted(inventory.engine_errors.items()))
        raise Refused(
            "import_no_report",
            f"no engine of node {node.name} answers ({said or 'none is there'})",
            hint="look at that engine on the host; a node without one can run nothing",
        )
    return inventory


def _node_text(name: str, pool: str, found: Inventory) -> str:
    family, guess = family_of(found.gpus)
    gib = found.memory_mib // GIB_MIB
    lines = [
        "# Written by gpuaas import from what the agent on the host reported. Review it.",
        *_head("Node", name),
        f"  pool: {pool}",
        "  # gpu_slice: given out GPU by GPU. baremetal: given out whole.",
        f"  capacity_shape: {'gpu_slice' if len(found.gpus) > 1 else 'baremetal'}",
        f"  accelerator_family: {family}{guess}",
        *_accelerators(found.gpus),
        f"  cpu_cores: {found.cpu_count}",
        f"  # {found.memory_mib} MiB are there, rounded down to whole GiB.",
        f"  memory_mib: {gib * GIB_MIB if gib else max(1, found.memory_mib)}",
        f"  engines: [{', '.join(map(_word, sorted(found.engines)))}]",
    ]
    return "\n".join(lines) + "\n"


def _word(text: str) -> str:
    """A word of the agent's as one of the manifest's, whatever it may hold."""
    return text if re.fullmatch("[a-z]+", text) else json.dumps(text)


def _head(kind: str, name: str) -> tuple[str, ...]:
    envelope = ("apiVersion: gpuaas.dev/v1", f"kind: {kind}")
    return (*envelope, "metadata:", f"  name: {name}", "spec:")


def _accelerators(gpus: Iterable[Gpu]) -> Iterator[str]:
    for number, gpu in enumerate(sorted(gpus, key=lambda gpu: gpu.uuid)):
        if number == 0:
            yield "  accelerators:"
        yield f"    - uuid: {json.dumps(gpu.uuid)}"
        yield f"      vendor: {gpu.vendor}"
        yield f"      model: {json.dumps(gpu.model)}"
        yield f"      memory_mib: {gpu.memory_mib}"


def family_of(gpus: Iterable[Gpu]) -> tuple[str, str]:
    """(family, comment): guessed from the model, which vendors spell as they like."""
    found = Counter(f"{gpu.vendor}-{_model_word(gpu.model)}" for gpu in gpus)
    if not found:
        return "cpu", ""
    family = min(found, key=lambda name: (-found[name], name))
    others = sorted(set(found) - {family})
    also = f"; {', '.join(others)} is there as well" if others else ""
    return family, f"  # guessed from the model{also}"


def _model_word(model: str) -> str:
    """`NVIDIA A100-SXM4-80GB` → `a100`, `NVIDIA GeForce RTX 4090` → `rtx-4090`."""
    words = [word for word in re.split("[^0-9a-z]+", model.lower()) if word]
    words = [word for word in words if word not in _TRADE_NAMES]
    for number, word in enumerate(words):
        if any(char.isdigit() for char in word):
            return "-".join(words[: number + 1])
    return "-".join(words) or "unknown"


# --- instances -----------------------------------------------------------------------------------


def instance_manifest(
    look: Look, key: InstanceKey, source: Snapshot, schemas: SchemaSet, settings: Settings
) -> Manifest:
    """The AppInstance manifest of what runs undeclared, proved to change nothing.

    Refused: import_member, import_unknown_instance, import_known, import_not_settled,
    import_no_origin, import_no_version, import_no_allocation, import_differs.
    """
    _refuse_member(key)
    memo = LoadMemo()
    now = plan_revision(look, source, schemas, settings, memo=memo)
    node, report = _running(look, now, key)
    origin = _origin(key, report)
    objects = validate(source, schemas, settings.parse_limits).objects
    version = _version(objects, origin)
    leases = _leases(objects, key, node)
    tenant, project, name = key.split("/")
    path = f"tenants/{tenant}/projects/{project}/instances/{name}.yaml"
    refused = []
    for lease in leases:
        text = _instance_text(name, lease, origin, version, report.phase)
        changed = with_file(source, path, text)
        tried = plan_revision(look, changed, schemas, settings, memo=memo)
        differs = _differs(tried, key, path, report)
        if not differs:
            proof = f"renders to what runs on {node}, and the plan with it does nothing to it"
            return Manifest(path, text, proof)
        refused.append(f"on allocation {lease.ref.name}: {differs}")
    raise Refused(
        "import_differs",
        f"no manifest gives what runs on {node}; {'; '.join(refused)}",
        where=f"AppInstance/{key}",
        hint="make the catalog, the allocation or the Environment say what it runs with; or write "
        "the manifest by hand and let it be replaced",
    )


def _running(look: Look, now: Planned, key: InstanceKey) -> tuple[str, WorkloadReport]:
    _refuse_known(look.records, now.desired, key)
    for name, report in _undeclared(now.observed, key):
        return name, report
    silent = sorted(name for name, one in now.observed.nodes.items() if isinstance(one, Unknown))
    more = f"; {', '.join(silent)} did not answer" if silent else ""
    raise Refused(
        "import_unknown_instance",
        f"no node reports that it runs {key}{more}",
        hint="gpuaas import --list shows what there is",
    )


def _refuse_member(key: InstanceKey) -> None:
    if member_name(key):
        raise Refused(
            "import_member",
            f"{key} is a further member of {instance_of(key)}, and has no manifest of its own",
            hint="import that one, and name this under its spec.members: "
            f"- {{name: {member_name(key)}, role: <role>, allocation: <allocation on its node>}}",
        )


def _undeclared(observed: Observed, key: InstanceKey) -> Iterator[tuple[str, WorkloadReport]]:
    for name, seen in sorted(observed.nodes.items()):
        if not isinstance(seen, Unknown) and key in seen.value.workloads:
            report = seen.value.workloads[key]
            if report.phase is not Phase.REMOVED:
                yield name, report


def _refuse_known(
    records: Mapping[InstanceKey, InstanceRecord], desired: Desired, key: InstanceKey
) -> None:
    record = records.get(key)
    owned = record is not None and record.state is not State.DECOMMISSIONED
    if owned or key in desired.targets or key in desired.held:
        where = "the inventory" if owned else "the state repo"
        raise Refused(
            "import_known",
            f"{key} is in {where} already",
            hint="gpuaas status shows it; what is declared needs no import",
        )


def _origin(key: InstanceKey, report: WorkloadReport) -> Origin:
    if report.phase is not Phase.STOPPED and not serves(report):
        raise Refused(
            "import_not_settled",
            f"{key} is {report.phase.value}: {report.message or 'not at rest'}",
            hint="import what runs or is stopped, not what is on its way",
        )
    if report.origin is None or not report.origin.app or not report.origin.version:
        raise Refused(
            "import_no_origin",
            f"the agent does not say what {key} was made from",
            hint="update the agent on that node",
        )
    return report.origin


def _version(objects: Mapping[ObjectRef, StateObject], origin: Origin) -> AppVersionSpec:
    ref = ObjectRef("AppVersion", (origin.app, origin.version))
    found = objects.get(ref)
    if found is None or not isinstance(found.manifest.spec, AppVersionSpec):
        raise Refused(
            "import_no_version",
            f"it runs {ref}, which the state repo does not have",
            hint="add the version to the catalog first",
        )
    return found.manifest.spec


@dataclass(frozen=True)
class _Lease:
    ref: ObjectRef
    spec: AllocationSpec


def _leases(
    objects: Mapping[ObjectRef, StateObject], key: InstanceKey, node: str
) -> tuple[_Lease, ...]:
    """The active allocations of its project on its node."""
    owner = tuple(key.split("/")[:2])
    found = tuple(
        _Lease(ref, one.manifest.spec)
        for ref, one in sorted(objects.items())
        if ref.kind == "Allocation"
        and ref.path[:2] == owner
        and isinstance(one.manifest.spec, AllocationSpec)
        and one.manifest.spec.node == node
        and one.manifest.spec.state == "active"
    )
    if not found:
        raise Refused(
            "import_no_allocation",
            f"project {'/'.join(owner)} has no active allocation on node {node}",
            hint="add one that covers what it uses",
        )
    return found


def _instance_text(
    name: str, lease: _Lease, origin: Origin, version: AppVersionSpec, phase: Phase
) -> str:
    parameters = _parameters(origin, version)
    told = [f"    {key}: {json.dumps(value)}" for key, value in sorted(parameters.items())]
    lines = [
        *_head("AppInstance", name),
        f"  app: {origin.app}",
        f"  version: {json.dumps(origin.version)}",
        "  placement_intent:",
        f"    allocation: {lease.ref.name}",
        *(["  parameters:", *told] if told else []),
        f"  desired: {'stopped' if phase is Phase.STOPPED else 'running'}",
    ]
    return "\n".join(lines) + "\n"


def _parameters(origin: Origin, version: AppVersionSpec) -> dict[str, float | int]:
    """What the app lets an instance say, with the values it runs with."""
    limits, offered = origin.limits, version.launch_parameters.get("properties", {})
    fixed = [port.host for port in origin.ports if port.host is not None]
    values: dict[str, float | int | None] = {
        "cpu_cores": None if limits.cpu_millis is None else _plain(limits.cpu_millis / 1000),
        "memory_gib": None if limits.memory_mib is None else _plain(limits.memory_mib / GIB_MIB),
        "gpu_count": len(limits.gpu_uuids),
        "host_port": fixed[0] if fixed else None,
    }
    return {
        name: value
        for name, value in values.items()
        if value is not None and isinstance(offered, Mapping) and name in offered
    }


def _plain(value: float) -> float | int:
    return int(value) if value == int(value) else value


def _differs(tried: Planned, key: InstanceKey, path: str, report: WorkloadReport) -> str:
    """Why committing the manifest would change something; empty when nothing would change."""
    ref = f"AppInstance/{key}"
    for problem in tried.state.problems:
        if problem.path == path or problem.object == ref:
            return f"{problem.code}: {problem.message}"
    target = tried.desired.targets.get(key)
    if target is None or key in tried.desired.held:
        return tried.desired.held.get(key, "it does not resolve")
    workload = target.workload
    if workload.spec_hash != report.target_hash:
        assert report.origin is not None
        made = Origin(
            app=target.instance.app,
            version=target.instance.version,
            image=workload.image,
            limits=workload.limits,
            ports=workload.ports,
        )
        return _compared(report.origin, made, workload.topology is not None)
    acted = [action.reason for action in tried.plan.actions if action.instance == key]
    waits = [waiting.message for waiting in tried.plan.waiting if waiting.instance == key]
    return "; ".join((*acted, *waits))


def _compared(runs: Origin, made: Origin, has_services: bool) -> str:
    """Field by field what runs against what the manifest would give. A node says of services only
    whether they are the very ones.
    """
    told = []
    for name, ours, theirs in (
        ("image", runs.image.reference, made.image.reference),
        ("cpu_millis", runs.limits.cpu_millis, made.limits.cpu_millis),
        ("memory_mib", runs.limits.memory_mib, made.limits.memory_mib),
        ("shm_mib", runs.limits.shm_mib, made.limits.shm_mib),
        ("pids", runs.limits.pids, made.limits.pids),
        ("gpus", runs.limits.gpu_uuids, made.limits.gpu_uuids),
        ("ports", _ports(runs), _ports(made)),
    ):
        if ours != theirs:
            told.append(f"{name} {_said(ours)} there, {_said(theirs)} by manifest")
    parts = "services" if has_services else "command, environment, probe or labels"
    return "; ".join(told) or f"{parts} are not those of the catalog"


def _ports(origin: Origin) -> tuple[str, ...]:
    return tuple(f"{port.name} {port.container}:{port.host or 'any'}" for port in origin.ports)


def _said(value: object) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(str, value)) or "none"
    return str(value)


# --- what there is -------------------------------------------------------------------------------


def importables(
    look: Look, nodes: Iterable[EnrolledNode], now: Planned, objects: Iterable[ObjectRef]
) -> tuple[Importable, ...]:
    """Nodes that joined without a manifest, and what runs under our labels undeclared."""
    declared = {ref.name for ref in objects if ref.kind == "Node"}
    found = [
        Importable("node", node.name, "", "" if node.report_json else "it has not reported yet")
        for node in nodes
        if node.name not in declared
    ]
    for name, seen in sorted(now.observed.nodes.items()):
        if not isinstance(seen, Unknown):
            found += _importable_instances(look, name, seen.value, now.desired)
    return tuple(found)


def _importable_instances(
    look: Look, name: str, node: NodeSeen, desired: Desired
) -> Iterator[Importable]:
    for key, report in sorted(node.workloads.items()):
        if report.phase is Phase.REMOVED:
            continue
        try:
            _refuse_known(look.records, desired, key)
        except Refused:
            continue
        try:
            _origin(key, report)
        except Refused as refused:
            yield Importable("instance", key, name, refused.message)
        else:
            yield Importable("instance", key, name)


# --- files ---------------------------------------------------------------------------------------


def with_file(source: Snapshot, path: str, text: str) -> Snapshot:
    """The revision as it would be with one file more, or another content in it."""
    content = text.encode()
    kept = [file for file in source.files if file.path != path]
    made = SourceFile(path, str(Digest.of(content)), content)
    files = sorted([*kept, made], key=lambda file: file.path)
    return replace(source, files=tuple(files))


def _refuse_declared(
    source: Snapshot, path: str, name: str, schemas: SchemaSet, settings: Settings
) -> None:
    found = validate(source, schemas, settings.parse_limits).objects.get(ObjectRef("Node", (name,)))
    if found is not None and found.path != path:
        raise Refused(
            "import_known",
            f"Node/{name} is declared already",
            where=f"{found.path}:{found.line}",
            hint="what is declared needs no import; gpuaas status shows what its agent reports",
        )


def _refuse_invalid(problems: Iterable[Problem], path: str, ref: str) -> None:
    mine = [problem for problem in problems if problem.path == path or problem.object == ref]
    if mine:
        raise Refused(
            "import_invalid",
            f"what the agent reports makes no valid manifest: {mine[0]}",
            hint="write it by hand; gpuaas validate checks it",
        )
