"""Rotation of the task key from commit to retirement, with services in memory and three agents.

What is planned is in `tests/core/test_plan_keys.py`; the same on real services in `tests/e2e`.
"""

from __future__ import annotations

import json

import pytest

from node_agent.wire import ConfigSeen
from reconciler.core.plan.keys import GONE_AFTER_MS
from reconciler.custody.signing import newest_verifier
from reconciler.custody.task_key import TaskKey
from reconciler.devkit import state_repo
from reconciler.errors import GpuaasError, Refused
from reconciler.loop import APPLY_PLAN
from reconciler.ports import RECONCILER_LEASE, TASK_KEY, Changes
from reconciler.use_cases.keys import keys_now, public_key
from reconciler.views.plan import plan_document, plan_lines
from reconciler.views.plan_markdown import plan_markdown
from reconciler.views.plan_words import Shown
from tests.fakes.secrets import FakeSecrets
from tests.rotation_world import ENVIRONMENT, HELLO, SEALED, SETTINGS, Agent, World, make_world


@pytest.fixture
def world() -> World:
    return make_world()


# --- all goes well -------------------------------------------------------------------------------


def test_from_commit_to_retirement(world: World) -> None:
    world.want(2)
    planned = world.plan()
    assert [(one.kind, one.version, one.held is None) for one in planned.keys] == [
        ("rotate", 2, True),
        ("retire", 2, False),
    ]
    assert not planned.empty
    done = world.must()
    assert world.versions == [1, 2]
    assert done.summary.result == "waiting"
    assert done.nodes == {"node-a", "node-b", "node-c"}, "every open poll is woken"
    assert world.told[-1] == done.nodes
    assert world.alarms[-1] == 0, "what comes of it is seen to at once"
    assert world.converge().summary.result == "done"
    assert world.versions == [2]
    assert {agent.min_version for agent in world.agents.values()} <= {1, 2}
    world.agents_turn()
    assert {agent.min_version for agent in world.agents.values()} == {2}
    assert world.plan().empty
    assert world.audited() == [
        ("keys.key.rotated", "version 2", "begun"),
        ("keys.key.rotated", "version 2", "done"),
        ("keys.key.retired", "version 2", "begun"),
        ("keys.key.retired", "version 2", "done"),
    ]


def test_under_load_and_one_on_top_of_the_other(world: World) -> None:
    """Every turn has a new version to launch; nothing is refused, nothing launched twice."""
    agent, turns = world.agents["node-a"], ["1.1.0", "1.0.0"] * 6
    for number, version in enumerate(turns):
        if number in (2, 3, 7):
            world.want({2: 2, 3: 3, 7: 5}[number])
        world.set_version(version)
        world.must()
        world.agents_turn(*(["node-a", "node-b"] if number % 3 else []))
    assert world.converge().summary.result == "done"
    assert world.versions == [5]
    assert all(agent.refused == [] for agent in world.agents.values())
    assert len(agent.launches) == 1 + len(turns)
    assert world.store.records()[HELLO].applied_version == "1.0.0"


def test_who_is_away_is_waited_for(world: World) -> None:
    world.want(2)
    for _ in range(3):
        world.must()
        world.agents_turn("node-a", "node-b")
    held = world.plan().keys[0].held
    assert held is not None
    assert held.code == "nodes_unaware"
    assert held.message.endswith(": node-c")
    assert TaskKey.of(world.secrets, {}).key.version == 2
    last = world.store.last_pass()
    assert last is not None
    assert (last.result, last.blocked) == ("waiting", {"nodes_unaware": 1})
    world.set_version("1.1.0")
    world.must()
    task = next(i for i in world.store.intents(HELLO) if i.state == "queued")
    signer = json.loads(task.envelope)["signatures"][0]["keyid"]
    assert signer == world.secrets.verifier_keys(TASK_KEY)[0].key_id, "what node-c knows as well"
    world.agents_turn("node-c")
    assert world.converge().summary.result == "done"
    assert world.versions == [2]


def test_who_is_revoked_is_not(world: World) -> None:
    world.want(2)
    world.store.revoke_node("node-c", "stolen", world.clock.now_ms())
    assert world.converge("node-a", "node-b").summary.result == "done"
    assert world.versions == [2]


def test_a_node_that_joins_meanwhile_is_waited_for(world: World) -> None:
    world.want(2)
    world.must()
    late = Agent("node-d", world.store, world.secrets.verifier_keys(TASK_KEY)[:1])
    late.join(world.clock.now_ms())
    world.agents_turn()
    world.must()
    assert world.versions == [1, 2]
    world.agents["node-d"] = late
    assert world.converge().summary.result == "done"
    assert world.versions == [2]
    assert late.refused == []


