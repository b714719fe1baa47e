"""Services answer when `start_…` returns and leave nothing behind: stopped, failed or killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import docker
import httpx
import pytest

from node_agent.wire import Image
from reconciler.devkit import bridge, dockerd, images, process, services
from reconciler.errors import Refused
from tests.waiting import wait_until


def _traces(root: Path) -> dict[str, list[str]]:
    """Everything on this host that bears the name of the private Docker of `root`."""
    place = dockerd.Place(root.resolve())
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    commands = [" ".join(process.command_line(pid)) for pid in dockerd.processes()]
    addresses = place.addresses()
    return {
        "processes": [line for line in commands if str(place.run) in line or str(root) in line],
        "mounts": [line for line in mounts if str(place.run) in line or str(root) in line],
        "bridges": bridge.within(addresses) if addresses else [],
        "cgroups": [str(path) for path in Path("/sys/fs/cgroup").glob(f"**/{place.name}")],
        "folders": [str(folder) for folder in (place.run, place.data) if folder.is_dir()],
    }


NOTHING: dict[str, list[str]] = {
    "processes": [],
    "mounts": [],
    "bridges": [],
    "cgroups": [],
    "folders": [],
}


def _run_site(host: str, image: Image, name: str | None = None) -> int:
    """Runs the site on a network of its own, restarting for ever; returns its loopback port."""
    client = docker.DockerClient(base_url=host)
    try:
        client.networks.create("apart")
        client.images.pull(f"{image.registry}/{image.repository}@{image.digest}")
        port = services.free_port()
        client.containers.run(
            image.reference,
            name=name,
            detach=True,
            network="apart",
            ports={f"{images.SITE_PORT}/tcp": ("127.0.0.1", port)},
            restart_policy={"Name": "always"},
        )
        return port
    finally:
        client.close()


def _page(port: int) -> str | None:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/", trust_env=False).text
    except httpx.TransportError:
        return None


def _iptables(table: str = "nat") -> str:
    return subprocess.run(
        [process.find_program("iptables-save", "iptables"), "-t", table],
        capture_output=True,
        text=True,
        check=True,
    ).stdout


def _rules() -> list[str]:
    return [line for line in _iptables().splitlines() if line.startswith("-A")]


def test_docker_runs_a_site_and_leaves_nothing(service_root: Path, demo_image: Image) -> None:
    root = service_root / "stopped"
    rules = _rules()
    with services.start_dockerd(root) as private:
        port = _run_site(private.host, demo_image)
        assert wait_until(lambda: _page(port)) == "1.0.0\n"
        assert all(_traces(root).values())
        assert _rules() == rules
    assert _traces(root) == NOTHING
    private.stop()


def test_containers_of_one_network_reach_each_other(service_root: Path, demo_image: Image) -> None:
    """Also where the host has another Docker, whose rules drop what it does not know."""
    root = service_root / "talking"
    with services.start_dockerd(root) as private:
        _run_site(private.host, demo_image, "site")
        client = docker.DockerClient(base_url=private.host)
        ask = ["/bin/busybox", "wget", "-q", "-O", "-", f"http://site:{images.SITE_PORT}/"]
        try:
            (site,) = client.containers.list()
            asked = wait_until(lambda: _asked_from_beside(client, site.image, ask))
        finally:
            client.close()
        own = str(dockerd.Place(root.resolve()).range_file.read_text().strip())
    assert asked == b"1.0.0\n"
    assert [line for line in _iptables("filter").splitlines() if own in line] == []


def _asked_from_beside(client: docker.DockerClient, image: Any, ask: list[str]) -> bytes:
    try:
        run = client.containers.run
        return bytes(run(image, entrypoint=ask, network="apart", remove=True))
    except docker.errors.ContainerError:
        return b""


def test_killed_docker_is_cleared_by_the_next_start(service_root: Path, demo_image: Image) -> None:
    root = service_root / "killed"
    first = services.start_dockerd(root)
    port = _run_site(first.host, demo_image)
    assert wait_until(lambda: _page(port))
    os.kill(first.pid, signal.SIGKILL)
    wait_until(lambda: not first.service.alive())
    assert _traces(root)["processes"], "containerd outlives it, else this shows nothing"
    with services.start_dockerd(root) as second:
        assert second.pid != first.pid
        assert services.answers(second.host)
        assert _page(port) is None
    assert _traces(root) == NOTHING


def test_the_bridge_of_another_docker_stays_when_a_killed_one_is_replaced(
    service_root: Path,
) -> None:
    """`docker0` is the other's name for it: made here where there is none, else left as it is."""
    root = service_root / "beside"
    others = "docker0"
    made = not bridge.exists(others)
    if made:
        bridge.create(others, bridge.free_range(7))
    try:
        os.kill(services.start_dockerd(root).pid, signal.SIGKILL)
        with services.start_dockerd(root):
            assert bridge.exists(others)
    finally:
        if made:
            bridge.delete(others)


