"""Can an instance be spread over several nodes the way it says? See `core.members`.

Rules:
- What is wrong with a version is told of the version, once; what is wrong with the members that an
  instance names, of the instance.
- A port for members is published at its node's address whether there are further members or not,
  so that the first of them does not restart what runs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from reconciler.core.checks.instances import Case, Check
from reconciler.core.kinds.app_version import AppVersionSpec
from reconciler.core.kinds.node import NodeSpec
from reconciler.core.members import (
    KIND,
    MemberSpec,
    first_path,
    is_member,
    published,
    told_of_manifest,
    usable_address,
)
from reconciler.core.members import told_of_manifests as refs_of_manifests
from reconciler.core.names import ObjectRef, nearest
from reconciler.core.world import Entry, Finding, Findings, World, finding

CARRIES_MEMBERS = frozenset(("launchable_oci",))
"""Runtime kinds whose engine can publish at the node's address, and at nothing else."""
_ROLES = "/spec/runtime_profile/members"
_MEMBERS = "/spec/members"


def check_roles(world: World) -> Findings:
    """The roles that versions offer for further members."""
    for entry in world.versions.values():
        profile = entry.spec.runtime_profile
        if profile.members or published(profile):
            yield from _roles(entry)


def check_addresses(world: World) -> Findings:
    """Addresses at which nodes are reached by members on others: real ones, each of one node."""
    known: dict[str, Entry[NodeSpec]] = {}
    for entry in world.nodes.values():
        address = entry.spec.address
        if address is None:
            continue
        if not usable_address(address):
            message = f"{address} is no address that another node could reach this one at"
            hint = "give the address of its interface on the network that the nodes share"
            yield finding(entry, "unusable_address", message, "/spec/address", hint)
            continue
        first = known.setdefault(address, entry)
        if first is not entry:
            message = f"{address} is the address of {first.ref} already"
            hint = "members on other nodes could not tell the two apart"
            yield finding(entry, "address_taken", message, "/spec/address", hint, (first.ref,))


def _roles(entry: Entry[AppVersionSpec]) -> Findings:
    profile = entry.spec.runtime_profile
    if profile.kind not in CARRIES_MEMBERS:
        message = f"runtime kind {profile.kind} carries no further members"
        hint = f"kinds that do: {', '.join(sorted(CARRIES_MEMBERS))}"
        yield finding(entry, "members_not_offered", message, "/spec/runtime_profile/kind", hint)
    if not profile.members:
        _, name, _ = published(profile)[0]
        index = next(i for i, port in enumerate(profile.ports) if port.name == name)
        message = f"port {name} is for other members, and the version has no roles for any"
        hint = "say which under runtime_profile.members, or expose it as private"
        pointer = f"/spec/runtime_profile/ports/{index}/expose"
        yield finding(entry, "no_member_roles", message, pointer, hint)
    taken = {profile.role}
    for index, role in enumerate(profile.members):
        if role.role in taken:
            message = f"there are two roles {role.role}"
            hint = "the first member's role counts too: it is runtime_profile.role"
            yield finding(entry, "role_twice", message, f"{_ROLES}/{index}/role", hint)
        taken.add(role.role)
        if role.members_min > role.members_max:
            message = f"at least {role.members_min} and at most {role.members_max} {role.role}"
            pointer = f"{_ROLES}/{index}/members_min"
            yield finding(entry, "bad_member_count", message, pointer, "no number is both")


def _named(case: Case) -> Findings:
    """Roles that exist, names that differ."""
    if not case.entry.spec.members:
        return
    profile = case.version.spec.runtime_profile
    roles, taken = {role.role for role in profile.members}, {profile.role}
    for index, member in enumerate(case.entry.spec.members):
        if member.role not in roles:
            near = nearest(member.role, roles)
            known = f"roles there are: {', '.join(sorted(roles))}" if roles else ""
            hint = f"did you mean {near}?" if near else known or "it runs on one node only"
            message = f"{case.version.ref} has no role {member.role} for further members"
            yield finding(case.entry, "unknown_role", message, f"{_MEMBERS}/{index}/role", hint)
        if member.name in taken:
            message = f"two members are called {member.name}"
            hint = "the first member goes by its role, the others by names of their own"
            yield finding(case.entry, "member_twice", message, f"{_MEMBERS}/{index}/name", hint)
        taken.add(member.name)


def _counted(case: Case) -> Findings:
    roles = case.version.spec.runtime_profile.members
    if not roles:
        return
    found = Counter(member.role for member in case.entry.spec.members)
    for role in roles:
        count = found[role.role]
        if role.members_min <= count <= role.members_max:
            continue
        few = count < role.members_min
        bound = f"at least {role.members_min}" if few else f"at most {role.members_max}"
        message = f"{count} of role {role.role}, {case.version.ref} takes {bound}"
        hint = "add some" if few else "take some out"
        yield finding(case.entry, "member_count", message, _MEMBERS, f"{hint} under spec.members")


def _reachable(case: Case) -> Findings:
    if case.setting.launch.publishes and case.node.spec.address is None:
        _, name, _ = published(case.version.spec.runtime_profile)[0]
        message = f"port {name} is for other members, and {case.node.ref} has no address for them"
        hint = f"say under spec.address of {case.node.ref} where other nodes reach it"
        pointer = "/spec/placement_intent/allocation"
        yield finding(case.entry, "node_without_address", message, pointer, hint)


SHARED_CHECKS: tuple[Check, ...] = (_reachable,)
"""As in `checks.instances`: one instance answers for all of its setting."""

OWN_CHECKS: tuple[Check, ...] = (_named, _counted)


def told_of_manifests(findings: Iterable[Finding], world: World) -> list[Finding]:
    """The findings, with those of further members told of the manifest that declares them."""
    return [_told(found, world) for found in findings]


def _told(found: Finding, world: World) -> Finding:
    if not any(map(is_member, found.involved)):
        return found
    culprit, problem = found.involved[0], found.problem
    if is_member(culprit):
        spec = world.instances[culprit.path].spec
        assert isinstance(spec, MemberSpec)
        manifest = ObjectRef(KIND, first_path(culprit.path))
        problem = told_of_manifest(problem, spec, manifest)
    return Finding(problem, refs_of_manifests(found.involved), found.blocks)