def test_shown_in_every_form(world: World) -> None:
    world.want(2)
    shown = Shown(world.plan(), environment="dev", now_ms=world.clock.now_ms())
    text = "\n".join(line.text for line in plan_lines(shown))
    assert "Signing keys (2)" in text
    assert "~ rotate    tasks: version 1 → 2" in text
    assert "held, key_not_rotated: once version 2 is there and agents know it" in text
    assert "no instance is touched" in text
    comment = plan_markdown(shown)
    assert "#### Signing keys (2)" in comment
    assert "- rotate `tasks`: version 1 → 2 (version 2 is wanted, 1 is the newest)" in comment
    rotate, retire = plan_document(shown)["keys"]
    assert (rotate["action_id"], rotate["version_from"], rotate["held"]) == (
        "rotate/tasks/2", 1, None,
    )  # fmt: skip
    assert retire["held"]["code"] == "key_not_rotated"


def test_what_there_is_to_see(world: World) -> None:
    world.want(2)
    world.must()
    world.agents_turn("node-a", "node-b")
    artifacts, registry_tokens, tasks = keys_now(world.ports, SETTINGS)
    assert (registry_tokens.kind, registry_tokens.versions) == ("ecdsa-p256", ())
    assert (artifacts.kind, artifacts.versions, artifacts.signs_with) == ("ecdsa-p256", (), None)
    assert (tasks.kind, tasks.versions, tasks.signs_with) == ("ed25519", (1, 2), 1)
    assert (tasks.min_version, tasks.unaware) == (1, ("node-c",))
    assert public_key(world.secrets, "tasks").version == 2
    assert public_key(world.secrets, "tasks", 1).pem.startswith("-----BEGIN PUBLIC KEY-----")
    with pytest.raises(Refused, match=r"no version 3 of 'tasks', or no more.*there is: 1, 2"):
        public_key(world.secrets, "tasks", 3)
    with pytest.raises(Refused, match="no_signing_key"):
        public_key(world.secrets, "artifacts")
    world.secrets.failure = SEALED
    assert keys_now(world.ports, SETTINGS)[2].unknown == "custody_sealed: Vault is sealed"


def test_artifact_key_is_made_and_rotated_but_never_retired_by_itself(world: World) -> None:
    world.want(1, more="    artifacts:\n      version: 2\n")
    assert world.converge().summary.result == "done"
    keys = world.secrets.public_keys("artifacts")
    assert [(key.version, key.kind) for key in keys] == [(1, "ecdsa-p256"), (2, "ecdsa-p256")]
    world.want(1, more="    artifacts:\n      version: 2\n      min_version: 2\n")
    assert world.converge().summary.result == "done"
    assert [key.version for key in world.secrets.public_keys("artifacts")] == [2]


# --- a key that leaked ---------------------------------------------------------------------------


