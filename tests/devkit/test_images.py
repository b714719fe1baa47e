"""Images are the same bytes each time, and what an engine finds in them is what was asked for."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from reconciler.core.names import Digest
from reconciler.devkit import images
from reconciler.devkit.services import free_port
from reconciler.errors import Refused, Transient
from tests.waiting import wait_until


@pytest.fixture
def busybox(tmp_path: Path) -> Path:
    stand_in = tmp_path / "busybox"
    stand_in.write_bytes(b"not really")
    return stand_in


Build = Callable[[str], images.OciImage]


@pytest.fixture(params=["site", "process site"])
def build(request: pytest.FixtureRequest, busybox: Path) -> Build:
    if request.param == "site":
        return lambda version: images.build_site(version, busybox)
    return images.build_process_site


def test_same_version_same_bytes(build: Build) -> None:
    assert build("1.0.0") == build("1.0.0")
    assert build("1.0.0").manifest_digest != build("1.0.1").manifest_digest


def test_every_reference_is_a_blob_with_that_digest_and_size(build: Build) -> None:
    image = build("1.0.0")
    assert all(Digest.of(content) == digest for digest, content in image.blobs.items())
    manifest = json.loads(image.manifest)
    for descriptor in (manifest["config"], *manifest["layers"]):
        assert len(image.blobs[Digest.parse(descriptor["digest"])]) == descriptor["size"]


def test_layer_names_nobody_and_no_time(build: Build) -> None:
    with tarfile.open(fileobj=io.BytesIO(_layer(build("1.0.0")))) as archive:
        entries = archive.getmembers()
    assert {(one.mtime, one.uid, one.gid, one.uname, one.gname) for one in entries} == {
        (0, 0, 0, "", "")
    }
    folders = [one.name for one in entries if one.isdir()]
    files = [one.name for one in entries if one.isfile()]
    assert (folders, files) == (sorted(folders), sorted(files))


def test_missing_busybox_is_refused_with_what_to_install(tmp_path: Path) -> None:
    with pytest.raises(Refused) as refused:
        images.build_site("1.0.0", tmp_path / "none")
    assert str(refused.value) == (
        f"busybox_missing: {tmp_path}/none is not there (apt-get install busybox-static)"
    )


def test_process_site_answers_its_version(tmp_path: Path) -> None:
    with tarfile.open(fileobj=io.BytesIO(_layer(images.build_process_site("4.5.6")))) as archive:
        for member in archive:
            if (content := archive.extractfile(member)) is not None:
                (tmp_path / member.name).parent.mkdir(parents=True, exist_ok=True)
                (tmp_path / member.name).write_bytes(content.read())
    port = free_port()
    server = subprocess.Popen(
        [sys.executable, "serve.py"],
        cwd=tmp_path,
        env={**os.environ, "PORT_HTTP": str(port)},
        stderr=subprocess.DEVNULL,
    )
    try:
        assert wait_until(lambda: _get(port)) == b"4.5.6\n"
    finally:
        server.terminate()
        server.wait()


def test_layout_keeps_old_images_and_moves_the_name(tmp_path: Path) -> None:
    old, new = images.build_process_site("1"), images.build_process_site("2")
    other = images.build_process_site("3")
    for image, ref in ((old, "site:live"), (other, "site:other"), (new, "site:live")):
        images.write_layout(image, tmp_path, ref)
    index = json.loads((tmp_path / "index.json").read_bytes())
    named = {entry["annotations"][images.REF_NAME]: entry["digest"] for entry in index["manifests"]}
    assert named == {
        "site:live": str(new.manifest_digest),
        "site:other": str(other.manifest_digest),
    }
    stored = {path.name for path in (tmp_path / "blobs" / "sha256").iterdir()}
    assert stored == {
        digest.value.removeprefix("sha256:")
        for image in (old, new, other)
        for digest in image.blobs
    }
    assert json.loads((tmp_path / "oci-layout").read_bytes()) == {"imageLayoutVersion": "1.0.0"}


def test_push_twice_is_harmless(registry_endpoint: str) -> None:
    image = images.build_process_site("1.0.0")
    for _ in range(2):
        digest = images.push(image, registry_endpoint, "gpuaas/apps/devkit/push", "one")
        assert digest == image.manifest_digest


def test_push_that_is_refused_says_what_was_answered(registry_endpoint: str) -> None:
    image = images.build_process_site("1.0.0")
    expected = r"NOPE/.*: push_refused: POST was answered 40\d, expected 202"
    with pytest.raises(Refused, match=expected):
        images.push(image, registry_endpoint, "NOPE", "one")


def test_push_to_nobody_is_transient() -> None:
    image = images.build_process_site("1.0.0")
    with pytest.raises(Transient, match="registry_unreachable"):
        images.push(image, f"127.0.0.1:{free_port()}", "gpuaas/apps/devkit/push", "one")


def _layer(image: images.OciImage) -> bytes:
    return image.blobs[Digest.parse(json.loads(image.manifest)["layers"][0]["digest"])]


def _get(port: int) -> bytes | None:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5) as answer:
            content: bytes = answer.read()
            return content
    except (urllib.error.URLError, OSError):
        return None
