"""A running agent's standing with its control plane: certificate, keys, revocation."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import structlog

from node_agent.authorized_keys import Installed
from node_agent.link import AgentKey
from node_agent.membership import NodeConfig, SshKey
from node_agent.runtime import Agent, Pace
from node_agent.state import Identity, StateStore
from node_agent.wire import Phase, WorkloadReport
from tests.agent.authority import DAY_S
from tests.agent.cases import DIGEST, NODE, launch, verifier
from tests.agent.control_plane import ControlPlane
from tests.fakes.engine import FakeEngine

PACE = Pace(heartbeat_s=0.3, poll_wait_ms=300, backoff_max_s=0.2, inventory_s=60)
SSH = SshKey(user="ubuntu", id="acme/research/1", public_key="ssh-ed25519 AAAA")


def read_identity(folder: Path) -> Identity:
    return Identity.model_validate_json((folder / "agent.json").read_bytes())


def is_ready(report: WorkloadReport) -> bool:
    return report.phase is Phase.READY


def eventually(condition: Callable[[], bool], timeout_s: float = 120.0) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, "did not come true"
        time.sleep(0.02)


@pytest.fixture
def start(joined: Path) -> Iterator[Callable[[], FakeEngine]]:
    running: list[tuple[Agent, StateStore]] = []

    def begin() -> FakeEngine:
        store = StateStore(joined, time.time_ns() // 1_000_000)
        engine = FakeEngine(NODE, {DIGEST}, name="process")
        agent = Agent(
            store, {"process": engine}, joined, PACE,
            ssh_keys=lambda keys: Installed(tuple(key.id for key in keys), ""),
        )  # fmt: skip
        agent.start()
        running.append((agent, store))
        return engine

    yield begin
    for agent, store in running:
        agent.stop()
        store.close()


def reissue(plane: ControlPlane, joined: Path, ttl_s: float, offset_s: float) -> None:
    """As if the agent had got its certificate at another time."""
    identity = read_identity(joined)
    key = AgentKey.from_hex(identity.private_key)
    plane.authority.offset_s = offset_s
    certificate = plane.authority.agent(key.request_certificate(NODE), NODE, ttl_s)
    plane.authority.offset_s = 0
    after = identity.model_copy(update={"certificate": certificate})
    (joined / "agent.json").write_text(after.model_dump_json())


@pytest.mark.parametrize("offset_s", [-7 * DAY_S, -0.7 * DAY_S], ids=["ended", "past its half"])
def test_a_certificate_is_renewed_without_a_restart(
    plane: ControlPlane, joined: Path, start: Callable[[], FakeEngine], offset_s: float
) -> None:
    reissue(plane, joined, DAY_S, offset_s)
    start()
    eventually(lambda: len(plane.certificates) == 2)
    eventually(lambda: read_identity(joined).certificate == plane.certificates[-1])
    plane.send(launch)
    plane.wait_for_workload(is_ready)
    assert len(plane.certificates) == 2


def test_joined_while_the_ca_was_away_it_asks_until_it_is_back(
    plane: ControlPlane, joined: Path, start: Callable[[], FakeEngine]
) -> None:
    identity = read_identity(joined).model_copy(update={"certificate": ""})
    (joined / "agent.json").write_text(identity.model_dump_json())
    plane.ca_away = True
    start()
    time.sleep(0.5)
    assert plane.reports == []
    plane.ca_away = False
    plane.wait_for(lambda report: report.node == NODE)


def test_a_task_signed_by_a_key_that_comes_with_it_is_taken(
    plane: ControlPlane, start: Callable[[], FakeEngine], joined: Path
) -> None:
    start()
    first = plane.wait_for(lambda report: report.config is not None)
    assert first.config is not None
    assert (first.config.digest, first.config.newest_version) == ("", 1)
    older, newer = plane.key, AgentKey.generate()
    plane.config = NodeConfig(
        node=NODE, issued_at_ms=time.time_ns() // 1_000_000, ssh_keys=(SSH,),
        verifiers=(verifier(older, 1), verifier(newer, 2)),
    )  # fmt: skip
    plane.key = newer
    plane.send(launch)
    plane.wait_for_workload(is_ready)
    told = plane.wait_for(lambda report: bool(report.config and report.config.ssh_keys))
    assert told.config is not None
    assert told.config.digest == plane.config.digest
    assert (told.config.newest_version, told.config.ssh_keys) == (2, ("acme/research/1",))
    assert not [report.refusal for report in plane.reports if report.refusal]
    assert read_identity(joined).config == plane.config


def test_a_task_signed_by_a_key_whose_name_comes_late_is_taken_then(
    plane: ControlPlane, start: Callable[[], FakeEngine]
) -> None:
    start()
    older, newer = plane.key, AgentKey.generate()
    plane.key = newer
    plane.send(launch)
    plane.wait_for(lambda report: report.refusal.startswith("unknown_key"))
    plane.config = NodeConfig(
        node=NODE, issued_at_ms=time.time_ns() // 1_000_000,
        verifiers=(verifier(older, 1), verifier(newer, 2)),
    )  # fmt: skip
    plane.wait_for_workload(is_ready)
    plane.wait_for(lambda report: not report.refusal)


def test_a_config_that_is_not_believed_is_told_of_and_tasks_go_on(
    plane: ControlPlane, start: Callable[[], FakeEngine], joined: Path
) -> None:
    """Attempted: to bring a key of one's own along."""
    start()
    stranger = AgentKey.generate()
    plane.config_signer = stranger
    plane.config = NodeConfig(
        node=NODE, issued_at_ms=time.time_ns() // 1_000_000, verifiers=(verifier(stranger, 9),)
    )
    told = plane.wait_for(lambda report: bool(report.refusal))
    assert told.refusal == "config_refused: unknown_key: signed by no key that is trusted here"
    plane.send(launch)
    plane.wait_for_workload(is_ready)
    assert read_identity(joined).config is None
    plane.config = None
    plane.wait_for(lambda report: not report.refusal)


def test_revoked_it_says_so_loudly_and_keeps_what_runs(
    plane: ControlPlane, start: Callable[[], FakeEngine]
) -> None:
    with structlog.testing.capture_logs() as lines:
        engine = start()
        plane.send(launch)
        plane.wait_for_workload(is_ready)
        plane.revoked = True
        eventually(lambda: any(line.get("code") == "node_revoked" for line in lines))
        engine.end(engine.units()[0], 137)
        eventually(lambda: engine.units()[0].status == "running")
    (line, *_) = [line for line in lines if line.get("code") == "node_revoked"]
    assert line["log_level"] == "error"
    assert line["event"].startswith("this node was revoked: what runs is kept")


def test_one_whose_certificate_is_not_taken_asks_for_another(
    plane: ControlPlane, start: Callable[[], FakeEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its key is right and its time not over, and yet."""
    unwanted = plane.certificates[0]

    def is_agents(peer: bytes | None) -> bool:
        return peer is not None and plane.certificates[-1] != unwanted

    monkeypatch.setattr(plane, "_is_agents", is_agents)
    start()
    plane.wait_for(lambda report: report.node == NODE)
    assert len(plane.certificates) == 2
