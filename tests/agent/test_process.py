"""What only processes have: recycled pids, runaway children, logs of their own."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from node_agent.engines import shim
from node_agent.engines.base import EngineFailure
from node_agent.engines.limits import cores
from node_agent.engines.process import ProcessEngine
from node_agent.inventory import HostPaths
from node_agent.units import Unit
from node_agent.wire import FailureReason, Limits, Port, TcpProbe
from tests.agent.cases import INSTANCE, NODE, process_image, workload

PORT = 31_000 + os.getpid() % 1_000


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[ProcessEngine]:
    engine = ProcessEngine(NODE, tmp_path)
    yield engine
    for unit in engine.units():
        engine.remove(unit)


@pytest.fixture
def run(engine: ProcessEngine, tmp_path: Path) -> Callable[..., Unit]:
    def begin(*command: str, limits: Limits | None = None) -> Unit:
        what = workload(
            image=process_image(tmp_path / "layout"), command=command, limits=limits or Limits()
        )
        engine.pull(what.image, threading.Event())
        engine.create(what, {"http": PORT})
        engine.start(engine.units(INSTANCE)[0])
        return engine.units(INSTANCE)[0]

    return begin


def test_nothing_is_published_at_an_address_of_the_node(engine: ProcessEngine) -> None:
    """Attempted: a port for other members, which a process could not be kept to."""
    port = Port(name="http", container=8080, host=PORT, address="10.0.0.5")
    with pytest.raises(EngineFailure) as refused:
        engine.create(workload(ports=(port,)), {"http": PORT})
    assert refused.value.reason is FailureReason.CREATE_REFUSED
    assert refused.value.message == (
        "a process is not published at an address of its node: only Docker does that"
    )


def folder_of(tmp_path: Path, unit: Unit) -> Path:
    return tmp_path / "units" / unit.unit_id


def eventually(condition: Callable[[], bool], timeout_s: float = 120.0) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, "did not come true"
        time.sleep(0.02)


def test_a_folder_given_as_seen_from_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in `gpuaas-agent --state-dir agent`: units are started from elsewhere."""
    monkeypatch.chdir(tmp_path)
    engine = ProcessEngine(NODE, Path("agent"))
    what = workload(image=process_image(tmp_path / "layout"), command=("sleep", "600"))
    engine.pull(what.image, threading.Event())
    engine.create(what, {"http": PORT})
    (unit,) = engine.units(INSTANCE)
    engine.start(unit)
    try:
        assert engine.units(INSTANCE)[0].status == "running"
    finally:
        engine.remove(unit)


def test_a_disk_that_is_full_at_the_start_is_told_as_that(
    engine: ProcessEngine, run: Callable[..., Unit], tmp_path: Path
) -> None:
    """Attempted: a start for which nothing can be written down. Nothing may run unrecorded."""
    unit = run("touch", "ran")
    eventually(lambda: engine.units(INSTANCE)[0].exit_code == 0)
    folder = folder_of(tmp_path, unit)
    (folder / "root" / "ran").unlink()
    (folder / "run.json.tmp").symlink_to("/dev/full")
    with pytest.raises(EngineFailure) as full:
        engine.start(unit)
    assert (full.value.reason, full.value.transient) == (FailureReason.DISK_FULL, True)
    assert full.value.message == "it can't be started: No space left on device"
    assert not (folder / "root" / "ran").exists()


def test_a_start_that_breaks_is_told_in_words(
    engine: ProcessEngine, run: Callable[..., Unit], tmp_path: Path
) -> None:
    unit = run("true")
    eventually(lambda: engine.units(INSTANCE)[0].exit_code == 0)
    document = folder_of(tmp_path, unit) / "unit.json"
    document.write_text("{")
    with pytest.raises(EngineFailure) as broken:
        engine.start(unit)
    assert broken.value.reason is FailureReason.CREATE_REFUSED
    assert broken.value.message == "it can't be started: what starts it ended before it did"
    document.unlink()


def test_a_recycled_pid_is_somebody_else(
    engine: ProcessEngine, run: Callable[..., Unit], tmp_path: Path
) -> None:
    unit = run("true")
    eventually(lambda: engine.units(INSTANCE)[0].exit_code == 0)
    with subprocess.Popen(["sleep", "600"]) as bystander:
        record = folder_of(tmp_path, unit) / "run.json"
        forged = {**json.loads(record.read_text()), "pid": bystander.pid}
        record.write_text(json.dumps(forged))
        assert engine.units(INSTANCE)[0].status == "exited"
        engine.stop(unit, 100)
        engine.remove(unit)
        assert bystander.poll() is None
        bystander.kill()


def test_a_boot_ago_is_dead(
    engine: ProcessEngine, run: Callable[..., Unit], tmp_path: Path
) -> None:
    unit = run("sleep", "600")
    record = folder_of(tmp_path, unit) / "run.json"
    before = record.read_text()
    record.write_text(json.dumps({**json.loads(before), "boot_id": "another"}))
    assert engine.units(INSTANCE)[0].status == "exited"
    record.write_text(before)


