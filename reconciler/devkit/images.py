"""Tiny OCI images of a web site that shows its version: what the demo and the tests deploy.

Rules:
- The same arguments give the same bytes and so the same digests: no clock, sorted entries, no
  compressor.
- Uploading is done here in a few lines and not with oras-py, which would bring a second HTTP stack
  and follows any redirect with what it was given.
"""

from __future__ import annotations

import hashlib
import io
import json
import platform
import tarfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import httpx

from reconciler.core.names import Digest
from reconciler.errors import Refused, Transient

MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
INDEX_TYPE = "application/vnd.oci.image.index.v1+json"
CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar"
REF_NAME = "org.opencontainers.image.ref.name"

SITE_PORT = 8080
"""The container port of `build_site`."""

BUSYBOX = Path("/bin/busybox")
PUSH_TIMEOUT_S = 60.0
PUSH_PART_BYTES = 1024 * 1024
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
_UNPRIVILEGED = "65534:65534"

# A shell in front, because process 1 gets no default signal handlers: httpd alone would ignore the
# request to stop and be killed at the end of its grace.
_SERVE_SITE = f'trap "exit 0" TERM INT; /bin/busybox httpd -f -p {SITE_PORT} -h /www & wait'

_SERVE_PY = '''\
"""Serves the folder `www` beside this file on 127.0.0.1:$PORT_HTTP."""

import functools
import http.server
import os
import pathlib

folder = pathlib.Path(__file__).resolve().parent / "www"
handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
address = ("127.0.0.1", int(os.environ["PORT_HTTP"]))
http.server.ThreadingHTTPServer(address, handler).serve_forever()
'''


@dataclass(frozen=True)
class OciImage:
    """An image in memory: its blobs by digest, the manifest among them."""

    blobs: Mapping[Digest, bytes]
    manifest_digest: Digest

    @property
    def manifest(self) -> bytes:
        return self.blobs[self.manifest_digest]


def build_site(version: str, busybox: Path | None = None) -> OciImage:
    """A busybox web server for a container engine: answers `version` on `/`, port SITE_PORT."""
    source = busybox or BUSYBOX
    if not source.is_file():
        raise Refused(
            "busybox_missing", f"{source} is not there", hint="apt-get install busybox-static"
        )
    files = {"bin/busybox": (source.read_bytes(), 0o755), **_page(version)}
    return _image(
        files,
        {
            "Entrypoint": ["/bin/busybox", "sh", "-c", _SERVE_SITE],
            "ExposedPorts": {f"{SITE_PORT}/tcp": {}},
            "User": _UNPRIVILEGED,
            "WorkingDir": "/",
        },
    )


def build_process_site(version: str) -> OciImage:
    """The same site for the process engine: `python3 serve.py`, on 127.0.0.1:$PORT_HTTP."""
    files = {"serve.py": (_SERVE_PY.encode(), 0o644), **_page(version)}
    return _image(files, {"Entrypoint": ["python3", "serve.py"], "WorkingDir": "/"})


def build_on(
    layout: Path,
    ref: str,
    files: Mapping[str, tuple[bytes, int]],
    settings: Mapping[str, object],
    folders: Mapping[str, int] | None = None,
) -> OciImage:
    """The image that a layout names `ref` with one layer more; what is below stays in the layout.

    `files`: path → content and mode; `folders`: path → the number of the user that it belongs to.
    """
    below = json.loads(_manifest_of(layout, ref))["layers"]
    layer = _layer(files, folders)
    image = _described([*below, _descriptor(LAYER_TYPE, layer)], settings)
    return OciImage({**image.blobs, Digest.of(layer): layer}, image.manifest_digest)


