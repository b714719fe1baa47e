"""The Compose file of a topology as a node would write it, before any node does.

Rule: what only a node knows stands in by example, and is said to: the images' own settings, the
devices of GPUs, free host ports, and where secrets and blobs are.
"""

from __future__ import annotations

import json

from node_agent.engines.base import EngineFailure
from node_agent.engines.compose_file import Placement, compose_file, compose_text
from node_agent.engines.gpus import GpuGrant, GpuHost, grant
from node_agent.wire import Service, Workload
from reconciler.errors import Refused

NOTE = (
    "an example: images' own settings and volumes, devices of GPUs, host ports and folders are "
    "those of the node"
)
_OF_IMAGE = "command-of-the-image"
_HOST_PORT = 20_000
_SECRETS = "/run/gpuaas-secrets"
_BLOBS = "/var/lib/gpuaas/blobs"


def compose_example(workload: Workload, node: str) -> str:
    """JSON, which is YAML. Refused for what is one container (not_a_topology), and for what a node
    would refuse (compose_refused).
    """
    if workload.topology is None:
        message = "it is a single container: the node writes no Compose file for it"
        raise Refused("not_a_topology", message, hint="use --format json")
    services = workload.topology.services
    placement = Placement(
        node=node or "node",
        host_ports={
            port.name: port.host or _HOST_PORT + number
            for number, port in enumerate(workload.ports)
        },
        images={one.name: {"Config": {"Cmd": [_OF_IMAGE]}} for one in services},
        gpus={one.name: _gpus(one) for one in services},
        secrets={one.name: f"{_SECRETS}/{one.name}" for one in services if one.secrets},
        blobs={one.name: f"{_BLOBS}/{one.digest}" for one in workload.blobs},
    )
    try:
        text = compose_text(compose_file(workload, placement))
    except EngineFailure as failure:
        message = f"a node would refuse it: {failure.reason.value}: {failure.message}"
        raise Refused("compose_refused", message) from None
    return json.dumps(json.loads(text), indent=2, ensure_ascii=False)


def _gpus(service: Service) -> GpuGrant:
    uuids = service.limits.gpu_uuids
    files = {uuid: ("/dev/kfd", f"/dev/dri/{uuid}") for uuid in uuids}
    return grant(service.limits, GpuHost(uuids=frozenset(uuids), files=files))
