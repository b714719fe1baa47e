"""Blobs that tasks ask for ahead: remembered, pulled one by one, tried again, and forgotten."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from node_agent.acks import Acks
from node_agent.artifact_wire import BlobFile
from node_agent.blob_pulls import IDLE_S, PAUSE_MAX_MS, BlobPulls, needs_of
from node_agent.engines.base import Cancelled, EngineFailure
from node_agent.link import AgentKey
from node_agent.state import Identity, StateStore
from node_agent.state_pulls import AHEAD_KEPT_MS, PULLS_FILE, PULLS_MAX
from node_agent.tasks import Accepted, Duplicate, Refusal, Trust, admit
from node_agent.wire import FailureReason
from tests.agent.cases import (
    INSTANCE,
    NODE,
    NOW_MS,
    SOURCE,
    digest_of,
    launch,
    pull_blob,
    remove,
    sealed,
    verifier,
    workload,
)

FAR = EngineFailure(FailureReason.BLOB_UNAVAILABLE, "away", transient=True)
WRONG = EngineFailure(FailureReason.DIGEST_MISMATCH, "wrong")


@dataclass
class FakeCache:
    fails: dict[str, EngineFailure] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    called_off: bool = False
    breaks: bool = False

    def bring(
        self, digest: str, source: str, called_off: threading.Event, *, for_target: bool
    ) -> None:
        assert source == SOURCE
        assert not for_target
        self.asked.append(digest)
        if self.breaks:
            raise RuntimeError("odd")
        if self.called_off:
            raise Cancelled
        if digest in self.fails:
            raise self.fails[digest]

    def is_ready(self, digest: str) -> bool:
        return digest in self.asked


@dataclass
class FakeClock:
    at_ms: int = NOW_MS

    def now_ms(self) -> int:
        return self.at_ms

    def steady_ms(self) -> int:
        return self.at_ms


@dataclass
class Bench:
    store: StateStore
    cache: FakeCache = field(default_factory=FakeCache)
    clock: FakeClock = field(default_factory=FakeClock)

    def __post_init__(self) -> None:
        self.pulls = BlobPulls(self.store, self.cache, self.clock)

    def accept(self, seq: int, content: bytes) -> str:
        self.store.accept_pull(pull_blob(seq, content), self.clock.at_ms)
        return digest_of(content)

    def turn(self) -> int:
        return self.pulls.turn(threading.Event())


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    store = StateStore(tmp_path / "state", NOW_MS)
    store.save_identity(
        Identity(node=NODE, server="", private_key="", verifiers=(), min_version=1, joined_at_ms=0)
    )
    return Bench(store)


def test_in_the_order_of_their_tasks_and_once_each(bench: Bench) -> None:
    first, second = bench.accept(1, b"first"), bench.accept(2, b"second")
    assert [bench.turn(), bench.turn(), bench.turn()] == [0, 0, int(IDLE_S * 1_000)]
    assert bench.cache.asked == [first, second]


def test_what_can_help_is_tried_again_later_each_time(bench: Bench) -> None:
    digest = bench.accept(1, b"far")
    bench.cache.fails[digest] = FAR
    pauses = []
    for _ in range(12):
        assert bench.turn() == 0
        pauses.append(bench.turn())
        bench.clock.at_ms += pauses[-1]
    assert pauses == sorted(pauses)
    assert pauses[0] >= 500
    assert PAUSE_MAX_MS / 2 <= pauses[-1] <= PAUSE_MAX_MS
    assert len(bench.cache.asked) == 12
    del bench.cache.fails[digest]
    assert [bench.turn(), bench.turn()] == [0, int(IDLE_S * 1_000)]


def test_one_that_waits_holds_up_no_other(bench: Bench) -> None:
    far, near = bench.accept(1, b"far"), bench.accept(2, b"near")
    bench.cache.fails[far] = FAR
    assert [bench.turn(), bench.turn()] == [0, 0]
    assert bench.cache.asked == [far, near]


def test_what_can_not_help_is_left_until_a_newer_task_asks(bench: Bench) -> None:
    digest = bench.accept(1, b"wrong")
    bench.cache.fails[digest] = WRONG
    assert [bench.turn(), bench.turn()] == [0, int(IDLE_S * 1_000)]
    bench.accept(2, b"wrong")
    assert bench.turn() == 0
    assert bench.cache.asked == [digest, digest]


def test_a_mistake_of_ours_ends_nothing(bench: Bench) -> None:
    bench.accept(1, b"odd")
    near = bench.accept(2, b"near")
    bench.cache.breaks = True
    assert bench.turn() == 0
    bench.cache.breaks = False
    bench.turn()
    assert bench.cache.asked[1:] == [near]


def test_an_agent_that_stops_leaves_it_for_the_next(bench: Bench, tmp_path: Path) -> None:
    digest = bench.accept(1, b"long")
    bench.cache.called_off = True
    bench.turn()
    bench.store.close()
    again = Bench(StateStore(tmp_path / "state", NOW_MS))
    assert again.turn() == 0
    assert again.cache.asked == [digest]


# --- what is remembered -------------------------------------------------------------------------


def test_a_task_is_taken_over_once_also_after_a_restart(bench: Bench, tmp_path: Path) -> None:
    bench.accept(7, b"weights")
    bench.store.close()
    store = StateStore(tmp_path / "state", NOW_MS)
    assert store.was_executed("task-7")
    assert store.last_seq == 7
    (pull,) = store.pulls().values()
    assert (pull.digest, pull.source, pull.correlation_id) == (
        digest_of(b"weights"), SOURCE, "correlation-7",
    )  # fmt: skip


def test_what_is_old_is_forgotten_but_not_its_number(bench: Bench) -> None:
    bench.accept(3, b"old")
    bench.clock.at_ms += AHEAD_KEPT_MS
    bench.accept(4, b"new")
    assert list(bench.store.pulls()) == [digest_of(b"new")]
    assert not bench.store.was_executed("task-3")
    bench.store.accept(remove(5), NOW_MS)
    assert bench.store.last_seq == 5


def test_there_is_an_end_to_how_many_are_remembered(bench: Bench) -> None:
    bench.accept(1, b"one")
    (template,) = bench.store.pulls().values()
    many = {
        f"sha256:{n:064x}": template.model_copy(
            update={"digest": f"sha256:{n:064x}", "accepted_at_ms": n, "task_ids": (f"t{n}",)}
        )
        for n in range(PULLS_MAX)
    }
    bench.store._pulls = many
    bench.clock.at_ms = AHEAD_KEPT_MS - 1
    bench.accept(9, b"one more")
    assert len(bench.store.pulls()) == PULLS_MAX
    assert f"sha256:{0:064x}" not in bench.store.pulls()


def test_a_file_that_can_not_be_read_is_set_aside_and_older_tasks_are_refused(
    bench: Bench, tmp_path: Path
) -> None:
    bench.accept(1, b"weights")
    bench.store.close()
    (tmp_path / "state" / PULLS_FILE).write_text("{")
    store = StateStore(tmp_path / "state", NOW_MS)
    assert store.pulls() == {}
    assert len(store.recovered.moved_aside) == 1
    assert store.identity is not None
    assert store.identity.not_before_ms > NOW_MS


def test_what_is_needed_is_what_workloads_read_and_what_was_asked_for(bench: Bench) -> None:
    one = BlobFile(name="one", source=SOURCE, digest=digest_of(b"one"))
    two = BlobFile(name="two", source=SOURCE, digest=digest_of(b"two"))
    ahead = bench.accept(1, b"ahead")
    bench.store.accept(launch(2, workload(blobs=(one,))), NOW_MS)
    state = bench.store.instance(INSTANCE)
    assert state is not None
    ran = replace(state.progress, committed=workload(blobs=(one,)))
    assert bench.store.save_progress(INSTANCE, 2, ran)
    bench.store.accept(launch(3, workload(blobs=(two,))), NOW_MS)
    needs = needs_of(bench.store, NOW_MS)
    # Also what it may have to go back to.
    assert needs.targets == {one.digest, two.digest}
    assert needs.ahead == {ahead: NOW_MS}
    bench.store.accept(remove(4), NOW_MS)
    later = needs_of(bench.store, NOW_MS + AHEAD_KEPT_MS)
    assert (later.targets, later.ahead) == (frozenset(), {})


# --- the task itself ----------------------------------------------------------------------------


def _trust(bench: Bench, key: AgentKey) -> Trust:
    return Trust(
        node=NODE, verifiers=(verifier(key),), min_version=1, engines=frozenset(),
        last_seq=bench.store.last_seq, not_before_ms=0,
        was_executed=bench.store.was_executed, present=lambda _: False,
    )  # fmt: skip


def test_it_is_believed_like_any_other_task(bench: Bench) -> None:
    key = AgentKey.generate()
    task = pull_blob(5)
    accepted = admit(sealed(task, key), _trust(bench, key), NOW_MS)
    assert accepted == Accepted(task)
    bench.store.accept_pull(task, NOW_MS)
    assert admit(sealed(task, key), _trust(bench, key), NOW_MS) == Duplicate(task)
    replayed = admit(sealed(pull_blob(4), key), _trust(bench, key), NOW_MS)
    assert isinstance(replayed, Refusal)
    assert replayed.code == "replayed"
    foreign = admit(sealed(pull_blob(6, node="n2"), key), _trust(bench, key), NOW_MS)
    assert isinstance(foreign, Refusal)
    assert foreign.code == "wrong_node"


def test_it_is_acknowledged_without_waiting_for_an_instance() -> None:
    acks = Acks()
    acks.owe(Accepted(pull_blob(5)))
    (ack,) = acks.ready({})
    assert (ack.task_id, ack.accepted) == ("task-5", True)
