"""A control plane to speak to, and a state folder that has joined it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from node_agent.engines.process import ProcessEngine
from tests.agent.cases import NODE
from tests.agent.commands import run_command
from tests.agent.control_plane import ControlPlane


@pytest.fixture
def plane() -> Iterator[ControlPlane]:
    plane = ControlPlane()
    yield plane
    plane.close()


@pytest.fixture
def joined(plane: ControlPlane, tmp_path: Path) -> Iterator[Path]:
    """A state folder that has joined. Whatever runs under it is ended afterwards."""
    folder = tmp_path / "state"
    result = run_command(folder, "join", environment={"GPUAAS_JOIN_TOKEN": plane.token()})
    assert result.exit_code == 0, result.output
    yield folder
    engine = ProcessEngine(NODE, folder / "process")
    for unit in engine.units():
        engine.stop(unit, 0)
        engine.remove(unit)
