"""A secret from its first launch to its removal, on the real programs: where it is, and is not."""

from __future__ import annotations

import base64
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from node_agent.secret_files import SecretFiles
from reconciler.devkit.state_repo import Published
from tests.e2e.platform import AGENT, CONTROL_PLANE, INSTANCE, VERSIONS, Platform, files_below

ACCESS = '    instructions: "open http://127.0.0.1:8080/?token={secret:token}"\n'


@pytest.fixture(params=["process", pytest.param("docker", marks=pytest.mark.real)])
def platform(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Platform]:
    """Both versions of the app read a secret. Started, and the first one runs."""
    if request.param == "docker":
        host = request.getfixturevalue("docker_host")
        published: Published = request.getfixturevalue("published")
        made = Platform(tmp_path, published, host)
    else:
        make: Callable[[], Platform] = request.getfixturevalue("process_platform")
        made = make()
    for version in VERSIONS:
        made.repo.edit(f"catalog/hello/versions/{version}.yaml", with_secret)
    made.repo.begin_with()
    try:
        made.start()
        made.wait_settled("running")
        yield made
    finally:
        made.stop()


def with_secret(text: str) -> str:
    lines = text.splitlines(keepends=True)
    kind = next(line for line in lines if line.startswith("    kind: "))
    old = next(line for line in lines if line.startswith("    instructions: "))
    return text.replace(kind, f"{kind}    secrets: [{{name: token}}]\n").replace(old, ACCESS)


def root_of(platform: Platform) -> Path:
    return folder_of(platform).parent


def folder_of(platform: Platform) -> Path:
    return SecretFiles.for_node(platform.node).folder(INSTANCE)


def access(platform: Platform, *arguments: str) -> dict[str, Any]:
    said = platform.gpuaas("access", INSTANCE, "--format", "json", *arguments)
    assert said.returncode == 0, said.stderr
    document: dict[str, Any] = json.loads(said.stdout)
    return document


def value_of(platform: Platform) -> str:
    document = access(platform, "--show-secrets")
    (secret,) = document["secrets"]
    assert f"token={secret['value']}" in document["instructions"]
    return str(secret["value"])


def forms_of(value: str) -> list[bytes]:
    """As it is, and as it might have been encoded."""
    raw = value.encode()
    return [raw, base64.b64encode(raw), raw.hex().encode()]


def places_with(value: str, folder: Path) -> list[str]:
    return [
        str(path)
        for path, content in files_below(folder)
        if any(form in content for form in forms_of(value))
    ]


def processes_with(value: str) -> list[str]:
    """Those that were told it as an argument or in a variable."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        for name in ("cmdline", "environ"):
            try:
                said = (entry / name).read_bytes()
            except OSError:
                continue
            if int(entry.name) != os.getpid() and value.encode() in said:
                found.append(f"{entry.name}/{name}")
    return found


def test_one_value_for_life_and_only_where_it_belongs(platform: Platform) -> None:
    value = value_of(platform)
    file = folder_of(platform) / "token"
    assert file.read_text() == value
    assert len(value) == 43

    platform.set_version("1.1.0")
    platform.commit("Upgrade")
    platform.wait_settled("running")
    assert (value_of(platform), file.read_text()) == (value, value)

    # Everything is killed at once, and what is in memory is gone, as after a power cut.
    platform.kill(CONTROL_PLANE, AGENT)
    shutil.rmtree(root_of(platform))
    stop_workload(platform)
    platform.restart(CONTROL_PLANE, AGENT)
    platform.wait(file.exists)
    platform.wait(lambda: platform.page() == "1.1.0")
    assert (value_of(platform), file.read_text()) == (value, value)
    assert said_everywhere(platform, value) == []

    platform.remove_instance()
    platform.commit("Remove it")
    platform.wait_settled("decommissioned")
    assert not file.parent.exists()
    kept = {path.name for path in (platform.root / "state/secrets/secrets").iterdir()}
    assert kept == {"handover%2Fmac-key", "pki%2Froot", "webhook%2Fgit"}
    assert said_everywhere(platform, value) == []


def stop_workload(platform: Platform) -> None:
    platform.kill_workload()
    if platform.docker_host is not None:
        (container,) = platform.docker.containers()
        platform.docker.api.kill(container["Id"])


def said_everywhere(platform: Platform, value: str) -> list[str]:
    """Where the value is found, of all that was written, sent to people or kept."""
    found = [*places_with(value, platform.root), *processes_with(value)]
    pages = {
        "status": json.dumps([platform.status(), platform.instance()]),
        "events": json.dumps(platform.events()),
    }
    for command in (("access", INSTANCE), ("status", INSTANCE), ("events",), ("plan",)):
        done = platform.gpuaas(*command)
        pages[" ".join(command)] = done.stdout + done.stderr
    if platform.docker_host is not None:
        pages["docker inspect"] = json.dumps(platform.docker.containers())
    assert all(pages.values())
    return found + [name for name, text in pages.items() if value in text]
