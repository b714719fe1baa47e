"""A revision's files → the objects it holds, and everything that is wrong with them.

Rules: each file by itself (`core.validate_file`), then what stands twice. What a file says depends
on its path, its content and the schemas, and on nothing else: a memo keeps it, so that a revision
which differs in one file costs about that file. With a memo or without, the result is the same.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import NamedTuple

from reconciler.core.authority.facts import REFUSALS
from reconciler.core.check_document import Checks
from reconciler.core.desired import Candidate, StateObject
from reconciler.core.names import ObjectRef
from reconciler.core.parse import ParseLimits, fast_reader, parse_file
from reconciler.core.parse_places import locate_all
from reconciler.core.problems import Problem
from reconciler.core.schema import SchemaSet
from reconciler.core.source import Snapshot, SourceFile
from reconciler.core.validate_file import (
    NO_MANIFESTS,
    FileResult,
    Placed,
    SoundAhead,
    check_files,
)


class _Known(NamedTuple):
    """A file, and what it came to."""

    file: SourceFile
    result: FileResult


@dataclass
class ValidateMemo:
    """The last validated revision, file by file: for whoever validates again and again.

    An object whose file is the same is the very same object in the next Candidate. Not for several
    threads at once. `files_checked` counts the files that were read and checked so far.
    """

    files_checked: int = 0
    ahead: SoundAhead | None = field(default=None, repr=False)
    """Who may have looked at files already, under the same limits and schemas."""
    _checks: Checks | None = field(default=None, repr=False)
    _files: dict[str, _Known] = field(default_factory=dict, repr=False)
    _standing: dict[ObjectRef, tuple[Placed, ...]] = field(default_factory=dict, repr=False)
    """Where each object stands, in the order of the files."""
    _objects: dict[ObjectRef, StateObject] = field(default_factory=dict, repr=False)
    """The objects that stand once and right, in the order of their names."""
    _troubled: set[str] = field(default_factory=set, repr=False)
    """Paths with a problem, and those of files that bear names without being read."""
    _twice: set[ObjectRef] = field(default_factory=set, repr=False)

    def candidate(self, snapshot: Snapshot, schemas: SchemaSet, limits: ParseLimits) -> Candidate:
        """What `validate` returns. Forgets everything when the schemas are others."""
        checks, self._checks = self._checks, None
        if checks is None or checks.schemas is not schemas or checks.limits != limits:
            self._forget()
            checks = Checks(schemas, limits, fast_reader(limits))
        self._follow(snapshot.files, checks)
        self._checks = checks  # An exception on the way leaves None: nothing half-done is kept.
        results = [(path, self._files[path].result) for path in sorted(self._troubled)]
        problems = {problem for _, result in results for problem in result.problems}
        problems.update(problem for ref in self._twice for problem in self._duplicates(ref))
        return Candidate(
            snapshot.revision,
            MappingProxyType(self._objects),
            tuple(sorted(problems)),
            frozenset(path for path, result in results if result.broken),
            {name: path for path, found in results for name in sorted(found.bears)},
        )

    def _forget(self) -> None:
        self._files, self._standing, self._objects = {}, {}, {}
        self._troubled, self._twice = set(), set()

    def _follow(self, files: tuple[SourceFile, ...], checks: Checks) -> None:
        last = self._files
        new: list[SourceFile] = []
        changed: dict[str, _Known] = {}
        for file in files:
            known = last.get(file.path)
            if known is None or not _same(file, known.file):
                new.append(file)
            elif known.file is not file:
                changed[file.path] = _Known(file, known.result)
        for file, result in zip(new, check_files(new, checks, self.ahead), strict=True):
            changed[file.path] = _Known(file, result)
            self.files_checked += result is not NO_MANIFESTS
        gone: list[str] = []
        if len(files) < len(last) + sum(path not in last for path in changed):
            gone = sorted(last.keys() - {file.path for file in files})
        self._stand(self._replace_files(changed, gone))

    def _replace_files(self, changed: dict[str, _Known], gone: list[str]) -> set[ObjectRef]:
        """Takes the new results over; the objects that stand elsewhere or otherwise than before."""
        replaced: dict[ObjectRef, set[str]] = defaultdict(set)
        added: dict[ObjectRef, list[Placed]] = defaultdict(list)
        for path in (*changed, *gone):
            before, after = self._files.pop(path, None), changed.get(path)
            self._troubled.discard(path)
            if after is not None:
                self._files[path] = after
                if after.result.problems or after.result.bears:
                    self._troubled.add(path)
                if before is not None and before.result is after.result:
                    continue
                for placed in after.result.placed:
                    added[placed.ref].append(placed)
            for placed in before.result.placed if before is not None else ():
                replaced[placed.ref].add(path)
        for ref in replaced.keys() | added.keys():
            stay = [p for p in self._standing.get(ref, ()) if p.path not in replaced.get(ref, ())]
            stay += added.get(ref, ())
            self._standing[ref] = tuple(sorted(stay, key=lambda placed: placed.path))
        return set(replaced) | set(added)

    def _stand(self, touched: set[ObjectRef]) -> None:
        """Brings the objects up to where they stand now; those of the last Candidate stay as they
        are."""
        if not touched:
            return
        objects, grown = self._objects.copy(), False
        for ref in touched:
            standing = self._standing[ref]
            self._twice.discard(ref)
            if len(standing) == 1 and standing[0].object is not None:
                grown = grown or ref not in objects
                objects[ref] = standing[0].object
                continue
            objects.pop(ref, None)
            if len(standing) > 1:
                self._twice.add(ref)
            elif not standing:
                del self._standing[ref]
        if grown:
            objects = {ref: objects[ref] for ref in sorted(objects, key=_name_order)}
        self._objects = objects

    def _duplicates(self, ref: ObjectRef) -> Iterator[Problem]:
        """Each place of an object that stands in several names another one."""
        standing = self._standing[ref]
        for number, placed in enumerate(standing):
            other = standing[0 if number else 1]
            message = f"{ref} also stands at {other.path}:{other.line}"
            yield Problem(
                placed.path,
                placed.line,
                1,
                "duplicate_object",
                message,
                hint="keep one of the two",
                object=str(ref),
            )


def validate(
    snapshot: Snapshot, schemas: SchemaSet, limits: ParseLimits, memo: ValidateMemo | None = None
) -> Candidate:
    """Reads every manifest of a revision. Files outside the known folders are not looked at.

    `broken_paths` may also name a folder: a link or submodule that stands where manifests belong.
    With a `memo`, files that are the same as in the last revision are not read again.
    """
    return (memo or ValidateMemo()).candidate(snapshot, schemas, limits)


def invalid_objects(candidate: Candidate) -> dict[ObjectRef, str]:
    """Objects whose own document is wrong, as far as their names could be read, with why.

    One whose change was refused is not: the candidate holds what counts instead.
    """
    invalid: dict[ObjectRef, str] = {}
    for problem in candidate.problems:
        if problem.object and problem.code not in REFUSALS:
            try:
                ref = ObjectRef.parse(problem.object)
            except ValueError:
                continue
            invalid.setdefault(ref, f"{problem.code}: {problem.message}")
    return invalid


def located(
    problems: Iterable[Problem], snapshot: Snapshot, limits: ParseLimits
) -> tuple[Problem, ...]:
    """Problems between objects know the line of their document; this finds that of the field.

    Each file with such a problem is read once more. One whose document does not begin where the
    problem says (it is about an earlier form) keeps the place it has.
    """
    by_path: dict[str, list[Problem]] = defaultdict(list)
    for problem in problems:
        by_path[problem.path].append(problem)
    files = {file.path: file for file in snapshot.files if file.path in by_path}
    return tuple(
        placed
        for path, those in sorted(by_path.items())
        for placed in (_placed(files[path], those, limits) if path in files else those)
    )


def _placed(file: SourceFile, problems: list[Problem], limits: ParseLimits) -> list[Problem]:
    documents, _ = parse_file(file.path, file.content, limits)
    index_at = {document.line: document.index for document in documents}
    wanted: dict[int, set[str]] = defaultdict(set)
    for problem in problems:
        if problem.pointer and problem.line in index_at:
            wanted[index_at[problem.line]].add(problem.pointer)
    places = locate_all(file.content, wanted)
    found = [places.get((index_at.get(p.line, -1), p.pointer)) for p in problems]
    return [
        replace(problem, line=place.line, column=place.column) if place else problem
        for problem, place in zip(problems, found, strict=True)
    ]


def _same(one: SourceFile, other: SourceFile) -> bool:
    """Files without an id are the same as themselves alone."""
    return one is other or (
        bool(one.blob_id) and one.blob_id == other.blob_id and one.kind == other.kind
    )


def _name_order(ref: ObjectRef) -> tuple[str, tuple[str, ...]]:
    return ref.kind, ref.path
