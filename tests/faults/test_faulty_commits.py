"""Random mishaps in a state repo on which a fleet runs: nothing is removed that nobody meant to.

Each case is one to three commits in a row, each with one to five mishaps, and then the revert. A
failure prints its seed:

    GPUAAS_FAULT_SEED=4711 pytest tests/faults/test_faulty_commits.py

The seeds are the same in every run, so that a change is judged by its own work. With
`GPUAAS_FAULT_CASES=20000` there are more, and half of them are new each time.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from tests.faults import faults, oracle
from tests.faults.fleet import Decision, Fleet, Pipeline, Tree

ASKED = os.environ.get("GPUAAS_FAULT_CASES")
CASES = int(ASKED or 320)
CHUNKS = 4
FAULTS_MIN = 1_000


@dataclass
class Case:
    """One seed: what was done to the repo, and what there was to object to."""

    seed: int
    done: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    removals: int = 0
    held: int = 0

    def __str__(self) -> str:
        lines = [f"GPUAAS_FAULT_SEED={self.seed}", *self.done, *(f"=> {w}" for w in self.wrong)]
        return "\n  ".join(lines)


def run_case(fleet: Fleet, seed: int) -> Case:
    """Commits with mishaps on top of each other, then the revert."""
    rng, case = random.Random(seed), Case(seed)
    tree: Tree = dict(fleet.tree)
    last, agreed = fleet.first.accepted, set[str]()
    for number in range(rng.choice((1, 1, 2, 3))):
        done = faults.damage(tree, rng)
        case.done += [f"commit {number + 1}: {what}" for what in done]
        decision = fleet.commit(tree, last=last)
        found = [
            *oracle.removals_nobody_meant(decision.plan, tree, agreed),
            *oracle.changes_nobody_meant(decision.plan, tree),
        ]
        case.wrong += [f"commit {number + 1}: {what}" for what in found]
        case.removals += sum(action.kind == "remove" for action in decision.plan.ready)
        case.held += len(decision.plan.held)
        last = decision.accepted
        if rng.random() < 0.1:
            case.wrong += differences(fleet, tree, decision)
    reverted = fleet.revert(last)
    if reverted.plan.actions or reverted.state.problems or reverted.desired.held:
        case.wrong.append(f"the revert is not empty: {reverted.plan.actions}")
    return case


def differences(fleet: Fleet, tree: Tree, first: Decision) -> Iterator[str]:
    """A second pass over the same revision comes to the same, and so does a fresh process."""
    again = fleet.commit(tree, last=first.accepted)
    if again.plan.actions != first.plan.actions:
        yield f"the second pass differs: {again.plan.actions}"
    fresh = Fleet(Pipeline(memory=None)).commit(
        tree, last=first.accepted, records=fleet.first.records, observed=fleet.observed
    )
    if (fresh.plan, fresh.state.problems) != (again.plan, again.state.problems):
        yield "a fresh process decides otherwise"


@pytest.fixture(scope="module")
def fleet() -> Fleet:
    return Fleet()


def seeds(chunk: int) -> Iterator[int]:
    """The same in every run; half of them new ones where a number was asked for."""
    said = os.environ.get("GPUAAS_FAULT_SEED")
    if said is not None:
        yield from [int(said)] if chunk == 0 else []
        return
    each = CASES // CHUNKS // (2 if ASKED else 1)
    yield from range(chunk * each, (chunk + 1) * each)
    if not ASKED:
        return
    fresh = random.SystemRandom().randrange(1_000_000, 2**40)
    print(f"fresh seeds from {fresh}")
    yield from range(fresh, fresh + each)


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_no_mishap_removes_what_nobody_meant_to(fleet: Fleet, chunk: int) -> None:
    cases = [run_case(fleet, seed) for seed in seeds(chunk)]
    wrong = [str(case) for case in cases if case.wrong]
    assert not wrong, f"{len(wrong)} of {len(cases)} cases:\n" + "\n".join(wrong[:10])
    if len(cases) > 1:
        assert sum(len(case.done) for case in cases) >= FAULTS_MIN * len(cases) // 320
        assert any(case.removals for case in cases), "no case had anything to remove"


def test_a_fleet_at_rest_has_nothing_to_do(fleet: Fleet) -> None:
    assert fleet.first.desired.held == {}
    assert fleet.first.state.problems == ()
    assert len(fleet.first.desired.targets) == len(oracle.placed())
    assert fleet.commit(fleet.tree).plan.empty


def test_line_ends_and_byte_order_marks_mean_nothing(fleet: Fleet) -> None:
    for seed in range(5):
        tree, rng = dict(fleet.tree), random.Random(seed)
        for fault in faults.HARMLESS:
            fault(tree, rng)
        decision = fleet.commit(tree)
        assert (decision.plan.empty, decision.state.problems) == (True, ())


def test_every_mishap_takes_place() -> None:
    seen: Counter[str] = Counter()
    for seed in range(300):
        tree: Tree = dict(Fleet().tree)
        seen.update(what.partition(":")[0] for what in faults.damage(tree, random.Random(seed)))
    assert set(seen) == {fault.__name__ for fault in faults.FAULTS}
