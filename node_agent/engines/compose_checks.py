"""What is looked at on the host before Compose makes anything of a topology.

Rules:
- Nothing of others is taken over, replaced or removed: what bears a project's name, or the name of
  something that it is to have, carries our labels for this node and instance, or nothing is made.
- What is found wanting is said before anything that runs is touched.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from node_agent.engines.base import EngineFailure, ownership_labels
from node_agent.engines.compose_file import network_name, service_workload, volume_names
from node_agent.engines.docker_api import container_name, has_file, is_ours
from node_agent.engines.docker_spec import ImageConfig
from node_agent.engines.packages import SHELL
from node_agent.engines.secret_env import no_shell
from node_agent.wire import LABEL_SERVICE, FailureReason, Service, Topology, Workload

LABEL_PROJECT = "com.docker.compose.project"
MIB = 1024 * 1024
_NAMED_MAX = 3

Document = Mapping[str, Any]


def refuse_foreign(api: Any, node: str, instance: str, document: Document) -> set[str]:
    """Names of its network and volumes, of those that there are. Raises EngineFailure
    CREATE_REFUSED, naming what of others Compose would take over.
    """
    project, network = str(document["name"]), network_name(document)
    wanted = {*volume_names(document)}
    named = [one for one in api.networks(names=[network]) if one["Name"] == network]
    named += [one for one in _volumes(api) if one["Name"] in wanted]
    foreign = {*things_of_others(api, node, project, instance)} | {
        one["Name"] for one in named if not is_ours(one.get("Labels"), node, instance)
    }
    if foreign:
        told = ", ".join(sorted(foreign)[:_NAMED_MAX])
        more = f" and {len(foreign) - _NAMED_MAX} more" if len(foreign) > _NAMED_MAX else ""
        message = f"{told}{more}: there already, under a name of this instance, and not ours"
        raise refused(f"{message}; remove it, or give it another name")
    return {one["Name"] for one in named}


def things_of_others(api: Any, node: str, project: str, instance: str) -> list[str]:
    """Names of what Compose counts to a project, and is not ours."""
    filters = {"label": f"{LABEL_PROJECT}={project}"}
    found = [
        *((container_name(one), one) for one in api.containers(all=True, filters=filters)),
        *((one["Name"], one) for one in (*api.networks(filters=filters), *_volumes(api, filters))),
    ]
    return [name for name, one in found if not is_ours(one.get("Labels"), node, instance)]


def require_room(api: Any, topology: Topology, document: Document, info: Mapping[str, Any]) -> None:
    """For volumes that are not there yet, where Docker keeps them, if that is on this host.

    What others may still fill is not kept free: nobody is held to the size of a volume.
    """
    there, project = {one["Name"] for one in _volumes(api)}, document["name"]
    wanted_mib = sum(
        one.size_mib for one in topology.volumes if f"{project}_{one.name}" not in there
    )
    try:
        seen = os.statvfs(str(info.get("DockerRootDir") or ""))
    except OSError:
        return
    free_mib = seen.f_bavail * seen.f_frsize // MIB
    if wanted_mib > free_mib:
        message = (
            f"its new volumes want {wanted_mib} MiB, and {free_mib} MiB are free where Docker "
            "keeps volumes"
        )
        raise EngineFailure(FailureReason.DISK_FULL, message, transient=True)


def require_shell(api: Any, node: str, workload: Workload, service: Service) -> None:
    """Looked for in a container that is never started. One that a crash leaves has our labels, and
    goes with the next start.
    """
    described = api.inspect_image(service.image.reference)
    request = {
        "Image": service.image.reference,
        "Entrypoint": [SHELL],
        "Cmd": [],
        "Labels": {
            **dict.fromkeys(ImageConfig.read(described).posing, ""),
            **ownership_labels(node, workload.instance),
            LABEL_SERVICE: service.name,
        },
        "HostConfig": {"NetworkMode": "none"},
    }
    made = api.create_container_from_config(request)
    try:
        there = has_file(api, made["Id"], SHELL)
    finally:
        api.remove_container(made["Id"], v=True, force=True)
    if not there:
        raise refused(f"{service.name}: {no_shell(service_workload(workload, service))}")


def refused(message: str, *, transient: bool = False) -> EngineFailure:
    return EngineFailure(FailureReason.CREATE_REFUSED, message, transient=transient)


def _volumes(api: Any, filters: Mapping[str, str] | None = None) -> list[dict[str, Any]]:
    return list(api.volumes(filters=dict(filters or {})).get("Volumes") or [])
