"""Secrets in the environment: the workload's own process has them, and nothing else says them.

The same cases on the fake, on processes and on real Docker.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import docker
import pytest

from node_agent.engines import secret_env
from node_agent.engines.base import Engine, EngineFailure
from node_agent.engines.docker import DockerEngine
from node_agent.engines.process import ProcessEngine
from node_agent.secret_files import SecretFiles
from node_agent.units import Unit
from node_agent.wire import ExecProbe, FailureReason, Image, SecretFile, Workload
from tests.agent.cases import process_image
from tests.fakes.engine import FakeEngine
from tests.services import python_image

INSTANCE = "acme/research/web"
VALUE = "hunter2-hunter2-hunter2"
VALUES = {
    "plain": VALUE,
    "spaces": f"  {VALUE} and\tmore ",
    "quotes": f"""it's "{VALUE}" `id` $HOME ${{X}} \\ \\n * ? --""",
    "newlines": f"-----BEGIN {VALUE}-----\n\n  a\\\nb\n-----END-----\n\n",
    "unicode": f"ä€𝄞{VALUE}" + "".join(map(chr, range(0x80, 0x800))),
    "every sign": VALUE + "".join(map(chr, range(1, 0x80))),
    "empty": "",
    "long": VALUE + "x" * 100_000,
}
TOKEN = SecretFile(name="hf-token", source="secret://project/hf-token", env="HF_TOKEN")


@dataclass(frozen=True)
class Bench:
    """`environ_of`: the environment of a unit's own process; `shown`: all that is said of it."""

    engine: Engine
    files: SecretFiles
    image: Image
    stay: tuple[str, ...]
    environ_of: Callable[[Unit], dict[str, str]]
    shown: Callable[[Unit], str]

    def workload(self, *secrets: SecretFile, **changes: Any) -> Workload:
        fields: dict[str, Any] = {
            "instance": INSTANCE,
            "engine": self.engine.name,
            "image": self.image,
            "command": self.stay,
            "secrets": secrets or (TOKEN,),
        }
        return Workload(**{**fields, **changes})

    def run(self, workload: Workload, **values: str) -> Unit:
        self.files.put(workload, values)
        self.engine.pull(workload.image, threading.Event())
        self.engine.create(workload, {})
        self.engine.start(self.only())
        return self.only()

    def only(self) -> Unit:
        (unit,) = self.engine.units(INSTANCE)
        return unit

    def found(self, unit: Unit, name: str = "HF_TOKEN") -> str | None:
        """Once its own command runs."""
        deadline_s = time.monotonic() + 120
        while "gpuaas-secrets" in self.environ_of(unit).get("", ""):
            assert time.monotonic() < deadline_s, "its own command does not run"
            time.sleep(0.02)
        return self.environ_of(unit).get(name)


def process_environ(pid: int) -> dict[str, str]:
    """Of a process of this host; under "" its command line."""
    raw = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="surrogateescape")
    pairs = (entry.partition("=") for entry in raw.split("\0") if entry)
    found = {name: value for name, _, value in pairs}
    return {**found, "": Path(f"/proc/{pid}/cmdline").read_text(errors="replace")}


def _fake(files: SecretFiles) -> Bench:
    digest = "sha256:" + "a" * 64
    engine = FakeEngine("n1", {digest}, secrets=files)
    image = Image(registry="fake", repository="demo", digest=digest)
    return Bench(
        engine, files, image, ("serve",), lambda unit: engine.environments[unit.unit_id],
        repr,
    )  # fmt: skip


def _process(folder: Path, files: SecretFiles) -> Bench:
    engine = ProcessEngine("n1", folder / "process", secrets=files)

    def environ_of(unit: Unit) -> dict[str, str]:
        run = folder / "process" / "units" / unit.unit_id / "run.json"
        return process_environ(int(json.loads(run.read_text())["pid"]))

    def shown(unit: Unit) -> str:
        found = [path for path in (folder / "process").rglob("*") if path.is_file()]
        written = "".join(path.read_text(errors="replace") for path in found)
        return repr(unit) + written + environ_of(unit)[""]

    image = process_image(folder / "layout")
    return Bench(engine, files, image, ("sleep", "600"), environ_of, shown)


