"""An instance on several nodes as one entry a member, so that nothing else has to know of it.

Rules:
- The first member is the instance itself and bears its name. Each further one is made from the same
  manifest: an entry `name.member` on its own allocation, with its own parameters over those of the
  instance. It has a demand, a node, a workload and a record like any instance.
- What is wrong with such an entry is told of the manifest, at the field it comes from.
- A member knows of no other but the first, so that one more or less disturbs none of the rest.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from reconciler.core.desired import StateObject
from reconciler.core.kinds.app_instance import AppInstanceSpec, Member, PlacementIntent
from reconciler.core.kinds.app_version import AppVersionSpec, MemberRole, RuntimeProfile
from reconciler.core.names import ObjectRef
from reconciler.core.problems import Problem

Path = tuple[str, ...]
KIND = "AppInstance"
NOT_INHERITED = frozenset(("host_port",))
"""Parameters of an instance that are for its first member alone."""
_ALLOCATION = "/spec/placement_intent/allocation"
_PARAMETERS = "/spec/parameters/"
_ABOUT_THE_PLACE = frozenset(("below_minimum", "exceeds_allocation", "host_port_taken"))
"""Problems of a parameter and an allocation together: told of the member whose allocation it is."""


class MemberSpec(AppInstanceSpec):
    """What a further member comes to. `index`: which of `members` it is, `own`: its parameters."""

    member: str
    role: str
    index: int
    own: frozenset[str]
    first_allocation: str
    first_host_port: Any = None


@dataclass(frozen=True)
class First:
    """Where the first member is: the address of its node, and the ports it has there by name."""

    role: str
    address: str
    ports: tuple[tuple[str, int], ...]


def further_members(found: StateObject) -> Iterator[StateObject]:
    """An instance's further members as objects of their own; they share its document."""
    spec = found.manifest.spec
    if not isinstance(spec, AppInstanceSpec):
        return
    for index, member in enumerate(spec.members):
        yield StateObject(
            ObjectRef(KIND, member_path(found.ref.path, member.name)),
            found.path,
            found.line,
            found.manifest.model_copy(update={"spec": _spec(found.ref.name, spec, index, member)}),
            found.document,
        )


def member_path(instance: Path, member: str) -> Path:
    return (*instance[:-1], f"{instance[-1]}.{member}")


def first_path(path: Path) -> Path:
    """Of a member, its instance; of an instance, itself."""
    return (*path[:-1], path[-1].partition(".")[0])


def _spec(instance: str, spec: AppInstanceSpec, index: int, member: Member) -> MemberSpec:
    inherited = {k: v for k, v in spec.parameters.items() if k not in NOT_INHERITED}
    former = f"{spec.moved_from}.{member.name}" if spec.moved_from else None
    return MemberSpec.model_construct(
        app=spec.app,
        version=spec.version,
        placement_intent=PlacementIntent.model_construct(allocation=member.allocation),
        requested=spec.requested,
        parameters={**inherited, **member.parameters},
        secrets=spec.secrets,
        desired=spec.desired,
        depends_on=(instance,),
        moved_from=former,
        suspend=spec.suspend,
        members=(),
        member=member.name,
        role=member.role,
        index=index,
        own=frozenset(member.parameters),
        first_allocation=spec.placement_intent.allocation,
        first_host_port=spec.parameters.get("host_port"),
    )


def version_of_role(spec: AppVersionSpec, role: MemberRole) -> AppVersionSpec:
    """The version as if it were for members of that role alone."""
    profile = spec.runtime_profile
    images: dict[str, object] = {}
    if role.image_ref is not None or role.variants:
        images = {"image_ref": role.image_ref, "variants": role.variants}
    changed = {
        "role": role.role,
        "members": (),
        "command": role.command,
        "env": role.env,
        "ports": role.ports,
        "resources": role.resources,
        "health": role.health,
        **images,
    }
    update = {"runtime_profile": profile.model_copy(update=changed), "access": None}
    return spec.model_copy(update=update)


def published(profile: RuntimeProfile) -> tuple[tuple[int, str, int], ...]:
    """(which of the ports, name, container port) of those that other members reach."""
    return tuple(
        (index, port.name, port.container)
        for index, port in enumerate(profile.ports)
        if port.expose == "members"
    )


def host_ports(profile: RuntimeProfile, host_port: int | None) -> tuple[tuple[str, int], ...]:
    """(name, port on the node) of the same: the container's own, unless a parameter says another,
    which is for the first port as it is elsewhere.
    """
    return tuple(
        (name, host_port if index == 0 and host_port is not None else container)
        for index, name, container in published(profile)
    )


def member_env(member: str, role: str, own: First | None, first: First | None) -> dict[str, str]:
    """What a member is told of itself and of the first one, which may be itself."""
    told = {"GPUAAS_MEMBER": member, "GPUAAS_ROLE": role}
    for name, where in (("SELF", own), (first.role if first else "", first)):
        for port, host in where.ports if where else ():
            assert where is not None
            told[f"GPUAAS_{_word(name)}_{_word(port)}"] = _at(where.address, host)
    return told


def _word(name: str) -> str:
    return name.upper().replace("-", "_")


def _at(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def usable_address(address: str) -> bool:
    """Whether others can reach a node there: no wildcard, no group, and readable at all."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return False
    return not (found.is_unspecified or found.is_multicast)


# --- what is said of them ------------------------------------------------------------------------


def is_member(ref: ObjectRef) -> bool:
    return ref.kind == KIND and "." in ref.path[-1]


def told_of_manifests(
    involved: Iterable[ObjectRef],
) -> tuple[ObjectRef, ...]:
    """The same refs, each further member's as that of its manifest; each once, in their order."""
    found = (ObjectRef(KIND, first_path(r.path)) if is_member(r) else r for r in involved)
    return tuple(dict.fromkeys(found))


def told_of_manifest(problem: Problem, spec: MemberSpec, manifest: ObjectRef) -> Problem:
    """A further member's problem as one of the manifest that it is declared in."""
    return replace(problem, object=str(manifest), pointer=_pointer(problem, spec))


def _pointer(problem: Problem, spec: MemberSpec) -> str:
    there, pointer = f"/spec/members/{spec.index}", problem.pointer
    if pointer == _ALLOCATION:
        return f"{there}/allocation"
    if not pointer.startswith(_PARAMETERS):
        return pointer
    name = pointer.removeprefix(_PARAMETERS).partition("/")[0]
    if name in spec.own:
        return f"{there}{pointer.removeprefix('/spec')}"
    return there if problem.code in _ABOUT_THE_PLACE else pointer


def members_of(specs: Mapping[Path, Any], path: Path) -> tuple[Path, ...]:
    """All of an instance, the first included, by the path of any of them."""
    first = first_path(path)
    entry = specs.get(first)
    members = entry.spec.members if entry is not None else ()
    return (first, *(member_path(first, member.name) for member in members))
