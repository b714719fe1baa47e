"""From a revision to a later one, commit by commit: who changed what, and what of it counts.

Rules:
- Every commit on the way is signed by somebody known, or nothing of the later revision counts.
- Trust as it stands before a commit judges that commit. What it grants counts from the next one on.
- The date of a commit can't be earlier than that of what it was built on, whatever it says.
- An operator's admin keys count while nobody else is there who could let others in.
- A version or artifact goes one step at a time (`core.promotion_steps`), whoever moves it, and what
  a version runs stays while it is offered. The first commit of a repo may begin anywhere: what it
  brings has its history elsewhere.
- Walked in one go or in several, the same changes are refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pydantic import ValidationError

from reconciler.core.authority.documents import Documents, Unread, digest_of
from reconciler.core.authority.facts import (
    TRUST_KINDS,
    Actor,
    ChainStep,
    CommitFacts,
    RefusedChange,
    Signature,
    SignedChange,
    TouchedFile,
    Walked,
)
from reconciler.core.authority.grants import is_root, rights_of
from reconciler.core.authority.in_place import refused_in_place, stood_before
from reconciler.core.authority.instead import last_candidate, under_authority
from reconciler.core.authority.judge import Refusal, judge, last_admin_left
from reconciler.core.authority.merges import Brought, May, Sides
from reconciler.core.authority.signers import Signers, commit_problem
from reconciler.core.authority.standing import UNREAD, Author, Change, Standing
from reconciler.core.desired import StateObject
from reconciler.core.forms import to_stored
from reconciler.core.kinds.keys import SignerKey
from reconciler.core.names import ObjectRef, Revision
from reconciler.core.parse import ParseLimits
from reconciler.core.printable import printable
from reconciler.core.problems import Problem
from reconciler.core.promotion_steps import CHANGED_IN_PLACE, ILLEGAL_STEP, illegal
from reconciler.core.records import AcceptedObject

_REASON_LENGTH_MAX = 300
_TRAILER = re.compile(r"(approves|reason):[ \t]*(\S.*)", re.IGNORECASE)
_NOBODYS = frozenset((UNREAD, ILLEGAL_STEP, CHANGED_IN_PLACE))
"""Refused whoever made it, not because he may not: it hides nothing that another would pass on."""
_LAST_ADMIN = "somebody else with platform.iam.edit and a key of his own has to be there first"


@dataclass(frozen=True)
class Start:
    """What counts at the revision that a walk starts from; all empty before the first one.

    `admin_keys` are OpenSSH lines. `at_ms` is the time of that revision as its walk had it.
    """

    objects: Mapping[str, AcceptedObject]
    refused: Mapping[str, RefusedChange]
    admin_keys: tuple[str, ...]
    at_ms: int

    @classmethod
    def at(
        cls,
        revision: Revision,
        objects: Mapping[ObjectRef, StateObject],
        at_ms: int = 0,
        admin_keys: tuple[str, ...] = (),
    ) -> Start:
        """With everything that a revision has as accepted."""
        stored = {str(ref): to_stored(found, revision) for ref, found in objects.items()}
        return cls(stored, {}, admin_keys, at_ms)


@dataclass(frozen=True)
class WalkLimits:
    """`ahead_max_ms` is how far a commit's date may be ahead of our clock."""

    parse: ParseLimits
    ahead_max_ms: int


def walk(
    steps: Sequence[ChainStep],
    signatures: Mapping[Revision, Signature],
    start: Start,
    now_ms: int,
    limits: WalkLimits,
    head: Revision | None = None,
) -> Walked:
    """What the commits of `steps`, oldest first, come to. `head` is told where there are none."""
    walking = _Walking(signatures, start, now_ms, limits)
    reached, commits = head or Revision(""), 0
    changes: list[SignedChange] = []
    for step in steps:
        actors = walking.actors(step)
        reached, commits = step.facts.revision, commits + 1 + len(step.side)
        if isinstance(actors, Problem):
            return Walked(head or reached, rejection=actors, commits=commits, at_ms=start.at_ms)
        changes += walking.take(step, actors)
    return Walked(
        head=head or reached,
        refused=dict(sorted(walking.standing.refused.items())),
        changes=tuple(changes),
        commits=commits,
        at_ms=walking.at_ms,
    )


