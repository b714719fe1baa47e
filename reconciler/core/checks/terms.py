"""Do the times that people wrote exist: days of the calendar, zones, windows with a length?

Pure: `zoneinfo` reads the time zone database and nothing else, and no clock is asked. Whether a
time has passed is for the plan to say.
"""

from __future__ import annotations

import re
from calendar import month_name, monthrange
from collections.abc import Iterator
from zoneinfo import ZoneInfo, available_timezones

from reconciler.core.kinds.base import Part
from reconciler.core.kinds.environment import EnvironmentSpec, SyncWindow
from reconciler.core.names import nearest
from reconciler.core.parse import escape, short
from reconciler.core.times import parse_time_ms
from reconciler.core.world import Entry, Findings, World, finding

_WITH_TIMES = (
    "Environment",
    "FleetPolicy",
    "Identity",
    "PlatformRelease",
    "Project",
    "RoleBinding",
    "ServiceAccount",
    "TrustPolicy",
)
_TIMES = frozenset(("at", "released_at", "until", "valid_from", "valid_until"))
_TIME = re.compile(r"20[0-9]{2}-(?:0[1-9]|1[0-2])-[0-9]{2}T")
_OF_THIS_MACHINE = ("Factory", "localtime", "posixrules")
_COPIES = ("posix/", "right/")
_ZONE_HINT = "write it as Area/City, for example Europe/Berlin, or UTC"


def check_terms(world: World) -> Findings:
    """Every time in a manifest, and every window of an environment."""
    for kind in _WITH_TIMES:
        for entry in world.table(kind).values():
            yield from _times(entry, "/spec", entry.object.document.get("spec"))
    for environment in world.environments.values():
        for index, window in enumerate(environment.spec.sync.windows):
            yield from _window(environment, f"/spec/sync/windows/{index}", window)
    for instance in world.instances.values():
        term = instance.spec.suspend
        if term is not None and instance.spec.desired != "decommissioned":
            yield from _real_time(instance, "/spec/suspend/until", term.until)


def zone_exists(name: str) -> bool:
    """Whether the time zone database has it under its own name, the same on every machine."""
    if name in _OF_THIS_MACHINE or name.startswith(_COPIES):
        return False
    try:
        ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        return False
    return True


def _times(entry: Entry[Part], pointer: str, value: object) -> Findings:
    """Walks a checked document, whose depth is bounded."""
    members: Iterator[tuple[object, object]] = iter(())
    if isinstance(value, dict):
        members = iter(sorted(value.items()))
    elif isinstance(value, list):
        members = iter(enumerate(value))
    for key, below in members:
        where = f"{pointer}/{escape(str(key))}"
        if not isinstance(below, str):
            yield from _times(entry, where, below)
        elif key in _TIMES and _TIME.match(below):
            yield from _real_time(entry, where, below)


def _real_time(entry: Entry[Part], pointer: str, text: str) -> Findings:
    try:
        parse_time_ms(text)
    except (ValueError, OverflowError):
        year, month = int(text[:4]), int(text[5:7])
        hint = f"{month_name[month]} {year} has {monthrange(year, month)[1]} days"
        message = f"{text} is no day of the calendar"
        yield finding(entry, "bad_time", message, pointer, hint)


def _window(entry: Entry[EnvironmentSpec], pointer: str, window: SyncWindow) -> Findings:
    if not zone_exists(window.time_zone):
        near = nearest(window.time_zone, available_timezones())
        hint = f"did you mean {near}?" if near else _ZONE_HINT
        message = f"the time zone database has no {short(window.time_zone)}"
        yield finding(entry, "unknown_time_zone", message, f"{pointer}/time_zone", hint)
    if window.start == "24:00":
        message = f"window {window.name} starts at 24:00, which ends a day"
        yield finding(entry, "bad_time", message, f"{pointer}/start", "write 00:00 of the next day")
    elif window.start == window.end:
        message = f"window {window.name} starts and ends at {window.start}"
        hint = "for the whole day write start 00:00 and end 24:00"
        yield finding(entry, "bad_time", message, f"{pointer}/end", hint)
