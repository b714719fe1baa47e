"""The agent's command line, run in this process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from click.testing import CliRunner

from node_agent.main import main as command


def run_command(folder: Path, *arguments: str, environment: dict[str, str] | None = None) -> Any:
    return CliRunner().invoke(
        command, ["--state-dir", str(folder), *arguments], env=environment or {}
    )