def test_a_child_that_left_the_session_ends_too(
    engine: ProcessEngine, run: Callable[..., Unit], tmp_path: Path
) -> None:
    unit = run("sh", "-c", "setsid sleep 600 & echo $! > child; wait")
    child = folder_of(tmp_path, unit) / "root" / "child"
    eventually(lambda: child.exists() and child.read_text().strip() != "")
    pid = int(child.read_text())
    engine.stop(unit, 200)
    eventually(lambda: not _alive(pid))


def test_the_environment_is_ours_not_the_agents(
    engine: ProcessEngine,
    run: Callable[..., Unit],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AGENT_SECRET", "do-not-leak")
    unit = run("sh", "-c", "env > seen; echo out; echo err >&2; sleep 600")
    root = folder_of(tmp_path, unit) / "root"
    log = folder_of(tmp_path, unit) / "log"
    eventually(lambda: log.exists() and "err" in log.read_text())
    seen = dict(line.split("=", 1) for line in (root / "seen").read_text().splitlines())
    assert "AGENT_SECRET" not in seen
    assert (seen["PORT_HTTP"], seen["HOME"], seen["PWD"]) == (str(PORT), str(root), str(root))
    assert log.read_text() == "out\nerr\n"


def test_somebody_elses_server_on_our_port_does_not_pass_for_ours(
    engine: ProcessEngine, run: Callable[..., Unit]
) -> None:
    unit = run("sleep", "600")
    with socket.socket() as foreign:
        foreign.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        foreign.bind(("127.0.0.1", unit.endpoints[0].host_port))
        foreign.listen()
        probed = engine.probe(unit, TcpProbe(port=8080), 1_000)
    assert (probed.ready, probed.detail) == (False, "port 8080: another process answers there")


def test_the_log_is_capped(engine: ProcessEngine, run: Callable[..., Unit], tmp_path: Path) -> None:
    unit = run("sh", "-c", "head -c 40000000 /dev/zero; echo done")
    eventually(lambda: engine.units(INSTANCE)[0].exit_code == 0)
    logs = sorted(folder_of(tmp_path, unit).glob("log*"))
    assert [path.name for path in logs] == ["log", "log.1"]
    assert all(p.stat().st_size <= shim.LOG_BYTES_MAX + shim.CHUNK_BYTES for p in logs)


def test_memory_is_limited(engine: ProcessEngine, run: Callable[..., Unit]) -> None:
    run("python3", "-c", "x = bytearray(600_000_000)", limits=Limits(memory_mib=300))
    eventually(lambda: engine.units(INSTANCE)[0].exit_code == 1)


def test_a_program_of_the_image_comes_before_one_of_the_host(
    engine: ProcessEngine, tmp_path: Path
) -> None:
    what = workload(image=process_image(tmp_path / "layout"), command=("serve.py",))
    engine.create(what, {"http": 25_000})
    folder = folder_of(tmp_path, engine.units(INSTANCE)[0])
    document = json.loads((folder / "unit.json").read_text())
    assert document["argv"][0] == str(folder / "root" / "serve.py")


def _alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in {"Z", "X"} and os.getpgid(pid) > 0


def test_it_is_kept_to_whole_cores(engine: ProcessEngine, run: Callable[..., Unit]) -> None:
    run("python3", "-c", "import os; os._exit(len(os.sched_getaffinity(0)))",
        limits=Limits(cpu_millis=500))  # fmt: skip
    eventually(lambda: engine.units(INSTANCE)[0].exit_code == 1)


CORES: list[Any] = [
    (None, (0, 1, 2, 3), (), []),
    (4_000, (0, 1, 2, 3), (), []),
    (9_000, (0, 1), (), []),
    (1_000, (0, 1, 2, 3), (), [0]),
    (1_001, (0, 1, 2, 3), (), [0, 1]),
    (2_000, (4, 5, 6, 7), ((4, 5),), [6, 7]),
    (2_000, (0, 1, 2, 3), ((0, 1), (2, 3), (0,)), [1, 2]),
    (1_000, (0, 1), ([], (0,), (1,)), [0]),
]


@pytest.mark.parametrize(("cpu_millis", "host", "others", "kept_to"), CORES)
def test_the_cores_that_fewest_others_have(
    cpu_millis: int | None,
    host: tuple[int, ...],
    others: tuple[tuple[int, ...], ...],
    kept_to: list[int],
) -> None:
    assert cores(Limits(cpu_millis=cpu_millis), host, others) == kept_to


def test_a_gpu_that_is_gone_is_said_before_the_start(tmp_path: Path) -> None:
    engine = ProcessEngine(NODE, tmp_path, HostPaths(nvidia=tmp_path / "nothing"))
    limits = Limits(gpu_vendor="nvidia", gpu_uuids=("GPU-1",))
    what = workload(image=process_image(tmp_path / "layout"), command=("true",), limits=limits)
    engine.create(what, {"http": PORT})
    with pytest.raises(EngineFailure) as refused:
        engine.start(engine.units(INSTANCE)[0])
    assert refused.value.reason is FailureReason.GPU_UNAVAILABLE
    assert refused.value.message == "GPU-1: not seen on this host; none is"
