"""Times that do not exist, in every manifest that may name one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from reconciler.core.checks import terms
from reconciler.core.checks.terms import zone_exists
from reconciler.core.kinds import KINDS
from reconciler.core.resolve import resolve
from tests.core import builders as b

SCHEMAS = Path(__file__).parents[2] / "schemas"
GOOD = "2026-03-01T12:00:00Z"
NO_DAY = "2026-02-30T12:00:00Z"
PROJECT_FILE = f"{b.PROJECT}/project.yaml"


def term(until: str = NO_DAY) -> dict[str, str]:
    return {"by": "ann", "reason": "audit", "until": until}


def window(**changes: str) -> dict[str, Any]:
    hours = {"start": "22:00", "end": "04:00", "time_zone": "Europe/Berlin"}
    return {"windows": [{"name": "night", "kind": "allow", **hours, **changes}]}


def sync(**changes: Any) -> dict[str, Any]:
    return {"sync": changes}


def ignore(until: str) -> dict[str, Any]:
    return sync(ignore=[{"objects": ["Node/*"], "codes": ["drift"], **term(until)}])


def approval(until: str) -> dict[str, Any]:
    given = {"removals": "0" * 16, "reason": "moving", "until": until}
    return {"guards": {"approvals": [given]}}


FEBRUARY = f"{NO_DAY} is no day of the calendar (February 2026 has 28 days)"
CASES: dict[str, tuple[str, dict[str, Any], str, str]] = {
    "break glass": (
        b.ENVIRONMENT_FILE,
        sync(break_glass=term()),
        "/spec/sync/break_glass/until",
        FEBRUARY,
    ),
    "suspend": (b.ENVIRONMENT_FILE, sync(suspend=term()), "/spec/sync/suspend/until", FEBRUARY),
    "ignore": (b.ENVIRONMENT_FILE, ignore(NO_DAY), "/spec/sync/ignore/0/until", FEBRUARY),
    "approval": (
        b.ENVIRONMENT_FILE,
        approval(NO_DAY),
        "/spec/guards/approvals/0/until",
        FEBRUARY,
    ),
    "project": (PROJECT_FILE, {"suspend": term()}, "/spec/suspend/until", FEBRUARY),
    "instance": (b.INSTANCE_FILE, {"suspend": term()}, "/spec/suspend/until", FEBRUARY),
    "a leap day": (
        b.INSTANCE_FILE,
        {"suspend": term("2027-02-29T00:00:00+01:00")},
        "/spec/suspend/until",
        "2027-02-29T00:00:00+01:00 is no day of the calendar (February 2027 has 28 days)",
    ),
    "a zone misspelt": (
        b.ENVIRONMENT_FILE,
        sync(**window(time_zone="Europe/Berln")),
        "/spec/sync/windows/0/time_zone",
        "the time zone database has no 'Europe/Berln' (did you mean Europe/Berlin?)",
    ),
    "a zone by letters": (
        b.ENVIRONMENT_FILE,
        sync(**window(time_zone="XQZT")),
        "/spec/sync/windows/0/time_zone",
        "the time zone database has no 'XQZT' "
        "(write it as Area/City, for example Europe/Berlin, or UTC)",
    ),
    "a window without a length": (
        b.ENVIRONMENT_FILE,
        sync(**window(end="22:00")),
        "/spec/sync/windows/0/end",
        "window night starts and ends at 22:00 (for the whole day write start 00:00 and end 24:00)",
    ),
    "a window that starts when the day ends": (
        b.ENVIRONMENT_FILE,
        sync(**window(start="24:00")),
        "/spec/sync/windows/0/start",
        "window night starts at 24:00, which ends a day (write 00:00 of the next day)",
    ),
}


@pytest.mark.parametrize(("path", "spec", "pointer", "says"), CASES.values(), ids=CASES.keys())
def test_a_time_that_does_not_exist(
    path: str, spec: dict[str, Any], pointer: str, says: str
) -> None:
    documents = b.world()
    documents[path]["spec"].update(spec)
    (problem,) = resolve(b.objects(documents), b.ENVIRONMENT, b.REVISION).problems
    assert (problem.path, problem.pointer) == (path, pointer)
    assert says in str(problem)
    assert problem.code == ("unknown_time_zone" if "zone" in pointer else "bad_time")


def test_times_that_exist() -> None:
    documents = b.world()
    documents[b.ENVIRONMENT_FILE]["spec"].update(
        {
            **approval("2028-02-29T00:00:00Z"),
            "sync": {
                **ignore(GOOD)["sync"],
                **window(start="00:00", end="24:00", time_zone="UTC"),
                "break_glass": term("2026-12-31T23:59:59+14:00"),
            },
        }
    )
    documents[PROJECT_FILE]["spec"]["suspend"] = term(GOOD)
    assert resolve(b.objects(documents), b.ENVIRONMENT, b.REVISION).problems == ()


def test_nobody_looks_at_a_decommissioned_instance() -> None:
    documents = b.world()
    documents[b.INSTANCE_FILE]["spec"].update(desired="decommissioned", suspend=term())
    assert resolve(b.objects(documents), b.ENVIRONMENT, b.REVISION).problems == ()


@pytest.mark.parametrize(
    "name", ["localtime", "posixrules", "Factory", "posix/UTC", "right/UTC", "Europe", "a/../../b"]
)
def test_zones_that_differ_between_machines_are_none(name: str) -> None:
    assert not zone_exists(name)


@pytest.mark.parametrize("name", ["UTC", "Etc/GMT+5", "America/Argentina/Buenos_Aires", "CET"])
def test_zones(name: str) -> None:
    assert zone_exists(name)


def fields(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """(name, subschema) of everything in a schema."""
    if isinstance(value, dict):
        yield name, value
        for key, below in value.items():
            yield from fields(below, key)
    elif isinstance(value, list):
        for below in value:
            yield from fields(below, name)


@pytest.mark.parametrize("kind", KINDS)
def test_every_field_that_is_a_time_is_looked_at(kind: str) -> None:
    """A kind or field added later must not be forgotten."""
    schema = json.loads((SCHEMAS / KINDS[kind].schema_file).read_text())
    times = {
        name
        for name, found in fields(schema)
        if str(found.get("pattern", "")).startswith("^20[0-9]{2}-")
    }
    assert not times or kind in (*terms._WITH_TIMES, "AppInstance")
    assert times - {"Timestamp", "timestamp"} <= terms._TIMES
