"""What the control plane needs of the outside world. One Protocol a service, no library's types.

Every method may raise `errors.Transient` or `errors.Refused`, and nothing else.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NoReturn, Protocol

from node_agent.wire import TaskAck, VerifierKey
from reconciler.artifact_ports import BlobPart as BlobPart
from reconciler.artifact_ports import BlobStore as BlobStore
from reconciler.artifact_ports import Registry as Registry
from reconciler.artifact_ports import RegistryEndpoint as RegistryEndpoint
from reconciler.core.authority.facts import ChainStep, CommitFacts, Signature
from reconciler.core.names import ArtifactKey, InstanceKey, Revision
from reconciler.core.records import (
    Accepted,
    AuditEntry,
    AuditRow,
    EnrolledNode,
    Event,
    InstanceRecord,
    Intent,
    NumberedEvent,
    PassSummary,
    StepBack,
)
from reconciler.core.source import Snapshot
from reconciler.core.transfers import Transfer
from reconciler.core.trust.evidence import Evidence

TASK_KEY = "tasks"
"""The signing key of tasks, by its name in the SecretStore."""

ARTIFACT_KEY = "artifacts"
"""The signing key of artifacts, of kind ecdsa-p256."""

REGISTRY_KEY = "registry-tokens"
"""The signing key of registry tokens, of kind ecdsa-p256."""

WEBHOOK_SECRET_PATH = "webhook/git"  # noqa: S105 - where it is, not what it is

RECONCILER_LEASE = "reconciler"
"""Held by the one process that runs passes."""


class StateSource(Protocol):
    """The state repo. Only `fetch` and `find` talk to a remote."""

    def fetch(self) -> Revision: ...

    def head(self) -> Revision: ...

    def find(self, ref: str) -> Revision: ...

    def resolve(self, ref: str) -> Revision: ...

    def snapshot(self, revision: Revision) -> Snapshot: ...

    def is_ancestor(self, ancestor: Revision, descendant: Revision) -> bool: ...

    def commits_since(self, since: Revision, head: Revision, most: int) -> int:
        """How many commits `head` has that `since` has not, counted up to `most`; that many also
        where `since` is not here.
        """
        ...


class CommitLog(Protocol):
    """The commits of the state repo, for who has to know who made them."""

    def chain(self, since: Revision | None, head: Revision) -> Sequence[ChainStep]:
        """The line from `since` (excluded) to `head`, oldest first; from the first commit on when
        None. Empty when they are the same.

        Refused("history_rewritten") when `head` was not built on `since`, or `since` is gone.
        """
        ...

    def commits(self, since: Revision | None, head: Revision) -> Sequence[CommitFacts]:
        """All commits of that line, those that merges bring in before the merge; nothing they
        touch is read. Refused as `chain` is.
        """
        ...

    def signatures(
        self, revisions: Sequence[Revision], openpgp_keys: Sequence[str]
    ) -> Mapping[Revision, Signature]:
        """What Git says of the signature of each; `openpgp_keys` are armored public keys."""
        ...


class Secret:
    """A secret value that does not print. `reveal` is the one way to it."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        return self._value

    def __repr__(self) -> str:
        return "Secret(***)"

    __str__ = __repr__

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._value == self._value

    def __hash__(self) -> int:
        return hash(("Secret", self._value))

    def __deepcopy__(self, memo: object) -> Secret:
        return self

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("a Secret is not pickled")


KeyKind = Literal["ed25519", "ecdsa-p256"]
KEY_KINDS: Mapping[str, KeyKind] = {
    ARTIFACT_KEY: "ecdsa-p256",
    REGISTRY_KEY: "ecdsa-p256",
    TASK_KEY: "ed25519",
}
"""The keys whose versions the Environment may ask for."""


@dataclass(frozen=True)
class Signed:
    """Signature bytes and the version of the key that made them.

    64 raw bytes of an ed25519 key; DER, over the SHA-256 of the message, of an ecdsa-p256 key.
    """

    signature: bytes
    version: int


@dataclass(frozen=True)
class PublicKey:
    """One version of a signing key, as others verify with it: SubjectPublicKeyInfo, PEM."""

    name: str
    kind: KeyKind
    version: int
    pem: str


@dataclass(frozen=True)
class SecretSeen:
    """What may be known of a secret without its value. `version` rises by one at each write."""

    version: int
    changed_at_ms: int


@dataclass(frozen=True)
class Wrapped:
    """A secret that is handed over: `token` gives its value to the first who unwraps it."""

    token: Secret
    expires_at_ms: int


