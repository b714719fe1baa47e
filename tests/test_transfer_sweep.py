"""Intents whose time is up are closed, and nothing stays of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from reconciler.core.audit import SYSTEM
from reconciler.core.custody.paths import transfer_secret
from reconciler.core.transfers import Transfer
from reconciler.errors import Refused, Transient
from reconciler.ports import Secret
from reconciler.settings import Settings
from reconciler.use_cases.handover import Asker
from reconciler.use_cases.transfer_sweep import CLOSED_MAX, EVERY_MS, STRAY_MS, TransferSweep
from reconciler.use_cases.transfers import Desk, complete
from tests.fakes.blobs import MemoryBlobs
from tests.fakes.clock import FakeClock
from tests.fakes.registry import FakeRegistry
from tests.fakes.secrets import FakeSecrets
from tests.fakes.store import MemoryStore
from tests.services.blob_plane import a_transfer

DAY_MS = 86_400_000


class Blobs(MemoryBlobs):
    """Counts what is discarded; `broken` uploads are refused."""

    def __init__(self) -> None:
        super().__init__()
        self.broken: set[str] = set()
        self.asked = 0

    def discard(self, upload: str) -> None:
        self.asked += 1
        self._refuse_away()
        if upload in self.broken:
            raise Refused("blob_store_malformed", "the upload makes no sense")
        super().discard(upload)


@dataclass
class World:
    clock: FakeClock = field(default_factory=FakeClock)
    store: MemoryStore = field(default_factory=MemoryStore)
    blobs: Blobs = field(default_factory=Blobs)

    def __post_init__(self) -> None:
        self.secrets = FakeSecrets(self.clock)
        settings = Settings(environment="dev")
        self.desk = Desk(self.store, self.secrets, self.clock, FakeRegistry(), settings, self.blobs)
        self.sweep = TransferSweep(self.desk)

    def open(self, name: str, **fields: Any) -> Transfer:
        made = a_transfer(now_ms=self.clock.now_ms(), **{"id": name, **fields})
        self.store.save_transfer(made)
        if made.content == "blob":
            self.blobs.append(name, 0, [b"some of it"])
        return made

    def later(self, ms: int = DAY_MS) -> None:
        self.clock.advance(ms)
        self.sweep.run()

    def states(self) -> dict[str, str]:
        return {one.id: one.state for one in self.store.transfers()}

    def told(self) -> list[tuple[str, str, str, str]]:
        rows = [row.entry for row in self.store.audit()]
        return [(row.actor, row.action, row.object, row.reason) for row in rows]


@pytest.fixture
def world() -> World:
    return World()


def test_what_expired_is_closed_and_its_parts_are_discarded(world: World) -> None:
    world.open("old")
    world.clock.advance(DAY_MS)
    world.open("new")
    world.open("done", state="completed")
    world.sweep.run()
    assert world.states() == {"old": "closed", "new": "open", "done": "completed"}
    assert set(world.blobs.parts) == {"new", "done"}
    assert world.told() == [
        (SYSTEM, "artifacts.transfer.closed", "Transfer/old",
         "expired: acme/lab: llm 1.0.0 weights"),
    ]  # fmt: skip


def test_a_second_sweep_and_a_second_sweeper_change_nothing(world: World) -> None:
    world.open("old")
    world.later()
    told = world.told()
    world.later(EVERY_MS)
    TransferSweep(world.desk).run()
    assert (world.told(), world.blobs.asked) == (told, 1)


def test_it_sweeps_now_and_then_also_once_the_clock_was_set_back(world: World) -> None:
    world.later()
    world.open("old", expires_at_ms=0)
    world.later(EVERY_MS - 1)
    assert world.states() == {"old": "open"}
    world.clock.advance(-DAY_MS)
    world.sweep.run()
    assert world.states() == {"old": "closed"}


def test_few_at_a_time(world: World) -> None:
    for number in range(CLOSED_MAX + 3):
        world.open(f"t{number:02}")
    world.later()
    assert sorted(world.states().values()).count("closed") == CLOSED_MAX
    world.later(EVERY_MS)
    assert set(world.states().values()) == {"closed"}


def test_while_the_artifact_store_is_away_its_intents_wait_and_others_do_not(world: World) -> None:
    for name in ("b1", "b2", "b3"):
        world.open(name)
    world.open("image", content="oci")
    world.blobs.away = True
    world.later()
    assert world.states() == {"b1": "open", "b2": "open", "b3": "open", "image": "closed"}
    assert world.blobs.asked == 1
    world.blobs.away = False
    world.later(EVERY_MS)
    assert set(world.states().values()) == {"closed"}
    assert world.blobs.parts == {}


def test_one_that_is_refused_keeps_no_other(world: World) -> None:
    world.open("bad")
    world.open("good")
    world.blobs.broken = {"bad"}
    world.later()
    assert world.states() == {"bad": "open", "good": "closed"}


def test_one_that_is_being_completed_is_left_alone(world: World) -> None:
    made = world.open("busy")
    world.clock.advance(DAY_MS)
    lease = f"transfer/{made.repository}"
    world.store.lease(lease, "somebody", world.clock.now_ms(), EVERY_MS)
    world.sweep.run()
    assert world.states() == {"busy": "open"}
    world.store.release(lease, "somebody")
    world.later(EVERY_MS)
    assert world.states() == {"busy": "closed"}


def test_an_upload_that_somebody_is_at_keeps_no_other(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("b1", "b2"):
        world.open(name)
    discard = world.blobs.discard

    def busy(upload: str) -> None:
        if upload == "b1":
            raise Transient("upload_busy", "another request is at this upload")
        discard(upload)

    with monkeypatch.context() as patched:
        patched.setattr(world.blobs, "discard", busy)
        world.later()
    assert world.states() == {"b1": "open", "b2": "closed"}
    world.later(EVERY_MS)
    assert set(world.states().values()) == {"closed"}


def test_a_credential_that_stayed_in_custody_is_deleted(world: World) -> None:
    path, other = transfer_secret("old"), "instances/acme/lab/one/token"
    for one in (path, other):
        world.secrets.write(one, Secret("a-credential"))
    world.later(STRAY_MS - 1)
    assert world.secrets.read(path) is not None
    world.later(EVERY_MS)
    assert world.secrets.paths("transfers") == ()
    assert world.secrets.read(other) is not None


def test_while_custody_is_away_intents_are_closed_and_credentials_wait(world: World) -> None:
    world.open("old")
    world.secrets.write(transfer_secret("old"), Secret("a-credential"))
    world.secrets.failure = Transient("custody_sealed", "it is sealed")
    world.later()
    assert world.states() == {"old": "closed"}
    world.secrets.failure = None
    world.later(EVERY_MS)
    assert world.secrets.secrets == {}


def test_what_was_closed_for_its_time_still_says_so(world: World) -> None:
    made = world.open("old")
    world.later()
    with pytest.raises(Refused) as refused:
        complete(world.desk, made.id, f"sha256:{'0' * 64}", Asker("user/ada", "user", "", "c"))
    assert refused.value.code == "transfer_expired"
