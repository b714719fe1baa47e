"""Both stores, in memory and in SQL, for the suites that hold for either."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from reconciler.adapters.store_sql import SqlStore
from reconciler.ports import Store
from tests.fakes.store import MemoryStore


@pytest.fixture(params=["memory", "sqlite"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    if request.param == "memory":
        yield MemoryStore()
        return
    real = SqlStore.open(f"sqlite:///{tmp_path / 'store.db'}")
    yield real
    real.close()
