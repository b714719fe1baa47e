"""Publishing and pulling with oras, skopeo and docker, by the very lines that an intent prints.

The registry is Debian's docker-registry and believes the control plane's tokens; nobody tells a
client anything but what is printed. What a credential may not do, the registry refuses.
"""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import sys
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from reconciler.adapters.clock import SystemClock
from reconciler.adapters.registry_oci import OciRegistry
from reconciler.adapters.store_sql import SqlStore
from reconciler.core.authority.accounts import Subject
from reconciler.core.names import ArtifactKey, Digest
from reconciler.devkit import images
from reconciler.logs import configure_logging
from reconciler.server.app import ServerDeps, Signal, build_app
from reconciler.server.metrics import Metrics
from reconciler.server.serve import serve
from reconciler.server.tokens import TOKEN_KEY, Tokens
from reconciler.settings import Settings
from tests.server.auth_world import accept
from tests.server.intents_world import REPOSITORY, artifact, world
from tests.services.go_tools import program
from tests.services.oci import small_image
from tests.services.token_registry import open_token_registry

TIMEOUT_S = 120


@dataclass
class Host:
    """A control plane with its registry, and a place where somebody types commands."""

    url: str
    store: SqlStore
    registry: OciRegistry
    endpoint: Any
    tokens: Tokens
    folder: Path
    environment: Mapping[str, str]

    def token(self, who: str = "nils") -> str:
        found = self.tokens.accounts.holder(
            Subject.parse(f"identity:{who}") or Subject("user", ""), SystemClock().now_ms()
        )
        assert found is not None
        return self.tokens.issue(found[0], who, None).access_token

    def run(self, script: str, who: str = "nils", **variables: str) -> str:
        """What bash makes of it, every line of it good."""
        done = self.try_(script, who, **variables)
        assert done.returncode == 0, f"{script}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def try_(
        self, script: str, who: str = "nils", **variables: str
    ) -> subprocess.CompletedProcess[str]:
        env = {**self.environment, "GPUAAS_TOKEN": self.token(who), **variables}
        return subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script],
            cwd=self.folder,
            env=env,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )

    def publish(self, version: str, *more: str, who: str = "nils") -> str:
        words = f"acme/lab notebook {version} --server {self.url} {' '.join(more)}"
        return self.run(f"gpuaas intent publish {words}", who)

    def publish_json(self, version: str = "9.9.9") -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.publish(version, "--format json"))
        return found

    def bearer_for(self, found: Mapping[str, Any], password: str, *scopes: str) -> str:
        """The registry token that a credential buys."""
        answer = self.ask_token(found["id"], password, *scopes)
        assert answer.status_code == 200, answer.text
        token: str = answer.json()["token"]
        return token

    def ask_token(self, name: str, password: str, *scopes: str) -> httpx.Response:
        query: list[tuple[str, str | int | float | bool | None]] = [("service", "registry")]
        query += [("scope", one) for one in scopes]
        url = f"{self.url}/v1/registry/token"
        return httpx.get(url, params=query, auth=(name, password), trust_env=False)

    def password(self, found: Mapping[str, Any]) -> str:
        token = {"token": found["credential"]["hand_over"]}
        answer = httpx.post(found["credential"]["unwrap_url"], json=token, trust_env=False)
        assert answer.status_code == 200, answer.text
        value: str = answer.json()["value"]
        return value

    def ask_registry(self, token: str, method: str, path: str) -> int:
        url = f"http://{self.endpoint.endpoint}/v2/{path}"
        headers = {"Authorization": f"Bearer {token}", "Accept": images.MANIFEST_TYPE}
        return httpx.request(method, url, headers=headers, trust_env=False).status_code

    def exists(self, digest: str) -> bool:
        key = ArtifactKey(REPOSITORY, Digest.parse(digest))
        return self.registry.look_up(self.endpoint, key).exists


