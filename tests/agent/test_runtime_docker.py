"""The whole agent with real Docker: launch, replace, repair, go back, remove with proof."""

from __future__ import annotations

import contextlib
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import docker
import pytest

from node_agent.link import AgentKey, join, parse_join_token
from node_agent.main import make_engines
from node_agent.runtime import Agent, Pace
from node_agent.state import Identity, StateStore
from node_agent.wire import (
    LABEL_NODE,
    FailureReason,
    HttpProbe,
    Image,
    Limits,
    Phase,
    Readiness,
    Workload,
    WorkloadReport,
)
from tests.agent.cases import NODE, launch, remove, workload
from tests.agent.control_plane import ControlPlane

MIB = 1024 * 1024
READINESS = Readiness(probe=HttpProbe(port=8080), interval_ms=100, start_budget_ms=20_000)


def site(image: Image, **changes: Any) -> Workload:
    fields = {"image": image, "engine": "docker", "command": (), "readiness": READINESS}
    return workload(**{**fields, **changes})


def page(report: WorkloadReport) -> str:
    url = f"http://127.0.0.1:{report.endpoints[0].host_port}/"
    with urllib.request.urlopen(url, timeout=5) as answer:
        return str(answer.read().decode().strip())


def ready(what: Workload) -> Callable[[WorkloadReport], bool]:
    return lambda w: w.phase is Phase.READY and w.running_hash == what.spec_hash


@dataclass(frozen=True)
class Stage:
    """An agent that runs, its control plane, and somebody with access to its Docker."""

    plane: ControlPlane
    client: Any
    image: Callable[[str], Image]

    def ours(self) -> list[Any]:
        found = self.client.containers(all=True, filters={"label": f"{LABEL_NODE}={NODE}"})
        return list(found)

    def only(self) -> dict[str, Any]:
        (container,) = _settled(self.ours, 1)
        return dict(self.client.inspect_container(container["Id"]))


