"""`launchable_oci`: one container of one image, run by the node's Docker Engine."""

from __future__ import annotations

from node_agent.wire import Workload
from reconciler.core.desired import Instance
from renderers.common import CannotRender, workload_of

KIND = "launchable_oci"


def render(instance: Instance) -> Workload | CannotRender:
    return workload_of(instance, "docker")
