"""What counts of each object while commits are walked, and where the repo has it.

Rules:
- An object whose change was not refused counts as the repo has it. Of a refused one, the refusal
  says what counts instead.
- Who leaves a text as it was, or moves it to another file, has not made it. So cleaning up after
  somebody does not approve what he did.
- A second document of one object counts as not made, whoever made it: nobody could tell which of
  the two counts. It keeps nobody from changing the first.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from reconciler.core.authority.documents import Documents, Unread, as_object
from reconciler.core.authority.facts import TRUST_KINDS, RefusedChange, TouchedFile
from reconciler.core.desired import StateObject
from reconciler.core.forms import canonical_json
from reconciler.core.names import ObjectRef, Revision
from reconciler.core.printable import printable
from reconciler.core.records import AcceptedObject

UNREAD = "unread_change"
_TELL_APART = "keep one of the two"
_Texts = dict[ObjectRef, dict[str, str]]
"""By object, the paths it stands at, and its canonical JSON there."""


@dataclass(frozen=True)
class Change:
    """One object changed by a commit, as canonical JSON: from what counts to what it wrote.

    `found` is what the repo had before. `approved` is said of a change that was made earlier.
    """

    ref: ObjectRef
    path: str
    before: str | None
    after: str | None
    found: str | None = None
    approved: bool = False


@dataclass(frozen=True)
class Author:
    """Which commit, and whose, a change is refused to."""

    revision: Revision
    name: str


@dataclass
class Standing:
    """Begins with what was accepted and refused at the revision that a walk starts from."""

    objects: Mapping[str, AcceptedObject]
    refused: dict[str, RefusedChange]
    reader: Documents
    trust: Mapping[ObjectRef, StateObject] = field(init=False)
    _at: _Texts = field(default_factory=dict, repr=False)
    _seen: set[str] = field(default_factory=set, repr=False)
    """Paths of files that were touched: of these, `_at` says all."""
    _unread: dict[str, Mapping[ObjectRef, str]] = field(default_factory=dict, repr=False)
    """What a file held when it was read last."""

    def __post_init__(self) -> None:
        self._unread = {one.path: _held(one) for one in self.refused.values() if one.is_file}
        self.trust = dict(_valid(self._first_trust()))

    def take(self, touched: Sequence[TouchedFile], author: Author) -> list[Change]:
        """Brings places up to what a commit touched; the changes that are to be judged."""
        left, came = self._moved(touched, author)
        unread = [file for file in touched if file.after is not None and file.path in self._unread]
        changes = []
        for ref in sorted({*left, *came}):
            change = self._change(ref, left.get(ref, {}), came.get(ref, {}), author)
            if change is not None and change.after is None and _may_hold(unread, ref):
                self.refuse(_maybe_moved(change, unread, author))
            elif change is not None:
                changes.append(change)
        return changes

    def form(self, ref: ObjectRef) -> tuple[str | None, str | None]:
        """What the repo has of an object, and what counts of it."""
        subject, places = str(ref), self._at.get(ref)
        found = self._one_of(subject, self._places(ref) if places is None else places)
        refused = self.refused.get(subject)
        return found, refused.form_json if refused is not None else found

    def approvable(self, subject: str) -> Change | None:
        """A refused change, as if it was made now; none where nobody can tell what it is."""
        refused = self.refused.get(subject)
        if refused is None or refused.is_file or _is_double(refused):
            return None
        form, wanted = refused.form_json, refused.wanted_json
        return Change(ObjectRef.parse(subject), refused.path, form, wanted, approved=True)

    def allow(self, change: Change) -> None:
        subject = str(change.ref)
        refused = self.refused.get(subject)
        if refused is not None and _is_double(refused):
            self.refused[subject] = replace(refused, form_json=change.after)
            return
        self.refused.pop(subject, None)
        if change.approved:
            self._at[change.ref] = {} if change.after is None else {change.path: change.after}

    def refuse(self, refused: RefusedChange) -> None:
        """Has its form count instead; where the repo has just that, nothing is left to refuse."""
        known = self.refused.get(refused.subject)
        if known is not None and _is_double(known):
            return
        if refused.form_json == refused.wanted_json:
            self.refused.pop(refused.subject, None)
        else:
            self.refused[refused.subject] = refused

    def trust_after(self, changes: Iterable[Change]) -> Mapping[ObjectRef, StateObject]:
        """Trust with these changes. A form that is not valid leaves the one before in force."""
        trust = dict(self.trust)
        for change in changes:
            if change.ref.kind not in TRUST_KINDS:
                continue
            if change.after is None:
                trust.pop(change.ref, None)
                continue
            found = as_object(change.ref, change.path, 0, change.after)
            if isinstance(found, StateObject):
                trust[change.ref] = found
        return trust

    def _first_trust(self) -> dict[str, tuple[str, str]]:
        """Path and text of what counts at the start, of the kinds that trust is made of."""
        counts = {
            subject: (stored.path, stored.document_json)
            for subject, stored in self.objects.items()
            if subject.partition("/")[0] in TRUST_KINDS
        }
        for path, held in self._unread.items():
            counts |= {str(r): (path, text) for r, text in held.items() if r.kind in TRUST_KINDS}
        for subject, refused in self.refused.items():
            if subject.partition("/")[0] in TRUST_KINDS:
                path = counts.pop(subject, (refused.path, ""))[0]
                if refused.form_json is not None:
                    counts[subject] = (path, refused.form_json)
        return counts

    # --- where the repo has what ------------------------------------------------------------------

    def _moved(self, touched: Sequence[TouchedFile], author: Author) -> tuple[_Texts, _Texts]:
        """What stands no more where it stood, and what stands where it did not."""
        left, came = _Texts(), _Texts()
        self._seen.update(file.path for file in touched)
        for file in touched:
            before = self.before(file)
            for ref, text in before.items():
                self._place(ref, file.path, text)
            after = self.reader.contents(file.path, file.after)
            if isinstance(after, Unread):
                self._unread[file.path] = before
                self.refused[file.path] = _unread_file(file.path, after.why, before, author)
                continue
            self._unread.pop(file.path, None)
            self.refused.pop(file.path, None)
            for ref, text in before.items():
                if after.get(ref) != text:
                    left.setdefault(ref, {})[file.path] = text
            for ref, text in after.items():
                if before.get(ref) != text:
                    came.setdefault(ref, {})[file.path] = text
        return left, came

    def before(self, file: TouchedFile) -> Mapping[ObjectRef, str]:
        """The objects that a file held, as far as it was ever read."""
        found = self.reader.contents(file.path, file.before)
        if not isinstance(found, Unread):
            return found
        known = self._unread.get(file.path)
        return known if known is not None else self._accepted_at.get(file.path, {})

    @cached_property
    def _accepted_at(self) -> Mapping[str, Mapping[ObjectRef, str]]:
        found: dict[str, dict[ObjectRef, str]] = defaultdict(dict)
        for one in self.objects.values():
            found[one.path][ObjectRef.parse(one.ref)] = one.document_json
        return found

    def _place(self, ref: ObjectRef, path: str, text: str) -> None:
        places = self._at.get(ref)
        if places is None:
            # Where it was accepted last is not where it stands, once it is seen elsewhere.
            places = self._at[ref] = self._places(ref) if str(ref) in self.refused else {}
        places[path] = text

    def _places(self, ref: ObjectRef) -> dict[str, str]:
        """Where an object stands that no touched file held yet."""
        subject, places = str(ref), dict[str, str]()
        stored, refused = self.objects.get(subject), self.refused.get(subject)
        untouched = stored is not None and stored.path not in self._seen
        if refused is not None:
            if _is_double(refused):
                places.update(json.loads(refused.wanted_json or "{}"))
            elif refused.wanted_json is not None:
                places[refused.path] = refused.wanted_json
            return places
        if stored is not None and untouched:
            places.setdefault(stored.path, stored.document_json)
        for path, held in self._unread.items():
            if ref in held:
                places.setdefault(path, held[ref])
        return places

    # --- one object -------------------------------------------------------------------------------

    def _change(
        self, ref: ObjectRef, left: Mapping[str, str], came: Mapping[str, str], author: Author
    ) -> Change | None:
        subject, places = str(ref), self._at.get(ref)
        if places is None:
            places = self._at[ref] = self._places(ref)
        prior, refused = dict(places), self.refused.get(subject)
        found = self._one_of(subject, prior)
        counts = refused.form_json if refused is not None else found
        for path in left:
            places.pop(path, None)
        places.update(came)
        if len(places) > 1:
            self._note_double(subject, prior, counts, author)
            firsts = [path for path in sorted(came) if path in prior and path in places]
            double = self.refused[subject].path
            first = next((path for path in firsts if path != double), None)
            after = places[first] if first is not None else counts
            return None if after == counts else Change(ref, first or "", counts, after, found)
        path, after = next(iter(places.items()), (min(left, default=""), None))
        if after == counts:
            self.refused.pop(subject, None)
        elif after is None or after not in prior.values():
            if refused is not None and _is_double(refused):
                del self.refused[subject]  # There is one again, and the judgement decides on it.
            return Change(ref, path, counts, after, found)
        else:
            self._keep_refused(subject, path, counts, after, author)
        return None

    def _one_of(self, subject: str, places: Mapping[str, str]) -> str | None:
        if len(places) == 1:
            return next(iter(places.values()))
        stored = self.objects.get(subject) if places else None
        return stored.document_json if stored is not None else None

    def _note_double(
        self, subject: str, prior: Mapping[str, str], counts: str | None, author: Author
    ) -> None:
        places, refused = self._at[ObjectRef.parse(subject)], self.refused.get(subject)
        if refused is not None and _is_double(refused) and refused.path in places:
            self.refused[subject] = replace(refused, wanted_json=canonical_json(places))
            return
        double = max(places.keys() - prior.keys(), default=max(places))
        other = min(places.keys() - {double})
        message = f"{subject} stands in {printable(double)} and in {printable(other)}"
        self.refused[subject] = RefusedChange(
            subject,
            double,
            author.revision,
            author.name,
            UNREAD,
            f"{message}: nobody can tell which of the two counts",
            _TELL_APART,
            counts,
            canonical_json(places),
        )

    def _keep_refused(
        self, subject: str, path: str, counts: str | None, after: str, author: Author
    ) -> None:
        """It stands as somebody left it whose change does not count."""
        refused = self.refused.get(subject)
        if refused is not None and not _is_double(refused):
            self.refused[subject] = replace(refused, path=path, wanted_json=after)
            return
        hint = f"approve it: a signed commit with a line Approves: {subject}"
        message = f"{subject} stood twice when this form of it was written: nobody judged it"
        made = refused or RefusedChange(subject, path, author.revision, author.name, "", "")
        self.refused[subject] = replace(
            made,
            path=path,
            code="change_not_allowed",
            message=message,
            hint=hint,
            form_json=counts,
            wanted_json=after,
        )


def _is_double(refused: RefusedChange) -> bool:
    """Whether it is a second document that was refused."""
    return refused.code == UNREAD and not refused.is_file and refused.wanted_json is not None


def _may_hold(unread: Sequence[TouchedFile], ref: ObjectRef) -> bool:
    """Whether what is gone may be in a file that the same commit made unreadable."""
    contents = [file.after.content for file in unread if file.after is not None]
    return any(content is None or ref.name.encode() in content for content in contents)


def _maybe_moved(change: Change, unread: Sequence[TouchedFile], author: Author) -> RefusedChange:
    where = printable(unread[0].path)
    message = f"{change.ref} is gone, and may be in {where}, which can't be read"
    hint = f"mend that file; if it is to go, sign a commit with a line Approves: {change.ref}"
    subject, form = str(change.ref), change.before
    return RefusedChange(
        subject, change.path, author.revision, author.name, UNREAD, message, hint, form
    )


def _unread_file(
    path: str, why: str, before: Mapping[ObjectRef, str], author: Author
) -> RefusedChange:
    """What it held counts on, and is kept with it, since Git can't be asked for it later."""
    message = f"{printable(path)} can't be read, so that nobody can tell what it changes: {why}"
    hint = "mend the file; what it changes is judged then"
    held = json.dumps({str(ref): text for ref, text in sorted(before.items())})
    return RefusedChange(path, path, author.revision, author.name, UNREAD, message, hint, held)


def _held(unread: RefusedChange) -> Mapping[ObjectRef, str]:
    """What a file held before it could not be read."""
    found = json.loads(unread.form_json or "{}")
    return {ObjectRef.parse(subject): text for subject, text in found.items()}


def _valid(forms: Mapping[str, tuple[str, str]]) -> Iterable[tuple[ObjectRef, StateObject]]:
    for subject, (path, text) in sorted(forms.items()):
        found = as_object(ObjectRef.parse(subject), path, 0, text)
        if isinstance(found, StateObject):
            yield found.ref, found