def push(
    image: OciImage,
    endpoint: str,
    repository: str,
    tag: str,
    token: str = "",
    layout: Path | None = None,
) -> Digest:
    """Uploads over plain HTTP to the registry at host:port; returns the manifest's digest.

    `token` is a registry's bearer token, where it asks for one. Layers that the image itself does
    not have are taken from `layout`; without one the registry has them. Transient when the
    registry does not answer, Refused when it does not take the image.
    """
    with ExitStack() as files:
        blobs: list[tuple[Digest, BinaryIO]] = []
        for digest in _named_by(image.manifest):
            if digest in image.blobs:
                blobs.append((digest, io.BytesIO(image.blobs[digest])))
            elif layout is not None:
                blobs.append((digest, files.enter_context(_blob(layout, digest).open("rb"))))
        _upload(blobs, image.manifest, f"http://{endpoint}/v2/{repository}", tag, token)
    return image.manifest_digest


def write_layout(image: OciImage, folder: Path, ref: str) -> None:
    """Adds the image to the OCI image layout in `folder` as `ref`; what is there already stays.

    A `ref` that named another image names this one afterwards. One writer at a time.
    """
    blobs = folder / "blobs" / "sha256"
    blobs.mkdir(parents=True, exist_ok=True)
    for digest, content in sorted(image.blobs.items()):
        _replace(blobs / digest.value.removeprefix("sha256:"), content)
    _replace(folder / "oci-layout", canonical({"imageLayoutVersion": "1.0.0"}))
    index_file = folder / "index.json"
    listed = json.loads(index_file.read_bytes())["manifests"] if index_file.exists() else []
    others = [entry for entry in listed if entry.get("annotations", {}).get(REF_NAME) != ref]
    entry = _descriptor(MANIFEST_TYPE, image.manifest)
    index = {
        "schemaVersion": 2,
        "mediaType": INDEX_TYPE,
        "manifests": [*others, {**entry, "annotations": {REF_NAME: ref}}],
    }
    _replace(index_file, canonical(index))


def write_layout_of_files(
    layers: Sequence[Path], settings: Mapping[str, object], folder: Path, ref: str
) -> Digest:
    """An image layout of layers that are tar files, which are moved into it: they may be large."""
    blobs = folder / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    described = []
    for layer in layers:
        digest, size_bytes = _digest_of_file(layer), layer.stat().st_size
        layer.rename(blobs / digest.value.removeprefix("sha256:"))
        described.append({"mediaType": LAYER_TYPE, "digest": str(digest), "size": size_bytes})
    image = _described(described, settings)
    write_layout(image, folder, ref)
    return image.manifest_digest


def push_layout(folder: Path, ref: str, endpoint: str, repository: str, tag: str) -> Digest:
    """Uploads the image that an image layout names `ref`, file by file; returns its digest."""
    manifest = _manifest_of(folder, ref)
    image = OciImage({Digest.of(manifest): manifest}, Digest.of(manifest))
    return push(image, endpoint, repository, tag, layout=folder)


def layers_of(folder: Path, ref: str) -> list[Path]:
    """The layers' files of the image that an image layout names `ref`, the lowest first."""
    document = json.loads(_manifest_of(folder, ref))
    return [_blob(folder, Digest.parse(one["digest"])) for one in document["layers"]]


def _manifest_of(folder: Path, ref: str) -> bytes:
    listed = json.loads((folder / "index.json").read_bytes())["manifests"]
    found = [one for one in listed if one.get("annotations", {}).get(REF_NAME) == ref]
    if not found:
        raise Refused("ref_not_found", f"the image layout has no {ref}", where=str(folder))
    return _blob(folder, Digest.parse(found[0]["digest"])).read_bytes()


def _named_by(manifest: bytes) -> list[Digest]:
    document = json.loads(manifest)
    return [Digest.parse(one["digest"]) for one in (*document["layers"], document["config"])]


def _blob(folder: Path, digest: Digest) -> Path:
    return folder / "blobs" / "sha256" / digest.value.removeprefix("sha256:")


def _digest_of_file(path: Path) -> Digest:
    with path.open("rb") as file:
        return Digest.parse("sha256:" + hashlib.file_digest(file, "sha256").hexdigest())


def _page(version: str) -> dict[str, tuple[bytes, int]]:
    return {"www/index.html": (f"{version}\n".encode(), 0o644)}


