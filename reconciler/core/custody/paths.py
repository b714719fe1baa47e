"""The paths of secrets, and the references that manifests name them by.

Rules:
- The first word of a path says what it is, and with that its class: who may reach it. A path with
  any other first word is nobody's.
- A reference is resolved where it stands: `secret://project/x` is one of the project the instance
  is in. There is no way to write down another project's.
"""

from __future__ import annotations

import re
from typing import Literal

SecretClass = Literal["runtime", "bootstrap", "operator", "ci"]

CLASS_OF: dict[str, SecretClass] = {
    "instances": "runtime",
    "webhook": "runtime",
    "handover": "runtime",
    "transfers": "runtime",
    "projects": "runtime",
    "tenants": "runtime",
    "joins": "bootstrap",
    "pki": "bootstrap",
    "ssh": "bootstrap",
    "operator": "operator",
    "ci": "ci",
}
"""Class by the first word of a path.

runtime: what the control plane gives to workloads. bootstrap: what lets nodes and people in.
operator and ci: what those put there for themselves; the control plane can't read it.
"""

REFERENCE = re.compile(r"secret://(project|tenant)/([a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?)")
REFERRED = ("projects", "tenants")
"""First words of the paths of what a reference may lead to."""
WRAP_MAC_KEY = "handover/mac-key"
"""Where the key is that says which wrapping tokens were given out here."""
Owner = tuple[str, str]
"""Tenant and project."""


def class_of(path: str) -> SecretClass | None:
    """None for a path that is of no class."""
    return CLASS_OF.get(path.partition("/")[0])


def referred_path(reference: str, owner: Owner) -> str | None:
    """Where the secret is that an instance of `owner` refers to; None for what is no reference."""
    match = REFERENCE.fullmatch(reference)
    if match is None:
        return None
    tenant, project = owner
    if match[1] == "project":
        return project_secret(tenant, project, match[2])
    return tenant_secret(tenant, match[2])


def asked_for(asked: str) -> tuple[str, str]:
    """`wire.SecretFile.asked` taken apart: its name and its reference, empty for an own one."""
    name, _, reference = asked.partition("=")
    return name, reference


def project_secret(tenant: str, project: str, name: str) -> str:
    return f"projects/{tenant}/{project}/{name}"


def tenant_secret(tenant: str, name: str) -> str:
    return f"tenants/{tenant}/{name}"


def join_secret(node: str, number: str) -> str:
    """`number` tells two tokens for one node apart."""
    return f"joins/{node}/{number}"


def transfer_secret(transfer: str) -> str:
    """The password of a publish or pull transfer, until it was handed over."""
    return f"transfers/{transfer}"


def ssh_key_path(tenant: str, project: str, version: int) -> str:
    """The private key with which people of a project open tunnels."""
    return f"ssh/{tenant}/{project}/v{version}"


def ssh_public_path(tenant: str, project: str, version: int) -> str:
    """Its public half, so that who tells nodes of it reads no private key."""
    return f"{ssh_key_path(tenant, project, version)}/public"
