"""`generic_services`: the services of a manifest as they are written, one of them the main one."""

from __future__ import annotations

from node_agent.wire import Workload
from reconciler.core.desired import Instance
from reconciler.core.kinds.topology import Service
from renderers.common import CannotRender
from renderers.services import rendered, services_for, workload_of
from renderers.shares import Unfit

NAME = "generic_services"


def render(instance: Instance) -> Workload | CannotRender:
    return rendered(_render, instance)


def _render(instance: Instance) -> Workload:
    services = services_for(instance)
    mains = [one.name for one in services if one.role == "main"]
    if len(mains) != 1:
        named = f": {', '.join(sorted(mains))}" if mains else ""
        message = f"exactly one service has the role main, and here {len(mains)} have{named}"
        raise Unfit("main_service", message)
    return workload_of(instance, mains[0], [_told(one, instance) for one in services])


def _told(service: Service, instance: Instance) -> Service:
    """What an instance says of its variables is for the main service, whose own words count."""
    if service.role != "main" or not instance.env:
        return service
    return service.model_copy(update={"env": {**instance.env, **service.env}})
