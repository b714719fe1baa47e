"""Instance in, Workload out: one renderer a runtime kind, and one a sort of topology.

Rules:
- A renderer is a pure function. It knows nothing of what runs now, and decides nothing: every
  reference was resolved and every limit was checked before (`core.resolve`).
- A runtime kind without a row in `RENDERERS` is not offered, and is refused in validation already.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from node_agent.wire import Workload
from reconciler.core.desired import Instance
from renderers import (
    bare_metal,
    generic_services,
    jupyter_with_sidecar,
    launchable_oci,
    vllm_openai,
)
from renderers.common import CannotRender

Renderer = Callable[[Instance], Workload | CannotRender]

TOPOLOGIES: Mapping[str, Renderer] = {
    generic_services.NAME: generic_services.render,
    jupyter_with_sidecar.NAME: jupyter_with_sidecar.render,
    vllm_openai.NAME: vllm_openai.render,
}
"""What `runtime_profile.renderer` may say for docker_compose."""


def _docker_compose(instance: Instance) -> Workload | CannotRender:
    name = instance.topology.renderer if instance.topology is not None else "nothing"
    renderer = TOPOLOGIES.get(name)
    if renderer is None:
        offered = ", ".join(sorted(TOPOLOGIES))
        message = f"no renderer makes services of {name}; offered: {offered}"
        return CannotRender("renderer_not_offered", message)
    return renderer(instance)


RENDERERS: Mapping[str, Renderer] = {
    bare_metal.KIND: bare_metal.render,
    "docker_compose": _docker_compose,
    launchable_oci.KIND: launchable_oci.render,
}


def render(instance: Instance) -> Workload | CannotRender:
    """The workload for an instance, by its decided runtime backend."""
    kind = instance.policy.runtime_backend
    renderer = RENDERERS.get(kind)
    if renderer is None:
        offered = ", ".join(sorted(RENDERERS))
        return CannotRender("runtime_not_offered", f"no renderer for {kind}; offered: {offered}")
    return renderer(instance)


__all__ = ["RENDERERS", "TOPOLOGIES", "CannotRender", "Renderer", "render"]