def test_docker_that_fails_to_start_leaves_nothing_and_shows_its_log(service_root: Path) -> None:
    root = service_root / "failed"
    root.mkdir()
    (root / "data").write_text("a file where a folder should be")
    with pytest.raises(Refused) as refused:
        services.start_dockerd(root)
    assert refused.value.code == "service_died"
    assert "it ended while starting; the end of" in refused.value.message
    assert "canonical path points to a file" in refused.value.message
    assert _traces(root) == NOTHING


def test_two_dockers_side_by_side(service_root: Path, docker_host: str) -> None:
    with services.start_dockerd(service_root / "second") as second:
        assert second.host != docker_host
        assert services.answers(docker_host)
        assert services.answers(second.host)
    assert services.answers(docker_host)


def test_registry_answers_and_ends(service_root: Path) -> None:
    root = service_root / "one-registry"
    with services.start_registry(root) as registry:
        assert httpx.get(f"http://{registry.endpoint}/v2/", trust_env=False).status_code == 200
    assert not registry.service.alive()
    assert not registry.service.record.exists()


def test_registry_on_a_taken_port_is_refused_with_its_log(
    service_root: Path, registry_endpoint: str
) -> None:
    taken = int(registry_endpoint.rpartition(":")[2])
    with pytest.raises(Refused, match="address already in use") as refused:
        services.start_registry(service_root / "taken", port=taken)
    assert refused.value.where == "registry"


def test_leftover_of_a_killed_run_is_ended(service_root: Path) -> None:
    root = service_root / "left-over"
    code = (
        "import pathlib, sys; from reconciler.devkit import services;"
        "print(services.start_registry(pathlib.Path(sys.argv[1])).pid)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code, str(root)], capture_output=True, text=True, check=True
    )
    pid = int(ran.stdout)
    assert process.start_ticks(pid) is not None
    with services.start_registry(root) as registry:
        assert registry.pid != pid
        assert process.start_ticks(pid) is None


