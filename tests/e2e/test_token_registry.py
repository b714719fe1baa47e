"""A platform whose registry lets in nobody without a token: who gets one, and for what."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from docker.errors import APIError

from node_agent.artifact_wire import PullTokenRequest
from node_agent.clock import SystemClock
from node_agent.link import AgentKey, Away, Credentials, Link
from node_agent.state import StateStore
from reconciler.devkit import images
from reconciler.devkit.services import free_port
from reconciler.devkit.state_repo import Published
from tests.e2e.platform import AGENT, INSTANCE, REPOSITORY, VERSIONS, Platform
from tests.services.token_registry import TokenRegistry, open_token_registry

OLD, NEW = VERSIONS
OTHERS = "gpuaas/apps/borealis/vision/secret"


@dataclass
class Fenced:
    platform: Platform
    registry: TokenRegistry


@pytest.fixture
def fenced(tmp_path: Path, docker_host: str, service_root: Path) -> Iterator[Fenced]:
    """Control plane and agent on Docker, started, and the registry that believes their tokens."""
    port = free_port()
    digests = {version: str(images.build_site(version).manifest_digest) for version in VERSIONS}
    published = Published(f"127.0.0.1:{port}", None, digests, token_auth=True)
    platform = Platform(tmp_path, published, docker_host)
    root, state = service_root / "e2e-token-registry", tmp_path / "state"
    with open_token_registry(root, port, state, platform.listen) as registry:
        for version in VERSIONS:
            push(registry, REPOSITORY, version)
        push(registry, OTHERS, OLD)
        try:
            platform.start()
            yield Fenced(platform, registry)
        finally:
            platform.stop()


def push(registry: TokenRegistry, repository: str, version: str) -> None:
    built = images.build_site(version)
    images.push(built, registry.endpoint, repository, version, registry.push_token(repository))


def read(registry: TokenRegistry, token: str, repository: str, digest: str) -> int:
    headers = {"Authorization": f"Bearer {token}", "Accept": images.MANIFEST_TYPE}
    url = f"http://{registry.endpoint}/v2/{repository}/manifests/{digest}"
    return httpx.get(url, headers=headers, trust_env=False).status_code


def test_it_runs_on_a_registry_that_asks_for_tokens(fenced: Fenced) -> None:
    platform, registry = fenced.platform, fenced.registry
    platform.wait_settled("running")
    assert platform.page() == OLD
    platform.set_version(NEW)
    platform.commit(f"hello {NEW}")
    platform.wait_settled("running")
    assert platform.page() == NEW

    checked = platform.gpuaas("registry", "check")
    assert checked.returncode == 0, checked.stderr
    assert checked.stdout == (
        f"{registry.endpoint} lets in a token of this control plane, and nobody without one\n"
    )
    with pytest.raises(APIError, match=r"(?i)unauthorized|no basic auth|denied"):
        platform.docker.api.pull(f"{registry.endpoint}/{REPOSITORY}", tag=OLD)
    said = "".join(path.read_text() for path in platform.root.glob("*.log"))
    assert "pull_token_issued" in said
    assert "eyJ" not in said, "a token is in a log"


def test_an_agent_gets_no_token_for_what_is_not_its_own(fenced: Fenced) -> None:
    platform, registry = fenced.platform, fenced.registry
    platform.wait_settled("running")
    platform.kill(AGENT)
    ours, theirs = platform.published.digests[OLD], platform.published.digests[NEW]
    store = StateStore(platform.root / AGENT, 0)
    identity = store.identity
    assert identity is not None
    key = AgentKey.from_hex(identity.private_key)
    link = Link(identity.server, key, lambda: Credentials(identity.ca, identity.certificate))

    def ask(repository: str, digest: str, instance: str = INSTANCE, node: str = "") -> str:
        request = PullTokenRequest(
            node=node or platform.node, sent_at_ms=SystemClock().now_ms(), instance=instance,
            repository=repository, digest=digest,
        )  # fmt: skip
        return link.pull_token(request).token

    try:
        token = ask(REPOSITORY, ours)
        for wanted, code in (
            ((OTHERS, ours), "not_its_image"),
            ((REPOSITORY, theirs), "not_its_image"),
            ((REPOSITORY, ours, "acme/research/other"), "not_placed"),
            ((REPOSITORY, ours, INSTANCE, "node-b"), "wrong_node"),
        ):
            with pytest.raises(Away, match=f"^{code}: "):
                ask(*wanted)
    finally:
        link.close()
        store.close()
    assert read(registry, token, REPOSITORY, ours) == 200
    assert read(registry, token, OTHERS, ours) == 401
    headers = {"Authorization": f"Bearer {token}"}
    upload = f"http://{registry.endpoint}/v2/{REPOSITORY}/blobs/uploads/"
    assert httpx.post(upload, headers=headers, trust_env=False).status_code == 401
