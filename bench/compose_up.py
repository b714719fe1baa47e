"""From a commit to three services that are ready, beside `docker compose up --wait` of the same.

Rules:
- Both sides use the same private Docker, the same images, already pulled, and the same Compose, in
  one run, turn about, so that whatever slows this machine down slows both.
- Bare Compose gets the file that the agent wrote, as another project, with what the manifest says
  of order and health put in Compose's words, since the agent keeps those to itself. And once more
  without: then it starts all at once and waits for nobody.
- The clock stops when the main service answers over HTTP and each side says that all are ready.
- Nothing is written but a folder that is removed at the end.

Run: `python -m bench.compose_up [--rounds 10]`, as root where Docker needs it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from bench.commit_to_running import until
from reconciler.devkit import images, services, state_repo
from tests.e2e import topologies
from tests.e2e.platform import AGENT, INSTANCE, VERSIONS, Document, Platform, publish_to_registry
from tests.services import go_tools

SERVICES = ("left", "main", "right")
VERSION_FILE = f"catalog/hello/versions/{VERSIONS[0]}.yaml"
WAIT_S = 120.0
ASK = ["CMD", "/bin/busybox", "wget", "-q", "-O", "/dev/null", "http://127.0.0.1:8080/"]
_OURS = ("labels", "container_name", "networks", "healthcheck", "depends_on", "volumes")
"""Of a service: names, order and health in our way, and the secret of its instance."""
STAGES = (
    ("git commit, webhook", "begun", "woken"),
    ("fetch, plan, sign, deliver", "woken", "task accepted"),
    ("create: the form, written down", "Create", "Start"),
    ("start: compose create", "Start", "StartServices"),
    ("start in order, probe until ready", "StartServices", "Commit"),
    ("report, pass, seen over HTTP", "Commit", "ready"),
)


@dataclass(frozen=True)
class Bench:
    """`file`: what the agent showed Compose, once it was launched for the first time."""

    platform: Platform
    compose: Path
    root: Path

    def call(self, project: str, document: Mapping[str, Any], *words: str) -> None:
        file = self.root / f"{project}.json"
        file.write_text(json.dumps(document))
        argv = [str(self.compose), "-p", project, "-f", str(file), *words]
        host = {"PATH": os.environ.get("PATH", os.defpath), "HOME": str(self.root)}
        environment = {**host, "DOCKER_HOST": str(self.platform.docker_host)}
        done = subprocess.run(argv, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(done.stderr)


def three_services(spec: dict[str, Any]) -> None:
    """Three of the site; the main one waits until the two others are ready."""
    health = {"readiness": {"http": {"port": images.SITE_PORT, "path": "/"}}, "interval_s": 0.1}
    command, limits = spec["runtime_profile"]["command"], {"memory_mib": 32, "vcpu": 0.5}
    beside = [
        {"name": name, "sidecar_class": "data", "command": command, "health": health,
         "limits": limits, "stop_grace_s": 1, "image_ref": spec["artifact_ref"], "vital": True}
        for name in ("left", "right")
    ]  # fmt: skip
    waits = [{"service": one["name"], "condition": "healthy"} for one in beside]
    main = {"name": "main", "role": "main", "command": command, "health": health,
            "stop_grace_s": 1, "depends_on": waits}  # fmt: skip
    endpoint = {"name": "http", "service": "main", "port": images.SITE_PORT, "expose": "private"}
    spec["runtime_profile"] = {
        "kind": "docker_compose",
        "renderer": "generic_services",
        "resources": spec["runtime_profile"]["resources"],
        "topology": {"services": [main, *beside], "endpoints": [endpoint]},
    }


@contextmanager
def prepared(root: Path) -> Iterator[Bench]:
    """Docker, registry, control plane and agent; nothing runs, and the images are pulled."""
    compose = go_tools.program("docker-compose")
    with (
        services.start_dockerd(root / "docker") as dockerd,
        services.start_registry(root / "registry") as registry,
    ):
        folder = root / "platform"
        folder.mkdir()
        published = publish_to_registry(registry.endpoint)
        platform = topologies.platform_with_compose(folder, published, dockerd.host, compose)
        change(platform, VERSION_FILE, three_services)
        platform.repo.begin_with()
        try:
            platform.start()
            yield Bench(platform, compose, root)
        finally:
            platform.stop()


def change(platform: Platform, path: str, edit: Callable[[dict[str, Any]], None]) -> None:
    file = platform.repo.folder / path
    document = yaml.safe_load(file.read_text())
    edit(document["spec"])
    # JSON is YAML too, and writes out what stands there more than once.
    file.write_text(json.dumps(document, indent=2))


# --- the two sides -------------------------------------------------------------------------------


def by_commit(bench: Bench) -> tuple[dict[str, float], Document]:
    """Moments by name, from `git commit` to running and ready, and the file that Compose got."""
    platform = bench.platform
    moments = {"begun": time.time()}
    manifest = platform.repo.folder / state_repo.INSTANCE
    manifest.parent.mkdir(parents=True, exist_ok=True)
    manifest.write_text(state_repo.first_files()[state_repo.INSTANCE].decode())
    change(platform, state_repo.INSTANCE, with_room)
    platform.commit("bench")
    moments["woken"] = time.time()
    until(lambda: is_ready(platform.instance()), WAIT_S)
    moments["ready"] = time.time()
    until(lambda: platform.page() == VERSIONS[0], WAIT_S)
    moments |= {"answered": time.time(), **told(platform, moments["begun"])}
    (file,) = (platform.root / AGENT / "compose").glob("*/compose.json")
    document: Document = json.loads(file.read_text())
    platform.remove_instance()
    platform.commit("bench")
    until(lambda: platform.instance()["state"] == "decommissioned", WAIT_S)
    return moments, document


def with_room(spec: dict[str, Any]) -> None:
    spec["parameters"] = {"cpu_cores": 2, "memory_gib": 0.25}


def is_ready(instance: Mapping[str, Any]) -> bool:
    conditions = {c["type"]: c["status"] for c in instance.get("conditions", ())}
    return instance.get("state") == "running" and conditions.get("ServicesReady") == "True"


def told(platform: Platform, since: float) -> dict[str, float]:
    """When the agent first did each step since then."""
    moments: dict[str, float] = {}
    for line in (platform.root / f"{AGENT}.log").read_text().splitlines():
        entry = json.loads(line) if line.startswith("{") else {}
        at = datetime.fromisoformat(entry["timestamp"]).timestamp() if entry else 0.0
        if at >= since and entry.get("instance") == INSTANCE:
            moments.setdefault(str(entry.get("step") or entry["event"]), at)
    return moments


def bare(bench: Bench, document: Document, conditions: bool) -> float:
    """Seconds of `docker compose up --wait`, until the main service answers."""
    document = as_somebody_elses(document, services.free_port(), conditions)
    port = document["services"]["main"]["ports"][0]["published"]
    begun = time.time()
    bench.call("bare", document, "up", "--detach", "--wait", "--pull", "never")
    until(lambda: Platform.page_at(f"http://127.0.0.1:{port}/") == VERSIONS[0], WAIT_S)
    taken = time.time() - begun
    bench.call("bare", document, "down", "--volumes", "--timeout", "1")
    return taken


def as_somebody_elses(document: Document, port: int, conditions: bool) -> Document:
    """The same under names of its own, without our labels."""
    copy: Document = json.loads(json.dumps(document))
    for part in ("name", "volumes"):
        copy.pop(part, None)
    copy["networks"] = {"default": {}}
    for name, service in copy["services"].items():
        for part in _OURS:
            service.pop(part, None)
        for one in service.get("ports", ()):
            one["published"] = str(port)
        if conditions:
            service["healthcheck"] = {"test": ASK, "interval": "100ms", "retries": 100}
            if name == "main":
                others = [one for one in SERVICES if one != "main"]
                service["depends_on"] = {one: {"condition": "service_healthy"} for one in others}
    return copy


# --- one run -------------------------------------------------------------------------------------


def report(ours: Sequence[Mapping[str, float]], theirs: Mapping[str, Sequence[float]]) -> None:
    """Prints medians in milliseconds, their range, and how they compare with the first row."""
    print(f"\n{len(ours)} rounds{'':<41}  median        min        max   ratio")
    base = statistics.median(next(iter(theirs.values())))
    for name, seconds in theirs.items():
        _row(name, seconds, base)
    _row("commit + webhook, until it answers", _between(ours, "begun", "answered"), base)
    _row("task accepted, until all are ready", _between(ours, "task accepted", "Commit"), base)
    for name, start, end in STAGES:
        _row(f"    {name}", _between(ours, start, end), None)


def _between(ours: Sequence[Mapping[str, float]], start: str, end: str) -> list[float]:
    return [one[end] - one[start] for one in ours if start in one and end in one]


def _row(name: str, seconds: Sequence[float], base: float | None) -> None:
    if seconds:
        middle = statistics.median(seconds)
        figures = "".join(f"{one * 1000:8.0f} ms" for one in (middle, min(seconds), max(seconds)))
        print(f"  {name:<46}{figures}" + (f"  {middle / base:6.2f}" if base else ""))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=10)
    given = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="gpuaas-bench-"))
    print(f"{os.cpu_count()} cores, Python {sys.version.split()[0]}, {given.rounds} rounds each")
    sides: dict[str, list[float]] = {
        "docker compose up --wait": [],
        "docker compose up --wait, all at once": [],
    }
    ours: list[dict[str, float]] = []
    try:
        with prepared(root) as bench:
            by_commit(bench)
            for _ in range(given.rounds):
                moments, document = by_commit(bench)
                ours.append(moments)
                for name, seconds in sides.items():
                    seconds.append(bare(bench, document, conditions="at once" not in name))
        report(ours, sides)
    finally:
        shutil.rmtree(root, ignore_errors=True)


if __name__ == "__main__":
    main()