def listen(world: World, length_ms: int, *names: str) -> None:
    """For so long these agents report, and no other is heard of."""
    for _ in range(length_ms // 30_000):
        world.clock.advance(30_000)
        for name in names:
            world.agents[name].report(world.clock.now_ms())


def test_at_once_signs_anew_what_is_queued(world: World) -> None:
    world.want(2)
    world.must()
    for name in ("node-a", "node-b"):
        world.agents[name].poll(world.configs)
    listen(world, GONE_AFTER_MS + 60_000, "node-a", "node-b")
    world.set_version("1.1.0")
    world.must()
    before = [i for i in world.store.intents(HELLO) if i.state == "queued"]
    world.want(2, 2)
    world.must()
    assert world.versions == [2], "node-c is gone, and one task is queued"
    world.must()
    after = [i for i in world.store.intents(HELLO) if i.state == "queued"]
    assert [one.target_hash for one in after] == [one.target_hash for one in before]
    assert after[0].seq > before[0].seq
    world.agents_turn("node-a", "node-b")
    assert world.agents["node-a"].refused == []
    world.must()
    assert world.store.records()[HELLO].applied_version == "1.1.0"
    # node-c comes back with what it knew: nothing there is to tell it can be believed.
    world.agents["node-c"].config = ConfigSeen(digest="old", newest_version=1, min_version=1)
    world.agents["node-c"].report(world.clock.now_ms())
    found = world.must().plan.stalled
    assert [(f.code, f.object) for f in found] == [("node_keys_outdated", "Node/node-c")]
    assert "gpuaas node join node-c" in found[0].hint


def test_at_once_cuts_nobody_off_when_it_was_us_who_were_away(world: World) -> None:
    """All were silent; the first to be back knows the new version before the others can."""
    world.clock.advance(2 * GONE_AFTER_MS)
    world.want(2, 2)
    world.must()
    assert world.versions == [1, 2], "nobody is heard of"
    world.agents_turn("node-a")
    held = world.must().plan.keys[0].held
    assert held is not None
    assert (held.code, held.message) == (
        "nodes_unaware", "waits for agents that do not know version 2 yet: node-b, node-c"
    )  # fmt: skip
    assert world.converge().summary.result == "done"
    assert world.versions == [2]
    assert all(agent.refused == [] for agent in world.agents.values())


def test_a_task_of_a_retired_key_is_refused(world: World) -> None:
    world.set_version("1.1.0")
    world.must()
    old = next(i for i in world.store.intents(HELLO) if i.state == "queued")
    agent = world.agents["node-a"]
    agent.verifiers = (*agent.verifiers, newest_verifier(FakeSecrets(), TASK_KEY))
    agent.min_version = 2
    assert agent._believed(old.envelope, world.clock.now_ms()) is None
    assert agent.refused == ["key_retired"]


# --- what goes wrong -----------------------------------------------------------------------------


def test_killed_after_the_rotation_before_it_was_written_down(world: World) -> None:
    world.want(2)
    whole = world.store.commit

    def killed(changes: Changes) -> None:
        raise KeyboardInterrupt

    world.store.commit = killed  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        world.run_pass()
    world.store.commit = whole  # type: ignore[method-assign]
    assert world.versions == [1, 2]
    assert world.converge().summary.result == "done"
    assert world.versions == [2]


def test_killed_within_the_rotation_leaves_a_line(world: World) -> None:
    world.want(2)
    whole = world.secrets.rotate

    def killed(name: str) -> None:
        whole(name)
        raise KeyboardInterrupt

    world.secrets.rotate = killed  # type: ignore[method-assign,assignment]
    with pytest.raises(KeyboardInterrupt):
        world.run_pass()
    assert world.audited() == [("keys.key.rotated", "version 2", "begun")]
    world.secrets.rotate = whole  # type: ignore[method-assign]
    assert world.converge().summary.result == "done"
    assert world.versions == [2]


def test_only_who_leads_rotates(world: World) -> None:
    """Another process led while this one stood still, and rotated."""
    world.want(2)
    whole = world.store.renew

    def taken(*args: object) -> bool:
        return False

    world.store.renew = taken  # type: ignore[method-assign,assignment]
    assert world.run_pass() is None
    last = world.store.last_pass()
    assert last is not None
    assert "lease_lost" in last.message
    assert (world.versions, world.audited()) == ([1], [])
    world.store.renew = whole  # type: ignore[method-assign]
    world.store.release(RECONCILER_LEASE, "me")
    assert world.converge().summary.result == "done"
    assert world.versions == [2]


def test_two_who_saw_the_same_rotate_once(world: World) -> None:
    world.want(2)
    state_before = world.plan()
    world.secrets.rotate(TASK_KEY)
    assert [one.kind for one in state_before.ready_keys] == ["rotate"]
    assert world.converge().summary.result == "done"
    assert world.versions == [2]


def test_custody_that_is_away_stops_no_pass(world: World) -> None:
    world.want(2)
    world.secrets.failure = SEALED
    done = world.must()
    assert [(f.code, f.object) for f in done.plan.findings] == [
        ("keys_unknown", "SigningKey/tasks")
    ]
    assert done.plan.keys == ()
    world.secrets.failure = None
    assert world.converge().summary.result == "done"
    assert world.versions == [2]


@pytest.mark.parametrize(
    ("error", "level"),
    [
        (Refused("custody_forbidden", "may not update keys/tasks/rotate", hint="vault"), "stalled"),
        (SEALED, "info"),
    ],
)
def test_a_rotation_that_is_refused_keeps_no_task_back(
    world: World, error: GpuaasError, level: str
) -> None:
    def refused(name: str) -> None:
        raise error

    whole = world.secrets.rotate
    world.secrets.rotate = refused  # type: ignore[method-assign,assignment]
    world.want(2)
    world.set_version("1.1.0")
    done = world.must()
    found = [f for f in done.plan.findings if f.object == "SigningKey/tasks"]
    assert [(f.level, f.code) for f in found] == [(level, error.code)]
    assert found[0].message == f"could not rotate to version 2: {error.message}"
    world.agents_turn()
    world.must()
    assert world.store.records()[HELLO].applied_version == "1.1.0"
    assert [result for _, _, result in world.audited()] == ["begun"], "told once, tried twice"
    world.secrets.rotate = whole  # type: ignore[method-assign]
    assert world.converge().summary.result == "done"


def test_by_hand(world: World) -> None:
    """The rotation waits for an apply; its end does not."""
    text = state_repo.first_files()[ENVIRONMENT] + b"  sync:\n    mode: manual\n"
    wish = b"  signing_keys:\n    tasks:\n      version: 2\n"
    world.commit(ENVIRONMENT, text + wish)
    done = world.must()
    assert done.summary.result == "stalled"
    assert world.versions == [1]
    world.must(APPLY_PLAN + done.plan.plan_id)
    assert world.versions == [1, 2]
    assert world.converge().summary.result == "done"
    assert world.versions == [2]
