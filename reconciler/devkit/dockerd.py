"""A private Docker Engine: its own socket, data, bridge, address range and cgroup.

Rules:
- Another Docker on the host is not disturbed: no shared bridge or subnet, and of iptables' rules
  at most one, for our own addresses alone (`bridge.let_through`).
  Ports are published through Docker's userland proxy; containers do not reach the outside.
- Everything of ours can be told from everything else by the runtime folder or the cgroup, both
  named after `root`. So `stop` also clears what a killed run left, and nothing beyond.
- Each start is a fresh one. Docker 20.10 that finds a network of its own in old data, and has an
  address pool, deletes `docker0` whoever it belongs to.
"""

from __future__ import annotations

import fcntl
import hashlib
import ipaddress
import json
import os
import re
import shutil
import signal
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from reconciler.devkit import bridge, process
from reconciler.errors import Refused

_RANGE_LOCK = Path("/run/gpuaas-ranges.lock")
DEFAULT_SOCKET = Path("/var/run/docker.sock")
READY_TIMEOUT_S = 60.0
STOP_GRACE_S = 15.0
SWEEP_TIMEOUT_S = 10.0
ASK_TIMEOUT_S = 5
_CAP_NET_ADMIN, _CAP_SYS_ADMIN = 12, 21
_RUNTIMES = frozenset({"containerd", "containerd-shim", "containerd-shim-runc-v2"})


@dataclass(frozen=True)
class Place:
    """Where a private Docker keeps itself, all of it decided by `root` alone.

    The sockets live in a short folder of their own: a socket's path is limited to 107 bytes.
    """

    root: Path

    @property
    def tag(self) -> str:
        return hashlib.sha256(os.fsencode(self.root.resolve())).hexdigest()[:8]

    @property
    def name(self) -> str:
        return f"gpuaas-{self.tag}"

    @property
    def bridge_name(self) -> str:
        return f"gpu{self.tag}"

    @property
    def run(self) -> Path:
        return Path("/run") / self.name

    @property
    def host(self) -> str:
        return f"unix://{self.run}/docker.sock"

    @property
    def data(self) -> Path:
        return self.root / "data"

    @property
    def range_file(self) -> Path:
        return self.root / "address-range"

    def addresses(self) -> bridge.AddressRange | None:
        """The range in use, or left by a killed run; None when there is none."""
        if not self.range_file.exists():
            return None
        return bridge.AddressRange(ipaddress.IPv4Network(self.range_file.read_text().strip()))


@dataclass(frozen=True)
class Dockerd(process.Stoppable):
    """A running private Docker. `host` is what DOCKER_HOST would be."""

    host: str
    pid: int
    place: Place
    service: process.Service

    def stop(self) -> None:
        """Ends it and all it started: containers, networks, mounts, data. Harmless twice."""
        _end(self.place, self.service.identity)
        self.service.record.unlink(missing_ok=True)


def start_dockerd(root: Path) -> Dockerd:
    """Starts an empty private Docker under `root`, first clearing what a killed run left there.

    Raises Refused with the end of its log when it does not come up; nothing stays behind then.
    """
    program = process.find_program("dockerd", "docker.io")
    root = root.resolve()
    root.mkdir(parents=True, exist_ok=True)
    place = Place(root)
    stop_dockerd_leftover(root)
    try:
        service = _launch(program, place)
        process.wait_ready(service, lambda: answers(place.host), READY_TIMEOUT_S)
    except BaseException:
        stop_dockerd_leftover(root)
        raise
    return Dockerd(place.host, service.identity.pid, place, service)


def stop_dockerd_leftover(root: Path) -> None:
    """Ends the private Docker of `root`, whoever started it, and clears what it left.

    Its configuration and log stay.
    """
    place = Place(root.resolve())
    process.end_leftover("dockerd", place.root, STOP_GRACE_S, lambda: _kill_containers(place))
    _sweep(place)


def answers(host: str) -> bool:
    """Whether a Docker Engine answers at `host`, `unix://…` or `tcp://…`; others are not asked.

    Asked through a bare socket: HTTP libraries leave a socket open when a Unix one refuses.
    """
    scheme, _, place = host.partition("://")
    name, _, port = place.rpartition(":")
    try:
        if scheme == "unix":
            connection = socket.socket(socket.AF_UNIX)
        elif scheme == "tcp" and port.isdecimal():
            connection = socket.socket()
        else:
            return False
        with connection:
            connection.settimeout(ASK_TIMEOUT_S)
            connection.connect(place if scheme == "unix" else (name, int(port)))
            connection.sendall(b"GET /_ping HTTP/1.0\r\nHost: docker\r\n\r\n")
            return connection.recv(64).split(b" ")[1:2] == [b"200"]
    except (OSError, OverflowError):
        return False


def existing_docker() -> str | None:
    """The Docker a person already has, by DOCKER_HOST or the usual socket, if it answers."""
    named = os.environ.get("DOCKER_HOST")
    host = named or f"unix://{DEFAULT_SOCKET}"
    if not named and not DEFAULT_SOCKET.exists():
        return None
    return host if answers(host) else None


