"""The platform as its operators run it: a Git repository, `gpuaas run` and `gpuaas-agent run`.

Rules:
- Everything is asked of the real programs, over HTTP or on their command line, and of Docker.
- Each platform has a node name of its own, so that what it left can be told from anybody else's.
- The repo is polled every ten minutes unless a test says otherwise: the webhook tells of a commit.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import docker
import httpx
from docker.errors import NotFound

from node_agent.secret_files import SecretFiles
from node_agent.wire import LABEL_INSTANCE, LABEL_NODE
from reconciler.devkit import images, process, state_repo
from reconciler.devkit.services import free_port
from reconciler.devkit.signing import SigningKey
from reconciler.devkit.state_repo import Published
from tests.waiting import LIMIT_S, wait_until

ENVIRONMENT = "dev"
INSTANCE = "acme/research/hello"
REPOSITORY = "gpuaas/apps/platform/catalog/hello"
VERSIONS = ("1.0.0", "1.1.0")
CONTROL_PLANE, AGENT = "control-plane", "agent"
READY_TIMEOUT_S = 60.0
COMMAND_TIMEOUT_S = 120.0
ASK_TIMEOUT_S = 30.0
PAGE_TIMEOUT_S = 10.0
ASK_INTERVAL_S = 0.05
"""A question costs the control plane some milliseconds, of which the platform has none to spare."""
PACE = {
    "GPUAAS_POLL_INTERVAL_S": "600",
    "GPUAAS_RESYNC_INTERVAL_S": "1",
    "GPUAAS_WAKEUP_INTERVAL_S": "0.1",
    "GPUAAS_LEASE_TTL_S": "1.5",
}

Document = dict[str, Any]


def program(name: str) -> str:
    """A console script of the installation under test."""
    return str(Path(sys.executable).with_name(name))


def as_installed(name: str) -> list[str]:
    """How a program is started, where a test does not say otherwise."""
    return [program(name)]


def gpuaas(
    *args: str, environment: Mapping[str, str] | None = None, folder: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Runs `gpuaas` with exactly these variables; never raises for its exit code."""
    return subprocess.run(
        [program("gpuaas"), *args],
        cwd=folder,
        env={"PATH": os.environ.get("PATH", os.defpath), **(environment or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=COMMAND_TIMEOUT_S,
        check=False,
    )


def files_below(folder: Path) -> Iterator[tuple[Path, bytes]]:
    """Each file there and what is in it, but for those that go while one looks."""
    for here, _, names in os.walk(folder):
        for path in (Path(here, name) for name in sorted(names)):
            with contextlib.suppress(FileNotFoundError):
                if path.is_file():
                    yield path, path.read_bytes()


def publish_to_registry(endpoint: str) -> Published:
    """Pushes both versions of the site for Docker."""
    digests = {version: push(endpoint, version) for version in VERSIONS}
    return Published(endpoint, None, digests)


def push(endpoint: str, version: str) -> str:
    built = images.build_site(version)
    return str(images.push(built, endpoint, REPOSITORY, version))


def publish_to_layout(folder: Path) -> Published:
    """Writes both versions of the site for the process engine into an image layout."""
    digests = {}
    for version in VERSIONS:
        built = images.build_process_site(version)
        images.write_layout(built, folder, version)
        digests[version] = str(built.manifest_digest)
    return Published("127.0.0.1:5000", str(folder), digests)


@dataclass(frozen=True)
class DockerNode:
    """What Docker itself says of one node's containers, networks and volumes."""

    host: str
    api: docker.APIClient
    node: str

    def connect(self) -> docker.APIClient:
        """One more connection, for another thread; the caller closes it."""
        return docker.APIClient(base_url=self.host, version="auto")

    @property
    def filters(self) -> dict[str, str]:
        return {"label": f"{LABEL_NODE}={self.node}"}

    def containers(self) -> list[Document]:
        """Inspected, those that ended too; one that goes away meanwhile is left out."""
        found = []
        for item in self.api.containers(all=True, filters=self.filters):
            with contextlib.suppress(NotFound):
                found.append(self.api.inspect_container(item["Id"]))
        return found

    def running(self) -> list[Document]:
        return [one for one in self.containers() if one["State"]["Running"]]

    def only(self) -> Document:
        """The one container of the instance, which runs, once there is but one.

        An upgrade is told as soon as the new one is ready; what it replaced goes right after.
        """
        (container,) = wait_until(lambda: found if len(found := self.containers()) == 1 else None)
        assert container["State"]["Running"], container["State"]
        assert container["Config"]["Labels"][LABEL_INSTANCE] == INSTANCE
        return container

    def left(self) -> tuple[int, int, int]:
        """How many containers, networks and volumes carry the node's label."""
        volumes = self.api.volumes(filters=self.filters)["Volumes"] or []
        networks = self.api.networks(filters=self.filters)
        return len(self.containers()), len(networks), len(volumes)

    def history(self, since_s: float) -> list[tuple[int, str, str]]:
        """(time in ns, action, what) of every event since then: containers by name, and pulls."""
        stream = self.api.events(since=int(since_s), until=int(time.time()) + 1, decode=True)
        events = [
            (int(event["timeNano"]), str(event["Action"]), _subject(event))
            for event in stream
            if event["Type"] in {"container", "image"}
        ]
        return sorted(event for event in events if event[0] >= since_s * 1e9)

    def clean_up(self) -> None:
        for container in self.containers():
            with contextlib.suppress(NotFound):
                self.api.remove_container(container["Id"], force=True, v=True)
        for network in self.api.networks(filters=self.filters):
            self.api.remove_network(network["Id"])


def _subject(event: Mapping[str, Any]) -> str:
    actor = event["Actor"]
    return str(actor["ID"] if event["Type"] == "image" else actor["Attributes"]["name"])


class Platform:
    """One control plane, one agent and their state repo under `root`."""

    def __init__(
        self,
        root: Path,
        published: Published,
        docker_host: str | None = None,
        settings: Mapping[str, str] | None = None,
        program: Callable[[str], list[str]] = as_installed,
        instance: str = INSTANCE,
        wait_limit_s: float = LIMIT_S,
        compose_program: Path | None = None,
    ) -> None:
        """`instance` is the one that it is asked about. With `compose_program` the agent runs
        topologies too.
        """
        self.name = instance
        self._compose_program = compose_program
        self._wait_limit_s = wait_limit_s
        self.root = root
        self._program = program
        self.published = published
        self.node = f"node-{uuid4().hex[:8]}"
        self.docker_host = docker_host
        self.key = SigningKey.ssh(root / "keys", "ada")
        self.repo = state_repo.make_state_repo(root / "state-repo", published, self.key)
        self._name_node()
        self.listen = f"127.0.0.1:{free_port()}"
        self.agents_listen = f"127.0.0.1:{free_port()}"
        self.environment = {
            "GPUAAS_STATE_DIR": str(root / "state"),
            "GPUAAS_REPO": str(self.repo.folder),
            "GPUAAS_ENVIRONMENT": ENVIRONMENT,
            "GPUAAS_LISTEN": self.listen,
            "GPUAAS_AGENTS_LISTEN": self.agents_listen,
            "GPUAAS_SIGNATURES": "required",
            "GPUAAS_ADMIN_KEYS": json.dumps([self.key.public_line]),
            **PACE,
            **(settings or {}),
        }
        self._services: dict[str, process.Service] = {}
        self._http = httpx.Client(
            base_url=f"http://{self.listen}", timeout=ASK_TIMEOUT_S, trust_env=False
        )
        self._api = docker.APIClient(base_url=docker_host, version="auto") if docker_host else None
        self._secret = ""
        self._forge: Path | None = None

    @property
    def docker(self) -> DockerNode:
        assert self.docker_host is not None
        assert self._api is not None
        return DockerNode(self.docker_host, self._api, self.node)

    def _name_node(self) -> None:
        nodes = self.repo.folder / "platform/nodes"
        (nodes / "node-a.yaml").rename(nodes / f"{self.node}.yaml")
        for path in (
            f"platform/nodes/{self.node}.yaml",
            "tenants/acme/projects/research/allocations/small.yaml",
        ):
            self.repo.edit(path, lambda text: text.replace("node-a", self.node))
        self.repo.commit("This node has a name of its own")

    # --- processes ---

    def start(self) -> None:
        """Control plane, join, agent."""
        self.start_control_plane()
        with ThreadPoolExecutor() as both:
            secret = both.submit(self.gpuaas, "webhook")
            joining = both.submit(self.gpuaas, "node", "join", self.node)
        for done in (secret.result(), joining.result()):
            assert done.returncode == 0, done.stderr
        self._secret = secret.result().stdout.strip()
        token = self.root / "token"
        token.write_text(joining.result().stdout)
        join = [*self._agent_command(), "join", "--token-file", str(token)]
        process.run(join, COMMAND_TIMEOUT_S)
        self.start_agent()

    def start_control_plane(self) -> None:
        """Returns once the first pass of this process has ended."""
        service = process.start(
            CONTROL_PLANE, [*self._program("gpuaas"), "run"], self.root, self.environment
        )
        self._services[CONTROL_PLANE] = service
        process.wait_ready(service, lambda: self._get("/readyz") is not None, READY_TIMEOUT_S)

    def start_agent(self) -> None:
        engine = ["--engine", self.published.engine]
        if self._compose_program is not None:
            engine += ["--engine", "compose", "--compose-program", str(self._compose_program)]
        host = ["--docker-host", self.docker_host] if self.docker_host else []
        argv = [*self._agent_command(), "run", "--verbose", *engine, *host]
        environment = {"PATH": os.environ.get("PATH", os.defpath)}
        self._services[AGENT] = process.start(AGENT, argv, self.root, environment)

    def restart(self, *names: str) -> None:
        for name in names:
            self.start_control_plane() if name == CONTROL_PLANE else self.start_agent()

    def alive(self, name: str) -> bool:
        return name in self._services and self._services[name].alive()

    def kill(self, *names: str) -> None:
        """SIGKILL: nothing is flushed, said or cleaned up."""
        services = [self._services.pop(name) for name in names]
        for service in services:
            os.kill(service.identity.pid, signal.SIGKILL)
        for service in services:
            service.stop()

    def stop(self) -> None:
        """Ends both and removes what is left of the node; harmless when nothing is."""
        for service in self._services.values():
            service.stop(grace_s=0.2)
        self._services.clear()
        self._http.close()
        if self._api is not None:
            self.docker.clean_up()
            self._api.close()
        self.kill_workload()
        for folder in SecretFiles.for_node(self.node).candidates:
            shutil.rmtree(folder, ignore_errors=True)

    def _agent_command(self) -> list[str]:
        return [*self._program("gpuaas-agent"), "--state-dir", str(self.root / AGENT)]

    def workload_processes(self) -> list[int]:
        """What runs from a folder of the agent: the process engine's workloads."""
        home, found = (self.root / AGENT).resolve(), []
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if (entry / "cwd").readlink().is_relative_to(home):
                    found.append(int(entry.name))
        return found

    def kill_workload(self) -> None:
        """Kills what the process engine runs, as somebody on the host could."""
        for pid in self.workload_processes():
            os.kill(pid, signal.SIGKILL)

    # --- the state repo ---

    def gpuaas(self, *args: str) -> subprocess.CompletedProcess[str]:
        return gpuaas(*args, environment=self.environment)

    def commit(self, message: str) -> str:
        """Commits what was edited and tells the control plane, as a forge would."""
        head = self.repo.commit(message)
        self._push()
        self.webhook()
        return head

    def revert(self) -> str:
        self.repo.git("revert", "--no-edit", "HEAD")
        self._push()
        self.webhook()
        return self.repo.head()

    def push_to(self, bare: Path) -> None:
        """From now on every commit is pushed there."""
        self._forge = bare
        self._push()

    def _push(self) -> None:
        if self._forge is not None:
            self.repo.git("push", "--quiet", str(self._forge), "main")

    def webhook(self) -> None:
        body = json.dumps({"ref": "refs/heads/main"}).encode()
        digest = hmac.new(self._secret.encode(), body, hashlib.sha256).hexdigest()
        headers = {"X-Hub-Signature-256": f"sha256={digest}", "Content-Type": "application/json"}
        answer = self._http.post("/v1/hooks/git", content=body, headers=headers)
        assert answer.status_code == 202, answer.text

    def set_version(self, version: str) -> None:
        state_repo.set_version(self.repo, version)

    def edit_instance(self, old: str, new: str) -> None:
        self.repo.edit(state_repo.INSTANCE, lambda text: text.replace(old, new))

    def put_instance(self, version: str) -> None:
        """Writes the instance's manifest as it was at first, with this version."""
        root = self.repo.git("rev-list", "--max-parents=0", "HEAD").strip()
        text = self.repo.git("show", f"{root}:{state_repo.INSTANCE}")
        path = self.repo.folder / state_repo.INSTANCE
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        if f'version: "{version}"' not in text:
            self.set_version(version)

    def remove_instance(self) -> None:
        (self.repo.folder / state_repo.INSTANCE).unlink()

    def add_version(
        self,
        version: str,
        digest: str,
        command: Sequence[str] | None = None,
        start_budget_s: int | None = None,
    ) -> None:
        """Publishes one more version in the catalog, like the newest, in commits of its own."""
        newest, files = VERSIONS[-1], dict[str, str]()
        for pattern in (
            "catalog/hello/versions/{}.yaml",
            "catalog/hello/promotions/{}.yaml",
            "tenants/platform/projects/catalog/artifacts/hello/{}/image.yaml",
        ):
            text = (self.repo.folder / pattern.format(newest)).read_text()
            text = text.replace(newest, version).replace(self.published.digests[newest], digest)
            if command is not None:
                text = re.sub(r"command: \[.*httpd.*\]", f"command: {json.dumps(command)}", text)
            if start_budget_s is not None:
                text = re.sub(r"start_budget_s: .*", f"start_budget_s: {start_budget_s}", text)
            files[pattern.format(version)] = text
        self.repo.introduce(files)

    # --- what it says ---

    def status(self) -> Document:
        """The page /v1/status."""
        document = self._get("/v1/status")
        assert document is not None, "the control plane does not answer"
        return document

    def instance(self) -> Document:
        document = self._get(f"/v1/instances/{self.name}")
        return document or {"state": "unknown"}

    def findings(self) -> list[Document]:
        last = self.status()["last_pass"]
        return list(last["findings"]) if last else []

    def events(self, after: int = 0) -> list[Document]:
        document = self._get(f"/v1/events?after={after}&limit=1000")
        assert document is not None, "the control plane does not answer"
        return list(document["events"])

    def event_names(self, after: int = 0) -> list[str]:
        return [event["type"].removeprefix("apps.instance.") for event in self.events(after)]

    def last_cursor(self) -> int:
        return max((event["cursor"] for event in self.events()), default=0)

    def wait_settled(self, state: str, result: str = "done") -> Document:
        """Waits for a pass on the newest commit that ended so, with the instance in `state`."""
        found: Document = self.wait(lambda: self.settled(state, result))
        return found

    def settled(self, state: str, result: str = "done") -> Document | None:
        """The instance, if it is in `state` and the last pass on the newest commit ended so."""
        document = self._get("/v1/status")
        last = document["last_pass"] if document else None
        if last is None or (last["revision"], last["result"]) != (self.repo.head(), result):
            return None
        found = self.instance()
        return found if found["state"] == state else None

    def wait_state(self, state: str) -> None:
        self.wait(lambda: self.instance()["state"] == state)

    def wait(self, ask: Callable[[], Any]) -> Any:
        """Waits until the answer is truthy; when it never is, says what the platform says."""
        try:
            return wait_until(ask, self._wait_limit_s, ASK_INTERVAL_S)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self._story()}") from None

    def url(self) -> str:
        endpoint = self.instance()["endpoints"][0]
        return f"http://{endpoint['host_ip']}:{endpoint['host_port']}/"

    def page(self) -> str:
        """What the instance answers on its published port; empty while it does not."""
        return self.page_at(self.url())

    @staticmethod
    def page_at(url: str) -> str:
        with contextlib.suppress(httpx.TransportError):
            return httpx.get(url, timeout=PAGE_TIMEOUT_S, trust_env=False).text.strip()
        return ""

    def _get(self, path: str) -> Document | None:
        try:
            answer = self._http.get(path)
        except httpx.TransportError:
            return None
        return dict(answer.json()) if answer.is_success else None

    def _story(self) -> str:
        document = self._get("/v1/status")
        logs = [process.log_tail(self.root / f"{name}.log") for name in (CONTROL_PLANE, AGENT)]
        return "\n\n".join([json.dumps(document, indent=1), *logs])