def _docker(host: str, image: Image, files: SecretFiles) -> Bench:
    engine = DockerEngine(f"n-{uuid.uuid4().hex[:8]}", host, secrets=files)

    def ask(question: Callable[[Any], Any]) -> Any:
        client = docker.APIClient(base_url=host)
        try:
            return question(client)
        finally:
            client.close()

    def processes(unit: Unit) -> list[int]:
        top = ask(lambda client: client.top(unit.unit_id, ps_args="-eo pid,args"))
        return [int(row[0]) for row in top["Processes"]]

    def environ_of(unit: Unit) -> dict[str, str]:
        # The first is Docker's own init.
        return process_environ(processes(unit)[1])

    def shown(unit: Unit) -> str:
        said = ask(lambda client: [
            client.inspect_container(unit.unit_id), client.top(unit.unit_id),
            client.logs(unit.unit_id).decode(errors="replace"), client.diff(unit.unit_id),
        ])  # fmt: skip
        init = process_environ(processes(unit)[0])
        written = b"".join(ask(lambda client: list(client.export(unit.unit_id))))
        return repr((unit, said, init)) + written.decode(errors="replace")

    return Bench(engine, files, image, ("/bin/busybox", "sleep", "600"), environ_of, shown)


@pytest.fixture
def files() -> Iterator[SecretFiles]:
    memory = Path(tempfile.mkdtemp(dir="/dev/shm"))
    yield SecretFiles.for_node("n1", memory / "secrets")
    shutil.rmtree(memory, ignore_errors=True)


@pytest.fixture(scope="module")
def shell_image(registry_endpoint: str, tmp_path_factory: pytest.TempPathFactory) -> Image:
    """Its entrypoint says the first word of its command and becomes the rest."""
    entry = ["/bin/sh", "-c", 'export SAID="$1"; shift; exec "$@"', "entry"]
    command = ["its own", "/bin/busybox", "sleep", "600"]
    folder = tmp_path_factory.mktemp("shell")
    return python_image.push(
        folder, registry_endpoint, "shell-env", python=False, Entrypoint=entry, Cmd=command
    )


@pytest.fixture(params=["fake", "process", pytest.param("docker", marks=pytest.mark.real)])
def bench(request: pytest.FixtureRequest, tmp_path: Path, files: SecretFiles) -> Iterator[Bench]:
    if request.param == "fake":
        made = _fake(files)
    elif request.param == "process":
        made = _process(tmp_path, files)
    else:
        host, image = map(request.getfixturevalue, ("docker_host", "shell_image"))
        made = _docker(host, image, files)
    yield made
    for unit in made.engine.units():
        made.engine.stop(unit, 0)
        made.engine.remove(unit)
        made.engine.sweep(unit.instance)
    made.engine.close()


@pytest.mark.parametrize("kind", VALUES)
def test_the_workload_finds_the_very_value(bench: Bench, kind: str) -> None:
    unit = bench.run(bench.workload(), **{"hf-token": VALUES[kind]})
    assert bench.found(unit) == VALUES[kind]
    assert bench.only().altered == ()


def test_nothing_says_it_and_nothing_keeps_it(bench: Bench) -> None:
    unit = bench.run(bench.workload(), **{"hf-token": VALUE})
    assert bench.found(unit) == VALUE
    assert VALUE not in bench.shown(unit)


def test_several_come_beside_what_the_manifest_says(bench: Bench) -> None:
    other = SecretFile(name="key", env="API_KEY")
    only_a_file = SecretFile(name="file")
    what = bench.workload(TOKEN, other, only_a_file, env={"MODE": "fast", "API_KEY": "none"})
    unit = bench.run(what, **{"hf-token": "one", "key": "two", "file": VALUE})
    assert bench.found(unit, "MODE") == "fast"
    assert (bench.found(unit, "HF_TOKEN"), bench.found(unit, "API_KEY")) == ("one", "two")
    assert VALUE not in bench.environ_of(unit).values()
    assert not [name for name in bench.environ_of(unit) if name.startswith("gpuaas")]


def test_a_further_start_finds_what_was_written_since(bench: Bench) -> None:
    what = bench.workload()
    unit = bench.run(what, **{"hf-token": "first"})
    assert bench.found(unit) == "first"
    bench.engine.stop(unit, 0)
    bench.files.put(what, {"hf-token": "second"})
    bench.engine.start(bench.only())
    assert bench.found(bench.only()) == "second"
    assert bench.only().altered == ()


@pytest.mark.parametrize("name", ["A-B", "1A", "A=B", "GPUAAS_SECRETS_PATH", "A\nB", "A;id", "ä"])
def test_what_is_no_name_for_one_is_refused(bench: Bench, name: str) -> None:
    what = bench.workload(TOKEN.model_copy(update={"env": name}))
    bench.files.put(what, {"hf-token": VALUE})
    bench.engine.pull(what.image, threading.Event())
    with pytest.raises(EngineFailure) as refused:
        bench.engine.create(what, {})
    assert refused.value.reason is FailureReason.CREATE_REFUSED
    assert refused.value.message == f"{name!r} is no name for a variable that holds a secret"
    assert bench.engine.units() == ()


