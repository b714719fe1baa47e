"""in-toto statements and simple-signing payloads: from bytes to what they claim.

Rules: JSON is read strictly (a name twice in one object is two documents to two readers). Odd
content is a ValueError with what is odd; nothing is guessed. Nothing in here says that a claim is
true: who asks has checked the signature over these very bytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NoReturn

from reconciler.core.names import Digest
from reconciler.core.trust.sources import SOURCE_LENGTH_MAX

IN_TOTO = "application/vnd.in-toto+json"
"""The payloadType of a DSSE envelope around a statement."""
BUNDLE_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
STATEMENT_V01 = "https://in-toto.io/Statement/v0.1"
STATEMENT_V1 = "https://in-toto.io/Statement/v1"
SIGNATURE_PREDICATE = "https://sigstore.dev/cosign/sign/v1"
SIMPLE_SIGNING = "cosign container image signature"
SLSA_V1 = "https://slsa.dev/provenance/v1"
SLSA_V02 = "https://slsa.dev/provenance/v0.2"

SUBJECTS_MAX = 1024
SOURCES_MAX = 64
WORD_LENGTH_MAX = 500
_SOURCE_PLACES = (
    "source",
    "repository",
    "workflow",
    "configSource",
    "buildConfigSource",
    "sourceToBuild",
)


@dataclass(frozen=True)
class Claims:
    """What a statement says of its subjects (hex of their SHA-256)."""

    subjects: frozenset[str]
    kind: Literal["signature", "provenance", "attestation"]
    predicate_type: str
    builder: str = ""
    sources: tuple[str, ...] = ()

    def is_of(self, digest: Digest) -> bool:
        return digest.value.removeprefix("sha256:") in self.subjects


def strict_json(content: bytes) -> dict[str, Any]:
    """A JSON object; ValueError for anything else, for a name given twice and for no number."""
    try:
        document = json.loads(content, object_pairs_hook=_once, parse_constant=_no_number)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except ValueError as error:
        odd = error if isinstance(error, _OddJson) else "it is not JSON"
        raise ValueError(str(odd)) from None
    if not isinstance(document, dict):
        raise ValueError("it is no JSON object")
    return document


class _OddJson(ValueError):
    pass


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise _OddJson("a name is given twice in one object")
    return found


def _no_number(word: str) -> NoReturn:
    raise _OddJson(f"{word} is no number")


def claims_of(payload: bytes) -> Claims:
    """Of an in-toto statement, v0.1 or v1."""
    document = strict_json(payload)
    if document.get("_type") not in (STATEMENT_V01, STATEMENT_V1):
        raise ValueError("it is no in-toto statement v0.1 or v1")
    predicate_type, predicate = document.get("predicateType"), document.get("predicate", {})
    if not isinstance(predicate_type, str) or not 0 < len(predicate_type) <= WORD_LENGTH_MAX:
        raise ValueError("it has no predicateType")
    subjects = _subjects(document.get("subject"))
    if predicate_type == SIGNATURE_PREDICATE:
        return Claims(subjects, "signature", predicate_type)
    if predicate_type not in (SLSA_V1, SLSA_V02):
        return Claims(subjects, "attestation", predicate_type)
    if not isinstance(predicate, dict):
        raise ValueError("its predicate is no JSON object")
    builder, sources = (_slsa_v1 if predicate_type == SLSA_V1 else _slsa_v02)(predicate)
    return Claims(subjects, "provenance", predicate_type, builder, sources)


def signed_digest(payload: bytes) -> Digest:
    """What a simple-signing payload is about; its docker-reference proves nothing."""
    critical = strict_json(payload).get("critical")
    if not isinstance(critical, dict) or critical.get("type") != SIMPLE_SIGNING:
        raise ValueError(f"it is no {SIMPLE_SIGNING}")
    image = critical.get("image")
    digest = image.get("docker-manifest-digest") if isinstance(image, dict) else None
    if not isinstance(digest, str):
        raise ValueError("it names no digest")
    return Digest.parse(digest)


def _subjects(value: object) -> frozenset[str]:
    if not isinstance(value, list) or not value:
        raise ValueError("it has no subject")
    if len(value) > SUBJECTS_MAX:
        raise ValueError(f"it has more than {SUBJECTS_MAX} subjects")
    digests = [entry.get("digest") if isinstance(entry, dict) else None for entry in value]
    found = [digest.get("sha256") if isinstance(digest, dict) else None for digest in digests]
    return frozenset(text for text in found if isinstance(text, str))


def _slsa_v1(predicate: Mapping[str, Any]) -> tuple[str, tuple[str, ...]]:
    builder = _at(predicate, "runDetails", "builder", "id")
    given = _at(predicate, "buildDefinition", "externalParameters")
    places = given if isinstance(given, dict) else {}
    return _word(builder), _sources(places[name] for name in _SOURCE_PLACES if name in places)


def _slsa_v02(predicate: Mapping[str, Any]) -> tuple[str, tuple[str, ...]]:
    source = _at(predicate, "invocation", "configSource")
    return _word(_at(predicate, "builder", "id")), _sources([source] if source is not None else [])


def _at(value: object, *names: str) -> object:
    for name in names:
        value = value.get(name) if isinstance(value, dict) else None
    return value


def _word(value: object) -> str:
    if value is None:
        return ""
    if not isinstance(value, str) or len(value) > WORD_LENGTH_MAX:
        raise ValueError("its builder has no id that can be read")
    return value


def _sources(places: Iterator[object] | list[object]) -> tuple[str, ...]:
    """Each place is an address, or an object that has it as `uri` or `repository`."""
    found: set[str] = set()
    for place in places:
        named = [place]
        if isinstance(place, dict):
            named = [place[name] for name in ("uri", "repository") if name in place]
        for source in named:
            if not isinstance(source, str) or len(source) > SOURCE_LENGTH_MAX:
                raise ValueError("it names a source that can't be read")
            found.add(source)
    if len(found) > SOURCES_MAX:
        raise ValueError(f"it names more than {SOURCES_MAX} sources")
    return tuple(sorted(found))
