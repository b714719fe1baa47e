"""Bugs planted on purpose are caught, each by a rule that is about it, within its seeds."""

from __future__ import annotations

import pytest

from tests.sim.mutations import MUTATIONS, Mutation, caught, table


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_a_planted_bug_is_caught(mutation: Mutation, capsys: pytest.CaptureFixture[str]) -> None:
    found = caught(mutation)
    assert found is not None, f"not within {mutation.seeds_max} seeds: the simulator is too weak"
    with capsys.disabled():
        print("\n" + table([found]).splitlines()[-1], end="")
