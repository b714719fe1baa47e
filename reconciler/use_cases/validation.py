"""Checks a state repo on its own, without store, registry or nodes: what CI and editors call."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from reconciler.collector import without_collector
from reconciler.core.desired import Candidate
from reconciler.core.problems import Problem
from reconciler.core.resolve import ResolveMemo, problems_of
from reconciler.core.schema import SchemaSet
from reconciler.core.source import Snapshot
from reconciler.core.validate import ValidateMemo, invalid_objects, located, validate
from reconciler.settings import Settings
from reconciler.wiring.files import read_local, schema_set


@dataclass(frozen=True)
class Checked:
    """`candidate` holds the well-formed objects of `snapshot`; `problems` are sorted by place."""

    snapshot: Snapshot
    candidate: Candidate
    problems: tuple[Problem, ...]

    @property
    def revision(self) -> str:
        return self.snapshot.revision

    @property
    def objects(self) -> int:
        """How many documents are well-formed."""
        return len(self.candidate.objects)


@dataclass
class CheckMemo:
    """Held by whoever checks again and again: what did not change is not checked again.

    Not for several threads at once.
    """

    schemas: SchemaSet = field(default_factory=schema_set)
    validated: ValidateMemo = field(default_factory=ValidateMemo)
    resolved: dict[str, ResolveMemo] = field(default_factory=dict)
    """By the name of the Environment, of the last revision alone."""


def check_path(path: Path, ref: str | None, settings: Settings) -> Checked:
    """The folder at `path` as it is, or `ref` of the Git repository there."""
    with without_collector():
        return check(read_local(path, ref, settings), settings)


def check(snapshot: Snapshot, settings: Settings, memo: CheckMemo | None = None) -> Checked:
    """Every problem of a snapshot, in every environment it declares."""
    memo = memo or CheckMemo()
    candidate = validate(snapshot, memo.schemas, settings.parse_limits, memo.validated)
    problems = set(candidate.problems)
    invalid = frozenset(invalid_objects(candidate))
    named = sorted(ref.name for ref in candidate.objects if ref.kind == "Environment")
    names = [settings.environment] if settings.environment else named or [""]
    memo.resolved = {name: memo.resolved.get(name, ResolveMemo()) for name in names}
    for name, resolved in memo.resolved.items():
        found = problems_of(
            candidate.objects, name, snapshot.revision, quarantined=invalid, memo=resolved
        )
        problems |= set(located(found, snapshot, settings.parse_limits))
    return Checked(snapshot, candidate, tuple(sorted(problems)))
