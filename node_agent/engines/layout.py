"""Unpacks images from an OCI image-layout folder, believing no byte it has not hashed.

Rules:
- The manifest, its configuration and every layer must hash to their digest, or nothing is used.
- Nothing lands outside the target folder: the kernel says where each entry's folder really is, and
  links that lead out and devices are refused. tarfile's own filters are not used: some versions
  of Python 3.11 have none, and those of others can be misled by long paths.
- Sizes and counts are capped, those of headers too.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, Self

from node_agent.engines.base import EngineFailure
from node_agent.wire import FailureReason

MANIFEST_BYTES_MAX = 4 * 1024 * 1024
UNPACKED_BYTES_MAX = 256 * 1024**3
ENTRIES_MAX = 1_000_000
HEADER_BYTES_MAX = 1024 * 1024
_CHUNK_BYTES = 1024 * 1024
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
_MODES = {
    "application/vnd.oci.image.layer.v1.tar": "r|",
    "application/vnd.oci.image.layer.v1.tar+gzip": "r|gz",
    "application/vnd.docker.image.rootfs.diff.tar": "r|",
    "application/vnd.docker.image.rootfs.diff.tar.gzip": "r|gz",
}
_HEADERS = (
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.XHDTYPE,
)
"""Entries that tarfile reads into memory as a whole: they describe the entry after them."""
_WHITEOUT = ".wh."
_OPAQUE = ".wh..wh..opq"


class Layout:
    """An image-layout folder on this host."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def check(self, digest: str) -> None:
        """Raises EngineFailure unless the manifest is right and every blob is there in full."""
        manifest = self._manifest(digest)
        for layer in manifest["layers"]:
            if layer.get("mediaType") not in _MODES:
                message = f"a layer of type {str(layer.get('mediaType'))[:100]} can't be unpacked"
                raise EngineFailure(FailureReason.CREATE_REFUSED, message)
            path = self._blob(layer["digest"])
            if path.stat().st_size != layer["size"]:
                raise _mismatch(layer["digest"])

    def unpack(self, digest: str, root: Path) -> tuple[str, ...]:
        """Unpacks all layers into `root`; returns the image's own command, which may be empty."""
        manifest = self._manifest(digest)
        settings = self._document(manifest["config"]["digest"]).get("config") or {}
        try:
            for layer in manifest["layers"]:
                self._unpack_layer(layer, root)
        except (tarfile.TarError, OSError, EOFError) as error:
            message = f"the image can't be unpacked ({type(error).__name__})"
            raise EngineFailure(FailureReason.CREATE_REFUSED, message) from None
        return (*(settings.get("Entrypoint") or []), *(settings.get("Cmd") or []))

    def _unpack_layer(self, layer: Mapping[str, Any], root: Path) -> None:
        with self._blob(layer["digest"]).open("rb") as file:
            hashed = _HashedReader(file)
            stream: Any = hashed
            mode: Any = _MODES[layer["mediaType"]]
            with tarfile.open(None, mode, stream, tarinfo=_Header) as archive:
                for member in _capped(archive):
                    _place(archive, member, root)
            hashed.drain()
        if hashed.digest != layer["digest"]:
            raise _mismatch(layer["digest"])

    def _manifest(self, digest: str) -> dict[str, Any]:
        document = self._document(digest)
        if "manifests" in document:
            document = self._document(_for_this_machine(document["manifests"]))
        try:
            layers, config = document["layers"], document["config"]["digest"]
            whole = all(isinstance(one["size"], int) and one["digest"] for one in layers)
        except (KeyError, TypeError):
            whole, config = False, None
        if not whole or not isinstance(config, str):
            raise EngineFailure(FailureReason.CREATE_REFUSED, f"{digest} is not an image manifest")
        return document

    def _document(self, digest: str) -> dict[str, Any]:
        path = self._blob(digest)
        if path.stat().st_size > MANIFEST_BYTES_MAX:
            raise EngineFailure(FailureReason.CREATE_REFUSED, f"{digest} is too large")
        content = path.read_bytes()
        if "sha256:" + hashlib.sha256(content).hexdigest() != digest:
            raise _mismatch(digest)
        try:
            document = json.loads(content)
        except ValueError:
            document = None
        if not isinstance(document, dict):
            raise EngineFailure(FailureReason.CREATE_REFUSED, f"{digest} is not a JSON object")
        return document

    def _blob(self, digest: str) -> Path:
        algorithm, _, value = str(digest).partition(":")
        if algorithm != "sha256" or len(value) != 64 or not value.isalnum():
            raise EngineFailure(FailureReason.CREATE_REFUSED, "a digest that is not SHA-256")
        path = self._folder / "blobs" / "sha256" / value
        if not path.is_file():
            raise EngineFailure(FailureReason.IMAGE_NOT_FOUND, f"{digest} is not in {self._folder}")
        return path


