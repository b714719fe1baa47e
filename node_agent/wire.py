"""What crosses the wire between the control plane and a node agent.

Rules:
- Both directions travel as DSSE envelopes; nothing in a payload is read before its signature holds.
- A task is bound to one node, one sequence number and one expiry, so that the agent alone can
  tell a forged, foreign, replayed or stale one from a fresh one.
- A workload's `spec_hash` is the identity of what should run. Same hash, same container.
- Times are whole milliseconds since the epoch, as read by the sender.
"""

from __future__ import annotations

import hashlib
from enum import StrEnum
from functools import cached_property
from typing import Annotated, Any, Literal, Self

from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    TypeAdapter,
    model_serializer,
    model_validator,
)

from node_agent.artifact_wire import BLOB_DIGEST
from node_agent.artifact_wire import BlobFile as BlobFile
from node_agent.artifact_wire import BlobRequest as BlobRequest
from node_agent.artifact_wire import BlobSeen as BlobSeen
from node_agent.artifact_wire import PullToken as PullToken
from node_agent.artifact_wire import PullTokenRequest as PullTokenRequest
from node_agent.compose_wire import Service as Service
from node_agent.compose_wire import ServicePhase as ServicePhase
from node_agent.compose_wire import Topology as Topology
from node_agent.compose_wire import starting_order as starting_order
from node_agent.wire_base import CANONICAL, Wire
from node_agent.workload_wire import ExecProbe as ExecProbe
from node_agent.workload_wire import HttpProbe as HttpProbe
from node_agent.workload_wire import Image as Image
from node_agent.workload_wire import Limits as Limits
from node_agent.workload_wire import Packages as Packages
from node_agent.workload_wire import Port as Port
from node_agent.workload_wire import Probe as Probe
from node_agent.workload_wire import Readiness as Readiness
from node_agent.workload_wire import SecretFile as SecretFile
from node_agent.workload_wire import TcpProbe as TcpProbe

TASK_TYPE = "application/vnd.gpuaas.task.v1+json"
REPORT_TYPE = "application/vnd.gpuaas.report.v1+json"
SECRETS_REQUEST_TYPE = "application/vnd.gpuaas.secrets-request.v1+json"
SECRETS_TYPE = "application/vnd.gpuaas.secrets.v1+json"
POLL_TYPE = "application/vnd.gpuaas.poll.v1+json"
LAYOUT_PREFIX = "layout:"
"""Before a folder in `Image.registry`: images are read from an OCI image layout there."""

MACHINE_IDENTITY = "machine-identity"
"""The secret that is an instance's own identity: every workload has it, and can run without."""
SECRETS_PATH = "/run/gpuaas/secrets"
"""Where a workload finds its secrets, one file each."""


MESSAGE_BYTES_MAX = 8 * 1024 * 1024

EngineName = Literal["docker", "process", "compose"]

LABEL_INSTANCE = "dev.gpuaas.instance"
LABEL_SPEC_HASH = "dev.gpuaas.spec-hash"
LABEL_NODE = "dev.gpuaas.node"
LABEL_MANAGED = "dev.gpuaas.managed"
LABEL_APP = "dev.gpuaas.app"
LABEL_VERSION = "dev.gpuaas.version"
LABEL_SERVICE = "dev.gpuaas.service"
"""On containers of a topology alone."""


# --- what should run -----------------------------------------------------------------------------


