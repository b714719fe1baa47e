"""Asks the commits of the state repo about one object: what changed it, and who decided a field.

Rules: reads only. A name that nothing answers to is refused with the nearest one that something
does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from reconciler.core.changes import field_changes, value_at
from reconciler.core.history import Commit, Form, History, Step, folder_of, former_name
from reconciler.core.kinds import KINDS
from reconciler.core.members import first_path, is_member
from reconciler.core.names import ObjectRef, Revision, nearest
from reconciler.core.records import NumberedEvent
from reconciler.core.source import Snapshot
from reconciler.errors import Refused

EVERYTHING = 1_000_000_000


class Commits(Protocol):
    """A repository's commits; see `adapters.git_history` for what each method raises."""

    def head(self) -> Revision: ...

    def resolve(self, ref: str) -> Revision: ...

    def snapshot(self, revision: Revision) -> Snapshot: ...

    def is_ancestor(self, ancestor: Revision, descendant: Revision) -> bool: ...

    def log(
        self,
        target: ObjectRef | str,
        start: Revision,
        limit: int,
        until: Callable[[Step], bool] = ...,
    ) -> History: ...

    def form(self, ref: ObjectRef, revision: Revision) -> Form | None: ...

    def commit(self, revision: Revision) -> Commit: ...

    def content(self, revision: Revision, path: str) -> bytes | None: ...

    def paths(self, revision: Revision) -> tuple[str, ...]: ...


def parse_target(text: str, *, files: bool = False) -> ObjectRef | str:
    """`Kind/scope/name`, `tenant/project/name` (an instance) or, with `files`, a path.

    A member, `name.member`, stands for the instance that declares it. Refused for anything else,
    with what may have been meant.
    """
    text = text.removeprefix("./")
    first, *names = text.split("/")
    if text.endswith((".yaml", ".yml")) or text.rpartition("/")[2] == "README.md":
        if files:
            return text
        raise _no_object(text, "name the object, Kind/scope/name: a file may hold several")
    if first in KINDS:
        return _declared(_known_kind(text))
    if len(names) == 2 and all((first, *names)):
        return _declared(ObjectRef("AppInstance", (first, *names)))
    near = nearest(first, KINDS)
    if near and names:
        raise _no_object(text, f"did you mean {'/'.join((near, *names))}?")
    raise _no_object(text, "name it Kind/scope/name, or tenant/project/name for an instance")


def _declared(ref: ObjectRef) -> ObjectRef:
    return ObjectRef(ref.kind, first_path(ref.path)) if is_member(ref) else ref


def member_of_target(text: str, ref: ObjectRef) -> str:
    """The member that the name of an instance is of; empty for the instance itself."""
    return text.rpartition("/")[2].partition(".")[2] if ref.kind == "AppInstance" else ""


def _known_kind(text: str) -> ObjectRef:
    kind = KINDS[text.partition("/")[0]]
    try:
        ref = ObjectRef.parse(text)
        folder_of(ref)
    except ValueError:
        places = [part.strip("{}") for part in kind.path.split("/") if "{" in part]
        names = [p.removesuffix(".yaml").strip("{}").replace("any", "name") for p in places]
        hint = f"a {kind.name} is named {'/'.join((kind.name, *names))}"
        raise _no_object(text, hint) from None
    return ref


def _no_object(text: str, hint: str) -> Refused:
    return Refused("bad_object_name", f"no name of an object: {text[:120]}", hint=hint)


def no_such(target: ObjectRef | str, known: Iterable[ObjectRef | str], where: str) -> Refused:
    """Says that nothing answers to a name, and what does that is near."""
    near = nearest(str(target), (str(one) for one in known))
    hint = (
        f"did you mean {near}?" if near else "gpuaas validate and gpuaas status list what is there"
    )
    return Refused(
        "no_such_object", f"{target} is not there, and never was", where=where, hint=hint
    )


def history_of(commits: Commits, target: ObjectRef | str, start: Revision, limit: int) -> History:
    """Commits that changed it, newest first; of an instance under its former names too."""
    found: list[Step] = []
    while True:
        part = commits.log(target, start, limit - len(found))
        found += part.steps
        last = found[-1] if found else None
        former = former_name(last) if last is not None and part.end == "root" else None
        if last is None or former is None or not last.commit.parents:
            return replace(part, steps=tuple(found))
        if len(found) >= limit:
            return History(tuple(found), "limit")
        target, start = former, last.commit.parents[0]


@dataclass
class Blame:
    """Collects, step by step from the newest, which commit last changed each pointer."""

    wanted: set[str]
    found: dict[str, Commit]

    def __call__(self, step: Step) -> bool:
        """Whether all is found."""
        for pointer in sorted(self.wanted):
            if _decided(step, pointer):
                self.found[pointer] = step.commit
                self.wanted.discard(pointer)
        return not self.wanted


def _decided(step: Step, pointer: str) -> bool:
    if step.before is None or step.after is None:
        return True
    if step.before.document is None or step.after.document is None:
        return True
    old = value_at(step.before.document, pointer)
    return bool(field_changes(old, value_at(step.after.document, pointer)))


def blame(
    commits: Commits, ref: ObjectRef, pointers: Iterable[str], start: Revision
) -> Mapping[str, Commit]:
    """Pointer → the commit that last changed what it names, as far as the history goes back."""
    collected = Blame({*pointers}, {})
    if collected.wanted:
        commits.log(ref, start, EVERYTHING, until=collected)
    return collected.found


def outcomes(
    commits: Commits, steps: Sequence[Step], events: Sequence[NumberedEvent]
) -> Mapping[Revision, tuple[NumberedEvent, ...]]:
    """Commit → what the control plane reported of the instance while that was its newest change.

    An event names the head at which it happened, which may hold several commits.
    """
    owner: dict[str, Revision | None] = {}
    found: dict[Revision, list[NumberedEvent]] = {}
    for numbered in events:
        head = numbered.event.revision
        if head not in owner:
            owner[head] = _owner(commits, steps, Revision(head))
        step = owner[head]
        if step is not None:
            found.setdefault(step, []).append(numbered)
    return {revision: tuple(those) for revision, those in found.items()}


def _owner(commits: Commits, steps: Sequence[Step], head: Revision) -> Revision | None:
    try:
        here = (one.commit.revision for one in steps)
        return next((one for one in here if commits.is_ancestor(one, head)), None)
    except Refused:
        # The head of an event may be gone from this clone after a force-push.
        return None
