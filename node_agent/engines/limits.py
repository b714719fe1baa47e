"""The limits of plain processes: what the kernel holds a process to without a container around it.

Rules:
- Memory is address space, of each process for itself; the process limit does not bind root.
- CPU is whole cores, rounded up: the workload is kept to so many of the host's, those that fewest
  others are kept to. A process may undo that for itself, so it is order among friends, no wall.
"""

from __future__ import annotations

import resource
from collections import Counter
from collections.abc import Iterable

from node_agent.wire import Limits

MIB = 1024 * 1024


def rlimits(limits: Limits) -> dict[str, int]:
    """Names of the `resource` module, with soft and hard limit in one."""
    found = {"RLIMIT_CORE": 0}
    if limits.memory_mib is not None:
        found["RLIMIT_AS"] = limits.memory_mib * MIB
    _, ceiling = resource.getrlimit(resource.RLIMIT_NPROC)
    unlimited = ceiling == resource.RLIM_INFINITY
    found["RLIMIT_NPROC"] = limits.pids if unlimited else min(limits.pids, ceiling)
    return found


def cores(limits: Limits, host: Iterable[int], others: Iterable[Iterable[int]]) -> list[int]:
    """Which of the `host`'s cores it may use; none listed: all. `others` are those of the rest."""
    there = sorted(host)
    if limits.cpu_millis is None:
        return []
    count = -(-limits.cpu_millis // 1_000)
    if count >= len(there):
        return []
    taken = Counter(core for other in others for core in other)
    return sorted(sorted(there, key=lambda core: (taken[core], core))[:count])
