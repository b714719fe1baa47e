"""Sync windows: whether a change may be made now, and if not, from when on.

Rules:
- A window is open while the clock on the wall of its zone says so. Where that clock is put forward
  over a window, it is shorter or left out; where it is put back, it is longer.
- A deny window beats every allow window. Without any allow window, what is not denied is allowed.
- The time zone database is taken as given, like the calendar. A zone it does not know closes its
  window for good: an allow window never opens, a deny window never ends.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime, time, timedelta
from functools import lru_cache
from zoneinfo import ZoneInfo

from reconciler.core.actions import Held
from reconciler.core.desired import Window
from reconciler.core.times import time_text

MINUTE_MS = 60_000
SEARCH_DAYS = 16
"""Windows come round every week; one that a change of the clocks leaves out, a week later."""


def window_hold(windows: Sequence[Window], project: str, now_ms: int) -> Held | None:
    """Why nothing may be changed in `project` (`tenant/project`) now; None when it may."""
    mine = _applying(windows, project)
    shut = _shut(mine, now_ms)
    if shut is None:
        return None
    until_ms = next_opening(mine, project, now_ms)
    code, why = shut
    opens = f"opens {time_text(until_ms)}" if until_ms else f"not within {SEARCH_DAYS} days"
    return Held(code, f"{why}; {opens}", until_ms)


def is_open(windows: Sequence[Window], project: str, at_ms: int) -> bool:
    """Whether changes in `project` may be made then."""
    return _shut(_applying(windows, project), at_ms) is None


def next_opening(windows: Sequence[Window], project: str, now_ms: int) -> int | None:
    """The first full minute after `now_ms` at which it is open; None when there is none in sight.

    Whether it is open changes only at an edge of a window or where a clock is put forward or back.
    """
    mine = _applying(windows, project)
    first_ms = (now_ms // MINUTE_MS + 1) * MINUTE_MS
    edges = {first_ms, *(at_ms for at_ms in _edges(mine, now_ms) if at_ms > first_ms)}
    return next((at_ms for at_ms in sorted(edges) if _shut(mine, at_ms) is None), None)


def _applying(windows: Sequence[Window], project: str) -> tuple[Window, ...]:
    return tuple(one for one in windows if not one.projects or project in one.projects)


def _shut(windows: Sequence[Window], at_ms: int) -> tuple[str, str] | None:
    """Code and reason, by the first window in the way."""
    allowing = [one for one in windows if one.kind == "allow"]
    denying = next((one for one in windows if one.kind == "deny" and _on(one, at_ms)), None)
    if denying is not None:
        return "inside_deny_window", f"window {denying.name} allows no changes now"
    if not allowing or any(_on(one, at_ms) for one in allowing):
        return None
    names = ", ".join(sorted(one.name for one in allowing))
    return "outside_sync_window", f"changes are made in window {names} only"


def _on(window: Window, at_ms: int) -> bool:
    zone = _zone(window.time_zone)
    if zone is None:
        return window.kind == "deny"
    there = datetime.fromtimestamp(at_ms / 1000, zone)
    minute, today = there.hour * 60 + there.minute, there.weekday()
    if window.end_minute > window.start_minute:
        return today in window.days and window.start_minute <= minute < window.end_minute
    begun_today = today in window.days and minute >= window.start_minute
    begun_yesterday = (today - 1) % 7 in window.days and minute < window.end_minute
    return begun_today or begun_yesterday


@lru_cache(maxsize=64)
def _zone(name: str) -> ZoneInfo | None:
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        return None


def _edges(windows: Iterable[Window], now_ms: int) -> Iterator[int]:
    """Every moment in sight at which one of the windows may open or close."""
    minutes: dict[str, set[int]] = {}
    for window in windows:
        edges = minutes.setdefault(window.time_zone, set())
        edges |= {window.start_minute % 1440, window.end_minute % 1440}
    for name, edges in sorted(minutes.items()):
        zone = _zone(name)
        if zone is not None:
            yield from _edges_in(zone, edges, now_ms)


def _edges_in(zone: ZoneInfo, minutes: Iterable[int], now_ms: int) -> Iterator[int]:
    first = datetime.fromtimestamp(now_ms / 1000, zone).date()
    for number in range(-1, SEARCH_DAYS):
        midnight = datetime.combine(first + timedelta(days=number), time())
        for minute in minutes:
            for fold in (0, 1):
                on_the_wall = midnight + timedelta(minutes=minute)
                yield _at_ms(on_the_wall.replace(tzinfo=zone, fold=fold))
        yield from _clock_change(zone, midnight)


def _clock_change(zone: ZoneInfo, midnight: datetime) -> Iterator[int]:
    """The minute of that day at which the clock is put forward or back, if it is."""
    low = _at_ms(midnight.replace(tzinfo=zone)) // MINUTE_MS
    high = _at_ms((midnight + timedelta(days=1)).replace(tzinfo=zone)) // MINUTE_MS
    before, after = _offset(zone, low), _offset(zone, high)
    if before == after:
        return
    while high - low > 1:
        middle = (low + high) // 2
        if _offset(zone, middle) == before:
            low = middle
        else:
            high = middle
    yield high * MINUTE_MS


def _offset(zone: ZoneInfo, at_minute: int) -> timedelta | None:
    return datetime.fromtimestamp(at_minute * 60, UTC).astimezone(zone).utcoffset()


def _at_ms(moment: datetime) -> int:
    return int(moment.timestamp() * 1000)
