"""`bare_metal`: the image's files as a plain process on the host, without a container around it."""

from __future__ import annotations

from node_agent.wire import Workload
from reconciler.core.desired import Instance
from renderers.common import CannotRender, workload_of

KIND = "bare_metal"


def render(instance: Instance) -> Workload | CannotRender:
    return workload_of(instance, "process")
