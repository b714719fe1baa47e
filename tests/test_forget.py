"""Secrets go with their instance: after the proof, before it is written down, and no earlier."""

from __future__ import annotations

from dataclasses import replace

import pytest

from node_agent.wire import MACHINE_IDENTITY
from reconciler.core.names import InstanceKey, secret_path
from reconciler.core.records import State, node_name
from reconciler.core.settle import Settled
from reconciler.cycle import load, preview
from reconciler.errors import GpuaasError, Transient
from reconciler.execute import Outcome
from reconciler.forget import forget_secrets
from reconciler.ports import Changes, Secret
from tests.contract.test_store import a_record, an_event, an_intent
from tests.fakes.secrets import FakeSecrets
from tests.test_cycle import HELLO, INSTANCE, SCHEMAS, SETTINGS, World, make_world

PLACE = "    kind: launchable_oci\n"
TOKEN = secret_path("node-a", HELLO, "token")
ADMIN = secret_path("node-a", HELLO, "admin")
IDENTITY = secret_path("node-a", HELLO, MACHINE_IDENTITY)


@pytest.fixture
def world() -> World:
    """Version 1.0.0 reads `token`, 1.1.0 reads `admin`. Its node has asked for what it needs."""
    made = make_world()
    for version, name in (("1.0.0", "token"), ("1.1.0", "admin")):
        path = f"catalog/hello/versions/{version}.yaml"
        text = made.files[path].decode()
        assert PLACE in text
        secrets = f"{PLACE}    secrets: [{{name: {name}}}]\n"
        made.commit(**{path: text.replace(PLACE, secrets).encode()})
    made.converge()
    ask(made)
    return made


def ask(world: World) -> None:
    record = world.record
    for name in record.secrets:
        world.ports.secrets.ensure(secret_path(record.node, node_name(record), name), Secret(name))


def state_of(world: World) -> State:
    return world.record.state


def kept(world: World) -> list[str]:
    """Of its version's own; its identity is there as long as any."""
    there = [
        path for path in (ADMIN, IDENTITY, TOKEN) if world.ports.secrets.read(path) is not None
    ]
    assert (IDENTITY in there) == bool(there)
    return [path for path in there if path != IDENTITY]


def remove(world: World) -> None:
    """Up to the pass that is to hear the proof."""
    world.commit(**{INSTANCE: None})
    world.run_pass()
    assert state_of(world) is State.DECOMMISSIONING
    world.agent.work(world.clock.now_ms())
    assert kept(world) == [TOKEN]


def test_the_workload_names_them_and_has_no_value(world: World) -> None:
    (intent,) = world.store.intents(HELLO)
    assert world.record.secrets == (MACHINE_IDENTITY, "token")
    workload = world.agent.reports[HELLO]
    assert workload.target_hash == world.record.target_hash
    assert intent.target_hash == world.record.target_hash


def test_an_upgrade_keeps_what_its_node_may_go_back_to(world: World) -> None:
    world.set_version("1.1.0")
    world.converge()
    ask(world)
    assert world.record.secrets == ("admin", MACHINE_IDENTITY, "token")
    assert kept(world) == [ADMIN, TOKEN]
    world.commit(**{INSTANCE: None})
    world.converge()
    assert state_of(world) is State.DECOMMISSIONED
    assert len(world.record.secrets) == 0
    assert kept(world) == []


def test_they_stay_until_the_teardown_is_proved(world: World) -> None:
    world.commit(**{INSTANCE: None})
    world.run_pass()
    world.run_pass()
    assert kept(world) == [TOKEN]


def test_a_look_forgets_nothing(world: World) -> None:
    remove(world)
    head = world.ports.source.fetch()
    state = load(world.ports.source.snapshot(head), SCHEMAS, world.ports, SETTINGS)
    preview(state, world.ports, SETTINGS)
    assert kept(world) == [TOKEN]


def test_a_crash_before_it_is_written_down_forgets_them_once_more(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    remove(world)

    def crash(changes: Changes) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(world.store, "commit", crash)
        with pytest.raises(KeyboardInterrupt):
            world.run_pass()
    assert kept(world) == []
    assert state_of(world) is State.DECOMMISSIONING
    world.converge()
    assert state_of(world) is State.DECOMMISSIONED
    assert world.events().count("decommissioned") == 1


def test_where_they_can_not_be_forgotten_the_proof_is_heard_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    remove(world)

    def sealed(path: str) -> None:
        raise Transient("sealed", "the vault is sealed")

    with monkeypatch.context() as patched:
        patched.setattr(world.ports.secrets, "delete", sealed)
        done = world.run_pass()
        assert (done.summary.result, done.summary.message) == (
            "failed",
            "sealed: the vault is sealed",
        )
    assert state_of(world) is State.DECOMMISSIONING
    assert "decommissioned" not in world.events()
    world.converge()
    assert state_of(world) is State.DECOMMISSIONED
    assert kept(world) == []


def test_a_renamed_instance_takes_them_along(world: World) -> None:
    renamed = "tenants/acme/projects/research/instances/hi.yaml"
    text = world.files[INSTANCE].decode().replace("name: hello\n", "name: hi\n", 1)
    moved = text.replace("spec:\n", "spec:\n  moved_from: hello\n", 1)
    world.commit(**{INSTANCE: None, renamed: moved.encode()})
    world.converge()
    record = world.store.records()[InstanceKey("acme/research/hi")]
    assert (record.runtime_name, record.secrets) == (HELLO, (MACHINE_IDENTITY, "token"))
    assert kept(world) == [TOKEN]
    world.commit(**{renamed: None})
    world.converge()
    assert kept(world) == []


def test_only_what_can_not_be_forgotten_waits() -> None:
    """Also when the next life of it begins in the same pass: that waits as well."""

    class Sealed(FakeSecrets):
        def delete(self, path: str) -> None:
            if "/hello/" in path:
                raise Transient("sealed", "the vault is sealed")
            super().delete(path)

    other = InstanceKey("acme/research/other")
    leaving = [
        a_record(key, state=State.DECOMMISSIONING, secrets=("token",)) for key in (HELLO, other)
    ]
    before = {record.key: record for record in leaving}
    gone = {
        key: replace(record, state=State.DECOMMISSIONED, secrets=())
        for key, record in before.items()
    }
    events = (an_event(1, HELLO), an_event(2, other))
    anew = {**gone, HELLO: replace(gone[HELLO], state=State.DEPLOYING, secrets=("token",))}
    intents = (an_intent(1, instance=HELLO), an_intent(2, instance=other))
    secrets = Sealed()
    for key in before:
        secrets.write(secret_path("node-1", key, "token"), Secret("x"))
    settled, outcome = forget_secrets(
        secrets, Settled(before, gone, events), Outcome(anew, intents, events)
    )
    assert settled.records == {HELLO: before[HELLO], other: gone[other]}
    assert outcome.records == settled.records
    assert settled.events == outcome.events == events[1:]
    assert outcome.intents == intents[1:]
    assert isinstance(outcome.error, GpuaasError)
    assert outcome.error.code == "sealed"
    assert secrets.read(secret_path("node-1", other, "token")) is None
