"""The things a Vault holds for us: what kinds there are, where each is read and how it is written.

Rules:
- Every value is text, as it goes over the wire and as a policy can name it: "true", "3600s",
  "a,b". Vault takes it for the type it has; one text is one meaning, so texts can be compared.
- A thing is written by steps that may be done again at any time: a crash between two of them is
  mended by the next run.
- Nothing in here asks a Vault anything.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from reconciler.core.custody.layout import VaultLayout

Kind = Literal[
    "policy",
    "mount",
    "auth",
    "role",
    "kv config",
    "key",
    "root",
    "crl",
    "tidy",
    "pki role",
    "issuer",
]
Key = tuple[Kind, str]

MOUNT_TYPE_FIELD = "type"
FIXED: Mapping[Kind, frozenset[str]] = {
    "mount": frozenset({MOUNT_TYPE_FIELD}),
    "key": frozenset({"type", "exportable", "allow_plaintext_backup"}),
    "root": frozenset({"common_name", "key_type", "key_bits", "max_path_length", "ttl"}),
}
"""Fields that can't be changed where they are: a person has to make the thing anew, or live with
it. Whatever was exportable once may have been exported.
"""
PRECIOUS: frozenset[Kind] = frozenset({"mount", "auth", "key", "root"})
"""What is never made without a person: a new one in the place of one that was there would look
whole, and every node would refuse what it signs.
"""
NEVER_IN_PART: frozenset[Kind] = frozenset({"policy"})
"""What Vault refuses to take in part. Of all others it takes some fields, or none, and a role that
is there then loses what was not sent.
"""


@dataclass(frozen=True)
class Thing:
    """`name` is unique among its kind. `within`: the secrets mount that it goes away with."""

    kind: Kind
    name: str
    fields: Mapping[str, str]
    within: str = ""

    @property
    def key(self) -> Key:
        return (self.kind, self.name)


@dataclass(frozen=True)
class Step:
    """One write: `parameters` to `path`."""

    path: str
    parameters: Mapping[str, str]


def read_path(layout: VaultLayout, thing: Thing) -> str:
    """Where it is read."""
    return _paths(layout, thing.name)[thing.kind]


def read_parameters(layout: VaultLayout, thing: Thing) -> Mapping[str, str]:
    """What to send along to read it. It changes nothing; but where a policy says what a write has
    to have, Vault and OpenBao want the same of who reads at that path.
    """
    if thing.kind in NEVER_IN_PART:
        return {}
    path = read_path(layout, thing)
    return next((s.parameters for s in create_steps(layout, thing) if s.path == path), {})


def list_paths(layout: VaultLayout) -> dict[Kind, str]:
    """Where the names of all are listed, of those kinds that are in mounts of ours."""
    return {
        "role": f"auth/{layout.approle_mount}/role",
        "key": f"{layout.transit_mount}/keys",
        "pki role": f"{layout.pki_mount}/roles",
        "issuer": f"{layout.pki_mount}/issuers",
    }


def create_steps(layout: VaultLayout, thing: Thing) -> tuple[Step, ...]:
    """How it is made where there is none."""
    path, fields = read_path(layout, thing), dict(thing.fields)
    if thing.kind == "mount":
        made = Step(path, {MOUNT_TYPE_FIELD: fields.pop(MOUNT_TYPE_FIELD)})
        return (made, *change_steps(layout, thing))
    if thing.kind == "auth":
        made = Step(f"sys/auth/{thing.name}", {MOUNT_TYPE_FIELD: "approle"})
        return (made, *change_steps(layout, thing))
    if thing.kind == "key":
        return (Step(path, {"type": fields["type"]}), *change_steps(layout, thing))
    if thing.kind == "root":
        return (Step(f"{layout.pki_mount}/root/generate/internal", fields),)
    return change_steps(layout, thing)


def change_steps(layout: VaultLayout, thing: Thing) -> tuple[Step, ...]:
    """How one that is there gets the fields it should have, those that are fixed excepted."""
    path = read_path(layout, thing)
    fixed = FIXED.get(thing.kind, frozenset())
    fields = {name: text for name, text in thing.fields.items() if name not in fixed}
    if not fields:
        return ()
    suffix = {"mount": "/tune", "key": "/config"}.get(thing.kind, "")
    return (Step(path + suffix, fields),)


def made_alone(layout: VaultLayout, thing: Thing) -> bool:
    """Whether the bootstrap class may write it. What says what that class may do, and the login it
    comes through, are written by a person's token.
    """
    own = {("policy", layout.policy("bootstrap")), ("role", layout.role("bootstrap"))}
    return thing.key not in own


def _paths(layout: VaultLayout, name: str) -> dict[Kind, str]:
    pki = layout.pki_mount
    return {
        "policy": f"sys/policies/acl/{name}",
        "mount": f"sys/mounts/{name}",
        # What is under sys/auth/ needs sudo; the tuning of the same mount does not.
        "auth": f"sys/mounts/auth/{name}/tune",
        "role": f"auth/{layout.approle_mount}/role/{name}",
        "kv config": f"{layout.kv_mount}/config",
        "key": layout.key_path(name),
        "root": f"{pki}/config/issuers",
        "crl": f"{pki}/config/crl",
        "tidy": f"{pki}/config/auto-tidy",
        "pki role": layout.pki_role_path(name),
        "issuer": f"{pki}/issuer/{name}",
    }
