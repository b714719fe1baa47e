"""The state repo where it really is: behind SSH, behind HTTP, with a webhook or without one."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.platform import Platform
from tests.services.git_http import git_http
from tests.services.sshd import sshd

Make = Callable[..., Platform]


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """The repository of a forge, empty so far."""
    path = tmp_path / "forge" / "state.git"
    subprocess.run(["git", "init", "--quiet", "--bare", "-b", "main", str(path)], check=True)
    return path


@pytest.fixture
def ssh_remote(bare: Path, tmp_path: Path) -> Iterator[dict[str, str]]:
    folder = tmp_path / "ssh"
    folder.mkdir()
    with sshd(folder) as server:
        yield {
            "GPUAAS_REPO": server.url(bare),
            "GPUAAS_GIT_SSH_KEY": str(server.client_key),
            "GPUAAS_GIT_KNOWN_HOSTS": str(server.known_hosts),
        }


@pytest.fixture
def http_remote(bare: Path) -> Iterator[dict[str, str]]:
    with git_http(bare.parent) as server:
        yield {"GPUAAS_REPO": server.url("open", bare.name)}


@pytest.mark.parametrize("kind", ["ssh", "http"])
def test_a_push_to_a_forge_is_what_runs(
    kind: str, bare: Path, process_platform: Make, request: pytest.FixtureRequest
) -> None:
    platform = process_platform(request.getfixturevalue(f"{kind}_remote"))
    platform.push_to(bare)
    platform.start()
    platform.wait_settled("running")
    assert platform.page() == "1.0.0"
    assert platform.environment["GPUAAS_REPO"].startswith(f"{kind}://")

    platform.set_version("1.1.0")
    platform.commit("a newer one")
    platform.wait_settled("running")
    assert platform.page() == "1.1.0"
    assert platform.instance()["applied_revision"] == platform.repo.head()

    platform.remove_instance()
    platform.commit("none any more")
    platform.wait_settled("decommissioned")
    assert platform.workload_processes() == []


def test_a_commit_is_found_without_a_webhook(process_platform: Make) -> None:
    platform = process_platform({"GPUAAS_POLL_INTERVAL_S": "1"})
    platform.start()
    platform.wait_settled("running")
    platform.set_version("1.1.0")
    platform.repo.commit("nobody is told")
    platform.wait_settled("running")
    assert platform.page() == "1.1.0"


def test_a_remote_that_is_gone_stops_no_repair(bare: Path, process_platform: Make) -> None:
    with git_http(bare.parent) as server:
        platform = process_platform({"GPUAAS_REPO": server.url("open", bare.name)})
        platform.push_to(bare)
        platform.start()
        platform.wait_settled("running")
    before = platform.repo.head()
    platform.webhook()
    finding = platform.wait(lambda: next(iter(platform.findings()), None))
    assert (finding["type"], finding["code"]) == ("problem", "git_fetch_failed")
    assert platform.status()["last_pass"]["revision"] == before
    platform.kill_workload()
    platform.wait(lambda: platform.instance()["restarts"] == 1)
    platform.wait(lambda: platform.page() == "1.0.0")
