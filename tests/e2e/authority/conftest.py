"""One control plane a module; each test leaves it as it was."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.authority.red_team import RedTeam


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Under xdist, all of a module on one worker: they share its control plane."""
    for item in items:
        if item.path.parent == Path(__file__).parent:
            item.add_marker(pytest.mark.xdist_group(f"authority/{item.path.stem}"))


@pytest.fixture(scope="module")
def _begun(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedTeam]:
    made = RedTeam(tmp_path_factory.mktemp("red"))
    try:
        made.begin()
        yield made
    finally:
        made.stop()


@pytest.fixture
def team(_begun: RedTeam) -> Iterator[RedTeam]:
    """Everything is as in the first commit; whatever the test does is undone after it."""
    _begun.new_test()
    yield _begun
    _begun.undo()


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[RedTeam]:
    """One that nobody has begun yet."""
    made = RedTeam(tmp_path)
    yield made
    made.stop()
