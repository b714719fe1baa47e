"""Puts a signature or attestation beside an artifact, where cosign and others look for it.

Rules:
- What is attached there already stays. Classic documents are layers of one manifest at a tag, and
  a registry without referrers has one index at a tag: both are read, added to, written and read
  again, since two who attach at once would otherwise take each other's away.
- Where there is no more room, those in the middle give way, which are not read in any case
  (`registry_attached`): whoever fills a place, by number or by size, can't keep a true signature
  out.
- The artifact itself is read and hashed first: nothing is attached to what is not there.
- A small bundle is in its manifest too, as OCI has it: who looks asks for one thing less.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from reconciler.adapters.oci_documents import OCI_INDEX, OCI_MANIFEST, parse_manifest
from reconciler.adapters.registry_attached import (
    BUNDLE_PREDICATE_ANNOTATION,
    CLASSIC_PREDICATE_ANNOTATION,
    DSSE_TYPE,
    FORMS,
    SIGNATURE_ANNOTATION,
    SIMPLE_SIGNING_TYPE,
    both_ends,
)
from reconciler.adapters.registry_http import Remote
from reconciler.adapters.registry_references import (
    Written,
    fallback_tag,
    put_blob,
    put_manifest,
    tagged,
)
from reconciler.artifact_ports import Document
from reconciler.core.names import Digest
from reconciler.core.trust.statements import BUNDLE_TYPE, strict_json
from reconciler.errors import Refused, Transient

_CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
_EMPTY_TYPE = "application/vnd.oci.empty.v1+json"
_CONTENT_ANNOTATION = "dev.sigstore.bundle.content"
_TRIES_MAX = 5
_BROUGHT_BYTES_MAX = 64 * 1024
_READ_ANNOTATIONS = (
    SIGNATURE_ANNOTATION,
    CLASSIC_PREDICATE_ANNOTATION,
    BUNDLE_PREDICATE_ANNOTATION,
)
_LIST_BYTES_MAX = 2 * 1024 * 1024
"""Of what is written to a tag. Registries take no manifest of more than 4 MiB."""
_ENTRY_BYTES_MAX = 32 * 1024
"""Of one entry, so that at least as many fit as are read."""
_READ_CHARS_MAX = 2048


@dataclass(frozen=True)
class Attaching:
    """`remote` may pull and push."""

    remote: Remote
    subject: Digest

    def run(self, document: Document) -> str:
        """The digest of the manifest that has it."""
        about = self._artifact()
        if document.form == "bundle":
            return str(self._referrer(document, about).digest)
        return str(self._by_tag(document))

    def _artifact(self) -> dict[str, Any]:
        """A descriptor of the artifact."""
        where = f"{self.remote.where}@{self.subject}"
        found = self.remote.manifest(self.subject)
        if found is None:
            hint = "push it first, and sign it by the digest that the push gave"
            raise Refused("artifact_missing", "it is not in the registry", where=where, hint=hint)
        content, served_type = found
        if (actual := Digest.of(content)) != self.subject:
            raise Refused("digest_mismatch", f"its bytes hash to {actual}", where=where)
        limit = self.remote.bounds.descriptors_max
        media_type = parse_manifest(content, served_type, limit, where).media_type
        return _descriptor(media_type, self.subject, len(content))

    # --- classic: layers of one manifest at a tag ------------------------------------------------

    def _by_tag(self, document: Document) -> Digest:
        signature = document.form == "classic_signature"
        tag = f"{fallback_tag(self.subject)}.{'sig' if signature else 'att'}"
        digest = put_blob(self.remote, document.content)
        media_type = SIMPLE_SIGNING_TYPE if signature else DSSE_TYPE
        layer = _descriptor(media_type, digest, len(document.content))
        layer["annotations"] = {SIGNATURE_ANNOTATION: document.signature}
        if not signature:
            layer["annotations"][CLASSIC_PREDICATE_ANNOTATION] = document.predicate_type

        def add(there: dict[str, Any] | None) -> dict[str, Any] | None:
            layers = there["layers"] if there is not None else []
            if layer in layers:
                return None
            return manifest_of_layers(self.remote, [*layers, layer])

        return self._added(tag, add)

    # --- bundle: a manifest that names its subject -----------------------------------------------

    def _referrer(self, document: Document, about: dict[str, Any]) -> Written:
        empty = put_blob(self.remote, b"{}")
        bundle = put_blob(self.remote, document.content)
        layer = _descriptor(BUNDLE_TYPE, bundle, len(document.content))
        if len(document.content) <= _BROUGHT_BYTES_MAX:
            layer["data"] = base64.b64encode(document.content).decode()
        annotations = {_CONTENT_ANNOTATION: "dsse-envelope"}
        if document.predicate_type:
            annotations[BUNDLE_PREDICATE_ANNOTATION] = document.predicate_type
        manifest = {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "artifactType": BUNDLE_TYPE,
            "config": _descriptor(_EMPTY_TYPE, empty, 2),
            "layers": [layer],
            "subject": about,
            "annotations": annotations,
        }
        written = put_manifest(self.remote, manifest)
        # Without its word the registry has no list of referrers: it is kept by its clients.
        if written.subject != str(self.subject):
            entry = _descriptor(OCI_MANIFEST, written.digest, written.size_bytes)
            entry |= {"artifactType": BUNDLE_TYPE, "annotations": annotations}
            self._listed(entry)
        return written

    def _listed(self, entry: dict[str, Any]) -> None:
        tag = fallback_tag(self.subject)

        def add(there: dict[str, Any] | None) -> dict[str, Any] | None:
            known = there["manifests"] if there is not None else []
            if any(one["digest"] == entry["digest"] for one in known):
                return None
            return index_of_entries(self.remote, [*known, entry])

        self._added(tag, add)

    # --- both -------------------------------------------------------------------------------------

    def _added(
        self, tag: str, add: Callable[[dict[str, Any] | None], dict[str, Any] | None]
    ) -> Digest:
        """Reads what is at `tag`, writes what `add` makes of it, until it is seen there."""
        for _ in range(_TRIES_MAX):
            found = self._at(tag, "manifests" if "." not in tag else "layers")
            document = add(found[1] if found is not None else None)
            if document is None and found is not None:
                return found[0]
            if document is not None:
                put_manifest(self.remote, document, tag)
        message = "others attach to it at the same time"
        raise Transient("attach_raced", message, where=f"{self.remote.where}:{tag}")

    def _at(self, tag: str, what: str) -> tuple[Digest, dict[str, Any]] | None:
        found = tagged(self.remote, tag)
        if found is None:
            return None
        content, served_type = found
        where = f"{self.remote.where}:{tag}"
        parse_manifest(content, served_type, self.remote.bounds.descriptors_max, where)
        try:
            document = strict_json(content)
        except ValueError as error:
            raise Refused("manifest_malformed", str(error), where=where) from None
        if what not in document:
            message = "what is there holds no signatures or attestations"
            hint = "look at that tag, and delete it if nobody needs it"
            raise Refused("attach_in_the_way", message, where=where, hint=hint)
        return Digest.of(content), document


def manifest_of_layers(remote: Remote, layers: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What goes to a tag of classic cosign, and nothing but its documents; puts its config."""
    layers = _fitting(documents_of(layers), remote.bounds.descriptors_max)
    config = _config([layer["digest"] for layer in layers])
    digest = put_blob(remote, config)
    return {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": _descriptor(_CONFIG_TYPE, digest, len(config)),
        "layers": layers,
    }


