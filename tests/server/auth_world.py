"""Accounts with real keys, accepted in a store, and the assertions and tokens they make."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from reconciler.core.names import Revision
from reconciler.core.records import Accepted, AcceptedObject, AuditEntry
from reconciler.ports import Store
from reconciler.server.auth_api import GRANT_TYPE
from reconciler.use_cases.assertions import assertion
from tests.core.authority.trust_builders import Written, account, binding, identity
from tests.server.harness import NOW_MS, Plane

PATH = "/v1/auth/token"
AUDIENCE = "gpuaas"
CI = "acme/lab/ci"
READ, CREATE = "apps.instance.read", "apps.instance.create"
Private = Ed25519PrivateKey | ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


@dataclass(frozen=True)
class Pair:
    """A key pair by the id that its manifest gives it."""

    id: str
    key: Private

    @property
    def pem(self) -> bytes:
        return self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())

    @property
    def openssh(self) -> bytes:
        return self.key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())

    @property
    def public_pem(self) -> str:
        form = PublicFormat.SubjectPublicKeyInfo
        return self.key.public_key().public_bytes(Encoding.PEM, form).decode()

    def entry(self, **more: Any) -> dict[str, Any]:
        """As a ServiceAccount has it."""
        scheme = "ed25519" if isinstance(self.key, Ed25519PrivateKey) else "ecdsa-p256"
        return {"id": self.id, "scheme": scheme, "public_key": self.public_pem, **more}

    def ssh(self, **more: Any) -> dict[str, Any]:
        """As an Identity has it."""
        line = self.key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
        return {"id": self.id, "type": "ssh", "public_key": f"{line} {self.id}", **more}


def pair(id_: str = "ci-1") -> Pair:
    return Pair(id_, Ed25519PrivateKey.generate())


def ec_pair(id_: str = "ci-1") -> Pair:
    return Pair(id_, ec.generate_private_key(ec.SECP256R1()))


def rsa_pair(id_: str = "ada-rsa", bits: int = 2048) -> Pair:
    return Pair(id_, rsa.generate_private_key(65_537, bits))


def accept(store: Store, *written: Written) -> None:
    """Makes these all that is accepted."""
    revision = Revision("a" * 40)
    stored = {
        str(ref): AcceptedObject(str(ref), "x.yaml", 1, json.dumps(document), revision)
        for ref, document in written
    }
    store.save_accepted(Accepted(revision, stored))


def ci_account(*keys: dict[str, Any], **spec: Any) -> Written:
    return account(CI, "app-operator", public_keys=list(keys), **spec)


def ada(*keys: dict[str, Any], **spec: Any) -> Written:
    return identity("ada", keys=list(keys), **spec)


def viewer(name: str = "ada", where: str = "acme", **spec: Any) -> Written:
    return binding("viewers", "viewer", where, name, **spec)


def made(by: Pair, subject: str = CI, now_ms: int = NOW_MS, **more: Any) -> str:
    """As our own client makes it."""
    return assertion(by.pem, subject, more.pop("key_id", by.id), AUDIENCE, now_ms, **more)


@dataclass
class Crafted:
    """An assertion field by field; a value of None takes the field out."""

    by: Pair
    subject: str = CI
    claims: Mapping[str, Any] = field(default_factory=dict)
    header: Mapping[str, Any] = field(default_factory=dict)
    algorithm: str = "EdDSA"

    def __str__(self) -> str:
        now_s = NOW_MS // 1000
        known = {
            "iss": self.subject,
            "sub": self.subject,
            "aud": AUDIENCE,
            "iat": now_s,
            "exp": now_s + 120,
            "jti": f"once-{id(self)}",
        }
        claims = {k: v for k, v in {**known, **self.claims}.items() if v is not None}
        header = {"alg": self.algorithm, "kid": self.by.id, "typ": "JWT", **self.header}
        message = f"{segment(header)}.{segment(claims)}"
        signer = jwt.get_algorithm_by_name(self.algorithm)
        signature = signer.sign(message.encode(), self.by.key)
        return f"{message}.{base64url(signature)}"


def segment(document: object) -> str:
    return base64url(json.dumps(document).encode())


def base64url(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def ask(plane: Plane, given: object, client: httpx.Client | None = None, **more: str) -> Any:
    """The answer to an assertion, sent as a form."""
    form = {"grant_type": GRANT_TYPE, "assertion": str(given), **more}
    return (client or plane.client).post(PATH, data=form)


def token(plane: Plane, given: object, **more: str) -> str:
    answer = ask(plane, given, None, **more)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["access_token"])


def claims_of(access_token: str) -> dict[str, Any]:
    """Unverified."""
    return jwt.decode(access_token, options={"verify_signature": False})


def audit(store: Store, action: str = "") -> list[AuditEntry]:
    entries = [row.entry for row in store.audit()]
    return [entry for entry in entries if action in entry.action]


# --- what many requests are made with -------------------------------------------------------------

NOW_S = NOW_MS // 1000
REFUSED = (401, "assertion_refused", "no such account with such a key signed this")
KEY, OTHER = pair(), pair()
EC_KEY = ec_pair("ci-ec")
RSA_KEY = rsa_pair()
TWICE = base64url(b'{"alg": "EdDSA", "alg": "none"}')


in_memory = pytest.mark.parametrize("plane", ["memory"], indirect=True)
"""What is decided before the store is asked."""
