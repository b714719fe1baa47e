"""The agent's memory: what survives, what is refused, what is said when a file is broken."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from node_agent.disk import StateUnusable
from node_agent.engines.base import EngineFailure
from node_agent.link import AgentKey
from node_agent.membership import NodeConfig
from node_agent.ports import HostPorts
from node_agent.state import REMOVED_KEPT_MS, Identity, StateStore
from node_agent.steps import Absent, Fault, JobDone, Present, Progress, ServiceProgress
from node_agent.wire import FailureReason, Port, Proof
from tests.agent.cases import INSTANCE, NODE, NOW_MS, control, launch, remove, verifier, workload
from tests.agent.topology_world import service, topology_workload

PROOF = Proof(checked_at_ms=NOW_MS, containers=0, networks=0, volumes=0, paths=0)


@contextmanager
def crash_at(call: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What is done within ends at its first `fsync` or `rename`."""

    class Crash(BaseException):
        pass

    def crash(*_: object) -> None:
        raise Crash

    with monkeypatch.context() as patched:
        patched.setattr(os if call == "fsync" else Path, call, crash)
        with pytest.raises(Crash):
            yield


@contextmanager
def opened(folder: Path, now_ms: int = NOW_MS) -> Iterator[StateStore]:
    store = StateStore(folder, now_ms)
    try:
        yield store
    finally:
        store.close()


def identity() -> Identity:
    key = AgentKey.generate()
    return Identity(
        node=NODE,
        server="http://127.0.0.1:1",
        private_key=key.reveal_private(),
        verifiers=(verifier(key),),
        min_version=1,
        joined_at_ms=NOW_MS,
    )


def instance_file(folder: Path) -> Path:
    (path,) = (folder / "instances").glob("*.json")
    return path


