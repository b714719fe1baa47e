"""What a Vault has to hold for a control plane, all of it, as values.

Rules:
- In the order in which it is made: what something is in, or refers to, comes before it.
- Only what is named here is compared. Whoever ties a role to addresses, or gives a mount a seal
  wrap, makes it narrower, and that is theirs to decide.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from node_agent.membership import NODE_DOMAIN, SERVER_NAME
from reconciler.core.custody.grants import policy_text, rules
from reconciler.core.custody.layout import AGENT_ROLE, CLASSES, SERVER_ROLE, VaultLayout
from reconciler.core.custody.paths import SecretClass
from reconciler.core.custody.things import Thing

SIGNING_KEYS: Mapping[str, str] = {
    "artifacts": "ecdsa-p256",
    "audit": "ed25519",
    "plans": "ed25519",
    "registry-tokens": "ecdsa-p256",
    "snapshots": "ed25519",
    "tasks": "ed25519",
    "tokens": "ed25519",
}
"""Every key that something in the control plane, or CI, signs with."""

_HOUR_S = 3600
_DAY_S = 24 * _HOUR_S
ROOT_DAYS = 3650
_UNREVOKED_FOR_S = 3 * _DAY_S
"""How long a list of revoked certificates is good for, and how long what ended stays on it."""

_NOT_SAID_IN_AUDIT = {"audit_non_hmac_request_keys": "", "audit_non_hmac_response_keys": ""}
"""Vault's audit devices hash every value; nobody is to make an exception of ours."""


def desired(layout: VaultLayout, certificate_ttl_s: float) -> tuple[Thing, ...]:
    """`certificate_ttl_s` is the longest that a certificate may be good for."""
    things = (
        *_mounts(layout),
        _kv_config(layout),
        *_keys(layout),
        _root(layout),
        *_pki(layout, math.ceil(certificate_ttl_s)),
        *(_role(layout, secret_class) for secret_class in CLASSES),
    )
    return (*_policies(layout, things), *things)


def _policies(layout: VaultLayout, things: Sequence[Thing]) -> tuple[Thing, ...]:
    """That of `bootstrap` comes last, since it says what the others are."""
    made: list[Thing] = []
    for secret_class in sorted(CLASSES, key=lambda word: word == "bootstrap"):
        text = policy_text(rules(layout, secret_class, (*made, *things)))
        made.append(Thing("policy", layout.policy(secret_class), {"policy": text}))
    return tuple(made)


def _mounts(layout: VaultLayout) -> Iterator[Thing]:
    ten_years_s = (ROOT_DAYS + 1) * _DAY_S
    for name, type_, what, longest_s in (
        (layout.kv_mount, "kv-v2", "secrets", 0),
        (layout.transit_mount, "transit", "signing keys", 0),
        (layout.pki_mount, "pki", "certificates of nodes", ten_years_s),
    ):
        tuning = {"default_lease_ttl": "0s", "max_lease_ttl": _s(longest_s)}
        yield Thing("mount", name, {"type": type_, **_shown(layout, what), **tuning})
    tuning = {
        "default_lease_ttl": _s(_HOUR_S),
        "max_lease_ttl": _s(_DAY_S),
        "token_type": "default-service",
    }
    yield Thing("auth", layout.approle_mount, {**_shown(layout, "logins"), **tuning})


def _shown(layout: VaultLayout, what: str) -> dict[str, str]:
    told = {"description": f"{layout.prefix}: {what}", "listing_visibility": "hidden"}
    return {**told, **_NOT_SAID_IN_AUDIT}


def _kv_config(layout: VaultLayout) -> Thing:
    """The value before stays, for a mistake of a moment; older ones are gone."""
    fields = {"max_versions": "2", "cas_required": "false", "delete_version_after": "0s"}
    return Thing("kv config", layout.kv_mount, fields, layout.kv_mount)


def _keys(layout: VaultLayout) -> Iterator[Thing]:
    """They never rotate by themselves: a new version has to be known to every node first."""
    never = {"exportable": "false", "allow_plaintext_backup": "false", "deletion_allowed": "false"}
    for name, kind in sorted(SIGNING_KEYS.items()):
        fields = {"type": kind, **never, "auto_rotate_period": "0s"}
        yield Thing("key", name, fields, layout.transit_mount)