class Workload(Wire):
    """One runnable thing on one node, rendered by the control plane.

    With a `topology` it is several containers. What is said here then holds for all of them:
    `image` is the main service's, `limits` are the sum, `readiness` is how long all may take.
    """

    instance: str
    engine: EngineName
    image: Image
    command: tuple[str, ...] = ()
    env: dict[str, str] = Field(default_factory=dict)
    ports: tuple[Port, ...] = ()
    limits: Limits = Limits()
    readiness: Readiness = Readiness()
    stop_grace_ms: int = Field(default=10_000, ge=0)
    labels: dict[str, str] = Field(default_factory=dict)
    packages: Packages | None = None
    secrets: tuple[SecretFile, ...] = ()
    blobs: tuple[BlobFile, ...] = ()
    topology: Topology | None = None

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if (self.topology is None) == (self.engine == "compose"):
            raise ValueError("a topology is for the engine compose, and that for nothing else")
        if self.topology is not None:
            _check_names(self, self.topology)
        return self

    @model_serializer(mode="wrap")
    def _as_earlier_agents_know_it(self, fields_of: SerializerFunctionWrapHandler) -> Any:
        """What came later is said only where it is used: they take no field that they don't know,
        and a control plane is updated before its agents.
        """
        fields = fields_of(self)
        return {name: value for name, value in fields.items() if value or name not in _CAME_LATER}

    @property
    def images(self) -> tuple[Image, ...]:
        """All that have to be pulled, each once."""
        if self.topology is None:
            return (self.image,)
        return tuple(dict.fromkeys(one.image for one in self.topology.services))

    @cached_property
    def spec_hash(self) -> str:
        """Worked out once, since nothing of a workload changes; a copy works out its own.

        What is encoded is what `model_dump` gives, without a copy of every part: a fleet has many.
        """
        document = dict(self.__dict__)
        # Fields that came later count only where they are used: a newer control plane would
        # otherwise see another workload in everything that runs, and restart the fleet.
        for field in _CAME_LATER:
            if not document[field]:
                del document[field]
        document["ports"] = [_port_fields(port) for port in self.ports]
        if self.blobs:
            document["blobs"] = [dict(blob.__dict__) for blob in self.blobs]
        if self.topology is not None:
            document["topology"] = _topology_fields(self.topology)
        if self.secrets:
            document["secrets"] = [_secret_fields(secret) for secret in self.secrets]
        return "sha256:" + hashlib.sha256(CANONICAL.encode(document).encode()).hexdigest()

    def __copy__(self) -> Self:
        copied = super().__copy__()
        copied.__dict__.pop("spec_hash", None)
        return copied


_CAME_LATER = ("packages", "secrets", "blobs", "topology")


def _check_names(workload: Workload, topology: Topology) -> None:
    """What services refer to of their workload is there."""
    for what, there in (
        ("ports", {port.name for port in workload.ports}),
        ("secrets", {secret.name for secret in workload.secrets}),
        ("blobs", {blob.name for blob in workload.blobs}),
    ):
        for service in topology.services:
            if not {*getattr(service, what)} <= there:
                raise ValueError(f"{service.name} refers to {what} that are not there")


def _topology_fields(topology: Topology) -> dict[str, Any]:
    """What is as usual is left out, but not what sort of probe it is: of two sorts it is all that
    tells them apart.
    """
    fields = topology.model_dump(exclude_defaults=True)
    for service, said in zip(topology.services, fields["services"], strict=True):
        if service.readiness.probe is not None:
            said["readiness"]["probe"]["kind"] = service.readiness.probe.kind
    return fields


def _port_fields(port: Port) -> dict[str, Any]:
    """Its address came later, too."""
    fields = dict(port.__dict__)
    if port.address is None:
        del fields["address"]
    return fields


def _secret_fields(secret: SecretFile) -> dict[str, str]:
    """And so did all but its name."""
    return {name: value for name, value in secret.__dict__.items() if value}


# --- tasks ---------------------------------------------------------------------------------------


class _TaskBase(Wire):
    """Fields every task carries. `seq` rises per node; `issued_at_ms` < `expires_at_ms`."""

    task_id: str
    node: str
    seq: int = Field(ge=1)
    issued_at_ms: int
    expires_at_ms: int
    instance: str
    correlation_id: str


class LaunchTask(_TaskBase):
    """Make `workload` what runs for this instance; replaces what ran before, behind a gate."""

    kind: Literal["oci.launch", "compose.launch"] = "oci.launch"
    workload: Workload


class ControlTask(_TaskBase):
    """Start or stop what is already there, without changing it."""

    kind: Literal["oci.control", "compose.control"] = "oci.control"
    run: bool


