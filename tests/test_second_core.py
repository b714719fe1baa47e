"""When a second process is started at all."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

import pytest

from reconciler.adapters import second_process
from reconciler.adapters.second_process import cores, pays
from reconciler.wiring.ahead import read_ahead


@pytest.mark.parametrize(
    ("affinity", "quota", "found"),
    [
        ({0}, "max 100000", 1),
        ({0, 1}, "max 100000", 2),
        ({0, 1, 2}, "150000 100000", 1.5),
        ({0, 1}, "400000 100000", 2),
        ({0, 1}, "what is this", 2),
        ({0, 1}, None, 2),
    ],
)
def test_cores(
    affinity: set[int],
    quota: str | None,
    found: float,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    file = tmp_path / "cpu.max"
    if quota is not None:
        file.write_text(quota)
    monkeypatch.setattr(second_process, "_CPU_MAX", file)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: affinity)
    assert cores() == found


@pytest.mark.parametrize(
    ("platform", "threads", "of_cores", "wanted"),
    [
        ("linux", 1, 2.0, True),
        ("linux", 1, 1.5, False),
        ("linux", 2, 2.0, False),
        ("darwin", 1, 2.0, False),
    ],
)
def test_where_it_pays(
    platform: str, threads: int, of_cores: float, wanted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(threading, "active_count", lambda: threads)
    monkeypatch.setattr(second_process, "cores", lambda: of_cores)
    assert pays() is wanted
    if not wanted:
        assert read_ahead(Path()) is None