class SecretStore(Protocol):
    """Custody of keys and secrets. Keys never leave it; `name` is a plain word such as `tasks`.

    Raises Transient while it is sealed, slow or out of reach (`custody_sealed`, `custody_timeout`,
    `custody_unreachable`) and Refused where a person must act (`custody_login_refused`,
    `custody_forbidden`). The next call tries anew: nothing has to be restarted.
    """

    def ensure_signing_key(self, name: str, kind: KeyKind = "ed25519") -> PublicKey:
        """The newest version, made if there is none. Refused("wrong_key_type") for another kind."""
        ...

    def public_keys(self, name: str) -> tuple[PublicKey, ...]:
        """The versions that are not retired, oldest first; empty when there is no such key."""
        ...

    def verifier_keys(self, name: str) -> tuple[VerifierKey, ...]:
        """The same of an ed25519 key, as the wire has them."""
        ...

    def rotate(self, name: str) -> PublicKey:
        """Adds a version. What it signs is believed by who has heard of it."""
        ...

    def retire(self, name: str, min_version: int) -> None:
        """Versions below sign and verify no more, for good. Harmless when it was done before.

        Refused("key_version_unknown") when that would leave none.
        """
        ...

    def sign(self, name: str, message: bytes, version: int | None = None) -> Signed:
        """By the newest version, or by one that is not retired (`key_version_unknown`)."""
        ...

    def read(self, path: str) -> Secret | None: ...

    def seen(self, path: str) -> SecretSeen | None:
        """None when there is none. Reads no value."""
        ...

    def paths(self, prefix: str) -> tuple[str, ...]:
        """The paths of all secrets under `prefix/`, sorted. Reads no value."""
        ...

    def write(self, path: str, value: Secret) -> None: ...

    def ensure(self, path: str, value: Secret) -> Secret:
        """The secret at `path`, which is `value` from now on if there was none.

        Of several who ask at once, all get the same.
        """
        ...

    def delete(self, path: str) -> None:
        """Forgets the secret at this very path; nothing when there is none."""
        ...

    def wrap(self, path: str, ttl_s: float) -> Wrapped:
        """Makes the secret at `path` ready to be handed over. Refused("no_secret") for none."""
        ...

    def unwrap(self, token: Secret, path: str) -> Secret:
        """The value, once. Refused("wrap_spent") when somebody was first or it is too late,
        Refused("wrap_foreign") for a token that does not hold the secret of `path`: neither
        spends it.
        """
        ...


@dataclass(frozen=True)
class Certificate:
    """An issued certificate: PEM chain, leaf first; serial as hex pairs with colons, as X.509 tools
    show it.
    """

    pem: str
    serial: str
    not_after_ms: int


class CertificateAuthority(Protocol):
    """Issues certificates to agents and to the control plane. Raises what a SecretStore does."""

    def root(self) -> str:
        """The CA certificate, PEM; made if there is none."""
        ...

    def sign_agent(self, node: str, csr_pem: str, ttl_s: float) -> Certificate:
        """For `<node>.` and `membership.NODE_DOMAIN`, to dial with only, whatever the CSR asks for.

        Refused("csr_refused") for what is no CSR or whose signature does not hold.
        """
        ...

    def sign_server(self, csr_pem: str, ttl_s: float) -> Certificate:
        """For `membership.SERVER_NAME`, to be dialled only."""
        ...

    def revoke(self, serial: str) -> None:
        """Puts it on the CA's list; harmless when it is there or is not known."""
        ...


@dataclass(frozen=True)
class Changes:
    """Everything one step of a pass decides, written in one transaction or not at all.

    Events whose id is already there are left as they are. An intent whose action id is already
    there and still open refuses the whole (`Refused("intent_exists")`): somebody else acts. One
    that is closed (refused, expired, superseded) gives way: the action is tried again.
    """

    records: Sequence[InstanceRecord] = ()
    forgotten: Sequence[InstanceKey] = ()
    events: Sequence[Event] = ()
    intents: Sequence[Intent] = ()
    closed: Sequence[InstanceKey] = ()
    """Instances whose open and refused intents are superseded; done before `intents` are added."""
    summary: PassSummary | None = None
    audit: Sequence[AuditEntry] = ()
    step_backs: Sequence[StepBack] = ()
    """Canaries that went back; one that is there already is left as it is."""
    steps_over: Sequence[str] = ()
    """Canaries (`StepBack.promotion`) that are not back any more."""
    holder: str = ""
    """Stored only while this one holds the reconciler's lease, where it is given: a process that
    stood still meanwhile must not write over what the next one did."""