def _image(files: Mapping[str, tuple[bytes, int]], settings: Mapping[str, object]) -> OciImage:
    layer = _layer(files)
    image = _described([_descriptor(LAYER_TYPE, layer)], settings)
    return OciImage({**image.blobs, Digest.of(layer): layer}, image.manifest_digest)


def _described(layers: Sequence[Mapping[str, object]], settings: Mapping[str, object]) -> OciImage:
    """Config and manifest of an image of these uncompressed layers; the layers are elsewhere."""
    config = canonical(
        {
            "architecture": _ARCHITECTURES.get(platform.machine(), platform.machine()),
            "os": "linux",
            "config": settings,
            "rootfs": {"type": "layers", "diff_ids": [layer["digest"] for layer in layers]},
        }
    )
    manifest = canonical(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "config": _descriptor(CONFIG_TYPE, config),
            "layers": list(layers),
        }
    )
    return OciImage({Digest.of(one): one for one in (config, manifest)}, Digest.of(manifest))


def _layer(
    files: Mapping[str, tuple[bytes, int]], owners: Mapping[str, int] | None = None
) -> bytes:
    """An uncompressed tar: compressors differ from one version to the next, tar does not."""
    owned = owners or {}
    folders = {str(parent) for path in (*files, *owned) for parent in Path(path).parents} - {"."}
    output = io.BytesIO()
    with tarfile.open(fileobj=output, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for folder in sorted(folders | owned.keys()):
            entry = tarfile.TarInfo(folder)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            entry.uid = entry.gid = owned.get(folder, 0)
            archive.addfile(entry)
        for path, (content, mode) in sorted(files.items()):
            entry = tarfile.TarInfo(path)
            entry.size, entry.mode = len(content), mode
            archive.addfile(entry, io.BytesIO(content))
    return output.getvalue()


def _descriptor(media_type: str, content: bytes) -> dict[str, object]:
    return {"mediaType": media_type, "digest": str(Digest.of(content)), "size": len(content)}


def canonical(document: object) -> bytes:
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()


def _upload(
    blobs: Sequence[tuple[Digest, BinaryIO]],
    manifest: bytes,
    base: str,
    tag: str,
    token: str = "",
) -> None:
    """Blobs first: a registry takes no manifest of what it does not have."""
    shown = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        with httpx.Client(timeout=PUSH_TIMEOUT_S, trust_env=False, headers=shown) as client:
            for digest, content in blobs:
                _push_blob(client, base, digest, content)
            headers = {"Content-Type": MANIFEST_TYPE}
            _expect(client.put(f"{base}/manifests/{tag}", content=manifest, headers=headers), 201)
    except httpx.TransportError as error:
        raise Transient("registry_unreachable", str(error), where=base) from None


def _push_blob(client: httpx.Client, base: str, digest: Digest, content: BinaryIO) -> None:
    if client.head(f"{base}/blobs/{digest}").status_code == 200:
        return
    started = client.post(f"{base}/blobs/uploads/")
    _expect(started, 202)
    place = started.request.url.join(started.headers["Location"])
    size_bytes = content.seek(0, io.SEEK_END)
    content.seek(0)
    headers = {"Content-Type": "application/octet-stream", "Content-Length": str(size_bytes)}
    parts = iter(lambda: content.read(PUSH_PART_BYTES), b"")
    place = place.copy_add_param("digest", str(digest))
    _expect(client.put(place, content=parts, headers=headers), 201)


def _expect(answer: httpx.Response, status: int) -> None:
    if answer.status_code != status:
        request = answer.request
        raise Refused(
            "push_refused",
            f"{request.method} was answered {answer.status_code}, expected {status}: "
            f"{answer.text[:200]}",
            where=f"{request.url.host}:{request.url.port}{request.url.path}",
        )


def _replace(path: Path, content: bytes) -> None:
    """Writes beside and renames, so that a reader never sees half a file."""
    draft = path.with_name(f".{path.name}.draft")
    draft.write_bytes(content)
    draft.replace(path)
