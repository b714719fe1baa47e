"""Who waits for whom, and who follows whom."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from reconciler.core.accept import accept, parse_accepted
from reconciler.core.checks.graph import cycles_of
from reconciler.core.names import ObjectRef
from reconciler.core.resolve import Resolution, resolve
from reconciler.core.world import Path
from tests.core import builders as b


def fleet(**specs: Mapping[str, object]) -> b.Documents:
    """The small world with these instances; each changes its spec."""
    documents = b.world()
    for name, changes in {"one": {}, **specs}.items():
        path = f"{b.PROJECT}/instances/{name}.yaml"
        if path not in documents:
            b.add_instance(documents, name, gpu_count=0, cpu_cores=0.1, memory_gib=0.1)
        documents[path]["spec"].update(changes)
    return documents


def run(documents: b.Documents) -> Resolution:
    return resolve(b.objects(documents), b.ENVIRONMENT, b.REVISION)


REF = "AppInstance/acme/research/"
CASES: dict[str, tuple[b.Documents, str, str, set[str]]] = {
    "unknown": (
        fleet(two={"depends_on": ["onne"]}),
        "two /spec/depends_on/0",
        f"unknown_reference: {REF}onne does not exist (did you mean one?)",
        {"two"},
    ),
    "unknown and nothing like it": (
        fleet(two={"depends_on": ["zzzzzzzz"]}),
        "two /spec/depends_on/0",
        f"{REF}zzzzzzzz does not exist (add {b.PROJECT}/instances/zzzzzzzz.yaml)",
        {"two"},
    ),
    "itself": (
        fleet(two={"depends_on": ["one", "two"]}),
        "two /spec/depends_on/1",
        "dependency_cycle: depends on itself (take it out of depends_on)",
        {"two"},
    ),
    "each other": (
        fleet(two={"depends_on": ["three"]}, three={"depends_on": ["one", "two"]}),
        "three /spec/depends_on/1",
        "dependency_cycle: depends on itself: three → two → three "
        "(take one of these out of a depends_on)",
        {"two", "three"},
    ),
    "three in a ring, and one that waits for them": (
        fleet(
            a={"depends_on": ["b"]},
            b={"depends_on": ["c"]},
            c={"depends_on": ["a"]},
            d={"depends_on": ["a"]},
        ),
        "a /spec/depends_on/0",
        "depends on itself: a → b → c → a",
        {"a", "b", "c"},
    ),
    "stopped": (
        fleet(one={"desired": "stopped"}, two={"depends_on": ["one"]}),
        "two /spec/depends_on/0",
        f"dependency_not_running: waits for {REF}one, which is stopped "
        "(let that one run, stop this one, or take it out of depends_on)",
        {"one", "two"},
    ),
    "decommissioned": (
        fleet(one={"desired": "decommissioned"}, two={"depends_on": ["one"]}),
        "two /spec/depends_on/0",
        f"waits for {REF}one, which is decommissioned",
        {"one", "two"},
    ),
    "moved from itself": (
        fleet(two={"moved_from": "two"}),
        "two /spec/moved_from",
        "moved_from_present: moved from itself (take moved_from out)",
        {"two"},
    ),
    "moved from one that is still there": (
        fleet(two={"moved_from": "one"}),
        "two /spec/moved_from",
        f"moved_from_present: moved from {REF}one, which is still declared "
        f"(remove {REF}one, or take moved_from out)",
        {"one", "two"},
    ),
    "moved twice": (
        fleet(two={"moved_from": "gone"}, three={"moved_from": "gone"}),
        "two /spec/moved_from",
        f"moved_twice: {REF}gone moved to {REF}three already "
        "(an instance moves to one other: take moved_from out of all but one)",
        {"two", "three"},
    ),
}


@pytest.mark.parametrize(("documents", "where", "says", "blamed"), CASES.values(), ids=CASES.keys())
def test_what_cannot_be_depended_on_or_followed(
    documents: b.Documents, where: str, says: str, blamed: set[str]
) -> None:
    found = run(documents)
    (problem,) = found.problems
    assert f"{problem.object.rpartition('/')[2]} {problem.pointer}" == where
    assert says in str(problem)
    assert {ref.name for ref in found.blamed} == blamed


class _Counted(dict[Path, list[Path]]):
    """Edges that count how often they are followed."""

    followed = 0

    def __getitem__(self, path: Path) -> list[Path]:
        self.followed += 1
        return super().__getitem__(path)


def test_a_long_way_to_many_cycles_is_walked_once() -> None:
    """Attempted: a chain with a cycle at each member, which keeps a pass busy for minutes."""
    count, edges = 500, _Counted()
    for number in range(count):
        link, ring = ("t", "p", f"a{number:03}"), ("t", "p", f"b{number:03}")
        further = [("t", "p", f"a{number + 1:03}")] if number + 1 < count else []
        edges[link], edges[ring] = [*further, ring], [link]
    assert len(list(cycles_of(edges))) == count
    assert edges.followed <= 5 * count


def test_two_that_swap_names_are_both_told() -> None:
    found = run(fleet(one={"moved_from": "two"}, two={"moved_from": "one"}))
    assert {problem.code for problem in found.problems} == {"moved_from_present"}
    assert {problem.object for problem in found.problems} == {f"{REF}one", f"{REF}two"}


def test_what_may_be() -> None:
    ordered = fleet(two={"depends_on": ["one"]}, three={"depends_on": ["one", "two"]})
    assert run(ordered).problems == ()
    stopped = {"desired": "stopped"}
    assert run(fleet(one=stopped, two={**stopped, "depends_on": ["one"]})).problems == ()
    assert run(fleet(two={"moved_from": "gone"})).problems == ()
    leaving = {"desired": "decommissioned", "depends_on": ["nobody", "two"], "moved_from": "one"}
    assert run(fleet(two=leaving)).problems == ()


def test_a_dependency_in_quarantine_is_said_to_be() -> None:
    documents = fleet(two={"depends_on": ["one"]})
    objects = b.objects(documents)
    one = ObjectRef.parse(f"{REF}one")
    del objects[one]
    found = resolve(objects, b.ENVIRONMENT, b.REVISION, quarantined=frozenset({one}))
    (problem,) = found.problems
    assert (problem.code, problem.hint) == ("reference_quarantined", f"mend {one} first")


def test_acceptance_puts_back_the_whole_cycle() -> None:
    before = fleet(two={"depends_on": ["one"]}, three={})
    after = fleet(one={"depends_on": ["two"]}, two={"depends_on": ["one"]}, three={})
    state = accept(b.candidate(after), b.accepted(before), parse_accepted, b.ENVIRONMENT)
    assert {key: len(found.depends_on) for key, found in state.instances.items()} == {
        "acme/research/one": 0,
        "acme/research/two": 1,
        "acme/research/three": 0,
    }


def test_acceptance_lets_the_dependency_run_on() -> None:
    before = fleet(two={"depends_on": ["one"]})
    after = fleet(one={"desired": "stopped"}, two={"depends_on": ["one"]})
    state = accept(b.candidate(after), b.accepted(before), parse_accepted, b.ENVIRONMENT)
    assert {found.run for found in state.instances.values()} == {"running"}
    assert not state.held


Names = st.sampled_from("abcdefgh")


@example({"d": ["a", "d"], "c": ["d", "c"]})
@given(st.dictionaries(Names, st.lists(Names, max_size=4, unique=True), min_size=1))
def test_cycles_are_cycles_and_none_is_left_over(graph: dict[str, list[str]]) -> None:
    edges: dict[Path, list[Path]] = {
        (name,): [(to,) for to in targets if to in graph] for name, targets in graph.items()
    }
    found = [list(cycle) for cycle in cycles_of(edges)]
    members = [path for cycle in found for path in cycle]
    assert len(members) == len({*members})
    for cycle in found:
        assert cycle[0] == min(cycle)
        assert all(to in edges[at] for at, to in zip(cycle, cycle[1:] + cycle[:1], strict=True))
    left = {path: [to for to in to_all if to not in members] for path, to_all in edges.items()}
    while ends := [path for path in left if path not in members and not left[path]]:
        members += ends
        left = {path: [to for to in to_all if to not in ends] for path, to_all in left.items()}
    assert {*members} == {*edges}


def test_a_long_chain_and_a_long_ring() -> None:
    names: list[Path] = [(f"{number:05}",) for number in range(20_000)]
    chain = {name: [after] for name, after in pairwise(names)}
    assert list(cycles_of({**chain, names[-1]: []})) == []
    (ring,) = cycles_of({**chain, names[-1]: [names[0]]})
    assert len(ring) == len(names)
