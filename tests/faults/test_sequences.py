"""Twenty faulty commits in a row through whole passes, with nodes away and crashes; then a repair.

After each step, what ran and was not meant to go still runs. After the repair everything does, the
next plan is empty, and no event was told twice. A failure prints its seed:

    GPUAAS_FAULT_SEED=4711 pytest tests/faults/test_sequences.py

`GPUAAS_FAULT_SEQUENCES=100` runs more of them.
"""

from __future__ import annotations

import os
import random

import pytest

from reconciler.core.records import State
from tests.faults import faults, oracle, repo
from tests.faults.fleet import Tree
from tests.faults.passes import World, names
from tests.faults.test_told_mishaps import rename

ASKED = os.environ.get("GPUAAS_FAULT_SEQUENCES")
SEQUENCES = int(ASKED or 3)
COMMITS = 20


def seed_of(number: int) -> int:
    """The same in every run; the last one is new where a number was asked for."""
    said = os.environ.get("GPUAAS_FAULT_SEED")
    if said is not None:
        return int(said)
    if not ASKED or number < SEQUENCES - 1:
        return number
    return random.SystemRandom().randrange(1_000_000, 2**40)


def one_commit(world: World, tree: Tree, agreed: set[str]) -> list[str]:
    """Pushes it, lets nodes come and go, and runs passes, some of which die."""
    rng, wrong = world.rng, list[str]()
    for node in world.nodes:
        node.away = rng.random() < 0.25
    world.push(tree)
    for _ in range(rng.choice((1, 2, 3))):
        begun = world.leaving()
        world.crash_rate = rng.choice((0.0, 0.0, 0.05))
        done = world.try_pass()
        world.crash_rate = 0.0
        oracle.note_agreed(tree, agreed)
        if done is not None:
            wrong += oracle.removals_nobody_meant(done.plan, tree, agreed, begun)
        world.clock.advance(rng.choice((1_000, 20_000, 60_000)))
        for node in world.nodes:
            if not node.away and rng.random() < 0.2:
                node.report(world.clock.now_ms(), complete=False)
        world.nodes_work()
    return wrong


@pytest.mark.parametrize("number", range(SEQUENCES))
def test_what_was_not_meant_to_go_still_runs(number: int) -> None:
    seed = seed_of(number)
    world, agreed, ever, story = World.build(seed), set[str](), set[str](), list[str]()
    tree: Tree = {**repo.files()}
    everything = {
        path: text.replace(b": stopped", b": running") for path, text in repo.files().items()
    }
    for start in (Tree(everything), tree):
        world.push(start)
        world.converge()
    assert world.running().keys() == names()
    for commit in range(1, COMMITS + 1):
        if world.rng.random() < 0.3:
            tree = {**repo.files()}
        story += [f"commit {commit}: {what}" for what in faults.damage(tree, world.rng)]
        wrong = one_commit(world, tree, agreed)
        ever |= agreed | oracle.leaving(tree)
        lost = names() - world.running().keys() - ever
        told = "\n  ".join([f"GPUAAS_FAULT_SEED={seed}", *story])
        assert not wrong, f"{told}\n  => {wrong}"
        assert not lost, f"{told}\n  => {lost} no longer run"
    for node in world.nodes:
        node.away = False
    world.push({**repo.files()})
    world.nodes_work()
    done = world.converge()
    assert done.plan.empty
    stopped = {one.key for one in oracle.placed() if one.name.endswith("-6")}
    assert names() - world.running().keys() <= stopped & ever, "what is stopped is not started"
    assert world.removed() & names() <= ever
    assert world.told_twice() == []


def test_a_rename_and_its_revert_restart_nothing() -> None:
    world, tree = World.build(0), Tree(repo.files())
    world.push(tree)
    world.converge()
    started = [len(node.launches) for node in world.nodes]
    for edit in rename("tenants/globex/projects/etl/instances/etl-0.yaml", "other"):
        edit(tree)
    for step, name in ((tree, "other"), (Tree(repo.files()), "etl-0")):
        world.push(step)
        assert world.converge().plan.empty
        there = {k for k, r in world.store.records().items() if r.state is State.RUNNING}
        assert {"globex/etl/other", "globex/etl/etl-0"} & there == {f"globex/etl/{name}"}
    assert [len(node.launches) for node in world.nodes] == started
    assert world.removed() == set()
