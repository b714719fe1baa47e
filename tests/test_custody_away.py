"""Custody that is sealed, slow or not the right one: what waits, what goes on, how it ends."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from reconciler.adapters.schema_files import load_schemas
from reconciler.core.actions import Launch
from reconciler.core.kinds.environment import EnvironmentSpec
from reconciler.core.names import ArtifactKey, InstanceKey, secret_path
from reconciler.core.records import NumberedEvent, State
from reconciler.core.schema import SchemaSet
from reconciler.custody.away import Presence, is_away, wrong_custody
from reconciler.custody.signing import newest_verifier
from reconciler.cycle import Pass, load, preview
from reconciler.devkit import state_repo
from reconciler.errors import GpuaasError, Refused, Transient
from reconciler.loop import Loop
from reconciler.ports import Ports, Secret
from reconciler.settings import Settings
from reconciler.wiring.ports import first_start
from tests.fakes.agent import FakeAgent
from tests.fakes.ca import FakeCa
from tests.fakes.clock import FakeClock
from tests.fakes.registry import FakeRegistry
from tests.fakes.secrets import FakeSecrets
from tests.fakes.state_source import FakeRemote, FakeStateSource
from tests.fakes.store import MemoryStore

SCHEMAS = SchemaSet.build(load_schemas())
SEALED = Transient("custody_sealed", "the Vault at https://vault.example:8200 is sealed")
AWAY = (
    SEALED,
    Transient("custody_timeout", "no answer within 5 s"),
    Transient("custody_unreachable", "connection refused"),
    Transient("custody_unavailable", "503"),
)
DENIED = Refused(
    "custody_forbidden", "may not update gpuaas-transit/sign/tasks", hint="gpuaas vault plan"
)
HELLO = InstanceKey("acme/research/hello")
INSTANCE = "tenants/acme/projects/research/instances/hello.yaml"
ENVIRONMENT = "environments/dev.yaml"
VAULT = "https://vault.example:8200"


@dataclass
class World:
    """A control plane's loop, without its thread and with all that it would have waited for."""

    remote: FakeRemote = field(default_factory=FakeRemote)
    store: MemoryStore = field(default_factory=MemoryStore)
    secrets: FakeSecrets = field(default_factory=FakeSecrets)
    registry: FakeRegistry = field(default_factory=FakeRegistry)
    clock: FakeClock = field(default_factory=FakeClock)
    later: list[tuple[float, Callable[[], None]]] = field(default_factory=list)
    vault_address: str = ""

    def __post_init__(self) -> None:
        self.files = dict(state_repo.first_files())
        self.remote.push(self.files)
        self.ports = Ports(
            FakeStateSource(self.remote),
            self.registry,
            self.secrets,
            FakeCa(),
            self.store,
            self.clock,
        )
        self.agent = FakeAgent("node-a", self.store, ())
        self.agent.join(self.clock.now_ms())
        self.agent.report(self.clock.now_ms())
        self.loop = self.new_loop()

    @property
    def settings(self) -> Settings:
        return Settings(environment="dev", vault_address=self.vault_address)

    def new_loop(self) -> Loop:
        return Loop(
            self.ports,
            self.settings,
            SCHEMAS,
            "one",
            later=self._later,
            begin=lambda: first_start(self.ports),
            chance=lambda: 0.5,
        )

    def _later(self, after_s: float, job: Callable[[], None]) -> Callable[[], None]:
        entry = (after_s, job)
        self.later.append(entry)
        return lambda: self.later.remove(entry) if entry in self.later else None

    def step(self, reason: str = "resync") -> Pass | None:
        self.clock.advance(1_000)
        return self.loop.step(frozenset({reason}))

    def passed(self, reason: str = "resync") -> Pass:
        done = self.step(reason)
        assert done is not None, self.store.last_pass()
        return done

    def have_images(self) -> None:
        """The registry has what a launch needs, and the agent knows whom to believe."""
        for action in self.passed("poll").plan.actions:
            assert isinstance(action, Launch)
            image = action.workload.image
            self.registry.say(ArtifactKey.parse(f"{image.repository}@{image.digest}"))

    def converge(self) -> Pass:
        self.agent.verifiers = (newest_verifier(self.secrets, "tasks"),)
        for _ in range(10):
            done = self.passed()
            if done.summary.result == "done":
                return done
            self.agent.work(self.clock.now_ms())
        raise AssertionError(done.summary)

    def push(self, path: str, content: str | None) -> None:
        if content is None:
            del self.files[path]
        else:
            self.files[path] = content.encode()
        self.remote.push(self.files)

    def events(self) -> list[str]:
        found: list[NumberedEvent] = [*self.store.events()]
        return [one.event.type.removeprefix("apps.instance.") for one in found]

    def state(self) -> State | None:
        record = self.store.records().get(HELLO)
        return record.state if record is not None else None


