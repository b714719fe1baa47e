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

from pydantic import Field, TypeAdapter

from node_agent.artifact_wire import BLOB_DIGEST
from node_agent.artifact_wire import BlobFile as BlobFile
from node_agent.artifact_wire import BlobRequest as BlobRequest
from node_agent.artifact_wire import BlobSeen as BlobSeen
from node_agent.artifact_wire import PullToken as PullToken
from node_agent.artifact_wire import PullTokenRequest as PullTokenRequest
from node_agent.wire_base import CANONICAL, Wire

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

LABEL_INSTANCE = "dev.gpuaas.instance"
LABEL_SPEC_HASH = "dev.gpuaas.spec-hash"
LABEL_NODE = "dev.gpuaas.node"
LABEL_MANAGED = "dev.gpuaas.managed"
LABEL_APP = "dev.gpuaas.app"
LABEL_VERSION = "dev.gpuaas.version"


# --- what should run -----------------------------------------------------------------------------


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


class Workload(Wire):
    """One runnable thing on one node, rendered by the control plane."""

    instance: str
    engine: Literal["docker", "process"]
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
        if self.secrets:
            document["secrets"] = [_secret_fields(secret) for secret in self.secrets]
        return "sha256:" + hashlib.sha256(CANONICAL.encode(document).encode()).hexdigest()

    def __copy__(self) -> Self:
        copied = super().__copy__()
        copied.__dict__.pop("spec_hash", None)
        return copied


_CAME_LATER = ("packages", "secrets", "blobs")


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

    kind: Literal["oci.launch"] = "oci.launch"
    workload: Workload


class ControlTask(_TaskBase):
    """Start or stop what is already there, without changing it."""

    kind: Literal["oci.control"] = "oci.control"
    run: bool


class RemoveTask(_TaskBase):
    """Tear the instance down and prove it."""

    kind: Literal["oci.remove"] = "oci.remove"


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


class Stray(Wire):
    """Something with our label that no accepted task asked for. Shown, never touched."""

    name: str
    instance: str
    spec_hash: str | None


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
