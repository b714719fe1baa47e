"""Signatures and attestations that a registry keeps beside an artifact, hashed and sorted out.

Rules:
- Everything found is anybody's: whoever may push there may attach. What can't be used is Unusable,
  with why, and takes nothing else with it. What can't be asked for is an error, never "nothing".
- Found in three places: the tags of classic cosign, the list of referrers, and the index at the
  fallback tag. Each manifest says itself what it is about; a list's word counts for nothing.
- Documents, bytes of one and bytes of all are bounded, for each place by itself: what fills one
  hides nothing in another. Of too many, the newest and the oldest are read: neither what was there
  first nor what was signed just now can be pushed out by what others add.
- A document that its manifest brings along (`data`) is not asked for; it is hashed as any other.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from reconciler.adapters.oci_documents import (
    Descriptor,
    ImageIndex,
    ImageManifest,
    parse_manifest,
)
from reconciler.adapters.registry_http import Bounds, shown
from reconciler.artifact_ports import Attached, AttachedForm, Document, Unusable
from reconciler.core.names import Digest
from reconciler.core.trust.statements import BUNDLE_TYPE, SLSA_V02, SLSA_V1, strict_json
from reconciler.errors import Refused

SIMPLE_SIGNING_TYPE = "application/vnd.dev.cosign.simplesigning.v1+json"
DSSE_TYPE = "application/vnd.dsse.envelope.v1+json"
FORMS: dict[str, AttachedForm] = {
    SIMPLE_SIGNING_TYPE: "classic_signature",
    DSSE_TYPE: "classic_attestation",
    BUNDLE_TYPE: "bundle",
}
CLASSIC_TAGS = ("sig", "att")
SIGNATURE_ANNOTATION = "dev.cosignproject.cosign/signature"
BUNDLE_PREDICATE_ANNOTATION = "dev.sigstore.bundle.predicateType"
CLASSIC_PREDICATE_ANNOTATION = "predicateType"
_BUILDKIT_ANNOTATION = "vnd.docker.reference.type"

PROVENANCES = frozenset({SLSA_V1, SLSA_V02})

MANIFESTS_MAX = 64
DOCUMENTS_MAX = 64
DOCUMENT_BYTES_MAX = 2 * 1024 * 1024
PLACE_BYTES_MAX = 16 * 1024 * 1024
_T = TypeVar("_T")


class Source(Protocol):
    """Where it is looked for: a repository of a registry, or a layout."""

    @property
    def where(self) -> str: ...

    def manifest(self, digest: Digest) -> tuple[bytes, str] | None: ...

    def blob(self, digest: Digest, size_bytes: int) -> bytes | None: ...

    def tagged(self, tag: str) -> tuple[bytes, str] | None: ...

    def referrer_indexes(self, subject: Digest) -> Iterator[bytes]: ...


@dataclass(frozen=True)
class _Layer:
    """A document in a manifest, not read yet."""

    manifest: Digest
    descriptor: Descriptor
    form: AttachedForm
    signature: str
    predicate_type: str
    data: str = ""
    """What the manifest says that the document is, in base64."""


class _Odd(Exception):
    """What is found can't be used. `code` and message are Unusable's."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass
class _Room:
    """What may still be read of one place."""

    documents: int = DOCUMENTS_MAX
    size_bytes: int = PLACE_BYTES_MAX


