"""A version's logical topology: which services it is made of, and what they are to each other.

Rules: a service says what it is and needs, never how a container is made of it. There is no field
for privileges, files, network or processes of the host, Linux capabilities, devices, tags, builds
or includes. What holds between fields is in `core.checks.topology`.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from node_agent.wire_base import MOUNT_PATH, SERVICES_MAX
from reconciler.core.kinds.base import (
    AcceleratorFamily,
    ArtifactRef,
    Int,
    Name,
    Part,
    PortNumber,
    UniqueItems,
    UrlPath,
)
from reconciler.core.kinds.health import Command, EnvName, EnvValue, Health

RendererName = Literal["vllm_openai", "generic_services", "jupyter_with_sidecar"]
SidecarClass = Literal["cache", "data", "logs", "metrics", "proxy", "setup", "worker"]
MountPath = Annotated[str, StringConstraints(pattern=MOUNT_PATH, max_length=1024)]
ModelName = Annotated[
    str, StringConstraints(pattern=r"^[/A-Za-z0-9][-_./A-Za-z0-9]*$", max_length=512)
]
"""A model's name or its path in the container; it can't be taken for an option."""
BasePath = Annotated[
    str,
    StringConstraints(
        pattern=r"^/(?:[A-Za-z0-9_][-._A-Za-z0-9]*(?:/[A-Za-z0-9_][-._A-Za-z0-9]*)*/?)?$",
        max_length=256,
    ),
]
"""The path that a page is served below: plain parts, nothing that an URL would have to escape."""
Restart = Literal["always", "on_failure", "never"]


class Dependency(Part):
    service: Name
    condition: Literal["started", "healthy", "completed"] = "started"


class ServiceMount(Part):
    """One of the topology's volumes."""

    volume: Name
    path: MountPath
    read_only: bool = False


class ServiceScratch(Part):
    """In memory; counts towards the memory of the service."""

    path: MountPath
    size_mib: Int = Field(ge=1, le=1_048_576)


class ServiceLimits(Part):
    """What it may use of the instance's. Of the main service left out: what the others leave."""

    memory_mib: Int | None = Field(default=None, ge=6, le=1_073_741_824)
    vcpu: float | None = Field(default=None, ge=0.01, le=65_536)
    pids: Int = Field(default=4096, ge=1, le=4_194_304)


class Service(Part):
    """`image_ref` left out: the version's own image. `gpus`: how many of the instance's GPUs, `all`
    of them, or the `rest` that no other service counts; left out: the rest for the main, else none.
    `vital` left out: the main is, and whatever a vital service waits for.
    """

    name: Name
    role: Literal["main", "sidecar"] = "sidecar"
    sidecar_class: SidecarClass | None = None
    image_ref: ArtifactRef | None = None
    variants: dict[AcceleratorFamily, ArtifactRef] = Field(default_factory=dict, max_length=64)
    command: Command = ()
    env: dict[EnvName, EnvValue] = Field(default_factory=dict, max_length=1024)
    gpus: Literal["all", "rest"] | Annotated[Int, Field(ge=0, le=1024)] | None = None
    limits: ServiceLimits = ServiceLimits()
    shm_mib: Int = Field(default=64, ge=1, le=16_777_216)
    stop_grace_s: Int = Field(default=10, ge=0, le=3600)
    health: Health = Health()
    depends_on: Annotated[tuple[Dependency, ...], Field(strict=False, max_length=SERVICES_MAX)] = ()
    mounts: Annotated[tuple[ServiceMount, ...], Field(strict=False, max_length=64)] = ()
    scratch: Annotated[tuple[ServiceScratch, ...], Field(strict=False, max_length=64)] = ()
    secrets: UniqueItems[Name] = ()
    blobs: UniqueItems[Name] = ()
    restart: Restart = "always"
    vital: bool | None = None


class TopologyVolume(Part):
    """On the node's disk, until the instance is decommissioned."""

    name: Name
    size_mib: Int = Field(ge=1, le=1_073_741_824)


class TopologyEndpoint(Part):
    """internal: for the other services alone. private: on the node's loopback as well."""

    name: Name
    service: Name
    port: PortNumber
    protocol: Literal["http", "https", "grpc", "tcp"] = "http"
    expose: Literal["internal", "private", "embedded_ui_gateway"] = "internal"
    path: UrlPath = "/"


class FailurePolicy(Part):
    """vital: when a vital service ends, it alone is started again or all are. other: what becomes
    of a launch or upgrade when a service that is not vital is not ready in its time.
    """

    vital: Literal["restart_service", "restart_all"] = "restart_service"
    other: Literal["degrade", "roll_back"] = "degrade"


class TopologySpec(Part):
    services: Annotated[tuple[Service, ...], Field(strict=False, max_length=SERVICES_MAX)] = ()
    volumes: Annotated[tuple[TopologyVolume, ...], Field(strict=False, max_length=32)] = ()
    endpoints: Annotated[tuple[TopologyEndpoint, ...], Field(strict=False, max_length=64)] = ()
    failure: FailurePolicy = FailurePolicy()


class VllmSpec(Part):
    """For the renderer `vllm_openai`, which makes the main service of it, called `vllm`.

    `tensor_parallel` left out: as many as it has GPUs. `api_key_secret`: one of the profile's
    secrets; without it whoever reaches the port is served. `cache_volume`: the topology's volume
    for what it downloads and compiles, at /var/cache/vllm.
    """

    model: ModelName
    served_name: ModelName | None = None
    port: PortNumber = 8000
    tensor_parallel: Int | None = Field(default=None, ge=1, le=1024)
    pipeline_parallel: Int = Field(default=1, ge=1, le=1024)
    max_model_len: Int | None = Field(default=None, ge=1, le=100_000_000)
    gpu_memory_utilization: float = Field(default=0.9, ge=0.05, le=1)
    dtype: Literal["auto", "half", "float16", "bfloat16", "float", "float32"] = "auto"
    quantization: Annotated[str, StringConstraints(pattern="^[a-z][a-z0-9_-]{0,31}$")] | None = None
    max_num_seqs: Int | None = Field(default=None, ge=1, le=1_000_000)
    enable_prefix_caching: bool = True
    api_key_secret: Name | None = None
    cache_volume: Name | None = None
    expose: Literal["private", "embedded_ui_gateway"] = "private"


class JupyterSpec(Part):
    """For the renderer `jupyter_with_sidecar`, which makes the main service of it, `notebook`.

    `token_secret`: one of the profile's secrets, which the notebook asks for. `work_volume`: the
    topology's volume for the person's own files.
    """

    token_secret: Name
    port: PortNumber = 8888
    base_path: BasePath = "/"
    work_volume: Name | None = None
    work_path: MountPath = "/home/jovyan/work"
    expose: Literal["private", "embedded_ui_gateway"] = "private"
