"""Looks at what a Vault holds for a control plane, and makes it as it has to be.

Rules:
- It looks before it writes, and every write may come twice: a run that broke off is finished by the
  next one.
- It writes what is declared and removes nothing.
- "There is none" is Vault's own word for it; anything else that is no answer is raised.
hvac stays behind VaultClient; cryptography stays in here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

from reconciler.adapters.vault_client import VaultClient
from reconciler.core.custody.diff import Change, found_fields, is_foreign_policy
from reconciler.core.custody.layout import VaultLayout
from reconciler.core.custody.paths import SecretClass
from reconciler.core.custody.things import (
    Key,
    Thing,
    change_steps,
    create_steps,
    list_paths,
    read_parameters,
    read_path,
)
from reconciler.errors import Refused
from reconciler.ports import Secret

_NO_MOUNT = ("No secret engine mount at", "cannot fetch ")
_NO_ISSUER = "no default issuer currently configured"
_DAY_S = 24 * 3600


class VaultAdmin:
    """One Vault, as whoever `client` is logged in as. Raises what VaultClient does."""

    def __init__(self, client: VaultClient, layout: VaultLayout) -> None:
        self._client = client
        self._layout = layout

    @property
    def address(self) -> str:
        return self._client.address

    def close(self) -> None:
        self._client.close()

    def look(self, wanted: Sequence[Thing]) -> dict[Key, dict[str, str]]:
        """Those of the things that are there, with their fields; others beside them have none."""
        found: dict[Key, dict[str, str]] = {}
        missing: set[str] = set()
        ordered = sorted(wanted, key=lambda thing: thing.kind not in ("mount", "auth"))
        for thing in ordered:
            inside = self._layout.approle_mount if thing.kind == "role" else thing.within
            fields = None if inside in missing else self._fields(thing)
            if fields is not None:
                found[thing.key] = fields
            elif thing.kind in ("mount", "auth"):
                missing.add(thing.name)
        for key in self._listed(missing):
            found.setdefault(key, {})
        return found

    def make(self, thing: Thing, change: Change) -> None:
        """Creates the thing or changes it, as `change.op` says."""
        creates = change.op == "create"
        for step in (create_steps if creates else change_steps)(self._layout, thing):
            answer = self._client.post(step.path, dict(step.parameters), again=not creates)
            if not answer.ok:
                raise Refused(
                    "vault_write_refused",
                    f"Vault does not take {', '.join(sorted(step.parameters))} at {step.path}",
                    where=self._client.address,
                    hint="is there something else at that path, or is this Vault too old?",
                )

    def role_id(self, secret_class: SecretClass) -> str:
        path = f"{self._layout.role_path(secret_class)}/role-id"
        answer = self._client.get(path)
        found = answer.data.get("role_id") if answer is not None else None
        if not isinstance(found, str):
            raise self._client.malformed(path)
        return found

    def wrapped_secret_id(self, secret_class: SecretClass, ttl_s: float) -> Secret:
        """A token that gives a new secret id of the class to the first who unwraps it."""
        path = self._layout.secret_id_path(secret_class)
        answer = self._client.post(path, {}, wrap_ttl_s=ttl_s)
        token = answer.wrap_info.get("token")
        if not answer.ok or not isinstance(token, str):
            raise self._client.malformed(path)
        return Secret(token)

    def _fields(self, thing: Thing) -> dict[str, str] | None:
        path = read_path(self._layout, thing)
        answer = self._client.get(path, parameters=read_parameters(self._layout, thing))
        if answer is None:
            return None
        if not answer.ok:
            if thing.kind in ("mount", "auth") and any(map(answer.says, _NO_MOUNT)):
                return None
            raise self._client.malformed(path)
        if thing.kind == "root":
            return self._root_fields() if answer.data.get("default") else None
        return found_fields(thing.kind, answer.data)

    def _root_fields(self) -> dict[str, str] | None:
        path = f"{self._layout.pki_mount}/cert/ca"
        answer = self._client.get(path)
        if answer is None or answer.says(_NO_ISSUER):
            return None
        try:
            pem = answer.data["certificate"].encode()
            return _certificate_fields(x509.load_pem_x509_certificate(pem))
        except (KeyError, AttributeError, ValueError):
            raise self._client.malformed(path) from None

    def _listed(self, missing: set[str]) -> Iterator[Key]:
        """What is there by name, whoever put it there."""
        layout = self._layout
        for kind, path in list_paths(layout).items():
            mount = path.removeprefix("auth/").partition("/")[0]
            if mount in missing:
                continue
            names = self._client.list(path) or ()
            if kind == "issuer":
                names = self._others(names)
            yield from ((kind, name) for name in names)
        yield from (("policy", name) for name in self._policies())

    def _others(self, issuers: Sequence[str]) -> tuple[str, ...]:
        """Issuers beside the one that signs."""
        answer = self._client.get(f"{self._layout.pki_mount}/config/issuers")
        default: Mapping[str, Any] = answer.data if answer is not None else {}
        return tuple(name for name in issuers if name != default.get("default"))

    def _policies(self) -> tuple[str, ...]:
        """Foreign ones under our prefix; none for a login that may not list what all have."""
        try:
            names = self._client.list("sys/policies/acl") or ()
        except Refused as error:
            if error.code != "custody_forbidden":
                raise
            return ()
        return tuple(name for name in names if is_foreign_policy(self._layout, name))


def _certificate_fields(certificate: x509.Certificate) -> dict[str, str]:
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    key = certificate.public_key()
    kind, bits = "other", 0
    if isinstance(key, ec.EllipticCurvePublicKey):
        kind, bits = "ec", key.curve.key_size
    elif isinstance(key, rsa.RSAPublicKey):
        kind, bits = "rsa", key.key_size
    lasts = certificate.not_valid_after_utc - certificate.not_valid_before_utc
    # It begins a little before it is made, so that clocks need not agree.
    return {
        "common_name": str(names[0].value) if names else "",
        "key_type": kind,
        "key_bits": str(bits),
        "max_path_length": _path_length(certificate),
        "ttl": f"{int(lasts.total_seconds()) // _DAY_S * _DAY_S}s",
    }


def _path_length(certificate: x509.Certificate) -> str:
    """How many CAs may stand between it and what it vouches for; empty for any number."""
    try:
        found = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    except x509.ExtensionNotFound:
        return ""
    return "" if found.path_length is None else str(found.path_length)
