"""Objects of one revision in, instances with every reference resolved out.

Rules:
- Nothing raises: all problems come at once, each naming its culprit.
- An instance is either in `instances` or in `blocked`, with the reason: a problem of its own or
  one of something it depends on. Only a decommissioned one whose references are gone is in neither.
- Same objects, same answer. The only memory is `holding`: which GPUs an instance has now, so that
  it keeps them (see `core.checks.capacity`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from node_agent.wire import LAYOUT_PREFIX
from reconciler.core.checks import capacity, catalog, references
from reconciler.core.checks.capacity import Demand
from reconciler.core.checks.catalog import Launch
from reconciler.core.checks.instances import INSTANCE_CHECKS, Case, image_for, modes
from reconciler.core.desired import Guards, Instance, Policy, StateObject
from reconciler.core.kinds.base import Part
from reconciler.core.kinds.environment import EnvironmentSpec
from reconciler.core.names import (
    InstanceKey,
    ObjectRef,
    Revision,
    instance_key,
    nearest,
)
from reconciler.core.problems import Problem
from reconciler.core.world import Entry, Finding, Path, World, build_world

Holding = Mapping[InstanceKey, tuple[str, ...]]
"""Instance → the GPU UUIDs it holds by its record, until its teardown is proved."""


@dataclass(frozen=True)
class Resolution:
    """What one revision comes to.

    `blocked` are instances that don't resolve, with why. `blamed` are all objects involved in a
    problem, with the problem: the culprits, and what may have made them so.
    """

    revision: Revision
    instances: Mapping[InstanceKey, Instance]
    nodes: frozenset[str]
    guards: Guards
    environment: EnvironmentSpec | None
    problems: tuple[Problem, ...]
    blocked: Mapping[InstanceKey, str] = field(default_factory=dict)
    blamed: Mapping[ObjectRef, str] = field(default_factory=dict)


def resolve(
    objects: Mapping[ObjectRef, StateObject],
    environment: str,
    revision: Revision,
    *,
    quarantined: frozenset[ObjectRef] = frozenset(),
    holding: Holding | None = None,
) -> Resolution:
    """Resolves everything for the Environment called `environment`.

    `quarantined` objects are in the repo but not accepted: a reference to one says so.
    """
    world = build_world(objects, quarantined, holding or {})
    named = world.environments.get((environment,))
    if named is None:
        return _without_environment(world, environment, revision)
    launches = {path: catalog.compile_launch(e.spec) for path, e in world.versions.items()}
    demands = _demands(world, launches)
    findings = list(_world_findings(world, launches, demands))
    cases = _cases(world, named.spec, launches, demands)
    whole = [case for case in cases.values() if isinstance(case, Case)]
    findings += [
        found
        for case in whole
        if case.entry.spec.desired != "decommissioned"
        for check in INSTANCE_CHECKS
        for found in check(case)
    ]
    blocked = _blocked(cases, world, _culprits(findings))
    gpus = capacity.assign_gpus(world, demands)
    built = (_instance(c, gpus) for c in whole if instance_key(c.entry.ref) not in blocked)
    return Resolution(
        revision=revision,
        instances={found.key: found for found in built},
        nodes=frozenset(entry.name for entry in world.nodes.values()),
        guards=_guards(named.spec),
        environment=named.spec,
        problems=tuple(sorted({found.problem for found in findings})),
        blocked=blocked,
        blamed=_blamed(findings),
    )


def _without_environment(world: World, environment: str, revision: Revision) -> Resolution:
    known = sorted(entry.name for entry in world.environments.values())
    near = nearest(environment, known)
    hint = f"did you mean {near}?" if near else f"known: {', '.join(known)}"
    if not known:
        name = environment or "<name>"
        hint = f"no Environment is there: add environments/{name}.yaml, or look in another folder"
    what = f"Environment/{environment} does not exist" if environment else "no environment is named"
    path = f"environments/{environment}.yaml" if environment else "environments"
    ref = f"Environment/{environment}" if environment else ""
    problem = Problem(path, 0, 0, "unknown_environment", what, hint=hint, object=ref)
    keys = [instance_key(entry.ref) for entry in world.instances.values()]
    return Resolution(
        revision=revision,
        instances={},
        nodes=frozenset(entry.name for entry in world.nodes.values()),
        guards=Guards(),
        environment=None,
        problems=(problem,),
        blocked=dict.fromkeys(keys, str(problem)),
    )


def _demands(world: World, launches: Mapping[Path, Launch]) -> Mapping[Path, Demand]:
    """Demand by instance path."""
    demands = {}
    for path, entry in world.instances.items():
        at = (entry.spec.app, entry.spec.version)
        version = world.versions.get(at)
        lease = world.allocations.get((*path[:2], entry.spec.placement_intent.allocation))
        demands[path] = capacity.demand_of(
            entry,
            version.spec if version else None,
            launches[at].defaults if version else {},
            lease.spec if lease else None,
        )
    return demands


def _world_findings(
    world: World, launches: Mapping[Path, Launch], demands: Mapping[Path, Demand]
) -> Iterator[Finding]:
    yield from references.check_references(world)
    yield from catalog.check_runtime_kind(world)
    yield from catalog.check_launch_schema(world, launches)
    yield from catalog.check_promoted_images(world)
    yield from capacity.check_lease_gpus(world)
    yield from capacity.check_gpu_leased_once(world)
    yield from capacity.check_exclusive_lease(world)
    yield from capacity.check_leases_fit_node(world)
    yield from capacity.check_members_fit_lease(world, demands)
    yield from capacity.check_host_ports(world, demands)


def _culprits(findings: Iterable[Finding]) -> dict[ObjectRef, str]:
    """The first problem of each culprit, as a reason."""
    reasons: dict[ObjectRef, str] = {}
    for found in findings:
        reasons.setdefault(found.involved[0], f"{found.problem.code}: {found.problem.message}")
    return reasons


def _blamed(findings: Iterable[Finding]) -> dict[ObjectRef, str]:
    reasons: dict[ObjectRef, str] = {}
    for found in findings:
        problem = found.problem
        for ref in found.involved:
            reasons.setdefault(ref, f"{problem.object}: {problem.code}: {problem.message}")
    return reasons


def _cases(
    world: World,
    environment: EnvironmentSpec,
    launches: Mapping[Path, Launch],
    demands: Mapping[Path, Demand],
) -> dict[Path, Case | tuple[Entry[Part], ...]]:
    """By instance path: the Case, or what there is of its references when not all are there."""
    cases: dict[Path, Case | tuple[Entry[Part], ...]] = {}
    for path, entry in world.instances.items():
        spec, at = entry.spec, (entry.spec.app, entry.spec.version)
        lease = world.allocations.get((*path[:2], spec.placement_intent.allocation))
        needs = (
            world.tenants.get(path[:1]),
            world.projects.get(path[:2]),
            world.nodes.get((lease.spec.node,)) if lease else None,
            lease,
            world.apps.get(at[:1]),
            world.versions.get(at),
            world.promotions.get(at),
            world.entitlements.get((*path[:2], spec.app)),
        )
        tenant, project, node, lease, app, version, promotion, entitlement = needs
        if not (tenant and project and node and lease) or not (
            app and version and promotion and entitlement
        ):
            cases[path] = tuple(found for found in needs if found is not None)
            continue
        image = image_for(version.spec, node.spec.accelerator_family)
        cases[path] = Case(
            world=world,
            environment=environment,
            entry=entry,
            tenant=tenant,
            project=project,
            app=app,
            version=version,
            launch=launches[at],
            promotion=promotion,
            entitlement=entitlement,
            allocation=lease,
            node=node,
            demand=demands[path],
            image=image,
            standing=catalog.standing(world.registered.get(image or "", ()), path[:2]),
        )
    return cases


def _blocked(
    cases: Mapping[Path, Case | tuple[Entry[Part], ...]],
    world: World,
    culprits: Mapping[ObjectRef, str],
) -> dict[InstanceKey, str]:
    """Instances with a problem of their own, or that depend on something with one."""
    blocked: dict[InstanceKey, str] = {}
    for path, case in cases.items():
        entry = world.instances[path]
        if entry.spec.desired == "decommissioned":
            continue
        why = culprits.get(entry.ref)
        there = case.dependencies if isinstance(case, Case) else case
        if why is None and culprits:
            reasons = ((e.ref, culprits[e.ref]) for e in there if e.ref in culprits)
            why = next((f"{ref}: {reason}" for ref, reason in reasons), None)
        if why is not None:
            blocked[instance_key(entry.ref)] = why
    return blocked


def _instance(case: Case, gpus: Holding) -> Instance:
    spec, profile = case.version.spec, case.version.spec.runtime_profile
    key = instance_key(case.entry.ref)
    image = case.image or spec.artifact_ref
    uuids = gpus.get(key, ()) if case.entry.spec.desired != "decommissioned" else ()
    asked = case.demand
    (_, _, _, operating_mode), (_, _, _, control_plane_scope) = modes(case)
    return Instance(
        key=key,
        ref=case.entry.ref,
        org_id=case.tenant.spec.org_id,
        project_id=case.project.spec.project_id,
        app=case.entry.spec.app,
        version=case.entry.spec.version,
        artifact=case.launch.keys[image],
        node=case.node.name,
        run=case.entry.spec.desired,
        policy=Policy(
            operating_mode=operating_mode,
            control_plane_scope=control_plane_scope,
            runtime_backend=profile.kind,
            tenant_boundary_mode=case.environment.defaults.tenant_boundary_mode,
        ),
        registry_endpoint=_registry(case.environment),
        registry_plain_http=case.environment.registry.plain_http,
        command=profile.command,
        env=case.launch.env,
        ports=tuple(
            (port.name, port.container, asked.host_port if index == 0 else None)
            for index, port in enumerate(profile.ports)
        ),
        readiness=case.launch.health,
        stop_grace_s=profile.stop_grace_s,
        cpu_millis=asked.cpu_millis,
        memory_mib=asked.memory_mib,
        shm_mib=profile.shm_mib,
        gpu_vendor=_vendor(case, uuids),
        gpu_uuids=uuids,
        access=spec.access.instructions if spec.access else "",
        # What is deprecated takes no new instances; running ones go on.
        may_start="deprecated" not in (case.promotion.spec.state, case.standing),
    )


def _registry(environment: EnvironmentSpec) -> str:
    """host:port, or `layout:` and a folder, as `wire.Image.registry` takes it."""
    folder = environment.registry.layout_path
    return f"{LAYOUT_PREFIX}{folder}" if folder else environment.registry.endpoint


def _vendor(case: Case, uuids: tuple[str, ...]) -> Literal["nvidia", "amd"] | None:
    found = (gpu.vendor for gpu in case.node.spec.accelerators if gpu.uuid in uuids)
    return next(found, None)


def _guards(environment: EnvironmentSpec) -> Guards:
    bounds = environment.guards
    return Guards(bounds.removals_max, bounds.removals_max_percent)
