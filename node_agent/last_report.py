"""The last report that was sent, kept for `gpuaas-agent status`. Losing it loses nothing."""

from __future__ import annotations

import os
from pathlib import Path

from node_agent.wire import Report

NAME = "report.json"


def keep_report(folder: Path, report: Report) -> None:
    """Not flushed. Raises OSError."""
    path = folder / NAME
    temporary = path.with_suffix(".part")
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(handle, "wb") as file:
        file.write(report.canonical())
    temporary.replace(path)
