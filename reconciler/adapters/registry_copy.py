"""An artifact from one repository of a registry into another, with what is attached to it.

Rules:
- No layer passes through here: the registry mounts what it has already, or the copy is refused.
- Every manifest is hashed before it is written, and goes to the digest it was asked for by.
- What is attached there already stays: signatures are added, never replaced. Whoever may publish a
  digest again could otherwise take its signatures from it. Where there is no more room, those in
  the middle give way, which are not read in any case (`registry_attached`).
- At a tag for signatures goes a manifest of our own around the documents, never one of others: it
  could say that it is about something else, and all that is added to it later would be, too. So
  no artifact is copied to one either.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from reconciler.adapters.oci_documents import (
    Descriptor,
    ImageIndex,
    ImageManifest,
    parse_manifest,
)
from reconciler.adapters.registry_attach import (
    documents_of,
    index_of_entries,
    manifest_of_layers,
)
from reconciler.adapters.registry_http import Remote
from reconciler.adapters.registry_references import (
    Written,
    accept,
    fallback_tag,
    put_content,
    put_manifest,
    referrer_indexes,
    tagged,
)
from reconciler.core.names import Digest
from reconciler.core.transfers import TAG_RESERVED, is_for_signatures
from reconciler.errors import Refused

_TAGGED = ("sig", "att")
"""What classic cosign attaches by tag: signatures and attestations."""


@dataclass(frozen=True)
class _Found:
    """A manifest or index whose bytes were hashed."""

    digest: Digest
    content: bytes
    media_type: str
    parsed: ImageManifest | ImageIndex

    @property
    def document(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.content)
        return found


@dataclass(frozen=True)
class Copying:
    """`source` and `target` are repositories of one registry; `target` may push, and read `source`.

    One copy at a time into a repository: what is attached is read, added to and written back.
    """

    source: Remote
    target: Remote
    there: set[Digest] = field(default_factory=set)
    """Blobs that the target has by now."""

    def run(self, digest: Digest, tag: str = "") -> None:
        """The tag comes last: by then all that it leads to is there. Refused("tag_reserved")."""
        if is_for_signatures(tag):
            raise Refused("tag_reserved", TAG_RESERVED, where=f"{self.target.where}:{tag}")
        top = self._needed(digest)
        subjects = [top, *self._children(top)]
        for one in reversed(subjects):
            self._put(one, str(one.digest))
        for one in subjects:
            self._attached_by_tag(one.digest)
            self._referrers(one.digest)
        if tag:
            put_content(self.target, top.content, top.media_type, tag)

    # --- the artifact ----------------------------------------------------------------------------

    def _needed(self, digest: Digest) -> _Found:
        where = f"{self.source.where}@{digest}"
        answer = self.source.manifest(digest)
        if answer is None:
            raise Refused("artifact_incomplete", "it is not in the registry", where=where)
        return self._checked(answer, digest, where)

    def _checked(self, answer: tuple[bytes, str], digest: Digest, where: str) -> _Found:
        content, served_type = answer
        if (actual := Digest.of(content)) != digest:
            hint = "the registry serves something else than was asked for; do not trust it"
            raise Refused("digest_mismatch", f"its bytes hash to {actual}", where=where, hint=hint)
        limit = self.source.bounds.descriptors_max
        parsed = parse_manifest(content, served_type, limit, where)
        return _Found(digest, content, parsed.media_type, parsed)

    def _children(self, top: _Found) -> list[_Found]:
        """Those of an index, attestations of a build among them: it names them all."""
        if isinstance(top.parsed, ImageManifest):
            return []
        found = []
        for child in dict.fromkeys(child.digest for child in top.parsed.manifests):
            one = self._needed(child)
            if isinstance(one.parsed, ImageIndex):
                where = f"{self.source.where}@{child}"
                raise Refused("index_nested", "an index inside an index", where=where)
            found.append(one)
        return found

    def _put(self, found: _Found, reference: str) -> Written:
        if isinstance(found.parsed, ImageManifest):
            self.bring((found.parsed.config, *found.parsed.layers))
        return put_content(self.target, found.content, found.media_type, reference)

    def bring(self, blobs: Iterable[Descriptor]) -> None:
        """Sees to it that the target has them."""
        for blob in blobs:
            if blob.digest in self.there:
                continue
            url = self.target.url("blobs/uploads/").copy_with(
                params={"mount": str(blob.digest), "from": self.source.repository}
            )
            where = f"{self.target.where}@{blob.digest}"
            with self.target.ask("POST", url, where, content=b"") as answer:
                # 202 opens an upload instead: the registry wants the bytes from us.
                wants_bytes = answer.status_code == 202
                if not wants_bytes:
                    accept(answer, where, 201)
            if wants_bytes and self.target.blob_size_bytes(blob.digest) != blob.size_bytes:
                raise _no_mount(where)
            self.there.add(blob.digest)

    # --- what is attached ------------------------------------------------------------------------

    def _attached_by_tag(self, subject: Digest) -> None:
        for kind in _TAGGED:
            tag = f"{fallback_tag(subject)}.{kind}"
            new = self._tagged(self.source, tag)
            if new is None or not isinstance(new.parsed, ImageManifest):
                continue
            there = self._tagged(self.target, tag)
            known: list[dict[str, Any]] = []
            if there is not None and isinstance(there.parsed, ImageManifest):
                known = documents_of(there.document["layers"])
            more = [one for one in documents_of(new.document["layers"]) if one not in known]
            if more:
                wanted = {one["digest"] for one in more}
                self.bring(one for one in new.parsed.layers if str(one.digest) in wanted)
                put_manifest(self.target, manifest_of_layers(self.target, known + more), tag)

    def _referrers(self, subject: Digest) -> None:
        """Those that say themselves what they are about; an index may say anything."""
        left: list[dict[str, Any]] = []
        for digest in self._referring(subject):
            one = self._needed(digest)
            document = one.document
            about = document.get("subject")
            if not isinstance(about, dict) or about.get("digest") != str(subject):
                continue
            for child in reversed(self._children(one)):
                self._put(child, str(child.digest))
            written = self._put(one, str(digest))
            # Where the registry keeps no list of referrers, its clients do.
            if written.subject != str(subject):
                left.append(_descriptor(one, document))
        if left:
            self._add_to_fallback(subject, left)

    def _add_to_fallback(self, subject: Digest, more: Sequence[dict[str, Any]]) -> None:
        tag = fallback_tag(subject)
        there = self._tagged(self.target, tag)
        known: list[dict[str, Any]] = []
        if there is not None and isinstance(there.parsed, ImageIndex):
            known = there.document["manifests"]
        listed = {entry["digest"] for entry in known}
        new = [entry for entry in more if entry["digest"] not in listed]
        if new:
            put_manifest(self.target, index_of_entries(self.target, known + new), tag)

    def _referring(self, subject: Digest) -> list[Digest]:
        where, limit = f"{self.source.where}@{subject}", self.source.bounds.descriptors_max
        found: dict[Digest, None] = {}
        for page in referrer_indexes(self.source, subject):
            index = parse_manifest(page, "", limit, where)
            if isinstance(index, ImageIndex):
                found.update(dict.fromkeys(entry.digest for entry in index.manifests))
            if len(found) > limit:
                message = f"{len(found)} signatures and attestations, {limit} are allowed"
                hint = "delete what nobody needs of what refers to it there"
                raise Refused("too_many_attached", message, where=where, hint=hint)
        return list(found)

    def _tagged(self, remote: Remote, tag: str) -> _Found | None:
        answer = tagged(remote, tag)
        if answer is None:
            return None
        return self._checked(answer, Digest.of(answer[0]), f"{remote.where}:{tag}")


def _descriptor(found: _Found, document: dict[str, Any]) -> dict[str, Any]:
    config = document.get("config")
    kind = document.get("artifactType") or (config or {}).get("mediaType", "")
    kind = kind if isinstance(kind, str) else ""
    described = {
        "mediaType": found.media_type,
        "digest": str(found.digest),
        "size": len(found.content),
        "artifactType": kind,
    }
    if isinstance(document.get("annotations"), dict):
        described["annotations"] = document["annotations"]
    return described


def _no_mount(where: str) -> Refused:
    return Refused(
        "mount_unsupported",
        "the registry does not mount what another of its repositories has",
        where=where,
        hint="no layer passes through the control plane: use a registry that mounts across "
        "repositories, and give all of them one store",
    )
