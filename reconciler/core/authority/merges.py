"""What a merge brings in beside the line, and by whose commits.

Rules:
- A branch is judged like the line: each of its commits by what stands where it was made. Who lost
  a right on a branch has it neither further up nor in the merge; who got one there has it after.
- What somebody who may changed on a branch counts, whether or not the merge's tree still has it:
  to leave it out is a change as well, and the merge's signer answers for it.
- Where the line has changed the same object, to take one of the two is a decision. Nobody else
  makes it; but what was deleted of what trust is made of is not brought back by it.
- What a merge on the branch took in from the line is nothing that the branch has made.
- No merge makes good what a machine did on a branch and may not do.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

from reconciler.core.authority.documents import Unread
from reconciler.core.authority.facts import TRUST_KINDS, Actor, ChainStep, SideCommit
from reconciler.core.authority.in_place import refused_in_place
from reconciler.core.authority.judge import Refusal
from reconciler.core.authority.standing import UNREAD, Change, Standing
from reconciler.core.names import ObjectRef, Revision

May = Callable[[Actor, ObjectRef, str | None, str | None], Refusal | None]
"""Why somebody may not make the second form of the first."""
JudgingWith = Callable[[Iterable[Change]], May]
"""Judges by trust with these changes."""


@dataclass(frozen=True, eq=False)
class Brought:
    """What counts of an object on a branch, and who made it so; nobody, where all is refused.

    `conflict`: it was made of another form than the line has. `taken`: perhaps from the line.
    `merged`: by a merge. `prior` is what it was made of, where that was made on a branch as well.
    """

    path: str
    form: str | None
    by: Actor | None
    conflict: bool
    taken: bool = False
    merged: bool = False
    prior: Brought | None = field(default=None, repr=False)

    @property
    def is_by_hand(self) -> bool:
        human = self.by is not None and self.by.type != "service_account"
        return human and not self.merged and not self.conflict

    def counts(self, ref: ObjectRef) -> bool:
        """Whether it counts whatever the merge's tree has."""
        if self.by is None or self.taken:
            return False
        return not self.conflict or (self.form is None and ref.kind in TRUST_KINDS)

    def is_from(self, other: Brought) -> bool:
        one: Brought | None = self
        while one is not None and one is not other:
            one = one.prior
        return one is other


@dataclass(frozen=True)
class _Commit:
    """A commit beside the line. `changed` is each object's path, and its form before and after."""

    facts: SideCommit
    actor: Actor
    changed: Mapping[ObjectRef, tuple[str, str | None, str | None]]
    unread: frozenset[str]


@dataclass
class _Branch:
    """What a branch has come to at one of its commits."""

    objects: dict[ObjectRef, Brought] = field(default_factory=dict)
    narrowed: May | None = None
    """Judges by trust as the branch has it; None until it is asked for."""

    def copy(self) -> _Branch:
        return _Branch(dict(self.objects), self.narrowed)

    def put(self, ref: ObjectRef, brought: Brought) -> None:
        self.objects[ref] = brought
        if ref.kind in TRUST_KINDS:
            self.narrowed = None


_Joined = Mapping[ObjectRef, Brought | None]
"""What a branch had, of the objects of which it has something else by a merge."""


