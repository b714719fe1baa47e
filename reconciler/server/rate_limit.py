"""How often somebody may do something: token buckets by name, in bounded memory.

Rule: each process counts for itself, and forgets who was quiet for longest when there are too many.
"""

from __future__ import annotations

import ipaddress
import math
import threading
from collections import OrderedDict

from reconciler.server.errors import ApiError


class Buckets:
    """One bucket a name, full at first: `burst` at once, and one more every `refill_s` seconds.

    Safe to use from several threads.
    """

    def __init__(self, burst: int, refill_s: float, names_max: int) -> None:
        self._refill_ms = max(1, round(refill_s * 1000))
        self._full_ms = burst * self._refill_ms
        self._names_max = names_max
        self._lock = threading.Lock()
        self._levels: OrderedDict[str, tuple[int, int]] = OrderedDict()

    def take(self, name: str, now_ms: int) -> int:
        """0 when one was left, which is gone then; else how many milliseconds to wait for one."""
        with self._lock:
            missing_ms = self._missing_ms(name, now_ms)
            if not missing_ms:
                self._keep(name, self._level_ms(name, now_ms) - self._refill_ms, now_ms)
            return missing_ms

    def wait_ms(self, name: str, now_ms: int) -> int:
        """What `take` would return, without taking one."""
        with self._lock:
            return self._missing_ms(name, now_ms)

    def give_back(self, name: str, now_ms: int) -> None:
        with self._lock:
            level_ms = self._level_ms(name, now_ms) + self._refill_ms
            self._keep(name, min(self._full_ms, level_ms), now_ms)

    @property
    def names_count(self) -> int:
        return len(self._levels)

    def _missing_ms(self, name: str, now_ms: int) -> int:
        return max(0, self._refill_ms - self._level_ms(name, now_ms))

    def _level_ms(self, name: str, now_ms: int) -> int:
        """What is in it, as the time that it took to flow in: whole numbers leave no rest."""
        level_ms, at_ms = self._levels.get(name, (self._full_ms, now_ms))
        # A clock that was set back fills nothing, and takes nothing away.
        return min(self._full_ms, level_ms + max(0, now_ms - at_ms))

    def _keep(self, name: str, level_ms: int, now_ms: int) -> None:
        self._levels[name] = (level_ms, now_ms)
        self._levels.move_to_end(name)
        if len(self._levels) > self._names_max:
            self._levels.popitem(last=False)


def peer_of(address: str) -> str:
    """Who an address stands for: in IPv6 whoever has one has all of its /64."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if parsed.version == 4:
        return str(parsed)
    assert isinstance(parsed, ipaddress.IPv6Address)
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.ip_network((parsed, 64), strict=False))


def take_turn(buckets: Buckets, name: str, now_ms: int, message: str) -> None:
    """Takes one of what `name` has left. ApiError 429 when there is none: `message`, and when to
    come again.
    """
    wait_ms = buckets.take(name, now_ms)
    if wait_ms:
        raise ApiError(429, "rate_limited", f"{message}: wait, then retry", retry_after(wait_ms))


def retry_after(wait_ms: int) -> dict[str, str]:
    return {"Retry-After": str(math.ceil(wait_ms / 1000))}