@pytest.mark.real
@pytest.mark.parametrize("bench", ["docker"], indirect=True)
class TestDocker:
    def test_the_images_own_entrypoint_and_command_run(self, bench: Bench) -> None:
        unit = bench.run(bench.workload(command=()), **{"hf-token": VALUE})
        assert bench.found(unit) == VALUE
        deadline_s = time.monotonic() + 120
        while "sleep" not in bench.environ_of(unit)[""]:
            assert time.monotonic() < deadline_s
            time.sleep(0.02)
        assert bench.environ_of(unit)["SAID"] == "its own"

    def test_what_is_run_beside_it_has_the_file_and_not_the_variable(self, bench: Bench) -> None:
        unit = bench.run(bench.workload(), **{"hf-token": VALUE})
        sees = ("/bin/sh", "-c", 'test -z "$HF_TOKEN" -a -s "$GPUAAS_SECRETS_PATH/hf-token"')
        assert bench.engine.probe(unit, ExecProbe(command=sees), 10_000).ready

    def test_nothing_of_it_is_on_docker_s_disk(self, bench: Bench, docker_host: str) -> None:
        unit = bench.run(bench.workload(), **{"hf-token": VALUE})
        assert bench.found(unit) == VALUE
        client: Any = docker.APIClient(base_url=docker_host)
        root = Path(client.info()["DockerRootDir"])
        client.close()
        assert list((root / "containers" / unit.unit_id).iterdir())
        looked = subprocess.run(
            ["grep", "-rlaFs", "-f", "-", str(root)], input=VALUE, text=True,
            capture_output=True, check=False,
        )  # fmt: skip
        assert looked.stdout == ""

    def test_a_file_that_is_gone_is_said_so(self, bench: Bench, docker_host: str) -> None:
        """Somebody starts it by hand."""
        what = bench.workload()
        bench.files.put(what, {})
        bench.engine.pull(what.image, threading.Event())
        bench.engine.create(what, {})
        bench.engine.start(bench.only())
        deadline_s = time.monotonic() + 120
        while bench.only().status != "exited":
            assert time.monotonic() < deadline_s
            time.sleep(0.05)
        assert bench.only().exit_code == 94
        client: Any = docker.APIClient(base_url=docker_host)
        log = client.logs(bench.only().unit_id).decode()
        client.close()
        assert log == "gpuaas: the secret hf-token is not there\n"

    def test_an_image_without_a_shell_is_told_what_to_do(
        self, bench: Bench, demo_image: Image
    ) -> None:
        shellless = replace(bench, image=demo_image)
        what = shellless.workload()
        bench.files.put(what, {"hf-token": VALUE})
        bench.engine.pull(demo_image, threading.Event())
        with pytest.raises(EngineFailure) as refused:
            bench.engine.create(what, {})
        assert refused.value.reason is FailureReason.CREATE_REFUSED
        assert refused.value.message == (
            "secrets in variables need /bin/sh in the image, and there is none: leave out env of "
            "HF_TOKEN (hf-token) and read the files in the folder that GPUAAS_SECRETS_PATH names"
        )
        assert bench.engine.units() == ()


@pytest.mark.parametrize("shell", ["dash", "bash", "busybox sh"])
@pytest.mark.parametrize("language", ["C", "C.UTF-8"])
def test_every_shell_gives_every_byte(tmp_path: Path, shell: str, language: str) -> None:
    program, *rest = shell.split()
    found = shutil.which(program)
    assert found is not None
    value = bytes(range(1, 256)) + b"\n\n"
    (tmp_path / "hf-token").write_bytes(value)
    what = Workload(
        instance=INSTANCE, engine="docker", secrets=(TOKEN,),
        image=Image(registry="r", repository="x", digest="sha256:" + "a" * 64),
    )  # fmt: skip
    _, *words = secret_env.wrapped(what, ("/usr/bin/env", "-0"))
    said = subprocess.run(
        [found, *rest, *words], check=True, capture_output=True,
        env={"GPUAAS_SECRETS_PATH": str(tmp_path), "LC_ALL": language, "PATH": os.defpath},
    )  # fmt: skip
    assert b"HF_TOKEN=" + value in said.stdout.split(b"\0")
