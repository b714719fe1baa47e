"""Which ports of the host its instances get, remembered over restarts."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Collection, Mapping, Sequence

from node_agent.engines.base import EngineFailure
from node_agent.engines.probes import port_is_free
from node_agent.state import InstanceState, StateStore
from node_agent.units import Unit
from node_agent.wire import FailureReason, Workload

PORT_FIRST, PORT_COUNT = 20_000, 10_000
"""Below the range that Linux takes the ports of outgoing connections from."""
_PICKED = range(PORT_FIRST, PORT_FIRST + PORT_COUNT)


class HostPorts:
    """Picks free host ports, never one that another instance holds, running or not."""

    def __init__(self, store: StateStore, is_free: Callable[[int], bool] = port_is_free) -> None:
        self._store = store
        self._is_free = is_free
        self._lock = threading.Lock()

    def allocate(self, workload: Workload) -> dict[str, int]:
        """A host port for every port name, remembered on disk before it is used."""
        with self._lock:
            states, identity = self._store.instances(), self._store.identity
            # Two agents on one host begin in different places, so that they rarely meet.
            seed = f"{identity.node}/{identity.joined_at_ms}" if identity else ""
            held = dict(states[workload.instance].host_ports)
            others = {
                port
                for name, state in states.items()
                if name != workload.instance
                for port in state.host_ports.values()
            }
            ports: dict[str, int] = {}
            for port in workload.ports:
                if port.host in _in_use_by_others(states, workload.instance):
                    # Free at the moment perhaps, but people reach the other one there.
                    message = f"host port {port.host} is another instance's"
                    raise EngineFailure(FailureReason.PORT_IN_USE, message, transient=True)
                taken = others | set(ports.values())
                ports[port.name] = (
                    port.host
                    or held.get(port.name)
                    or self._free_port(f"{seed}/{workload.instance}/{port.name}", taken)
                )
            # One that was asked for is no pick of ours: another may ask for it next.
            asked = {port.name for port in workload.ports if port.host is not None}
            picked = {name: port for name, port in {**held, **ports}.items() if name not in asked}
            self._store.save_placement(workload.instance, workload.engine, picked)
            return ports

    def note_found(self, instance: str, units: Sequence[Unit], engines: Collection[str]) -> None:
        """Of an instance whose state says nothing of `units`, since it was lost: ports that were
        picked for them go on being its own, and any of `engines` may have more of it.
        """
        with self._lock:
            states = self._store.instances()
            others = {
                port
                for name, state in states.items()
                if name != instance
                for port in state.host_ports.values()
            }
            found = {
                one.name: one.host_port
                for unit in sorted(units, key=lambda unit: (unit.alive, unit.unit_id))
                for one in unit.endpoints
                if one.host_port in _PICKED and one.host_port not in others
            }
            ports = {**found, **states[instance].host_ports}
            for engine in sorted(engines):
                self._store.save_placement(instance, engine, ports)

    def forget(self, workload: Workload, names: Collection[str] | None = None) -> None:
        """After a port turned out to be taken by somebody else: one of `names`, or of all."""
        with self._lock:
            held = self._store.instances()[workload.instance].host_ports
            kept = {} if names is None else {n: p for n, p in held.items() if n not in names}
            self._store.save_placement(workload.instance, workload.engine, kept)

    def _free_port(self, purpose: str, taken: set[int]) -> int:
        """Begins where `purpose` says, so that an instance gets its port again if it is free."""
        offset = int(hashlib.sha256(purpose.encode()).hexdigest(), 16)
        for step in range(PORT_COUNT):
            port = PORT_FIRST + (offset + step) % PORT_COUNT
            if port not in taken and self._is_free(port):
                return port
        raise EngineFailure(FailureReason.PORT_IN_USE, "no free port was found", transient=True)


def _in_use_by_others(states: Mapping[str, InstanceState], instance: str) -> set[int | None]:
    """The host ports of what is to be present, beside this instance."""
    return {
        port.host or state.host_ports.get(port.name)
        for name, state in states.items()
        if name != instance and state.workload is not None
        for port in state.workload.ports
    } - {None}
