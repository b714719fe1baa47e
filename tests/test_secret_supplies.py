"""Passes while secrets come, go and can't be looked for: what waits, what runs on, what is told."""

from __future__ import annotations

import json

import pytest

from node_agent.wire import MACHINE_IDENTITY
from reconciler.core.names import secret_path
from reconciler.core.observed import Known, Unknown
from reconciler.core.records import State
from reconciler.custody.signing import newest_verifier
from reconciler.cycle import Pass
from reconciler.errors import Refused, Transient
from reconciler.observe import look_for
from reconciler.ports import Secret
from reconciler.use_cases import snapshot
from reconciler.use_cases.planning import look_now, plan_revision
from reconciler.use_cases.secrets import delete_secret, parse_secret, set_secret
from reconciler.use_cases.snapshot_form import Remembered, document, parsed
from tests.fakes.secrets import FakeSecrets
from tests.test_cycle import HELLO, INSTANCE, SCHEMAS, SETTINGS, World, make_world

PATH = "projects/acme/research/hf-token"
REFERENCE = "secret://project/hf-token"
HF = parse_secret("acme/research/hf-token")
BOTH = "secrets: [{name: token}, {name: hf-token, source: reference, env: HF_TOKEN}]"
BOUND = f"spec:\n  secrets: {{hf-token: {REFERENCE}}}\n"
SEALED = Transient("custody_sealed", "Vault is sealed")


@pytest.fixture
def world() -> World:
    """Both versions read a secret of their own and one by reference, which is not there yet."""
    made = make_world()
    kind = "    kind: launchable_oci\n"
    for version in ("1.0.0", "1.1.0"):
        path = f"catalog/hello/versions/{version}.yaml"
        text = made.files[path].decode()
        made.files[path] = text.replace(kind, f"{kind}    {BOTH}\n").encode()
    text = made.files[INSTANCE].decode()
    made.commit(**{INSTANCE: text.replace("spec:\n", BOUND, 1).encode()})
    return made


def custody(world: World) -> FakeSecrets:
    assert isinstance(world.ports.secrets, FakeSecrets)
    return world.ports.secrets


def held(done: Pass) -> tuple[str, str]:
    (action,) = done.plan.actions
    assert action.held is not None
    return action.held.code, action.held.message


def state_of(world: World) -> State:
    return world.record.state


def put(world: World, value: str = "hunter2") -> None:
    set_secret(world.ports, HF, Secret(value), "local/ada")


def test_a_launch_waits_until_the_secret_is_set_and_says_how(world: World) -> None:
    done = world.converge()
    assert done.summary.result == "stalled"
    assert held(done) == (
        "secret_missing",
        "there is no secret://project/hf-token yet: gpuaas secret set acme/research/hf-token",
    )
    assert state_of(world) is State.REQUESTED
    assert world.agent.launches == []
    assert world.store.take_requests() == []

    put(world)
    assert world.store.take_requests() == ["secret"]
    assert world.converge().summary.result == "done"
    assert state_of(world) is State.RUNNING
    assert world.record.secrets == (f"hf-token={REFERENCE}", MACHINE_IDENTITY, "token")