@pytest.fixture(scope="module")
def host(service_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    folder = tmp_path_factory.mktemp("typing")
    tools = f"{Path(sys.executable).parent}:{program('oras').parent}:{os.environ['PATH']}"
    environment = {
        "PATH": tools,
        "HOME": str(folder),
        "REGISTRY_AUTH_FILE": str(folder / "auth.json"),
        "DOCKER_CONFIG": str(folder / "docker"),
        "NO_COLOR": "1",
    }
    root = service_root / f"intents-{uuid.uuid4().hex[:8]}"
    with open_token_registry(root) as place:
        settings = place.settings.model_copy(update={"environment": "dev"})
        secrets, clock = place.secrets, SystemClock()
        secrets.ensure_signing_key(TOKEN_KEY)
        store = SqlStore.open(f"sqlite:///{folder / 'store.db'}")
        registry = OciRegistry(Settings(), place.tokens.bearer)
        at: dict[str, Any] = {"endpoint": place.endpoint, "plain_http": True}
        shared, hidden = (
            artifact(f"globex/lab/notebook/1.0.0/{name}", str(small_image(name).manifest_digest),
                     "gpuaas/apps/globex/lab/notebook", visibility=visibility)
            for name, visibility in (("shared", "platform"), ("hidden", "project"))
        )  # fmt: skip
        for name in ("shared", "hidden"):
            theirs = "gpuaas/apps/globex/lab/notebook"
            images.push(small_image(name), place.endpoint, theirs, name, place.push_token(theirs))
        accept(store, *world(shared, hidden, **at))
        deps = ServerDeps(
            store, secrets, clock, settings, lambda _: None, Signal(), Metrics(),
            registry=registry,
        )  # fmt: skip
        with serve(build_app(deps), settings) as url:
            tokens = Tokens(store, secrets, clock, settings)
            yield Host(url, store, registry, place.address, tokens, folder, environment)
        registry.close()
        store.close()


def lines_for(printed: str, client: str) -> str:
    """The lines of what an intent prints that somebody with this client types."""
    before, *sections = re.split(r"\n# (?=With |Then:)", printed)
    own = [one for one in sections if one.startswith(f"With {client}")]
    last = [one for one in sections if one.startswith("Then:")]
    found = [before, *(one.partition("\n")[2] for one in (*own, *last))]
    return "\n".join(found)


def digest_in(printed: str) -> str:
    """That of the manifest that completing prints, below what a client says."""
    found = re.search(r'digest: "(sha256:[0-9a-f]{64})"', printed)
    assert found is not None
    return found[1]


def test_oras(host: Host) -> None:
    (host.folder / "notes.txt").write_text(f"notes {uuid.uuid4()}")
    script = lines_for(host.publish("1.0.0", "--channel canary"), "oras")
    manifest = host.run(script, FILES="notes.txt:text/plain")
    digest = digest_in(manifest)
    assert host.exists(digest)
    pulled = host.folder / "pulled"
    pulled.mkdir()
    accept_artifact(host, "1.0.0", digest)
    again = lines_for(pull(host, f"{REPOSITORY}@{digest}"), "oras")
    host.run(again.replace("oras pull", "oras pull -o pulled"))
    assert (pulled / "notes.txt").read_text() == (host.folder / "notes.txt").read_text()


def test_skopeo(host: Host) -> None:
    image = small_image(f"skopeo {uuid.uuid4()}")
    images.write_layout(image, host.folder / "build", "it")
    script = lines_for(host.publish("2.0.0", "--channel canary"), "skopeo")
    digest = digest_in(host.run(script, SOURCE="oci:build:it"))
    # It packs layers that are not packed, and says what it pushed then.
    assert host.exists(digest)
    accept_artifact(host, "2.0.0", digest)
    host.run(lines_for(pull(host, "acme/lab/notebook/2.0.0/image"), "skopeo"))
    kept = host.folder / "notebook" / "blobs" / "sha256" / digest.removeprefix("sha256:")
    assert str(Digest.of(kept.read_bytes())) == digest


def test_docker(host: Host, docker_host: str) -> None:
    name = f"mine:{uuid.uuid4().hex[:8]}"
    docker = {"DOCKER_HOST": docker_host}
    content = images.build_site("3.0.0")
    images.write_layout(content, host.folder / "site", "it")
    host.run(f"skopeo copy -q oci:site:it docker-archive:site.tar:{name}")
    host.run("docker load -q -i site.tar", **docker)
    script = lines_for(host.publish("3.0.0", "--channel canary"), "docker")
    digest = digest_in(host.run(script, IMAGE=name, **docker))
    assert host.exists(digest)
    accept_artifact(host, "3.0.0", digest)
    pulled = host.run(lines_for(pull(host, f"{REPOSITORY}@{digest}"), "docker"), **docker)
    assert digest in pulled


def pull(host: Host, named: str) -> str:
    return host.run(f"gpuaas intent pull acme/lab {named} --server {host.url}")


def accept_artifact(host: Host, version: str, digest: str) -> None:
    """As if the manifest that completing printed was committed."""
    at: dict[str, Any] = {"endpoint": host.endpoint.endpoint, "plain_http": True}
    kept = [
        artifact(ref.removeprefix("Artifact/"), **own(stored.document_json))
        for ref, stored in host.store.accepted().objects.items()
        if ref.startswith("Artifact/")
    ]
    new = artifact(f"acme/lab/notebook/{version}/image", digest)
    accept(host.store, *world(*kept, new, **at))


def own(document_json: str) -> dict[str, Any]:
    spec: dict[str, Any] = json.loads(document_json)["spec"]
    return spec


# --- what a credential can't do, by the registry's own word --------------------------------------


def test_a_publish_credential_pushes_to_its_place_and_nowhere_else(host: Host) -> None:
    found, other = host.publish_json(), host.publish_json()
    password = host.password(found)
    mine, canonical = found["place"], found["repository"]
    scopes = [f"repository:{one}:pull,push,delete" for one in (mine, canonical, other["place"])]
    token = host.bearer_for(found, password, *scopes, "registry:catalog:*")
    assert host.ask_registry(token, "POST", f"{mine}/blobs/uploads/") == 202
    for place in (canonical, other["place"], "gpuaas/intents", f"{mine}/below"):
        assert host.ask_registry(token, "POST", f"{place}/blobs/uploads/") == 401, place
        assert host.ask_registry(token, "GET", f"{place}/tags/list") == 401, place
    assert host.ask_registry(token, "DELETE", f"{mine}/manifests/sha256:{'0' * 64}") == 401
    assert host.ask_registry(token, "GET", "_catalog") == 401


def test_a_pull_credential_pulls_one_artifact_and_pushes_nothing(host: Host) -> None:
    shared = f"gpuaas/apps/globex/lab/notebook@{small_image('shared').manifest_digest}"
    found = json.loads(
        host.run(f"gpuaas intent pull acme/lab {shared} --server {host.url} --format json")
    )
    place, theirs = found["place"], "gpuaas/apps/globex/lab/notebook"
    asked = [f"repository:{one}:pull,push" for one in (place, theirs)]
    token = host.bearer_for(found, host.password(found), *asked)
    hidden = small_image("hidden").manifest_digest
    assert host.ask_registry(token, "GET", f"{place}/manifests/{found['digest']}") == 200
    assert host.ask_registry(token, "GET", f"{place}/manifests/{hidden}") == 404
    assert host.ask_registry(token, "GET", f"{theirs}/manifests/{hidden}") == 401
    assert host.ask_registry(token, "GET", f"{theirs}/manifests/{found['digest']}") == 401
    assert host.ask_registry(token, "POST", f"{place}/blobs/uploads/") == 401
    refused = host.try_(
        f"gpuaas intent pull acme/lab gpuaas/apps/globex/lab/notebook@{hidden} --server {host.url}"
    )
    assert refused.returncode == 1
    assert "no_such_artifact" in refused.stderr


def test_one_that_was_closed_or_completed_buys_no_token(host: Host) -> None:
    closed, found = host.publish_json(), host.publish_json()
    passwords = host.password(closed), host.password(found)
    host.run(f"gpuaas intent close {closed['id']} --server {host.url}")
    assert host.ask_token(closed["id"], passwords[0]).status_code == 401
    assert host.ask_token(found["id"], passwords[0]).status_code == 401
    token = host.bearer_for(found, passwords[1], f"repository:{found['place']}:pull,push")
    image = small_image(f"completed {uuid.uuid4()}")
    digest = images.push(image, host.endpoint.endpoint, found["place"], "9.9.9", token)
    command = f"gpuaas intent complete {found['id']} --server {host.url} --digest {digest}"
    assert host.try_(command).returncode == 2, "it is not signed, and stable asks for that"
    assert host.ask_token(found["id"], passwords[1]).status_code == 401

    # A token that was bought before lasts a little, and moves nothing that counts.
    other = small_image(f"moved {uuid.uuid4()}")
    images.push(other, host.endpoint.endpoint, found["place"], "9.9.9", token)
    assert host.exists(str(digest))
    assert not host.exists(str(other.manifest_digest))
    moved = host.try_(command.replace(str(digest), str(other.manifest_digest)))
    assert moved.returncode == 1
    assert "transfer_completed" in moved.stderr


def test_no_secret_is_in_what_is_printed_or_passed_on(
    host: Host, capfd: pytest.CaptureFixture[str]
) -> None:
    configure_logging("debug")
    printed = host.publish("4.0.0", "--channel canary")
    found = re.search(r"intent-([0-9a-f]{26})\.token", printed)
    assert found is not None
    kept = host.folder / f"intent-{found[1]}.token"
    assert kept.stat().st_mode & 0o077 == 0
    host.run("\n".join(line for line in printed.splitlines() if line.startswith("gpuaas unwrap")))
    secret = (host.folder / f"intent-{found[1]}.password").read_text().strip()
    bought = host.ask_token(found[1], secret).json()["token"]
    basic = base64.b64encode(f"{found[1]}:{secret}".encode()).decode()
    told = "".join(capfd.readouterr()) + repr([row.entry for row in host.store.audit(0, 10_000)])
    for one in (secret, kept.read_text().strip(), bought, basic):
        assert one not in told
        assert one not in printed
