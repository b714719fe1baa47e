"""The main job on this machine, told step by step: launch, upgrade, roll back, remove.

Rules:
- Real processes throughout: a Git repository, `gpuaas run`, `gpuaas-agent run`, and where Docker
  can be had a private dockerd and registry. Nothing is shown that was not read from them.
- Only a folder that bears the demo's mark is ever removed.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import httpx

from reconciler.devkit import dockerd, images, process, services, state_repo
from reconciler.devkit.signing import SigningKey
from reconciler.devkit.state_repo import Published, StateRepo
from reconciler.errors import Refused

NODE = "node-a"
ENVIRONMENT = "dev"
REPOSITORY = "gpuaas/apps/platform/catalog/hello"
VERSIONS = ("1.0.0", "1.1.0")
CONTROL_PLANE, AGENT = "control-plane", "agent"
READY_TIMEOUT_S = 30.0
WAIT_S = 120
EXIT_CHANGES = 2
MARK = ".gpuaas-demo"


class Narrator(Protocol):
    """How the story is told: the command line prints it."""

    def title(self, text: str) -> None: ...

    def command(self, text: str) -> None: ...

    def text(self, text: str) -> None: ...

    def status(self, document: Mapping[str, Any]) -> None: ...

    def events(self, lines: list[str]) -> None: ...


@dataclass(frozen=True)
class Stage:
    """Where the demo plays: its folder, the engine it uses and why, and what it started."""

    root: Path
    engine: str
    docker_host: str | None
    listen: str
    agents_listen: str
    repo: StateRepo
    published: Published
    admin_key: str

    @property
    def signs(self) -> bool:
        return self.published.layout_path is None

    def gpuaas(self, *args: str, codes: frozenset[int] = frozenset({0})) -> str:
        """Runs `gpuaas` as a person would; returns standard output. Refused for other `codes`."""
        command = [program("gpuaas"), *args]
        done = subprocess.run(
            command, env=self.environment(), capture_output=True, text=True, check=False
        )
        if done.returncode not in codes:
            raise Refused(
                "demo_step_failed",
                f"exit {done.returncode}: {(done.stderr or done.stdout).strip()[-2000:]}",
                where="gpuaas " + " ".join(args),
            )
        return done.stdout

    def environment(self) -> dict[str, str]:
        return {
            "PATH": os.environ.get("PATH", os.defpath),
            "GPUAAS_LISTEN": self.listen,
            "GPUAAS_AGENTS_LISTEN": self.agents_listen,
            "GPUAAS_ADMIN_KEYS": json.dumps([self.admin_key]),
            **kept_environment(self.root),
        }

    def settled_status(self) -> dict[str, Any]:
        """The status once everything is as the newest commit says."""
        wait = ("--wait", "--timeout-s", str(WAIT_S))
        printed = self.gpuaas("status", *wait, "--all", "--format", "json")
        document: dict[str, Any] = json.loads(printed)
        return document


def kept_environment(root: Path) -> dict[str, str]:
    """What to set so that `gpuaas` speaks of the demo under `root`."""
    return {
        "GPUAAS_STATE_DIR": str(root / "control-plane"),
        "GPUAAS_REPO": str(root / "state-repo"),
        "GPUAAS_ENVIRONMENT": ENVIRONMENT,
    }


def program(name: str) -> str:
    """A console script of this installation."""
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.is_file() else shutil.which(name)
    if found is None:
        raise Refused("program_missing", f"{name} is not installed", hint="pip install gpuaas")
    return found


def tell(root: Path, engine: str | None, keep: bool, narrator: Narrator) -> None:
    """The whole demo under `root`; what it started is taken down at the end unless `keep`."""
    if (root / MARK).is_file():
        narrator.text(f"taking down the demo that was kept in {root}")
    take_down(root)
    try:
        stage = set_up(root, engine, narrator)
        cursor = launch(stage, narrator)
        cursor = upgrade(stage, narrator, cursor)
        cursor = roll_back(stage, narrator, cursor)
        if keep:
            return
        remove(stage, narrator, cursor)
    except BaseException:
        if not keep:
            take_down(root)
        raise
    take_down(root)


def take_down(root: Path) -> None:
    """Ends what a demo under `root` started, leftovers of a killed one too, and removes `root`."""
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return
    if not (root / MARK).is_file():
        raise Refused(
            "not_a_demo", "this folder was not made by the demo", where=str(root),
            hint="remove it if you don't need it, or choose another with --dir",
        )
    process.end_leftover(AGENT, root)
    process.end_leftover(CONTROL_PLANE, root)
    _end_workload_processes(root)
    dockerd.stop_dockerd_leftover(root / "docker")
    services.stop_leftovers(root / "registry")
    for entry in sorted(root.iterdir(), key=lambda path: path.name == MARK):
        # The mark goes last: whatever stops this half way, the next one may finish it.
        entry.unlink() if not entry.is_dir() or entry.is_symlink() else shutil.rmtree(entry)
    root.rmdir()


def set_up(root: Path, engine: str | None, narrator: Narrator) -> Stage:
    """Docker and registry, images, state repo, control plane, agent."""
    narrator.title("Setting up")
    root.mkdir(parents=True, mode=0o700, exist_ok=True)
    (root / MARK).touch()
    host = _docker(root, engine, narrator)
    published = _publish(root, host, narrator)
    folder = root / "state-repo"
    key = SigningKey.ssh(root / "keys", "ada")
    repo = state_repo.make_state_repo(folder, published, key)
    narrator.text(f"state repo: {folder}, made from example-state-repo/, signed by Ada's key")
    listen, agents = (f"127.0.0.1:{services.free_port()}" for _ in range(2))
    stage = Stage(root, published.engine, host, listen, agents, repo, published, key.public_line)
    narrator.command("gpuaas validate .")
    narrator.text(stage.gpuaas("validate", str(folder)).strip())
    _start_control_plane(stage, narrator)
    _trust_own_key(stage, narrator)
    _start_agent(stage, narrator)
    return stage


def _trust_own_key(stage: Stage, narrator: Narrator) -> None:
    """From the first launch on nothing runs that was not signed."""
    if not stage.signs:
        narrator.text("nothing is signed: that is for registries, a folder is only read")
        return
    _sign(stage, narrator, VERSIONS[0])
    narrator.command(f"gpuaas keys show artifacts  # goes into {state_repo.TRUST}")
    state_repo.ask_for_signatures(stage.repo, stage.gpuaas("keys", "show", "artifacts"))
    narrator.command("git commit -am 'Nothing runs that we did not sign'")
    stage.repo.commit("Nothing runs that we did not sign")


def _sign(stage: Stage, narrator: Narrator, version: str) -> None:
    digest = stage.published.digests[version]
    narrator.command(f"gpuaas sign {REPOSITORY}@{digest[:19]}…  # {version}")
    narrator.text(stage.gpuaas("sign", f"{REPOSITORY}@{digest}").strip())


def launch(stage: Stage, narrator: Narrator) -> int:
    narrator.title("1. The commit is the record: launch")
    cursor = _converge(stage, narrator, 0)
    _ask_site(stage, narrator)
    return cursor


def upgrade(stage: Stage, narrator: Narrator, after: int) -> int:
    narrator.title("2. Upgrade by commit")
    state_repo.set_version(stage.repo, VERSIONS[1])
    narrator.command("git diff")
    narrator.text(_diff(stage.repo))
    narrator.command(f"git commit -am 'hello {VERSIONS[1]}'")
    stage.repo.commit(f"hello {VERSIONS[1]}")
    narrator.command("gpuaas plan")
    narrator.text(stage.gpuaas("plan", codes=frozenset({0, EXIT_CHANGES})).rstrip())
    if stage.signs:
        _sign(stage, narrator, VERSIONS[1])
    cursor = _converge(stage, narrator, after)
    _ask_site(stage, narrator)
    return cursor


def roll_back(stage: Stage, narrator: Narrator, after: int) -> int:
    narrator.title("3. Roll back with git revert")
    narrator.command("git revert --no-edit HEAD")
    stage.repo.git("revert", "--no-edit", "HEAD")
    cursor = _converge(stage, narrator, after)
    _ask_site(stage, narrator)
    return cursor


def remove(stage: Stage, narrator: Narrator, after: int) -> None:
    narrator.title("4. Remove, and prove it")
    narrator.command(f"git rm {state_repo.INSTANCE} && git commit -m 'hello is done'")
    (stage.repo.folder / state_repo.INSTANCE).unlink()
    stage.repo.commit("hello is done")
    _converge(stage, narrator, after)
    left = _left_running(stage)
    if left:
        raise Refused("demo_left_something", f"still there after teardown: {left}")
    narrator.text("nothing of it is left on the node: the agent looked again after the teardown")


def _docker(root: Path, engine: str | None, narrator: Narrator) -> str | None:
    """The Docker host to use; None when processes are to run without containers."""
    if engine == "process":
        narrator.text("runtime: bare_metal process engine, as asked for; no containers")
        return None
    impossible = services.docker_possible()
    if impossible is None:
        started = services.start_dockerd(root / "docker")
        narrator.text(f"runtime: Docker, a private dockerd (pid {started.pid})")
        return started.host
    existing = services.existing_docker()
    if existing is not None:
        narrator.text(f"runtime: Docker, the one at {existing}")
        return existing
    if engine == "docker":
        raise Refused("no_docker", impossible, hint="install docker.io, or use --engine process")
    narrator.text(f"runtime: bare_metal process engine, because Docker can't be had: {impossible}")
    return None


def _publish(root: Path, docker_host: str | None, narrator: Narrator) -> Published:
    """Builds both versions of the site here, and puts them where they can be pulled by digest."""
    digests: dict[str, str] = {}
    if docker_host is None:
        layout = root / "images"
        for version in VERSIONS:
            built = images.build_process_site(version)
            images.write_layout(built, layout, version)
            digests[version] = str(built.manifest_digest)
        narrator.text(f"registry: an OCI image layout in {layout}")
        return Published("127.0.0.1:5000", str(layout), digests)
    registry = services.start_registry(root / "registry")
    for version in VERSIONS:
        built = images.build_site(version)
        digests[version] = str(images.push(built, registry.endpoint, REPOSITORY, version))
    narrator.text(f"registry: {registry.endpoint}, two versions of {REPOSITORY} built and pushed")
    return Published(registry.endpoint, None, digests)


def _start_control_plane(stage: Stage, narrator: Narrator) -> None:
    narrator.command("gpuaas run &")
    service = process.start(
        CONTROL_PLANE, [program("gpuaas"), "run"], stage.root, stage.environment()
    )
    process.wait_ready(service, lambda: _answers(stage.listen), READY_TIMEOUT_S)


def _start_agent(stage: Stage, narrator: Narrator) -> None:
    narrator.command(f"gpuaas node join {NODE} > token")
    token = stage.root / "token"
    token.touch(0o600)
    token.write_text(stage.gpuaas("node", "join", NODE))
    narrator.command("gpuaas-agent join --token-file token && gpuaas-agent run &")
    state = ["--state-dir", str(stage.root / AGENT)]
    agent = program("gpuaas-agent")
    process.run([agent, *state, "join", "--token-file", str(token)])
    token.unlink()
    docker = ["--docker-host", stage.docker_host] if stage.docker_host else []
    argv = [agent, *state, "run", "--engine", stage.engine, *docker]
    process.start(AGENT, argv, stage.root, {"PATH": os.environ.get("PATH", os.defpath)})


def _answers(listen: str) -> bool:
    try:
        return httpx.get(f"http://{listen}/readyz", timeout=2.0, trust_env=False).is_success
    except httpx.HTTPError:
        return False


def _converge(stage: Stage, narrator: Narrator, after: int) -> int:
    """Waits as a person would, and shows what the control plane says then; returns the cursor."""
    narrator.command("gpuaas status --wait")
    try:
        status = stage.settled_status()
    except Refused:
        _show_what_is_wrong(stage, narrator)
        raise Refused("demo_not_converged", f"not there after {WAIT_S} s, see above") from None
    narrator.status(status)
    narrator.command("gpuaas events")
    narrator.events(stage.gpuaas("events", "--after", str(after)).splitlines())
    cursor: int = status["last_cursor"]
    return cursor


def _show_what_is_wrong(stage: Stage, narrator: Narrator) -> None:
    """What a person would look at next; the logs go with the demo's folder."""
    narrator.text(stage.gpuaas("status", "--all"))
    for name in (CONTROL_PLANE, AGENT):
        narrator.text(f"the end of {name}.log:\n{process.log_tail(stage.root / f'{name}.log')}")