@pytest.fixture
def world() -> World:
    return World()


class TestStart:
    """With a custody that has never answered yet."""

    @pytest.mark.parametrize("error", AWAY, ids=lambda it: it.code)
    def test_it_looks_plans_and_waits(self, world: World, error: Transient) -> None:
        world.secrets.failure = error
        world.have_images()
        done = world.passed()
        assert (done.summary.result, done.summary.message) == ("waiting", str(error))
        assert [type(action) for action in done.plan.ready] == [Launch]
        assert done.nodes == frozenset()
        assert list(world.store.open_intents(world.clock.now_ms())) == []
        assert world.store.last_pass() == done.summary
        assert not world.loop.heartbeat().custody_up

    def test_it_goes_on_without_a_restart(self, world: World) -> None:
        world.secrets.failure = SEALED
        world.have_images()
        for _ in range(3):
            assert world.passed().summary.result == "waiting"
        world.secrets.failure = None
        world.converge()
        assert world.loop.heartbeat().custody_up
        assert world.state() is State.RUNNING
        assert world.events() == ["requested", "deploying", "running"]
        assert len(world.agent.launches) == 1
        assert world.secrets.read("webhook/git") is not None

    def test_what_a_first_start_makes_is_made_once(self, world: World) -> None:
        world.secrets.failure = SEALED
        world.step()
        world.secrets.failure = None
        world.step()
        made = world.secrets.read("webhook/git"), world.secrets.public_keys("tasks")
        for _ in range(20):
            world.clock.advance(60_000)
            world.step()
        world.new_loop().step(frozenset({"start"}))
        assert (world.secrets.read("webhook/git"), world.secrets.public_keys("tasks")) == made
        assert [key.version for key in made[1]] == [1]

    def test_one_that_refuses_us_needs_a_person(self, world: World) -> None:
        world.secrets.failure = DENIED
        world.have_images()
        assert world.step() is None
        last = world.store.last_pass()
        assert last is not None
        assert last.result == "failed"
        assert last.message == (
            "custody_forbidden: may not update gpuaas-transit/sign/tasks (gpuaas vault plan)"
        )
        world.secrets.failure = None
        world.converge()