@dataclass
class Collecting:
    """One look. `source` is asked for everything about `subject`, in a fixed order."""

    source: Source
    subject: Digest
    bounds: Bounds
    _documents: list[Document] = field(default_factory=list)
    _unusable: list[Unusable] = field(default_factory=list)
    _seen: set[Digest] = field(default_factory=set)

    def run(self) -> Attached:
        """Refused("artifact_missing") when neither provenance nor the artifact is there."""
        for tail in CLASSIC_TAGS:
            found = self.source.tagged(f"{str(self.subject).replace(':', '-')}.{tail}")
            if found is not None:
                self._open(Digest.of(found[0]), found, _Room(), named=True)
        room = _Room()
        for digest in self._referring():
            if digest not in self._seen:
                self._open(digest, None, room, named=False)
        # Only to say why there is no provenance: what is inside proves nothing in any case.
        if not any(one.predicate_type in PROVENANCES for one in self._documents):
            self._inside()
        return Attached(tuple(self._documents), tuple(self._unusable))

    def _inside(self) -> None:
        """An index may bring attestations of its build. Nobody signed them: they prove nothing."""
        found = self.source.manifest(self.subject)
        where = f"{self.source.where}@{self.subject}"
        if found is None:
            raise Refused("artifact_missing", "it is not in the registry", where=where)
        content, served_type = found
        _check(content, self.subject, where)
        parsed = parse_manifest(content, served_type, self.bounds.descriptors_max, where)
        if not isinstance(parsed, ImageIndex):
            return
        try:
            entries = strict_json(content)["manifests"]
        except ValueError as error:
            raise Refused("manifest_malformed", str(error), where=where) from None
        for child, entry in zip(parsed.manifests, entries, strict=True):
            marked = _annotation(entry, _BUILDKIT_ANNOTATION) == "attestation-manifest"
            if marked or child.platform.startswith("unknown/"):
                message = "an attestation inside the index, that nobody signed"
                self._reject(child.digest, "provenance_unsigned", message)

    def _referring(self) -> list[Digest]:
        """What the lists name, those that they call bundles first: only so many are opened."""
        found: dict[Digest, bool] = {}
        where = f"{self.source.where}@{self.subject}"
        for page in self.source.referrer_indexes(self.subject):
            try:
                index = parse_manifest(page, "", self.bounds.descriptors_max, where)
                entries = strict_json(page)["manifests"] if isinstance(index, ImageIndex) else []
            except (Refused, ValueError) as error:
                why = error.message if isinstance(error, Refused) else str(error)
                self._reject(Digest.of(page), "referrers_malformed", why)
                continue
            if isinstance(index, ImageIndex):
                for child, entry in zip(index.manifests, entries, strict=True):
                    said = _says_form(entry)
                    found[child.digest] = found.get(child.digest, False) or said
        if len(found) > MANIFESTS_MAX:
            message = f"more than {MANIFESTS_MAX} manifests: the rest is not looked at"
            self._reject(self.subject, "too_many_attached", message)
        # Some lists know no types: what they don't call a bundle keeps room for itself.
        others = [one for one, said in found.items() if not said]
        bundles = both_ends(
            [one for one, said in found.items() if said],
            MANIFESTS_MAX - min(len(others), MANIFESTS_MAX // 2),
        )
        return bundles + both_ends(others, MANIFESTS_MAX - len(bundles))

    def _open(
        self, digest: Digest, found: tuple[bytes, str] | None, room: _Room, *, named: bool
    ) -> None:
        """`named`: at a tag that is for signatures, so that anything else there is odd."""
        self._seen.add(digest)
        try:
            layers = self._layers(digest, found or self._manifest(digest), named)
        except _Odd as odd:
            self._reject(digest, odd.code, str(odd))
            return
        for layer in self._some(digest, layers, DOCUMENTS_MAX if named else 1):
            try:
                self._read(layer, room)
            except _Odd as odd:
                self._reject(digest, odd.code, str(odd))

    def _some(self, digest: Digest, layers: list[_Layer], limit: int) -> list[_Layer]:
        """Small ones first, so that a few large ones leave room for what a signature takes."""
        if len(layers) > limit:
            message = f"{len(layers)} documents, of which {limit} are read"
            self._reject(digest, "too_many_attached", message)
        return sorted(both_ends(layers, limit), key=lambda layer: layer.descriptor.size_bytes)

    def _manifest(self, digest: Digest) -> tuple[bytes, str]:
        try:
            found = self.source.manifest(digest)
        except Refused as error:
            if error.code != "manifest_too_large":
                raise
            raise _Odd(error.code, error.message) from None
        if found is None:
            raise _Odd("attached_missing", "a list names it, and it is not there")
        return found

    def _layers(self, digest: Digest, found: tuple[bytes, str], named: bool) -> list[_Layer]:
        content, served_type = found
        where = f"{self.source.where}@{digest}"
        try:
            _check(content, digest, where)
            parsed = parse_manifest(content, served_type, self.bounds.descriptors_max, where)
            document = strict_json(content)
        except Refused as error:
            raise _Odd(error.code, error.message) from None
        except ValueError as error:
            raise _Odd("attached_malformed", str(error)) from None
        if not isinstance(parsed, ImageManifest):
            if named:
                raise _Odd("attached_malformed", "an index where signatures should be")
            return []
        forms = [FORMS.get(layer.media_type) for layer in parsed.layers]
        if not any(forms):
            if named or _says_form(document):
                raise _Odd("attached_malformed", "nothing in it is a signature or attestation")
            return []
        self._check_subject(document, named)
        layers = zip(parsed.layers, document["layers"], forms, strict=True)
        return [_layer(digest, form, one, entry, document) for one, entry, form in layers if form]

    def _check_subject(self, document: dict[str, Any], named: bool) -> None:
        """At a tag of classic cosign there need be none: what is signed names it."""
        subject = document.get("subject")
        if subject is None and named:
            return
        said = subject.get("digest") if isinstance(subject, dict) else None
        if said != str(self.subject):
            raise _Odd("attached_elsewhere", f"it is attached to {str(said)[:80]}")

    def _read(self, layer: _Layer, room: _Room) -> None:
        size = layer.descriptor.size_bytes
        if room.documents <= 0:
            raise _Odd("too_many_attached", f"more than {DOCUMENTS_MAX} documents")
        if size > min(DOCUMENT_BYTES_MAX, room.size_bytes):
            much = f"{DOCUMENT_BYTES_MAX} each and {PLACE_BYTES_MAX} together are read"
            raise _Odd("attached_too_large", f"{size} bytes; {much}")
        room.documents -= 1
        room.size_bytes -= size
        content = _brought(layer) or self._blob(layer.descriptor)
        self._documents.append(
            Document(
                layer.form, content, layer.signature, str(layer.manifest), layer.predicate_type
            )
        )

    def _blob(self, descriptor: Descriptor) -> bytes:
        try:
            content = self.source.blob(descriptor.digest, descriptor.size_bytes)
        except Refused as error:
            if error.code != "manifest_too_large":
                raise
            raise _Odd("attached_too_large", "larger than its descriptor says") from None
        if content is None:
            raise _Odd("attached_missing", "the document that its manifest names is not there")
        if (actual := Digest.of(content)) != descriptor.digest:
            raise _Odd("digest_mismatch", f"its bytes hash to {actual}")
        return content

    def _reject(self, digest: Digest, code: str, message: str) -> None:
        self._unusable.append(Unusable(str(digest), code, shown(message)))


def both_ends(found: Sequence[_T], limit: int) -> list[_T]:
    """All, or `limit` of them: the newest, which come last, and the oldest, in their order."""
    if len(found) <= limit:
        return list(found)
    newest = (limit + 1) // 2
    return [*found[: limit - newest], *found[len(found) - newest :]]


def _brought(layer: _Layer) -> bytes | None:
    """The document, where its manifest brings it along; what has another digest is none."""
    try:
        content = base64.b64decode(layer.data, validate=True)
    except ValueError:
        return None
    said = layer.descriptor
    good = len(content) <= said.size_bytes and Digest.of(content) == said.digest
    return content if good else None


def _says_form(value: dict[str, Any]) -> bool:
    said = value.get("artifactType")
    return isinstance(said, str) and said in FORMS


def _layer(
    manifest: Digest,
    form: AttachedForm,
    descriptor: Descriptor,
    entry: dict[str, Any],
    document: dict[str, Any],
) -> _Layer:
    said = _annotation(entry, CLASSIC_PREDICATE_ANNOTATION)
    said = said or _annotation(document, BUNDLE_PREDICATE_ANNOTATION)
    signature, data = _annotation(entry, SIGNATURE_ANNOTATION), entry.get("data")
    data = data if isinstance(data, str) else ""
    return _Layer(manifest, descriptor, form, signature, said, data)


def _annotation(value: dict[str, Any], name: str) -> str:
    given = value.get("annotations")
    found = given.get(name) if isinstance(given, dict) else None
    return found if isinstance(found, str) and found.isprintable() else ""


def _check(content: bytes, digest: Digest, where: str) -> None:
    if (actual := Digest.of(content)) != digest:
        raise Refused("digest_mismatch", f"its bytes hash to {actual}", where=where)
