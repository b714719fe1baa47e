"""What signatures and revocations do to a real platform, with Docker and cosign."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from reconciler.devkit import images, services
from reconciler.devkit.services import RegistryServer
from tests.e2e.platform import INSTANCE, REPOSITORY, Platform, publish_to_registry
from tests.services import go_tools

ENVIRONMENT = "environments/dev.yaml"
POLICY = "platform/trust/artifacts.yaml"
ARTIFACT = "tenants/platform/projects/catalog/artifacts/hello/{}/image.yaml"
RECHECK_S = "2"


class CosignKey:
    """A key pair of cosign's, without a password."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self._folder = folder
        self._run("generate-key-pair", "--output-key-prefix", "key")
        self.public = (folder / "key.pub").read_text()

    def sign(self, reference: str, *more: str) -> None:
        offline = ("--tlog-upload=false", "--use-signing-config=false", "--allow-http-registry")
        self._run("sign", "--key", "key.key", *offline, "--yes", *more, reference)

    def _run(self, *args: str) -> None:
        environment = {
            "PATH": os.environ.get("PATH", os.defpath),
            "HOME": str(self._folder),
            "COSIGN_PASSWORD": "",
        }
        program = str(go_tools.program("cosign"))
        done = subprocess.run(
            [program, *args], cwd=self._folder, env=environment, capture_output=True, text=True,
            check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr


class Place:
    """A platform with a registry of its own, where everything has to be signed by one key."""

    def __init__(self, root: Path, registry_root: Path, docker_host: str) -> None:
        self._registry_root = registry_root
        shutil.rmtree(registry_root, ignore_errors=True)
        self.registry: RegistryServer = services.start_registry(registry_root)
        self.key = CosignKey(root / "cosign")
        self.published = publish_to_registry(self.registry.endpoint)
        settings = {"GPUAAS_TRUST_RECHECK_S": RECHECK_S}
        self.platform = Platform(root, self.published, docker_host, settings)
        self.trust()
        self.edit(ENVIRONMENT, lambda spec: spec.update(trust={"channel": "stable"}))
        self.platform.repo.commit("Everything has to be signed")
        self.platform.start()

    def stop(self) -> None:
        self.platform.stop()
        self.registry.stop()

    def trust(self, revoked: str = "") -> None:
        key: dict[str, Any] = {"id": "ci", "scheme": "ecdsa-p256", "public_key": self.key.public}
        if revoked:
            key["revoked"] = {"at": "2026-01-02T03:04:05Z", "reason": revoked}
        rule = {"signature_required": True, "provenance_required": False}
        self.write(POLICY, "TrustPolicy", "artifacts",
                   {"signing_keys": [key], "channels": {"stable": rule}})  # fmt: skip

    def write(self, path: str, kind: str, name: str, spec: dict[str, Any]) -> None:
        file = self.platform.repo.folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        found = {"apiVersion": "gpuaas.dev/v1", "kind": kind, "metadata": {"name": name}}
        file.write_text(yaml.safe_dump({**found, "spec": spec}, sort_keys=False))

    def edit(self, path: str, change: Callable[[dict[str, Any]], None]) -> None:
        file = self.platform.repo.folder / path
        found = yaml.safe_load(file.read_text())
        change(found["spec"])
        file.write_text(yaml.safe_dump(found, sort_keys=False))

    def reference(self, version: str) -> str:
        return f"{self.registry.endpoint}/{REPOSITORY}@{self.published.digests[version]}"

    def registry_away(self) -> None:
        self.registry.stop()

    def registry_back(self) -> None:
        port = int(self.registry.endpoint.rpartition(":")[2])
        self.registry = services.start_registry(self._registry_root, port)

    # --- what it says ---

    def wait_held(self, code: str) -> None:
        """Until a pass on the newest commit holds something for this."""

        def is_held() -> bool:
            last = self.platform.status()["last_pass"] or {}
            newest = last.get("revision") == self.platform.repo.head()
            return newest and code in last.get("blocked", {})

        self.platform.wait(is_held)

    def trusted(self) -> tuple[str, str]:
        conditions = self.platform.instance().get("conditions", [])
        found = [(c["status"], c["reason"]) for c in conditions if c["type"] == "Trusted"]
        return found[0] if found else ("", "")

    def wait_trusted(self, status: str, reason: str) -> None:
        self.platform.wait(lambda: self.trusted() == (status, reason))

    def told(self, code: str) -> list[str]:
        return [one["message"] for one in self.platform.findings() if one["code"] == code]


@pytest.fixture
def place(tmp_path: Path, service_root: Path, docker_host: str) -> Iterator[Place]:
    made = Place(tmp_path, service_root / "registry-of-trust", docker_host)
    yield made
    made.stop()


def test_nothing_runs_unsigned_and_signing_takes_no_commit(place: Place, tmp_path: Path) -> None:
    platform = place.platform
    place.wait_held("unsigned")
    assert platform.docker.containers() == []
    plan = platform.gpuaas("plan")
    assert plan.returncode == 2, plan.stderr
    assert "gpuaas sign" in plan.stdout

    # Somebody else's key, whatever is claimed beside the signature, changes the words at most.
    other = CosignKey(tmp_path / "other")
    other.sign(place.reference("1.0.0"), "-a", "signature_required=false", "-a", "channel=none")
    place.wait_held("signature_not_trusted")
    misplaced = "tenants/acme/projects/research/trust.yaml"
    place.write(misplaced, "TrustPolicy", "artifacts",
                {"channels": {"stable": {"signature_required": False,
                                         "provenance_required": False}}})  # fmt: skip
    platform.commit("A policy where none may be")
    place.wait_held("signature_not_trusted")
    platform.repo.git("rm", "--quiet", misplaced)
    head = platform.commit("Take it out again")

    place.key.sign(place.reference("1.0.0"))
    platform.wait_settled("running")
    assert platform.repo.head() == head
    assert place.trusted() == ("True", "Verified")
    running = platform.docker.only()["Id"]

    # A tag is a label: moved to something else, it changes nothing of what was registered.
    built = images.build_site("9.9.9")
    images.push(built, place.registry.endpoint, REPOSITORY, "1.0.0")
    platform.gpuaas("apply")
    platform.wait_settled("running")
    assert platform.docker.only()["Id"] == running

    explained = platform.gpuaas("explain", f"AppInstance/{INSTANCE}")
    assert explained.returncode == 0, explained.stderr
    assert re.search(r"trust\s+good for stable", explained.stdout)
    audited = platform.gpuaas("audit", "list", "--format", "json")
    assert "signature by ci" in audited.stdout


def test_a_revoked_key_marks_what_runs_and_lets_nothing_new_in(place: Place) -> None:
    platform = place.platform
    for version in ("1.0.0", "1.1.0"):
        place.key.sign(place.reference(version))
    platform.wait_settled("running")
    running = platform.docker.only()["Id"]

    place.trust(revoked="a laptop was lost")
    platform.commit("That key is lost")
    place.wait_trusted("False", "KeyRevoked")
    (message,) = place.told("no_longer_trusted")
    assert "a laptop was lost" in message
    platform.set_version("1.1.0")
    platform.commit("An upgrade that has to wait")
    place.wait_held("key_revoked")
    assert platform.docker.only()["Id"] == running
    assert place.trusted() == ("False", "KeyRevoked")

    place.trust()
    platform.commit("It was found again")
    platform.wait_settled("running")
    assert platform.docker.only()["Id"] != running
    assert place.trusted() == ("True", "Verified")


def test_with_the_registry_away_what_is_known_stays_known(place: Place) -> None:
    platform = place.platform
    for version in ("1.0.0", "1.1.0"):
        place.key.sign(place.reference(version))
    platform.wait_settled("running")
    running = platform.docker.only()["Id"]
    place.registry_away()
    platform.set_version("1.1.0")
    platform.commit("While nobody can look")
    place.wait_held("registry_unreachable")
    assert place.trusted() == ("True", "Verified")
    assert place.told("no_longer_trusted") == []
    assert platform.docker.only()["Id"] == running
    place.registry_back()
    platform.wait_settled("running")

    def revoke(spec: dict[str, Any]) -> None:
        spec["state"] = "revoked"
        spec.pop("channels", None)

    # A revoked artifact marks what runs, and is not stopped either.
    place.edit(ARTIFACT.format("1.1.0"), revoke)
    platform.commit("That build is bad")
    place.wait_trusted("False", "ArtifactRevoked")
    assert "running" in platform.instance()["state"]
    newest = platform.docker.only()["Id"]
    assert newest != running
