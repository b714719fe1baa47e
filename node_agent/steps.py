"""The vocabulary of converging: targets, progress, steps and how they ended. Pure data."""

from __future__ import annotations

from dataclasses import dataclass

from node_agent.units import Probed, Unit
from node_agent.wire import FailureReason, Proof, Workload

PROBE_FIRST_MS = 50
"""The gap between the first probes; it grows to the workload's own interval."""

# --- what is wanted, what is known ---------------------------------------------------------------


@dataclass(frozen=True)
class Present:
    """`workload` should run, or with `run` False be there and not run."""

    workload: Workload
    run: bool = True


@dataclass(frozen=True)
class Absent:
    """Nothing of the instance should be there."""

    instance: str
    stop_grace_ms: int = 10_000


Target = Present | Absent


@dataclass(frozen=True)
class Fault:
    """Something that went wrong. `final`: trying again can't help."""

    reason: FailureReason
    message: str
    exit_code: int | None = None
    final: bool = False


@dataclass(frozen=True)
class Progress:
    """How far an instance got. The first group outlives the agent, the rest starts over with it.

    `losses_ms`: when what passed its gate was lost, oldest first (see `flaps`). `tolerated`: what
    of `Unit.altered` the engine makes of every container by itself. `fresh`: nothing was done since
    the last `Create`.

    An attempt that an agent restart cut off starts over too: its budget is for the workload, and
    what is already running is taken note of rather than started again.
    """

    committed: Workload | None = None
    failure: Fault | None = None
    restarts: int = 0
    proof: Proof | None = None
    losses_ms: tuple[int, ...] = ()
    tolerated: tuple[str, ...] = ()

    pulled: str = ""
    attempt_since_ms: int = 0
    gate_since_ms: int = 0
    started_at_ms: int = 0
    starts: int = 0
    ready_hash: str = ""
    ready_since_ms: int = 0
    next_probe_ms: int = 0
    probe_failures: int = 0
    probe_detail: str = ""
    retry_at_ms: int = 0
    tries: int = 0
    fault: Fault | None = None
    recreate: bool = False
    fresh: bool = False
    stopped_by_us: bool = False
    swept: bool = False


# --- the steps -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pull:
    workload: Workload


@dataclass(frozen=True)
class Create:
    workload: Workload


@dataclass(frozen=True)
class Start:
    unit: Unit
    workload: Workload


@dataclass(frozen=True)
class TakeNote:
    """A unit runs that this process did not start: its gate begins now."""

    unit: Unit


@dataclass(frozen=True)
class ProbeReady:
    unit: Unit
    workload: Workload


@dataclass(frozen=True)
class Stop:
    unit: Unit
    grace_ms: int


@dataclass(frozen=True)
class Remove:
    unit: Unit


@dataclass(frozen=True)
class Repair:
    """A unit that is not as it was asked for is stopped and removed, to be made anew."""

    unit: Unit
    workload: Workload


@dataclass(frozen=True)
class Tolerate:
    """A unit just made is not as it was asked for: the engine says some things in its own way."""

    unit: Unit


@dataclass(frozen=True)
class Commit:
    """The gate is passed: what was there before may go."""

    workload: Workload


@dataclass(frozen=True)
class GiveUp:
    """The attempt failed for good."""

    fault: Fault


@dataclass(frozen=True)
class Sweep:
    instance: str


@dataclass(frozen=True)
class Prove:
    instance: str


@dataclass(frozen=True)
class Wait:
    """Nothing to do before `until_ms`, unless something changes."""

    until_ms: int


@dataclass(frozen=True)
class Settled:
    """Nothing to do until something changes."""


Step = (
    Pull | Create | Start | TakeNote | ProbeReady | Stop | Remove | Repair | Tolerate
    | Commit | GiveUp | Sweep | Prove | Wait | Settled
)  # fmt: skip


@dataclass(frozen=True)
class Done:
    """The step was carried out. `proof` comes with Prove only."""

    proof: Proof | None = None


@dataclass(frozen=True)
class Failed:
    """The step was not carried out."""

    reason: FailureReason
    message: str
    transient: bool = False


Outcome = Done | Failed | Probed
