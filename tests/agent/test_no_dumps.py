"""A process that holds secrets leaves no dump, and its children are as they always were."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from node_agent.no_dumps import keep_out_of_dumps

_TOLD = """
import ctypes, subprocess, sys
{before}
asked = ctypes.CDLL(None).prctl(3, 0, 0, 0, 0)
child = "import ctypes; print(ctypes.CDLL(None).prctl(3, 0, 0, 0, 0))"
print(asked, subprocess.check_output([sys.executable, "-c", child]).decode().strip())
"""
_KEPT = "from node_agent.no_dumps import keep_out_of_dumps; assert keep_out_of_dumps()"


@pytest.mark.parametrize(("before", "told"), [("", "1 1"), (_KEPT, "0 1")])
def test_its_own_memory_and_not_that_of_what_it_starts(before: str, told: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _TOLD.format(before=before)],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    assert done.stdout.strip() == told


def test_a_crash_leaves_nothing(tmp_path: Path) -> None:
    crash = f"{_KEPT}; import os; os.chdir({str(tmp_path)!r}); os.abort()"
    done = subprocess.run(
        [sys.executable, "-c", crash],
        cwd=Path(__file__).parents[2],
        preexec_fn=_as_large_as_it_likes,
        check=False,
    )
    assert done.returncode == -signal.SIGABRT
    assert os.listdir(tmp_path) == []


def _as_large_as_it_likes() -> None:
    hard = resource.getrlimit(resource.RLIMIT_CORE)[1]
    resource.setrlimit(resource.RLIMIT_CORE, (hard, hard))


def test_elsewhere_it_says_that_it_can_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert keep_out_of_dumps() is False