@dataclass(frozen=True)
class Sides:
    """The commits that a merge brings in. To be made before `standing` takes the merge's own."""

    step: ChainStep
    actors: Mapping[Revision, Actor]
    standing: Standing
    judging: JudgingWith
    _found: dict[ObjectRef, tuple[str | None, str | None]] = field(default_factory=dict)
    _merged: _Branch = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_merged", self._walked())

    @property
    def brought(self) -> Mapping[ObjectRef, Brought]:
        return self._merged.objects

    def stood(self, ref: ObjectRef) -> tuple[str | None, str | None]:
        """The form that the repo had before the merge, and the one that counted."""
        if ref not in self._found:
            self._found[ref] = self.standing.form(ref)
        return self._found[ref]

    def may(
        self, actor: Actor, ref: ObjectRef, before: str | None, after: str | None
    ) -> Refusal | None:
        """As before the merge, and not if what it brings in took the right away."""
        return self._may(self._merged)(actor, ref, before, after)

    def forbidden(self, change: Change) -> tuple[Actor, Refusal] | None:
        """A machine's part in a change that it may not have made."""
        made = self.brought.get(change.ref)
        if made is not None and made.form == change.after and made.is_by_hand:
            return None  # Somebody wrote it himself since.
        for one in self._machines_at_path.get(change.path, ()):
            message = f"{one.actor} left {change.path} unreadable{_where(one)}"
            return one.actor, Refusal(UNREAD, message, "merge a branch without that commit")
        for one in self._machines_at.get(change.ref, ()):
            _, before, after = one.changed[change.ref]
            refusal = self._before(one.actor, change.ref, before, after)
            if refusal is not None:
                message = f"{refusal.message}{_where(one)}"
                return one.actor, Refusal(refusal.code, message, refusal.hint)
        return None

    # --- along the branches -----------------------------------------------------------------------

    def _walked(self) -> _Branch:
        """What all branches come to where they meet in the merge."""
        at: dict[Revision, _Branch] = {}
        uses = Counter(one for side in self.step.side for one in set(side.facts.parents))
        uses.update({*self.step.facts.parents})
        for revision, one in self._commits.items():
            parents = one.facts.facts.parents
            first = _taken(at, uses, parents[0]) if parents else _Branch()
            others = [_taken(at, uses, parent) for parent in parents[1:]]
            self._take(first, one, _join(first, others))
            at[revision] = first
        merged = _Branch()
        onto = self.step.onto
        _join(merged, [at[one] for one in self.step.facts.parents if one != onto and one in at])
        return merged

    def _take(self, branch: _Branch, one: _Commit, joined: _Joined) -> None:
        """Brings a branch up to its next commit, of which all but that is done which it joins."""
        parents = one.facts.facts.parents
        wanted = {ref: (path, new) for ref, (path, _, new) in one.changed.items()}
        for ref, ours in joined.items():
            kept = ours.form if ours is not None else self.stood(ref)[1]
            wanted.setdefault(ref, (branch.objects[ref].path, kept))
        if not wanted:
            return
        may = self._may(branch)
        taken = any(parent not in self._commits for parent in parents[1:])

        def branch_stood(ref: ObjectRef) -> str | None:
            there = branch.objects.get(ref)
            return there.form if there is not None else self.stood(ref)[1]

        made: dict[ObjectRef, Brought] = {}
        for ref, (path, form) in wanted.items():
            prior, stood = branch.objects.get(ref), self.stood(ref)
            now = prior.form if prior is not None else stood[1]
            if form == now:
                continue
            old = one.changed[ref][1] if ref in one.changed else now
            conflict = prior.conflict if prior is not None else old not in stood
            is_merge = len(parents) > 1
            # Who edits what does not count sees his own lines alone: that makes nothing of it good.
            on_refused = not is_merge and prior is not None and None not in (old, form)
            if on_refused and old != now:
                continue
            refusal = may(one.actor, ref, now, form)
            if (refusal or refused_in_place(ref, now, form, branch_stood)) is None:
                made[ref] = Brought(path, form, one.actor, conflict, taken, is_merge, prior)
            elif prior is None:
                made[ref] = Brought(path, now, None, conflict)
        for ref, brought in made.items():
            branch.put(ref, brought)

    @cached_property
    def _before(self) -> May:
        return self.judging(())

    def _may(self, branch: _Branch) -> May:
        if branch.narrowed is None:
            changes = [*self._of_trust(branch)]
            branch.narrowed = self.judging(changes) if changes else self._before
        before, narrowed = self._before, branch.narrowed
        if narrowed is before:
            return before
        return lambda *given: before(*given) or narrowed(*given)

    def _of_trust(self, branch: _Branch) -> Iterator[Change]:
        for ref, brought in sorted(branch.objects.items()):
            if ref.kind in TRUST_KINDS and brought.counts(ref):
                yield Change(ref, brought.path, self.stood(ref)[1], brought.form)

    # --- what they changed ------------------------------------------------------------------------

    @cached_property
    def _commits(self) -> Mapping[Revision, _Commit]:
        """Oldest first."""
        found: dict[Revision, _Commit] = {}
        held: dict[Revision, Mapping[str, Mapping[ObjectRef, str]]] = {}
        for side in self.step.side:
            first = side.facts.parents[0] if side.facts.parents else Revision("")
            known = held.get(first, {})
            one, unread = self._read(side, known)
            found[side.facts.revision] = one
            held[side.facts.revision] = unread
        return found

    def _read(
        self, side: SideCommit, held: Mapping[str, Mapping[ObjectRef, str]]
    ) -> tuple[_Commit, Mapping[str, Mapping[ObjectRef, str]]]:
        """A commit, and what the files held that can't be read in it. `held` is that before it."""
        before, after = dict[ObjectRef, tuple[str, str]](), dict[ObjectRef, tuple[str, str]]()
        still, unread = dict(held) if side.touched else held, set()
        for file in side.touched:
            reader = self.standing.reader
            new = reader.contents(file.path, file.after)
            if isinstance(reader.contents(file.path, file.before), Unread):
                old = held[file.path] if file.path in held else self.standing.before(file)
                unread.add(file.path)
            else:
                old = self.standing.before(file)
            if isinstance(new, Unread):
                unread.add(file.path)
                still = {**still, file.path: old}
                continue
            if file.path in still:
                still = {path: kept for path, kept in still.items() if path != file.path}
            before.update((ref, (file.path, text)) for ref, text in old.items())
            after.update((ref, (file.path, text)) for ref, text in new.items())
        nothing = ("", None)
        changed = {
            ref: ((after.get(ref) or before[ref])[0], was, now)
            for ref in sorted({*before, *after})
            if (was := before.get(ref, nothing)[1]) != (now := after.get(ref, nothing)[1])
        }
        actor = self.actors[side.facts.revision]
        return _Commit(side, actor, changed, frozenset(unread)), still

    @cached_property
    def _machines(self) -> tuple[_Commit, ...]:
        return tuple(one for one in self._commits.values() if one.actor.type == "service_account")

    @cached_property
    def _machines_at(self) -> Mapping[ObjectRef, list[_Commit]]:
        found = defaultdict(list)
        for one in self._machines:
            for ref in one.changed:
                found[ref].append(one)
        return found

    @cached_property
    def _machines_at_path(self) -> Mapping[str, list[_Commit]]:
        found = defaultdict(list)
        for one in self._machines:
            for path in one.unread:
                found[path].append(one)
        return found


