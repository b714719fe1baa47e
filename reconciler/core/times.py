"""Points in time as people write them, and the time of day on a wall in some zone."""

from __future__ import annotations

from datetime import UTC, datetime

PLAN_LIFETIME_S = 900.0
"""How long a saved plan may be applied, unless something else is said."""


def parse_time_ms(text: str) -> int:
    """RFC 3339 with a zone → milliseconds since the epoch; ValueError for a day that is none."""
    moment = datetime.fromisoformat(text.replace("Z", "+00:00"))
    if moment.tzinfo is None:
        raise ValueError(f"no time zone in {text!r}")
    return int(moment.timestamp() * 1000)


def time_text(at_ms: int) -> str:
    """Milliseconds since the epoch → `2026-03-01T12:00:00Z`."""
    moment = datetime.fromtimestamp(at_ms / 1000, UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
