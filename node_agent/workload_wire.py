"""The parts that a workload is made of. Pure data, as all of `wire`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from node_agent.wire_base import Wire


class Image(Wire):
    """An OCI image by digest. `registry` is host:port, from the Environment, never a manifest.

    For the process engine it is `layout:` and the folder of an OCI image layout on the node.
    """

    registry: str
    plain_http: bool = False
    repository: str
    digest: str = Field(pattern=r"^sha256:[0-9a-f]{64}$")

    @property
    def reference(self) -> str:
        return f"{self.registry}/{self.repository}@{self.digest}"


class Port(Wire):
    """A container port, published on the node's loopback. `host` None: any free one.

    `address`: the node's own address to publish it at instead, for the other members.
    """

    name: str
    container: int = Field(ge=1, le=65535)
    host: int | None = Field(default=None, ge=1, le=65535)
    address: str | None = None


class Limits(Wire):
    """Hard limits. GPUs are named by UUID, never by index."""

    cpu_millis: int | None = Field(default=None, ge=10)
    memory_mib: int | None = Field(default=None, ge=6)
    pids: int = Field(default=4096, ge=1)
    shm_mib: int = Field(default=64, ge=1)
    gpu_vendor: Literal["nvidia", "amd"] | None = None
    gpu_uuids: tuple[str, ...] = ()


class HttpProbe(Wire):
    kind: Literal["http"] = "http"
    port: int
    path: str = "/"


class TcpProbe(Wire):
    kind: Literal["tcp"] = "tcp"
    port: int


class ExecProbe(Wire):
    kind: Literal["exec"] = "exec"
    command: tuple[str, ...]


Probe = Annotated[HttpProbe | TcpProbe | ExecProbe, Field(discriminator="kind")]


class Readiness(Wire):
    """When a started workload counts as ready, and how long it may take (`start_budget_ms`)."""

    probe: Probe | None = None
    interval_ms: int = Field(default=1_000, ge=50)
    timeout_ms: int = Field(default=1_000, ge=50)
    start_budget_ms: int = Field(default=60_000, ge=100)
    failures_max: int = Field(default=3, ge=1)


class Packages(Wire):
    """Python packages put in before the workload starts, from this index and no other.

    `requirements` are pip's requirement lines, each with its hashes or, without `require_hashes`,
    none with any.
    """

    index_url: str
    requirements: tuple[str, ...] = Field(min_length=1)
    require_hashes: bool = False


class SecretFile(Wire):
    """A secret that the workload reads at `SECRETS_PATH/name`, in memory, never on disk.

    Its value is in no task: the agent asks for it before each start. `source` is the reference
    (`secret://project/hf-token`) of one that somebody put there; empty: it is the instance's own.
    With `env` the workload also finds it in that variable.
    """

    name: str = Field(pattern=r"^[a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?$")
    source: str = ""
    env: str = ""

    @property
    def asked(self) -> str:
        """What it is called where it is asked for: its name, and its source where it has one."""
        return f"{self.name}={self.source}" if self.source else self.name