def test_what_was_accepted_is_there_after_a_restart(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        store.accept(launch(3), NOW_MS)
        progress = Progress(committed=workload(), restarts=2)
        assert store.save_progress(INSTANCE, 3, progress)
        store.save_placement(INSTANCE, "process", {"http": 4711})
    with opened(tmp_path) as store:
        state = store.instance(INSTANCE)
        assert state is not None
        assert state.target == Present(workload())
        assert state.progress == progress
        assert (state.host_ports, state.engines) == ({"http": 4711}, ("process",))
        assert (store.last_seq, store.was_executed("task-3")) == (3, True)


def test_a_topology_is_there_after_a_restart_with_its_hash(tmp_path: Path) -> None:
    what = topology_workload(service("db"), service("api", after="db:healthy", vital=False))
    with opened(tmp_path) as store:
        store.accept(launch(1, what, kind="compose.launch"), NOW_MS)
        store.save_progress(INSTANCE, 1, Progress(committed=what, losses_ms=(NOW_MS,)))
    with opened(tmp_path) as store:
        state = store.instance(INSTANCE)
        assert state is not None
        assert state.target == Present(what)
        assert state.progress == Progress(committed=what, losses_ms=(NOW_MS,))
        assert state.workload is not None
        assert state.workload.spec_hash == what.spec_hash


def test_what_is_known_of_services_is_there_after_a_restart(tmp_path: Path) -> None:
    what = topology_workload(service("job"), service("side", vital=False))
    fault = Fault(FailureReason.FLAPPING, "tried 5 times, last: exited with 1", 1, final=True)
    side = ServiceProgress("side", failed=fault, form="f2")
    done = (JobDone("job", "f1", (("v-data", "2026-01-01T00:00:00Z"),)),)
    with opened(tmp_path) as store:
        store.accept(launch(1, what, kind="compose.launch"), NOW_MS)
        running = ServiceProgress("job", started_at_ms=NOW_MS, starts=1)
        progress = Progress(committed=what, jobs=done, services=(running, side))
        store.save_progress(INSTANCE, 1, progress)
    with opened(tmp_path) as store:
        state = store.instance(INSTANCE)
        assert state is not None
        assert state.progress == Progress(committed=what, jobs=done, services=(side,))
        stopped = store.accept(control(2, False, kind="compose.control"), NOW_MS).progress
        assert stopped == Progress(committed=what, jobs=done)
        assert store.accept(remove(3, kind="compose.remove"), NOW_MS).progress == Progress()


def test_an_agent_that_knows_nothing_of_services_can_read_what_has_none(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        store.accept(launch(1), NOW_MS)
        store.save_progress(INSTANCE, 1, Progress(committed=workload()))
    stored = json.loads(instance_file(tmp_path).read_text())
    assert not {"given_up", "jobs"} & stored.keys()
    with opened(tmp_path) as store:
        state = store.instance(INSTANCE)
        assert state is not None
        assert state.progress == Progress(committed=workload())


@pytest.mark.parametrize("crash_in", ["fsync", "rename"])
def test_a_crash_while_a_job_is_written_down_leaves_it_done_or_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, crash_in: str
) -> None:
    done = Progress(jobs=(JobDone("job", "f1"),))
    with opened(tmp_path) as store:
        store.accept(launch(1), NOW_MS)
        with crash_at(crash_in, monkeypatch):
            store.save_progress(INSTANCE, 1, done)
    with opened(tmp_path) as store:
        state = store.instance(INSTANCE)
        assert state is not None
        assert (state.progress, store.recovered.moved_aside) == (Progress(), ())
        assert store.save_progress(INSTANCE, 1, done)
    with opened(tmp_path) as store:
        state = store.instance(INSTANCE)
        assert state is not None
        assert state.progress == done


def test_a_failure_is_kept_until_the_next_task(tmp_path: Path) -> None:
    fault = Fault(FailureReason.EXITED, "exited 3 times", 3, final=True)
    with opened(tmp_path) as store:
        store.accept(launch(1), NOW_MS)
        store.save_progress(INSTANCE, 1, Progress(failure=fault))
    with opened(tmp_path) as store:
        state = store.instance(INSTANCE)
        assert state is not None
        assert state.progress.failure == fault
        assert store.accept(launch(2), NOW_MS).progress.failure is None


def test_progress_of_a_replaced_task_is_not_kept(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        store.accept(launch(1), NOW_MS)
        store.accept(remove(2), NOW_MS)
        assert not store.save_progress(INSTANCE, 1, Progress(committed=workload()))
        state = store.instance(INSTANCE)
        assert state is not None
        assert (state.target, state.committed) == (Absent(INSTANCE, 1_000), None)


def test_control_keeps_the_workload(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        store.accept(launch(1), NOW_MS)
        assert store.accept(control(2, run=False), NOW_MS).target == Present(workload(), run=False)


def test_everything_is_for_the_owner_only(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    with opened(folder) as store:
        store.save_identity(identity())
        store.accept(launch(1), NOW_MS)
    for path in [folder, *folder.rglob("*")]:
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path


def test_the_private_key_does_not_print() -> None:
    one = identity()
    assert one.private_key not in f"{one!r} {one}"
    key = AgentKey.from_hex(one.private_key)
    assert one.private_key not in f"{key!r} {key}"


def test_two_agents_do_not_share_a_folder(tmp_path: Path) -> None:
    with opened(tmp_path), pytest.raises(StateUnusable, match="another agent uses"):
        StateStore(tmp_path, NOW_MS)


@pytest.mark.parametrize("crash_in", ["fsync", "rename"])
def test_a_crash_while_writing_leaves_the_old_or_the_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, crash_in: str
) -> None:
    with opened(tmp_path) as store:
        store.accept(launch(1), NOW_MS)
        with crash_at(crash_in, monkeypatch):
            store.accept(remove(2), NOW_MS)
    with opened(tmp_path) as store:
        state = store.instance(INSTANCE)
        assert state is not None
        assert (state.seq, store.recovered.moved_aside) == (1, ())
        assert list(tmp_path.rglob("*.tmp")) == []
        assert store.accept(remove(2), NOW_MS).seq == 2


@pytest.mark.parametrize("keep", [0, 1, 40])
def test_a_truncated_instance_is_moved_aside_and_old_tasks_refused(
    tmp_path: Path, keep: int
) -> None:
    with opened(tmp_path) as store:
        store.save_identity(identity())
        store.accept(launch(7), NOW_MS)
    path = instance_file(tmp_path)
    path.write_bytes(path.read_bytes()[:keep])
    with opened(tmp_path, NOW_MS + 5) as store:
        assert len(store.recovered.moved_aside) == 1
        assert store.instance(INSTANCE) is None
        assert store.identity is not None
        assert store.identity.not_before_ms > NOW_MS
        assert store.anything_lost()
    with opened(tmp_path, NOW_MS + 10) as store:
        assert store.recovered.moved_aside == ()
        assert store.identity is not None
        assert store.identity.not_before_ms > NOW_MS


def test_a_broken_identity_is_no_fresh_start(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        store.save_identity(identity())
        store.accept(launch(7), NOW_MS)
    (tmp_path / "agent.json").write_text('{"node": "n1"')
    with pytest.raises(StateUnusable, match="could not be read and is now"):
        StateStore(tmp_path, NOW_MS)
    with opened(tmp_path) as store:
        assert (store.identity, store.last_seq, store.anything_lost()) == (None, 7, True)


def test_old_removals_are_forgotten_but_not_their_numbers(tmp_path: Path) -> None:
    later_ms = NOW_MS + REMOVED_KEPT_MS + 1
    with opened(tmp_path) as store:
        store.save_identity(identity())
        store.accept(remove(9), NOW_MS)
        store.save_progress(INSTANCE, 9, Progress(proof=PROOF))
        store.accept(remove(10, instance="a/b/c"), NOW_MS)
        store.accept(launch(11, workload(instance="d/e/f")), later_ms)
        assert sorted(store.instances()) == ["a/b/c", "d/e/f"]
    with opened(tmp_path) as store:
        assert sorted(store.instances()) == ["a/b/c", "d/e/f"]
        assert store.identity is not None
        assert store.identity.seq_floor >= 9
        assert store.last_seq == 11


def test_what_an_earlier_agent_wrote_of_itself_can_be_read(tmp_path: Path) -> None:
    """It had neither certificate nor CA, and is to join again; what runs is known meanwhile."""
    with opened(tmp_path) as store:
        store.save_identity(identity())
        store.accept(launch(1), NOW_MS)
    stored = tmp_path / "agent.json"
    document = json.loads(stored.read_text())
    for field in ("certificate", "ca", "config"):
        del document[field]
    stored.write_text(json.dumps(document))
    with opened(tmp_path) as store:
        found = store.identity
        assert found is not None
        assert (found.certificate, found.ca, found.config) == ("", "", None)
        assert not found.joined_securely
        assert store.instance(INSTANCE) is not None


def test_certificate_and_config_outlive_the_agent_beside_each_other(tmp_path: Path) -> None:
    joined, newer = identity(), AgentKey.generate()
    config = NodeConfig(
        node=NODE, issued_at_ms=NOW_MS, verifiers=(verifier(newer, 2),), min_version=2
    )
    with opened(tmp_path) as store:
        store.save_identity(joined.model_copy(update={"server": "https://127.0.0.1:1", "ca": "ca"}))
        store.save_certificate("chain")
        store.save_config(config)
        store.next_report_seq(NOW_MS)
    with opened(tmp_path) as store:
        found = store.identity
        assert found is not None
        assert (found.certificate, found.ca, found.config) == ("chain", "ca", config)
        # The retired one is known, and below the minimum: what it signs is told from a stranger's.
        assert found.verifiers == (*joined.verifiers, verifier(newer, 2))
        assert found.min_version == 2
        assert found.joined_securely


def test_report_numbers_rise_over_restarts_and_clock_steps(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        store.save_identity(identity())
        numbers = [store.next_report_seq(NOW_MS), store.next_report_seq(NOW_MS - 10_000)]
    with opened(tmp_path) as store:
        numbers.append(store.next_report_seq(NOW_MS - 3_600_000))
    assert numbers == sorted(set(numbers))


def test_a_fixed_port_is_not_taken_from_another_instance(tmp_path: Path) -> None:
    """Attempted: to ask for the host port where another's users go, while that one is down."""
    greedy = workload(instance="acme/other/greedy", ports=(Port(name="x", container=1, host=4711),))
    with opened(tmp_path) as store:
        ports = HostPorts(store)
        store.accept(launch(1), NOW_MS)
        store.save_placement(INSTANCE, "process", {"http": 4711})
        store.accept(launch(2, greedy), NOW_MS)
        with pytest.raises(EngineFailure, match="host port 4711 is another instance's") as refused:
            ports.allocate(greedy)
        assert (refused.value.reason, refused.value.transient) == (FailureReason.PORT_IN_USE, True)
        store.accept(remove(3), NOW_MS)
        assert ports.allocate(greedy) == {"x": 4711}