CHANGES: dict[str, dict[str, object]] = {
    "another start time": {"start_ticks": 1},
    "another command": {"argv": ["registry", "serve"]},
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_process_that_is_not_ours_is_left_alone(tmp_path: Path, change: str) -> None:
    stranger = subprocess.Popen(["sleep", "600"])
    try:
        identity = {
            "pid": stranger.pid,
            "start_ticks": process.start_ticks(stranger.pid),
            "argv": ["sleep", "600"],
        }
        record = tmp_path / "registry.process.json"
        record.write_text(json.dumps({**identity, **CHANGES[change]}))
        assert process.end_leftover("registry", tmp_path) is False
        assert stranger.poll() is None
        assert not record.exists()
    finally:
        stranger.kill()
        stranger.wait()


def test_a_service_that_ignores_the_request_is_ended_with_its_children(tmp_path: Path) -> None:
    script = 'trap "" TERM; sleep 600 & echo $!; wait'
    service = process.start("stubborn", ["/bin/sh", "-c", script], tmp_path)
    child = int(wait_until(lambda: service.log.read_text().strip()))
    service.stop(grace_s=0.2)
    assert process.start_ticks(service.identity.pid) is None
    wait_until(lambda: process.start_ticks(child) is None)


def test_a_service_that_never_answers_is_refused(tmp_path: Path) -> None:
    service = process.start("silent", ["sleep", "600"], tmp_path)
    try:
        with pytest.raises(Refused) as refused:
            process.wait_ready(service, lambda: False, timeout_s=0.1)
    finally:
        service.stop()
    assert str(refused.value) == (
        "silent: service_not_ready: no answer after 0.1 s; it logged nothing"
    )


def test_missing_program_is_refused_with_its_package() -> None:
    with pytest.raises(Refused) as refused:
        process.find_program("no-such-program", "some-package")
    assert str(refused.value) == (
        "program_missing: no-such-program is not installed (apt-get install some-package)"
    )


def test_sshd_lets_the_key_in_and_nobody_else(service_root: Path) -> None:
    root = service_root / "ssh"
    root.mkdir()
    keygen = process.find_program("ssh-keygen", "openssh-client")
    for name in ("mine", "other"):
        process.run([keygen, "-q", "-t", "ed25519", "-N", "", "-f", str(root / name)])
    with services.start_sshd(root / "server", (root / "mine.pub").read_text()) as server:
        (root / "known_hosts").write_text(server.known_hosts + "\n")
        assert _ssh(server, root, "mine").stdout == "hello\n"
        refused = _ssh(server, root, "other")
    assert refused.returncode == 255
    assert "Permission denied" in refused.stderr
    assert not server.service.alive()


def _ssh(
    server: services.SshServer, root: Path, key: str
) -> subprocess.CompletedProcess[str]:
    options = {
        "IdentitiesOnly": "yes",
        "BatchMode": "yes",
        "UserKnownHostsFile": str(root / "known_hosts"),
        "GlobalKnownHostsFile": "/dev/null",
        "StrictHostKeyChecking": "yes",
    }
    words = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
    target, port = f"{server.user}@{server.host}", str(server.port)
    return subprocess.run(
        ["ssh", "-F", "none", "-i", str(root / key), "-p", port, *words, target, "echo hello"],
        capture_output=True,
        text=True,
        check=False,
    )


def test_existing_docker_is_found_by_its_variable(
    docker_host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_HOST", docker_host)
    assert services.existing_docker() == docker_host
    monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere/docker.sock")
    assert services.existing_docker() is None


def test_routed_subnets_are_not_taken() -> None:
    first = bridge.free_range(0)
    bridge.create("gputest0", first)
    try:
        assert bridge.within(first) == ["gputest0"]
        assert bridge.free_range(0) != first
    finally:
        bridge.delete("gputest0")
    assert not bridge.exists("gputest0")


def test_a_process_is_known_from_its_first_moment(tmp_path: Path) -> None:
    for _ in range(20):
        service = process.start("sleeper", ["sleep", "600"], tmp_path)
        known = service.alive()
        service.stop()
        assert known


HINDRANCES = {
    "not root": ("reconciler.devkit.dockerd.os.geteuid", 1000, "not root: a private Docker needs"),
    "no capability": (
        "reconciler.devkit.dockerd._capabilities",
        1 << 12,
        "missing CAP_SYS_ADMIN: run outside an unprivileged container",
    ),
    "no cgroups": (
        "reconciler.devkit.dockerd._cgroup_mounts",
        [],
        "no cgroup hierarchy is mounted (apt-get install cgroupfs-mount, or use systemd)",
    ),
    "no program": (
        "reconciler.devkit.process.shutil.which",
        None,
        "dockerd is not installed (apt-get install docker.io)",
    ),
}


@pytest.mark.parametrize("name", HINDRANCES)
def test_why_no_docker_is_possible(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    target, answer, reason = HINDRANCES[name]
    monkeypatch.setattr(target, lambda *_, **__: answer)
    assert (services.docker_possible() or "").startswith(reason)


def test_docker_is_possible_here() -> None:
    assert services.docker_possible() is None or services.existing_docker() is not None
