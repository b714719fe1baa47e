"""How one instance's GPUs, CPU and memory are dealt out to its services.

Rules:
- Never more than the instance has, to the millicore and MiB: what is rounded is rounded down.
- A GPU that a service counts is counted by no other. Who asks for `all` or the `rest` shares.
- The main service gets what the others leave, of either, unless it says how much.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from reconciler.core.kinds.topology import Service

MILLICORES = "millicores of CPU"
MEBIBYTES = "MiB of memory"


class Unfit(Exception):
    """Why no workload can be made; never leaves `renderers`."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


def deal_gpus(
    services: Sequence[Service], main: str, uuids: Sequence[str]
) -> Mapping[str, tuple[str, ...]]:
    """Service → the UUIDs that it sees. Counted ones first for the main, then by name."""
    free = sorted(uuids)
    dealt: dict[str, tuple[str, ...]] = {}
    for service in sorted(services, key=lambda one: (one.name != main, one.name)):
        if not isinstance(service.gpus, int):
            continue
        if service.gpus > len(free):
            raise Unfit(
                "gpus_too_few",
                f"{service.name} counts {service.gpus} GPUs; of the instance's {len(uuids)} "
                f"{len(free)} are left",
            )
        dealt[service.name] = tuple(free[: service.gpus])
        del free[: service.gpus]
    for service in services:
        if service.gpus == "all":
            dealt[service.name] = tuple(sorted(uuids))
        elif service.gpus == "rest" or (service.gpus is None and service.name == main):
            dealt[service.name] = tuple(free)
    return dealt


def share(
    what: str, total: int | None, least: int, asked: Mapping[str, int | None], main: str
) -> Mapping[str, int | None]:
    """Service → its limit. Without a total everybody has what it asks for, or no limit."""
    if total is None:
        return asked
    taken = 0
    for name, limit in sorted(asked.items()):
        if name == main:
            continue
        if limit is None:
            message = f"{name} does not say how much it may use of the instance's {total} {what}"
            raise Unfit("limits_missing", message)
        taken += limit
    own = asked[main]
    if total - taken < (least if own is None else own):
        raise Unfit(
            "limits_too_small",
            f"of the instance's {total} {what} the other services take {taken}; {main} needs "
            f"{'at least ' if own is None else ''}{least if own is None else own}",
        )
    return {**asked, main: total - taken if own is None else own}