@dataclass(frozen=True)
class _Verdict:
    """Who answers for a change, and why it does not count, if so."""

    change: Change
    actor: Actor
    refusal: Refusal | None = None


@dataclass
class _Walking:
    """One walk, at the commit it has got to."""

    signatures: Mapping[Revision, Signature]
    start: Start
    now_ms: int
    limits: WalkLimits
    at_ms: int = field(init=False)
    begins: bool = field(init=False, default=False)
    """Whether the commit it has got to is the first one of the repo."""
    standing: Standing = field(init=False)
    signers: Signers = field(init=False)

    def __post_init__(self) -> None:
        self.at_ms = self.start.at_ms
        reader = Documents(self.limits.parse)
        self.standing = Standing(self.start.objects, dict(self.start.refused), reader)
        self.signers = Signers(self.standing.trust)

    # --- who --------------------------------------------------------------------------------------

    def actors(self, step: ChainStep) -> Mapping[Revision, Actor] | Problem:
        """Who made a commit, and those that it brings in; else what is wrong with the first one."""
        found: dict[Revision, Actor] = {}
        for facts in (*(side.facts for side in step.side), step.facts):
            actor = self._actor(facts)
            if isinstance(actor, Problem):
                return actor
            found[facts.revision] = actor
        return found

    def _actor(self, facts: CommitFacts) -> Actor | Problem:
        if facts.committed_at_ms > self.now_ms + self.limits.ahead_max_ms:
            hint = "set the clock where it was made, and rewrite it; or wait, and push again"
            return commit_problem(facts, "commit_from_future", "has a date in the future", hint)
        signature = self.signatures.get(facts.revision, Signature("none"))
        at_ms = max(self.at_ms, facts.committed_at_ms)
        keys: tuple[str, ...] = ()
        if self.signers.is_admin_key(signature, self.start.admin_keys):
            keys = () if last_admin_left(self.standing.trust, at_ms) else self.start.admin_keys
        return self.signers.resolve(signature, facts, at_ms, keys)

    # --- what -------------------------------------------------------------------------------------

    def take(self, step: ChainStep, actors: Mapping[Revision, Actor]) -> list[SignedChange]:
        """Judges what a commit changed, and brings what counts up to it."""
        self.at_ms = max(self.at_ms, step.facts.committed_at_ms)
        self.begins = step.onto is None
        actor = actors[step.facts.revision]
        trailers = _trailers(step.facts.message, by_himself=not actor.via)
        sides = Sides(step, actors, self.standing, self._judging) if step.side else None
        changes = self.standing.take(step.touched, Author(step.facts.revision, str(actor)))
        has_brought = sides is not None and bool(sides.brought)
        if not changes and not trailers.approves and not has_brought:
            return []
        may = self._in_place(sides.may if sides is not None else self._judging(()), changes, sides)
        judging = _Judging(self.standing, may, actor, sides)
        brought, own = map(judging.not_on_refused, judging.verdicts(changes))
        own = judging.approved(own, trailers.approves)
        verdicts = _with_an_admin([*brought, *own], self.standing, self.at_ms)
        verdicts = [*_on_what_is_left(verdicts)]
        for verdict in verdicts:
            self._settle(verdict, step.facts)
        self._trust_moves_on([one.change for one in verdicts if one.refusal is None])
        return [self._told(verdict, step.facts, trailers.reason) for verdict in verdicts]

    def _judging(self, changes: Iterable[Change]) -> May:
        """By trust as it stands, or would with these changes."""
        made = [*changes]
        trust = self.standing.trust_after(made) if made else self.standing.trust
        rights = rights_of(trust, self.at_ms)

        def may(
            actor: Actor, ref: ObjectRef, before: str | None, after: str | None
        ) -> Refusal | None:
            old, new = _document(before), _document(after)
            refusal = None if is_root(actor) else judge(actor, rights, trust, ref, old, new)
            return refusal if refusal is not None or self.begins else _illegal(ref, old, new)

        return may

    def _in_place(self, may: May, changes: Sequence[Change], sides: Sides | None) -> May:
        """The same, and what a version runs by its Promotion as it was before this commit."""
        if self.begins:
            return may
        merged = {ref: sides.stood(ref)[1] for ref in sides.brought} if sides is not None else {}
        stood = stood_before(self.standing, changes, merged)
        return lambda actor, ref, before, after: (
            may(actor, ref, before, after) or refused_in_place(ref, before, after, stood)
        )

    def _settle(self, verdict: _Verdict, facts: CommitFacts) -> None:
        change, refusal = verdict.change, verdict.refusal
        if refusal is None:
            self.standing.allow(change)
            return
        refused = RefusedChange(
            str(change.ref),
            change.path,
            facts.revision,
            str(verdict.actor),
            refusal.code,
            refusal.message,
            refusal.hint,
            change.before,
            change.after,
        )
        self.standing.refuse(refused)

    def _trust_moves_on(self, changes: list[Change]) -> None:
        if any(change.ref.kind in TRUST_KINDS for change in changes):
            self.standing.trust = self.standing.trust_after(changes)
            self.signers = Signers(self.standing.trust, self.signers.fingerprints)

    def _told(self, verdict: _Verdict, facts: CommitFacts, reason: str) -> SignedChange:
        change = verdict.change
        return SignedChange(
            ref=change.ref,
            path=change.path,
            revision=facts.revision,
            actor=verdict.actor,
            at_ms=self.at_ms,
            reason=reason,
            before=digest_of(change.before),
            after=digest_of(change.after),
            refusal=verdict.refusal.code if verdict.refusal else "",
        )


