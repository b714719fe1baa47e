"""Makes and deletes the SSH key pairs of projects, as the manifests and the nodes' reports ask for.

Rules:
- A private half is made in here, goes to custody, and leaves it only to be handed over. Its public
  half lies beside it, so that whoever tells nodes of it reads no private key.
- Made once, whoever is asked: of two processes that make a pair at once, one has its way.
- None is deleted while it is not sure that its project does not ask for it.
- While custody is away everything stays as it is, and the pass says why.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from reconciler.core.audit import SYSTEM
from reconciler.core.custody.paths import Owner, ssh_key_path, ssh_public_path
from reconciler.core.observed import Known, Observed
from reconciler.core.plan import Finding
from reconciler.core.printable import printable
from reconciler.core.records import Accepted, AuditEntry
from reconciler.core.ssh_access import (
    Doubt,
    Installed,
    KeyName,
    Records,
    installed_on,
    key_steps,
    rotating,
    wanted_versions,
)
from reconciler.errors import GpuaasError
from reconciler.ports import Secret, SecretStore

FOLDER = "ssh"
_PUBLIC = "/public"
_Inputs = tuple[dict[Owner, int], Installed]


@dataclass
class SshMemo:
    """Held by whoever makes pass after pass: custody is asked only when something has changed."""

    done: _Inputs | None = None
    doubted: bool = False
    """Whether a pair was kept because nobody could say that it is not wanted."""


@dataclass(frozen=True)
class SshKept:
    """What was done, and what people should know of."""

    audit: tuple[AuditEntry, ...] = ()
    findings: tuple[Finding, ...] = ()


def keep_ssh_keys(
    secrets: SecretStore,
    accepted: Accepted,
    records: Records,
    observed: Observed,
    now_ms: int,
    memo: SshMemo | None = None,
    doubt: Doubt | None = None,
) -> SshKept:
    """Every key pair that is wanted is there, and none that surely is not. Raises nothing.

    `doubt` is what the accepted revision leaves open.
    """
    memo = memo or SshMemo()
    wanted, installed = wanted_versions(accepted), installed_on(observed.nodes)
    findings = [*_not_installed(observed)]
    if not wanted and memo.done is None and not any(installed.values()):
        return SshKept(findings=tuple(findings))
    findings += _waiting(rotating(accepted, records, installed))
    inputs = (wanted, installed)
    if inputs == memo.done and not memo.doubted:
        return SshKept(findings=tuple(findings))
    audit: list[AuditEntry] = []
    try:
        whole, halves = _existing(secrets)
        steps = key_steps(accepted, installed, whole, halves, doubt)
        audit += [_made(secrets, name, now_ms) for name in steps.make]
        audit += [_deleted(secrets, name, now_ms) for name in steps.delete]
        memo.done, memo.doubted = inputs, bool(steps.doubted)
    except GpuaasError as error:
        message = f"SSH keys stay as they are: {error.message}"
        findings.append(Finding("info", "ssh_keys_wait", "", message, error.hint))
    return SshKept(tuple(audit), tuple(findings))


def _existing(secrets: SecretStore) -> tuple[frozenset[str], frozenset[str]]:
    """The paths of pairs that are whole, and of those of which a crash left one half."""
    found = frozenset(secrets.paths(FOLDER))
    private = frozenset(path.removesuffix(_PUBLIC) for path in found)
    whole = frozenset(path for path in private if {path, path + _PUBLIC} <= found)
    return whole, private - whole


def _made(secrets: SecretStore, name: KeyName, now_ms: int) -> AuditEntry:
    owner, version = name
    kept = secrets.ensure(ssh_key_path(*owner, version), new_private_key())
    # Written, not ensured: a half that is left over from another pair must not stay.
    secrets.write(ssh_public_path(*owner, version), Secret(public_line(kept)))
    return _entry("created", name, now_ms)


def _deleted(secrets: SecretStore, name: KeyName, now_ms: int) -> AuditEntry:
    owner, version = name
    secrets.delete(ssh_key_path(*owner, version))
    secrets.delete(ssh_public_path(*owner, version))
    return _entry("deleted", name, now_ms)


def _entry(verb: str, name: KeyName, now_ms: int) -> AuditEntry:
    owner, version = name
    return AuditEntry(
        at_ms=now_ms,
        actor=SYSTEM,
        requester_type=SYSTEM,
        action=f"keys.ssh_key.{verb}",
        object="/".join(("Project", *owner)),
        reason=f"version {version}",
    )


def new_private_key() -> Secret:
    """An ed25519 key as OpenSSH keeps it in a file."""
    # Loads cryptography, of which a plan needs nothing.
    from cryptography.hazmat.primitives.asymmetric.ed25519 import (  # noqa: PLC0415
        Ed25519PrivateKey,
    )
    from cryptography.hazmat.primitives.serialization import (  # noqa: PLC0415
        Encoding,
        NoEncryption,
        PrivateFormat,
    )

    key = Ed25519PrivateKey.generate()
    return Secret(key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()).decode())


def public_line(private: Secret) -> str:
    """Its public half: `ssh-ed25519 AAAA…`, without a comment."""
    from cryptography.hazmat.primitives.serialization import (  # noqa: PLC0415
        Encoding,
        PublicFormat,
        load_ssh_private_key,
    )

    public = load_ssh_private_key(private.reveal().encode(), None).public_key()
    return public.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()


# --- what people should know ---------------------------------------------------------------------


def _not_installed(observed: Observed) -> Iterator[Finding]:
    for name, seen in sorted(observed.nodes.items()):
        config = seen.value.config if isinstance(seen, Known) else None
        if config is not None and config.ssh_error:
            message = printable(config.ssh_error)[:500]
            hint = "mend the file or the user on the node; the agent tries again by itself"
            yield Finding("info", "ssh_keys_not_installed", f"Node/{name}", message, hint)


def _waiting(missing: Mapping[KeyName, tuple[str, ...]]) -> Iterator[Finding]:
    for (owner, version), nodes in sorted(missing.items()):
        message = (
            f"version {version} of its SSH key is not on {', '.join(nodes)} yet: the one before "
            "goes on until it is"
        )
        hint = "it ends by itself once they report; `gpuaas node revoke` for one that is gone"
        yield Finding("info", "ssh_key_rotating", "/".join(("Project", *owner)), message, hint)
