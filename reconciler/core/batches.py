"""Instances that refer to the same things, looked up once for all of them.

Further members of instances (`core.members`) are instances here: their version is that of their
role, and they refer to where the first member is as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from reconciler.core.checks import blobs, capacity, catalog, members
from reconciler.core.checks.capacity import Demand
from reconciler.core.checks.catalog import Launch
from reconciler.core.checks.instances import (
    SHARED_CHECKS,
    Anchor,
    Case,
    ServiceImage,
    Setting,
    policy_of,
)
from reconciler.core.kinds.app_instance import AppInstanceSpec
from reconciler.core.kinds.app_version import AppVersionSpec
from reconciler.core.kinds.base import Part
from reconciler.core.kinds.environment import EnvironmentSpec
from reconciler.core.kinds.node import NodeSpec
from reconciler.core.kinds.topology import Service
from reconciler.core.members import MemberSpec, host_ports
from reconciler.core.topology import COMPOSE, has_own_image, image_of
from reconciler.core.world import Entry, Group, Path, World, likeness_of

Launches = Mapping[Path, Launch]
"""By the path of a version."""
_NODE, _VERSION = 2, 5
"""Where in `refers` they are."""
SHARED = (*SHARED_CHECKS, *members.SHARED_CHECKS, *blobs.SHARED_CHECKS)


@dataclass(frozen=True, slots=True)
class Batch:
    """Instances that refer to the same, and what that is.

    `refers` is all that `setting` is made from; without a setting, something is missing.
    `faulty`: one of the checks that they share finds something.
    """

    entries: Group[AppInstanceSpec]
    refers: tuple[Any, ...]
    there: tuple[Entry[Part], ...]
    setting: Setting | None
    faulty: bool

    @property
    def allocation(self) -> str:
        return self.entries[0].spec.placement_intent.allocation


def launches_of(world: World, before: World | None, known: Launches) -> Launches:
    """How each version is launched; `known` are those of the world before."""
    versions = before.versions if before else {}
    if world.versions is versions:
        return known
    forms: catalog.Forms = {}
    return {
        path: known[path]
        if versions.get(path) is entry
        else catalog.compile_launch(entry.spec, forms)
        for path, entry in world.versions.items()
    }


def refers_of(
    launches: Launches, world: World, environment: EnvironmentSpec, likeness: Path
) -> tuple[Any, ...]:
    """All that instances of one likeness depend on; None for what is not there."""
    tenant, project, app, version, allocation, *further = likeness
    owner, at = (tenant, project), (app, version)
    lease = world.allocations.get((*owner, allocation))
    node = world.nodes.get((lease.spec.node,)) if lease else None
    wanted = world.versions.get(at)
    spec = wanted.spec if wanted else None
    first: tuple[Any, ...] = ()
    if further:
        role, anchor = further
        spec = _of_role(launches, wanted, role)[0]
        first_lease = world.allocations.get((*owner, anchor))
        first = (first_lease, world.nodes.get((first_lease.spec.node,)) if first_lease else None)
    image = image_of(spec, None, node.spec.accelerator_family) if spec and node else None
    return (
        world.tenants.get((tenant,)),
        world.projects.get(owner),
        node,
        lease,
        world.apps.get((app,)),
        wanted,
        world.promotions.get(at),
        world.entitlements.get((*owner, app)),
        *first,
        environment,
        world.registered.get(image or "", ()),
        *(world.registered.get(ref, ()) for ref in _blobs_of(wanted)),
        *(world.registered.get(ref or "", ()) for _, ref in _services_of(wanted, node)),
    )


def _blobs_of(version: Entry[AppVersionSpec] | None) -> tuple[str, ...]:
    """Alike for members of every role."""
    found = version.spec.runtime_profile.blobs if version is not None else ()
    return tuple([blob.ref for blob in found])


def _services_of(
    version: Entry[AppVersionSpec] | None, node: Entry[NodeSpec] | None
) -> tuple[tuple[Service, str | None], ...]:
    """The services with images of their own, and what each would run on that node."""
    if version is None or node is None or version.spec.runtime_profile.kind != COMPOSE:
        return ()
    topology = version.spec.runtime_profile.topology
    family = node.spec.accelerator_family
    written = topology.services if topology is not None else ()
    return tuple(
        [(one, image_of(version.spec, one, family)) for one in written if has_own_image(one)]
    )


def _of_role(
    launches: Launches, version: Entry[AppVersionSpec] | None, role: str
) -> tuple[AppVersionSpec | None, Launch | None]:
    """The version as it is for further members of that role; a role that it has not gives none."""
    found = launches[version.path].roles.get(role) if version is not None else None
    return (found.spec, found.launch) if found is not None else (None, None)


def batch_of(
    launches: Launches, world: World, entries: Group[AppInstanceSpec], refers: tuple[Any, ...]
) -> Batch:
    """Entries that refer to the same, with what that is and whether it bears them all."""
    services = _services_of(refers[_VERSION], refers[_NODE])
    further = len(_blobs_of(refers[_VERSION])) + len(services)
    rest, registered = refers[: len(refers) - further], refers[len(refers) - further :]
    *needs, environment, registrations = rest
    there = tuple(found for found in needs if found is not None)
    if len(there) < len(needs):
        return Batch(entries, refers, there, None, faulty=False)
    tenant, project, node, lease, app, version, promotion, entitlement, *first = needs
    launch, anchor = launches[version.path], None
    if first:
        anchor = Anchor(version.spec, launch, first[1])
        spec, found = _of_role(launches, version, likeness_of(entries[0])[5])
        if spec is None or found is None:
            return Batch(entries, refers, there, None, faulty=False)
        version, launch = Entry(version.object, spec), found
    image = image_of(version.spec, None, node.spec.accelerator_family)
    channel = catalog.channel_of(environment, promotion.spec.state)
    standings = tuple(catalog.standing(found, project.path, channel) for found in registered)
    setting = Setting(
        environment=environment,
        tenant=tenant,
        project=project,
        app=app,
        version=version,
        launch=launch,
        promotion=promotion,
        entitlement=entitlement,
        allocation=lease,
        node=node,
        image=image,
        standing=catalog.standing(registrations, project.path, channel),
        policy=policy_of(environment, entitlement.spec, version.spec, None),
        first=anchor,
        blobs=standings[: further - len(services)],
        services=tuple(
            ServiceImage(*one, found)
            for one, found in zip(services, standings[further - len(services) :], strict=True)
        ),
    )
    one = Case(world, setting, entries[0], Demand(0, 0, 0, None))
    faulty = any(True for check in SHARED for _ in check(one))
    return Batch(entries, refers, there, setting, faulty)


def demand_in(launches: Launches, batch: Batch, entry: Entry[AppInstanceSpec]) -> Demand:
    """What one of them asks of its allocation and node."""
    _, _, _, lease, _, version, *_ = batch.refers
    spec, launch = version.spec if version else None, None
    if version is not None:
        launch = launches[version.path]
        if isinstance(entry.spec, MemberSpec):
            spec, launch = _of_role(launches, version, entry.spec.role)
    demand = capacity.demand_of(
        entry,
        spec,
        launch.form.defaults if launch else {},
        lease.spec if lease else None,
        *([launch.least] if launch else ()),
    )
    if launch is None or spec is None or not launch.publishes:
        return demand
    ports = host_ports(spec.runtime_profile, demand.host_port)
    others = tuple(port for _, port in ports if port != demand.host_port)
    return demand._replace(published=others)