def test_who_waited_is_told_though_it_was_launched_while_the_secret_was_written(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.converge()
    write = custody(world).write

    def write_while_others_look(path: str, value: Secret) -> None:
        write(path, value)
        world.converge()

    monkeypatch.setattr(custody(world), "write", write_while_others_look)
    written = set_secret(world.ports, HF, Secret("hunter2"), "local/ada")
    assert state_of(world) is State.RUNNING
    assert (written.waiting, written.readers) == (("acme/research/hello",), ())


def test_no_value_is_in_what_is_stored_planned_or_told(world: World) -> None:
    put(world, "canary-4711")
    world.converge()
    stored = [
        world.store.records(),
        world.store.intents(),
        world.store.events(),
        world.store.audit(),
    ]
    seen = document(snapshot.take(world.ports, SETTINGS))
    assert "canary-4711" not in repr(stored) + json.dumps(seen)


def test_with_the_secret_store_away_what_runs_goes_on_and_what_is_new_waits(world: World) -> None:
    put(world)
    world.converge()
    world.set_version("1.1.0")
    custody(world).failure = SEALED
    for _ in range(3):
        done = world.run_pass()
        world.agent.work(world.clock.now_ms())
    assert held(done) == (
        "secret_unknown",
        f"{REFERENCE} (acme/research/hf-token): custody_sealed: Vault is sealed",
    )
    assert done.plan.stalled == ()
    assert (world.record.state, world.record.applied_version) == (State.RUNNING, "1.0.0")
    custody(world).failure = None
    assert world.converge().summary.result == "done"
    assert world.record.applied_version == "1.1.0"


def test_a_pass_that_launches_nothing_asks_the_secret_store_nothing(world: World) -> None:
    put(world)
    world.converge()
    custody(world).failure = SEALED
    assert world.run_pass().summary.result == "done"


def test_deleting_it_stops_nothing_and_holds_the_next_launch(world: World) -> None:
    put(world)
    world.converge()
    delete_secret(world.ports, HF, "local/ada", force=True)
    assert world.run_pass().plan.empty
    world.set_version("1.1.0")
    assert held(world.run_pass())[0] == "secret_missing"
    assert world.record.applied_version == "1.0.0"


def test_removal_forgets_its_own_and_leaves_what_it_referred_to(world: World) -> None:
    put(world)
    world.converge()
    own = secret_path("node-a", HELLO, "token")
    custody(world).ensure(own, Secret("x"))
    world.commit(**{INSTANCE: None})
    world.converge()
    assert world.record.state is State.DECOMMISSIONED
    assert custody(world).read(own) is None
    assert custody(world).seen(PATH) is not None


def test_removal_waits_for_no_secret(world: World) -> None:
    put(world)
    world.converge()
    delete_secret(world.ports, HF, "local/ada", force=True)
    world.commit(**{INSTANCE: None})
    world.converge()
    assert world.record.state is State.DECOMMISSIONED


# --- looking -------------------------------------------------------------------------------------


class Counting(FakeSecrets):
    """Counts who is asked; `refused` are paths it may not look at."""

    def __init__(self, refused: str = "", away_from: int = 99) -> None:
        super().__init__()
        self.asked: list[str] = []
        self._refused = refused
        self._away_from = away_from

    def seen(self, path: str) -> None:
        self.asked.append(path)
        if len(self.asked) >= self._away_from:
            raise SEALED
        if path == self._refused:
            raise Refused("custody_forbidden", f"may not read {path}")


def test_one_that_is_away_is_asked_once() -> None:
    secrets = Counting(away_from=2)
    found = look_for(secrets, ["projects/a/b/1", "projects/a/b/2", "projects/a/b/3"])
    assert list(found.values()) == [Known(False), *[Unknown(SEALED.code, SEALED.message)] * 2]
    assert len(secrets.asked) == 2


def test_one_that_may_not_be_looked_at_says_nothing_of_the_others() -> None:
    secrets = Counting(refused="projects/a/b/1")
    found = look_for(secrets, ["projects/a/b/1", "projects/a/b/2"])
    may_not = Unknown("custody_forbidden", "may not read projects/a/b/1")
    assert list(found.values()) == [may_not, Known(False)]


# --- without us ----------------------------------------------------------------------------------


def offline(world: World) -> Remembered:
    raw = snapshot.sealed(snapshot.take(world.ports, SETTINGS), world.ports.secrets)
    keys = [newest_verifier(world.ports.secrets, snapshot.SNAPSHOT_KEY).public_key]

    def read(revision: str) -> dict[str, str]:
        del revision
        stored = world.store.accepted().objects.values()
        return {one.ref: one.document_json for one in stored}

    return snapshot.opened(raw, keys, "dev", world.clock.now_ms(), 1_000_000, read)


def both_plans(world: World) -> list[tuple[str, str]]:
    """Why the one action waits, live and from a snapshot."""
    source = world.ports.source.snapshot(world.ports.source.fetch())
    looks = (look_now(world.ports, SETTINGS), offline(world))
    plans = [plan_revision(look, source, SCHEMAS, SETTINGS).plan for look in looks]
    return [
        (one.held.code, one.held.message) if one.held else ("", "")
        for plan in plans
        for one in plan.actions
    ]


@pytest.mark.parametrize("there", [False, True])
def test_a_snapshot_makes_the_same_plan(world: World, there: bool) -> None:
    world.run_pass()
    if there:
        put(world)
    live, seen = both_plans(world)
    assert live == seen
    assert live[0] == ("" if there else "secret_missing")


def test_a_snapshot_knows_secrets_that_nothing_accepted_names(world: World) -> None:
    """A pull request may be the first to refer to one that is there."""
    put(world)
    world.converge()
    text = world.files[INSTANCE].decode()
    set_secret(world.ports, parse_secret("acme/research/other"), Secret("x"), "local/ada")
    world.commit(**{INSTANCE: text.replace("project/hf-token", "project/other").encode()})
    assert both_plans(world) == [("", ""), ("", "")]
    world.commit(**{INSTANCE: text.replace("project/hf-token", "tenant/other").encode()})
    live, seen = both_plans(world)
    assert live == seen
    assert live[0] == "secret_missing"


def test_a_snapshot_taken_while_it_was_away_says_so(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sealed(prefix: str) -> tuple[str, ...]:
        raise SEALED

    world.run_pass()
    monkeypatch.setattr(world.ports.secrets, "paths", sealed)
    source = world.ports.source.snapshot(world.ports.source.fetch())
    (action,) = plan_revision(offline(world), source, SCHEMAS, SETTINGS).plan.actions
    assert action.held is not None
    assert action.held.message == (
        f"{REFERENCE} (acme/research/hf-token): custody_sealed: "
        "the secret store did not say when the snapshot was taken"
    )


def test_a_snapshot_from_before_there_were_references_is_read(world: World) -> None:
    written = document(snapshot.take(world.ports, SETTINGS))
    del written["secrets"]
    assert parsed(written).secrets == Unknown(
        "not_in_snapshot", "the snapshot does not say which secrets there are"
    )
