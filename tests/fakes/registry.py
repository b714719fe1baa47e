"""An in-memory registry that implements `ports.Registry`, for tests of what stands above it."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from reconciler.artifact_ports import Attached, Document, Unusable
from reconciler.core.names import ArtifactKey, Digest
from reconciler.core.observed import ArtifactSeen
from reconciler.devkit.images import OciImage
from reconciler.errors import GpuaasError, Refused
from reconciler.ports import RegistryEndpoint


class FakeRegistry:
    """Holds blobs by repository, or facts said outright. `failure`, if set, answers each call.

    `unusable` is what was attached to an artifact and can't be used.
    """

    def __init__(self) -> None:
        self.failure: GpuaasError | None = None
        self.looked_up: list[ArtifactKey] = []
        self.copied: list[tuple[ArtifactKey, str, str]] = []
        self._blobs: dict[ArtifactKey, bytes] = {}
        self._said: dict[ArtifactKey, ArtifactSeen] = {}
        self.asked_attached: list[ArtifactKey] = []
        self.unusable: dict[ArtifactKey, tuple[Unusable, ...]] = {}
        self._attached: dict[ArtifactKey, dict[str, Document]] = {}

    def say(self, key: ArtifactKey, seen: ArtifactSeen | None = None) -> None:
        """Makes `key` exist without content; by default an image for linux/amd64."""
        self._said[key] = seen or ArtifactSeen(
            exists=True,
            media_type="application/vnd.oci.image.manifest.v1+json",
            size_bytes=1,
            platforms=("linux/amd64",),
        )

    def publish(self, repository: str, image: OciImage) -> None:
        for digest, content in image.blobs.items():
            self._blobs[ArtifactKey(repository, digest)] = content

    def delete(self, key: ArtifactKey) -> None:
        self._blobs.pop(key, None)
        self._said.pop(key, None)

    def corrupt(self, key: ArtifactKey, content: bytes) -> None:
        self._blobs[key] = content

    def copy(self, endpoint: RegistryEndpoint, key: ArtifactKey, to: str, tag: str = "") -> None:
        """All of the repository's content, as nobody asks for the rest of it there."""
        if self.failure is not None:
            raise self.failure
        if key not in self._said and key not in self._blobs:
            raise Refused("artifact_incomplete", "it is not in the registry", where=str(key))
        self.copied.append((key, to, tag))
        for kept in (self._said, self._blobs):
            mine = [one for one in kept if one.repository == key.repository]
            for one in mine:
                kept[ArtifactKey(to, one.digest)] = kept[one]  # type: ignore[assignment]

    def look_up(self, endpoint: RegistryEndpoint, key: ArtifactKey) -> ArtifactSeen:
        self.looked_up.append(key)
        if self.failure is not None:
            raise self.failure
        if key in self._said:
            return self._said[key]
        if key not in self._blobs:
            return ArtifactSeen(exists=False)
        document = self._document(key)
        manifests = [
            (child["platform"], self._document(ArtifactKey(key.repository, digest)), digest)
            for child, digest in _children(document)
        ] or [(None, document, key.digest)]
        weights = {key.digest: len(self._blobs[key])}
        platforms = set()
        for platform, manifest, digest in manifests:
            weights[digest] = len(self._blobs[ArtifactKey(key.repository, digest)])
            for part in (manifest["config"], *manifest["layers"]):
                weights[Digest.parse(part["digest"])] = part["size"]
                self._need(ArtifactKey(key.repository, Digest.parse(part["digest"])))
            config = Digest.parse(manifest["config"]["digest"])
            found = platform or self._document(ArtifactKey(key.repository, config))
            platforms.add(f"{found['os']}/{found['architecture']}")
        return ArtifactSeen(
            exists=True,
            media_type=document["mediaType"],
            size_bytes=sum(weights.values()),
            platforms=tuple(sorted(platforms)),
        )

    def attached(self, endpoint: RegistryEndpoint, key: ArtifactKey) -> Attached:
        self.asked_attached.append(key)
        if self.failure is not None:
            raise self.failure
        self._need_artifact(key)
        found = self._attached.get(key, {})
        return Attached(tuple(found.values()), self.unusable.get(key, ()))

    def attach(self, endpoint: RegistryEndpoint, key: ArtifactKey, document: Document) -> str:
        if self.failure is not None:
            raise self.failure
        self._need_artifact(key)
        digest = str(Digest.of(document.content + document.signature.encode()))
        self._attached.setdefault(key, {})[digest] = replace(document, digest=digest)
        return digest

    def detach(self, key: ArtifactKey) -> None:
        """As if nobody had ever signed it."""
        self._attached.pop(key, None)

    def _need_artifact(self, key: ArtifactKey) -> None:
        if key not in self._blobs and key not in self._said:
            raise Refused("artifact_missing", "it is not in the registry", where=str(key))

    def _document(self, key: ArtifactKey) -> dict[str, Any]:
        self._need(key)
        if Digest.of(self._blobs[key]) != key.digest:
            raise Refused("digest_mismatch", "its bytes hash to something else", where=str(key))
        document: dict[str, Any] = json.loads(self._blobs[key])
        return document

    def _need(self, key: ArtifactKey) -> None:
        if key not in self._blobs:
            raise Refused("artifact_incomplete", "a part is not in the registry", where=str(key))


def _children(document: dict[str, Any]) -> list[tuple[dict[str, Any], Digest]]:
    """The manifests of an index that are images, not attestations."""
    return [
        (child, Digest.parse(child["digest"]))
        for child in document.get("manifests", ())
        if child["platform"]["os"] != "unknown"
    ]
