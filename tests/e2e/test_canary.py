"""Known secrets go through every flow, at debug level, and stand nowhere that they don't belong.

Everything is real: Vault, Docker, the registry, control plane and agent, killed so that they would
leave dumps. What may hold a secret is named here, file by file.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from node_agent.secret_files import SecretFiles
from reconciler.server.operations import READ_OPERATIONS
from tests.e2e.canaries import Canaries, ProcessWatch
from tests.e2e.custody import Custody, Vault
from tests.e2e.platform import (
    AGENT,
    CONTROL_PLANE,
    INSTANCE,
    VERSIONS,
    Platform,
    program,
    publish_to_layout,
)
from tests.e2e.test_referred_secrets import COMMANDS, with_shell

REFERRED = "acme/research/hf-token"
ENVIRONMENT_FILE = "environments/dev.yaml"
WORKLOAD = ("hf-token", "httpd\0-f")
"""Of these words one is on the command line of whatever has the secret in a variable."""
SECRETS = (
    "    secrets:\n"
    "      - {name: token}\n"
    "      - {name: hf-token, source: reference, env: HF_TOKEN}\n"
)


def talkative(name: str) -> list[str]:
    return [program(name), "--log-level", "debug"] if name == "gpuaas" else [program(name)]


@pytest.fixture
def custody(vault: Vault, tmp_path: Path) -> Custody:
    return Custody(vault, tmp_path)


@pytest.fixture(params=["process", pytest.param("docker", marks=pytest.mark.real)])
def platform(
    request: pytest.FixtureRequest, tmp_path: Path, custody: Custody
) -> Iterator[Platform]:
    """Not started yet. The app reads a secret of its own, and one that its project has."""
    root = tmp_path / "platform"
    root.mkdir()
    host = None
    if request.param == "docker":
        host = request.getfixturevalue("docker_host")
        published = with_shell(root, request.getfixturevalue("registry_endpoint"))
    else:
        published = publish_to_layout(root / "images")
    made = Platform(root, published, host, custody.settings, talkative)
    for version in VERSIONS:
        path = f"catalog/hello/versions/{version}.yaml"
        made.repo.edit(path, lambda text: _with_secrets(text, COMMANDS[request.param]))
    made.edit_instance("spec:\n", "spec:\n  secrets: {hf-token: secret://project/hf-token}\n")
    made.repo.begin_with()
    yield made
    made.stop()


def _with_secrets(text: str, command: list[str]) -> str:
    lines = text.splitlines(keepends=True)
    old = next(line for line in lines if line.startswith("    command: "))
    return text.replace(old, f"    command: {json.dumps(command)}\n{SECRETS}")


class Told:
    """All that was printed, by its command."""

    def __init__(self, platform: Platform) -> None:
        self._platform = platform
        self.texts: dict[str, str] = {}

    def run(self, *command: str, spare_output: bool = False, code: int = 0) -> str:
        done = self._platform.gpuaas("--log-level", "debug", *command)
        assert done.returncode == code, done.stdout + done.stderr
        self.texts[f"errors of {' '.join(command[:3])} ({len(self.texts)})"] = done.stderr
        if not spare_output:
            self.texts[f"output of {' '.join(command[:3])} ({len(self.texts)})"] = done.stdout
        return done.stdout


def test_no_secret_gets_where_it_does_not_belong(
    platform: Platform, custody: Custody, tmp_path: Path
) -> None:
    canaries, told = Canaries(), Told(platform)
    canaries.add("root token", custody.vault.root_token)
    with ProcessWatch(canaries, allowed=WORKLOAD) as watch:
        platform.start()
        platform.wait(lambda: platform.status()["last_pass"]["blocked"].get("secret_missing"))
        _set(platform, canaries, "project secret")
        platform.wait_settled("running")
        _learn(platform, custody, canaries)
        _upgrade_with_another_value(platform, canaries)
        _hand_over(platform, told, canaries, tmp_path)
        _rotate_the_task_key(platform)
        _meet_trouble(platform, canaries, told, tmp_path)
        _ask_everything(platform, told)
        _die(platform)
        platform.remove_instance()
        platform.commit("Remove it")
        platform.wait_settled("decommissioned")
    assert watch.looks > 100
    assert watch.found == set()
    assert canaries.in_texts(told.texts) == []
    assert canaries.in_files([tmp_path], _spared(platform, custody, canaries)) == []
    memory = SecretFiles.for_node(platform.node).candidates
    assert canaries.in_files([path for path in memory if path.exists()]) == []


def _set(platform: Platform, canaries: Canaries, name: str) -> str:
    """From a file on a memory file system: on the disk its own copy would be found."""
    value = canaries.add(name, f"canary {secrets.token_urlsafe(24)}'\"$(id)")
    place = Path("/dev/shm") / f"gpuaas-canary-{os.getpid()}"
    place.write_text(value)
    try:
        command = ("secret", "set", REFERRED, "--file", str(place))
        done = platform.gpuaas("--log-level", "debug", *command)
    finally:
        place.unlink()
    assert done.returncode == 0, done.stderr
    assert canaries.within((done.stdout + done.stderr).encode()) == []
    return value


def _learn(platform: Platform, custody: Custody, canaries: Canaries) -> None:
    """The values that were made on the way."""
    canaries.add("secret id", custody.secret_id_file.read_text().strip())
    for kind in ("instances", "webhook"):
        for path in custody.paths(kind):
            canaries.add(path, custody.value(path))
    identity = json.loads((platform.root / AGENT / "agent.json").read_text())
    canaries.add("key of the agent", identity["private_key"])
    assert {path.split("/")[-1] for path in canaries.values if "/" in path} == {
        "token",
        "machine-identity",
        "git",
    }


def _upgrade_with_another_value(platform: Platform, canaries: Canaries) -> None:
    value = _set(platform, canaries, "project secret, changed")
    platform.set_version(VERSIONS[1])
    platform.commit("Upgrade")
    platform.wait_settled("running")
    files = SecretFiles.for_node(platform.node).candidates
    held = [path for root in files if root.exists() for path in root.rglob("hf-token")]
    assert any(path.read_text() == value for path in held)


def _hand_over(platform: Platform, told: Told, canaries: Canaries, folder: Path) -> None:
    asked = ("access", INSTANCE, "--format", "json")
    document = json.loads(told.run(*asked, "--wrap", spare_output=True))
    (secret,) = [one for one in document["secrets"] if one.get("hand_over")]
    token = folder / "hand-over-token"
    token.write_text(secret["hand_over"]["token"])
    taken = told.run("unwrap", "--token-file", str(token), "--out", "-", spare_output=True)
    assert canaries.within(taken.encode()) != []
    told.run("unwrap", "--token-file", str(token), "--out", "-", code=4)
    shown = told.run(*asked, "--show-secrets", spare_output=True)
    assert canaries.within(shown.encode()) != []


def _rotate_the_task_key(platform: Platform) -> None:
    added = "spec:\n  signing_keys: {tasks: {version: 2}}\n"
    platform.repo.edit(ENVIRONMENT_FILE, lambda text: text.replace("spec:\n", added))
    platform.commit("Rotate the key of tasks")
    platform.wait_settled("running")


def _meet_trouble(platform: Platform, canaries: Canaries, told: Told, folder: Path) -> None:
    """What fails says why, and here it fails with a secret in its hands."""
    wrong = folder / "no-token"
    wrong.write_text(f"gpuaas-h1.{secrets.token_urlsafe(40)}")
    told.run("unwrap", "--token-file", str(wrong), "--out", "-", code=1)
    told.run("secret", "delete", REFERRED, code=1)
    body = json.dumps({"token": canaries.values["project secret"]})
    for path in ("/v1/unwrap", "/v1/hooks/git", "/v1/token", "/v1/auth/token"):
        answer = platform._http.post(
            path, content=body, headers={"Authorization": f"Bearer {canaries.values['root token']}"}
        )
        assert answer.status_code >= 400, path
        told.texts[path] = answer.text


def _ask_everything(platform: Platform, told: Told) -> None:
    for command in (
        ("status",), ("status", INSTANCE), ("events",), ("explain", f"AppInstance/{INSTANCE}"),
        ("timeline", INSTANCE), ("access", INSTANCE),
        ("audit", "list"), ("audit", "export"), ("keys",), ("node", "list"), ("secret", "list"),
        ("vault", "plan"), ("plan",),
    ):  # fmt: skip
        told.run(*command)
    for operation in READ_OPERATIONS:
        if "{" not in operation.path:
            told.texts[operation.path] = platform._http.get(operation.path).text
    told.texts["instance"] = platform._http.get(f"/v1/instances/{INSTANCE}").text
    told.texts["metrics"] = platform._http.get("/metrics").text
    told.texts["commits"] = platform.repo.git("log", "-p", "--all")
    if platform.docker_host is not None:
        told.texts["docker inspect"] = json.dumps(platform.docker.containers())
    assert all(told.texts[name] for name in ("instance", "metrics", "commits"))


def _die(platform: Platform) -> None:
    """By the signal that makes a dump wherever one is made."""
    for name in (CONTROL_PLANE, AGENT):
        service = platform._services.pop(name)
        os.kill(service.identity.pid, signal.SIGABRT)
        service.stop()
        shutil.copy(service.log, service.log.with_suffix(".before-the-crash"))
    platform.restart(CONTROL_PLANE, AGENT)


def _spared(platform: Platform, custody: Custody, canaries: Canaries) -> list[Path]:
    """What is there to hold a secret, for its owner alone: the login of the control plane, and the
    key that the agent made for itself.
    """
    kept = [custody.secret_id_file, platform.root / AGENT / "agent.json"]
    assert {path.stat().st_mode & 0o777 for path in kept} == {0o600}
    assert all(canaries.within(path.read_bytes()) for path in kept)
    return kept
