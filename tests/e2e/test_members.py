"""An instance over two nodes, with a real agent for each: launched, grown, shrunk, hurt, removed.

Both nodes are on one Docker, whose bridge gives the first its address: what its members publish
there, containers reach and the loopback does not.
"""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docker
import pytest
import yaml

from node_agent.wire import LABEL_INSTANCE
from reconciler.devkit import process, state_repo
from reconciler.devkit.state_repo import Published
from tests.e2e.platform import INSTANCE, VERSIONS, DockerNode, Platform, program

VERSION = "2.0.0"
VERSION_FILE = f"catalog/hello/versions/{VERSION}.yaml"
OTHER_AGENT = "agent-b"
ASK = 'exec /bin/busybox wget -q -O /dev/null "http://$GPUAAS_HEAD_HTTP/"'
WORKER: dict[str, Any] = {
    "role": "worker",
    "members_max": 4,
    "command": ["/bin/busybox", "sleep", "100000"],
    "health": {
        "readiness": {"exec": {"command": ["/bin/busybox", "sh", "-c", ASK]}},
        "interval_s": 1,
        "timeout_s": 2,
        "start_budget_s": 30,
    },
}


class Pair:
    """A platform with a second node, whose instance has a head and workers."""

    def __init__(self, platform: Platform) -> None:
        self.platform = platform
        self.other = f"{platform.node}-b"
        self.address = platform.docker.api.inspect_network("bridge")["IPAM"]["Config"][0]["Gateway"]
        self.port = free_port_at(self.address)
        self._agent: process.Service | None = None
        self._describe()

    def _describe(self) -> None:
        platform, repo = self.platform, self.platform.repo
        platform.add_version(VERSION, platform.published.digests[VERSIONS[-1]])
        self.change(VERSION_FILE, self._with_roles)
        node = f"platform/nodes/{platform.node}.yaml"
        lease = "tenants/acme/projects/research/allocations/small.yaml"
        for path, name in ((node, self.other), (lease, "far")):
            text = (repo.folder / path).read_text().replace(platform.node, self.other)
            copy = repo.folder / path.replace(Path(path).stem, name)
            copy.write_text(text.replace("name: small", "name: far"))
        self.change(node, lambda spec: spec.update(address=self.address))
        self.change(state_repo.INSTANCE, self._spread)

    def _with_roles(self, spec: dict[str, Any]) -> None:
        profile = spec["runtime_profile"]
        profile["role"], profile["members"] = "head", [WORKER]
        profile["ports"][0]["expose"] = "members"

    def _spread(self, spec: dict[str, Any]) -> None:
        spec["version"] = VERSION
        spec["parameters"] = {"cpu_cores": 0.2, "memory_gib": 0.0625, "host_port": self.port}
        spec["members"] = [worker("w1", "far"), worker("w2", "small")]

    def change(self, path: str, change: Any) -> None:
        def edited(text: str) -> str:
            document = yaml.safe_load(text)
            change(document["spec"])
            return yaml.safe_dump(document, sort_keys=False)

        self.platform.repo.edit(path, edited)

    def have(self, *members: dict[str, Any]) -> None:
        self.change(state_repo.INSTANCE, lambda spec: spec.update(members=list(members)))

    def start(self) -> None:
        self.platform.repo.begin_with()
        self.platform.start()
        token = self.platform.root / "token-b"
        token.write_text(self.platform.gpuaas("node", "join", self.other).stdout)
        process.run([*self._command(), "join", "--token-file", str(token)])
        self.start_other()

    def start_other(self) -> None:
        host = ["--docker-host", str(self.platform.docker_host)]
        argv = [*self._command(), "run", "--engine", "docker", *host]
        environment = {"PATH": os.environ.get("PATH", os.defpath)}
        self._agent = process.start(OTHER_AGENT, argv, self.platform.root, environment)

    def kill_other(self) -> None:
        assert self._agent is not None
        os.kill(self._agent.identity.pid, signal.SIGKILL)
        self._agent.stop()

    def stop(self) -> None:
        if self._agent is not None:
            self._agent.stop(grace_s=0.2)
        self.far.clean_up()

    def _command(self) -> list[str]:
        return [program("gpuaas-agent"), "--state-dir", str(self.platform.root / OTHER_AGENT)]

    @property
    def far(self) -> DockerNode:
        near = self.platform.docker
        return DockerNode(near.host, near.api, self.other)

    def running(self) -> dict[str, str]:
        """Member → id of its container, on both nodes; the first is called by nothing."""
        found = [*self.platform.docker.running(), *self.far.running()]
        named = {one["Config"]["Labels"][LABEL_INSTANCE]: one["Id"] for one in found}
        assert len(named) == len(found), "no member runs twice"
        return {name.removeprefix(INSTANCE).lstrip("."): one for name, one in named.items()}

    def members_ready(self) -> tuple[str, str]:
        conditions = self.platform.instance().get("conditions", [])
        found = [one for one in conditions if one["type"] == "MembersReady"]
        return (found[0]["status"], found[0]["message"]) if found else ("", "")

    def wait_ready(self, count: int) -> dict[str, str]:
        said = ("True", f"{count}/{count} members ready")
        self.platform.wait(lambda: self.members_ready() == said)
        return self.running()

    def state_of(self, member: str) -> str:
        rows = self.platform.status()["instances"]
        return next((r["state"] for r in rows if r["instance"] == f"{INSTANCE}.{member}"), "")


