"""From `git commit` to an app that answers, beside `docker pull` and `docker run` of its image.

Rules:
- Both sides use the same private Docker, the same registry and the same image, in one run, turn
  about, so that whatever slows this machine down slows both.
- The clock starts before `git commit`, and before `docker pull`. It stops at the first HTTP answer;
  for a commit also when `GET /v1/instances/…` says running and ready.
- Neither side is asked over HTTP before its container was started: Docker's proxy listens earlier,
  and whoever knocks then makes the kernel wait most of a second before it asks for the container's
  address again.
- Another instance stands on the node meanwhile, as on any node in use: what the first one of a node
  needs once (its network) is not measured.
- Nothing is written but a folder that is removed at the end; the JupyterLab image is kept.

Run: `python -m bench.commit_to_running [--rounds 10] [--dir DIR] [--no-jupyterlab]`, as root where
Docker needs it.
"""

from __future__ import annotations

import argparse
import hashlib
import hmac
import json
import os
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx

from reconciler.devkit import demo, images, jupyter_image, process, services, state_repo
from tests.e2e import jupyter

SITE = "acme/research/hello"
LOOK_S = 0.01
WAIT_S = 60.0
STAGES = (
    ("git commit", "begun", "committed"),
    ("webhook answered", "committed", "woken"),
    ("fetch, read, accept", "woken", "pass begun"),
    ("plan, look up, sign, deliver", "pass begun", "task accepted"),
    ("pull", "Pull", "Create"),
    ("create", "Create", "Start"),
    ("start", "Start", "ProbeReady"),
    ("probe until ready", "ProbeReady", "Commit"),
    ("report, pass", "Commit", "settled"),
    ("seen over HTTP", "settled", "ready"),
)


class Quiet:
    """A demo that says nothing."""

    def title(self, text: str) -> None: ...

    def command(self, text: str) -> None: ...

    def text(self, text: str) -> None: ...

    def status(self, document: Mapping[str, Any]) -> None: ...

    def events(self, lines: list[str]) -> None: ...


@dataclass(frozen=True)
class App:
    """What is started: by a manifest on one side, by `docker run` of its image on the other."""

    instance: str
    manifest: str
    image: str
    container_port: int
    answers_at: str = "/"
    run: tuple[str, ...] = ()

    @property
    def path(self) -> str:
        tenant, project, name = self.instance.split("/")
        return f"tenants/{tenant}/projects/{project}/instances/{name}.yaml"

    def on_port(self, port: int) -> str:
        return re.sub(r"(?m)^( +)cpu_cores:", rf"\1host_port: {port}\n\1cpu_cores:", self.manifest)


@dataclass(frozen=True)
class Bench:
    """What both sides share."""

    stage: demo.Stage
    http: httpx.Client
    webhook_secret: str
    app: App

    def docker(self, *args: str) -> str:
        assert self.stage.docker_host is not None
        return process.run(["docker", "--host", self.stage.docker_host, *args])

    def forget_image(self) -> None:
        """So that the next pull fetches every byte again."""
        self.docker("image", "rm", "--force", self.app.image)

    def commit(self, manifest: str | None) -> tuple[float, float]:
        """Commits the instance, or its removal, and tells the control plane; the two moments."""
        path = self.stage.repo.folder / self.app.path
        if manifest is None:
            path.unlink()
        else:
            path.write_text(manifest)
        self.stage.repo.commit("bench")
        committed = time.time()
        body = b"{}"
        signature = hmac.new(self.webhook_secret.encode(), body, hashlib.sha256).hexdigest()
        url = f"http://{self.stage.listen}/v1/hooks/git"
        headers = {"X-Hub-Signature-256": f"sha256={signature}"}
        self.http.post(url, content=body, headers=headers).raise_for_status()
        return committed, time.time()

    def instance(self) -> Mapping[str, Any]:
        found: Mapping[str, Any] = self.http.get(
            f"http://{self.stage.listen}/v1/instances/{self.app.instance}"
        ).json()
        return found

    def answers(self, port: int) -> bool:
        try:
            return self.http.get(f"http://127.0.0.1:{port}{self.app.answers_at}").is_success
        except httpx.HTTPError:
            return False