class TestWhileThingsRun:
    @pytest.fixture
    def running(self, world: World) -> World:
        world.have_images()
        world.converge()
        return world

    def test_what_runs_is_left_alone_and_still_looked_at(self, running: World) -> None:
        before = running.store.records()[HELLO]
        running.secrets.failure = SEALED
        for _ in range(5):
            running.clock.advance(60_000)
            running.agent.report(running.clock.now_ms())
            done = running.passed()
            assert done.summary.result == "done"
            assert done.summary.message == ""
        assert running.store.records()[HELLO] == before
        assert not running.loop.heartbeat().custody_up

    def test_it_is_told_beside_what_the_pass_says(self, running: World) -> None:
        running.secrets.failure = SEALED
        running.clock.advance(15_000)
        (found,) = running.passed().summary.findings
        assert (found["level"], found["code"], found["message"]) == (
            "info", "custody_sealed", SEALED.message,
        )  # fmt: skip
        running.secrets.failure = DENIED
        done = running.passed()
        (found,) = done.summary.findings
        assert (found["level"], found["code"], found["hint"]) == (
            "stalled", "custody_forbidden", "gpuaas vault plan",
        )  # fmt: skip
        assert done.summary.result == "stalled"
        running.secrets.failure = None
        assert running.passed().summary.findings == ()
        assert running.loop.heartbeat().custody_up

    def test_a_change_waits_and_then_happens_once(self, running: World) -> None:
        running.secrets.failure = SEALED
        text = running.files[INSTANCE].decode()
        running.push(INSTANCE, text.replace("desired: running", "desired: stopped"))
        done = running.passed("poll")
        assert (done.summary.result, done.summary.actions) == ("waiting", 1)
        record = running.store.records()[HELLO]
        converged = {one.type: one.status for one in record.conditions}["Converged"]
        assert (record.state, converged) == (State.RUNNING, "False")
        for _ in range(4):
            assert running.passed().summary.message == str(SEALED)
        assert list(running.store.open_intents(running.clock.now_ms())) == []
        running.secrets.failure = None
        running.passed("custody")
        assert len(running.store.open_intents(running.clock.now_ms())) == 1
        running.converge()
        assert len(running.agent.launches) == 1

    def test_a_teardown_is_proved_again_once_its_secrets_can_go(self, running: World) -> None:
        token = secret_path("node-a", HELLO, "token")
        running.secrets.write(token, Secret("hunter2"))
        record = running.store.records()[HELLO]
        kept = replace(record, secrets=("token",))
        running.store._records[HELLO] = kept
        running.push(INSTANCE, None)
        running.passed("poll")
        running.agent.work(running.clock.now_ms())
        running.secrets.failure = SEALED
        done = running.passed("report")
        assert (done.summary.result, running.state()) == ("waiting", State.DECOMMISSIONING)
        running.secrets.failure = None
        running.converge()
        assert running.state() in (None, State.DECOMMISSIONED)
        assert running.secrets.read(token) is None
        assert running.events().count("decommissioned") == 1

    def test_lost_between_two_signatures_nothing_is_half_done(
        self, running: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        text = running.files[INSTANCE].decode()
        running.push(INSTANCE, text.replace("desired: running", "desired: stopped"))

        def lost(*_: object, **__: object) -> None:
            raise SEALED

        with monkeypatch.context() as patched:
            patched.setattr(running.secrets, "sign", lost)
            assert running.passed("poll").summary.result == "waiting"
            assert running.loop.heartbeat().custody_up, "it was only heard of in the pass"
        assert list(running.store.open_intents(running.clock.now_ms())) == []
        running.converge()


class TestRetries:
    def test_they_come_later_each_time_and_one_at_a_time(self, world: World) -> None:
        world.secrets.failure = SEALED
        world.have_images()
        world.later.clear()
        pauses = []
        for _ in range(10):
            world.passed()
            (entry,) = world.later
            pauses.append(entry[0])
        assert pauses == sorted(pauses)
        assert pauses[-1] == 45.0
        assert len(set(pauses)) > 4
        world.later[0][1]()
        assert world.loop.wakeups.take(0) == {"custody"}

    @pytest.mark.parametrize(("luck", "first_s"), [(0.0, 0.5), (0.999, 1.0)])
    def test_not_all_at_once(self, world: World, luck: float, first_s: float) -> None:
        world.loop = Loop(
            world.ports, world.settings, SCHEMAS, "one", later=world._later, chance=lambda: luck
        )
        world.remote.failure = Transient("git_unreachable", "no route to host")
        assert world.step("poll") is None
        assert world.later[0][0] == pytest.approx(first_s, abs=0.01)

    def test_once_it_is_back_none_is_left(self, world: World) -> None:
        world.secrets.failure = SEALED
        world.have_images()
        world.passed()
        assert len(world.later) == 1
        world.secrets.failure = None
        world.passed()
        assert world.later == []


class TestTheRightOne:
    """Where the Environment names a Vault nothing is signed or kept anywhere else."""

    def named(self, world: World, address: str = VAULT) -> None:
        text = world.files[ENVIRONMENT].decode()
        world.push(ENVIRONMENT, text.rstrip("\n") + f"\n  vault:\n    address: {address}\n")

    @pytest.mark.parametrize(
        ("ours", "said"),
        [
            ("", f"Environment/dev: vault_not_configured: keys and secrets belong into {VAULT}, "
                 "and this control plane knows no Vault (set GPUAAS_VAULT_ADDRESS"),
            ("https://other.example:8200", "Environment/dev: vault_differs: keys and secrets "
                                           f"belong into {VAULT}, and this control plane uses"),
        ],
    )  # fmt: skip
    def test_another_one_signs_nothing(self, ours: str, said: str) -> None:
        world = World(vault_address=ours)
        world.have_images()
        self.named(world)
        assert world.step("poll") is None
        last = world.store.last_pass()
        assert last is not None
        assert last.result == "failed"
        assert last.message.startswith(said)
        assert list(world.store.open_intents(world.clock.now_ms())) == []
        assert world.state() is State.REQUESTED

    def test_a_plan_is_shown_all_the_same(self, world: World) -> None:
        world.have_images()
        self.named(world)
        head = world.ports.source.fetch()
        state = load(world.ports.source.snapshot(head), SCHEMAS, world.ports, world.settings)
        plan, _ = preview(state, world.ports, world.settings)
        assert [type(action) for action in plan.ready] == [Launch]

    def test_of_what_is_gone_no_secret_is_looked_for_there(self, world: World) -> None:
        world.have_images()
        world.converge()
        token = secret_path("node-a", HELLO, "token")
        world.secrets.write(token, Secret("hunter2"))
        world.store._records[HELLO] = replace(world.store.records()[HELLO], secrets=("token",))
        world.push(INSTANCE, None)
        world.passed("poll")
        world.agent.work(world.clock.now_ms())
        self.named(world)
        assert world.step("poll") is None
        assert world.state() is State.DECOMMISSIONING
        assert world.secrets.read(token) == Secret("hunter2")

    def test_the_same_one_does(self) -> None:
        world = World(vault_address="https://VAULT.example:8200/")
        self.named(world)
        world.have_images()
        world.converge()

    def test_one_that_is_not_named_does_too(self) -> None:
        world = World(vault_address=VAULT)
        world.have_images()
        world.converge()


def an_environment(**spec: Any) -> EnvironmentSpec:
    given = {"domain": "x.example", "registry": {"endpoint": "r.example:5000"}, **spec}
    return EnvironmentSpec.model_validate_json(json.dumps(given))


@pytest.mark.parametrize(
    ("named", "ours", "code"),
    [
        (None, "", None),
        (None, VAULT, None),
        (VAULT, VAULT, None),
        (VAULT, VAULT + "/", None),
        (VAULT, "", "vault_not_configured"),
        (VAULT, "http://vault.example:8200", "vault_differs"),
        (VAULT, "https://vault.example", "vault_differs"),
        (VAULT, VAULT + "/v1", "vault_differs"),
    ],
)
def test_which_one_is_meant(named: str | None, ours: str, code: str | None) -> None:
    environment = an_environment(**({"vault": {"address": named}} if named else {}))
    found = wrong_custody(environment, Settings(environment="dev", vault_address=ours))
    assert (found.code if found is not None else None) == code
    assert wrong_custody(None, Settings()) is None


@pytest.mark.parametrize(
    ("error", "away"),
    [
        (None, False),
        *((error, True) for error in AWAY),
        (DENIED, False),
        (Transient("store_busy", "the database is locked"), False),
    ],
)
def test_what_counts_as_away(error: GpuaasError | None, away: bool) -> None:
    assert is_away(error) is away


def test_it_is_looked_at_once_in_a_while_and_each_time_while_it_is_away() -> None:
    looks: list[int] = []
    answers: list[GpuaasError | None] = [SEALED, SEALED, None, None, DENIED, None]

    def begin() -> None:
        looks.append(len(looks))
        answer = answers.pop(0)
        if answer is not None:
            raise answer

    presence = Presence(begin, 15_000)
    for now_ms, count, error in (
        (0, 1, SEALED),
        (1_000, 2, SEALED),
        (2_000, 3, None),
        (16_999, 3, None),
        (17_000, 4, None),
        (32_000, 5, DENIED),
        (32_001, 6, None),
    ):
        presence.look(now_ms)
        assert (len(looks), presence.error) == (count, error)
    presence.doubt()
    answers.append(None)
    presence.look(32_002)
    assert len(looks) == 7
