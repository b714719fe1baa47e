"""Signs an artifact with the key in custody, in the forms that cosign and we check.

Rules:
- What is signed is a digest that was looked up and hashed in the registry, never a tag.
- The private key stays in custody. What it gave is checked with its public half before it goes out.
- What was attached is looked for again: beside what others attached it may not be read any more.
- A provenance is taken as somebody's word: who signs it vouches that it is of this artifact.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_public_key,
)

from reconciler.artifact_ports import Document, Registry, RegistryEndpoint
from reconciler.artifacts.signatures import check_document, pae, verifiers
from reconciler.core.names import ArtifactKey
from reconciler.core.trust.evidence import Rejected
from reconciler.core.trust.rules import TrustedKey, TrustRules
from reconciler.core.trust.statements import (
    BUNDLE_TYPE,
    IN_TOTO,
    SIGNATURE_PREDICATE,
    SIMPLE_SIGNING,
    SLSA_V02,
    SLSA_V1,
    STATEMENT_V01,
    STATEMENT_V1,
    claims_of,
    strict_json,
)
from reconciler.errors import Refused
from reconciler.ports import ARTIFACT_KEY, PublicKey, SecretStore

Form = Literal["classic", "bundle"]
FORMS: tuple[Form, ...] = ("classic", "bundle")


@dataclass(frozen=True)
class Made:
    """What was attached: a signature or a provenance, in which form, at which digest."""

    what: Literal["signature", "provenance"]
    form: Form
    digest: str
    document: Document


def sign_artifact(
    registry: Registry,
    endpoint: RegistryEndpoint,
    key: ArtifactKey,
    secrets: SecretStore,
    forms: Collection[Form],
    provenance: bytes | None = None,
) -> tuple[Made, ...]:
    """Signs `key` and attaches that, and a provenance if there is one, in each of `forms`.

    `provenance`: the JSON of a SLSA predicate v1 or v0.2, or of an in-toto statement about `key`.
    Refused("artifact_missing", "provenance_malformed", "provenance_other_subject").
    """
    stated = _provenance(provenance, key) if provenance is not None else None
    if not registry.look_up(endpoint, key).exists:
        hint = "push it first, and sign it by the digest that the push gave"
        raise Refused("artifact_missing", "it is not in the registry", where=str(key), hint=hint)
    public = secrets.ensure_signing_key(ARTIFACT_KEY, "ecdsa-p256")
    signer = _Signer(
        public, lambda message: secrets.sign(ARTIFACT_KEY, message, public.version).signature
    )
    place = f"{endpoint.endpoint}/{key.repository}".lstrip("/")
    drafts: list[tuple[Literal["signature", "provenance"], Form, Document]] = []
    for form in (one for one in FORMS if one in forms):
        drafts.append(("signature", form, _signature(form, signer, place, key)))
        if stated is not None:
            statement = _statement(place, key, *stated)
            drafts.append(("provenance", form, _attested(form, signer, statement, stated[0])))
    for _, _, document in drafts:
        _check(document, key, public)
    return tuple(
        Made(what, form, registry.attach(endpoint, key, document), document)
        for what, form, document in drafts
    )


def find_again(
    registry: Registry, endpoint: RegistryEndpoint, key: ArtifactKey, made: Iterable[Made]
) -> None:
    """Refused("signature_hidden") when whoever looks at `key` does not see all of `made`."""
    seen = {_content(one) for one in registry.attached(endpoint, key).documents}
    hidden = [one for one in made if _content(one.document) not in seen]
    if hidden:
        what = ", ".join(f"the {one.what} ({one.form})" for one in hidden)
        raise Refused(
            "signature_hidden",
            f"{what} was attached, and is not among what is read there: others attached too much",
            where=str(key),
            hint="delete from the registry what nobody needs of what is attached to it "
            "(`gpuaas artifact verify` lists it), or sign with the other --form",
        )


def _content(document: Document) -> tuple[str, bytes, str]:
    return document.form, document.content, document.signature


@dataclass(frozen=True)
class _Signer:
    public: PublicKey
    sign: Callable[[bytes], bytes]

    @property
    def hint(self) -> str:
        """How a bundle names its key: SHA-256 of the SubjectPublicKeyInfo."""
        form = PublicFormat.SubjectPublicKeyInfo
        spki = load_pem_public_key(self.public.pem.encode()).public_bytes(Encoding.DER, form)
        return _base64(hashlib.sha256(spki).digest())


def _signature(form: Form, signer: _Signer, place: str, key: ArtifactKey) -> Document:
    if form == "bundle":
        statement = _statement(place, key, SIGNATURE_PREDICATE, {})
        return _attested(form, signer, statement, SIGNATURE_PREDICATE)
    payload = _json(
        {
            "critical": {
                "identity": {"docker-reference": place},
                "image": {"docker-manifest-digest": str(key.digest)},
                "type": SIMPLE_SIGNING,
            },
            "optional": None,
        }
    )
    return Document("classic_signature", payload, _base64(signer.sign(payload)))


def _attested(form: Form, signer: _Signer, statement: bytes, predicate_type: str) -> Document:
    envelope = {
        "payload": _base64(statement),
        "payloadType": IN_TOTO,
        "signatures": [{"sig": _base64(signer.sign(pae(IN_TOTO, statement)))}],
    }
    if form == "classic":
        content = _json(envelope)
        return Document("classic_attestation", content, predicate_type=predicate_type)
    bundle = {
        "mediaType": BUNDLE_TYPE,
        "verificationMaterial": {"publicKey": {"hint": signer.hint}},
        "dsseEnvelope": envelope,
    }
    return Document("bundle", _json(bundle), predicate_type=predicate_type)


def _statement(
    place: str, key: ArtifactKey, predicate_type: str, predicate: Mapping[str, Any]
) -> bytes:
    return _json(
        {
            "_type": STATEMENT_V1,
            "subject": [{"name": place, "digest": {"sha256": key.digest.value[7:]}}],
            "predicateType": predicate_type,
            "predicate": predicate,
        }
    )


def _provenance(content: bytes, key: ArtifactKey) -> tuple[str, dict[str, Any]]:
    """Predicate type and predicate."""
    try:
        document = strict_json(content)
        if document.get("_type") in (STATEMENT_V01, STATEMENT_V1):
            claims = claims_of(content)
            if not claims.is_of(key.digest):
                hint = "give the provenance of this very build"
                message = "the provenance is of another artifact"
                raise Refused("provenance_other_subject", message, where=str(key), hint=hint)
            predicate_type, predicate = claims.predicate_type, document["predicate"]
        else:
            predicate_type, predicate = _predicate_type(document), document
        # Read once as who verifies it reads it, so that it is not found out only there.
        claims = claims_of(_statement("", key, predicate_type, predicate))
        if claims.kind != "provenance":
            raise ValueError(f"{predicate_type} is no provenance")
        if not claims.builder:
            raise ValueError("it names no builder")
    except ValueError as error:
        hint = "it takes a SLSA provenance: a predicate v1 or v0.2, or a statement around one"
        raise Refused("provenance_malformed", str(error), hint=hint) from None
    return predicate_type, predicate


def _predicate_type(predicate: Mapping[str, Any]) -> str:
    if "runDetails" in predicate and "buildDefinition" in predicate:
        return SLSA_V1
    if "builder" in predicate and "buildType" in predicate:
        return SLSA_V02
    raise ValueError("it is neither a statement nor a predicate of SLSA")


def _check(document: Document, key: ArtifactKey, public: PublicKey) -> None:
    rules = TrustRules({ARTIFACT_KEY: TrustedKey(ARTIFACT_KEY, "ecdsa-p256", public.pem)})
    checked = check_document(document, key.digest, verifiers(rules))
    if isinstance(checked, Rejected):
        message = f"custody gave a signature that does not hold: {checked.message}"
        raise Refused("signature_wrong", message, where=str(key))


def _json(document: object) -> bytes:
    return json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()
