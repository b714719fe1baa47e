"""The whole agent with real Docker: launch, replace, repair, go back, remove with proof."""

from __future__ import annotations

import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import docker

from node_agent.link import AgentKey, join, parse_join_token
from node_agent.main import make_engines
from node_agent.runtime import Agent, Pace
from node_agent.state import Identity, StateStore
from node_agent.wire import (
    LABEL_NODE,
    FailureReason,
    HttpProbe,
    Image,
    Phase,
    Readiness,
    Workload,
    WorkloadReport,
)
from tests.agent.cases import NODE, launch, remove, workload
from tests.agent.control_plane import ControlPlane

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


def test_a_life_on_docker(
    docker_host: str, site_image: Callable[[str], Image], tmp_path: Path
) -> None:
    plane = ControlPlane()
    key = AgentKey.generate()
    reply = join(parse_join_token(plane.token()), key)
    store = StateStore(tmp_path, time.time_ns() // 1_000_000)
    store.save_identity(
        Identity(
            node=NODE, server=plane.url, private_key=key.reveal_private(),
            verifiers=reply.verifiers, min_version=1, joined_at_ms=0,
        )
    )  # fmt: skip
    engines = make_engines(NODE, tmp_path, ("docker",), docker_host)
    agent = Agent(store, engines, tmp_path, Pace(heartbeat_s=0.3, poll_wait_ms=300))
    agent.start()
    client = docker.APIClient(base_url=docker_host)
    try:
        _live(plane, client, site_image)
    finally:
        agent.stop()
        store.close()
        plane.close()
        client.close()


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
    deadline_s = time.monotonic() + 20
    while len(found := look()) != count:
        assert time.monotonic() < deadline_s, found
        time.sleep(0.05)
    return found
