"""The control plane: the server and the loop around one set of ports."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from reconciler.cycle import Pass
from reconciler.loop import Loop
from reconciler.ports import Ports
from reconciler.server.app import build_app
from reconciler.server.deps import ServerDeps, Signal
from reconciler.server.metrics import Metrics, PassNews
from reconciler.server.serve import serve
from reconciler.settings import Settings
from reconciler.watch import PHASES
from reconciler.wiring.files import schema_set
from reconciler.wiring.gate import gate_of
from reconciler.wiring.ports import first_start, holder, open_ports
from reconciler.wiring.snapshots import snapshot_service


@dataclass(frozen=True)
class ControlPlane:
    """A running control plane; `address` is where it listens, http://host:port."""

    ports: Ports
    loop: Loop
    address: str


@contextmanager
def control_plane(settings: Settings, *, manual: bool = False) -> Iterator[ControlPlane]:
    """The server and the loop around one set of ports. The caller runs the loop.

    With `manual` changes wait for somebody to apply a plan, whatever the Environment says.
    """
    with open_ports(settings) as ports:
        first_start(ports)
        signal, metrics = Signal(), Metrics(PHASES)
        gate = gate_of(settings, ports)
        loop = Loop(
            ports,
            settings,
            schema_set(),
            holder=holder(),
            on_tasks=lambda nodes: notify_all(signal, nodes),
            on_pass=lambda done: metrics.observe(done.summary, news_of(done)),
            manual=manual,
            walk=gate.walk if gate is not None else None,
        )
        deps = ServerDeps(
            store=ports.store,
            secrets=ports.secrets,
            clock=ports.clock,
            settings=settings,
            wake=loop.wakeups.add,
            task_queued=signal,
            metrics=metrics,
            snapshot=snapshot_service(ports, settings),
            heartbeat=loop.heartbeat,
        )
        with serve(build_app(deps), settings) as address:
            yield ControlPlane(ports, loop, address)


def news_of(done: Pass) -> PassNews:
    return PassNews(done.events, done.arrivals, done.restarts, done.seconds)


def notify_all(signal: Signal, nodes: frozenset[str]) -> None:
    for node in sorted(nodes):
        signal.notify(node)
