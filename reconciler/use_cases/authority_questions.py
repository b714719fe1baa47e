"""Who somebody is to a state repo, what he may do there, and who may do what he may not.

Rules: pure. Answers are by the Identity, RoleBinding and ServiceAccount objects of one revision,
judged by what judges commits; nothing here decides anything.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any, get_args

from reconciler.core.authority.accounts import Subject, account_of
from reconciler.core.authority.answers import Answer, Held, Who
from reconciler.core.authority.facts import TRUST_KINDS, Actor, CommitFacts, Signature
from reconciler.core.authority.grants import Rights, rights_of
from reconciler.core.authority.judge import Refusal, judge, last_admin_left
from reconciler.core.authority.needs import needs
from reconciler.core.authority.roles import ALL_PERMISSIONS, roles_with
from reconciler.core.authority.signers import resolve_signer
from reconciler.core.changes import changes, unread
from reconciler.core.desired import Candidate, StateObject
from reconciler.core.kinds import KINDS
from reconciler.core.kinds.identity import Identity
from reconciler.core.kinds.keys import Key
from reconciler.core.kinds.role_binding import Permission
from reconciler.core.kinds.service_account import ServiceAccount
from reconciler.core.names import ObjectRef, Revision, nearest
from reconciler.core.parse import ParseLimits
from reconciler.core.problems import Problem
from reconciler.core.schema import SchemaSet
from reconciler.core.source import Snapshot
from reconciler.core.validate import validate
from reconciler.errors import Refused
from reconciler.use_cases.history import parse_target

Trust = Mapping[ObjectRef, StateObject]
Document = Mapping[str, Any] | None
VERBS = ("create", "update", "delete")
_LABEL = "gpuaas.dev/asked-about"
_UNKNOWN = Revision("0" * 40)


def trust_in(source: Snapshot, schemas: SchemaSet, limits: ParseLimits) -> Trust:
    """The objects of a revision that say who may do what; nothing else of it is read."""
    patterns = [KINDS[kind].pattern for kind in sorted(TRUST_KINDS)]
    files = tuple(f for f in source.files if any(p.fullmatch(f.path) for p in patterns))
    part = Snapshot(source.revision, files, source.author, source.subject, source.committed_at_ms)
    return trust_of(validate(part, schemas, limits).objects)


def trust_of(objects: Trust) -> Trust:
    return {ref: found for ref, found in objects.items() if ref.kind in TRUST_KINDS}


# --- who -----------------------------------------------------------------------------------------


def named_actor(text: str, trust: Trust) -> Actor:
    """An Identity's name, or a service account as tenant/project/name.

    Refused when nobody is called so, and for a forge, which acts for others alone.
    """
    if "/" in text:
        ref = ObjectRef("ServiceAccount", tuple(text.split("/")))
        if ref not in trust:
            raise _nobody(text, trust)
        return Actor("service_account", text)
    found = trust.get(ObjectRef("Identity", (text,)))
    if found is None or not isinstance(found.manifest, Identity):
        raise _nobody(text, trust)
    spec = found.manifest.spec
    if spec.type == "forge":
        hint = "ask for the person whom it names as the author"
        raise Refused("actor_is_forge", f"{text} is a forge: it acts for others", hint=hint)
    if spec.type == "service_account" and spec.service_account is None:
        raise Refused("no_such_identity", f"{text} stands for no service account", where=found.path)
    return Actor(spec.type, spec.service_account or text)


def _nobody(text: str, trust: Trust) -> Refused:
    known = ["/".join(ref.path) for ref in trust if ref.kind != "RoleBinding"]
    near = nearest(text, known)
    shown = ", ".join(sorted(known)[:10])
    hint = f"did you mean {near}?" if near else f"there are: {shown or 'none yet'}"
    return Refused("no_such_identity", f"nobody is called {text[:80]}", hint=hint)


def key_holder(key_id: str, trust: Trust, at_ms: int) -> Actor | Problem:
    """Whose signature one made with that key would be."""
    facts = CommitFacts(_UNKNOWN, (), "", "", at_ms, "as it would be made now")
    return resolve_signer(Signature("good", key_id), facts, trust, at_ms)


def keys_of(subject: str, trust: Trust) -> Mapping[str, frozenset[str]]:
    """Key id → how the public key may be written, white space aside, of who may have a token."""
    parsed = Subject.parse(subject)
    account = account_of(parsed, trust) if parsed is not None else None
    if account is None:
        return {}
    return {
        id_: frozenset(("".join(words), "".join(words[:2])))
        for id_, key in account.keys.items()
        for words in (key.public_key.split(),)
    }


def who_is(actor: Actor, trust: Trust, at_ms: int) -> Who:
    """All that is known of somebody who is there."""
    ref = ObjectRef("Identity", (actor.name,))
    if actor.type == "service_account":
        ref = ObjectRef("ServiceAccount", tuple(actor.name.split("/")))
    found = trust.get(ref)
    manifest = found.manifest if found is not None else None
    name, disabled, keys = "", False, tuple[Key, ...]()
    if isinstance(manifest, Identity):
        name, disabled, keys = (
            manifest.spec.display_name,
            manifest.spec.disabled,
            manifest.spec.keys,
        )
    elif isinstance(manifest, ServiceAccount):
        spec = manifest.spec
        name, disabled, keys = spec.display_name or "", spec.disabled, spec.public_keys
    holds = _held(rights_of(trust, at_ms), actor)
    return Who(actor, ref, name, disabled, keys, holds)


def _held(rights: Rights, actor: Actor) -> tuple[Held, ...]:
    """Grouped by where it holds and what gives it, widest first."""
    groups: dict[tuple[tuple[str, ...], str, int], set[str]] = defaultdict(set)
    for grant in rights.of(actor):
        groups[(grant.scope, grant.why, grant.until_ms)].add(grant.permission)
    return tuple(
        Held("/".join(scope) or "platform", why, tuple(sorted(those)), those == ALL_PERMISSIONS, ms)
        for (scope, why, ms), those in sorted(groups.items())
    )


# --- what ----------------------------------------------------------------------------------------


class Questions:
    """Asks of one trust, at one time."""

    def __init__(self, trust: Trust, at_ms: int) -> None:
        self._trust = trust
        self._rights = rights_of(trust, at_ms)
        self._everybody = [*_everybody(trust)]

    def holds(self, actor: Actor, permission: str, scope: tuple[str, ...]) -> Answer:
        """Whether somebody holds a permission; Refused for one that there is not."""
        asked = f"{permission} in {'/'.join(scope)}" if scope else f"{permission} on the platform"
        if permission not in ALL_PERMISSIONS:
            near = nearest(permission, ALL_PERMISSIONS)
            hint = f"did you mean {near}?" if near else f"such as {get_args(Permission)[0]}"
            message = f"there is no permission {permission[:80]}"
            raise Refused("no_such_permission", message, hint=hint)
        if self._rights.holds(actor, permission, scope):
            return Answer(asked, actor, None)
        hint = f"roles with {permission}: {', '.join(roles_with(permission))}"
        refusal = Refusal("change_not_allowed", f"{actor} does not hold {asked}", hint)
        may = self._able(lambda one: self._rights.holds(one, permission, scope))
        return Answer(asked, actor, refusal, may)

    def change(
        self, actor: Actor, ref: ObjectRef, before: Document, after: Document, asked: str
    ) -> Answer:
        def judged(one: Actor) -> Refusal | None:
            return judge(one, self._rights, self._trust, ref, before, after)

        refusal = judged(actor)
        if refusal is None:
            return Answer(asked, actor, None, ref=ref)
        return Answer(asked, actor, refusal, self._able(lambda one: judged(one) is None), ref)

    def verb(self, actor: Actor, verb: str, ref: ObjectRef, now: StateObject | None) -> Answer:
        """Whether somebody may create, update or delete an object; `now` is what is there.

        What its document would say can need more: that is what `difference` asks.
        """
        there: Document = now.document if now is not None else _least(ref)
        before: Document = None if verb == "create" else there
        after: Document = None if verb == "delete" else there
        if verb == "update" and there is not None:
            metadata = {**there.get("metadata", {}), "labels": {_LABEL: "yes"}}
            after = {**there, "metadata": metadata}
        return self.change(actor, ref, before, after, f"{verb} {ref}")

    def difference(self, actor: Actor, base: Candidate, head: Candidate) -> tuple[Answer, ...]:
        """An answer for each object that the head has otherwise than the base."""
        found = changes(
            base.objects,
            head.objects,
            unread_before=unread(base, head.objects),
            unread_after=unread(head, base.objects),
        )
        answers: list[Answer] = []
        for one in found:
            before, after = base.objects.get(one.ref), head.objects.get(one.ref)
            asked = f"{_verb(before, after)} {one.ref}"
            if one.kind in ("unreadable", "readable"):
                message = f"{one.ref} can't be read on both sides, so nobody can tell"
                refusal = Refusal("unread_change", message, "mend it: see gpuaas validate")
                answers.append(Answer(f"change {one.ref}", actor, refusal, ref=one.ref))
            elif needs(one.ref, _document(before), _document(after)):
                forms = _document(before), _document(after)
                answers.append(self.change(actor, one.ref, *forms, asked))
        return tuple(answers)

    def leaves_an_admin(self, later: Trust) -> bool:
        """Whether somebody could still let others in, if somebody can now."""
        at_ms = self._rights.at_ms
        return not last_admin_left(self._trust, at_ms) or last_admin_left(later, at_ms)

    def _able(self, may: Callable[[Actor], bool]) -> tuple[str, ...]:
        return tuple(str(one) for one in self._everybody if may(one))


def parse_object(text: str) -> ObjectRef:
    """Kind/scope/name, or tenant/project/name for an instance."""
    found = parse_target(text)
    assert isinstance(found, ObjectRef)
    return found


def _everybody(trust: Trust) -> Iterable[Actor]:
    for ref, found in sorted(trust.items()):
        manifest = found.manifest
        if isinstance(manifest, Identity) and manifest.spec.type == "user":
            yield Actor("user", ref.name)
        elif isinstance(manifest, ServiceAccount):
            yield Actor("service_account", "/".join(ref.path))


def _verb(before: StateObject | None, after: StateObject | None) -> str:
    if before is None:
        return "create"
    return "delete" if after is None else "change"


def _document(found: StateObject | None) -> Document:
    return found.document if found is not None else None


_LEAST: Mapping[str, Mapping[str, Any]] = {
    "Artifact": {"state": "published"},
    "Identity": {"type": "user", "display_name": "somebody"},
    "Promotion": {"state": "draft"},
    # It ended long ago: who may make one at all, whatever it gives.
    "RoleBinding": {
        "subjects": [{"identity": "somebody"}],
        "role": "viewer",
        "scope": {"platform": True},
        "until": "1970-01-01T00:00:00Z",
    },
    "ServiceAccount": {"roles": ["viewer"]},
}
"""What a manifest says at least, where that bears on what it needs."""


def _least(ref: ObjectRef) -> Mapping[str, Any]:
    return {
        "apiVersion": "gpuaas.dev/v1",
        "kind": ref.kind,
        "metadata": {"name": ref.name},
        "spec": {**_LEAST.get(ref.kind, {})},
    }
