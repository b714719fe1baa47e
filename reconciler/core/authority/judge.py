"""Whether somebody may make a change.

Rules:
- He holds every permission that the change needs, where it needs it; a machine in its own project,
  and nothing that is for humans.
- Nobody gives what he does not hold himself, as widely and for as long. Given is what somebody
  newly holds, at once or once he is there and enabled; and to whoever newly controls a name, by a
  key, an address, or because it is enabled, all that the name holds. A forge speaks for everybody.
- Each object is judged by itself, and what a binding gives to an identity counts in full even where
  that stands for a machine: so that two changes in one commit come to no more than they do singly.
- A trust object that can't be understood gives everything.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from pydantic import ValidationError

from reconciler.core.authority.facts import Actor
from reconciler.core.authority.grants import (
    EVERYTHING,
    FOREVER_MS,
    Held,
    Links,
    Principal,
    Rights,
    Scope,
    Trust,
    account_ref,
    end_ms,
    held_of,
    held_until,
    is_root,
    links_of,
    principal_of,
)
from reconciler.core.authority.needs import Need, needs
from reconciler.core.authority.public_key import ssh_public_key
from reconciler.core.authority.roles import roles_with
from reconciler.core.desired import StateObject
from reconciler.core.kinds.identity import Identity, IdentitySpec
from reconciler.core.kinds.keys import SignerKey, VerifierKey
from reconciler.core.kinds.role_binding import RoleBinding, RoleBindingSpec
from reconciler.core.kinds.service_account import ServiceAccount, ServiceAccountSpec
from reconciler.core.names import ObjectRef
from reconciler.core.times import parse_time_ms, time_text

IAM_EDIT = "platform.iam.edit"
EVERYBODY: Principal = ("forge", "")
ANYBODY: Principal = ("", "")
"""Whoever a manifest may mean that can't be understood."""
_MODELS: Mapping[str, type[Identity | RoleBinding | ServiceAccount]] = {
    model.__name__: model for model in (Identity, RoleBinding, ServiceAccount)
}
_TrustSpec = IdentitySpec | RoleBindingSpec | ServiceAccountSpec


@dataclass(frozen=True)
class Refusal:
    """Why a change counts as not made; `code` is stable."""

    code: str
    message: str
    hint: str = ""


def judge(
    actor: Actor,
    rights: Rights,
    trust: Trust,
    ref: ObjectRef,
    before: Mapping[str, Any] | None,
    after: Mapping[str, Any] | None,
) -> Refusal | None:
    """None when `actor` may make `after` of `before`; None stands for no object.

    `rights` are those of `trust`, which is as it was before the commit. Manifests are plain JSON,
    perhaps invalid ones.
    """
    if is_root(actor):
        return None
    wanted = needs(ref, before, after)
    for need in wanted:
        refusal = _lacks(actor, rights, ref, need)
        if refusal is not None:
            return refusal
    if wanted and after is not None and ref.kind in _MODELS:
        return _gives_too_much(actor, rights, trust, ref, after)
    return None


# --- what a change needs -------------------------------------------------------------------------


def _lacks(actor: Actor, rights: Rights, ref: ObjectRef, need: Need) -> Refusal | None:
    if actor.type == "service_account":
        home = tuple(actor.name.split("/")[:2])
        if need.human_only:
            message = f"{actor} may not {need.words} {ref}: {need.permission} is for humans"
            return Refusal("needs_human", message, _who_may(need.permission))
        if need.scope[:2] != home:
            message = f"{actor} may not {need.words} {ref}: it acts in {'/'.join(home)} only"
            return Refusal("outside_own_project", message, "a human has to make this change")
    if rights.holds(actor, need.permission, need.scope):
        return None
    message = (
        f"{actor} may not {need.words} {ref}: {need.permission} is missing {_where(need.scope)}"
    )
    return Refusal("change_not_allowed", message, _who_may(need.permission))


def _where(scope: Scope) -> str:
    return f"in {'/'.join(scope)}" if scope else "on the platform"


def _who_may(permission: str) -> str:
    return f"roles with {permission}: {', '.join(roles_with(permission))}"


# --- what a change gives -------------------------------------------------------------------------


def _gives_too_much(
    actor: Actor, rights: Rights, trust: Trust, ref: ObjectRef, after: Mapping[str, Any]
) -> Refusal | None:
    if rights.holds_everything(actor):
        return None
    changed = _understood(ref, after)
    links = rights.links if rights.links.trust is trust else links_of(trust)
    missing: list[_Missing] = []
    for principal, held in _given(links, rights.at_ms, ref, changed):
        for (permission, scope), until_ms in held.items():
            own_ms = rights.until_ms(actor, permission, scope)
            if own_ms < until_ms:
                missing.append(_Missing(principal, permission, scope, own_ms))
    return _told(actor, rights.at_ms, missing) if missing else None


