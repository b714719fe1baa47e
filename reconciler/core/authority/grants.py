"""Who may do what where, from the Identity, RoleBinding and ServiceAccount objects of one revision.

Rules:
- A permission held at a scope is held everywhere below it.
- A machine holds what machines may, in its own project, whatever else a binding says. A forge holds
  nothing: it vouches for others.
- Who is disabled, or not there, holds nothing; nor does anybody by a binding that ended, or whose
  end is no day of the calendar.
- What would be held if everybody were there and enabled (`latent`) is told apart from what is.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from reconciler.core.authority.facts import Actor
from reconciler.core.authority.roles import (
    ALL_PERMISSIONS,
    MACHINE_PERMISSIONS,
    PLATFORM_ONLY,
    fits_scope,
    permissions_of,
)
from reconciler.core.desired import StateObject
from reconciler.core.kinds.identity import Identity, IdentitySpec
from reconciler.core.kinds.role_binding import RoleBinding, RoleBindingSpec, Subject
from reconciler.core.kinds.service_account import ServiceAccount, ServiceAccountSpec
from reconciler.core.names import ObjectRef
from reconciler.core.times import parse_time_ms

Trust = Mapping[ObjectRef, StateObject]
Scope = tuple[str, ...]
"""() is the platform, then (tenant,) and (tenant, project)."""
Principal = tuple[str, str]
"""("user", an Identity's name) or ("service_account", tenant/project/name)."""
Held = Mapping[tuple[str, Scope], int]
"""(permission, scope) → until when."""

FOREVER_MS = 2**63 - 1
ROOT = Actor("user", "admin key")
"""Who signs with a key that the operator gave, before anybody else is known: may do everything."""


@dataclass(frozen=True)
class Grant:
    """A permission, where and until when it is held, and what gives it."""

    permission: str
    scope: Scope
    why: str
    until_ms: int = FOREVER_MS


@dataclass(frozen=True)
class Links:
    """Trust, looked up by whom it is about: each principal's bindings, and the names of the
    identities that stand for a service account.
    """

    trust: Trust
    bindings: Mapping[Principal, tuple[ObjectRef, ...]]
    stand_ins: Mapping[str, tuple[str, ...]]

    def identity(self, name: str) -> IdentitySpec | None:
        found = self.trust.get(ObjectRef("Identity", (name,)))
        return found.manifest.spec if found and isinstance(found.manifest, Identity) else None

    def account(self, name: str) -> ServiceAccountSpec | None:
        found = self.trust.get(account_ref(name))
        return found.manifest.spec if found and isinstance(found.manifest, ServiceAccount) else None

    def binding(self, ref: ObjectRef) -> RoleBindingSpec | None:
        found = self.trust.get(ref)
        return found.manifest.spec if found and isinstance(found.manifest, RoleBinding) else None


def account_ref(name: str) -> ObjectRef:
    """The ServiceAccount called `tenant/project/name`."""
    return ObjectRef("ServiceAccount", tuple(name.split("/")))


def principal_of(subject: Subject) -> Principal:
    """Whom a binding names."""
    if subject.identity is not None:
        return "user", subject.identity
    return "service_account", subject.service_account or ""


def links_of(trust: Trust) -> Links:
    bindings: dict[Principal, set[ObjectRef]] = defaultdict(set)
    stand_ins: dict[str, set[str]] = defaultdict(set)
    for ref, found in trust.items():
        manifest = found.manifest
        if isinstance(manifest, RoleBinding):
            for subject in manifest.spec.subjects:
                bindings[principal_of(subject)].add(ref)
        elif isinstance(manifest, Identity) and manifest.spec.service_account is not None:
            stand_ins[manifest.spec.service_account].add(ref.name)
    return Links(
        trust,
        {principal: tuple(sorted(refs)) for principal, refs in bindings.items()},
        {name: tuple(sorted(names)) for name, names in stand_ins.items()},
    )


def grants_of(
    links: Links, principal: Principal, at_ms: int, *, latent: bool = False
) -> Iterator[Grant]:
    """What a principal holds at that time.

    `latent`: also what waits for an object that is disabled or not there yet. What is bound to an
    identity is then told in full, even while it stands for a machine.
    """
    type_, name = principal
    if type_ == "service_account":
        yield from _machine_grants(links, name, at_ms, latent)
    elif type_ == "user":
        found = links.identity(name)
        if latent or (found is not None and found.type == "user" and not found.disabled):
            yield from _bound(links, principal, at_ms)


def _machine_grants(links: Links, name: str, at_ms: int, latent: bool) -> Iterator[Grant]:
    account, ref = links.account(name), account_ref(name)
    home = ref.path[:2]
    if not latent and (account is None or account.disabled):
        return
    for role in account.roles if account is not None else ():
        for permission in sorted(permissions_of(role)):
            yield from _clipped(Grant(permission, home, f"{ref} ({role})"), home)
    for grant in _bound(links, ("service_account", name), at_ms):
        yield from _clipped(grant, home)
    for stand_in in links.stand_ins.get(name, ()):
        identity = links.identity(stand_in)
        if latent or (identity is not None and not identity.disabled):
            for grant in _bound(links, ("user", stand_in), at_ms):
                yield from _clipped(grant, home)


def _clipped(grant: Grant, home: Scope) -> Iterator[Grant]:
    """As much of a grant as a machine of that project can have."""
    everywhere = grant.permission in PLATFORM_ONLY
    if grant.permission in MACHINE_PERMISSIONS and not everywhere and covers(grant.scope, home):
        yield Grant(grant.permission, home, grant.why, grant.until_ms)


def _bound(links: Links, principal: Principal, at_ms: int) -> Iterator[Grant]:
    for ref in links.bindings.get(principal, ()):
        spec = links.binding(ref)
        if spec is not None:
            yield from _granted(ref, spec, at_ms)


def _granted(ref: ObjectRef, spec: RoleBindingSpec, at_ms: int) -> Iterator[Grant]:
    until_ms, scope = end_ms(spec.until), spec.scope.path
    if until_ms <= at_ms or not fits_scope(spec.role, scope):
        return
    for permission in sorted(permissions_of(spec.role, spec.permissions)):
        if not scope or permission not in PLATFORM_ONLY:
            yield Grant(permission, scope, f"{ref} ({spec.role})", until_ms)


def end_ms(text: str | None) -> int:
    """A time when something ends; what is no day of the calendar has ended."""
    if text is None:
        return FOREVER_MS
    try:
        return parse_time_ms(text)
    except (ValueError, OverflowError):
        return 0


def covers(scope: Scope, other: Scope) -> bool:
    """Whether what is held at `scope` is held at `other`."""
    return other[: len(scope)] == scope


def held_of(
    links: Links, principal: Principal, at_ms: int, *, latent: bool = False
) -> Mapping[tuple[str, Scope], int]:
    """The same as `grants_of`, each by its longest end."""
    held: dict[tuple[str, Scope], int] = {}
    for grant in grants_of(links, principal, at_ms, latent=latent):
        key = grant.permission, grant.scope
        held[key] = max(held.get(key, 0), grant.until_ms)
    return held


def held_until(held: Held, permission: str, scope: Scope) -> int:
    """Until when a permission is held at a scope, or at a wider one; 0 when it is not."""
    until_ms = held.get((permission, ()), 0)
    for length in range(1, len(scope) + 1):
        until_ms = max(until_ms, held.get((permission, scope[:length]), 0))
    return until_ms


EVERYTHING: Held = {(permission, ()): FOREVER_MS for permission in sorted(ALL_PERMISSIONS)}


@dataclass(frozen=True)
class Rights:
    """What everybody may do by one trust, at `at_ms`. What was looked up is remembered."""

    links: Links
    at_ms: int
    _known: dict[Principal, Held] = field(
        init=False, repr=False, compare=False, default_factory=dict
    )

    def holds(self, actor: Actor, permission: str, scope: Scope) -> bool:
        return self.until_ms(actor, permission, scope) > self.at_ms

    def until_ms(self, actor: Actor, permission: str, scope: Scope) -> int:
        """Until when; 0 when it is not held at all."""
        return held_until(self._held(actor), permission, scope)

    def holds_everything(self, actor: Actor) -> bool:
        """Everywhere and without an end."""
        held = self._held(actor)
        return held is EVERYTHING or EVERYTHING.items() <= held.items()

    def of(self, actor: Actor) -> tuple[Grant, ...]:
        """All that it holds, for people to read."""
        if is_root(actor):
            why = "a key that the operator gave"
            return tuple(Grant(permission, scope, why) for permission, scope in EVERYTHING)
        return tuple(grants_of(self.links, (actor.type, actor.name), self.at_ms))

    def _held(self, actor: Actor) -> Held:
        if is_root(actor):
            return EVERYTHING
        principal = actor.type, actor.name
        known = self._known.get(principal)
        if known is None:
            known = self._known[principal] = held_of(self.links, principal, self.at_ms)
        return known


def is_root(actor: Actor) -> bool:
    # No Identity can be called so: names have no spaces.
    return (actor.type, actor.name) == (ROOT.type, ROOT.name)


def rights_of(trust: Trust, at_ms: int) -> Rights:
    """`trust` are the Identity, RoleBinding and ServiceAccount objects; others don't matter."""
    return Rights(links_of(trust), at_ms)
