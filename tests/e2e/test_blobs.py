"""Blobs on a real node: brought ahead, read by a container, never stopping what runs for one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from node_agent.artifact_wire import BLOBS_PATH
from reconciler.adapters.blobs_folder import FolderBlobs
from reconciler.core.names import Digest
from tests.e2e.platform import AGENT, Platform

FOLDER = "tenants/acme/projects/research/artifacts/hello"
SOURCE = "artifact_store://projects/acme/research/artifacts/hello"
WEIGHTS = b"first weights " * 100_000
MORE = b"second weights " * 100_000


def store(platform: Platform, content: bytes, version: str) -> str:
    """Into the artifact store, past any transfer, as that version's; its digest."""
    blobs = FolderBlobs(platform.root / "state" / "blobs")
    digest = Digest.of(content)
    name = f"t{digest.value[7:31]}"
    blobs.append(name, 0, [content])
    blobs.finish(name, digest)
    blobs.claim(f"{SOURCE}/{version}/weights", digest)
    return str(digest)


def stored_file(platform: Platform, digest: str) -> Path:
    (found,) = (platform.root / "state" / "blobs" / "sha256").rglob(digest[7:])
    return found


def register(
    platform: Platform, version: str, digest: str, state: str, *, prefetch: bool = False
) -> None:
    manifest = {
        "apiVersion": "gpuaas.dev/v1",
        "kind": "Artifact",
        "metadata": {"name": "weights"},
        "spec": {
            "kind": "blob", "source": f"{SOURCE}/{version}/weights", "digest": digest,
            "visibility": "project", "state": state, "prefetch": prefetch,
        },
    }  # fmt: skip
    path = platform.repo.folder / FOLDER / version / "weights.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(manifest))


def let_read(platform: Platform, version: str, digest: str) -> str:
    """A version like that one, which reads it; its name. An offered version stays what it is."""
    blobs = [{"name": "weights", "ref": f"{SOURCE}/{version}/weights@{digest}"}]
    reads = f"  runtime_profile:\n    blobs: {json.dumps(blobs)}\n"
    new, files = version.replace("1.", "2.", 1), {}
    for kind in ("versions", "promotions"):
        path = f"catalog/hello/{kind}/{{}}.yaml"
        text = (platform.repo.folder / path.format(version)).read_text().replace(version, new)
        files[path.format(new)] = text.replace("  runtime_profile:\n", reads)
    platform.repo.introduce(files)
    platform.set_version(new)
    return new


def on_node(platform: Platform, digest: str) -> str:
    """How the node says that it stands; empty where it says nothing of it."""
    (node,) = platform.status()["nodes"]
    return next((one["state"] for one in node["blobs"] if one["digest"] == digest), "")


def read_inside(platform: Platform) -> bytes:
    api = platform.docker.api
    command = ["/bin/busybox", "cat", f"{BLOBS_PATH}/weights"]
    run = api.exec_create(platform.docker.only()["Id"], command)["Id"]
    return bytes(api.exec_start(run))


def launch_with_blob(platform: Platform) -> str:
    """Brings it ahead, then has a version run that reads it."""
    digest = store(platform, WEIGHTS, "1.0.0")
    platform.wait_settled("running")
    register(platform, "1.0.0", digest, "published", prefetch=True)
    platform.commit("The weights are to be on our nodes")
    platform.wait(lambda: on_node(platform, digest) == "ready")
    platform.wait_settled("running")
    register(platform, "1.0.0", digest, "promoted")
    platform.commit("They are good")
    platform.wait_settled("running")
    let_read(platform, "1.0.0", digest)
    platform.commit("A version reads them")
    platform.wait_settled("running")
    return digest


@pytest.mark.real
def test_what_was_brought_ahead_is_read_by_the_container(platform: Platform) -> None:
    digest = launch_with_blob(platform)
    assert read_inside(platform) == WEIGHTS
    container = platform.docker.only()
    (mount,) = [one for one in container["Mounts"] if one["Destination"].startswith(BLOBS_PATH)]
    cached = platform.root / AGENT / "blobs" / "sha256" / digest[7:]
    assert (mount["Source"], mount["RW"]) == (str(cached), False)
    assert platform.gpuaas("plan").returncode == 0
    platform.remove_instance()
    platform.commit("No more")
    platform.wait_settled("decommissioned")
    assert platform.docker.left() == (0, 0, 0)


@pytest.mark.real
def test_an_upgrade_waits_for_its_blob_and_stops_nothing_meanwhile(platform: Platform) -> None:
    launch_with_blob(platform)
    before = platform.docker.only()["Id"]
    digest = store(platform, MORE, "1.1.0")
    # Wrong bytes, as from a store that somebody got at.
    file = stored_file(platform, digest)
    file.chmod(0o600)
    file.write_bytes(MORE[:-1] + b"!")
    register(platform, "1.1.0", digest, "published")
    platform.commit("The next weights")
    platform.wait_settled("running")
    register(platform, "1.1.0", digest, "promoted")
    platform.commit("They are said to be good")
    platform.wait_settled("running")
    new = let_read(platform, "1.1.0", digest)
    platform.commit("Upgrade")
    found = platform.wait_settled("running", "stalled")
    assert "digest_mismatch" in json.dumps(found)
    assert platform.docker.only()["Id"] == before
    assert read_inside(platform) == WEIGHTS
    file.write_bytes(MORE)
    platform.set_version("2.0.0")
    platform.commit("Back")
    platform.wait_settled("running")
    platform.set_version(new)
    platform.commit("Again")
    platform.wait_settled("running")
    assert platform.instance()["applied_version"] == new
    assert read_inside(platform) == MORE
