"""A node of its own for topologies on real Docker and Compose, and somebody else on its Docker."""

from __future__ import annotations

import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import docker

from node_agent.compose_wire import Mount, Scratch, Service, Topology, Volume
from node_agent.engines.base import Residue
from node_agent.engines.compose import ComposeEngine
from node_agent.engines.compose_file import project_name
from node_agent.secret_files import SecretFiles
from node_agent.units import Unit
from node_agent.wire import Image, Limits, Port, SecretFile, Workload
from tests.contract.test_engines import free_port

NODE = "n-topologies"
INSTANCE = "acme/research/rag"
PROJECT = project_name(NODE, INSTANCE)
NOTHING = Residue(0, 0, 0, 0)
ALL = ("api", "db", "metrics")


@dataclass
class Place:
    """A node of its own, and somebody with access to its Docker. `calls`: of Compose, so far."""

    engine: ComposeEngine
    host: str
    api: Any
    image: Image
    folder: Path
    program: Path
    files: SecretFiles
    port: int = field(default_factory=free_port)

    @property
    def state(self) -> Path:
        return self.folder / "compose"

    def calls(self) -> int:
        log = self.folder / "calls"
        return len(log.read_text().splitlines()) if log.exists() else 0

    def another(self, program: Path | None = None) -> ComposeEngine:
        return ComposeEngine(
            NODE, self.state, self.host, secrets=self.files,
            program=program or self.program,
        )  # fmt: skip

    def services(self, secrets: tuple[str, ...] = (), **of_api: Any) -> tuple[Service, ...]:
        asked: dict[str, dict[str, Any]] = {
            "api": {"ports": ("http",), "secrets": secrets, **of_api},
            "db": {"mounts": (Mount(volume="data", path="/data"),)},
            "metrics": {
                "confined": True,
                "scratch": (Scratch(path="/tmp", size_mib=1),),
                "limits": Limits(cpu_millis=333, memory_mib=32, pids=32, shm_mib=1),
            },
        }
        return tuple(
            Service(**{"name": name, "image": self.image, **more}) for name, more in asked.items()
        )

    def workload(self, size_mib: int = 1, secrets: tuple[SecretFile, ...] = (),
                 **of_api: Any) -> Workload:  # fmt: skip
        topology = Topology(
            services=self.services(tuple(one.name for one in secrets), **of_api),
            volumes=(Volume(name="data", size_mib=size_mib),),
        )
        return Workload(
            instance=INSTANCE,
            engine="compose",
            image=self.image,
            ports=(Port(name="http", container=8080),),
            topology=topology,
            secrets=secrets,
        )

    def create(self, workload: Workload) -> Unit:
        for image in workload.images:
            self.engine.pull(image, threading.Event())
        self.engine.create(workload, {"http": self.port})
        return self.unit(workload)

    def run(self, workload: Workload) -> Unit:
        self.engine.start(self.create(workload))
        self.engine.start_services(self.unit(workload), ALL)
        return self.unit(workload)

    def unit(self, workload: Workload) -> Unit:
        units = self.engine.units(INSTANCE)
        (unit,) = (one for one in units if one.spec_hash == workload.spec_hash)
        return unit

    def container(self, workload: Workload, name: str) -> str:
        return next(one.unit_id for one in self.unit(workload).services if one.name == name)

    def altered(self, workload: Workload) -> dict[str, tuple[str, ...]]:
        services = self.unit(workload).services
        return {one.name: one.altered for one in services if one.altered}

    def repaired(self, workload: Workload, *names: str) -> Unit:
        self.engine.remove_services(self.unit(workload), names, 0)
        self.engine.start(self.unit(workload))
        self.engine.start_services(self.unit(workload), names)
        unit = self.unit(workload)
        assert {one.name: (one.status, one.altered) for one in unit.services} == dict.fromkeys(
            ALL, ("running", ())
        )
        return unit

    def tear_down(self) -> None:
        for _ in range(2):
            for unit in self.engine.units():
                self.engine.stop(unit, 0)
                self.engine.remove(unit)
        self.engine.sweep(INSTANCE)


def script(path: Path, text: str) -> Path:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


@contextmanager
def open_place(host: str, compose: Path, image: Image, folder: Path) -> Iterator[Place]:
    """Taken down at the end, of which nothing may be left."""
    counted = f'[ "$1" = version ] || echo "$@" >> {folder}/calls\nexec {compose} "$@"'
    api: Any = docker.APIClient(host)
    memory = Path(tempfile.mkdtemp(dir="/dev/shm"))
    files = SecretFiles.for_node(NODE, memory / "secrets")
    program = script(folder / "counted", counted)
    engine = ComposeEngine(NODE, folder / "compose", host, secrets=files, program=program)
    place = Place(engine, host, api, image, folder, program, files)
    try:
        yield place
        place.tear_down()
        assert place.engine.residue(INSTANCE) == NOTHING
    finally:
        place.tear_down()
        place.engine.close()
        api.close()
        shutil.rmtree(memory)