# --- the two sides -------------------------------------------------------------------------------


def bare(bench: Bench, port: int) -> float:
    """Seconds from `docker pull` to the first HTTP answer."""
    begun = time.time()
    app = bench.app
    bench.docker("pull", "--quiet", app.image)
    published = f"127.0.0.1:{port}:{app.container_port}"
    name = bench.docker("run", "--detach", "--publish", published, *app.run, app.image)
    until(lambda: bench.answers(port))
    taken = time.time() - begun
    bench.docker("rm", "--force", "--volumes", name.strip())
    return taken


def by_commit(bench: Bench, port: int) -> dict[str, float]:
    """Moments, in seconds since the epoch, by name; from `git commit` to running and ready."""
    moments = {"begun": time.time()}
    moments["committed"], moments["woken"] = bench.commit(bench.app.on_port(port))
    until(lambda: is_ready(bench.instance()))
    moments["ready"] = time.time()
    until(lambda: bench.answers(port))
    moments["answered"] = time.time()
    moments |= told(bench, moments["begun"])
    remove(bench)
    return moments


def remove(bench: Bench) -> None:
    bench.commit(None)
    until(lambda: bench.instance()["state"] == "decommissioned")


def is_ready(instance: Mapping[str, Any]) -> bool:
    conditions = {c["type"]: c["status"] for c in instance.get("conditions", ())}
    return instance.get("state") == "running" and conditions.get("Ready") == "True"


def told(bench: Bench, since: float) -> dict[str, float]:
    """What the agent's log and the events say about when things happened."""
    moments: dict[str, float] = {}
    for line in (bench.stage.root / "agent.log").read_text().splitlines():
        entry = json.loads(line) if line.startswith("{") else {}
        at = datetime.fromisoformat(entry["timestamp"]).timestamp() if entry else 0.0
        if at >= since and entry.get("instance") == bench.app.instance:
            moments.setdefault(str(entry.get("step") or entry["event"]), at)
    url = f"http://{bench.stage.listen}/v1/events?limit=1000&instance={bench.app.instance}"
    names = {"apps.instance.deploying": "pass begun", "apps.instance.running": "settled"}
    for event in bench.http.get(url).json()["events"]:
        if event["type"] in names and event["at_ms"] / 1000 >= since:
            moments[names[event["type"]]] = event["at_ms"] / 1000
    return moments


def until(true: Callable[[], bool], wait_s: float = WAIT_S) -> None:
    deadline = time.monotonic() + wait_s
    while not true():
        if time.monotonic() > deadline:
            raise TimeoutError(f"nothing happened for {wait_s:.0f} s")
        time.sleep(LOOK_S)


# --- one run -------------------------------------------------------------------------------------


@contextmanager
def prepared(root: Path) -> Iterator[Bench]:
    """Docker, registry, control plane and an agent that logs its steps; what is measured runs not
    yet, its neighbour does.
    """
    demo.take_down(root)
    try:
        stage = demo.set_up(root, "docker", Quiet())
        assert stage.docker_host is not None
        argv = [demo.program("gpuaas-agent"), "--state-dir", str(root / demo.AGENT), "run"]
        argv += ["--docker-host", stage.docker_host, "--verbose"]
        process.start(demo.AGENT, argv, root, {"PATH": os.environ.get("PATH", os.defpath)})
        stage.gpuaas("status", "--wait")
        manifest = (stage.repo.folder / state_repo.INSTANCE).read_text()
        # Of the other version: its image shares no layer with the one that is measured.
        neighbour = manifest.replace("name: hello", "name: neighbour")
        neighbour = neighbour.replace(*demo.VERSIONS)
        file = stage.repo.folder / state_repo.INSTANCE
        file.with_name("neighbour.yaml").write_text(neighbour)
        # Of so few, the usual budget lets none go.
        all_of_them = "removals_max_percent: 100"
        stage.repo.edit(
            "environments/dev.yaml",
            lambda text: re.sub("removals_max_percent: .*", all_of_them, text),
        )
        stage.repo.commit("a neighbour")
        stage.gpuaas("apply")
        stage.gpuaas("status", "--wait")
        with httpx.Client(timeout=5.0, trust_env=False) as http:
            bench = Bench(stage, http, stage.gpuaas("webhook").strip(), site(stage, manifest))
            remove(bench)
            yield bench
    finally:
        demo.take_down(root)


