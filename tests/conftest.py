"""Services that several tests share, each started once a session and always ended.

A test that needs one is marked `real` by asking for its fixture; one that asks for it as it runs
says so itself. Under xdist all of them run on one worker, so that there is one Docker and one
registry, while the others run the rest. A Vault takes a second and little memory: every worker that
needs one has its own. Where a service can't be had the test fails: a suite that skips what matters
would pass on any machine.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import structlog
from hypothesis import settings

from node_agent.wire import Image
from reconciler.devkit import images, services
from reconciler.logs import TALKATIVE
from tests.services import go_tools
from tests.services.slots import service_slot
from tests.services.token_registry import TokenRegistry, open_token_registry
from tests.services.vault_place import VaultPlace, vault_place
from tests.services.vault_server import OtherVault, VaultServer, other_vault

REAL_FIXTURES = {
    "service_root", "docker_host", "registry_endpoint", "site_image", "demo_image",
    "token_registry",
}  # fmt: skip
DEMO_REPOSITORY = "gpuaas/apps/research/site"

# Two busy cores make single examples slow now and then; a deadline would test the machine.
settings.register_profile("gpuaas", deadline=None, print_blob=True)
settings.load_profile("gpuaas")


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    """What a test says of logging is over with it: the next one may look for lines of its own."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    before = structlog.get_config()
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.configure(**before)
    for name in TALKATIVE:
        logging.getLogger(name).setLevel(logging.NOTSET)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> Iterator[None]:
    for item in items:
        if REAL_FIXTURES.intersection(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.real)
        if item.get_closest_marker("real") and not item.get_closest_marker("xdist_group"):
            item.add_marker(pytest.mark.xdist_group("real"))
    yield
    _keep_groups_together(items)


def _keep_groups_together(items: list[pytest.Item]) -> None:
    """xdist 3.8 writes the group at the end of a test's id, where pytest 9.2 no longer reads it."""
    for item in items:
        named = vars(item).get("_nodeid")
        if named is not None and item.nodeid != named:
            item._id = type(item._id).parse(named)


@pytest.fixture(autouse=True)
def _logging_as_it_was() -> Iterator[None]:
    """A command run in this process sets up logging for good; the next test is not to get that."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = [handler for handler in root.handlers if handler in handlers]
    root.setLevel(level)


@pytest.fixture(autouse=True)
def _commits_count_whoever_signed_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Most tests are of what a commit leads to; those of who may make it say so."""
    monkeypatch.setenv("GPUAAS_SIGNATURES", "off")


@pytest.fixture(scope="session")
def service_root() -> Iterator[Path]:
    """A short folder for services, each in a subfolder. Ends a killed session's leftovers."""
    with service_slot() as slot:
        yield slot


@pytest.fixture(scope="session")
def docker_host(service_root: Path) -> Iterator[str]:
    """DOCKER_HOST of a private Docker, or of the existing one where no private one is possible."""
    impossible = services.docker_possible()
    existing = services.existing_docker() if impossible else None
    if existing:
        yield existing
    elif impossible:
        pytest.fail(f"the tests need Docker, and there is none to be had: {impossible}")
    else:
        with services.start_dockerd(service_root / "docker") as dockerd:
            yield dockerd.host


@pytest.fixture(scope="session")
def compose_program() -> Path:
    """Docker Compose v2, pinned."""
    return go_tools.program("docker-compose")


@pytest.fixture(scope="session")
def registry_endpoint(service_root: Path) -> Iterator[str]:
    """host:port of a private registry over plain HTTP; deleting is allowed."""
    with services.start_registry(service_root / "registry") as registry:
        yield registry.endpoint


@pytest.fixture(scope="session")
def token_registry(service_root: Path) -> Iterator[TokenRegistry]:
    """A private registry that lets in who has a token of ours, and a way to make those."""
    with open_token_registry(service_root / "token-registry") as registry:
        yield registry


@pytest.fixture(scope="session")
def site_image(registry_endpoint: str) -> Callable[[str], Image]:
    """Builds and pushes a web site that answers the given version on `/`, container port 8080."""

    def publish(version: str) -> Image:
        built = images.build_site(version)
        digest = images.push(built, registry_endpoint, DEMO_REPOSITORY, version)
        return Image(
            registry=registry_endpoint,
            plain_http=True,
            repository=DEMO_REPOSITORY,
            digest=str(digest),
        )

    return publish


@pytest.fixture(scope="session")
def vault() -> Iterator[VaultServer | OtherVault]:
    """A Vault that all tests of this worker share, each in a place of its own."""
    other = other_vault()
    if other is not None:
        yield other
        return
    with service_slot() as slot, VaultServer.start(slot / "vault") as server:
        yield server


@pytest.fixture
def own_vault(vault: VaultServer | OtherVault, tmp_path: Path) -> Iterator[VaultPlace]:
    """Set up as `gpuaas vault bootstrap` does it, for this test alone."""
    with vault_place(vault, tmp_path) as place:
        yield place


@pytest.fixture(scope="session")
def demo_image(site_image: Callable[[str], Image]) -> Image:
    """The site at version 1.0.0, pushed."""
    return site_image("1.0.0")
