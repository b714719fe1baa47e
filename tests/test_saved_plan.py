# ruff: noqa: F811 - fixtures are asked for by name
"""A saved plan is carried out exactly as it was read, once, or refused with what to do instead."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from reconciler.cli.apply import check
from reconciler.core.actions import action_id
from reconciler.core.plan.terms import awaiting
from reconciler.core.times import PLAN_LIFETIME_S
from reconciler.cycle import reconcile
from reconciler.errors import Refused
from reconciler.loop import APPLY_PLAN
from reconciler.settings import Settings
from reconciler.use_cases import saved_plan
from reconciler.use_cases.planning import look_now, plan_revision, shown
from reconciler.use_cases.saved_plan import SavedPlan, opened, outcome, sealed
from reconciler.views.plan_words import Shown
from tests.fakes.secrets import FakeSecrets
from tests.test_cycle import HELLO, INSTANCE, SCHEMAS, SETTINGS, World, world  # noqa: F401

MANUAL = "  sync:\n    mode: manual\n"


def make_manual(world: World) -> None:
    path = "environments/dev.yaml"
    text = world.files[path].decode()
    world.commit(**{path: text.replace("  defaults:\n", f"{MANUAL}  defaults:\n").encode()})


def plan_now(world: World) -> Shown:
    source = world.ports.source.snapshot(world.ports.source.fetch())
    return shown(look_now(world.ports, SETTINGS), source, None, SCHEMAS, SETTINGS)


def save(world: World, lifetime_s: float = PLAN_LIFETIME_S) -> bytes:
    now_ms = world.clock.now_ms()
    return sealed(plan_now(world), "main", now_ms, lifetime_s, world.ports.secrets)


def saved(world: World) -> SavedPlan:
    return opened(save(world), world.ports.secrets)


def refused(world: World, plan: SavedPlan, settings: Settings = SETTINGS) -> Refused:
    with pytest.raises(Refused) as caught:
        check(plan, world.ports, settings)
    assert caught.value.hint
    return caught.value


def carry_out(world: World, plan: SavedPlan) -> None:
    """A pass that was asked for this plan, as the loop makes it."""
    source = world.ports.source.snapshot(world.ports.source.fetch())
    state = plan_revision(look_now(world.ports, SETTINGS), source, SCHEMAS, SETTINGS).state
    reconcile(state, world.ports, SETTINGS, approved=frozenset({plan.plan_id}))


def test_there_and_back(world: World) -> None:
    world.converge()
    world.set_version("1.1.0")
    plan = saved(world)
    assert (plan.environment, plan.branch) == ("dev", "main")
    assert plan.revision == world.ports.source.head()
    assert plan.expires_at_ms - plan.created_at_ms == 900_000
    (action,) = plan.actions
    assert str(action) == "upgrade acme/research/hello on node-a"
    assert plan.reason == APPLY_PLAN + plan.plan_id
    check(plan, world.ports, SETTINGS)


def test_in_manual_mode_applying_a_plan_is_what_lets_it_through(world: World) -> None:
    make_manual(world)
    (held,) = world.run_pass().plan.actions
    assert held.held is not None
    assert held.held.code == saved_plan.AWAITING
    assert awaiting(held, {}, "x") is not None
    plan = saved(world)
    assert [action.action_id for action in plan.running] == [action_id(held)]
    carry_out(world, plan)
    world.agent.work(world.clock.now_ms())
    world.converge()
    done = outcome(plan, world.store.intents(), world.store.records())
    assert done == saved_plan.Outcome(begun=True)
    assert world.record.applied_version == "1.0.0"


# --- every refusal, with its words ---------------------------------------------------------------


def test_not_ours_or_edited(world: World) -> None:
    world.converge()
    raw = save(world)
    other = FakeSecrets()
    other.ensure_signing_key(saved_plan.PLAN_KEY)
    with pytest.raises(Refused, match="plan_not_ours: this control plane did not make it"):
        opened(raw, other)
    with pytest.raises(Refused, match="plan_not_ours"):
        opened(raw, FakeSecrets())
    document = json.loads(raw)
    document["payload"] = document["payload"][:-8] + "AAAA" + document["payload"][-4:]
    with pytest.raises(Refused, match=r"plan_not_ours: .*the signature does not match the payload"):
        opened(json.dumps(document).encode(), world.ports.secrets)
    with pytest.raises(Refused, match="plan_unreadable: it is no saved plan"):
        opened(b"{}", world.ports.secrets)


def test_expired(world: World) -> None:
    plan = saved(world)
    world.clock.advance(900_000)
    found = refused(world, plan)
    assert (found.code, found.message) == ("plan_expired", "it was good until 2023-11-14T22:28:20Z")
    assert found.hint == "make another: gpuaas plan --out FILE"


def test_of_another_environment_or_branch(world: World) -> None:
    plan = saved(world)
    found = refused(world, plan, Settings(environment="prod", signatures="off"))
    assert (found.code, found.message) == (
        "plan_environment",
        "it was made for environment dev, this is prod",
    )
    found = refused(world, plan, Settings(environment="dev", branch="next", signatures="off"))
    assert (found.code, found.message) == (
        "plan_branch",
        "it was made for branch main, this is next",
    )


def test_of_an_older_commit(world: World) -> None:
    plan = saved(world)
    world.set_version("1.1.0")
    found = refused(world, plan)
    assert found.code == "plan_stale"
    head = world.ports.source.head()
    assert found.message == (
        f"the branch is at {head[:12]} now, the plan was made for {plan.revision[:12]}"
    )


def test_the_world_moved_on(world: World) -> None:
    world.converge()
    world.set_version("1.1.0")
    plan = saved(world)
    world.agent.reports.clear()
    world.agent.report(world.clock.now_ms())
    found = refused(world, plan)
    assert found.code == "plan_stale"
    assert found.message == (
        "the world has moved on: new: launch acme/research/hello on node-a; "
        "no longer needed: upgrade acme/research/hello on node-a; "
        "nodes or the registry report something else than then"
    )


def test_used(world: World) -> None:
    make_manual(world)
    plan = saved(world)
    carry_out(world, plan)
    found = refused(world, plan)
    assert (found.code, found.message) == (
        "plan_used",
        "1 of its 1 actions were handed out already: launch acme/research/hello on node-a",
    )


def test_in_automatic_mode_the_control_plane_was_quicker(world: World) -> None:
    plan = saved(world)
    world.run_pass()
    found = refused(world, plan)
    assert found.code == "plan_used"
    assert "by an apply or by the control plane, which waits for none here" in found.message


def test_an_intent_from_before_the_plan_does_not_use_it_up(world: World) -> None:
    plan = saved(world)
    world.run_pass()
    later = replace(plan, created_at_ms=world.clock.now_ms() + 1)
    saved_plan.refuse_used(later, world.store.intents(), manual=False)


def test_a_revision_with_problems(world: World) -> None:
    plan = saved(world)
    world.commit(**{INSTANCE: b"kind: [AppInstance\n"})
    broken = replace(plan, revision=world.ports.source.fetch())
    found = refused(world, broken)
    assert found.code == "plan_problems"
    assert f"the first: {INSTANCE}:" in found.message


# --- what came of it -----------------------------------------------------------------------------


def test_it_waits_for_the_node_and_says_what_failed(world: World) -> None:
    world.converge()
    text = world.files["tenants/platform/projects/catalog/artifacts/hello/1.1.0/image.yaml"]
    world.agent.broken = {text.decode().partition("digest: ")[2].split()[0].strip('"')}
    world.set_version("1.1.0")
    plan = saved(world)
    assert outcome(plan, world.store.intents(), world.store.records()).begun is False
    world.run_pass()
    done = outcome(plan, world.store.intents(), world.store.records())
    assert (done.begun, done.waiting) == (True, ("upgrade acme/research/hello on node-a",))
    world.converge()
    done = outcome(plan, world.store.intents(), world.store.records())
    assert done.failed == ("upgrade acme/research/hello on node-a: not_ready_in_time",)
    assert done.waiting == ()


def test_a_removal_has_ended_when_it_is_proved(world: World) -> None:
    world.converge()
    world.commit(**{INSTANCE: None})
    plan = saved(world)
    world.run_pass()
    assert outcome(plan, world.store.intents(), world.store.records()).waiting
    world.agent.work(world.clock.now_ms())
    world.run_pass()
    done = outcome(plan, world.store.intents(), world.store.records())
    assert (done.waiting, done.failed) == ((), ())


def test_a_task_nobody_took_is_a_failure(world: World) -> None:
    plan = saved(world)
    world.run_pass()
    world.clock.advance(200_000)
    world.store.open_intents(world.clock.now_ms())
    done = outcome(plan, world.store.intents(), world.store.records())
    assert done.failed == (
        "launch acme/research/hello on node-a: its node did not take the task over in time",
    )


def test_stopping_has_ended_when_the_node_shows_it(world: World) -> None:
    world.converge()
    text = world.files[INSTANCE].decode()
    world.commit(**{INSTANCE: text.replace("desired: running", "desired: stopped").encode()})
    plan = saved(world)
    world.run_pass()
    world.agent.work(world.clock.now_ms())
    assert outcome(plan, world.store.intents(), world.store.records()).waiting
    world.converge()
    assert outcome(plan, world.store.intents(), world.store.records()).waiting == ()
    assert HELLO in world.store.records()
