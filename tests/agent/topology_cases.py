"""A topology that tests share: a database, a job, an API that needs both, a metrics sidecar."""

from __future__ import annotations

from node_agent.steps import Present
from node_agent.wire import Image, Phase, Workload
from tests.agent.cases import INSTANCE
from tests.agent.topology_world import JOB, TopologyWorld, service, topology_workload

INIT = service("init", "work", restart="never", readiness=JOB)
DB = service("db")
API = service("api", after="db:healthy init:completed")
METRICS = service("metrics", after="api:started", vital=False)
APP = topology_workload(DB, INIT, API, METRICS)
PLAIN = topology_workload(service("db"), service("api", after="db"))
MISSING = Image(registry="fake", repository="demo", digest="sha256:" + "f" * 64)


def finished(world: TopologyWorld, *names: str) -> TopologyWorld:
    """Its jobs end well, and it gets ready."""
    for name in names or ("init",):
        while not world.seen_running(name):
            world.step()
        world.compose.end(INSTANCE, name, 0)
    world.until(Phase.READY)
    world.run(40)
    world.done.clear()
    world.compose.started.clear()
    world.compose.made_anew.clear()
    return world


def app() -> TopologyWorld:
    return finished(TopologyWorld(Present(APP)))


def changed(what: Workload, name: str, **changes: object) -> Workload:
    """With one service that differs."""
    assert what.topology is not None
    services = tuple(
        one.model_copy(update=changes) if one.name == name else one
        for one in what.topology.services
    )
    topology = what.topology.model_copy(update={"services": services})
    return what.model_copy(update={"topology": topology})
