"""Does everything that an object names exist?"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from reconciler.core.kinds import KINDS
from reconciler.core.names import ObjectRef
from reconciler.core.world import Entry, Finding, Findings, Path, World, finding

PathOf = Callable[[Entry[Any]], Path]


@dataclass(frozen=True)
class Reference:
    """A field that names another object; not looked at when one of `after` is missing."""

    pointer: str
    kind: str
    path: PathOf
    after: tuple[str, ...] = ()
    code: str = "unknown_reference"
    hint: str = ""


_NO_PROMOTION = "a version is offered once a Promotion says so"
_NOT_ENTITLED = "a project may use an app once an Entitlement of that name says so"

REFERENCES: Mapping[str, tuple[Reference, ...]] = {
    "Project": (Reference("", "Tenant", lambda e: e.path[:1]),),
    "Entitlement": (
        Reference("", "Project", lambda e: e.path[:2]),
        Reference("/metadata/name", "App", lambda e: e.path[2:]),
    ),
    "Allocation": (
        Reference("", "Project", lambda e: e.path[:2]),
        Reference("/spec/node", "Node", lambda e: (e.spec.node,)),
    ),
    "AppVersion": (Reference("", "App", lambda e: e.path[:1]),),
    "Promotion": (Reference("/metadata/name", "AppVersion", lambda e: e.path),),
    "Artifact": (
        Reference("", "Project", lambda e: e.path[:2]),
        Reference("", "App", lambda e: e.path[2:3]),
        Reference("", "AppVersion", lambda e: e.path[2:4], after=("App",)),
    ),
    "AppInstance": (
        Reference("", "Project", lambda e: e.path[:2]),
        Reference("/spec/app", "App", lambda e: (e.spec.app,)),
        Reference(
            "/spec/version", "AppVersion", lambda e: (e.spec.app, e.spec.version), after=("App",)
        ),
        Reference(
            "/spec/version",
            "Promotion",
            lambda e: (e.spec.app, e.spec.version),
            after=("App", "AppVersion"),
            code="not_promoted",
            hint=_NO_PROMOTION,
        ),
        Reference(
            "/spec/app",
            "Entitlement",
            lambda e: (*e.path[:2], e.spec.app),
            after=("App", "Project"),
            code="not_entitled",
            hint=_NOT_ENTITLED,
        ),
        Reference(
            "/spec/placement_intent/allocation",
            "Allocation",
            lambda e: (*e.path[:2], e.spec.placement_intent.allocation),
            after=("Project",),
        ),
    ),
}


def check_references(world: World) -> Findings:
    """Every reference of every object; decommissioned instances are left alone."""
    tables = world.tables
    for kind, references in REFERENCES.items():
        for entry in tables[kind].values():
            spec: Any = entry.spec
            if kind != "AppInstance" or spec.desired != "decommissioned":
                yield from _missing(world, tables, entry, references)


def _missing(
    world: World,
    tables: Mapping[str, Mapping[Path, Entry[Any]]],
    entry: Entry[Any],
    references: tuple[Reference, ...],
) -> Findings:
    missing: set[str] = set()
    for reference in references:
        path = reference.path(entry)
        if path in tables[reference.kind] or not missing.isdisjoint(reference.after):
            continue
        missing.add(reference.kind)
        yield _unknown(world, entry, reference, path)


def _unknown(world: World, entry: Entry[Any], reference: Reference, path: Path) -> Finding:
    target = ObjectRef(reference.kind, path)
    if target in world.quarantined:
        message = f"{target} has a problem of its own"
        hint = f"mend {target} first"
        return finding(entry, "reference_quarantined", message, reference.pointer, hint)
    hint = reference.hint or world.did_you_mean(reference.kind, path)
    file = KINDS[reference.kind].path_of(path)
    hint = hint if hint.startswith("did you mean") else f"{hint}: add {file}".removeprefix(": ")
    message = f"{target} does not exist"
    return finding(entry, reference.code, message, reference.pointer, hint)