def _taken(at: dict[Revision, _Branch], uses: Counter[Revision], parent: Revision) -> _Branch:
    """What a parent came to, to be changed; nothing of it is copied that nobody else goes on."""
    uses[parent] -= 1
    if parent not in at:
        return _Branch()
    return at[parent].copy() if uses[parent] else at.pop(parent)


def _join(branch: _Branch, others: Iterable[_Branch]) -> _Joined:
    joined: dict[ObjectRef, Brought | None] = {}
    for other in others:
        for ref, theirs in other.objects.items():
            ours = branch.objects.get(ref)
            both = theirs if ours is None else _joined(ref, ours, theirs)
            if both is not ours:
                joined.setdefault(ref, ours)
                branch.put(ref, both)
    return joined


def _joined(ref: ObjectRef, ours: Brought, theirs: Brought) -> Brought:
    if ours.by is None or theirs.is_from(ours):
        return theirs
    if theirs.by is None or ours.is_from(theirs):
        return ours
    if ours.form == theirs.form:
        return theirs if ours.taken else ours
    for one in (ours, theirs):
        if one.form is None and one.counts(ref):
            return one
    return replace(ours, conflict=True, prior=ours)


def _where(one: _Commit) -> str:
    return f" (in {one.facts.facts.revision[:12]}, which the merge brings in)"
