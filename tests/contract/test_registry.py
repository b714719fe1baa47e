"""One suite for every registry: the fake, an image layout, a real docker-registry."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from reconciler.adapters.registry_oci import OciRegistry
from reconciler.core.names import ArtifactKey, Digest
from reconciler.core.observed import ArtifactSeen
from reconciler.devkit import images
from reconciler.devkit.images import OciImage
from reconciler.devkit.services import start_registry
from reconciler.errors import Refused
from reconciler.ports import Registry, RegistryEndpoint
from reconciler.settings import Settings
from tests.fakes.registry import FakeRegistry
from tests.services.oci import index_of, small_image

REPOSITORY = "gpuaas/apps/research/contract"


class Backend(ABC):
    """A registry and the ways a test reaches behind it."""

    registry: Registry
    endpoint: RegistryEndpoint
    has_repositories = True

    @abstractmethod
    def publish(self, image: OciImage) -> None: ...

    @abstractmethod
    def delete_manifest(self, digest: Digest) -> None: ...

    @abstractmethod
    def delete_blob(self, digest: Digest) -> None: ...

    @abstractmethod
    def corrupt(self, digest: Digest, content: bytes) -> None: ...

    def look_up(self, digest: Digest, repository: str = REPOSITORY) -> ArtifactSeen:
        return self.registry.look_up(self.endpoint, ArtifactKey(repository, digest))


class Fake(Backend):
    def __init__(self) -> None:
        self.fake = FakeRegistry()
        self.registry = self.fake
        self.endpoint = RegistryEndpoint("registry.invalid")

    def publish(self, image: OciImage) -> None:
        self.fake.publish(REPOSITORY, image)

    def delete_manifest(self, digest: Digest) -> None:
        self.fake.delete(ArtifactKey(REPOSITORY, digest))

    delete_blob = delete_manifest

    def corrupt(self, digest: Digest, content: bytes) -> None:
        self.fake.corrupt(ArtifactKey(REPOSITORY, digest), content)


class Layout(Backend):
    has_repositories = False

    def __init__(self, registry: Registry, folder: Path) -> None:
        self.registry = registry
        self.folder = folder
        self.endpoint = RegistryEndpoint("", layout_path=str(folder))
        images.write_layout(small_image("first"), folder, "first")

    def publish(self, image: OciImage) -> None:
        images.write_layout(image, self.folder, "published")

    def delete_manifest(self, digest: Digest) -> None:
        self._path(digest).unlink()

    delete_blob = delete_manifest

    def corrupt(self, digest: Digest, content: bytes) -> None:
        self._path(digest).write_bytes(content)

    def _path(self, digest: Digest) -> Path:
        return self.folder / "blobs" / "sha256" / digest.value.removeprefix("sha256:")


class Real(Backend):
    """A docker-registry of its own, whose files a test may edit."""

    def __init__(self, registry: Registry, endpoint: str, data: Path) -> None:
        self.registry = registry
        self.endpoint = RegistryEndpoint(endpoint, plain_http=True)
        self.data = data
        self.base = f"http://{endpoint}/v2/{REPOSITORY}"

    def publish(self, image: OciImage) -> None:
        document = json.loads(image.manifest)
        for entry in document.get("manifests", ()):
            digest = Digest.parse(entry["digest"])
            images.push(OciImage(image.blobs, digest), self.endpoint.endpoint, REPOSITORY, "part")
        if "manifests" not in document:
            images.push(image, self.endpoint.endpoint, REPOSITORY, "whole")
            return
        httpx.put(
            f"{self.base}/manifests/index",
            content=image.manifest,
            headers={"Content-Type": document["mediaType"]},
            trust_env=False,
        ).raise_for_status()

    def delete_manifest(self, digest: Digest) -> None:
        httpx.delete(f"{self.base}/manifests/{digest}", trust_env=False).raise_for_status()

    def delete_blob(self, digest: Digest) -> None:
        httpx.delete(f"{self.base}/blobs/{digest}", trust_env=False).raise_for_status()

    def corrupt(self, digest: Digest, content: bytes) -> None:
        word = digest.value.removeprefix("sha256:")
        found = self.data / "docker/registry/v2/blobs/sha256" / word[:2] / word / "data"
        found.write_bytes(content)


@pytest.fixture(scope="module")
def real_registry(service_root: Path) -> Iterator[tuple[str, Path]]:
    with start_registry(service_root / "contract-registry") as server:
        yield server.endpoint, server.data


@pytest.fixture
def adapter() -> Iterator[OciRegistry]:
    registry = OciRegistry(Settings())
    yield registry
    registry.close()


@pytest.fixture
def fake() -> Backend:
    return Fake()


@pytest.fixture
def layout(adapter: OciRegistry, tmp_path: Path) -> Backend:
    return Layout(adapter, tmp_path)


@pytest.fixture
def real(adapter: OciRegistry, real_registry: tuple[str, Path]) -> Backend:
    return Real(adapter, *real_registry)


BACKENDS = ["fake", "layout", pytest.param("real", marks=[pytest.mark.real])]


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Backend:
    found: Backend = request.getfixturevalue(request.param)
    return found


def test_a_published_image_is_seen(backend: Backend) -> None:
    image = small_image("published")
    backend.publish(image)
    assert backend.look_up(image.manifest_digest) == ArtifactSeen(
        exists=True,
        media_type=images.MANIFEST_TYPE,
        size_bytes=sum(len(content) for content in image.blobs.values()),
        platforms=("linux/amd64",),
    )


def test_an_index_shows_its_platforms_and_leaves_attestations_out(backend: Backend) -> None:
    amd, arm = small_image("amd", "amd64"), small_image("arm", "arm64")
    attestation = small_image("attestation")
    index = index_of({"linux/arm64": arm, "linux/amd64": amd, "unknown/unknown": attestation})
    backend.publish(index)
    counted = {**amd.blobs, **arm.blobs, index.manifest_digest: index.manifest}
    assert backend.look_up(index.manifest_digest) == ArtifactSeen(
        exists=True,
        media_type=images.INDEX_TYPE,
        size_bytes=sum(len(content) for content in counted.values()),
        platforms=("linux/amd64", "linux/arm64"),
    )


def test_a_digest_nobody_pushed_does_not_exist(backend: Backend) -> None:
    backend.publish(small_image("present"))
    absent = small_image("absent")
    assert backend.look_up(absent.manifest_digest) == ArtifactSeen(exists=False)


def test_a_digest_of_another_repository_does_not_exist(backend: Backend) -> None:
    image = small_image("elsewhere")
    backend.publish(image)
    seen = backend.look_up(image.manifest_digest, "gpuaas/apps/research/other")
    assert seen.exists is not backend.has_repositories


def test_what_is_deleted_is_gone_and_what_comes_back_is_seen(backend: Backend) -> None:
    image = small_image("comes and goes")
    backend.publish(image)
    seen = backend.look_up(image.manifest_digest)
    backend.delete_manifest(image.manifest_digest)
    assert backend.look_up(image.manifest_digest) == ArtifactSeen(exists=False)
    backend.publish(image)
    assert backend.look_up(image.manifest_digest) == seen


def test_changed_bytes_are_refused(backend: Backend) -> None:
    image = small_image("changed")
    backend.publish(image)
    backend.corrupt(image.manifest_digest, image.manifest + b" ")
    with pytest.raises(Refused, match="digest_mismatch: its bytes hash to"):
        backend.look_up(image.manifest_digest)


def test_a_changed_config_is_refused(backend: Backend) -> None:
    image = small_image("changed config")
    backend.publish(image)
    config = Digest.parse(json.loads(image.manifest)["config"]["digest"])
    backend.corrupt(config, image.blobs[config].replace(b"linux", b"windo"))
    with pytest.raises(Refused, match="digest_mismatch: its bytes hash to"):
        backend.look_up(image.manifest_digest)


@pytest.mark.parametrize("part", ["config", "layer"])
def test_a_missing_part_is_refused(backend: Backend, part: str) -> None:
    image = small_image(f"without its {part}")
    backend.publish(image)
    manifest = json.loads(image.manifest)
    missing = manifest["config"] if part == "config" else manifest["layers"][0]
    backend.delete_blob(Digest.parse(missing["digest"]))
    with pytest.raises(Refused, match=r"artifact_incomplete: .* is not in the registry"):
        backend.look_up(image.manifest_digest)


def test_a_missing_child_of_an_index_is_refused(backend: Backend) -> None:
    amd, arm = small_image("kept", "amd64"), small_image("missing child", "arm64")
    index = index_of({"linux/amd64": amd, "linux/arm64": arm})
    backend.publish(index)
    backend.delete_manifest(arm.manifest_digest)
    with pytest.raises(Refused, match=r"artifact_incomplete: .* is not in the registry"):
        backend.look_up(index.manifest_digest)


def test_a_missing_layout_is_refused(adapter: OciRegistry, tmp_path: Path) -> None:
    endpoint = RegistryEndpoint("", layout_path=str(tmp_path / "none"))
    key = ArtifactKey(REPOSITORY, Digest.of(b""))
    with pytest.raises(Refused) as refused:
        adapter.look_up(endpoint, key)
    assert str(refused.value) == f"{tmp_path}/none: layout_missing: there is no OCI image layout"


def test_a_link_in_a_layout_is_refused(adapter: OciRegistry, tmp_path: Path) -> None:
    backend = Layout(adapter, tmp_path)
    digest = Digest.of(b"secret")
    (tmp_path / "elsewhere").write_bytes(b"secret")
    backend._path(digest).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(Refused, match="layout_odd: not a plain file"):
        backend.look_up(digest)
