"""What the simulator found in the agent, each as small as it gets."""

from __future__ import annotations

from pathlib import Path

from node_agent.ports import HostPorts
from node_agent.state import StateStore
from node_agent.wire import Port
from tests.agent.cases import INSTANCE, NOW_MS, launch, workload
from tests.agent.test_lost_state import TOPOLOGY, Host
from tests.agent.test_state import identity


def test_a_port_that_was_asked_for_is_not_kept_as_a_pick(tmp_path: Path) -> None:
    store = StateStore(tmp_path, NOW_MS)
    store.save_identity(identity())
    ports = HostPorts(store, is_free=lambda _: True)
    asked = workload().model_copy(update={"ports": (Port(name="x", container=1, host=8000),)})
    left_open = workload().model_copy(update={"ports": (Port(name="x", container=1),)})
    store.accept(launch(1), NOW_MS)
    assert ports.allocate(asked) == {"x": 8000}
    picked = ports.allocate(left_open)
    assert picked != {"x": 8000}
    assert ports.allocate(left_open) == picked
    state = store.instance(INSTANCE)
    assert state is not None
    assert state.host_ports == picked
    store.close()


def test_who_was_started_on_a_full_disk_is_not_ready_by_what_it_was_before() -> None:
    """Attempted: to start what waits for it, since nothing of its start could be written."""
    host = Host()
    host.run(TOPOLOGY)
    host.compose.pause(INSTANCE, "db")
    host.compose.end(INSTANCE, "api", 137)
    host.compose.deaf.add("db")
    host.compose.started.clear()
    host.disk.full = True
    host.turns.dirty = True
    for _ in range(200):
        host.turn()
    assert set(host.compose.started) == {"db"}
    host.disk.full = False
    host.compose.deaf.clear()
    for _ in range(200):
        host.turn()
    assert "api" in host.compose.started
