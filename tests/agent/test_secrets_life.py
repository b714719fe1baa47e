"""Secrets through the life of a workload, on processes and on real Docker."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import docker
import pytest

from node_agent.engines.base import SECRETS_VARIABLE, Engine
from node_agent.link import AgentKey, join, parse_join_token
from node_agent.main import make_engines
from node_agent.runtime import Agent, Pace
from node_agent.secret_files import SecretFiles
from node_agent.state import Identity, StateStore
from node_agent.units import Unit
from node_agent.wire import (
    SECRETS_PATH,
    ExecProbe,
    FailureReason,
    Image,
    Phase,
    Readiness,
    SecretFile,
    Workload,
    WorkloadReport,
)
from tests.agent.cases import INSTANCE, launch, process_image, remove, workload
from tests.agent.control_plane import ControlPlane

NODE = "n1"
VALUE = "hunter2-hunter2-hunter2"
PACE = Pace(heartbeat_s=0.3, poll_wait_ms=300, backoff_max_s=0.2, inventory_s=60)
LOOK = f'test -s "${SECRETS_VARIABLE}/token"'


@dataclass
class Bench:
    """A running agent with one engine. `what` is ready once it sees its secret."""

    plane: ControlPlane
    agent: Agent
    engine: Engine
    state: Path
    files: SecretFiles
    what: Workload
    docker_host: str | None

    @property
    def folder(self) -> Path:
        return self.files.folder(INSTANCE)

    def unit(self) -> Unit:
        (unit,) = self.engine.units(INSTANCE)
        return unit

    def kill(self) -> None:
        self.engine.stop(self.unit(), 0)

    def launched(self) -> WorkloadReport:
        self.plane.send(launch, self.what)
        return self.plane.wait_for_workload(is_ready)


def is_ready(report: WorkloadReport) -> bool:
    return report.phase is Phase.READY


@pytest.fixture(params=["process", pytest.param("docker", marks=pytest.mark.real)])
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bench]:
    memory = Path(tempfile.mkdtemp(dir="/dev/shm"))
    plane = ControlPlane()
    plane.secrets = {"token": VALUE}
    store = _joined(plane, tmp_path / "state")
    files = SecretFiles.for_node(NODE, memory / "secrets")
    host = request.getfixturevalue("docker_host") if request.param == "docker" else None
    engines = make_engines(NODE, tmp_path / "state", (request.param,), host, files)
    agent = Agent(store, engines, tmp_path / "state", PACE, files)
    engine = engines[request.param]
    image = process_image(tmp_path / "layout")
    if host is not None:
        image = request.getfixturevalue("demo_image")
    agent.start()
    yield Bench(
        plane, agent, engine, tmp_path / "state", files, _workload(request.param, image), host
    )
    agent.stop()
    store.close()
    plane.close()
    again = make_engines(NODE, tmp_path / "state", (request.param,), host, files)[request.param]
    for unit in again.units():
        again.remove(unit)
        again.sweep(unit.instance)
    again.close()
    shutil.rmtree(memory, ignore_errors=True)


def _joined(plane: ControlPlane, folder: Path) -> StateStore:
    key = AgentKey.generate()
    reply = join(parse_join_token(plane.token()), key)
    store = StateStore(folder, time.time_ns() // 1_000_000)
    store.save_identity(
        Identity(
            node=NODE, server=plane.url, private_key=key.reveal_private(),
            verifiers=reply.verifiers, min_version=1, joined_at_ms=0,
            certificate=reply.certificate, ca=reply.ca,
        )
    )  # fmt: skip
    return store


def _workload(engine: str, image: Image) -> Workload:
    shell = ("/bin/busybox", "sh", "-c") if engine == "docker" else ("sh", "-c")
    probe = ExecProbe(command=(*shell, LOOK))
    return workload(
        engine=engine,
        image=image,
        command=(*shell, "while true; do sleep 1; done"),
        ports=(),
        readiness=Readiness(probe=probe, interval_ms=100, start_budget_ms=20_000),
        stop_grace_ms=0,
        secrets=(SecretFile(name="token"),),
    )


def eventually(condition: Callable[[], bool], timeout_s: float = 120.0) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, "did not come true"
        time.sleep(0.05)


def places_with(word: str, folder: Path) -> list[str]:
    return [
        str(path)
        for path in folder.rglob("*")
        if path.is_file() and word.encode() in path.read_bytes()
    ]


def test_the_workload_finds_its_secret_and_nobody_else_does(bench: Bench) -> None:
    report = bench.launched()
    assert (bench.folder / "token").read_text() == VALUE
    assert places_with(VALUE, bench.state) == []
    assert VALUE not in report.model_dump_json() + repr(bench.plane.reports)
    assert VALUE not in json.dumps([bench.unit().__dict__], default=str)


def test_it_is_there_again_when_it_vanished_before_a_restart(bench: Bench) -> None:
    bench.launched()
    shutil.rmtree(bench.folder)
    bench.kill()
    bench.plane.wait_for_workload(lambda w: is_ready(w) and w.restarts == 1)
    assert (bench.folder / "token").read_text() == VALUE
    assert bench.plane.secrets_asked == [("token",), ("token",)]


def test_a_control_plane_that_is_away_stops_no_restart(bench: Bench) -> None:
    bench.launched()
    bench.plane.away = True
    bench.kill()
    eventually(lambda: bench.unit().status == "running")
    bench.plane.away = False
    bench.plane.wait_for_workload(lambda w: is_ready(w) and w.restarts == 1)
    assert bench.plane.secrets_asked == [("token",)]


def test_without_its_secret_nothing_starts_until_it_comes(bench: Bench) -> None:
    bench.launched()
    values, bench.plane.secrets = bench.plane.secrets, {}
    shutil.rmtree(bench.folder)
    bench.kill()
    waiting = bench.plane.wait_for_workload(lambda w: w.reason is FailureReason.SECRET_UNAVAILABLE)
    assert waiting.message.startswith("the control plane gave no secrets: not_placed: ")
    assert bench.unit().status == "exited"
    bench.plane.secrets = values
    bench.plane.wait_for_workload(lambda w: is_ready(w) and w.restarts == 1)


def test_what_runs_is_not_stopped_for_one_whose_secret_is_not_to_be_had(bench: Bench) -> None:
    bench.launched()
    wants_more = bench.what.model_copy(
        update={"secrets": (SecretFile(name="token"), SecretFile(name="more"))}
    )
    bench.plane.send(launch, wants_more)
    waiting = bench.plane.wait_for_workload(lambda w: w.reason is FailureReason.SECRET_UNAVAILABLE)
    assert waiting.running_hash == bench.what.spec_hash
    assert bench.unit().status == "running"
    bench.plane.secrets = {**bench.plane.secrets, "more": "sesame"}
    bench.plane.wait_for_workload(lambda w: is_ready(w) and w.running_hash == wants_more.spec_hash)


def test_it_goes_with_its_instance_and_that_is_proved(bench: Bench) -> None:
    bench.launched()
    folder = bench.folder
    bench.plane.send(remove)
    gone = bench.plane.wait_for_workload(lambda w: w.phase is Phase.REMOVED)
    assert gone.proof is not None
    assert gone.proof.clean
    assert not folder.exists()


def test_what_can_not_be_removed_is_counted(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.launched()
    with monkeypatch.context() as patched:
        patched.setattr(bench.files, "remove", lambda _: None)
        bench.plane.send(remove)
        stuck = bench.plane.wait_for_workload(
            lambda w: w.reason is FailureReason.TEARDOWN_INCOMPLETE
        )
        assert "found again after teardown: 0 containers, 0 networks, 0 volumes, 1 paths" in (
            stuck.message
        )
    bench.plane.wait_for_workload(lambda w: w.phase is Phase.REMOVED)
    assert bench.files.residue(INSTANCE) == 0


def referring(bench: Bench, source: str, **changes: Any) -> Workload:
    """The same workload, whose secret somebody else wrote."""
    token = SecretFile(name="token", source=source)
    bench.plane.secrets.setdefault(token.asked, f"{VALUE} of {source}")
    return bench.what.model_copy(update={"secrets": (token,), **changes})


def read(bench: Bench, what: Workload) -> str:
    return (bench.files.folder_of(what) / "token").read_text()


def test_what_was_written_since_is_there_at_the_next_start(bench: Bench) -> None:
    what = referring(bench, "secret://project/a")
    bench.plane.send(launch, what)
    bench.plane.wait_for_workload(is_ready)
    bench.plane.secrets[what.secrets[0].asked] = "newer"
    assert read(bench, what) == f"{VALUE} of secret://project/a"
    bench.kill()
    bench.plane.wait_for_workload(lambda w: is_ready(w) and w.restarts == 1)
    assert read(bench, what) == "newer"


def test_a_restart_while_the_control_plane_is_away_uses_what_is_there(bench: Bench) -> None:
    what = referring(bench, "secret://project/a")
    bench.plane.send(launch, what)
    bench.plane.wait_for_workload(is_ready)
    bench.plane.away = True
    bench.kill()
    eventually(lambda: bench.unit().status == "running")
    bench.plane.away = False
    bench.plane.wait_for_workload(lambda w: is_ready(w) and w.restarts == 1)
    assert read(bench, what) == f"{VALUE} of secret://project/a"


def test_gone_back_from_another_source_it_reads_its_own_again(bench: Bench) -> None:
    good = referring(bench, "secret://project/a")
    deaf = Readiness(probe=ExecProbe(command=("/no/such",)), interval_ms=50, start_budget_ms=1_500)
    bad = referring(bench, "secret://tenant/a", readiness=deaf)
    bench.plane.send(launch, good)
    bench.plane.wait_for_workload(is_ready)
    bench.plane.send(launch, bad)
    bench.plane.wait_for_workload(lambda w: w.phase is Phase.FAILED and w.retained)
    values = [read(bench, one) for one in (good, bad)]
    assert values == [f"{VALUE} of secret://project/a", f"{VALUE} of secret://tenant/a"]
    after = referring(bench, "secret://project/b")
    bench.plane.send(launch, after)
    bench.plane.wait_for_workload(lambda w: is_ready(w) and w.running_hash == after.spec_hash)
    eventually(lambda: bench.files.residue(INSTANCE) == 1)
    bench.plane.send(remove)
    gone = bench.plane.wait_for_workload(lambda w: w.phase is Phase.REMOVED)
    assert gone.proof is not None
    assert gone.proof.clean
    assert bench.files.residue(INSTANCE) == 0


@pytest.mark.real
@pytest.mark.parametrize("bench", ["docker"], indirect=True)
def test_inside_a_container(bench: Bench) -> None:
    """Readable by any user, changeable by none; and nothing of it in what Docker says."""
    bench.launched()
    client: Any = docker.APIClient(base_url=bench.docker_host)
    container = bench.unit().unit_id
    try:
        path = f"{SECRETS_PATH}/token"
        assert run(client, container, "65534", "cat", path) == (0, VALUE)
        for user in ("0", "65534"):
            code, said = run(client, container, user, "sh", "-c", f"echo x > {path}")
            assert (code, "Read-only file system" in said or "denied" in said) == (1, True)
            code, _ = run(client, container, user, "touch", f"{SECRETS_PATH}/more")
            assert code == 1
        assert run(client, container, "0", "ls", "-A", SECRETS_PATH) == (0, "token")
        inspected = client.inspect_container(container)
        assert f"{SECRETS_VARIABLE}={SECRETS_PATH}" in inspected["Config"]["Env"]
        assert VALUE not in json.dumps(inspected)
        assert VALUE not in json.dumps(client.inspect_image(inspected["Image"]))
        assert VALUE not in str(client.logs(container))
        assert VALUE not in str([read_arguments(pid) for pid in os.listdir("/proc")])
    finally:
        client.close()


def run(client: Any, container: str, user: str, *command: str) -> tuple[int, str]:
    made = client.exec_create(container, ["/bin/busybox", *command], user=user)["Id"]
    said = client.exec_start(made).decode().strip()
    return int(client.exec_inspect(made)["ExitCode"]), said


def read_arguments(pid: str) -> bytes:
    try:
        return (
            Path("/proc", pid, "cmdline").read_bytes() + Path("/proc", pid, "environ").read_bytes()
        )
    except OSError:
        return b""
