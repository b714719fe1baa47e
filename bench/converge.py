"""From one commit that adds 1,000 instances to all of them running, on simulated agents.

Rules:
- The control plane is the real one, `gpuaas run` on SQLite, a real registry and a real repository.
  Agents are simulated: each polls, checks and reports over HTTP as a real one does, and says at
  once that what it was given runs. So the time is the control plane's, and the protocol's.
- The clock starts before `git commit` and stops when the status page counts every instance as
  running and the last pass had nothing left to do.
- The yardstick beside it, in the same run: the same number of instances' manifests checked by
  `gpuaas validate`, and as many bare HTTP requests to the same server, one after another.

Run: `python -m bench.converge [--instances 1000] [--dir DIR]`.
"""

from __future__ import annotations

import argparse
import hashlib
import hmac
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import httpx

from bench.plan import APPS, ENVIRONMENT, VERSIONS, commit, git, manifests
from node_agent.link import AgentKey, Away, Credentials, Link, join, parse_join_token
from node_agent.membership import JoinReply
from node_agent.status import origin_of
from node_agent.tasks import Accepted, Trust, acknowledgement, admit
from node_agent.wire import (
    Inventory,
    LaunchTask,
    Phase,
    Poll,
    Report,
    TaskAck,
    WorkloadReport,
)
from reconciler.devkit import images, process, services

WAIT_S = 300.0
LOOK_S = 0.1
POLL_WAIT_MS = 5_000


