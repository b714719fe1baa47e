"""What an agent shows a registry, and what comes of it when it has nothing to show."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from node_agent.artifact_wire import PullToken, PullTokenRequest
from node_agent.clock import SystemClock
from node_agent.engines.base import EngineFailure, PullCredential
from node_agent.engines.docker import DockerEngine
from node_agent.link import Away, Link
from node_agent.pull_credentials import PullCredentials
from node_agent.state import StateStore
from node_agent.wire import FailureReason, Image, Workload
from reconciler.devkit import images
from tests.services.token_registry import TokenRegistry

REPOSITORY = "gpuaas/apps/acme/research/pulled"
IMAGE = Image(registry="127.0.0.1:1", repository=REPOSITORY, digest="sha256:" + "a" * 64)
WORKLOAD = Workload(instance="acme/research/hello", engine="docker", image=IMAGE)
AWAY = Away("unreachable", "the control plane does not answer (ConnectError)")


@dataclass
class FakeLink:
    """A control plane that gives one token, or nothing."""

    answer: PullToken | Away
    asked: list[PullTokenRequest] = field(default_factory=list)

    def pull_token(self, request: PullTokenRequest) -> PullToken:
        self.asked.append(request)
        if isinstance(self.answer, Away):
            raise self.answer
        return self.answer


@dataclass
class Joined:
    node: str = "node-a"


@dataclass
class FakeStore:
    identity: Joined | None = field(default_factory=Joined)


def asked(link: FakeLink, workload: Workload = WORKLOAD, store: Any = None) -> PullCredential:
    known = cast(StateStore, store or FakeStore())
    return PullCredentials(cast(Link, link), known, SystemClock()).of(workload, workload.image)


def test_it_asks_for_the_image_of_its_workload() -> None:
    link = FakeLink(PullToken(token="a token", expires_at_ms=1))
    found = asked(link)
    assert found == PullCredential("a token")
    assert "a token" not in repr(found)
    (request,) = link.asked
    assert (request.node, request.instance) == ("node-a", WORKLOAD.instance)
    assert (request.repository, request.digest) == (REPOSITORY, IMAGE.digest)


def test_it_asks_for_each_image_of_a_topology_by_its_own_name() -> None:
    link = FakeLink(PullToken(token="a token", expires_at_ms=1))
    other = IMAGE.model_copy(update={"repository": "gpuaas/apps/acme/research/other"})
    known = cast(StateStore, FakeStore())
    PullCredentials(cast(Link, link), known, SystemClock()).of(WORKLOAD, other)
    (request,) = link.asked
    assert (request.instance, request.repository) == (WORKLOAD.instance, other.repository)


def test_a_control_plane_that_is_away_stops_no_pull() -> None:
    assert asked(FakeLink(AWAY)) == PullCredential(missing=str(AWAY))


def test_a_folder_and_who_has_not_joined_ask_for_nothing() -> None:
    link = FakeLink(AWAY)
    layout = IMAGE.model_copy(update={"registry": "layout:/images"})
    assert asked(link, WORKLOAD.model_copy(update={"image": layout})) == PullCredential()
    assert asked(link, store=FakeStore(None)) == PullCredential()
    assert link.asked == []


# --- Docker --------------------------------------------------------------------------------------


@pytest.fixture
def engine(docker_host: str) -> Iterator[DockerEngine]:
    made = DockerEngine("node-pulls", docker_host)
    yield made
    made.close()


@pytest.fixture(scope="module")
def image(token_registry: TokenRegistry) -> Image:
    """In a registry that asks for tokens; nobody pulled it yet."""
    built = images.build_site("for who has a token")
    token = token_registry.push_token(REPOSITORY)
    digest = images.push(built, token_registry.endpoint, REPOSITORY, "1", token)
    return Image(registry=token_registry.endpoint, repository=REPOSITORY, digest=str(digest))


def pull(engine: DockerEngine, image: Image, shown: PullCredential) -> None:
    engine.pull(image, threading.Event(), lambda: shown)


def test_docker_pulls_with_a_token_and_not_without(
    engine: DockerEngine, image: Image, token_registry: TokenRegistry
) -> None:
    with pytest.raises(EngineFailure):
        pull(engine, image, PullCredential())

    others = token_registry.mint({"gpuaas/apps/acme/research/other": ("pull",)})
    with pytest.raises(EngineFailure) as failed:
        pull(engine, image, PullCredential(others))
    said = "; it was shown a token of the control plane: gpuaas registry check"
    assert failed.value.message.endswith(said)
    assert others not in failed.value.message
    assert (failed.value.reason, failed.value.transient) == (FailureReason.IMAGE_PULL_FAILED, True)

    with pytest.raises(EngineFailure) as failed:
        pull(engine, image, PullCredential(missing=str(AWAY)))
    said = f"; there was no credential for the registry: {AWAY}"
    assert failed.value.message.endswith(said)
    assert (failed.value.reason, failed.value.transient) == (FailureReason.IMAGE_PULL_FAILED, True)

    pull(engine, image, PullCredential(token_registry.mint({REPOSITORY: ("pull",)})))
    # It is there now, and nobody is asked for anything.
    engine.pull(image, threading.Event(), never)


def never() -> PullCredential:
    raise AssertionError("asked for a credential although the image is there")


def test_what_is_missing_for_want_of_a_credential_may_come(
    engine: DockerEngine, registry_endpoint: str
) -> None:
    """A registry may say "not found" to who shows nothing: that is not taken for its last word."""
    nowhere = IMAGE.model_copy(update={"registry": registry_endpoint})
    with pytest.raises(EngineFailure) as failed:
        pull(engine, nowhere, PullCredential())
    assert failed.value.reason is FailureReason.IMAGE_NOT_FOUND
    with pytest.raises(EngineFailure) as failed:
        pull(engine, nowhere, PullCredential(missing="not_placed: no such instance"))
    assert (failed.value.reason, failed.value.transient) == (FailureReason.IMAGE_PULL_FAILED, True)