class RemoveTask(_TaskBase):
    """Tear the instance down and prove it."""

    kind: Literal["oci.remove", "compose.remove"] = "oci.remove"


class PullBlobTask(_TaskBase):
    """Have this content in the node's cache. `instance` is the Artifact it was registered as."""

    kind: Literal["artifact.pull_blob"] = "artifact.pull_blob"
    source: str
    digest: str = Field(pattern=BLOB_DIGEST)


AnyTask = LaunchTask | ControlTask | RemoveTask | PullBlobTask
Task = Annotated[AnyTask, Field(discriminator="kind")]
_TASK: TypeAdapter[AnyTask] = TypeAdapter(Task)


def parse_task(payload: bytes) -> AnyTask:
    """Raises pydantic.ValidationError for a payload that is no task."""
    return _TASK.validate_json(payload)


# --- reports -------------------------------------------------------------------------------------


class Phase(StrEnum):
    """Where a workload stands on its node, as the agent sees it."""

    PENDING = "pending"
    PULLING = "pulling"
    STARTING = "starting"
    READY = "ready"
    DEGRADED = "degraded"
    STOPPED = "stopped"
    FAILED = "failed"
    REMOVING = "removing"
    REMOVED = "removed"


class FailureReason(StrEnum):
    """The fixed list of why a workload failed."""

    IMAGE_NOT_FOUND = "image_not_found"
    IMAGE_PULL_FAILED = "image_pull_failed"
    DIGEST_MISMATCH = "digest_mismatch"
    PORT_IN_USE = "port_in_use"
    GPU_UNAVAILABLE = "gpu_unavailable"
    CREATE_REFUSED = "create_refused"
    COMMAND_NOT_FOUND = "command_not_found"
    EXITED = "exited"
    OUT_OF_MEMORY = "out_of_memory"
    NOT_READY_IN_TIME = "not_ready_in_time"
    FLAPPING = "flapping"
    PACKAGES_FAILED = "packages_failed"
    SECRET_UNAVAILABLE = "secret_unavailable"  # noqa: S105 - the name of a reason
    BLOB_UNAVAILABLE = "blob_unavailable"
    DISK_FULL = "disk_full"
    ALTERED = "altered"
    ENGINE_UNAVAILABLE = "engine_unavailable"
    TEARDOWN_INCOMPLETE = "teardown_incomplete"


class Endpoint(Wire):
    name: str
    container: int
    host_ip: str
    host_port: int


class Proof(Wire):
    """What was looked for after a teardown, and how many were found. All zero, or no proof."""

    checked_at_ms: int
    containers: int
    networks: int
    volumes: int
    paths: int

    @property
    def clean(self) -> bool:
        return not (self.containers or self.networks or self.volumes or self.paths)


class Origin(Wire):
    """What a workload was made from, so that a manifest can be written for it once more."""

    app: str
    version: str
    image: Image
    limits: Limits
    ports: tuple[Port, ...] = ()


class WorkloadReport(Wire):
    """One instance on this node: `target_hash` was asked for last, `running_hash` is what runs.

    After a replacement that missed its gate, `target_hash` is the new spec, `running_hash` the old
    one that was put back, `phase` is `failed` and `reason` says why the new one was given up.
    `services` are those of what has several, in the order of their names.
    `retained` says whether what runs is serving. `proof` comes with phase `removed` only. `origin`
    is that of `target_hash`.
    """

    instance: str
    target_hash: str | None
    running_hash: str | None
    phase: Phase
    reason: FailureReason | None = None
    message: str = ""
    retained: bool = False
    image_digest: str | None = None
    endpoints: tuple[Endpoint, ...] = ()
    restarts: int = 0
    exit_code: int | None = None
    since_ms: int = 0
    proof: Proof | None = None
    origin: Origin | None = None
    services: tuple[ServicePhase, ...] = ()