class _HashedReader:
    """A file whose bytes are hashed as they are read."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._hash = hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        content = self._file.read(size)
        self._hash.update(content)
        return content

    def drain(self) -> None:
        """Archives may end before their file does, and the rest belongs to the digest too."""
        while self.read(_CHUNK_BYTES):
            pass

    @property
    def digest(self) -> str:
        return "sha256:" + self._hash.hexdigest()


class _Header(tarfile.TarInfo):
    """A header that can't fill the memory before anything is unpacked."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        header = super().frombuf(buf, encoding, errors)
        if header.type == tarfile.GNUTYPE_SPARSE:
            raise tarfile.ReadError("a sparse file")
        if header.type in _HEADERS and header.size > HEADER_BYTES_MAX:
            raise tarfile.ReadError("a header that is too large")
        return header


def _capped(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    size_bytes = 0
    for count, member in enumerate(archive, start=1):
        size_bytes += member.size
        if count > ENTRIES_MAX or size_bytes > UNPACKED_BYTES_MAX:
            raise EngineFailure(FailureReason.CREATE_REFUSED, "the image is too large to unpack")
        yield member


def _place(archive: tarfile.TarFile, member: tarfile.TarInfo, root: Path) -> None:
    folder, name = os.path.split(member.name.lstrip("/"))
    _check_inside(root, folder)
    if name.startswith(_WHITEOUT):
        _take_away(root / folder, name)
        return
    if member.islnk():
        _check_inside(root, os.path.dirname(member.linkname.lstrip("/")))
    # What stands there is replaced, never written through: it may be a link to somewhere else.
    path = root / folder / name
    if path.is_symlink() or (path.is_file() and not member.isdir()):
        path.unlink()
    path.parent.mkdir(parents=True, exist_ok=True)
    if member.isdir():
        path.mkdir(exist_ok=True)
    elif member.issym():
        _link(member, folder, path)
    elif member.islnk():
        os.link(root / member.linkname.lstrip("/"), path, follow_symlinks=False)
    elif member.isreg():
        _write(archive, member, path)
    else:
        raise _unsafe("a device or a pipe")


def _write(archive: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> None:
    """A file with the permissions that matter here: whether its owner may run it."""
    content = archive.extractfile(member)
    assert content is not None
    with path.open("xb") as file:
        shutil.copyfileobj(content, file, _CHUNK_BYTES)
    path.chmod(0o755 if member.mode & 0o100 else 0o644)


def _link(member: tarfile.TarInfo, folder: str, path: Path) -> None:
    """A link that by its words stays inside. Whoever writes through one is checked again then."""
    leads_to = os.path.normpath(os.path.join(folder, member.linkname))
    if os.path.isabs(leads_to) or leads_to.split("/")[0] == "..":
        raise _unsafe("a link leads out of its folder")
    path.symlink_to(member.linkname)


def _take_away(folder: Path, name: str) -> None:
    """Carries out a whiteout: an entry that says what earlier layers must not leave."""
    hidden = name.removeprefix(_WHITEOUT)
    if hidden in {"", ".", ".."} or not folder.is_dir():
        return
    for path in list(folder.iterdir()) if name == _OPAQUE else [folder / hidden]:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _check_inside(root: Path, folder: str) -> None:
    """Raises EngineFailure unless `folder`, as far as it exists, is in `root` for the kernel."""
    path = root / folder
    while not path.is_dir() and path != root:
        path = path.parent
    if ".." in Path(folder).parts or not _true_path(path).is_relative_to(_true_path(root)):
        raise _unsafe("an entry leads out of its folder")


def _unsafe(what: str) -> EngineFailure:
    message = f"the image can't be unpacked ({what})"
    return EngineFailure(FailureReason.CREATE_REFUSED, message)


def _true_path(folder: Path) -> Path:
    handle = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return Path(os.readlink(f"/proc/self/fd/{handle}"))
    finally:
        os.close(handle)


def _for_this_machine(manifests: list[Mapping[str, Any]]) -> str:
    machine = _ARCHITECTURES.get(platform.machine(), platform.machine())
    for entry in manifests:
        wanted = entry.get("platform") or {}
        if wanted.get("architecture") == machine and wanted.get("os") == "linux":
            return str(entry.get("digest"))
    message = f"the image has no variant for linux/{machine}"
    raise EngineFailure(FailureReason.IMAGE_NOT_FOUND, message)


def _mismatch(digest: str) -> EngineFailure:
    message = f"the bytes of {digest} are not what the digest says"
    return EngineFailure(FailureReason.DIGEST_MISMATCH, message)
