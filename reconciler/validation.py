"""Checks a state repo on its own, without store, registry or nodes: what CI and editors call."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from reconciler.core.problems import Problem
from reconciler.core.resolve import resolve
from reconciler.core.source import Snapshot
from reconciler.core.validate import invalid_objects, located, validate
from reconciler.settings import Settings
from reconciler.wiring.files import read_local, schema_set


@dataclass(frozen=True)
class Checked:
    """`objects` counts the well-formed documents; `problems` are sorted by place."""

    revision: str
    objects: int
    problems: tuple[Problem, ...]


def check_path(path: Path, ref: str | None, settings: Settings) -> Checked:
    """The folder at `path` as it is, or `ref` of the Git repository there."""
    return check(read_local(path, ref, settings), settings)


def check(snapshot: Snapshot, settings: Settings) -> Checked:
    """Every problem of a snapshot, in every environment it declares."""
    candidate = validate(snapshot, schema_set(), settings.parse_limits)
    problems = set(candidate.problems)
    invalid = frozenset(invalid_objects(candidate))
    named = sorted(ref.name for ref in candidate.objects if ref.kind == "Environment")
    for name in [settings.environment] if settings.environment else named or [""]:
        found = resolve(candidate.objects, name, snapshot.revision, quarantined=invalid)
        problems |= set(located(found.problems, snapshot, settings.parse_limits))
    return Checked(snapshot.revision, len(candidate.objects), tuple(sorted(problems)))
