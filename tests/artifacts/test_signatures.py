"""Documents as attackers would make them. Each gives no proof, and says why."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from hypothesis import given
from hypothesis import strategies as st

from reconciler.artifact_ports import Document
from reconciler.artifacts import signatures
from reconciler.artifacts.signatures import PAYLOAD_BYTES_MAX, check_document, verifiers
from reconciler.core.names import Digest
from reconciler.core.trust.evidence import Proof, Rejected
from reconciler.core.trust.statements import SIGNATURE_PREDICATE, SLSA_V1
from tests.services.attested import (
    BUILDER,
    SOURCE,
    Signer,
    b64,
    classic,
    enveloped,
    provenance,
    rules,
    signature,
    simple_signing,
    slsa_v1,
    statement,
)

DIGEST, OTHER = Digest.of(b"site"), Digest.of(b"another")
RELEASE, TEAM, STRANGER = Signer("release"), Signer("team"), Signer("release")
EDWARDS = Signer("edwards", Ed25519PrivateKey.generate())
KEYS = verifiers(rules(RELEASE.key(), TEAM.key(), EDWARDS.key()))


def checked(document: Document, digest: Digest = DIGEST) -> tuple[Proof, ...] | Rejected:
    return check_document(document, digest, KEYS)


def proofs(document: Document) -> tuple[Proof, ...]:
    found = checked(document)
    assert isinstance(found, tuple), found
    return found


@pytest.mark.parametrize("signer", [RELEASE, EDWARDS], ids=["ecdsa", "ed25519"])
def test_what_holds(signer: Signer) -> None:
    (one,) = proofs(classic(DIGEST, signer))
    assert (one.kind, one.form, one.key_id) == ("signature", "classic", signer.id)
    (two,) = proofs(signature(DIGEST, signer))
    assert (two.kind, two.form, two.scheme) == ("signature", "bundle", signer.key().scheme)
    (three,) = proofs(provenance(DIGEST, signer))
    assert (three.kind, three.predicate_type) == ("provenance", SLSA_V1)
    assert (three.builder, three.sources) == (BUILDER, (SOURCE,))
    four = proofs(enveloped(statement(DIGEST), signer, form="classic_attestation"))[0]
    assert (four.kind, four.form) == ("provenance", "classic")


def test_two_who_signed_one_document_are_two_proofs() -> None:
    assert [one.key_id for one in proofs(provenance(DIGEST, TEAM, RELEASE))] == ["release", "team"]


def test_a_signature_among_attestations_is_no_signature() -> None:
    """Whoever may only attest can't sign by attesting that he signed."""
    made = enveloped(
        statement(DIGEST, SIGNATURE_PREDICATE, {}), RELEASE, form="classic_attestation"
    )
    assert proofs(made)[0].kind == "attestation"


def swapped(document: Document, other: Document) -> Document:
    return replace(document, signature=other.signature)


def resigned(document: Document, signature: str) -> Document:
    bundle = json.loads(document.content)
    bundle["dsseEnvelope"]["signatures"][0]["sig"] = signature
    return replace(document, content=json.dumps(bundle).encode())


def changed(document: Document, **fields: object) -> Document:
    return replace(
        document, content=json.dumps({**json.loads(document.content), **fields}).encode()
    )


def twice(document: Document, name: str, value: str) -> Document:
    """The field once more, in front of the rest of its object."""
    text = document.content.decode()
    spot = f'"{name}":'
    return replace(document, content=text.replace(spot, f'"{name}": {value}, {spot}', 1).encode())


@dataclass(frozen=True)
class Case:
    document: Document
    code: str
    message: str


