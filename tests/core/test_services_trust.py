"""Every image of an instance of several services is believed, or the instance is not."""

from __future__ import annotations

from dataclasses import replace

import pytest

from node_agent.wire import Phase
from reconciler.core.actions import Control
from reconciler.core.desired import Desired, Target
from reconciler.core.names import ArtifactKey
from reconciler.core.observed import Known, Observed, Unknown
from reconciler.core.plan.compute import compute_plan
from reconciler.core.records import InstanceRecord
from reconciler.core.trust.evidence import Evidence, Verdict
from reconciler.core.trust.standing import asked_of, in_use, standings
from tests.core import fleet
from tests.core.fleet import NOW_MS
from tests.core.test_trust_in_plan import RULES, evidence
from tests.core.topologies import NAMES, key_of, observed, report, running, topology

ASKED = frozenset({"stable/active"})


def trusted(**given: object) -> Target:
    one = topology(**given)  # type: ignore[arg-type]
    return Target(replace(one.instance, channel="stable", promotion="active"), one.workload)


SHOP, NEWER = trusted(), trusted(version="1.1.0")
IMAGES = tuple(map(key_of, NAMES))


def looked_at(world: Observed, unsigned: str = "", unseen: str = "") -> Observed:
    found = {
        key_of(one): Unknown("registry_timeout", "no answer")
        if one == unseen
        else Known(evidence(key_of(one), signed=one != unsigned))
        for one in NAMES
    }
    return replace(world, trust=found)


def want(*targets: Target, **rest: object) -> Desired:
    return fleet.desired(*(targets or (SHOP,)), trust=RULES, **rest)


def test_all_are_asked_for() -> None:
    plain = replace(fleet.target().instance, channel="stable", promotion="active")
    assert asked_of([SHOP.instance, plain]) == dict.fromkeys(
        sorted((*IMAGES, plain.artifact)), ASKED
    )
    gone = replace(SHOP.instance, run="decommissioned")
    assert asked_of([gone]) == {}


def test_what_runs_so_far_is_known_too() -> None:
    asked = in_use(want(NEWER), fleet.inventory(running(SHOP)))
    assert asked == dict(
        sorted(
            [
                *((key_of(one, "1.1.0"), ASKED) for one in NAMES),
                *((key, frozenset[str]()) for key in IMAGES if key != key_of("api")),
                (key_of("api"), frozenset()),
            ]
        )
    )


@pytest.mark.parametrize("name", NAMES)
def test_a_launch_waits_for_the_signature_of_each(name: str) -> None:
    world = looked_at(observed(), unsigned=name)
    (action,) = compute_plan(want(), world, {}, (), NOW_MS).actions
    assert action.held is not None
    assert action.held.code == "unsigned"
    assert action.held.message.startswith(f"{key_of(name)} is not good for stable: ")
    (action,) = compute_plan(want(), looked_at(observed(), unseen=name), {}, (), NOW_MS).actions
    assert action.held is not None
    assert action.held.message == f"{key_of(name)}: no answer"


def test_nor_is_a_stopped_one_started_on_an_image_that_is_bad() -> None:
    stopped = report(SHOP).model_copy(update={"phase": Phase.STOPPED})
    world = looked_at(observed(stopped), unsigned="metrics")
    records = fleet.inventory(running(SHOP))
    (action,) = compute_plan(want(), world, records, (), NOW_MS).actions
    assert isinstance(action, Control)
    assert action.held is not None
    assert action.held.message.startswith(str(key_of("metrics")))


def standing(world: Observed, record: InstanceRecord | None = None) -> Verdict | None:
    records = fleet.inventory(record or running(SHOP))
    (verdict,) = standings(want(), world, records, NOW_MS).values()
    return verdict


def test_what_runs_is_as_good_as_the_worst_of_it() -> None:
    good = standing(looked_at(observed(report(SHOP))))
    assert good == Verdict(True, message="good for stable, signed by ci; so are 2 more images")
    bad = standing(looked_at(observed(report(SHOP)), unsigned="db"))
    assert bad is not None
    assert (bad.good, bad.code) == (False, "unsigned")
    assert bad.message == f"{key_of('db')}: stable needs a signature, and there is none"
    assert standing(looked_at(observed(report(SHOP)), unseen="db")) is None
    worse = looked_at(observed(report(SHOP)), unsigned="api", unseen="db")
    found = standing(worse)
    assert found is not None
    assert found.message.startswith(str(key_of("api")))


def test_each_that_is_revoked_is_found_wherever_it_runs() -> None:
    revoker = "Artifact/acme/research/hello/1.0.0/metrics"
    revoked = {(str(key_of("metrics").digest), "hello", ""): revoker}
    records = fleet.inventory(running(SHOP))
    for desired in (
        want(revoked=revoked),
        fleet.desired(topology(), revoked=revoked),
        fleet.desired(revoked=revoked, held=dict.fromkeys(records, "revoked")),
    ):
        world = looked_at(observed(report(SHOP)), unsigned="api")
        (verdict,) = standings(desired, world, records, NOW_MS).values()
        assert verdict is not None
        assert verdict.code == "artifact_revoked"
        assert verdict.message == f"{key_of('metrics')}: {revoker} is revoked"


def test_another_repository_with_the_same_bytes_tells_nothing() -> None:
    elsewhere = ArtifactKey("zzz/elsewhere", key_of("db").digest)
    world = looked_at(observed(report(SHOP)))
    others: dict[ArtifactKey, Known[Evidence]] = {elsewhere: Known(evidence(elsewhere))}
    world = replace(
        world, trust={**{k: v for k, v in world.trust.items() if k != key_of("db")}, **others}
    )
    assert standing(world) is None
