"""Every limit and interval, with its unit in its name. Read once at start, never changed."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from reconciler.core.parse import ParseLimits

PREFIX = "GPUAAS_"


def _listed(value: Any) -> Any:
    """A list is a JSON list where it is text, as in a variable."""
    return json.loads(value) if isinstance(value, str) else value


class Settings(BaseModel):
    """What is given, and these defaults; `settings_from` also reads variables and a file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    state_dir: Path = Path("/var/lib/gpuaas")
    """Folder of the control plane's database, mirror and local secrets."""
    repo: str = "."
    """Git remote of the state repo: a path, ssh:// or https://."""
    branch: str = "main"
    """Branch that is the record."""
    git_known_hosts: Path | None = None
    """File with the host keys that an ssh remote may have, instead of the user's own."""
    git_ssh_key: Path | None = None
    """Private key to fetch with, instead of what ssh would take."""
    signatures: Literal["required", "off"] = "required"
    """Whether commits count by who signed them, or (off, for evaluation) whoever made them."""
    admin_keys: Annotated[tuple[str, ...], BeforeValidator(_listed)] = ()
    """Public keys (OpenSSH lines) that the first commit may be signed with."""
    trust_root: str = ""
    """Commit id of the revision to begin from, where not all before it is signed."""
    commit_bytes_max: int = Field(default=1024 * 1024, gt=0)
    """Largest commit, its message and signature included, that is looked at."""
    commit_ahead_max_s: float = Field(default=3600.0, gt=0)
    """How far a commit's own time may be ahead of ours."""
    environment: str = ""
    """Name of the Environment manifest this control plane works on."""
    listen: str = "127.0.0.1:8470"
    """host:port of webhooks, read API and metrics, plain HTTP: beyond this host behind a proxy."""
    agents_listen: str = "127.0.0.1:8471"
    """host:port of the agent API, always TLS with certificates of both sides."""
    allow_remote_read: bool = False
    """Whether anybody may read without a token. Unsafe: for a proxy in front that asks for one."""
    require_tokens: bool = False
    """Whether reading needs a token also on this host, where it listens on the loopback."""
    allowed_hosts: Annotated[tuple[str, ...], BeforeValidator(_listed)] = ()
    """Names under which the server is addressed, beside the one it listens on."""

    poll_interval_s: float = Field(default=30.0, gt=0)
    """How often the remote is asked for a new commit, webhooks apart."""
    resync_interval_s: float = Field(default=15.0, gt=0)
    """How often a pass looks at everything although nothing was heard."""
    wakeup_interval_s: float = Field(default=0.5, gt=0)
    """How often requests of other processes (`apply`, `status --wait`) are looked for."""
    vault_address: str = ""
    """URL of the Vault or OpenBao that keeps keys and secrets; empty: a local store to try with."""
    vault_prefix: str = Field(default="gpuaas", pattern=r"^[a-z0-9](?:[-a-z0-9]{0,40}[a-z0-9])?$")
    """What the names of its mounts, policies and logins there begin with."""
    vault_ca_file: Path | None = None
    """PEM certificates that an https Vault may be known by, instead of the system's."""
    vault_role_id_file: Path | None = None
    """File with the AppRole's role id of the runtime class."""
    vault_secret_id_file: Path | None = None
    """File with its secret id, or with a token that wraps one, for its owner alone."""
    vault_bootstrap_role_id_file: Path | None = None
    """The same of the bootstrap class, where drift in Vault is to be put right without a person."""
    vault_bootstrap_secret_id_file: Path | None = None
    """File with its secret id, or with a token that wraps one, for its owner alone."""
    vault_timeout_s: float = Field(default=5.0, gt=0)
    """How long Vault may take to answer."""
    vault_check_interval_s: float = Field(default=300.0, gt=0)
    """How often what Vault should hold is compared with what it does."""
    certificate_ttl_s: float = Field(default=24 * 3600.0, ge=60)
    """How long a certificate of an agent or of the agent API is good for; renewed at half of it."""
    wrap_ttl_s: float = Field(default=3600.0, gt=0)
    """How long what is handed to a person waits to be unwrapped."""
    public_address: str = ""
    """URL under which people and registries' clients reach `listen`; empty: http:// and that."""
    registry_token_issuer: str = "gpuaas"  # noqa: S105 - a name
    """`auth.token.issuer` in the registry's configuration."""
    registry_token_service: str = "registry"  # noqa: S105 - a name
    """`auth.token.service` there: tokens are for it alone."""
    registry_token_key_id: Literal["libtrust", "thumbprint"] = "libtrust"  # noqa: S105
    """How tokens name their key: as distribution 2 does, or as distribution 3 (RFC 7638)."""
    registry_token_ttl_s: float = Field(default=300.0, ge=60)
    """How long a registry token of a person or of this control plane is good for."""
    pull_token_ttl_s: float = Field(default=1800.0, ge=60)
    """How long a node's token is good for: no less than one pull takes."""
    transfer_ttl_s: float = Field(default=3600.0, gt=0)
    """How long a publish or pull intent is open."""
    trust_recheck_s: float = Field(default=24 * 3600.0, gt=0)
    """Age of what is known of an artifact's signatures from which on they are looked at again."""
    blob_dir: Path | None = None
    """Folder of the artifact store; unset: `blobs` in the state directory."""
    blob_s3_address: str = ""
    """URL of an S3-compatible service that keeps blobs instead of a folder."""
    blob_s3_bucket: str = "gpuaas-blobs"
    """Its bucket."""
    blob_s3_region: str = "us-east-1"
    """Its region."""
    blob_s3_key_file: Path | None = None
    """File with two lines, access key id and secret access key, for its owner alone."""
    blob_bytes_max: int = Field(default=2 * 1024**4, gt=0)
    """Largest blob that is taken."""

    fetch_timeout_s: float = Field(default=60.0, gt=0)
    """How long one fetch may take."""
    registry_timeout_s: float = Field(default=20.0, gt=0)
    """How long the registry may take to answer."""
    registry_look_timeout_s: float = Field(default=60.0, gt=0)
    """How long all that is asked of the registry about one artifact may take together."""
    lease_ttl_s: float = Field(default=15.0, gt=0)
    """How long a leader that went silent keeps others from taking over."""
    node_offline_after_s: float = Field(default=45.0, gt=0)
    """Age of a node's last report from which on nobody knows how it is."""
    task_ttl_s: float = Field(default=120.0, gt=0)
    """How long a node may wait before it begins a task."""
    join_token_ttl_s: float = Field(default=3600.0, gt=0)
    """How long a join token is good for."""
    long_poll_s: float = Field(default=25.0, gt=0)
    """How long an agent's poll is held open."""
    report_age_max_s: float = Field(default=60.0, gt=0)
    """Oldest report that is taken; clocks further apart are refused."""
    task_recheck_interval_s: float = Field(default=0.5, gt=0)
    """How often an open poll looks for tasks that another process queued."""
    pass_age_max_s: float = Field(default=300.0, gt=0)
    """Age of the last pass from which on `/readyz` says no."""
    heartbeat_age_max_s: float = Field(default=180.0, gt=0)
    """Age of the loop's last sign of life from which on `/healthz` says no; above any one fetch."""

    stuck_pull_s: float = Field(default=600.0, gt=0)
    """How long pulling may take beside a start budget before a start counts as stuck."""
    stuck_queued_s: float = Field(default=120.0, gt=0)
    """How long a node that reports may leave a task before that counts as stuck."""
    stuck_removal_s: float = Field(default=600.0, gt=0)
    """How long a removal may go without its proof before it counts as stuck."""
    stuck_degraded_s: float = Field(default=600.0, gt=0)
    """How long what was ready may be degraded before it counts as stuck."""

    join_failures_max: int = Field(default=10, gt=0)
    """Failed joins within the window, after which more are turned away."""
    join_failures_window_s: float = Field(default=60.0, gt=0)
    """Length of that window."""
    webhook_bytes_max: int = Field(default=1024 * 1024, gt=0)
    """Largest webhook that is read."""
    body_timeout_s: float = Field(default=30.0, gt=0)
    """How long a request's body may take to arrive."""
    server_threads_max: int = Field(default=12, gt=0)
    """Requests worked on at once, open polls apart."""

    file_bytes_max: int = Field(default=1024 * 1024, gt=0)
    """Largest manifest file."""
    files_max: int = Field(default=200_000, gt=0)
    """Most files and folders a revision may hold."""
    snapshot_bytes_max: int = Field(default=512 * 1024 * 1024, gt=0)
    """Most bytes of YAML a revision may hold."""
    documents_per_file_max: int = Field(default=2_000, gt=0)
    """Most documents in one file."""
    yaml_depth_max: int = Field(default=40, gt=0)
    """Deepest nesting of a document."""
    manifest_bytes_max: int = Field(default=8 * 1024 * 1024, gt=0)
    """Largest image manifest or index that is read."""
    registry_descriptors_max: int = Field(default=512, gt=0)
    """Most entries of an image index or manifest."""
    registry_cache_entries_max: int = Field(default=50_000, gt=0)
    """Artifacts remembered as seen, so that the registry is not asked again."""

    @property
    def parse_limits(self) -> ParseLimits:
        return ParseLimits(
            file_bytes_max=self.file_bytes_max,
            documents_per_file_max=self.documents_per_file_max,
            yaml_depth_max=self.yaml_depth_max,
        )


def settings_from(
    given: Mapping[str, Any], environment: Mapping[str, str], file: Path | None = None
) -> Settings:
    """From the command line, then `GPUAAS_*` variables, then a TOML `file`, then the defaults.

    Raises ValidationError for what is no setting, ValueError or OSError for a file that can't be
    read. Variables may be in upper or lower case; those that name no setting count nothing.
    """
    stored: dict[str, Any] = {}
    if file is not None and file.is_file():
        stored = tomllib.loads(file.read_text(encoding="utf-8"))
    texts = {key.upper(): text for key, text in environment.items()}
    named = {name: texts.get(PREFIX + name.upper()) for name in Settings.model_fields}
    variables = {name: text for name, text in named.items() if text is not None}
    return Settings(**{**stored, **variables, **given})