NOT_BASE64 = "what should be base64 is not"
BY_NOBODY = "a signature that no key of the policies made"
STATED_BY_NOBODY = "a signature that no key of the policies signed"
CASES = {
    "the signature of another payload": Case(
        swapped(classic(DIGEST, RELEASE), classic(OTHER, RELEASE)),
        "signature_not_trusted",
        BY_NOBODY,
    ),
    "a signature of another artifact": Case(
        classic(OTHER, RELEASE),
        "signature_other_subject",
        f"it is about {OTHER}, not about this artifact",
    ),
    "a bundle of another artifact": Case(
        signature(OTHER, RELEASE),
        "signature_other_subject",
        "it is about 1 other subjects, not about this artifact",
    ),
    "provenance of another artifact": Case(
        provenance(OTHER, RELEASE),
        "signature_other_subject",
        "it is about 1 other subjects, not about this artifact",
    ),
    "a key of the same id": Case(classic(DIGEST, STRANGER), "signature_not_trusted", BY_NOBODY),
    "a bundle by a stranger": Case(
        signature(DIGEST, STRANGER), "signature_not_trusted", STATED_BY_NOBODY
    ),
    "provenance by a stranger": Case(
        provenance(DIGEST, STRANGER),
        "provenance_unsigned",
        "provenance that no key of the policies signed",
    ),
    "provenance that nobody signed": Case(
        provenance(DIGEST), "provenance_unsigned", "provenance that nobody signed"
    ),
    "another attestation by a stranger": Case(
        enveloped(statement(DIGEST, "https://spdx.dev/Document", {}), STRANGER),
        "signature_not_trusted",
        "an attestation that no key of the policies signed",
    ),
    "the signature over the payload without its type": Case(
        resigned(provenance(DIGEST, RELEASE), b64(RELEASE.sign(statement(DIGEST)))),
        "provenance_unsigned",
        "provenance that no key of the policies signed",
    ),
    "a classic signature in a bundle": Case(
        resigned(signature(DIGEST, RELEASE), classic(DIGEST, RELEASE).signature),
        "signature_not_trusted",
        STATED_BY_NOBODY,
    ),
    "simple signing in an envelope": Case(
        enveloped(simple_signing(DIGEST), RELEASE),
        "signature_malformed",
        "it is no in-toto statement v0.1 or v1",
    ),
    "an ed25519 signature as if it were of ecdsa": Case(
        replace(classic(DIGEST, RELEASE), signature=b64(EDWARDS.sign(b"x"))),
        "signature_not_trusted",
        BY_NOBODY,
    ),
    "another payload type": Case(
        enveloped(statement(DIGEST), RELEASE, payload_type="application/json"),
        "signature_malformed",
        "its payload is no application/vnd.in-toto+json",
    ),
    "a payload type said after signing": Case(
        enveloped(statement(DIGEST), RELEASE, payloadType="text/plain"),
        "signature_malformed",
        "its payload is no application/vnd.in-toto+json",
    ),
    "two payloads": Case(
        twice(provenance(DIGEST, RELEASE), "payload", f'"{b64(statement(OTHER))}"'),
        "signature_malformed",
        "a name is given twice in one object",
    ),
    "no bundle": Case(
        changed(provenance(DIGEST, RELEASE), mediaType="application/json"),
        "signature_malformed",
        "it is no bundle v0.3",
    ),
    "a bundle with a message signature": Case(
        changed(provenance(DIGEST, RELEASE), dsseEnvelope=None, messageSignature={}),
        "signature_malformed",
        "the bundle has no DSSE envelope",
    ),
    "an envelope that is a list": Case(
        changed(provenance(DIGEST, RELEASE), dsseEnvelope=[]),
        "signature_malformed",
        "the bundle has no DSSE envelope",
    ),
    "no signatures at all": Case(
        enveloped(statement(DIGEST), signatures={}),
        "signature_malformed",
        "it is no DSSE envelope",
    ),
    "too many signatures": Case(
        enveloped(statement(DIGEST), signatures=[{"sig": ""}] * 5),
        "signature_malformed",
        "it has more than 4 signatures",
    ),
    "a payload of megabytes": Case(
        enveloped(b" " * (PAYLOAD_BYTES_MAX + 3), RELEASE),
        "signature_malformed",
        "its payload is larger than 1048576 bytes",
    ),
    "a classic payload of megabytes": Case(
        replace(classic(DIGEST, RELEASE), content=b" " * (PAYLOAD_BYTES_MAX + 1)),
        "signature_malformed",
        "its payload is larger than 1048576 bytes",
    ),
    "a builder that no store can keep": Case(
        provenance(DIGEST, RELEASE, builder="\ud800"),
        "signature_malformed",
        "it names what can't be shown",
    ),
    "a signature of a megabyte": Case(
        enveloped(statement(DIGEST), signatures=[{"sig": "A" * 1_000_000}]),
        "signature_malformed",
        NOT_BASE64,
    ),
    "a classic signature of a megabyte": Case(
        replace(classic(DIGEST, RELEASE), signature="A" * 1_000_000),
        "signature_malformed",
        NOT_BASE64,
    ),
    "a signature with spaces in it": Case(
        replace(classic(DIGEST, RELEASE), signature=classic(DIGEST, RELEASE).signature + "\n"),
        "signature_malformed",
        NOT_BASE64,
    ),
    "no signature": Case(
        replace(classic(DIGEST, RELEASE), signature=""), "signature_not_trusted", BY_NOBODY
    ),
    "nothing at all": Case(
        replace(classic(DIGEST, RELEASE), content=b"", signature=""),
        "signature_not_trusted",
        BY_NOBODY,
    ),
    "an endless depth": Case(
        Document("bundle", b'{"a":' * 100_000, digest=""),
        "signature_malformed",
        "it is nested too deeply",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_an_attack(name: str) -> None:
    case = CASES[name]
    found = checked(case.document)
    assert isinstance(found, Rejected), found
    assert (found.code, found.message) == (case.code, case.message)
    assert found.document == case.document.digest


def test_a_key_that_is_not_what_its_scheme_says_checks_nothing() -> None:
    """Else a signature would be checked by an algorithm that whoever attached it chose."""
    confused = [
        EDWARDS.key(scheme="ecdsa-p256"),
        RELEASE.key(scheme="ed25519"),
        Signer("p384", ec.generate_private_key(ec.SECP384R1())).key(),
        RELEASE.key(public_key="no key"),
    ]
    assert verifiers(rules(*confused)) == ()


@pytest.mark.parametrize(
    ("signer", "odd"),
    [
        (RELEASE, b""),
        (RELEASE, b"x" * 73),
        (RELEASE, b"0\x06\x02\x01\x00\x02\x01\x01"),
        (RELEASE, encode_dss_signature(1, 2**256 - 1)),
        (RELEASE, encode_dss_signature(1, 1) + b"x"),
        (EDWARDS, b"x" * 63),
        (EDWARDS, b"x" * 65),
    ],
)
def test_what_is_no_signature_by_its_form_is_not_calculated_with(
    signer: Signer, odd: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_arithmetic(verify: object, signature: bytes, message: bytes) -> bool:
        raise AssertionError(f"{signature!r} was calculated with")

    monkeypatch.setattr(signatures, "_verified", no_arithmetic)
    (key,) = verifiers(rules(signer.key()))
    assert not key.holds(odd, b"message")
    with pytest.raises(AssertionError):
        key.holds(signer.sign(b"message"), b"message")


def test_a_hint_decides_nothing() -> None:
    made = provenance(DIGEST, RELEASE)
    bundle = json.loads(made.content)
    for said in ({"publicKey": {"hint": TEAM.id}}, {"certificate": {"rawBytes": "AAAA"}}, None):
        other = changed(made, verificationMaterial=said)
        assert [one.key_id for one in proofs(other)] == ["release"]
    bundle["dsseEnvelope"]["signatures"][0]["keyid"] = "team"
    hinted = replace(made, content=json.dumps(bundle).encode())
    assert [one.key_id for one in proofs(hinted)] == ["release"]


@given(st.binary(max_size=200), st.text(max_size=40))
def test_no_bytes_raise(content: bytes, signature: str) -> None:
    for form in ("classic_signature", "classic_attestation", "bundle"):
        found = checked(Document(form, content, signature))
        assert isinstance(found, Rejected)


@given(st.integers(min_value=0), st.integers(1, 255))
def test_no_changed_byte_leaves_a_proof(place: int, by: int) -> None:
    """Of what is signed; around it a name of a field nobody reads may change."""
    payload = bytearray(statement(DIGEST, predicate=slsa_v1()))
    payload[place % len(payload)] ^= by
    made = provenance(DIGEST, RELEASE)
    bundle = json.loads(made.content)
    bundle["dsseEnvelope"]["payload"] = b64(bytes(payload))
    found = checked(replace(made, content=json.dumps(bundle).encode()))
    assert isinstance(found, Rejected)