def docker_possible() -> str | None:
    """None when a private Docker can be started here, else why not, for a person."""
    if os.geteuid() != 0:
        return "not root: a private Docker needs root"
    try:
        process.find_program("dockerd", "docker.io")
    except Refused as error:
        return f"{error.message} ({error.hint})"
    missing = [
        name
        for name, bit in (("CAP_NET_ADMIN", _CAP_NET_ADMIN), ("CAP_SYS_ADMIN", _CAP_SYS_ADMIN))
        if not _capabilities() >> bit & 1
    ]
    if missing:
        return f"missing {', '.join(missing)}: run outside an unprivileged container"
    if not _cgroup_mounts():
        return "no cgroup hierarchy is mounted (apt-get install cgroupfs-mount, or use systemd)"
    return None


def _launch(program: str, place: Place) -> process.Service:
    place.run.mkdir(mode=0o700, exist_ok=True)
    addresses = _take_range(place)
    config = place.root / "daemon.json"
    config.write_text(json.dumps(_configuration(place, addresses), indent=1))
    return process.start("dockerd", [program, "--config-file", str(config)], place.root)


def _take_range(place: Place) -> bridge.AddressRange:
    """Picks a free range and gives the bridge its first address, one process at a time."""
    with _RANGE_LOCK.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        addresses = bridge.free_range(int(place.tag, 16))
        place.range_file.write_text(str(addresses.network))
        bridge.create(place.bridge_name, addresses)
        bridge.let_through(addresses)
    return addresses


def _configuration(place: Place, addresses: bridge.AddressRange) -> dict[str, object]:
    return {
        "hosts": [place.host],
        "data-root": str(place.data),
        "exec-root": str(place.run / "exec"),
        "pidfile": str(place.run / "docker.pid"),
        "bridge": place.bridge_name,
        "default-address-pools": [{"base": addresses.pool, "size": 24}],
        "iptables": False,
        "ip-forward": False,
        "ip-masq": False,
        "exec-opts": ["native.cgroupdriver=cgroupfs"],
        "cgroup-parent": f"/{place.name}",
        "shutdown-timeout": 2,
        "log-level": "warn",
    }


def _end(place: Place, identity: process.Identity) -> None:
    process.end(identity, STOP_GRACE_S, lambda: _kill_containers(place))
    _sweep(place)


def _sweep(place: Place) -> None:
    """Clears what an ended Docker may have left; the order is from what holds to what is held."""
    _wait_gone(lambda: [*_kill_containers(place), *_kill_runtimes(place)], "processes", place)
    _unmount(place)
    addresses = place.addresses()
    if addresses:
        bridge.no_longer_let_through(addresses)
        for name in bridge.within(addresses):
            bridge.delete(name)
    bridge.delete(place.bridge_name)
    _wait_gone(lambda: _remove_cgroups(place), "cgroups", place)
    place.range_file.unlink(missing_ok=True)
    if place.data.is_dir():
        shutil.rmtree(place.data)
    shutil.rmtree(place.run, ignore_errors=True)


def _wait_gone(remaining: Callable[[], list[object]], what: str, place: Place) -> None:
    deadline = time.monotonic() + SWEEP_TIMEOUT_S
    while left := remaining():
        if time.monotonic() > deadline:
            names = ", ".join(str(item) for item in left[:5])
            raise Refused("service_left_over", f"{what} that do not end: {names}", where=place.name)
        time.sleep(process.POLL_INTERVAL_S)


def processes() -> Iterator[int]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            yield int(entry.name)


def _kill_containers(place: Place) -> list[object]:
    """A throwaway service owes its containers no grace. Returns the ids of those still there."""
    ours = re.compile(rf":/(?:[^\n]*/)?{re.escape(place.name)}/")
    return [pid for pid in processes() if ours.search(_cgroup_of(pid)) and _kill(pid)]


def _kill_runtimes(place: Place) -> list[object]:
    """containerd and its shims, which outlive a killed dockerd; told by the folder they work in."""
    killed: list[object] = []
    for pid in processes():
        argv = process.command_line(pid)
        if argv and Path(argv[0]).name in _RUNTIMES and any(
            word.startswith(f"{place.run}/") for word in argv
        ):
            killed.extend([pid] if _kill(pid) else [])
    return killed


def _kill(pid: int) -> bool:
    """False when it was gone already, or is only waiting to be collected by its parent."""
    if process.start_ticks(pid) is None:
        return False
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def _cgroup_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cgroup").read_text()
    except OSError:
        return ""


def _unmount(place: Place) -> None:
    program = process.find_program("umount", "mount")
    own = (f"{place.root}/", f"{place.run}/")
    points = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    for point in sorted((_unescape(point) for point in points), reverse=True):
        if point.startswith(own):
            process.run([program, "--lazy", point])


def _unescape(point: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), point)


def _cgroup_mounts() -> list[Path]:
    lines = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    return [Path(fields[1]) for fields in lines if fields[2] in {"cgroup", "cgroup2"}]


def _remove_cgroups(place: Place) -> list[object]:
    """Removes our emptied cgroups, innermost first. Returns those that are still busy."""
    busy: list[object] = []
    for mount in _cgroup_mounts():
        top = mount / place.name
        folders = [Path(folder) for folder, _, _ in os.walk(top, topdown=False)]
        for folder in folders:
            try:
                folder.rmdir()
            except OSError:
                busy.append(folder)
    return busy


def _capabilities() -> int:
    status = Path("/proc/self/status").read_text()
    found = re.search(r"^CapEff:\s*([0-9a-f]+)$", status, re.MULTILINE)
    return int(found[1], 16) if found else 0
