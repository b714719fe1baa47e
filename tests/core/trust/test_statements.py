"""What a statement claims, and everything that is none."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from reconciler.core.names import Digest
from reconciler.core.trust.statements import (
    SIGNATURE_PREDICATE,
    SLSA_V02,
    STATEMENT_V01,
    claims_of,
    signed_digest,
    strict_json,
)
from tests.services.attested import BUILDER, SOURCE, simple_signing, slsa_v02, slsa_v1, statement

DIGEST = Digest.of(b"site")
OTHER = Digest.of(b"another")
HEX = DIGEST.value.removeprefix("sha256:")


def test_a_provenance_v1() -> None:
    claims = claims_of(statement(DIGEST))
    assert claims.kind == "provenance"
    assert (claims.builder, claims.sources) == (BUILDER, (SOURCE,))
    assert claims.is_of(DIGEST)
    assert not claims.is_of(OTHER)


def test_a_provenance_v02() -> None:
    claims = claims_of(statement(DIGEST, SLSA_V02, slsa_v02()))
    assert (claims.kind, claims.predicate_type) == ("provenance", SLSA_V02)
    assert (claims.builder, claims.sources) == (BUILDER, (SOURCE,))


def test_a_statement_v01_and_other_predicates() -> None:
    assert claims_of(statement(DIGEST, _type=STATEMENT_V01)).kind == "provenance"
    assert claims_of(statement(DIGEST, SIGNATURE_PREDICATE, {})).kind == "signature"
    assert claims_of(statement(DIGEST, "https://spdx.dev/Document", {})).kind == "attestation"


@pytest.mark.parametrize(
    ("parameters", "sources"),
    [
        ({"source": {"uri": SOURCE}}, (SOURCE,)),
        (
            {"workflow": {"repository": "https://g.example/a/b", "ref": "x"}},
            ("https://g.example/a/b",),
        ),
        (
            {"configSource": {"uri": SOURCE}, "source": "https://b.example/x"},
            (SOURCE, "https://b.example/x"),
        ),
        ({"buildConfigSource": {"repository": SOURCE}}, (SOURCE,)),
        ({"sourceToBuild": {"repository": SOURCE}, "inputs": {"source": "ignored"}}, (SOURCE,)),
        ({"inputs": {"anything": "at all"}}, ()),
        ({}, ()),
        ([], ()),
    ],
)
def test_where_a_build_may_say_its_source(parameters: object, sources: tuple[str, ...]) -> None:
    predicate: dict[str, Any] = slsa_v1()
    predicate["buildDefinition"]["externalParameters"] = parameters
    assert claims_of(statement(DIGEST, predicate=predicate)).sources == tuple(sorted(sources))


BAD_STATEMENTS = {
    "no JSON": (b"{", "it is not JSON"),
    "a list": (b"[]", "it is no JSON object"),
    "no statement": (b"{}", "it is no in-toto statement v0.1 or v1"),
    "nested": (b"[" * 100_000, "it is nested too deeply"),
    "two subjects": (
        statement(DIGEST)[:-1] + b', "subject": [{"digest": {"sha256": "x"}}]}',
        "a name is given twice in one object",
    ),
    "not a number": (b'{"_type": NaN}', "NaN is no number"),
    "no subject": (statement(DIGEST, subject=[]), "it has no subject"),
    "too many subjects": (
        statement(DIGEST, subject=[{}] * 1025),
        "it has more than 1024 subjects",
    ),
    "no predicate type": (statement(DIGEST, predicateType=1), "it has no predicateType"),
    "a list as predicate": (statement(DIGEST, predicate=[]), "its predicate is no JSON object"),
    "a builder of numbers": (
        statement(DIGEST, predicate=slsa_v1(builder=1)),  # type: ignore[arg-type]
        "its builder has no id that can be read",
    ),
    "a source of numbers": (
        statement(DIGEST, predicate=slsa_v1(source=1)),
        "it names a source that can't be read",
    ),
    "an endless source": (
        statement(DIGEST, predicate=slsa_v1(source="x" * 2001)),
        "it names a source that can't be read",
    ),
}


@pytest.mark.parametrize("name", BAD_STATEMENTS)
def test_no_statement(name: str) -> None:
    content, message = BAD_STATEMENTS[name]
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        claims_of(content)


@pytest.mark.parametrize(
    "digest",
    [
        {"sha512": HEX},
        {"sha256": HEX.upper()},
        {"sha256": HEX[:-1]},
        {"sha256": [HEX]},
        {"sha256": f"sha256:{HEX}"},
        HEX,
        None,
    ],
)
def test_what_looks_like_the_digest_and_is_not(digest: object) -> None:
    subject = [{"name": f"site@sha256:{HEX}", "digest": digest}]
    assert not claims_of(statement(DIGEST, subject=subject)).is_of(DIGEST)


def test_a_simple_signing_payload() -> None:
    assert signed_digest(simple_signing(DIGEST)) == DIGEST


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{}", "it is no cosign container image signature"),
        (
            simple_signing(DIGEST, type="atomic container signature"),
            "it is no cosign container image signature",
        ),
        (simple_signing(DIGEST, image={}), "it names no digest"),
        (
            simple_signing(DIGEST, image={"docker-manifest-digest": "sha256:x"}),
            "not a sha256 digest: 'sha256:x'",
        ),
        (
            simple_signing(DIGEST)[:-1] + b', "critical": {}}',
            "a name is given twice in one object",
        ),
    ],
)
def test_no_simple_signing_payload(content: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        signed_digest(content)


def test_strict_json_takes_what_is_fine() -> None:
    assert strict_json(json.dumps({"a": [{"b": 1}, {"b": 2}]}).encode()) == {
        "a": [{"b": 1}, {"b": 2}]
    }
