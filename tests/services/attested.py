"""Signatures and statements for tests, also such as nobody honest would make."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass, field
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from reconciler.artifact_ports import AttachedForm, Document
from reconciler.artifacts.signatures import pae
from reconciler.core.names import Digest
from reconciler.core.trust.rules import ChannelNeeds, TrustedKey, TrustRules
from reconciler.core.trust.statements import (
    BUNDLE_TYPE,
    IN_TOTO,
    SIGNATURE_PREDICATE,
    SIMPLE_SIGNING,
    SLSA_V1,
    STATEMENT_V1,
)

BUILDER = "https://ci.acme.example/builders/gpu-apps@v1"
SOURCE = "git+https://git.acme.example/apps/site@refs/heads/main"
PREFIX = "https://git.acme.example/apps/"


@dataclass(frozen=True)
class Signer:
    """A key pair under an id."""

    id: str
    private: ec.EllipticCurvePrivateKey | Ed25519PrivateKey = field(
        default_factory=lambda: ec.generate_private_key(ec.SECP256R1())
    )

    def sign(self, message: bytes) -> bytes:
        if isinstance(self.private, Ed25519PrivateKey):
            return self.private.sign(message)
        return self.private.sign(message, ec.ECDSA(hashes.SHA256()))

    @property
    def pem(self) -> str:
        form = PublicFormat.SubjectPublicKeyInfo
        return self.private.public_key().public_bytes(Encoding.PEM, form).decode()

    def key(self, **more: Any) -> TrustedKey:
        edwards = isinstance(self.private, Ed25519PrivateKey)
        scheme = "ed25519" if edwards else "ecdsa-p256"
        return TrustedKey(**{"id": self.id, "scheme": scheme, "public_key": self.pem, **more})


def rules(
    *keys: TrustedKey, builders: dict[str, frozenset[str]] | None = None, **needs: Any
) -> TrustRules:
    """One channel `stable` that needs all there is to need."""
    asked: dict[str, Any] = {
        "policy": "artifacts",
        "signature_required": True,
        "scheme": "ecdsa-p256",
        "accepted_keys": frozenset(),
        "provenance_required": True,
        "predicate_types": frozenset({SLSA_V1}),
        "builders": frozenset(),
    }
    return TrustRules(
        {key.id: key for key in keys},
        builders if builders is not None else {BUILDER: frozenset({PREFIX})},
        {"stable": (ChannelNeeds(**{**asked, **needs}),)},
    )


def slsa_v1(builder: str = BUILDER, source: object = SOURCE) -> dict[str, Any]:
    return {
        "buildDefinition": {
            "buildType": "https://ci.acme.example/build/v1",
            "externalParameters": {"source": source},
        },
        "runDetails": {"builder": {"id": builder}},
    }


def slsa_v02(builder: str = BUILDER, source: str = SOURCE) -> dict[str, Any]:
    return {
        "builder": {"id": builder},
        "buildType": "https://ci.acme.example/build/v0",
        "invocation": {"configSource": {"uri": source}},
    }


def statement(
    digest: Digest, predicate_type: str = SLSA_V1, predicate: object = None, **more: Any
) -> bytes:
    document = {
        "_type": STATEMENT_V1,
        "subject": [{"name": "site", "digest": {"sha256": digest.value.removeprefix("sha256:")}}],
        "predicateType": predicate_type,
        "predicate": slsa_v1() if predicate is None else predicate,
        **more,
    }
    return json.dumps(document).encode()


def simple_signing(digest: Digest, **more: Any) -> bytes:
    critical = {
        "identity": {"docker-reference": "registry.example/site"},
        "image": {"docker-manifest-digest": str(digest)},
        "type": SIMPLE_SIGNING,
        **more,
    }
    return json.dumps({"critical": critical, "optional": None}).encode()


def classic(digest: Digest, signer: Signer, payload: bytes | None = None) -> Document:
    content = simple_signing(digest) if payload is None else payload
    return Document("classic_signature", content, b64(signer.sign(content)), "sha256:" + "c" * 64)


def enveloped(
    payload: bytes,
    *signers: Signer,
    form: AttachedForm = "bundle",
    payload_type: str = IN_TOTO,
    **more: Any,
) -> Document:
    """A DSSE envelope, in a bundle or as classic cosign keeps it. `more` replaces its fields."""
    signatures = [{"sig": b64(one.sign(pae(payload_type, payload)))} for one in signers]
    envelope = {
        "payload": b64(payload),
        "payloadType": payload_type,
        "signatures": signatures,
        **more,
    }
    document: dict[str, Any] = envelope
    if form == "bundle":
        hint = {"publicKey": {"hint": "anybody's word"}}
        document = {
            "mediaType": BUNDLE_TYPE,
            "verificationMaterial": hint,
            "dsseEnvelope": envelope,
        }
    return Document(form, json.dumps(document).encode(), digest="sha256:" + "d" * 64)


def signature(digest: Digest, signer: Signer) -> Document:
    return enveloped(statement(digest, SIGNATURE_PREDICATE, {}), signer)


def provenance(digest: Digest, *signers: Signer, **predicate: Any) -> Document:
    return enveloped(statement(digest, predicate=slsa_v1(**predicate)), *signers)


def b64(content: bytes) -> str:
    return base64.b64encode(content).decode()
