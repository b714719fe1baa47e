"""Every server test runs over both stores."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.server.auth_world import KEY, Pair, accept, ci_account
from tests.server.harness import Plane, a_store, running


@pytest.fixture(params=["memory", "sqlite"])
def plane(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Plane]:
    with a_store(request.param, tmp_path) as store, running(store) as plane:
        yield plane


@pytest.fixture
def ci(plane: Plane) -> Pair:
    """A service account with one key."""
    accept(plane.store, ci_account(KEY.entry()))
    return KEY