class Store(Protocol):
    """The control plane's memory. Methods are atomic; several processes may share one store."""

    def lease(self, name: str, holder: str, now_ms: int, ttl_ms: int) -> str:
        """Takes or renews; returns the holder, who is somebody else when the lease is taken."""
        ...

    def renew(self, name: str, holder: str, now_ms: int, ttl_ms: int) -> bool:
        """Makes it last longer; False when somebody else had it since, even if it lapsed again."""
        ...

    def release(self, name: str, holder: str) -> None: ...

    def accepted(self) -> Accepted: ...

    def save_accepted(
        self, accepted: Accepted, holder: str = "", audit: Sequence[AuditEntry] = ()
    ) -> None:
        """With what is to be told of it, in one transaction; nothing when it is stored already.

        `holder` as in `Changes`: Transient("lease_lost") when somebody else has the lease.
        """
        ...

    def append_audit(self, entries: Sequence[AuditEntry]) -> None:
        """Numbers, chains and stores them (`core.audit`). Rows are never changed or deleted."""
        ...

    def audit(self, after: int = 0, limit: int = 1000) -> Sequence[AuditRow]:
        """Rows numbered above `after`, in order."""
        ...

    def audit_head(self) -> tuple[int, str]:
        """Number and hash of the newest row, kept beside the rows: what was cut off shows."""
        ...

    def use_once(self, name: str, expires_at_ms: int, now_ms: int) -> bool:
        """Whether this name was never used before; forgets it once it is expired."""
        ...

    def records(self) -> Mapping[InstanceKey, InstanceRecord]: ...

    def commit(self, changes: Changes) -> None: ...

    def events(
        self, after: int = 0, limit: int = 1000, instance: InstanceKey | None = None
    ) -> Sequence[NumberedEvent]:
        """In the order of their cursors; those of an instance include those of its members."""
        ...

    def last_cursor(self) -> int: ...

    def open_intents(self, now_ms: int) -> Sequence[Intent]:
        """Queued, accepted and refused intents, not superseded ones; expires old queued ones."""
        ...

    def intents(self, instance: InstanceKey | None = None) -> Sequence[Intent]: ...

    def next_seq(self, node: str) -> int:
        """The next task number of a node: above every intent's and what its agent reported."""
        ...

    def tasks_for(self, node: str, now_ms: int) -> Sequence[Intent]:
        """Queued tasks of a node, oldest first; the same ones again until they are acknowledged."""
        ...

    def acknowledge(self, node: str, acks: Sequence[TaskAck]) -> None: ...

    def add_join_token(self, secret_hash: str, node: str, expires_at_ms: int) -> None: ...

    def redeem_join_token(
        self, secret_hash: str, node: str, public_key: str, now_ms: int
    ) -> EnrolledNode | None:
        """Single use, in one transaction. None when unknown, used, expired or for another node.

        Refused("key_in_use") for another node's key, Refused("key_revoked") for the one that was
        revoked with this node; then it is not used.
        """
        ...

    def nodes(self) -> Sequence[EnrolledNode]: ...

    def node(self, name: str) -> EnrolledNode | None: ...

    def revoke_node(
        self, name: str, reason: str, now_ms: int, audit: Sequence[AuditEntry] = ()
    ) -> EnrolledNode:
        """From now on nothing of its key is believed, until it joins anew with another. Its unused
        join tokens are good no more. Harmless when done.

        Refused("no_such_node").
        """
        ...

    def forget_node(self, name: str, audit: Sequence[AuditEntry] = ()) -> None:
        """As if it had never joined. Refused("no_such_node")."""
        ...

    def save_certificate(self, name: str, serial: str, ends_at_ms: int) -> None:
        """The newest certificate of a node."""
        ...

    def node_by_key(self, key_id: str) -> EnrolledNode | None:
        """The node whose agent key has this id (`envelope.key_id`); a key belongs to one node."""
        ...

    def save_report(
        self, node: str, report_json: str, report_seq: int, last_task_seq: int, now_ms: int
    ) -> bool:
        """False when `report_seq` is not above the last one: a replayed or re-ordered report."""
        ...

    def request_pass(self, reason: str, now_ms: int) -> None:
        """Asks the running reconciler, perhaps in another process, for a pass."""
        ...

    def take_requests(self) -> Sequence[str]:
        """Returns and clears the reasons asked for since the last call."""
        ...

    def last_pass(self) -> PassSummary | None: ...

    def evidence(self, keys: Collection[ArtifactKey]) -> Mapping[ArtifactKey, Evidence]:
        """What is known of these artifacts; those nobody looked at are left out."""
        ...

    def save_evidence(
        self, found: Sequence[Evidence], audit: Sequence[AuditEntry] = ()
    ) -> None:
        """In place of what was known, unless somebody looked later than that meanwhile (by less
        than AHEAD_MS: what seems later still was by a clock that was wrong).
        """
        ...

    def save_transfer(self, transfer: Transfer, audit: Sequence[AuditEntry] = ()) -> None:
        """New, or in place of the one with its id."""
        ...

    def transfer(self, transfer_id: str) -> Transfer | None: ...

    def transfers(self, owner: str = "") -> Sequence[Transfer]:
        """Newest first; of one project (`tenant/project`), or all."""
        ...

    def expired_transfers(self, now_ms: int, limit: int) -> Sequence[Transfer]:
        """Those that are open by their state and whose time is up, the first to expire first."""
        ...

    def step_backs(self) -> Mapping[str, StepBack]:
        """Canaries that went back by themselves, by their Promotion."""
        ...


class Clock(Protocol):
    def now_ms(self) -> int:
        """Wall clock, milliseconds since the epoch."""
        ...


@dataclass(frozen=True)
class Ports:
    """Everything a pass may touch. Built in `wiring`, and nowhere else."""

    source: StateSource
    registry: Registry
    secrets: SecretStore
    ca: CertificateAuthority
    store: Store
    clock: Clock