def index_of_entries(remote: Remote, entries: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What goes to the tag where clients keep a list of referrers."""
    kept = _fitting([_bounded(entry) for entry in entries], remote.bounds.descriptors_max)
    return {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": kept}


def _fitting(entries: Sequence[dict[str, Any]], limit: int) -> list[dict[str, Any]]:
    """As many of them, from both ends, as a registry takes."""
    sizes_bytes = [_size_bytes(entry) for entry in entries]
    while len(entries) > limit or sum(sizes_bytes) > _LIST_BYTES_MAX:
        limit = min(limit, len(entries) - 1)
        entries, sizes_bytes = both_ends(entries, limit), both_ends(sizes_bytes, limit)
    return list(entries)


def _bounded(entry: dict[str, Any]) -> dict[str, Any]:
    """Without what nobody reads, where its author wrote too much into it."""
    if _size_bytes(entry) <= _ENTRY_BYTES_MAX:
        return entry
    kept = {name: entry[name] for name in ("mediaType", "digest", "size")}
    given = entry.get("annotations")
    texts = given if isinstance(given, dict) else {}
    kept["annotations"] = {
        name: texts[name]
        for name in _READ_ANNOTATIONS
        if isinstance(texts.get(name), str) and len(texts[name]) <= _READ_CHARS_MAX
    }
    kind = entry.get("artifactType")
    return {**kept, "artifactType": kind} if isinstance(kind, str) and kind in FORMS else kept


def _size_bytes(entry: dict[str, Any]) -> int:
    return len(json.dumps(entry))


def documents_of(layers: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The signatures and attestations among the layers of a manifest that was parsed."""
    return [_document(layer) for layer in layers if layer["mediaType"] in FORMS]


def _document(layer: dict[str, Any]) -> dict[str, Any]:
    """Of a layer that anybody wrote, what tells of a document."""
    kept = {name: layer[name] for name in ("mediaType", "digest", "size")}
    given = layer.get("annotations")
    if isinstance(given, dict):
        kept["annotations"] = {name: text for name, text in given.items() if isinstance(text, str)}
    return _bounded(kept)


def _descriptor(media_type: str, digest: Digest, size_bytes: int) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": str(digest), "size": size_bytes}


def _config(layers: list[str]) -> bytes:
    """As cosign writes it: an image of nothing, whose layers are the documents."""
    listed = ",".join(f'"{digest}"' for digest in layers)
    return (
        '{"architecture":"","created":"0001-01-01T00:00:00Z","os":"",'
        f'"rootfs":{{"type":"layers","diff_ids":[{listed}]}},"config":{{}}}}'
    ).encode()
