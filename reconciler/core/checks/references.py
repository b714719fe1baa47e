"""Does everything that an object names exist?"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from reconciler.core.checks.packages import newest
from reconciler.core.kinds import KINDS
from reconciler.core.kinds.app_instance import AppInstanceSpec
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
    "ServiceAccount": (Reference("", "Project", lambda e: e.path[:2]),),
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


def check_references(world: World, kinds: Iterable[str] = tuple(REFERENCES)) -> Findings:
    """Every reference of every object of these kinds, instances apart."""
    tables = world.tables
    for kind in kinds:
        for entry in tables[kind].values():
            yield from _missing(world, tables, entry, REFERENCES[kind])


def check_instance(world: World, entry: Entry[AppInstanceSpec]) -> Findings:
    """Every reference of one instance; a decommissioned one is left alone."""
    if entry.spec.desired != "decommissioned":
        yield from _missing(world, world.tables, entry, REFERENCES["AppInstance"])


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
    hint, code = reference.hint, reference.code
    return missing_reference(world, entry, target, reference.pointer, code=code, hint=hint)


def missing_reference(
    world: World,
    entry: Entry[Any],
    target: ObjectRef,
    pointer: str,
    *,
    code: str = "unknown_reference",
    hint: str = "",
) -> Finding:
    """`entry` names `target`, which is not there: in quarantine, misspelt or never written."""
    if target in world.quarantined:
        message = f"{target} has a problem of its own"
        return finding(entry, "reference_quarantined", message, pointer, f"mend {target} first")
    hint = hint or world.did_you_mean(target.kind, target.path)
    if target.kind == "AppVersion":
        hint = _with_offers(world, target, hint)
    file = KINDS[target.kind].path_of(target.path)
    known = hint.startswith(("did you mean", "on offer"))
    hint = hint if known else f"{hint}: add {file}".removeprefix(": ")
    return finding(entry, code, f"{target} does not exist", pointer, hint)


def _with_offers(world: World, target: ObjectRef, hint: str) -> str:
    """With the newest versions on offer, unless the hint names the only one."""
    offers = newest(world.offers.get(target.path[0], ()))
    if not offers or (hint == f"did you mean {offers[0]}?" and len(offers) == 1):
        return hint
    return f"{hint} on offer: {', '.join(offers)}".strip()
