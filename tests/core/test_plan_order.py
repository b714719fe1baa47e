"""The graph: who waits for whom to start, who goes before whom, and what a cycle stops."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from graphlib import CycleError, TopologicalSorter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node_agent.wire import Phase
from reconciler.core.actions import Action, action_id
from reconciler.core.desired import Desired, Guards, Window
from reconciler.core.names import InstanceKey
from reconciler.core.observed import Observed, Unknown
from reconciler.core.plan import Plan
from reconciler.core.plan.compute import compute_plan
from reconciler.core.plan.order import in_cycles, ordered
from reconciler.core.records import InstanceRecord, State
from reconciler.core.settle import settle_all
from tests.core.fleet import (
    NODE,
    NOW_MS,
    deploying,
    desired,
    inventory,
    key_of,
    observed,
    report,
    running,
    target,
)

DB = target("db")
WEB = target("web", depends_on=("db",))
LOOSE = Guards(99, 100)


def plan(want: Desired, see: Observed, *records: InstanceRecord) -> Plan:
    return compute_plan(want, see, inventory(*records), (), NOW_MS)


def told(p: Plan) -> dict[str, str]:
    """Name → kind of its action and what holds it."""
    return {
        a.instance.rpartition("/")[2]: a.kind + (f" {a.held.code}" if a.held else "")
        for a in p.actions
    }


def why(p: Plan, name: str) -> str:
    held = next(a.held for a in p.actions if a.instance == key_of(name))
    return held.message if held else ""


def of(record: InstanceRecord, *names: str) -> InstanceRecord:
    return replace(record, depends_on=tuple(map(key_of, names)))


def test_what_is_launched_together_goes_in_order() -> None:
    app = target("app", depends_on=("web", "db"))
    p = plan(desired(app, WEB, DB), observed())
    assert told(p) == {
        "db": "launch", "web": "launch dependency_not_ready", "app": "launch dependency_not_ready",
    }  # fmt: skip
    assert [a.instance for a in p.actions] == [key_of("db"), key_of("web"), key_of("app")]
    db, web, both = p.actions
    assert web.depends_on == (action_id(db),)
    assert both.depends_on == tuple(sorted((action_id(db), action_id(web))))
    assert why(p, "app") == (
        "waits for acme/research/db, which is started first; acme/research/web, which is started "
        "first"
    )


@pytest.mark.parametrize(
    ("db", "see", "said"),
    [
        (deploying(DB), observed(report(DB, Phase.STARTING)), "is deploying, starting"),
        (running(DB), observed(report(DB, Phase.DEGRADED)), "is degraded"),
        (replace(running(DB), state=State.FAILED), observed(report(DB)), "is failed, ready"),
        (running(DB), replace(observed(), nodes={}), "nobody can see (node_never_joined)"),
        (running(DB), observed(), "is started first"),
    ],
)
def test_it_waits_until_what_it_needs_is_ready(
    db: InstanceRecord, see: Observed, said: str
) -> None:
    web = target("web", node="node-b", depends_on=("db",))
    see = replace(see, nodes={**see.nodes, "node-b": observed().nodes[NODE]})
    p = plan(desired(DB, web), see, db)
    assert told(p)["web"] == "launch dependency_not_ready"
    assert why(p, "web") == f"waits for acme/research/db, which {said}"


def test_it_goes_once_that_is_ready() -> None:
    assert told(plan(desired(DB, WEB), observed(report(DB)), running(DB))) == {"web": "launch"}


def test_what_is_not_there_and_what_is_stopped_are_waited_for() -> None:
    p = plan(desired(WEB), observed())
    assert why(p, "web") == "waits for acme/research/db, which is not there"
    stopped = target("db", run="stopped")
    p = plan(desired(stopped, WEB), observed(report(DB, Phase.STOPPED)), running(DB))
    assert why(p, "web") == "waits for acme/research/db, which is stopped as wanted"


def test_a_change_waits_for_the_change_of_what_it_needs() -> None:
    newer = [target("db", "1.1.0"), target("web", "1.1.0", depends_on=("db",))]
    see = observed(report(DB), report(WEB))
    p = plan(desired(*newer), see, running(DB), of(running(WEB), "db"))
    assert told(p) == {"db": "replace", "web": "replace dependency_not_ready"}


def test_nobody_waits_for_a_change_that_is_put_off() -> None:
    """Attempted: to keep a service down by a change of its database outside the window."""
    shut = Window("shut", "deny", frozenset(range(7)), 0, 1440, "UTC")
    want = desired(target("db", "1.1.0"), WEB, guards=Guards(windows=(shut,)))
    p = plan(want, observed(report(DB)), running(DB), of(running(WEB), "db"))
    assert told(p) == {"db": "replace inside_deny_window", "web": "launch"}


def test_stopping_what_others_need_is_told_and_not_held() -> None:
    see = observed(report(DB), report(WEB))
    p = plan(desired(target("db", run="stopped"), WEB), see, running(DB), of(running(WEB), "db"))
    assert told(p) == {"db": "control"}
    (finding,) = p.findings
    assert (finding.code, finding.object) == ("dependency_stopped", "AppInstance/acme/research/db")
    assert finding.message == "is stopped although acme/research/web depends on it"


def test_removal_goes_backwards() -> None:
    see = observed(report(DB), report(WEB))
    p = plan(desired(guards=LOOSE), see, running(DB), of(running(WEB), "db"))
    assert told(p) == {"web": "remove", "db": "remove dependent_present"}
    assert why(p, "db") == "goes after acme/research/web, which depends on it"
    web, db = p.actions
    assert db.depends_on == (action_id(web),)
    going = replace(of(running(WEB), "db"), state=State.DECOMMISSIONING)
    assert told(plan(desired(guards=LOOSE), see, running(DB), going))["db"] == (
        "remove dependent_present"
    )
    gone = replace(going, state=State.DECOMMISSIONED)
    assert told(plan(desired(guards=LOOSE), see, running(DB), gone)) == {"db": "remove"}


def test_what_is_still_needed_does_not_go() -> None:
    """What depends on it is in quarantine with its old form, and runs on."""
    want = desired(guards=LOOSE, held={WEB.instance.key: "its version is missing"})
    see = observed(report(DB), report(WEB))
    assert told(plan(want, see, running(DB), of(running(WEB), "db"))) == {
        "db": "remove dependent_present"
    }


def test_a_reference_that_was_taken_out_holds_nothing_back() -> None:
    """The record follows the manifest, although for its node nothing changed."""
    want, see = desired(target("web"), guards=LOOSE), observed(report(DB), report(WEB))
    records = inventory(running(DB), of(running(WEB), "db"))
    after = settle_all(want, see, records, NOW_MS).records
    assert after[key_of("web")].depends_on == ()
    assert told(compute_plan(want, see, after, (), NOW_MS)) == {"db": "remove"}
    kept = settle_all(desired(guards=LOOSE), see, records, NOW_MS).records
    assert kept[key_of("web")].depends_on == (key_of("db"),)


def test_what_only_changes_its_node_waits_for_nobody() -> None:
    want = desired(target("db", node="node-b"), WEB, guards=LOOSE)
    see = observed(report(DB), report(WEB))
    see = replace(see, nodes={**see.nodes, "node-b": observed().nodes[NODE]})
    assert told(plan(want, see, running(DB), of(running(WEB), "db"))) == {"db": "remove"}


def test_a_cycle_holds_what_is_in_it_and_nobody_else() -> None:
    ring = [target("a", depends_on=("b",)), target("b", depends_on=("a",))]
    beside = [target("c"), target("d", depends_on=("a",)), target("e", depends_on=("e",))]
    p = plan(desired(*ring, *beside), observed())
    assert told(p) == {
        "a": "launch dependency_cycle",
        "b": "launch dependency_cycle",
        "c": "launch",
        "d": "launch dependency_not_ready",
        "e": "launch dependency_cycle",
    }
    assert why(p, "a") == "it depends on itself, by acme/research/b"
    assert ("stalled", "dependency_cycle") in {(f.level, f.code) for f in p.findings}


def test_a_cycle_can_be_removed() -> None:
    ring = [target("a", depends_on=("b",)), target("b", depends_on=("a",))]
    records = [of(running(ring[0]), "b"), of(running(ring[1]), "a")]
    p = plan(desired(guards=LOOSE), observed(*map(report, ring)), *records)
    assert told(p) == {"a": "remove", "b": "remove"}


def test_two_that_want_what_the_other_has_stall_no_pass() -> None:
    """Attempted: to end every pass with GPUs that two instances swap."""
    before = [target("a", gpus=("GPU-1",)), target("b", gpus=("GPU-2",))]
    after = [target("a", gpus=("GPU-2",)), target("b", gpus=("GPU-1",))]
    p = plan(desired(*after), observed(*map(report, before)), *map(running, before))
    assert set(told(p).values()) == {"replace resource_in_use"}


NAMES = st.sampled_from("abcdefg")
EDGES = st.dictionaries(NAMES, st.lists(NAMES, max_size=3, unique=True), max_size=7)


@given(edges=EDGES)
def test_cycles_are_found(edges: Mapping[str, Sequence[str]]) -> None:
    """Without its members the rest can be sorted; each lies between two of them, or in one."""
    cyclic = in_cycles(edges)
    rest = {key: [o for o in on if o not in cyclic] for key, on in edges.items()}
    TopologicalSorter({key: on for key, on in rest.items() if key not in cyclic}).prepare()
    if not cyclic:
        TopologicalSorter(edges).prepare()
    else:
        with pytest.raises(CycleError):
            TopologicalSorter(edges).prepare()


@given(edges=EDGES, up=st.sets(NAMES), wanted=st.sets(NAMES), silent=st.booleans())
def test_every_graph_has_a_plan_and_the_plan_an_order(
    edges: Mapping[str, Sequence[str]], up: set[str], wanted: set[str], silent: bool
) -> None:
    targets = {name: target(name, depends_on=tuple(edges.get(name, ()))) for name in "abcdefg"}
    records = [of(running(targets[name]), *edges.get(name, ())) for name in sorted(up)]
    see = Observed() if silent else observed(*(report(targets[name]) for name in sorted(up)))
    if silent:
        see = Observed(nodes={NODE: Unknown("node_offline", "silent")})
    want = desired(*(targets[name] for name in sorted(wanted)), guards=LOOSE)
    p = plan(want, see, *records)
    assert p == plan(want, see, *reversed(records))
    place = {action_id(action): number for number, action in enumerate(p.actions)}
    cyclic = in_cycles({action_id(a): a.depends_on for a in p.actions})
    for action in p.actions:
        for other in action.depends_on:
            if action_id(action) not in cyclic:
                assert place[other] < place[action_id(action)]
    _nothing_goes_ahead_of_what_it_needs(p.ready, edges, up)


def _nothing_goes_ahead_of_what_it_needs(
    ready: Sequence[Action], edges: Mapping[str, Sequence[str]], up: set[str]
) -> None:
    acting: set[InstanceKey] = {action.instance for action in ready}
    for action in ready:
        if action.kind == "launch":
            for name in edges.get(action.instance[-1], ()):
                assert name in up
                assert key_of(name) not in acting


def test_the_order_of_equals() -> None:
    p = plan(desired(target("z"), target("b", "1.1.0"), guards=LOOSE),
             observed(report(target("b")), report(target("x"))),
             running(target("b")), running(target("x")))  # fmt: skip
    assert [a.kind for a in p.actions] == ["remove", "replace", "launch"]
    assert ordered(reversed(p.actions)) == p.actions
