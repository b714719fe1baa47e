"""Killed at every step that is written down or done: a launch, an upgrade and a removal at each.

The programs are the real ones, `crash_points.py` ends them with SIGKILL exactly there. Whatever the
step, the same is asked afterwards: the right thing runs once, nothing is left, all is told once.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from reconciler.devkit.state_repo import Published
from tests.e2e import crash_points
from tests.e2e.crash_points import POINTS, Point
from tests.e2e.platform import AGENT, CONTROL_PLANE, VERSIONS, Platform
from tests.e2e.test_crash import TOLD, runs_once
from tests.e2e.watching import sampling

pytestmark = pytest.mark.xdist_group("crash matrix")
OLD, NEW = VERSIONS
NOT_IN_A_LAUNCH = {"stop", "remove", "sweep", "residue"}
NOT_IN_A_REMOVAL = {"pull", "create", "start", "probe", "save_placement"}


class Matrix:
    """One platform for all points, made anew after one that went wrong."""

    def __init__(self, root: Path, published: Published, docker_host: str) -> None:
        self._root = root
        self._published, self._docker_host = published, docker_host
        self._made: list[Platform] = []
        self._sound = False

    @contextlib.contextmanager
    def platform(self) -> Iterator[tuple[Platform, Path]]:
        """A platform on which nothing runs, and the folder its points are armed in."""
        if not self._sound:
            self.stop()
            self._start()
        self._sound = False
        yield self._made[-1], self._root
        self._sound = True

    def _start(self) -> None:
        folder = self._root / str(len(self._made))
        folder.mkdir()
        crash_points.disarm(self._root)

        def program(name: str) -> list[str]:
            return [sys.executable, "-m", "tests.e2e.crash_points", str(self._root), name]

        platform = Platform(folder, self._published, self._docker_host, program=program)
        self._made.append(platform)
        platform.remove_instance()
        platform.repo.commit("no instance")
        platform.start()
        platform.wait_settled("unknown")

    def stop(self) -> None:
        for platform in self._made[-1:]:
            platform.stop()


@pytest.fixture(scope="module")
def matrix(
    tmp_path_factory: pytest.TempPathFactory, docker_host: str, published: Published
) -> Iterator[Matrix]:
    made = Matrix(tmp_path_factory.mktemp("matrix"), published, docker_host)
    yield made
    made.stop()


@pytest.mark.parametrize("point", POINTS, ids=lambda point: point.name)
def test_killed_at_every_step(matrix: Matrix, point: Point) -> None:
    with matrix.platform() as (platform, folder):
        before = platform.last_cursor()
        with sampling(platform.docker) as sampled:
            platform.put_instance(OLD)
            comes_by = point.method not in NOT_IN_A_LAUNCH and point.call == 1
            committed(platform, folder, point, "launch", "running", comes_by)
            runs_once(platform, OLD)

            platform.set_version(NEW)
            comes_by = point.method not in {"sweep", "residue"} and point.call == 1
            killed = committed(platform, folder, point, "upgrade", "running", comes_by)
            runs_once(platform, NEW)

            platform.remove_instance()
            comes_by = not killed and point.method not in NOT_IN_A_REMOVAL
            committed(platform, folder, point, "removal", "decommissioned", comes_by)
        assert platform.docker.left() == (0, 0, 0)
        assert max(sampled.counts) == 1
        assert platform.event_names(before) == TOLD
        events = platform.events()
        assert len({event["event_id"] for event in events}) == len(events)


def committed(
    platform: Platform, folder: Path, point: Point, message: str, state: str, comes_by: bool
) -> bool:
    """Commits with the point armed, starts again what died of it, waits; whether it died.

    `comes_by`: it gets to the point for sure, if only after all else is over.
    """
    crash_points.arm(folder, point)
    with contextlib.suppress(httpx.TransportError):
        platform.commit(message)
    platform.wait(
        lambda: not crash_points.armed(folder) or (not comes_by and _over(platform, state))
    )
    died = not crash_points.disarm(folder)
    if died:
        name = point.program
        platform.wait(lambda: not platform.alive(name))
        platform.kill(name)
        platform.restart(name)
        platform.webhook()
    platform.wait_settled(state)
    assert all(platform.alive(name) for name in (CONTROL_PLANE, AGENT))
    return died


def _over(platform: Platform, state: str) -> bool:
    """Settled, and nothing is still on its way out: an upgrade is told before the old one went."""
    return bool(platform.settled(state)) and len(platform.docker.containers()) <= 1
