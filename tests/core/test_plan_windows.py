"""Sync windows against the plainest reading of a clock on the wall, minute by minute."""

from __future__ import annotations

from datetime import datetime
from typing import Literal
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconciler.core.desired import Window
from reconciler.core.plan.windows import MINUTE_MS, is_open, next_opening, window_hold

BERLIN, NEW_YORK = "Europe/Berlin", "America/New_York"
PROJECT = "acme/research"
ALL_DAYS = frozenset(range(7))
SUNDAY = frozenset({6})


def at(text: str, zone: str = BERLIN, fold: int = 0) -> int:
    moment = datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone), fold=fold)
    return int(moment.timestamp() * 1000)


def window(
    start: str,
    end: str,
    kind: Literal["allow", "deny"] = "allow",
    days: frozenset[int] = ALL_DAYS,
    zone: str = BERLIN,
    projects: frozenset[str] = frozenset(),
) -> Window:
    first, last = (int(text[:2]) * 60 + int(text[3:]) for text in (start, end))
    return Window(f"{kind}-{start}", kind, days, first, last, zone, projects)


NIGHT = window("22:00", "06:00")
OFFICE = window("09:00", "17:00", days=frozenset(range(5)))
FREEZE = window("00:00", "24:00", "deny", days=frozenset({4}))


@pytest.mark.parametrize(
    ("windows", "moment", "code", "opens"),
    [
        ((), "2026-03-02T12:00", "", ""),
        ((OFFICE,), "2026-03-02T09:00", "", ""),
        ((OFFICE,), "2026-03-02T08:59", "outside_sync_window", "2026-03-02T09:00"),
        ((OFFICE,), "2026-03-02T17:00", "outside_sync_window", "2026-03-03T09:00"),
        ((OFFICE,), "2026-03-06T18:00", "outside_sync_window", "2026-03-09T09:00"),
        ((NIGHT,), "2026-03-02T23:30", "", ""),
        ((NIGHT,), "2026-03-03T05:59", "", ""),
        ((NIGHT,), "2026-03-03T06:00", "outside_sync_window", "2026-03-03T22:00"),
        ((OFFICE, FREEZE), "2026-03-06T10:00", "inside_deny_window", "2026-03-09T09:00"),
        ((FREEZE,), "2026-03-06T10:00", "inside_deny_window", "2026-03-07T00:00"),
        ((FREEZE,), "2026-03-05T10:00", "", ""),
        # It starts on Friday; that Saturday morning belongs to it too.
        ((window("22:00", "06:00", days=frozenset({4})),), "2026-03-07T05:00", "", ""),
        ((window("22:00", "06:00", days=frozenset({4})),), "2026-03-06T05:00",
         "outside_sync_window", "2026-03-06T22:00"),
    ],
)  # fmt: skip
def test_windows(windows: tuple[Window, ...], moment: str, code: str, opens: str) -> None:
    held = window_hold(windows, PROJECT, at(moment))
    assert (held.code if held else "") == code
    if held is not None:
        assert held.until_ms == at(opens)


def test_the_message_says_which_window_and_when() -> None:
    held = window_hold((OFFICE,), PROJECT, at("2026-03-06T18:00"))
    assert held is not None
    assert held.message == (
        "changes are made in window allow-09:00 only; opens 2026-03-09T08:00:00Z"
    )
    held = window_hold((FREEZE,), PROJECT, at("2026-03-06T10:00"))
    assert held is not None
    assert held.message.startswith("window deny-00:00 allows no changes now; opens 2026-03-06T23")


def test_a_window_is_of_its_projects_only() -> None:
    theirs = window("00:00", "24:00", "deny", projects=frozenset({"acme/serving"}))
    assert is_open((theirs,), PROJECT, 0)
    assert not is_open((theirs,), "acme/serving", 0)


@pytest.mark.parametrize("zone", ["Europe/Nowhere", "Europe", "../etc/passwd", ""])
def test_an_unknown_zone_keeps_shut(zone: str) -> None:
    for one in (window("00:00", "24:00", zone=zone), window("00:00", "24:00", "deny", zone=zone)):
        held = window_hold((one,), PROJECT, at("2026-03-02"))
        assert held is not None
        assert held.until_ms is None
        assert held.message.endswith("; not within 16 days")