def _root(layout: VaultLayout) -> Thing:
    fields = {
        "common_name": f"{layout.prefix} CA",
        "key_type": "ec",
        "key_bits": "256",
        "max_path_length": "0",
        "ttl": _s(ROOT_DAYS * _DAY_S),
    }
    return Thing("root", layout.pki_mount, fields, layout.pki_mount)


def _pki(layout: VaultLayout, ttl_s: int) -> Iterator[Thing]:
    mount = layout.pki_mount
    crl = {
        "disable": "false",
        "expiry": _s(_UNREVOKED_FOR_S),
        "auto_rebuild": "true",
        "auto_rebuild_grace_period": _s(_DAY_S // 2),
    }
    yield Thing("crl", mount, crl, mount)
    tidy = {
        "enabled": "true",
        "interval_duration": _s(_DAY_S // 2),
        "safety_buffer": _s(_UNREVOKED_FOR_S),
        "tidy_cert_store": "true",
        "tidy_revoked_certs": "true",
    }
    yield Thing("tidy", mount, tidy, mount)
    longest = {"max_ttl": _s(ttl_s)}
    agent = {"allowed_domains": NODE_DOMAIN, "allow_subdomains": "true", "client_flag": "true"}
    yield Thing("pki role", AGENT_ROLE, _CERTIFIED | longest | agent, mount)
    server = {"allowed_domains": SERVER_NAME, "allow_bare_domains": "true", "server_flag": "true"}
    yield Thing("pki role", SERVER_ROLE, _CERTIFIED | longest | server, mount)


_CERTIFIED = {
    "allow_any_name": "false",
    "allow_bare_domains": "false",
    "allow_glob_domains": "false",
    "allow_ip_sans": "false",
    "allow_localhost": "false",
    "allow_subdomains": "false",
    "allow_wildcard_certificates": "false",
    "allowed_other_sans": "",
    "allowed_uri_sans": "",
    "client_flag": "false",
    "server_flag": "false",
    "code_signing_flag": "false",
    "email_protection_flag": "false",
    "ext_key_usage": "",
    "ext_key_usage_oids": "",
    "cn_validations": "hostname",
    "enforce_hostnames": "true",
    "require_cn": "true",
    "use_csr_common_name": "false",
    "use_csr_sans": "false",
    "key_type": "any",
    "key_usage": "DigitalSignature",
    # Kept, so that a serial number is enough to revoke it.
    "no_store": "false",
    "basic_constraints_valid_for_non_ca": "true",
}
"""Roles that differ in one flag and one name: who asks says which key, and nothing else."""


def _role(layout: VaultLayout, secret_class: SecretClass) -> Thing:
    token_s, token_max_s, secret_id_s, uses = _LOGINS[secret_class]
    fields = {
        "bind_secret_id": "true",
        "secret_id_ttl": _s(secret_id_s),
        "secret_id_num_uses": str(uses),
        "token_policies": layout.policy(secret_class),
        "token_no_default_policy": "true",
        "token_type": "service",
        "token_ttl": _s(token_s),
        "token_max_ttl": _s(token_max_s),
        "token_explicit_max_ttl": "0s",
        "token_num_uses": "0",
        "token_period": "0s",
    }
    return Thing("role", layout.role(secret_class), fields)


_LOGINS: Mapping[SecretClass, tuple[int, int, int, int]] = {
    # A control plane has to be able to log in after any restart, at any time, unattended.
    "runtime": (_HOUR_S, _DAY_S, 0, 0),
    "bootstrap": (_HOUR_S // 4, _HOUR_S, 90 * _DAY_S, 0),
    "operator": (_HOUR_S, 8 * _HOUR_S, _DAY_S // 2, 10),
    "ci": (_HOUR_S // 4, _HOUR_S, 90 * _DAY_S, 0),
}
"""Token, token at most, secret id (0: until it is destroyed), uses of that (0: any)."""


def _s(seconds: int) -> str:
    return f"{seconds}s"