@dataclass(frozen=True)
class _Judging:
    """Judges a commit by trust as it stands before it."""

    standing: Standing
    may: May
    actor: Actor
    sides: Sides | None

    def verdicts(self, changes: Sequence[Change]) -> tuple[list[_Verdict], list[_Verdict]]:
        """On what a merge brings in, and on what its signer changed of that."""
        if self.sides is None:
            return [], [self._own(change) for change in changes]
        by_ref = {change.ref: change for change in changes}
        brought, own = [], list[_Verdict]()
        for ref, one in sorted(self.sides.brought.items()):
            verdict, rest = self._of_side(self.sides, ref, one, by_ref.get(ref))
            brought += [verdict] if verdict is not None else []
            own += [rest] if rest is not None else []
            by_ref.pop(ref, None)
        own += [self._of_merge(self.sides, change) for change in by_ref.values()]
        return brought, sorted(own, key=lambda verdict: verdict.change.ref)

    def _own(self, change: Change) -> _Verdict:
        refusal = self.may(self.actor, change.ref, change.before, change.after)
        return _Verdict(change, self.actor, refusal)

    def _of_merge(self, sides: Sides, change: Change) -> _Verdict:
        forbidden = sides.forbidden(change)
        return self._own(change) if forbidden is None else _Verdict(change, *forbidden)

    def _of_side(
        self, sides: Sides, ref: ObjectRef, one: Brought, change: Change | None
    ) -> tuple[_Verdict | None, _Verdict | None]:
        """On what a branch made of an object, and on what the merge has instead."""
        found, counts = sides.stood(ref)
        after = change.after if change is not None else self.standing.form(ref)[0]
        made = Change(ref, one.path, counts, one.form, found)
        passed_on = one.by is not None and not one.conflict and after == one.form
        if one.by is None or one.form == counts or not (one.counts(ref) or passed_on):
            return None, self._decided(sides, one, change) if change is not None else None
        if after == one.form and change is not None:
            return None, self._passed_on(sides, one, change)
        if after == one.form:
            return _Verdict(made, one.by), None  # It stood here, refused to somebody else.
        mine = replace(change or made, before=one.form, after=after)
        earlier = self.standing.refused.get(str(ref)) if change is None else None
        if earlier is not None:
            refusal = Refusal(earlier.code, earlier.message, earlier.hint)
            return _Verdict(made, one.by), _Verdict(mine, self.actor, refusal)
        own = self._of_merge(sides, mine)
        if own.refusal is not None:
            return _Verdict(made, one.by), own
        whole = self._own(change) if change is not None else None
        if whole is None or whole.refusal is None:
            return None, whole
        kept = whole.refusal if ref.kind in TRUST_KINDS else None
        return _Verdict(made, one.by), replace(own, refusal=kept)

    def _passed_on(self, sides: Sides, one: Brought, change: Change) -> _Verdict:
        forbidden = sides.forbidden(change)
        if forbidden is not None:
            return _Verdict(change, *forbidden)
        own = self._own(change)
        return own if own.refusal is None or one.by is None else _Verdict(change, one.by)

    def _decided(self, sides: Sides, one: Brought, change: Change) -> _Verdict:
        """Where the line has changed it as well: of trust, against both."""
        verdict = self._of_merge(sides, change)
        if verdict.refusal is None and one.by is not None and change.ref.kind in TRUST_KINDS:
            refusal = self.may(self.actor, change.ref, one.form, change.after)
            return replace(verdict, refusal=refusal)
        return verdict

    def not_on_refused(self, verdicts: list[_Verdict]) -> list[_Verdict]:
        """Whoever edits what was refused to another sees his own lines alone in the difference: so
        that makes nothing of the other's good.
        """
        return [self._unless_on_refused(one) for one in verdicts]

    def _unless_on_refused(self, verdict: _Verdict) -> _Verdict:
        change = verdict.change
        earlier = self.standing.refused.get(str(change.ref))
        if verdict.refusal is not None or earlier is None or earlier.code in _NOBODYS:
            return verdict
        if earlier.actor == str(verdict.actor):
            return verdict  # Who may by now knows what he wrote.
        if change.after in (None, change.before) or change.found in (None, change.before):
            return verdict
        message = (
            f"{verdict.actor} changed {change.ref} on top of what {earlier.actor} may not change"
        )
        hint = (
            f"take back commit {earlier.revision[:12]} there first, in a commit of its own; or sign"
            f" for all of it, with a last line `Approves: {change.ref}` in the message"
        )
        return replace(verdict, refusal=Refusal("keeps_refused_change", message, hint))

    def approved(self, verdicts: list[_Verdict], subjects: Sequence[str]) -> list[_Verdict]:
        """With what the commit approves: a change of its own, or one that was refused earlier."""
        if not subjects:
            return verdicts
        by_subject = {str(one.change.ref): one for one in verdicts}
        for subject in subjects:
            own = by_subject.get(subject)
            change = own.change if own is not None else self.standing.approvable(subject)
            if change is None or (own is not None and own.refusal is None):
                continue
            if self.may(self.actor, change.ref, change.before, change.after) is None:
                by_subject[subject] = _Verdict(change, self.actor)
        return list(by_subject.values())


