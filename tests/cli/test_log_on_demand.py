"""The first line of a log sets it up: nothing is lost, and nothing unasked is told."""

from __future__ import annotations

import json
import logging

import pytest

from reconciler.cli.log_on_demand import log_on_demand


def test_every_line_is_written_once_and_masked(capsys: pytest.CaptureFixture[str]) -> None:
    log_on_demand("warning")
    log = logging.getLogger("reconciler.x")
    log.info("nobody asked")
    log.warning("lost %s", "ssh://me:secret@forge/state.git")
    log.error("again")
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    told = [(line["level"], line["event"]) for line in lines]
    assert told == [("warning", "lost ssh://***@forge/state.git"), ("error", "again")]


def test_talkative_libraries_are_quiet_from_the_first_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    log_on_demand("info")
    logging.getLogger("httpx").info("a call")
    logging.getLogger("reconciler.x").info("news")
    assert [json.loads(line)["event"] for line in capsys.readouterr().err.splitlines()] == ["news"]
