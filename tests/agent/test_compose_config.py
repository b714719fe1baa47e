"""What Compose's own program reads in our files: the texts as meant, and nothing filled in."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from node_agent.engines.compose_file import compose_file, compose_text
from tests.services.go_tools import program
from tests.topologies import (
    HOSTILE,
    NAMES,
    placement_of,
    placements,
    service,
    workload_of,
    workloads,
)

SECRET = "must-not-be-looked-up"
# All that Compose could fill in, if it filled in anything.
ENVIRONMENT = {
    "HOME": SECRET, "X": SECRET, "A": SECRET, "on": SECRET, "COMPOSE_PROJECT_NAME": "other",
    "COMPOSE_PROFILES": "*", "COMPOSE_FILE": "/nowhere", "PATH": os.environ["PATH"],
}  # fmt: skip


def read_back(document: dict[str, Any], folder: Path) -> dict[str, Any]:
    """As `docker-compose config` gives it, each `$` single again."""
    file = folder / "file.json"
    file.write_text(compose_text(document))
    (folder / ".env").write_text(f"X={SECRET}\nA={SECRET}\n")
    said = config(document["name"], file)
    assert SECRET.encode() not in said
    read: dict[str, Any] = single(json.loads(said))
    return read


def config(project: str, file: Path) -> bytes:
    done = subprocess.run(
        [program("docker-compose"), "-p", project, "--project-directory", file.parent,
         "--env-file", "/dev/null", "-f", file, "config", "--format", "json"],
        env=ENVIRONMENT, stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


def single(value: Any) -> Any:
    if isinstance(value, str):
        return value.replace("$$", "$")
    if isinstance(value, dict):
        return {name: single(inner) for name, inner in value.items()}
    return [single(inner) for inner in value] if isinstance(value, list) else value


def as_config_says(words: dict[str, Any]) -> dict[str, Any]:
    """A service's words in the forms that `config` puts them in."""
    said = {name: value for name, value in words.items() if value not in ([], {})}
    for name in {"shm_size", "mem_limit", "memswap_limit"} & said.keys():
        said[name] = str(said[name])
    if "volumes" in said:
        said["volumes"] = [_mount(one) for one in said["volumes"]]
    if "ports" in said:
        said["ports"] = [{"mode": "ingress", **one} for one in said["ports"]]
    if "devices" in said:
        parts = [one.split(":") for one in said["devices"]]
        said["devices"] = [{"source": a, "target": b, "permissions": c} for a, b, c in parts]
    if "depends_on" in said:
        waits = {"condition": "service_started", "required": True}
        said["depends_on"] = dict.fromkeys(said["depends_on"], waits)
    said.pop("stop_grace_period")
    return said


def _mount(one: dict[str, Any]) -> dict[str, Any]:
    kept = {name: value for name, value in one.items() if value is not False}
    return {**kept, "bind": {}} if one["type"] == "bind" else kept


def as_read(words: dict[str, Any]) -> dict[str, Any]:
    left_out = {"networks", "stop_grace_period"}
    said = {name: value for name, value in words.items() if name not in left_out and value}
    said.get("deploy", {}).pop("placement", None)
    return said


@settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_any_topology_is_read_as_it_was_meant(data: st.DataObject) -> None:
    what = data.draw(workloads())
    document = compose_file(what, data.draw(placements(what)))
    with tempfile.TemporaryDirectory() as folder:
        read = read_back(document, Path(folder))
    assert read.keys() <= {"name", "services", "networks", "volumes"}
    assert read["name"] == document["name"]
    assert read["services"].keys() == document["services"].keys()
    for name, words in document["services"].items():
        assert as_read(read["services"][name]) == as_config_says(words)
        assert read["services"][name]["networks"] == {"default": None}
    assert {n: one["name"] for n, one in read.get("volumes", {}).items()} == {
        n: one["name"] for n, one in document["volumes"].items()
    }


def test_hostile_texts_everywhere(tmp_path: Path) -> None:
    """All of them at once, as names of services where they can be, and as values."""
    variables = {f"V{number}": text for number, text in enumerate(HOSTILE)}
    what = workload_of(
        *(service(name, command=tuple(HOSTILE), env=variables) for name in NAMES),
        labels={"dev.gpuaas.app": "${X} $A"},
    )
    read = read_back(compose_file(what, placement_of(what)), tmp_path)
    assert read["services"].keys() == {*NAMES}
    for one in read["services"].values():
        assert one["entrypoint"] == list(HOSTILE)
        assert variables.items() <= one["environment"].items()
        assert one["labels"]["dev.gpuaas.app"] == "${X} $A"
        assert "privileged" not in one


def test_with_single_ones_it_would_be_filled_in(tmp_path: Path) -> None:
    """So that the tests above show something."""
    what = workload_of(service(env={"A": "${X}"}))
    document = compose_file(what, placement_of(what))
    file = tmp_path / "file.json"
    file.write_text(compose_text(document).replace("$$", "$"))
    assert SECRET.encode() in config(document["name"], file)
