"""Do the platform's own documents agree: trust, identities, roles, releases, the fleet?

Rules: no instance is held back by a finding in here. What these documents decide is decided when
they are used, and there a document that can't be believed allows nothing. Projects named by a
tenant or a canary are no part of what their instances need: a missing one is told, no more.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from reconciler.core.authority.roles import MACHINE_PERMISSIONS, MACHINE_ROLES, fits_scope
from reconciler.core.checks.references import missing_reference
from reconciler.core.kinds.fleet_policy import FleetPolicySpec, NodeSelector
from reconciler.core.kinds.keys import Key, SignerKey, VerifierKey
from reconciler.core.kinds.node import NodeSpec
from reconciler.core.kinds.role_binding import RoleBindingSpec, Subject
from reconciler.core.kinds.trust_policy import ChannelRule, TrustPolicySpec
from reconciler.core.names import ObjectRef, nearest
from reconciler.core.parse import escape
from reconciler.core.times import parse_time_ms
from reconciler.core.world import Entry, Finding, Findings, Path, World, finding

READS = frozenset(
    (
        "FleetPolicy",
        "Identity",
        "Node",
        "PlatformRelease",
        "Project",
        "Promotion",
        "RoleBinding",
        "ServiceAccount",
        "Tenant",
        "TrustPolicy",
    )
)
"""The kinds that decide what is found in here."""
_OWN = "each needs its own"
_Places = defaultdict[object, list[tuple[Entry[Any], str]]]


def check_platform(world: World) -> Findings:
    """Everything between the documents of `platform/`, and what projects say of them."""
    for check in CHECKS:
        for found in check(world):
            yield replace(found, blocks=False)


# --- who is who ----------------------------------------------------------------------------------


def check_signers(world: World) -> Findings:
    """A signature, and an address that a forge vouches for, stands for one identity only."""
    ids, materials, emails = (_Places(list) for _ in range(3))
    for entry in world.identities.values():
        for index, key in enumerate(entry.spec.keys):
            ids[key.id].append((entry, f"/spec/keys/{index}/id"))
            materials[_material(key)].append((entry, f"/spec/keys/{index}/public_key"))
        for index, email in enumerate(entry.spec.emails):
            emails[email.lower()].append((entry, f"/spec/emails/{index}"))
        if entry.spec.service_account is not None:
            target = ObjectRef("ServiceAccount", tuple(entry.spec.service_account.split("/")))
            yield from _known(world, entry, target, "/spec/service_account")
    for key_id, other, entry, pointer in _again(ids):
        message = f"the key id {key_id} is also that of {other}"
        yield finding(entry, "key_id_shared", message, pointer, _OWN, (other,))
    for _, other, entry, pointer in _again(materials):
        message = f"the same key is also that of {other}"
        yield finding(entry, "key_shared", message, pointer, _OWN, (other,))
    for address, other, entry, pointer in _again(emails):
        message = f"the address {address} is also that of {other}"
        yield finding(entry, "email_shared", message, pointer, _OWN, (other,))


def _material(key: SignerKey) -> object:
    """What makes two keys the same, whatever their ids and comments."""
    return key.fingerprint or tuple(key.public_key.split()[:2])


def check_account_keys(world: World) -> Findings:
    """Two accounts with one key could each get a token as the other."""
    places = _Places(list)
    for entry in world.service_accounts.values():
        for index, key in enumerate(entry.spec.public_keys):
            places["".join(key.public_key.split())].append(
                (entry, f"/spec/public_keys/{index}/public_key")
            )
    for _, other, entry, pointer in _again(places):
        message = f"the same key is also that of {other}"
        yield finding(entry, "key_shared", message, pointer, _OWN, (other,))


def _again(places: _Places) -> Iterator[tuple[object, ObjectRef, Entry[Any], str]]:
    """What stands at several places: the value, who had it first, and each other place."""
    for value, ((first, _), *others) in sorted(places.items(), key=lambda item: str(item[0])):
        for entry, pointer in others:
            yield value, first.ref, entry, pointer


def check_key_terms(world: World) -> Findings:
    """A key is valid for some time at least."""
    for entry, pointer, key in _keys(world):
        first, last = _ms(key.valid_from), _ms(key.valid_until)
        if first is not None and last is not None and first >= last:
            message = f"key {key.id} is never valid: it ends at {key.valid_until}, before it begins"
            hint = "valid_until is after valid_from"
            yield finding(entry, "key_never_valid", message, f"{pointer}/valid_until", hint)


def _keys(world: World) -> Iterator[tuple[Entry[Any], str, Key]]:
    holders: tuple[tuple[Mapping[Path, Entry[Any]], str], ...] = (
        (world.trust_policies, "signing_keys"),
        (world.identities, "keys"),
        (world.service_accounts, "public_keys"),
    )
    for table, field in holders:
        for entry in table.values():
            for index, key in enumerate(getattr(entry.spec, field)):
                yield entry, f"/spec/{field}/{index}", key


def _ms(text: str | None) -> int | None:
    """None also for what is no day of the calendar; `checks.terms` says so."""
    try:
        return parse_time_ms(text) if text else None
    except (ValueError, OverflowError):
        return None


# --- who may do what -----------------------------------------------------------------------------


def check_bindings(world: World) -> Findings:
    """Subjects and scope exist, the role fits the scope, and a machine gets what machines may."""
    for entry in world.role_bindings.values():
        yield from _scope_is_known(world, entry)
        for index, subject in enumerate(entry.spec.subjects):
            yield from _subject_fits(world, entry, f"/spec/subjects/{index}", subject)


def _scope_is_known(world: World, entry: Entry[RoleBindingSpec]) -> Findings:
    scope, role = entry.spec.scope, entry.spec.role
    if scope.tenant:
        yield from _known(world, entry, ObjectRef("Tenant", scope.path), "/spec/scope/tenant")
    elif scope.project:
        yield from _known(world, entry, ObjectRef("Project", scope.path), "/spec/scope/project")
    if not fits_scope(role, scope.path):
        where = "platform: true" if role == "platform-admin" else "a tenant"
        message = f"the role {role} can't be held in {'/'.join(scope.path)} alone"
        hint = f"the scope of a {role} is {where}"
        yield finding(entry, "role_beyond_scope", message, "/spec/scope", hint)


def _subject_fits(
    world: World, entry: Entry[RoleBindingSpec], pointer: str, subject: Subject
) -> Findings:
    if subject.identity is not None:
        target = ObjectRef("Identity", (subject.identity,))
        yield from _known(world, entry, target, f"{pointer}/identity")
        found = world.identities.get(target.path)
        account = found.spec.service_account if found else None
        if found is None or found.spec.type != "service_account":
            return
    else:
        account = subject.service_account
        target = ObjectRef("ServiceAccount", tuple((account or "").split("/")))
        yield from _known(world, entry, target, f"{pointer}/service_account")
    yield from _machine_fits(entry, pointer, target, account)


def _machine_fits(
    entry: Entry[RoleBindingSpec], pointer: str, target: ObjectRef, account: str | None
) -> Findings:
    spec = entry.spec
    human: list[str] = sorted(set(spec.permissions or ()) - MACHINE_PERMISSIONS)
    if spec.role not in MACHINE_ROLES and spec.role != "custom":
        human = [spec.role]
    if human:
        message = f"{target} is a machine, and {', '.join(human)} needs a human"
        hint = f"roles for machines: {', '.join(sorted(MACHINE_ROLES))}"
        yield finding(entry, "role_needs_human", message, pointer, hint)
    home = tuple(account.split("/"))[:2] if account else spec.scope.path
    if spec.scope.path != home:
        message = f"{target} acts in its own project only"
        hint = f"write the scope as project: {'/'.join(home)}"
        yield finding(entry, "binding_outside_project", message, "/spec/scope", hint)


# --- what is trusted -----------------------------------------------------------------------------


def check_trust(world: World) -> Findings:
    """Keys and channels stand in one policy only, and channels can be fulfilled.

    Nothing of it brings back what a policy said before: a key that was revoked stays so, also
    where it was the last of its channel.
    """
    for found in _of_trust(world):
        yield replace(found, involved=())


def _of_trust(world: World) -> Findings:
    ids, channels = _Places(list), _Places(list)
    keys: dict[str, VerifierKey] = {}
    builders: set[str] = set()
    for entry in world.trust_policies.values():
        for index, key in enumerate(entry.spec.signing_keys):
            ids[key.id].append((entry, f"/spec/signing_keys/{index}/id"))
            keys.setdefault(key.id, key)
        for name in entry.spec.channels:
            channels[name].append((entry, f"/spec/channels/{escape(name)}"))
        builders.update(builder.id for builder in entry.spec.builders)
    for key_id, other, entry, pointer in _again(ids):
        message = f"the key id {key_id} is also one of {other}"
        yield finding(entry, "key_id_shared", message, pointer, _OWN, (other,))
    for channel, other, entry, pointer in _again(channels):
        message = f"the channel {channel} is also ruled by {other}"
        yield finding(entry, "channel_ruled_twice", message, pointer, "keep one", (other,))
    for entry in world.trust_policies.values():
        for name, rule in entry.spec.channels.items():
            yield from _channel(entry, f"/spec/channels/{escape(name)}", rule, keys, builders)


def _channel(
    entry: Entry[TrustPolicySpec],
    pointer: str,
    rule: ChannelRule,
    keys: Mapping[str, VerifierKey],
    builders: Iterable[str],
) -> Findings:
    name = pointer.rpartition("/")[2]
    told = [(f"{pointer}/signing_key", rule.signing_key)] if rule.signing_key else []
    listed = [(f"{pointer}/accepted_keys/{i}", id_) for i, id_ in enumerate(rule.accepted_keys)]
    for where, key_id in (*told, *listed):
        yield from _key_serves(entry, where, key_id, rule, keys)
    for index, builder in enumerate(rule.builders):
        if builder not in builders:
            message = f"no TrustPolicy accepts the builder {builder}"
            where = f"{pointer}/builders/{index}"
            yield finding(entry, "unknown_builder", message, where, _near(builder, builders))
    accepted = rule.accepted_keys or keys
    serving = [id_ for id_ in accepted if id_ in keys and _serves(keys[id_], rule)]
    if rule.signature_required and not serving:
        message = f"nothing can get into {name}: no {rule.signature_scheme} key is trusted for it"
        yield finding(entry, "channel_closed", message, pointer, "add a key to signing_keys")
    if rule.provenance_required and not builders:
        message = f"nothing can get into {name}: no builder is accepted"
        yield finding(entry, "channel_closed", message, pointer, "add a builder to builders")


def _serves(key: VerifierKey, rule: ChannelRule) -> bool:
    return key.revoked is None and key.scheme == rule.signature_scheme


def _key_serves(
    entry: Entry[TrustPolicySpec],
    pointer: str,
    key_id: str,
    rule: ChannelRule,
    keys: Mapping[str, VerifierKey],
) -> Findings:
    key = keys.get(key_id)
    if key is None:
        message = f"no TrustPolicy has a signing key {key_id}"
        yield finding(entry, "unknown_key", message, pointer, _near(key_id, keys))
    elif key.scheme != rule.signature_scheme:
        message = f"key {key_id} is {key.scheme}, the channel takes {rule.signature_scheme}"
        yield finding(entry, "key_of_another_scheme", message, pointer, "name another key")
    elif key.revoked is not None and pointer.endswith("/signing_key"):
        message = f"publishers are told to sign with {key_id}, which is revoked"
        yield finding(entry, "key_revoked", message, pointer, "name another key")


# --- releases and the fleet ----------------------------------------------------------------------


def check_releases(world: World) -> Findings:
    """A digest is one build of one component, and a release is for a channel that has rules."""
    seen: dict[str, tuple[Entry[Any], tuple[str, str]]] = {}
    ruled = {name for entry in world.trust_policies.values() for name in entry.spec.channels}
    for entry in world.releases.values():
        if world.trust_policies and entry.spec.channel not in ruled:
            message = f"no TrustPolicy says what the channel {entry.spec.channel} needs"
            hint = _near(entry.spec.channel, ruled)
            yield finding(entry, "unknown_channel", message, "/spec/channel", hint)
        for what, build in entry.spec.components.builds.items():
            first, other = seen.setdefault(build.digest, (entry, what))
            if other != what:
                component, platform = what
                message = f"this digest is also {' for '.join(other)} of {first.ref}"
                where = f"/spec/components/{component}/{escape(platform)}/digest"
                hint = "each build has its own"
                yield finding(entry, "digest_reused", message, where, hint, (first.ref,))


def check_fleet(world: World) -> Findings:
    """The wanted agents are there, each policy selects something, and no node has two."""
    owner: dict[str, Entry[FleetPolicySpec]] = {}
    for entry in world.fleet_policies.values():
        yield from _agent_is_there(world, entry)
        yield from _selects(world, entry)
        for node in world.nodes.values():
            if not selected(node, entry.spec.selector):
                continue
            first = owner.setdefault(node.name, entry)
            if first is not entry:
                message = f"{node.ref} also belongs to {first.ref}"
                hint = "narrow one of the two selectors"
                where = "/spec/selector"
                yield finding(entry, "fleet_policies_overlap", message, where, hint, (first.ref,))
                break


def selected(node: Entry[NodeSpec], selector: NodeSelector) -> bool:
    """Whether everything that the selector says holds for the node."""
    labels = node.object.manifest.metadata.labels
    return (
        (not selector.names or node.name in selector.names)
        and (not selector.pools or node.spec.pool in selector.pools)
        and (
            not selector.accelerator_families
            or node.spec.accelerator_family in selector.accelerator_families
        )
        and all(labels.get(key) == value for key, value in selector.labels.items())
    )


def _agent_is_there(world: World, entry: Entry[FleetPolicySpec]) -> Findings:
    if entry.spec.agent is None:
        return
    pointer, version = "/spec/agent/version", entry.spec.agent.version
    release = world.releases.get((version,))
    if release is None:
        yield from _known(world, entry, ObjectRef("PlatformRelease", (version,)), pointer)
    elif release.spec.state == "withdrawn":
        message = f"{release.ref} is withdrawn: {release.spec.reason}"
        yield finding(entry, "release_withdrawn", message, pointer, "name another release")
    elif release.spec.components.agent is None:
        message = f"{release.ref} has no agent"
        yield finding(entry, "release_without_agent", message, pointer, "name another release")


def _selects(world: World, entry: Entry[FleetPolicySpec]) -> Findings:
    """Each selector names nodes and pools that are there, and takes a node."""
    pools = {node.spec.pool for node in world.nodes.values()}
    waves = entry.spec.rollout.waves
    selectors = [("/spec/selector", entry.spec.selector)]
    selectors += [(f"/spec/rollout/waves/{i}/selector", w.selector) for i, w in enumerate(waves)]
    nodes = [node for node in world.nodes.values() if selected(node, entry.spec.selector)]
    for pointer, selector in selectors:
        misspelt = [*_named_nodes(world, entry, pointer, selector)]
        misspelt += _named_pools(entry, pointer, selector, pools)
        yield from misspelt
        if nodes and not misspelt and not any(selected(node, selector) for node in nodes):
            yield _selects_nothing(entry, pointer)
    if world.nodes and not nodes and entry.spec.selector != NodeSelector():
        yield _selects_nothing(entry, "/spec/selector")


def _named_nodes(
    world: World, entry: Entry[FleetPolicySpec], pointer: str, selector: NodeSelector
) -> Findings:
    for index, name in enumerate(selector.names):
        target = ObjectRef("Node", (name,))
        yield from _known(world, entry, target, f"{pointer}/names/{index}")


def _named_pools(
    entry: Entry[FleetPolicySpec], pointer: str, selector: NodeSelector, pools: set[str]
) -> Findings:
    for index, pool in enumerate(selector.pools):
        if pool not in pools:
            message, where = f"no node is in the pool {pool}", f"{pointer}/pools/{index}"
            yield finding(entry, "unknown_pool", message, where, _near(pool, pools))


def _selects_nothing(entry: Entry[FleetPolicySpec], pointer: str) -> Finding:
    message = "it selects no node of the fleet"
    if "waves" in pointer:
        message = "it selects no node of the policy"
    hint = "a node has to fit everything that a selector says"
    return finding(entry, "selects_no_node", message, pointer, hint)


# --- what projects are named in ------------------------------------------------------------------


def check_named_projects(world: World) -> Findings:
    """Projects attached to a tenant's shared runtimes, and those that get a canary."""
    for entry, pointer, path in _named_projects(world):
        target = ObjectRef("Project", path)
        if target not in world.quarantined:
            for found in _known(world, entry, target, pointer):
                yield replace(found, involved=())


def _named_projects(world: World) -> Iterator[tuple[Entry[Any], str, Path]]:
    for tenant in world.tenants.values():
        for index, name in enumerate(tenant.spec.attached_projects):
            yield tenant, f"/spec/attached_projects/{index}", (tenant.name, name)
    for promotion in world.promotions.values():
        named = promotion.spec.canary.projects if promotion.spec.canary else ()
        for index, project in enumerate(named):
            yield promotion, f"/spec/canary/projects/{index}", tuple(project.split("/"))


def _known(world: World, entry: Entry[Any], target: ObjectRef, pointer: str) -> Findings:
    if target.path not in world.table(target.kind):
        yield missing_reference(world, entry, target, pointer)


def _near(word: str, known: Iterable[str]) -> str:
    there = sorted(known)
    meant = nearest(word, there)
    if meant:
        return f"did you mean {meant}?"
    return f"there are: {', '.join(there[:10])}" if there else "there is none yet"


CHECKS: tuple[Callable[[World], Iterator[Finding]], ...] = (
    check_signers,
    check_account_keys,
    check_key_terms,
    check_bindings,
    check_trust,
    check_releases,
    check_fleet,
    check_named_projects,
)
