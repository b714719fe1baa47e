"""Killed with SIGKILL at any moment and started again: nothing twice, nothing left, all told once.

A launch, an upgrade and a removal are each cut off at a moment that an event or a delay gives.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

import httpx
import pytest

from node_agent.wire import LABEL_INSTANCE
from reconciler.devkit.state_repo import Published
from tests.e2e.platform import AGENT, CONTROL_PLANE, REPOSITORY, Platform, push
from tests.e2e.watching import sampling, tripwire

BOTH = (CONTROL_PLANE, AGENT)
SLOW = ["/bin/busybox", "sh", "-c", "sleep 0.7; exec /bin/busybox httpd -f -p 8080 -h /www"]
OLD, NEW = "2.0.0", "2.1.0"
TOLD = [
    "requested", "deploying", "running",
    "upgrade_requested", "upgraded",
    "decommission_requested", "decommissioned",
]  # fmt: skip

Moment = Callable[[Platform, Callable[[], None]], AbstractContextManager[None]]


def said(action: str) -> Moment:
    """The moment Docker says so of a container of the instance."""
    return lambda platform, kill: tripwire(platform.docker, action, kill)


def after(delay_s: float) -> Moment:
    """So long after the commit was announced."""

    @contextmanager
    def wait(_platform: Platform, kill: Callable[[], None]) -> Iterator[None]:
        yield
        time.sleep(delay_s)
        kill()

    return wait


def queued(platform: Platform, kill: Callable[[], None]) -> AbstractContextManager[None]:
    """The task is in the journal and on no node: the agent died before the commit."""

    @contextmanager
    def wait() -> Iterator[None]:
        before = platform.last_cursor()
        platform.kill(AGENT)
        yield
        platform.wait(lambda: platform.events(before))
        platform.kill(CONTROL_PLANE)

    del kill
    return wait()


CASES = [
    pytest.param(BOTH, queued, queued, queued, id="task queued"),
    pytest.param(BOTH, said("create"), said("create"), said("kill"), id="container created"),
    pytest.param(BOTH, said("start"), said("start"), said("die"), id="during the gate"),
    pytest.param((AGENT,), said("create"), said("die"), said("die"), id="agent only"),
    pytest.param(
        (CONTROL_PLANE,), said("start"), said("create"), said("kill"), id="control plane only"
    ),
    pytest.param(BOTH, after(0.02), after(0.1), after(0.05), id="early"),
    pytest.param(BOTH, after(0.4), after(0.6), after(0.3), id="late"),
]


class Shared:
    """One platform for all cases, made anew after one that went wrong."""

    def __init__(self, root: Path, published: Published, docker_host: str) -> None:
        self._root = root
        self._published, self._docker_host = published, docker_host
        self._made: list[Platform] = []

    def get(self) -> Platform:
        """Nothing runs on it; two versions that take a while to be ready are in its catalog."""
        if self._made and self._is_idle(self._made[-1]):
            return self._made[-1]
        self.stop()
        folder = self._root / str(len(self._made))
        folder.mkdir()
        platform = Platform(folder, self._published, self._docker_host)
        self._made.append(platform)
        platform.remove_instance()
        for version in (OLD, NEW):
            platform.add_version(version, push(platform.published.endpoint, version), SLOW)
        platform.start()
        platform.wait_settled("unknown")
        return platform

    def stop(self) -> None:
        for platform in self._made[-1:]:
            platform.stop()

    @staticmethod
    def _is_idle(platform: Platform) -> bool:
        return (
            all(platform.alive(name) for name in BOTH)
            and platform.docker.left() == (0, 0, 0)
            and platform.instance()["state"] == "decommissioned"
        )


@pytest.fixture(scope="module")
def shared(
    tmp_path_factory: pytest.TempPathFactory, docker_host: str, published: Published
) -> Iterator[Shared]:
    made = Shared(tmp_path_factory.mktemp("crash"), published, docker_host)
    yield made
    made.stop()


@pytest.mark.parametrize(("victims", "in_launch", "in_upgrade", "in_removal"), CASES)
def test_killed_in_the_middle(
    shared: Shared,
    victims: tuple[str, ...],
    in_launch: Moment,
    in_upgrade: Moment,
    in_removal: Moment,
) -> None:
    platform = shared.get()
    before = platform.last_cursor()
    with sampling(platform.docker) as sampled:
        platform.put_instance(OLD)
        cut_off(platform, victims, in_launch, "launch")
        platform.wait_settled("running")
        runs_once(platform, OLD)

        platform.set_version(NEW)
        cut_off(platform, victims, in_upgrade, "upgrade")
        platform.wait_settled("running")
        runs_once(platform, NEW)

        platform.remove_instance()
        cut_off(platform, victims, in_removal, "removal")
        platform.wait_settled("decommissioned")
    assert platform.docker.left() == (0, 0, 0)
    assert max(sampled.counts) == 1
    assert platform.event_names(before) == TOLD
    assert len({event["event_id"] for event in platform.events()}) == len(platform.events())


def cut_off(platform: Platform, victims: tuple[str, ...], moment: Moment, message: str) -> None:
    """Commits, kills the victims at the moment, and starts them again."""
    with moment(platform, lambda: platform.kill(*victims)), suppress(httpx.TransportError):
        platform.commit(message)
    for name in BOTH:
        if not platform.alive(name):
            platform.restart(name)
    platform.webhook()


def runs_once(platform: Platform, version: str) -> None:
    container = platform.docker.only()
    digest = platform.instance()["applied_digest"]
    endpoint = platform.published.endpoint
    assert container["Config"]["Image"] == f"{endpoint}/{REPOSITORY}@{digest}"
    assert platform.page() == version


def test_the_agent_repairs_alone_while_the_control_plane_is_down(platform: Platform) -> None:
    platform.wait_settled("running")
    url, told = platform.url(), platform.events()
    before = platform.docker.only()
    platform.kill(CONTROL_PLANE)
    assert platform.page_at(url) == "1.0.0"
    platform.docker.api.kill(before["Id"])
    platform.wait(lambda: platform.page_at(url) == "1.0.0")
    again = platform.docker.only()
    assert again["State"]["StartedAt"] > before["State"]["StartedAt"]
    assert again["Config"]["Labels"][LABEL_INSTANCE] == before["Config"]["Labels"][LABEL_INSTANCE]

    platform.docker.api.remove_container(again["Id"], force=True)
    platform.wait(lambda: platform.page_at(url) == "1.0.0")
    assert platform.docker.only()["Config"]["Image"] == before["Config"]["Image"]
    platform.start_control_plane()
    platform.wait(lambda: platform.instance()["restarts"] == 2)
    platform.wait_settled("running")
    assert platform.events() == told