def _with_an_admin(verdicts: list[_Verdict], standing: Standing, at_ms: int) -> list[_Verdict]:
    """The same, unless that leaves nobody who could let others in: then trust is not narrowed."""

    def left(given: list[_Verdict]) -> bool:
        made = [one.change for one in given if one.refusal is None]
        return last_admin_left(standing.trust_after(made), at_ms)

    if not any(_may_narrow(one.change) and one.refusal is None for one in verdicts):
        return verdicts
    if left(verdicts) or not last_admin_left(standing.trust, at_ms):
        return verdicts
    kept = [_kept(one) if one.change.before is not None else one for one in verdicts]
    return kept if left(kept) else [_kept(one) for one in verdicts]


def _may_narrow(change: Change) -> bool:
    """A new Identity may have the key of another, which then is nobody's any more."""
    known = change.ref.kind == "Identity" or change.before is not None
    return known and change.ref.kind in TRUST_KINDS


def _kept(verdict: _Verdict) -> _Verdict:
    if verdict.change.ref.kind not in TRUST_KINDS or verdict.refusal is not None:
        return verdict
    message = f"{verdict.actor} may not change {verdict.change.ref}: no admin would be left"
    return replace(verdict, refusal=Refusal("last_admin", message, _LAST_ADMIN))


