"""The control plane: the servers and the loop around one set of ports."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from reconciler.custody.watch import CustodyWatch
from reconciler.cycle import Pass
from reconciler.loop import Loop
from reconciler.ports import Ports
from reconciler.server.agent_tls import AgentTls
from reconciler.server.app import build_agents_app, build_app
from reconciler.server.deps import ServerDeps, Signal
from reconciler.server.metrics import Metrics, PassNews
from reconciler.server.node_config import NodeConfigs
from reconciler.server.serve import serve, serve_agents
from reconciler.server.ssh_keys import SshKeysSource
from reconciler.settings import Settings
from reconciler.use_cases.nodes import finish_revocations
from reconciler.use_cases.topology import Topologies
from reconciler.use_cases.transfer_sweep import TransferSweep
from reconciler.use_cases.transfers import Desk
from reconciler.watch import PHASES
from reconciler.wiring.blobs import open_blob_store
from reconciler.wiring.files import schema_set
from reconciler.wiring.gate import gate_of
from reconciler.wiring.ports import first_start, holder, open_ports
from reconciler.wiring.snapshots import snapshot_service


@dataclass(frozen=True)
class ControlPlane:
    """A running control plane; `address` is where it listens for people, http://host:port, and
    `agents_address` where it does for agents, https://host:port.
    """

    ports: Ports
    loop: Loop
    address: str
    agents_address: str


@contextmanager
def control_plane(settings: Settings, *, manual: bool = False) -> Iterator[ControlPlane]:
    """The servers and the loop around one set of ports. The caller runs the loop.

    With `manual` changes wait for somebody to apply a plan, whatever the Environment says.
    """
    with open_ports(settings) as ports:
        signal, metrics = Signal(), Metrics(PHASES)
        gate = gate_of(settings, ports)
        blobs = open_blob_store(settings)
        desk = Desk(ports.store, ports.secrets, ports.clock, ports.registry, settings, blobs)
        sweep = TransferSweep(desk)
        loop = Loop(
            ports,
            settings,
            schema_set(),
            holder=holder(),
            on_tasks=lambda nodes: notify_all(signal, nodes),
            on_pass=lambda done: _after_pass(ports, metrics, sweep, done),
            manual=manual,
            walk=gate.walk if gate is not None else None,
            custody=_custody_watch(settings),
            begin=lambda: first_start(ports),
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
            topology=Topologies(ports, settings).document,
            heartbeat=loop.heartbeat,
            registry=ports.registry,
            blobs=blobs,
            node_config=NodeConfigs(ports, settings, SshKeysSource(ports.store, ports.secrets)),
        )
        tls = AgentTls(ports.ca, ports.clock, settings.certificate_ttl_s)
        with (
            serve(build_app(deps), settings) as address,
            serve_agents(build_agents_app(deps, ports.ca), settings, tls) as agents_address,
        ):
            yield ControlPlane(ports, loop, address, agents_address)


def _after_pass(ports: Ports, metrics: Metrics, sweep: TransferSweep, done: Pass) -> None:
    metrics.observe(done.summary, news_of(done))
    finish_revocations(ports)
    sweep.run()


def _custody_watch(settings: Settings) -> CustodyWatch | None:
    if not settings.vault_address:
        return None
    from reconciler.wiring.vault import custody_watch  # noqa: PLC0415 - its client loads slowly

    return custody_watch(settings)


def news_of(done: Pass) -> PassNews:
    return PassNews(done.events, done.arrivals, done.restarts, done.seconds)


def notify_all(signal: Signal, nodes: frozenset[str]) -> None:
    for node in sorted(nodes):
        signal.notify(node)