@pytest.fixture
def stage(docker_host: str, site_image: Callable[[str], Image], tmp_path: Path) -> Iterator[Stage]:
    plane = ControlPlane()
    key = AgentKey.generate()
    reply = join(parse_join_token(plane.token()), key)
    store = StateStore(tmp_path, time.time_ns() // 1_000_000)
    store.save_identity(
        Identity(
            node=NODE, server=plane.url, private_key=key.reveal_private(),
            verifiers=reply.verifiers, min_version=1, joined_at_ms=0,
            certificate=reply.certificate, ca=reply.ca,
        )
    )  # fmt: skip
    engines = make_engines(NODE, tmp_path, ("docker",), docker_host)
    agent = Agent(store, engines, tmp_path, Pace(heartbeat_s=0.3, poll_wait_ms=300))
    agent.start()
    client = docker.APIClient(base_url=docker_host)
    try:
        yield Stage(plane, client, site_image)
        plane.send(remove)
        plane.wait_for_workload(lambda w: w.phase is Phase.REMOVED)
    finally:
        agent.stop()
        store.close()
        plane.close()
        client.close()


def test_a_life_on_docker(stage: Stage) -> None:
    _live(stage.plane, stage.client, stage.image)


def start_site(stage: Stage) -> tuple[Workload, dict[str, Any]]:
    what = site(stage.image("1.0.0"), limits=Limits(memory_mib=64))
    stage.plane.send(launch, what)
    stage.plane.wait_for_workload(ready(what))
    return what, stage.only()


def test_a_container_that_was_changed_in_place_is_made_anew(stage: Stage) -> None:
    what, before = start_site(stage)
    stage.client.update_container(before["Id"], mem_limit=128 * MIB, memswap_limit=128 * MIB)
    told = stage.plane.wait_for_workload(lambda w: w.reason is FailureReason.ALTERED)
    assert told.message.startswith("memory limit changed from 64 MiB to 128 MiB; memory and swap")
    back = stage.plane.wait_for_workload(lambda w: ready(what)(w) and w.restarts == 1)
    assert (page(back), back.reason) == ("1.0.0", None)
    after = stage.only()
    assert after["Id"] != before["Id"]
    assert after["HostConfig"]["Memory"] == 64 * MIB
    assert after["HostConfig"]["PortBindings"] == before["HostConfig"]["PortBindings"]


@pytest.fixture
def _looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of what Docker says nothing, the agent's next look tells, ten seconds later at most."""
    monkeypatch.setattr("node_agent.turns.REFRESH_MS", 500)


@pytest.mark.usefixtures("_looks_often")
def test_a_container_that_was_put_on_another_network_is_made_anew(stage: Stage) -> None:
    what, before = start_site(stage)
    stage.client.connect_container_to_network(before["Id"], "bridge")
    stage.plane.wait_for_workload(lambda w: ready(what)(w) and w.restarts == 1)
    assert list(stage.only()["NetworkSettings"]["Networks"]) == [f"gpuaas-{NODE}"]


def test_a_container_made_again_by_hand_with_more_rights_is_made_anew(stage: Stage) -> None:
    what, before = start_site(stage)
    stage.client.remove_container(before["Id"], force=True)
    host = {**before["HostConfig"], "Privileged": True, "Binds": ["/:/host"]}
    request = {**before["Config"], "HostConfig": host}
    # The agent brings its own back at once; theirs has another name, and is older than the next.
    theirs = stage.client.create_container_from_config(request, f"by-hand-{NODE}")["Id"]
    _start(stage, theirs)
    _gone(stage, theirs)
    back = stage.plane.wait_for_workload(ready(what))
    assert page(back) == "1.0.0"
    after = stage.only()
    assert (after["HostConfig"]["Privileged"], after["HostConfig"]["Binds"]) == (False, None)


@pytest.mark.usefixtures("_looks_often")
def test_a_twin_with_our_labels_goes_running_or_not(stage: Stage) -> None:
    what, ours = start_site(stage)
    request = {**ours["Config"], "HostConfig": {**ours["HostConfig"], "PortBindings": {}}}
    for started in (False, True):
        twin = stage.client.create_container_from_config(request, f"twin-{started}-{NODE}")["Id"]
        if started:
            _start(stage, twin)
        _gone(stage, twin)
    assert stage.only()["Id"] == ours["Id"]
    assert page(stage.plane.wait_for_workload(ready(what))) == "1.0.0"


def test_a_container_that_was_paused_or_renamed_serves_again(stage: Stage) -> None:
    what, ours = start_site(stage)
    stage.client.rename(ours["Id"], f"renamed-{NODE}")
    stage.client.pause(ours["Id"])
    back = stage.plane.wait_for_workload(lambda w: ready(what)(w) and w.restarts == 1)
    assert page(back) == "1.0.0"
    assert (stage.only()["Id"], stage.only()["Name"]) == (ours["Id"], f"/renamed-{NODE}")


def _gone(stage: Stage, container: str) -> None:
    _settled(lambda: [one for one in stage.ours() if one["Id"] == container], 0)


def _start(stage: Stage, container: str) -> None:
    """Unless the agent was quicker and has removed it."""
    with contextlib.suppress(docker.errors.APIError):
        stage.client.start(container)


def _live(plane: ControlPlane, client: Any, site_image: Callable[[str], Image]) -> None:
    ours = {"label": f"{LABEL_NODE}={NODE}"}
    first, second = site(site_image("1.0.0")), site(site_image("1.1.0"))
    plane.send(launch, first)
    assert page(plane.wait_for_workload(ready(first))) == "1.0.0"
    plane.send(launch, second)
    upgraded = plane.wait_for_workload(ready(second))
    assert page(upgraded) == "1.1.0"
    (container,) = _settled(lambda: client.containers(all=True, filters=ours), 1)

    client.remove_container(container["Id"], force=True)
    repaired = plane.wait_for_workload(lambda w: ready(second)(w) and w.restarts == 1)
    assert page(repaired) == "1.1.0"

    gate = READINESS.model_copy(update={"start_budget_ms": 500})
    stuck = ("/bin/busybox", "sleep", "600")
    bad = site(second.image, command=stuck, readiness=gate, stop_grace_ms=0)
    plane.send(launch, bad)
    failed = plane.wait_for_workload(lambda w: w.phase is Phase.FAILED and w.retained)
    assert failed.reason is FailureReason.NOT_READY_IN_TIME
    assert (failed.running_hash, page(failed)) == (second.spec_hash, "1.1.0")

    plane.send(remove)
    gone = plane.wait_for_workload(lambda w: w.phase is Phase.REMOVED)
    assert gone.proof is not None
    assert gone.proof.clean
    assert client.containers(all=True, filters=ours) == []
    assert client.networks(filters=ours) == []


def _settled(look: Callable[[], list[Any]], count: int) -> list[Any]:
    deadline_s = time.monotonic() + 120
    while len(found := look()) != count:
        assert time.monotonic() < deadline_s, found
        time.sleep(0.05)
    return found
