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

import pytest

from node_agent.engines import shim
from node_agent.engines.process import ProcessEngine
from node_agent.units import Unit
from node_agent.wire import Limits, TcpProbe
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


def folder_of(tmp_path: Path, unit: Unit) -> Path:
    return tmp_path / "units" / unit.unit_id


def eventually(condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, "did not come true"
        time.sleep(0.02)


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