def site(stage: demo.Stage, manifest: str) -> App:
    """A web server that is up a moment after its start."""
    published = stage.published
    image = f"{published.endpoint}/{demo.REPOSITORY}@{published.digests[demo.VERSIONS[0]]}"
    return App(SITE, manifest, image, 8080)


def jupyterlab(bench: Bench) -> App:
    """The real one, put into registry and catalog; it takes its time to start."""
    endpoint, version = bench.stage.published.endpoint, "1.0.0"
    layout = jupyter_image.ensure_image()
    digest = images.push_layout(
        layout, jupyter_image.REF, endpoint, jupyter.REPOSITORY, version
    )
    repo = bench.stage.repo
    jupyter.publish(repo, version, str(digest))
    jupyter.write_instance(repo, version)
    app = App(
        jupyter.NAME,
        (repo.folder / jupyter.MANIFEST).read_text().replace("    pip_packages: []\n", ""),
        f"{endpoint}/{jupyter.REPOSITORY}@{digest}",
        jupyter_image.PORT,
        "/api",
        ("--env", "JUPYTER_TOKEN=bench", "--cpus", "1", "--memory", "1g"),
    )
    (repo.folder / jupyter.MANIFEST).unlink()
    repo.commit("JupyterLab in the catalog")
    return app


def measure(bench: Bench, rounds: int, pulled: bool) -> tuple[list[float], list[dict[str, float]]]:
    """`rounds` of each side, turn about; `pulled`: the image is there before the clock starts."""
    ours, theirs = [], []
    bench.docker("pull", "--quiet", bench.app.image)
    for _ in range(rounds):
        for side in (0, 1):
            port = services.free_port()
            if not pulled:
                bench.forget_image()
            if side:
                ours.append(by_commit(bench, port))
            else:
                theirs.append(bare(bench, port))
    return theirs, ours


def report(title: str, theirs: Sequence[float], ours: Sequence[Mapping[str, float]]) -> None:
    """Prints medians in milliseconds, their range, and how they compare."""
    base = statistics.median(theirs)
    print(f"\n{title}, {len(ours)} rounds{'':<24} median       min       max    ratio")
    _row("docker pull + run, until it answers", theirs, base)
    _row("commit + webhook, until it answers", _between(ours, "begun", "answered"), base)
    _row("commit + webhook, until it says ready", _between(ours, "begun", "ready"), base)
    for name, start, end in STAGES:
        _row("    " + name, _between(ours, start, end), None)


def _between(ours: Sequence[Mapping[str, float]], start: str, end: str) -> list[float]:
    return [one[end] - one[start] for one in ours if start in one and end in one]


def _row(name: str, seconds: Sequence[float], base: float | None) -> None:
    if not seconds:
        return
    middle = statistics.median(seconds)
    figures = "".join(f"{value * 1000:7.0f} ms" for value in (middle, min(seconds), max(seconds)))
    ratio = f"  {middle / base:6.2f}" if base else ""
    print(f"  {name:<44}{figures}{ratio}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--dir", type=Path, help="Where it plays; default: a new folder in /tmp.")
    parser.add_argument("--no-jupyterlab", action="store_true", help="Its image takes a minute.")
    given = parser.parse_args()
    root = (given.dir or Path(tempfile.mkdtemp(prefix="gpuaas-bench-"))).absolute()
    print(f"{os.cpu_count()} cores, Python {sys.version.split()[0]}, {given.rounds} rounds each")
    with prepared(root) as bench:
        for title, pulled in (("Image already pulled", True), ("Image not pulled", False)):
            report(title, *measure(bench, given.rounds, pulled))
        if not given.no_jupyterlab:
            real = replace(bench, app=jupyterlab(bench))
            report("JupyterLab, image already pulled", *measure(real, given.rounds, True))


if __name__ == "__main__":
    main()
