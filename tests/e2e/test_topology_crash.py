"""Agent and control plane killed over and over while an app of five services is launched, upgraded
and taken away: it gets there all the same, nothing is there twice, and all of it is told once.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import httpx
import pytest

from reconciler.devkit.state_repo import Published
from tests.e2e import crash_points, topologies
from tests.e2e.crash_points import Point
from tests.e2e.platform import AGENT, CONTROL_PLANE, Platform
from tests.e2e.test_crash import TOLD
from tests.e2e.test_topology import NEW, OLD, answers, handbook_of
from tests.e2e.topologies import App
from tests.services import go_tools

Side = Literal["before", "after"]


def agent(method: str, side: Side, call: int = 1, owner: str = "ComposeEngine") -> Point:
    return Point(AGENT, "", owner, method, side, call)


def control_plane(method: str, side: Side) -> Point:
    return Point(CONTROL_PLANE, "", "SqlStore", method, side)


LAUNCH = (
    control_plane("commit", "after"),
    agent("create", "after"),
    agent("_run", "after", owner="ComposeCli"),
    agent("start", "after"),
    agent("start_services", "after"),
    agent("save_progress", "after", 3, owner="StateStore"),
    agent("probe_service", "before", 2),
)
UPGRADE = (
    control_plane("tasks_for", "before"),
    agent("create", "before"),
    agent("_run", "before", owner="ComposeCli"),
    agent("start", "before"),
    agent("start_services", "before"),
    agent("remove", "after"),
)
REMOVAL = (
    agent("stop", "after"),
    agent("_run", "after", owner="ComposeCli"),
    agent("sweep", "before"),
    agent("residue", "after"),
    control_plane("save_report", "after"),
)


@pytest.fixture(scope="module")
def images(registry_endpoint: str) -> dict[str, str]:
    return topologies.push_images(registry_endpoint)


@pytest.fixture
def handbook(
    tmp_path: Path, docker_host: str, published: Published, images: dict[str, str]
) -> Iterator[App]:
    """Its platform is started, and nothing runs."""

    def program(name: str) -> list[str]:
        return [sys.executable, "-m", "tests.e2e.crash_points", str(tmp_path), name]

    compose = go_tools.program("docker-compose")
    platform = topologies.platform_with_compose(
        tmp_path, published, docker_host, compose, program=program
    )
    made = handbook_of(platform, images)
    platform.name = made.instance
    made.publish()
    made.add(NEW, topologies.no_change, {"worker": images["retrieval-worker+"]})
    platform.repo.begin_with()
    try:
        platform.start()
        yield made
    finally:
        platform.stop()


def test_killed_over_and_over(handbook: App, tmp_path: Path) -> None:
    platform = handbook.platform
    with watched(handbook) as doubled:
        handbook.want(OLD)
        dies_of_each(platform, tmp_path, LAUNCH, "launch", "running")
        handbook.wait_all_ready()
        answers(handbook)
        before = handbook.running.ids()

        handbook.want(NEW)
        dies_of_each(platform, tmp_path, UPGRADE, "upgrade", "running")
        handbook.wait_all_ready()
        answers(handbook)
        after = handbook.running.ids()
        assert {name for name in after if after[name] != before[name]} == {"worker"}

        handbook.forget()
        dies_of_each(platform, tmp_path, REMOVAL, "removal", "decommissioned")
    assert doubled == []
    assert platform.docker.left() == (0, 0, 0)
    assert platform.event_names() == TOLD
    events = platform.events()
    assert len({event["event_id"] for event in events}) == len(events)


def dies_of_each(
    platform: Platform, folder: Path, points: Sequence[Point], message: str, state: str
) -> None:
    """Commits with the first point armed, arms the next when one was died of, waits for the end."""
    for number, point in enumerate(points):
        crash_points.arm(folder, point)
        if number == 0:
            with contextlib.suppress(httpx.TransportError):
                platform.commit(message)
        else:
            platform.restart(points[number - 1].program)
            platform.webhook()
        platform.wait(lambda: not crash_points.armed(folder))
        wait_dead(platform, point.program)
    for name in (CONTROL_PLANE, AGENT):
        if not platform.alive(name):
            platform.restart(name)
    platform.webhook()
    platform.wait_settled(state)


def wait_dead(platform: Platform, program: str) -> None:
    platform.wait(lambda: not platform.alive(program))
    platform.kill(program)


@contextlib.contextmanager
def watched(handbook: App) -> Iterator[list[str]]:
    """Asks Docker over and over for services that run twice; what was seen is in the list."""
    seen: list[str] = []
    stop = threading.Event()
    api = handbook.platform.docker.connect()

    def look() -> None:
        while not stop.wait(0.05):
            seen.extend(handbook.running.doubled(api))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield seen
    finally:
        stop.set()
        thread.join()
        api.close()
