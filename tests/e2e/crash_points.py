"""Runs `gpuaas` or `gpuaas-agent` so that it can be made to die at one exact step of its work.

    python -m tests.e2e.crash_points FOLDER gpuaas run

The product knows nothing of this: its methods are wrapped here, before it starts. While FOLDER
holds a file `armed` with the name of a point, the process takes that file away and ends itself with
SIGKILL when it comes to the point. Nothing is flushed, said or cleaned up. Who takes the file away,
under a lock, has decided: either the process died of it, or it never will.
"""

from __future__ import annotations

import fcntl
import functools
import importlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

CONTROL_PLANE, AGENT = "control-plane", "agent"


@dataclass(frozen=True)
class Point:
    """Before or after one method of one class does its work for the `call`th time since it was
    armed, in one of the two programs.
    """

    program: str
    module: str
    owner: str
    method: str
    side: Literal["before", "after"]
    call: int = 1

    @property
    def name(self) -> str:
        which = f" {self.call}" if self.call > 1 else ""
        return f"{self.program}: {self.side} {self.owner}.{self.method}{which}"

    @property
    def place(self) -> str:
        return f"{self.owner}.{self.method} {self.side}"


_STEPS = (
    # What a pass and the agents' API write down.
    (CONTROL_PLANE, "reconciler.adapters.store_sql", "SqlStore", "save_accepted"),
    (CONTROL_PLANE, "reconciler.adapters.store_sql", "SqlStore", "commit"),
    (CONTROL_PLANE, "reconciler.adapters.store_sql", "SqlStore", "tasks_for"),
    (CONTROL_PLANE, "reconciler.adapters.store_sql", "SqlStore", "save_report"),
    (CONTROL_PLANE, "reconciler.adapters.store_sql", "SqlStore", "acknowledge"),
    # What the agent writes down, does with Docker, and says.
    (AGENT, "node_agent.state", "StateStore", "accept"),
    (AGENT, "node_agent.state", "StateStore", "save_placement"),
    (AGENT, "node_agent.state", "StateStore", "save_progress"),
    (AGENT, "node_agent.engines.docker", "DockerEngine", "pull"),
    (AGENT, "node_agent.engines.docker", "DockerEngine", "create"),
    (AGENT, "node_agent.engines.docker", "DockerEngine", "start"),
    (AGENT, "node_agent.engines.docker", "DockerEngine", "probe"),
    (AGENT, "node_agent.engines.docker", "DockerEngine", "stop"),
    (AGENT, "node_agent.engines.docker", "DockerEngine", "remove"),
    (AGENT, "node_agent.engines.docker", "DockerEngine", "sweep"),
    (AGENT, "node_agent.engines.docker", "DockerEngine", "residue"),
    (AGENT, "node_agent.link", "Link", "report"),
)
TOPOLOGY_STEPS = (
    (AGENT, "node_agent.engines.compose", "ComposeEngine", "create"),
    (AGENT, "node_agent.engines.compose", "ComposeEngine", "start"),
    (AGENT, "node_agent.engines.compose", "ComposeEngine", "start_services"),
    (AGENT, "node_agent.engines.compose", "ComposeEngine", "probe_service"),
    (AGENT, "node_agent.engines.compose", "ComposeEngine", "stop"),
    (AGENT, "node_agent.engines.compose", "ComposeEngine", "remove"),
    (AGENT, "node_agent.engines.compose", "ComposeEngine", "sweep"),
    (AGENT, "node_agent.engines.compose", "ComposeEngine", "residue"),
    (AGENT, "node_agent.engines.compose_cli", "ComposeCli", "_run"),
)
"""What the agent does with an app of several services."""
_SIDES: tuple[Literal["before", "after"], ...] = ("before", "after")

# Each step of the agent ends in a note of how far it got: died of in turn.
_NOTED = (AGENT, "node_agent.state", "StateStore", "save_progress")

POINTS = (
    *(Point(*step, side) for step in _STEPS for side in _SIDES),
    *(Point(*_NOTED, "after", call) for call in (2, 3, 4, 5)),
)


def arm(folder: Path, point: Point) -> None:
    """From now on the program dies at that point, once."""
    with _locked(folder):
        (folder / "armed").write_text(f"{point.place}\n{point.call}")


def armed(folder: Path) -> bool:
    return (folder / "armed").exists()


def disarm(folder: Path) -> bool:
    """Nothing dies any more. Whether nothing had died."""
    with _locked(folder):
        was_armed = armed(folder)
        (folder / "armed").unlink(missing_ok=True)
    return was_armed


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _die_if_armed(folder: Path, here: str) -> None:
    if not armed(folder):
        return
    with _locked(folder):
        if not armed(folder):
            return
        place, calls_left = (folder / "armed").read_text().split("\n")
        if place != here:
            return
        if int(calls_left) > 1:
            (folder / "armed").write_text(f"{place}\n{int(calls_left) - 1}")
            return
        (folder / "armed").unlink()
        os.kill(os.getpid(), signal.SIGKILL)


def _wrapped(method: Callable[..., Any], folder: Path, name: str) -> Callable[..., Any]:
    @functools.wraps(method)
    def dying(*args: Any, **kwargs: Any) -> Any:
        _die_if_armed(folder, f"{name} before")
        answer = method(*args, **kwargs)
        _die_if_armed(folder, f"{name} after")
        return answer

    return dying


def main() -> None:
    folder, program, *arguments = sys.argv[1:]
    which = CONTROL_PLANE if program == "gpuaas" else AGENT
    for where, module, owner, method in (*_STEPS, *TOPOLOGY_STEPS):
        if where == which:
            cls = getattr(importlib.import_module(module), owner)
            dying = _wrapped(getattr(cls, method), Path(folder), f"{owner}.{method}")
            setattr(cls, method, dying)
    sys.argv = [program, *arguments]
    start = "reconciler.cli.main" if which == CONTROL_PLANE else "node_agent.main"
    importlib.import_module(start).main()


if __name__ == "__main__":
    main()