def _ask_site(stage: Stage, narrator: Narrator) -> None:
    document = httpx.get(f"http://{stage.listen}/v1/status", trust_env=False).json()
    instance = next(i for i in document["instances"] if i["state"] == "running")
    endpoint = instance["endpoints"][0]
    url = f"http://{endpoint['host_ip']}:{endpoint['host_port']}/"
    narrator.command(f"curl {url}")
    narrator.text(httpx.get(url, timeout=5.0, trust_env=False).text.strip())


def _left_running(stage: Stage) -> list[str]:
    """Containers of the demo's own Docker, or processes that still run from its folder."""
    if stage.docker_host is None:
        return [str(pid) for pid in _workload_processes(stage.root)]
    listed = process.run(
        ["docker", "--host", stage.docker_host, "ps", "--all", "--quiet", "--filter",
         "label=dev.gpuaas.managed"]
    )  # fmt: skip
    return listed.split()


def _diff(repo: StateRepo) -> str:
    lines = repo.git("diff", "--unified=0").splitlines()
    return "\n".join(line for line in lines if line[:1] in "+-")


def _workload_processes(root: Path) -> list[int]:
    """Processes whose working folder lies in the agent's state: what the process engine runs."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            folder = (entry / "cwd").readlink()
        except OSError:
            continue
        if folder.is_relative_to((root / AGENT).resolve()):
            found.append(int(entry.name))
    return found


def _end_workload_processes(root: Path) -> None:
    for pid in _workload_processes(root):
        process.end(process.identify(pid), grace_s=2.0)