class _Missing(NamedTuple):
    principal: Principal
    permission: str
    scope: Scope
    own_ms: int


def _told(actor: Actor, at_ms: int, missing: list[_Missing]) -> Refusal:
    first = min(missing)
    others = len({(one.permission, one.scope) for one in missing}) - 1
    held = f"only until {time_text(first.own_ms)}" if first.own_ms > at_ms else "not"
    more = f", nor {others} more" if others else ""
    message = (
        f"{actor} may not give {first.permission} {_where(first.scope)} to"
        f" {_called(first.principal)}: {actor} holds it {held} there{more}"
    )
    hint = f"somebody who holds all of it has to make this change; {_who_may(first.permission)}"
    return Refusal("more_than_own_rights", message, hint)


def _called(principal: Principal) -> str:
    if principal == EVERYBODY:
        return "a forge, which speaks for everybody"
    if principal == ANYBODY:
        return "whoever this invalid manifest may mean"
    kind = "Identity" if principal[0] == "user" else "ServiceAccount"
    return f"{kind}/{principal[1]}"


def _understood(ref: ObjectRef, document: Mapping[str, Any]) -> StateObject | None:
    """None for an invalid manifest."""
    try:
        manifest = _MODELS[ref.kind].model_validate(document)
    except ValidationError:
        return None
    return StateObject(ref, "", 1, manifest, document)


def _given(
    links: Links, at_ms: int, ref: ObjectRef, changed: StateObject | None
) -> Iterator[tuple[Principal, Held]]:
    """What whom a change gives; everything, when it can't be understood."""
    if changed is None:
        yield ANYBODY, EVERYTHING
        return
    before, after = _spec(links.trust.get(ref)), _spec(changed)
    controlled = {token.principal for token in _new_controls(ref, before, after)}
    if EVERYBODY in controlled:
        yield EVERYBODY, EVERYTHING
        return
    concerned = _concerned(ref, before) | _concerned(ref, after)
    later = _with(links, concerned, changed)
    for principal in sorted(concerned):
        held = held_of(later, principal, at_ms, latent=True)
        if principal not in controlled:
            had = held_of(links, principal, at_ms, latent=True)
            now = held_of(later, principal, at_ms)
            held = {**_gained(now, held_of(links, principal, at_ms)), **_gained(held, had)}
        yield principal, held


def _gained(now: Held, before: Held) -> Held:
    """What is held more widely or for longer than before."""
    return {
        (permission, scope): until_ms
        for (permission, scope), until_ms in now.items()
        if held_until(before, permission, scope) < until_ms
    }


def _spec(found: StateObject | None) -> _TrustSpec | None:
    spec = found.manifest.spec if found is not None else None
    return spec if isinstance(spec, _TrustSpec) else None


def _concerned(ref: ObjectRef, spec: _TrustSpec | None) -> set[Principal]:
    """Whose rights a trust object bears on.

    A binding that names an identity counts in full: the machine it stands for needs no look.
    """
    if isinstance(spec, ServiceAccountSpec):
        return {_account(ref)}
    if isinstance(spec, IdentitySpec):
        return {("user", ref.name)} | _stood_for(spec)
    return {principal_of(subject) for subject in spec.subjects} if spec is not None else set()


def _account(ref: ObjectRef) -> Principal:
    return "service_account", "/".join(ref.path)


def _stood_for(spec: IdentitySpec | None) -> set[Principal]:
    return {("service_account", spec.service_account)} if spec and spec.service_account else set()


def _with(links: Links, concerned: set[Principal], changed: StateObject) -> Links:
    """The part of trust that decides what they hold, with an object changed."""
    refs: set[ObjectRef] = set()
    for type_, name in concerned:
        names = (name,) if type_ == "user" else links.stand_ins.get(name, ())
        if type_ == "service_account":
            refs.add(account_ref(name))
            refs.update(links.bindings.get((type_, name), ()))
        for one in names:
            refs.add(ObjectRef("Identity", (one,)))
            refs.update(links.bindings.get(("user", one), ()))
    part = {ref: links.trust[ref] for ref in refs if ref in links.trust}
    return links_of({**part, changed.ref: changed})


# --- who controls a name -------------------------------------------------------------------------


