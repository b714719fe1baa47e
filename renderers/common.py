"""What every renderer shares: an Instance's fields laid out as a Workload.

Rules:
- Pure and total: the same Instance gives a byte-identical Workload, or a `CannotRender` value.
- Nothing is invented here. A host port nobody asked for stays None, for the agent to pick.
- No secret passes through: an Instance has none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import ValidationError

from node_agent.wire import LABEL_APP, LABEL_VERSION, Image, Limits, Port, Readiness, Workload
from reconciler.core.desired import Instance

Engine = Literal["docker", "process"]

LABEL_ORG = "dev.gpuaas.org-id"
LABEL_PROJECT = "dev.gpuaas.project-id"


@dataclass(frozen=True)
class CannotRender:
    """No workload can be written for this instance. `code` is stable, `message` is for people."""

    code: str
    message: str


def workload_of(instance: Instance, engine: Engine) -> Workload | CannotRender:
    """The workload of one instance on `engine`; `CannotRender` outside the wire's bounds."""
    try:
        return Workload(
            instance=instance.key,
            engine=engine,
            image=_image(instance),
            command=instance.command,
            env=dict(sorted(instance.env.items())),
            ports=_ports(instance),
            limits=_limits(instance),
            readiness=_readiness(instance.readiness),
            stop_grace_ms=instance.stop_grace_s * 1000,
            labels=_labels(instance),
        )
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        return CannotRender("invalid_workload", f"{where}: {first['msg']}")


def _image(instance: Instance) -> Image:
    return Image(
        registry=instance.registry_endpoint,
        plain_http=instance.registry_plain_http,
        repository=instance.artifact.repository,
        digest=str(instance.artifact.digest),
    )


def _ports(instance: Instance) -> tuple[Port, ...]:
    return tuple(
        Port(name=name, container=container, host=host)
        for name, container, host in sorted(instance.ports, key=lambda port: port[:2])
    )


def _limits(instance: Instance) -> Limits:
    return Limits(
        cpu_millis=instance.cpu_millis,
        memory_mib=instance.memory_mib,
        shm_mib=instance.shm_mib,
        gpu_vendor=instance.gpu_vendor,
        gpu_uuids=tuple(sorted(instance.gpu_uuids)),
    )


def _labels(instance: Instance) -> dict[str, str]:
    """What tells people on the host whose this is. The agent adds the labels it works by itself."""
    return {
        LABEL_APP: instance.app,
        LABEL_ORG: instance.org_id,
        LABEL_PROJECT: instance.project_id,
        LABEL_VERSION: instance.version,
    }


def _readiness(health: Mapping[str, Any]) -> Readiness:
    """From the manifest's `runtime_profile.health`. Without a probe it is ready once it runs."""
    if not health:
        return Readiness()
    return Readiness.model_validate(
        {
            "probe": _probe(health.get("readiness")),
            "interval_ms": _ms(health["interval_s"]),
            "timeout_ms": _ms(health["timeout_s"]),
            "start_budget_ms": _ms(health["start_budget_s"]),
            "failures_max": health["failures_max"],
        }
    )


def _probe(readiness: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if not readiness:
        return None
    kind, probe = next((kind, probe) for kind, probe in readiness.items() if probe is not None)
    fields = {key: tuple(value) if key == "command" else value for key, value in probe.items()}
    return {"kind": kind, **fields}


def _ms(seconds: float) -> int:
    return round(seconds * 1000)