@pytest.mark.parametrize(
    ("one", "moment", "opens", "fold"),
    [
        # 2026-03-29 in Berlin: 02:00 becomes 03:00.
        (window("02:30", "03:30"), "2026-03-29T01:50", "2026-03-29T03:00", 0),
        (window("02:00", "03:00", days=SUNDAY), "2026-03-29T01:50", "2026-04-05T02:00", 0),
        # 2026-10-25: 03:00 becomes 02:00, so that half past two comes twice.
        (window("02:30", "02:45", days=SUNDAY), "2026-10-25T02:50", "2026-10-25T02:30", 1),
        # 2026-03-08 and 2026-11-01 in New York.
        (window("02:30", "04:00", zone=NEW_YORK), "2026-03-08T01:50", "2026-03-08T03:00", 0),
        (window("01:30", "01:45", zone=NEW_YORK), "2026-11-01T01:50", "2026-11-01T01:30", 1),
    ],
)
def test_when_the_clocks_change(one: Window, moment: str, opens: str, fold: int) -> None:
    zone = one.time_zone
    assert next_opening((one,), PROJECT, at(moment, zone)) == at(opens, zone, fold)


MINUTES = st.integers(0, 1439).map(lambda minute: minute // 5 * 5)
WINDOWS = st.lists(
    st.builds(
        Window,
        name=st.just("w"),
        kind=st.sampled_from(["allow", "deny"]),
        days=st.frozensets(st.integers(0, 6), min_size=1),
        start_minute=MINUTES,
        end_minute=MINUTES.map(lambda minute: minute or 1440),
        time_zone=st.sampled_from([BERLIN, NEW_YORK, "UTC", "Australia/Lord_Howe"]),
    ),
    max_size=4,
)
AROUND_CHANGES = st.sampled_from(
    [at("2026-03-28T20:00"), at("2026-10-24T20:00"), at("2026-03-07T20:00", NEW_YORK),
     at("2026-10-31T20:00", NEW_YORK), at("2026-07-01T00:00")]
)  # fmt: skip


@given(windows=WINDOWS, start_ms=AROUND_CHANGES, minutes=st.integers(0, 1440))
def test_it_wakes_on_opening(windows: list[Window], start_ms: int, minutes: int) -> None:
    """The next opening is the first full minute at which it is open, found by looking at each."""
    now_ms = start_ms + minutes * MINUTE_MS + 17
    found = next_opening(windows, PROJECT, now_ms)
    minute = (now_ms // MINUTE_MS + 1) * MINUTE_MS
    horizon = minute + 2 * 1440 * MINUTE_MS
    while minute < horizon and not is_open(windows, PROJECT, minute):
        minute += MINUTE_MS
    if minute < horizon:
        assert found == minute
    else:
        assert found is None or found >= horizon


@given(windows=WINDOWS, at_ms=AROUND_CHANGES, minutes=st.integers(0, 20_000))
def test_open_means_allowed_and_not_denied(windows: list[Window], at_ms: int, minutes: int) -> None:
    """Against another reading: walk back from now to the start that a window would have."""
    now_ms = at_ms + minutes * MINUTE_MS
    allowing = [one for one in windows if one.kind == "allow"]
    denied = any(_started(one, now_ms) for one in windows if one.kind == "deny")
    allowed = not allowing or any(_started(one, now_ms) for one in allowing)
    assert is_open(windows, PROJECT, now_ms) == (allowed and not denied)


def _started(one: Window, at_ms: int) -> bool:
    there = datetime.fromtimestamp(at_ms / 1000, ZoneInfo(one.time_zone))
    length = (one.end_minute - one.start_minute) % 1440 or 1440
    since = there.hour * 60 + there.minute - one.start_minute
    day = there.weekday() if since >= 0 else (there.weekday() - 1) % 7
    return since % 1440 < length and day in one.days