class Stray(Wire):
    """Something with our label that no accepted task asked for. Shown, never touched. `alive`: None
    from an agent that does not say.
    """

    name: str
    instance: str
    spec_hash: str | None
    alive: bool | None = None


class Gpu(Wire):
    uuid: str
    vendor: Literal["nvidia", "amd"]
    model: str
    memory_mib: int


class Inventory(Wire):
    """What the host offers. `engines` answered; `engine_errors` says why others did not."""

    engines: tuple[str, ...]
    engine_errors: dict[str, str] = Field(default_factory=dict)
    docker_version: str | None = None
    compose_version: str | None = None
    runtimes: tuple[str, ...] = ()
    cdi_devices: tuple[str, ...] = ()
    gpus: tuple[Gpu, ...] = ()
    cpu_count: int
    memory_mib: int
    disk_free_mib: int
    architecture: str
    operating_system: str


class TaskAck(Wire):
    """The agent's word on one task: taken over durably, or refused with a code and never run."""

    task_id: str
    accepted: bool
    code: str = "accepted"
    message: str = ""


class ConfigSeen(Wire):
    """Which NodeConfig is in force: its digest, its newest and oldest key versions, the ids of the
    SSH keys that are installed, and what went wrong in bringing that about.
    """

    digest: str = ""
    newest_version: int = 0
    min_version: int = 0
    ssh_keys: tuple[str, ...] = ()
    ssh_error: str = ""


class Report(Wire):
    """The whole of what the agent knows, signed with its own key. Replaces the report before it.

    `config` is the NodeConfig in force; None from agents that know of none.

    `complete` is False when an engine did not answer: absence then means nothing.
    `last_seq` is the highest task sequence number the agent ever accepted. `refusal` is why it
    takes no task at all, code and message, where no acknowledgement can say it: the signature did
    not hold, so not even the id is to be believed, or the task can't be written down.
    """

    node: str
    agent_version: str
    sent_at_ms: int
    report_seq: int
    last_seq: int
    connected_at_ms: int
    complete: bool
    inventory: Inventory
    workloads: tuple[WorkloadReport, ...] = ()
    strays: tuple[Stray, ...] = ()
    acks: tuple[TaskAck, ...] = ()
    refusal: str = ""
    config: ConfigSeen | None = None
    blobs: tuple[BlobSeen, ...] = ()


class Poll(Wire):
    """Asks for tasks; the control plane holds the answer back for up to `wait_ms`.

    `config` is the digest of the NodeConfig in force: another one is sent as soon as there is one.
    """

    node: str
    sent_at_ms: int
    report_seq: int
    wait_ms: int = Field(ge=0, le=60_000)
    config: str | None = None


class PollReply(Wire):
    """Signed task envelopes, oldest first, and a signed NodeConfig where it is not the asker's."""

    tasks: tuple[dict[str, Any], ...] = ()
    config: dict[str, Any] | None = None


class SecretsRequest(Wire):
    """Asks for the secrets of one instance, signed with the agent's own key.

    `public_key` is an X25519 key made for this one request, hex.
    """

    node: str
    sent_at_ms: int
    instance: str
    names: tuple[str, ...] = Field(min_length=1)
    public_key: str = Field(pattern=r"^[0-9a-f]{64}$")


class Secrets(Wire):
    """The answer, signed like a task. `sealed` is base64: only the asker's one-time key opens it.

    `asked_with` is the request's public key, so that no other answer can take its place;
    `public_key` is the sealing side's one-time key.
    """

    node: str
    instance: str
    asked_with: str
    public_key: str = Field(pattern=r"^[0-9a-f]{64}$")
    sealed: str


def key_id(public_key_hex: str) -> str:
    """The id of an ed25519 public key: SHA-256 of its raw 32 bytes, hex."""
    return hashlib.sha256(bytes.fromhex(public_key_hex)).hexdigest()


class VerifierKey(Wire):
    """An ed25519 key that signs tasks, with the version it has in the signing service."""

    key_id: str
    version: int
    public_key: str = Field(pattern=r"^[0-9a-f]{64}$")