def worker(name: str, allocation: str) -> dict[str, Any]:
    return {"name": name, "role": "worker", "allocation": allocation}


def free_port_at(address: str) -> int:
    with socket.socket() as asked:
        asked.bind((address, 0))
        return int(asked.getsockname()[1])


@pytest.fixture
def pair(tmp_path: Path, docker_host: str, published: Published) -> Iterator[Pair]:
    settings = {"GPUAAS_NODE_OFFLINE_AFTER_S": "15"}
    platform = Platform(tmp_path, published, docker_host, settings)
    made = Pair(platform)
    try:
        made.start()
        yield made
    finally:
        made.stop()
        platform.stop()


def test_a_head_and_its_workers_on_two_nodes(pair: Pair) -> None:
    first = pair.wait_ready(3)
    assert sorted(first) == ["", "w1", "w2"]
    head_is_reached_at_its_address_only(pair, first)

    pair.have(worker("w1", "far"), worker("w2", "small"), worker("w3", "far"))
    pair.platform.commit("one more")
    grown = pair.wait_ready(4)
    assert {name: grown[name] for name in first} == first, "nobody else was restarted"

    pair.have(worker("w1", "far"), worker("w3", "far"))
    pair.platform.commit("one less")
    pair.platform.wait(lambda: pair.state_of("w2") == "decommissioned")
    left = pair.wait_ready(3)
    assert left == {name: one for name, one in grown.items() if name != "w2"}

    a_worker_that_is_killed_comes_back(pair)
    a_node_that_is_away_is_shown(pair)
    decommissioned_all_are_proved_gone(pair)


def head_is_reached_at_its_address_only(pair: Pair, running: dict[str, str]) -> None:
    api: docker.APIClient = pair.platform.docker.api
    bindings = api.inspect_container(running[""])["NetworkSettings"]["Ports"]["8080/tcp"]
    assert bindings == [{"HostIp": pair.address, "HostPort": str(pair.port)}]
    assert pair.platform.page() == VERSIONS[-1]
    assert pair.platform.page_at(f"http://127.0.0.1:{pair.port}/") == ""
    env = api.inspect_container(running["w1"])["Config"]["Env"]
    assert f"GPUAAS_HEAD_HTTP={pair.address}:{pair.port}" in env


def a_worker_that_is_killed_comes_back(pair: Pair) -> None:
    before = pair.running()
    pair.platform.docker.api.remove_container(before["w1"], force=True)
    pair.platform.wait(lambda: pair.running().get("w1") not in (None, before["w1"]))
    after = pair.wait_ready(3)
    assert {name for name in after if after[name] != before[name]} == {"w1"}


def a_node_that_is_away_is_shown(pair: Pair) -> None:
    pair.kill_other()
    away = "1/3 members ready: w1 is unknown (node_offline), w3 is unknown (node_offline)"
    pair.platform.wait(lambda: pair.members_ready() == ("Unknown", away))
    shown = pair.platform.gpuaas("status").stdout
    assert "1/3 members ready" in shown
    assert "hello.w1 (worker)" in shown
    assert len(pair.running()) == 3, "what runs there goes on"
    pair.start_other()
    pair.wait_ready(3)


def decommissioned_all_are_proved_gone(pair: Pair) -> None:
    cursor = pair.platform.last_cursor()
    allow = {"guards": {"removals_max_percent": 100}}
    pair.change("environments/dev.yaml", lambda spec: spec.update(allow))
    pair.change(state_repo.INSTANCE, lambda spec: spec.update(desired="decommissioned"))
    pair.platform.commit("all of it goes")
    pair.platform.wait_settled("decommissioned")
    assert pair.platform.docker.left() == pair.far.left() == (0, 0, 0)
    rows = {row["instance"]: row for row in pair.platform.status()["instances"]}
    assert {row["message"] for row in rows.values()} == {"teardown proved"}
    gone = [
        event["instance"]
        for event in pair.platform.events(cursor)
        if event["type"] == "apps.instance.decommissioned"
    ]
    assert sorted(gone[:2]) == [f"{INSTANCE}.w1", f"{INSTANCE}.w3"]
    assert gone[2:] == [INSTANCE], "the first goes last"
