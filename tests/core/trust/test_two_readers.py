"""What two readers could take for two things is nothing: manifests, statements, base64."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from reconciler.adapters.oci_documents import OCI_INDEX, OCI_MANIFEST, parse_manifest
from reconciler.artifacts.signatures import decoded
from reconciler.core.names import Digest
from reconciler.core.trust.statements import STATEMENT_V1, claims_of, signed_digest
from reconciler.errors import Refused

DIGEST = Digest.of(b"it")
HEX = DIGEST.value.removeprefix("sha256:")
EVIL = Digest.of(b"another")
ENTRY = f'{{"mediaType": "x/y", "digest": "{DIGEST}", "size": 1}}'
OTHER = ENTRY.replace(str(DIGEST), str(EVIL))
MANIFEST = f'{{"mediaType": "{OCI_MANIFEST}", "config": {ENTRY}, "layers": [{ENTRY}]}}'
INDEX = f'{{"mediaType": "{OCI_INDEX}", "manifests": [{ENTRY}]}}'


def with_more(document: str, name: str, value: str) -> str:
    """In its end, where most readers take it for the one that counts."""
    return f'{document[:-1]}, "{name}": {value}}}'


TWICE = "a name is given twice in one object"
MANIFESTS = {
    "layers twice": (with_more(MANIFEST, "layers", f"[{OTHER}]"), TWICE),
    "an entry's digest twice": (MANIFEST.replace('"size"', f'"digest": "{EVIL}", "size"'), TWICE),
    "a type twice": (with_more(INDEX, "mediaType", f'"{OCI_MANIFEST}"'), TWICE),
    "a name twice elsewhere": (with_more(INDEX, "annotations", '{"a": "", "a": ""}'), TWICE),
    "layers in capitals": (
        with_more(MANIFEST, "Layers", f"[{OTHER}]"),
        "the manifest has 'Layers', which some read as layers",
    ),
    "an index in a manifest": (
        with_more(MANIFEST, "MANIFESTS", f"[{OTHER}]"),
        "the manifest has 'MANIFESTS', which some read as manifests",
    ),
    "with a letter that folds": (
        with_more(INDEX, "manife\u017fts", f"[{OTHER}]"),
        "the manifest has 'manife\u017fts', which some read as manifests",
    ),
    "an escape that is the same name": (with_more(INDEX, "manifest\\u0073", f"[{OTHER}]"), TWICE),
    "an entry's digest in capitals": (
        INDEX.replace('"size"', f'"Digest": "{EVIL}", "size"'),
        "manifests[0] has 'Digest', which some read as digest",
    ),
    "an entry's place": (
        MANIFEST.replace('"size"', '"URLs": ["http://10.0.0.1/"], "size"'),
        "config has 'URLs', which some read as urls",
    ),
}


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_manifest_is_read_in_one_way(name: str) -> None:
    content, message = MANIFESTS[name]
    with pytest.raises(Refused) as refused:
        parse_manifest(content.encode(), "", 100, "here")
    assert (refused.value.code, refused.value.message) == ("manifest_malformed", message)


def test_what_people_write_may_be_written_in_any_way() -> None:
    labels = json.dumps({"Digest": "", "digest": "", "LAYERS": "", "org.example.Config": ""})
    for document in (MANIFEST, INDEX):
        parse_manifest(with_more(document, "annotations", labels).encode(), "", 100, "here")


def statement(**subject: Any) -> dict[str, Any]:
    return {"_type": STATEMENT_V1, "predicateType": "x", "subject": [{"name": "n", **subject}]}


SUBJECTS: dict[str, dict[str, Any]] = {
    "another algorithm with the same digits": {"digest": {"sha512": HEX}},
    "in capitals": {"digest": {"sha256": HEX.upper()}},
    "with its prefix": {"digest": {"sha256": str(DIGEST)}},
    "with a space": {"digest": {"sha256": f"{HEX} "}},
    "a list": {"digest": {"sha256": [HEX]}},
    "the algorithm in capitals": {"digest": {"SHA256": HEX}},
    "as its name": {"name": str(DIGEST), "digest": {}},
    "as an address": {"uri": f"oci://x@{DIGEST}", "digest": {"gitCommit": HEX}},
    "as what comes out of it": {"content": HEX, "digest": {"sha256": EVIL.value[7:]}},
}


@pytest.mark.parametrize("name", SUBJECTS)
def test_only_its_sha256_is_a_subject(name: str) -> None:
    assert not claims_of(json.dumps(statement(**SUBJECTS[name])).encode()).is_of(DIGEST)


def test_one_of_several_subjects_will_do() -> None:
    several = statement(digest={"sha512": "a" * 128})
    several["subject"].append({"digest": {"sha256": HEX, "sha512": "b" * 128}})
    assert claims_of(json.dumps(several).encode()).is_of(DIGEST)


SPELLINGS = [f"sha512:{HEX}", f"sha256:{HEX}\n", HEX, f"SHA256:{HEX}", f" {DIGEST}"]


@pytest.mark.parametrize("digest", SPELLINGS)
def test_a_simple_signature_is_over_one_spelling(digest: str) -> None:
    critical = {
        "type": "cosign container image signature",
        "image": {"docker-manifest-digest": digest},
    }
    with pytest.raises(ValueError, match="not a sha256 digest"):
        signed_digest(json.dumps({"critical": critical}).encode())


ODD = ["YQ", "YQ=", "YQ===", "YQ==\n", " YQ==", "YQ==YQ==", "Y\u00a0Q=", "\uff39\uff31=="]


@pytest.mark.parametrize("text", [*ODD, "=YQ=", "Y?==", None, 7])
def test_base64_has_its_padding_and_nothing_beside(text: object) -> None:
    with pytest.raises(ValueError, match=r"base64|padding|Excess|Incorrect|characters"):
        decoded(text, 100)


def test_base64_for_addresses_is_the_same() -> None:
    raw = bytes(range(240, 256))
    assert decoded(base64.urlsafe_b64encode(raw).decode(), 100) == raw
    assert decoded(base64.b64encode(raw).decode(), 100) == raw