class Agent:
    """One node: takes signed tasks, and says that what they ask for runs."""

    def __init__(self, server: str, node: str, token: str) -> None:
        self.node = node
        self._key = AgentKey.generate()
        self._server = server
        self._reply: JoinReply = join(parse_join_token(token), self._key)
        self._reports: dict[str, WorkloadReport] = {}
        self._done: set[str] = set()
        self._report_seq, self._last_seq = 0, 0
        self._stop = threading.Event()
        self._connected_at_ms = _now_ms()
        self._thread = threading.Thread(target=self._run, name=node, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()

    def _run(self) -> None:
        shown = Credentials(self._reply.ca, self._reply.certificate)
        link = Link(self._server, self._key, lambda: shown)
        self._say(link, ())
        while not self._stop.is_set():
            try:
                self._turn(link)
            except Away:
                self._stop.wait(0.2)
        link.close()

    def _turn(self, link: Link) -> None:
        now_ms = _now_ms()
        poll = Poll(
            node=self.node, sent_at_ms=now_ms, report_seq=self._report_seq, wait_ms=POLL_WAIT_MS
        )
        tasks = link.poll(poll).tasks
        if tasks:
            self._say(link, tuple(filter(None, map(self._take, tasks))))

    def _take(self, envelope: dict[str, object]) -> TaskAck | None:
        verdict = admit(images.canonical(envelope), self._trust(), _now_ms())
        if isinstance(verdict, Accepted):
            task = verdict.task
            assert isinstance(task, LaunchTask)
            self._last_seq = task.seq
            self._done.add(task.task_id)
            self._reports[task.instance] = WorkloadReport(
                instance=task.instance,
                target_hash=task.workload.spec_hash,
                running_hash=task.workload.spec_hash,
                phase=Phase.READY,
                image_digest=task.workload.image.digest,
                origin=origin_of(task.workload),
            )
        return acknowledgement(verdict)

    def _trust(self) -> Trust:
        return Trust(
            node=self.node,
            verifiers=self._reply.verifiers,
            min_version=self._reply.min_version,
            engines=frozenset({"docker"}),
            last_seq=self._last_seq,
            not_before_ms=0,
            was_executed=self._done.__contains__,
            present=self._reports.__contains__,
        )

    def _say(self, link: Link, acks: tuple[TaskAck, ...]) -> None:
        self._report_seq = max(self._report_seq + 1, _now_ms())
        link.report(
            Report(
                node=self.node,
                agent_version="0.0.0",
                sent_at_ms=_now_ms(),
                report_seq=self._report_seq,
                last_seq=self._last_seq,
                connected_at_ms=self._connected_at_ms,
                complete=True,
                inventory=_INVENTORY,
                workloads=tuple(self._reports.values()),
                acks=acks,
            )
        )


_INVENTORY = Inventory(
    engines=("docker",),
    cpu_count=256,
    memory_mib=2_097_152,
    disk_free_mib=1_000_000,
    architecture="x86_64",
    operating_system="linux",
)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


# --- the stage -----------------------------------------------------------------------------------


def make_repo(repo: Path, registry: str, instances: int) -> dict[str, str]:
    """Commits everything but the instances, which it returns: path → text."""
    pushed = {}
    for app in (f"app-{number:02}" for number in range(APPS)):
        for version in VERSIONS:
            made_up = "sha256:" + hashlib.sha256(f"{app}/{version}".encode()).hexdigest()
            image = images.build_process_site(f"{app} {version}")
            repository = f"gpuaas/apps/catalog/{app}"
            pushed[made_up] = str(images.push(image, registry, repository, version))
    later = {}
    host = ("registry.bench.example:5000", f"'{registry}', plain_http: true")
    for path, generic in dict(manifests(instances)).items():
        text = generic
        for old, new in (*pushed.items(), host):
            text = text.replace(old, new)
        if "/instances/" in path:
            later[path] = text
        else:
            _write(repo, path, text)
    git(repo.parent, "init", "--quiet", "--initial-branch", "main", str(repo))
    commit(repo, "a fleet without instances")
    return later


def _write(repo: Path, path: str, text: str) -> None:
    (repo / path).parent.mkdir(parents=True, exist_ok=True)
    (repo / path).write_text(text)


class Stage:
    """A control plane in a process of its own, and its agents in threads of this one."""

    def __init__(self, folder: Path, registry: str, instances: int) -> None:
        self.repo = folder / "repo"
        self.repo.mkdir()
        self.later = make_repo(self.repo, registry, instances)
        self.listen = f"127.0.0.1:{services.free_port()}"
        agents_listen = f"127.0.0.1:{services.free_port()}"
        self.environment = {
            "GPUAAS_STATE_DIR": str(folder / "state"),
            "GPUAAS_REPO": str(self.repo),
            "GPUAAS_ENVIRONMENT": ENVIRONMENT,
            "GPUAAS_LISTEN": self.listen,
            "GPUAAS_AGENTS_LISTEN": agents_listen,
        }
        self.http = httpx.Client(
            base_url=f"http://{self.listen}", timeout=30.0, trust_env=False
        )
        self.service = process.start("control-plane", [*_gpuaas(), "run"], folder, self.environment)
        process.wait_ready(self.service, self._answers, 60.0)
        self.secret = self.gpuaas("webhook").strip()
        names = sorted(path.stem for path in (self.repo / "platform/nodes").glob("*.yaml"))
        server = f"https://{agents_listen}"
        self.agents = [
            Agent(server, name, self.gpuaas("node", "join", name).strip()) for name in names
        ]
        for agent in self.agents:
            agent.start()

    def gpuaas(self, *args: str) -> str:
        return subprocess.run(
            [*_gpuaas(), *args], env=self.environment, capture_output=True, text=True, check=True
        ).stdout

    def webhook(self) -> None:
        digest = hmac.new(self.secret.encode(), b"{}", hashlib.sha256).hexdigest()
        headers = {"X-Hub-Signature-256": f"sha256={digest}"}
        self.http.post("/v1/hooks/git", content=b"{}", headers=headers).raise_for_status()

    def running(self) -> tuple[int, bool]:
        """How many instances run, and whether the last pass had nothing left to do."""
        text = self.http.get("/metrics").raise_for_status().text
        counts = [line for line in text.splitlines() if 'gpuaas_instances{state="running"}' in line]
        count = int(float(counts[0].rpartition(" ")[2])) if counts else 0
        last = self.http.get("/v1/status").json()["last_pass"] if count else None
        return count, last is not None and last["result"] == "done"

    def stop(self) -> None:
        for agent in self.agents:
            agent.stop()
        self.service.stop()
        self.http.close()

    def _answers(self) -> bool:
        try:
            return self.http.get("/readyz").is_success
        except httpx.TransportError:
            return False


def _gpuaas() -> list[str]:
    return [str(Path(sys.executable).with_name("gpuaas"))]


# --- measuring -----------------------------------------------------------------------------------


def converge(stage: Stage) -> float:
    """Seconds from `git commit` until all of it runs."""
    for path, text in stage.later.items():
        _write(stage.repo, path, text)
    began = time.perf_counter()
    commit(stage.repo, "all at once")
    stage.webhook()
    _until(lambda: stage.running() == (len(stage.later), True))
    return time.perf_counter() - began


def requests(stage: Stage) -> float:
    """Seconds for one small request to the server for each instance, one after another."""
    began = time.perf_counter()
    for _ in stage.later:
        stage.http.get("/healthz").raise_for_status()
    return time.perf_counter() - began


def validate(stage: Stage) -> float:
    began = time.perf_counter()
    stage.gpuaas("validate", str(stage.repo))
    return time.perf_counter() - began


def _until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not true():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not converged after {WAIT_S:.0f} s")
        time.sleep(LOOK_S)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--instances", type=int, default=1_000)
    parser.add_argument("--dir", type=Path, help="where to work; removed at the end")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.dir, prefix="gpuaas-converge-") as folder:
        root = Path(folder)
        with services.start_registry(root / "registry") as registry:
            stage = Stage(root, registry.endpoint, given.instances)
            try:
                bare = requests(stage)
                taken = converge(stage)
                check = validate(stage)
            finally:
                stage.stop()
    nodes = len(stage.agents)
    print(f"{given.instances} instances on {nodes} simulated agents, one commit")
    print(f"  commit until all run and a pass finds nothing   {taken:7.2f} s")
    for name, seconds in (
        ("as many bare requests to the same server", bare),
        ("gpuaas validate of the repo, a process", check),
    ):
        print(f"  {name:<46}  {seconds:7.2f} s   ratio {taken / seconds:5.1f}")


if __name__ == "__main__":
    main()
