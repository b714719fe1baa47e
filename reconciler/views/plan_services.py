"""What a replacement means for each service of a topology. Pure.

Rules: whatever else a plan knows of a workload stays as it is; what belongs to one service is said
of that service. A field that services only refer to, a port or a secret, is said of each of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from node_agent.wire import Service, Workload

ServiceFate = Literal["added", "changed", "removed", "unchanged"]
_SERVICES = "topology.services."
_REFERRED = ("ports", "secrets", "blobs")
_FIELDS_MAX = 6


@dataclass(frozen=True)
class FieldChange:
    """One field of a workload, before and after; empty is not there."""

    field: str
    before: str
    after: str

    def __str__(self) -> str:
        return f"{self.field} {self.before or '(none)'} → {self.after or '(none)'}"


@dataclass(frozen=True)
class ServiceChange:
    """`fields` are those that change, below the service; of an added or removed one none."""

    service: str
    fate: ServiceFate
    fields: tuple[FieldChange, ...] = ()


def service_changes(
    workload: Workload, changes: Sequence[FieldChange]
) -> tuple[tuple[ServiceChange, ...], tuple[FieldChange, ...]]:
    """By service, in the order of their names, what becomes of it; and changes that are of none.

    `changes` are all between what runs and `workload`.
    """
    if workload.topology is None and not any(one.field.startswith(_SERVICES) for one in changes):
        return (), tuple(changes)
    now = {one.name: one for one in workload.topology.services} if workload.topology else {}
    by_service: dict[str, list[FieldChange]] = {}
    rest = []
    for change in changes:
        name, _, below = change.field.removeprefix(_SERVICES).partition(".")
        if change.field.startswith(_SERVICES) and below:
            by_service.setdefault(name, []).append(FieldChange(below, change.before, change.after))
            continue
        referring = [name for name, one in now.items() if _refers(one, change.field)]
        for name in referring:
            field = FieldChange(change.field, change.before, change.after)
            by_service.setdefault(name, []).append(field)
        rest += [] if referring else [change]
    names = sorted({*now, *by_service})
    return tuple(_change(name, by_service.get(name, [])) for name in names), tuple(rest)


def _refers(service: Service, field: str) -> bool:
    what, _, rest = field.partition(".")
    return what in _REFERRED and rest.partition(".")[0] in getattr(service, what)


def _change(name: str, fields: Sequence[FieldChange]) -> ServiceChange:
    named = next((one for one in fields if one.field == "name"), None)
    if named is not None:
        return ServiceChange(name, "removed" if named.before else "added")
    return ServiceChange(name, "changed" if fields else "unchanged", tuple(fields))


def service_lines(workload: Workload, found: Sequence[ServiceChange]) -> tuple[str, ...]:
    """A line for each that changes, and one for those that stay as they are."""
    lines = [_line(workload, one) for one in found if one.fate != "unchanged"]
    same = [one.service for one in found if one.fate == "unchanged"]
    return (*lines, *([f"unchanged: {', '.join(same)}"] if same else []))


def _line(workload: Workload, one: ServiceChange) -> str:
    if one.fate == "removed":
        return f"service {one.service}: removed"
    if one.fate == "added":
        service = workload.topology.service(one.service) if workload.topology else None
        image = f", image {service.image.digest[7:19]}" if service is not None else ""
        return f"service {one.service}: new{image}"
    more = len(one.fields) - _FIELDS_MAX
    said = "; ".join(map(str, one.fields[:_FIELDS_MAX])) + (f"; {more} more" if more > 0 else "")
    return f"service {one.service}: {said}"


def services_launched(workload: Workload) -> tuple[str, ...]:
    """What a launch starts, where it is several."""
    if workload.topology is None:
        return ()
    return (f"services: {', '.join(one.name for one in workload.topology.services)}",)


def services_document(found: Sequence[ServiceChange]) -> list[dict[str, Any]]:
    """For programs."""
    return [
        {
            "service": one.service,
            "change": one.fate,
            "fields": [asdict(field) for field in one.fields],
        }
        for one in found
    ]
