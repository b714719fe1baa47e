"""Platforms for the end-to-end tests, each stopped and cleaned up after its test."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from reconciler.devkit.state_repo import Published
from tests.e2e.platform import Platform, publish_to_layout, publish_to_registry


@pytest.fixture(scope="session")
def published(registry_endpoint: str) -> Published:
    """Both versions of the site in the registry, for Docker."""
    return publish_to_registry(registry_endpoint)


@pytest.fixture
def platform(tmp_path: Path, docker_host: str, published: Published) -> Iterator[Platform]:
    """Control plane and agent on Docker, started."""
    made = Platform(tmp_path, published, docker_host)
    try:
        made.start()
        yield made
    finally:
        made.stop()


@pytest.fixture
def process_platform(tmp_path: Path) -> Iterator[Callable[..., Platform]]:
    """Makes platforms on the process engine with these settings; the test starts them."""
    made: list[Platform] = []

    def make(settings: Mapping[str, str] | None = None) -> Platform:
        root = tmp_path / f"platform-{len(made)}"
        root.mkdir()
        made.append(Platform(root, publish_to_layout(root / "images"), settings=settings))
        return made[-1]

    yield make
    for one in made:
        one.stop()