def _on_what_is_left(verdicts: Sequence[_Verdict]) -> Iterator[_Verdict]:
    """What a merge makes of what it brings in, which may have been refused itself by now."""
    kept: dict[ObjectRef, str | None] = {}
    for one in verdicts:
        ref = one.change.ref
        if ref in kept:
            yield replace(one, change=replace(one.change, before=kept[ref]))
            continue
        if one.refusal is not None:
            kept[ref] = one.change.before
        yield one


@dataclass(frozen=True)
class _Trailers:
    reason: str
    approves: tuple[str, ...]


def _trailers(message: str, *, by_himself: bool) -> _Trailers:
    """What the last paragraph of a message says; the reason is the subject where it says none.

    A forge makes a merge's message of what others wrote: nobody has approved anything by that.
    """
    subject, _, body = message.strip().partition("\n")
    paragraph = re.split(r"\n[ \t]*\n", body.strip())[-1] if body.strip() else ""
    matches = (_TRAILER.fullmatch(line.strip()) for line in paragraph.splitlines())
    found = [match for match in matches if match is not None]
    said = [match[2] for match in found if match[1].lower() == "reason"]
    approving = found if by_himself else []
    approves = (match[2].strip() for match in approving if match[1].lower() == "approves")
    reason = printable(said[0] if said else subject)[:_REASON_LENGTH_MAX]
    return _Trailers(reason, tuple(dict.fromkeys(approves)))


def _illegal(
    ref: ObjectRef, before: Mapping[str, Any] | None, after: Mapping[str, Any] | None
) -> Refusal | None:
    found = illegal(ref, before, after)
    return Refusal(ILLEGAL_STEP, found.message, found.hint) if found is not None else None


def _document(text: str | None) -> Any:
    return json.loads(text) if text is not None else None


# --- keys ----------------------------------------------------------------------------------------


def openpgp_keys(start: Start, steps: Sequence[ChainStep], limits: WalkLimits) -> tuple[str, ...]:
    """All armored keys that an Identity has or had, at the start or in one of the commits: enough
    to check every signature with. Which of them may be believed is another question.
    """
    found = {key for text in _first_identities(start) for key in _armored(text)}
    reader = Documents(limits.parse)
    for step in steps:
        for touched in (step.touched, *(side.touched for side in step.side)):
            for text in _identities(touched, reader):
                found.update(_armored(text))
    return tuple(sorted(found))


def _first_identities(start: Start) -> Iterator[str]:
    for subject, stored in start.objects.items():
        if subject.startswith("Identity/"):
            yield stored.document_json
    for subject, refused in start.refused.items():
        if subject.startswith("Identity/") and refused.form_json is not None:
            yield refused.form_json


def _identities(touched: Sequence[TouchedFile], reader: Documents) -> Iterator[str]:
    for file in touched:
        if not file.path.startswith("platform/iam/"):
            continue
        contents = reader.contents(file.path, file.after)
        if not isinstance(contents, Unread):
            yield from (text for ref, text in contents.items() if ref.kind == "Identity")


def _armored(text: str) -> Iterator[str]:
    spec = json.loads(text).get("spec")
    keys = spec.get("keys") if isinstance(spec, dict) else None
    for one in keys if isinstance(keys, list) else ():
        try:
            key = SignerKey.model_validate(one)
        except ValidationError:
            continue
        if key.type == "openpgp":
            yield key.public_key


__all__ = [
    "Start",
    "WalkLimits",
    "last_candidate",
    "openpgp_keys",
    "under_authority",
    "walk",
]
