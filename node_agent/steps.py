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
class ServiceProgress:
    """How far one service of a topology got, since this agent runs.

    `started_at_ms`: 0 while it was not started since its topology was put in force, or was stopped
    on purpose since. `starts`: since it last ran well. `failed`: why it is not started again while
    it is of `form`; these two outlive the agent.
    """

    name: str
    started_at_ms: int = 0
    starts: int = 0
    restarts: int = 0
    ready: bool = False
    ready_since_ms: int = 0
    next_probe_ms: int = 0
    probe_failures: int = 0
    probe_detail: str = ""
    failed: Fault | None = None
    form: str = ""


@dataclass(frozen=True)
class JobDone:
    """A job that ended well: of which form, and when each of the volumes there was made."""

    name: str
    form: str
    volumes: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Progress:
    """How far an instance got. The first group outlives the agent, the rest starts over with it.

    `losses_ms`: when what passed its gate was lost, oldest first (see `flaps`). `tolerated`: what
    of `Unit.altered` the engine makes of every container by itself. `jobs`: those that are done, in
    the order of their names. `fresh`: nothing was done since containers were made last.
    `ready_hash`: what is ready; of a topology, all that is vital.

    An attempt that an agent restart cut off starts over too: its budget is for the workload, and
    what is already running is taken note of rather than started again.
    """

    committed: Workload | None = None
    failure: Fault | None = None
    restarts: int = 0
    proof: Proof | None = None
    losses_ms: tuple[int, ...] = ()
    tolerated: tuple[str, ...] = ()
    jobs: tuple[JobDone, ...] = ()

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
    services: tuple[ServiceProgress, ...] = ()


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
class Apply:
    """Makes the containers that a topology in force lacks; starts none."""

    unit: Unit
    workload: Workload


@dataclass(frozen=True)
class StartServices:
    """Those of a topology in force whose turn it is; their containers are there."""

    unit: Unit
    workload: Workload
    names: tuple[str, ...]


@dataclass(frozen=True)
class ProbeService:
    unit: Unit
    workload: Workload
    name: str


@dataclass(frozen=True)
class GiveUpService:
    """One that is not vital is not started again while it is of this form."""

    name: str
    fault: Fault
    form: str = ""


@dataclass(frozen=True)
class NoteJobs:
    """These are done, and no others."""

    jobs: tuple[JobDone, ...]


@dataclass(frozen=True)
class NoteReady:
    """All that is vital of a topology that passed its gate is ready, still or again."""

    workload: Workload


@dataclass(frozen=True)
class RepairServices:
    """Those that are not as they were asked for are removed; the next start makes them anew.

    Of a topology that nothing runs of: those whose end can't be told from having been stopped.
    """

    unit: Unit
    workload: Workload
    names: tuple[str, ...]


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
    | Apply | StartServices | ProbeService | GiveUpService | RepairServices | NoteReady
    | NoteJobs
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


def pulled_as(workload: Workload) -> str:
    """What `Progress.pulled` is once all images of a workload are there."""
    return " ".join(image.reference for image in workload.images)
