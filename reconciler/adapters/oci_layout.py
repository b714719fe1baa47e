"""An OCI image-layout folder, read as a registry's repository is.

Rules: plain files only, sizes bounded. It has no repositories: content alone is asked for, and a
tag is what `index.json` says. Nothing is written here.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from reconciler.adapters.oci_documents import parse_manifest
from reconciler.adapters.registry_http import Bounds, too_large
from reconciler.core.names import Digest
from reconciler.errors import Refused, Transient

_REF_NAME = "org.opencontainers.image.ref.name"


@dataclass(frozen=True)
class Layout:
    """A folder in the OCI image-layout form. It has no repositories: content alone is asked for."""

    folder: Path
    bounds: Bounds

    def __post_init__(self) -> None:
        if not (self.folder / "oci-layout").is_file():
            raise Refused("layout_missing", "there is no OCI image layout", where=str(self.folder))

    @property
    def where(self) -> str:
        return str(self.folder)

    def has_manifest(self, digest: Digest) -> bool:
        return self.blob_size_bytes(digest) is not None

    def manifest(self, digest: Digest) -> tuple[bytes, str] | None:
        content = self._read(digest, self.bounds.manifest_bytes_max)
        return None if content is None else (content, "")

    def blob(self, digest: Digest, size_bytes: int) -> bytes | None:
        return self._read(digest, size_bytes)

    def blob_size_bytes(self, digest: Digest) -> int | None:
        with self._errors(digest):
            try:
                found = self._path(digest).lstat()
            except FileNotFoundError:
                return None
            if not stat.S_ISREG(found.st_mode):
                raise Refused("layout_odd", "not a plain file", where=f"{self.where}@{digest}")
            return found.st_size

    def tagged(self, tag: str) -> tuple[bytes, str] | None:
        """The manifest that `index.json` gives that name."""
        content = self._index()
        where = f"{self.where}:{tag}"
        parse_manifest(content, "", self.bounds.descriptors_max, where)
        for entry in json.loads(content).get("manifests", ()):
            annotations = entry.get("annotations")
            if isinstance(annotations, dict) and annotations.get(_REF_NAME) == tag:
                return self.manifest(Digest.parse(entry["digest"]))
        return None

    def referrer_indexes(self, subject: Digest) -> Iterator[bytes]:  # noqa: ARG002
        """All that there is: each manifest says itself what it is about."""
        yield self._index()

    def _index(self) -> bytes:
        place, limit = self.folder / "index.json", self.bounds.manifest_bytes_max
        try:
            with place.open("rb") as file:
                content = file.read(limit + 1)
        except OSError as error:
            why = os.strerror(error.errno or 0)
            raise Transient("layout_unreadable", why, where=str(place)) from None
        if len(content) > limit:
            raise too_large(limit, str(place))
        return content

    def _path(self, digest: Digest) -> Path:
        return self.folder / "blobs" / "sha256" / digest.value.removeprefix("sha256:")

    def _read(self, digest: Digest, limit: int) -> bytes | None:
        if self.blob_size_bytes(digest) is None:
            return None
        with self._errors(digest), self._path(digest).open("rb") as file:
            content = file.read(limit + 1)
        if len(content) > limit:
            raise too_large(limit, f"{self.where}@{digest}")
        return content

    @contextmanager
    def _errors(self, digest: Digest) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise Transient(
                "layout_unreadable", os.strerror(error.errno or 0), where=f"{self.where}@{digest}"
            ) from None
