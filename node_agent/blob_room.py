"""What goes from the cache of blobs when there is no room. Pure.

Rules:
- What a workload of this node needs never goes, and neither does what is on its way right now.
- What was put there ahead, by a task, goes for a workload's sake only, the oldest first; one task
  never clears away what another one brought.
- Everything else goes first, what was used longest ago before the rest.
- Nothing goes for a blob that does not fit: a cache that was cleared for one is lost.
- How large a blob is said to be is not believed: that only keeps one out. What goes, goes for bytes
  that are there.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Kept:
    """A blob in the cache, whole or the part of one that is there; `used_at_ms`: last time."""

    digest: str
    size_bytes: int
    used_at_ms: int


@dataclass(frozen=True)
class Needs:
    """`targets`: digests that workloads of this node read. `ahead`: those that tasks asked for, by
    when they did.
    """

    targets: Collection[str] = frozenset()
    ahead: Mapping[str, int] | None = None

    def wants(self, digest: str) -> bool:
        return digest in self.targets or digest in (self.ahead or {})


@dataclass(frozen=True)
class Room:
    """How much there may be, and how much there is left to take.

    `free_bytes` is what the disk has for blobs beside those that are there; `promised_bytes` what
    other downloads have been promised of both and not yet taken.
    """

    quota_bytes: int
    free_bytes: int
    promised_bytes: int = 0


@dataclass(frozen=True)
class NoRoom:
    """`by` what it is bounded, and how many bytes are missing even if all goes that may."""

    by: str
    missing_bytes: int


def to_evict(
    kept: Sequence[Kept],
    needs: Needs,
    busy: Collection[str],
    room: Room,
    more_bytes: int,
    *,
    for_target: bool,
) -> tuple[str, ...] | NoRoom:
    """Digests to remove, in this order, so that `more_bytes` more fit; empty when they do already.

    `busy` are those that somebody is at right now.
    """
    used_bytes = sum(one.size_bytes for one in kept)
    over_quota = used_bytes + room.promised_bytes + more_bytes - room.quota_bytes
    over_disk = room.promised_bytes + more_bytes - room.free_bytes
    missing_bytes = max(over_quota, over_disk)
    chosen: list[str] = []
    for one in _expendable(kept, needs, busy, for_target=for_target):
        if missing_bytes <= 0:
            break
        chosen.append(one.digest)
        missing_bytes -= one.size_bytes
    if missing_bytes > 0:
        return NoRoom("quota" if over_quota >= over_disk else "disk", missing_bytes)
    return tuple(chosen)


def room_left(kept: Sequence[Kept], room: Room) -> int:
    """How many bytes still fit as it is; negative where there are too many."""
    used_bytes = sum(one.size_bytes for one in kept)
    return min(room.quota_bytes - used_bytes, room.free_bytes) - room.promised_bytes


def _expendable(
    kept: Sequence[Kept], needs: Needs, busy: Collection[str], *, for_target: bool
) -> list[Kept]:
    ahead = needs.ahead or {}
    free = [one for one in kept if one.digest not in needs.targets and one.digest not in busy]
    loose = [one for one in free if one.digest not in ahead]
    loose.sort(key=lambda one: (one.used_at_ms, one.digest))
    if not for_target:
        return loose
    lent = [one for one in free if one.digest in ahead]
    return loose + sorted(lent, key=lambda one: (ahead[one.digest], one.digest))