class _Control(NamedTuple):
    """Something that lets whoever has it act as `principal`, for a time."""

    principal: Principal
    by: tuple[str, ...]
    from_ms: int = 0
    until_ms: int = FOREVER_MS

    def covers(self, other: _Control) -> bool:
        return (
            (self.principal, self.by) == (other.principal, other.by)
            and self.from_ms <= other.from_ms
            and self.until_ms >= other.until_ms
        )


def _new_controls(
    ref: ObjectRef, before: _TrustSpec | None, after: _TrustSpec | None
) -> list[_Control]:
    """Of a key listed twice, revoked and not, it is taken that it did not count, and now does."""
    revoked = _revoked(before)
    old = [one for one in _controls(ref, before) if one.by not in revoked]
    return [one for one in _controls(ref, after) if not any(had.covers(one) for had in old)]


def _controls(ref: ObjectRef, spec: _TrustSpec | None) -> Iterator[_Control]:
    if spec is None or isinstance(spec, RoleBindingSpec) or spec.disabled:
        return
    if isinstance(spec, ServiceAccountSpec):
        principal = _account(ref)
        yield from _by_keys(principal, spec.public_keys)
    else:
        principal = _acts_as(ref, spec)
        yield from _by_keys(principal, spec.keys)
        for address in spec.emails:
            yield _Control(principal, ("address", address.casefold()))
        if spec.vouches_for_author:
            yield _Control(principal, ("vouches",))
    # Without keys of its own it can still be acted as, by a key of who else stands for it.
    if principal != EVERYBODY:
        yield _Control(principal, ("enabled",))


def _acts_as(ref: ObjectRef, spec: IdentitySpec) -> Principal:
    if spec.type == "forge":
        return EVERYBODY
    return next(iter(_stood_for(spec)), ("user", ref.name))


def _by_keys(
    principal: Principal, keys: tuple[SignerKey, ...] | tuple[VerifierKey, ...]
) -> Iterator[_Control]:
    for key in keys:
        if key.revoked is None:
            from_ms, until_ms = _start_ms(key.valid_from), end_ms(key.valid_until)
            yield _Control(principal, _material(key), from_ms, until_ms)


def _revoked(spec: _TrustSpec | None) -> set[tuple[str, ...]]:
    """Keys that are revoked in one entry at least, whatever other entries say."""
    if spec is None or isinstance(spec, RoleBindingSpec):
        return set()
    keys = spec.public_keys if isinstance(spec, ServiceAccountSpec) else spec.keys
    return {_material(key) for key in keys if key.revoked is not None}


def _start_ms(text: str | None) -> int:
    """A time when something begins; what is no day of the calendar never comes."""
    if text is None:
        return 0
    try:
        return parse_time_ms(text)
    except (ValueError, OverflowError):
        return FOREVER_MS


def _material(key: SignerKey | VerifierKey) -> tuple[str, ...]:
    """What makes two keys the same, whatever they are called."""
    if isinstance(key, VerifierKey):
        return key.scheme, "".join(key.public_key.split())
    return *_signs_as(key), "".join(key.public_key.split()) if key.type == "openpgp" else ""


def _signs_as(key: SignerKey) -> tuple[str, str]:
    """What a signature tells of its key."""
    if key.type == "openpgp":
        return key.type, key.fingerprint or ""
    known = ssh_public_key(key.public_key)
    return key.type, known.key_id if known is not None else key.public_key


# --- the last one who can let others in ----------------------------------------------------------


def last_admin_left(trust: Trust, at_ms: int) -> bool:
    """Whether somebody is left who can change who may do what: an enabled user who holds
    platform.iam.edit on the platform, and has a key of his own that is valid now.
    """
    rights = Rights(links_of(trust), at_ms)
    for ref, key in _unmistakable(trust):
        valid = _start_ms(key.valid_from) <= at_ms < end_ms(key.valid_until)
        if valid and rights.holds(Actor("user", ref.name), IAM_EDIT, ()):
            return True
    return False


def _unmistakable(trust: Trust) -> Iterator[tuple[ObjectRef, SignerKey]]:
    """The unrevoked keys of users that no other entry shares its key or id with: by those that one
    does, nobody can tell who signed.
    """
    entries = [
        (ref, spec, key)
        for ref, found in trust.items()
        if isinstance(spec := _spec(found), IdentitySpec)
        for key in spec.keys
    ]
    times = Counter(_signs_as(key) for _, _, key in entries)
    named = Counter(key_id for key_id, _ in {(key.id, _signs_as(key)) for _, _, key in entries})
    for ref, spec, key in entries:
        alone = times[_signs_as(key)] == named[key.id] == 1
        if alone and spec.type == "user" and key.revoked is None:
            yield ref, key
