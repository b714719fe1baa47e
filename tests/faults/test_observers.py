"""Commits that remove something, seen by observers that don't answer, lie behind, or forgot.

Rules on trial: nothing is removed on the word of a node that did not answer, nothing that we have
no record of, and nothing because our own store was lost.
"""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from node_agent.wire import Phase
from reconciler.core.names import InstanceKey
from reconciler.core.observed import Known, Observed, Unknown
from reconciler.core.records import Accepted
from tests.faults import faults, oracle, repo
from tests.faults.fleet import Decision, Fleet, Tree, node_seen

SILENT = ("node_offline", "engine_unavailable", "report_unreadable", "node_never_reported")
SEEDS = range(60)


@pytest.fixture(scope="module")
def fleet() -> Fleet:
    return Fleet()


def damaged(fleet: Fleet, rng: random.Random) -> Tree:
    """Two instances deleted for sure, on top of whatever else goes wrong."""
    tree: Tree = dict(fleet.tree)
    faults.damage(tree, rng)
    for one in rng.sample(oracle.placed(), 2):
        tree.pop(one.path, None)
    return tree


def silenced(observed: Observed, rng: random.Random) -> Observed:
    """Every node by chance is as it was, did not answer, or never joined."""
    nodes = dict(observed.nodes)
    for name in repo.NODES:
        luck = rng.random()
        if luck < 0.4:
            nodes[name] = Unknown(rng.choice(SILENT), f"node {name} is silent")
        elif luck < 0.5:
            del nodes[name]
    return replace(observed, nodes=nodes)


def stale(observed: Observed, rng: random.Random) -> Observed:
    """Reports from before: other targets, workloads missing, teardowns that were proved then."""
    nodes = dict(observed.nodes)
    for name, seen in observed.nodes.items():
        if not isinstance(seen, Known):
            continue
        kept = {key: one for key, one in seen.value.workloads.items() if rng.random() < 0.7}
        for key in [key for key in kept if rng.random() < 0.2]:
            other = {"target_hash": "0" * 64, "running_hash": "0" * 64}
            gone = {"target_hash": None, "running_hash": None, "phase": Phase.REMOVED}
            kept[key] = kept[key].model_copy(update=rng.choice((other, gone)))
        nodes[name] = Known(replace(seen.value, workloads=kept))
    return replace(observed, nodes=nodes)


def carried_out(decision: Decision) -> list[tuple[str, str]]:
    return [(a.kind, a.node) for a in decision.plan.ready if a.kind != "move"]


def acts_on_silence(fleet: Fleet, seed: int) -> list[str]:
    """What a plan would do on nodes that did not answer."""
    rng = random.Random(seed)
    tree = damaged(fleet, rng)
    observed = silenced(fleet.observed, rng)
    decision = fleet.commit(tree, observed=observed)
    answered = {n for n, seen in observed.nodes.items() if isinstance(seen, Known)}
    found = [f"{kind} on {node}" for kind, node in carried_out(decision) if node not in answered]
    return [*found, *oracle.removals_nobody_meant(decision.plan, tree, set())]


@pytest.mark.parametrize("seed", SEEDS)
def test_a_node_that_does_not_answer_is_left_alone(fleet: Fleet, seed: int) -> None:
    assert acts_on_silence(fleet, seed) == []


@pytest.mark.parametrize("seed", SEEDS)
def test_reports_that_lie_behind_remove_nothing_more(fleet: Fleet, seed: int) -> None:
    rng = random.Random(seed)
    tree = damaged(fleet, rng)
    decision = fleet.commit(tree, observed=stale(fleet.observed, rng))
    assert list(oracle.removals_nobody_meant(decision.plan, tree, set())) == []


@pytest.mark.parametrize("seed", SEEDS)
def test_a_lost_store_removes_nothing(fleet: Fleet, seed: int) -> None:
    """No records, and no accepted forms to fall back on: what is broken is left running."""
    rng = random.Random(seed)
    tree, agreed = damaged(fleet, rng), set[str]()
    decision = fleet.commit(
        tree, last=Accepted(), records={}, observed=silenced(fleet.observed, rng)
    )
    assert list(oracle.removals_nobody_meant(decision.plan, tree, agreed)) == []
    assert not [a for a in decision.plan.actions if a.reason == "its manifest was removed"]
    again = fleet.commit(tree, last=decision.accepted, records=decision.records)
    assert list(oracle.removals_nobody_meant(again.plan, tree, agreed)) == []


def test_a_lost_store_takes_over_what_runs(fleet: Fleet) -> None:
    decision = fleet.commit(fleet.tree, last=Accepted(), records={})
    assert decision.plan.empty
    assert decision.records.keys() == fleet.first.records.keys()


@pytest.mark.parametrize("seed", SEEDS)
def test_records_that_are_gone_take_nothing_with_them(fleet: Fleet, seed: int) -> None:
    rng = random.Random(seed)
    tree = damaged(fleet, rng)
    kept = {k: r for k, r in fleet.first.records.items() if rng.random() < 0.5}
    decision = fleet.commit(tree, records=kept)
    gone = {a.instance for a in decision.plan.actions if a.reason == "its manifest was removed"}
    assert gone <= kept.keys()
    assert list(oracle.removals_nobody_meant(decision.plan, tree, set())) == []


def test_a_node_that_lost_everything_is_given_it_again(fleet: Fleet) -> None:
    observed = replace(fleet.observed, nodes={**fleet.observed.nodes, "gpu-1": node_seen("gpu-1")})
    plan = fleet.commit(fleet.tree, observed=observed).plan
    there = {one.key for one in oracle.placed() if one.node == "gpu-1"}
    stopped = {
        key
        for key in there
        if fleet.first.desired.targets[InstanceKey(key)].instance.run == "stopped"
    }
    assert {a.instance for a in plan.actions} == there - stopped
    assert {a.kind for a in plan.actions} == {"launch"}
