"""Instance in, Workload out: one renderer a runtime kind.

Rules:
- A renderer is a pure function. It knows nothing of what runs now, and decides nothing: every
  reference was resolved and every limit was checked before (`core.resolve`).
- A runtime kind without a row in `RENDERERS` is not offered, and is refused in validation already.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from node_agent.wire import Workload
from reconciler.core.desired import Instance
from renderers import bare_metal, launchable_oci
from renderers.common import CannotRender

Renderer = Callable[[Instance], Workload | CannotRender]

RENDERERS: Mapping[str, Renderer] = {
    bare_metal.KIND: bare_metal.render,
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


__all__ = ["RENDERERS", "CannotRender", "Renderer", "render"]
