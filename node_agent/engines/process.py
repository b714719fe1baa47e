"""Runs workloads as plain processes of this host, from images in an OCI image-layout folder.

Rules:
- A process is known by its pid and its start time in this boot: a recycled pid is somebody else.
- Everything of a unit is in one folder. It appears by one rename, complete, and is removed whole.
- Processes outlive the agent (see `shim`). What a workload forked off is found by a random word in
  its environment, wherever it moved to, and ends with it.
- Limits are what the kernel offers without a container; see `limits` for how far they hold.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

from node_agent.blob_files import blob_paths
from node_agent.engines import packages, secret_env, shim
from node_agent.engines.base import (
    BLOBS_VARIABLE,
    DISK_FULL_NUMBERS,
    SECRETS_VARIABLE,
    Ask,
    Cancelled,
    EngineFacts,
    EngineFailure,
    Residue,
    endpoints_of,
    no_credential,
    unit_name,
)
from node_agent.engines.gpus import require
from node_agent.engines.layout import Layout
from node_agent.engines.limits import cores, rlimits
from node_agent.engines.probes import port_is_free, probe_network
from node_agent.engines.procfs import listening, processes_with, sockets_of
from node_agent.inventory import HostPaths, gpu_host
from node_agent.secret_files import SecretFiles
from node_agent.units import Probed, Unit
from node_agent.wire import (
    LAYOUT_PREFIX,
    Endpoint,
    ExecProbe,
    FailureReason,
    Image,
    Probe,
    Workload,
)

UNIT_VARIABLE = "GPUAAS_UNIT"
START_TIMEOUT_S = 10.0
KILL_TIMEOUT_S = 5.0
POLL_S = 0.01
WATCH_S = 0.2
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_TEMPORARY = ".tmp-"
_BLOBS = "blobs"


class ProcessEngine:
    """Processes whose folders are under `folder`, on behalf of `node`. One agent per folder."""

    def __init__(
        self,
        node: str,
        folder: Path,
        paths: HostPaths | None = None,
        secrets: SecretFiles | None = None,
        blobs: Path | None = None,
    ) -> None:
        self._node = node
        self._paths = paths
        self._secrets = secrets or SecretFiles.for_node(node)
        self._blobs = blobs
        # Units are started from the root folder, where a relative path names something else.
        self._units = folder.absolute() / "units"
        self._units.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._boot_id = shim.boot_id()
        self._closed = threading.Event()
        self._own_sockets: dict[str, str] = {}

    @property
    def name(self) -> Literal["process"]:
        return "process"

    def facts(self) -> EngineFacts:
        return EngineFacts()

    def units(self, instance: str | None = None) -> tuple[Unit, ...]:
        found = []
        for folder in sorted(self._units.iterdir()):
            document = _read(folder / "unit.json")
            if folder.name.startswith(_TEMPORARY) or document is None:
                continue
            if document["node"] == self._node and instance in {None, document["instance"]}:
                found.append(self._unit(folder, document))
        return tuple(found)

    def pull(self, image: Image, cancelled: threading.Event, _ask: Ask = no_credential, /) -> None:
        if cancelled.is_set():
            raise Cancelled
        try:
            _layout(image).check(image.digest)
        except OSError as error:
            message = f"the layout folder can't be read ({error.strerror})"
            raise EngineFailure(FailureReason.IMAGE_PULL_FAILED, message, transient=True) from None

    def create(self, workload: Workload, host_ports: Mapping[str, int]) -> None:
        name = unit_name(workload.instance, workload.spec_hash)
        if any(port.address is not None for port in workload.ports):
            message = "a process is not published at an address of its node: only Docker does that"
            raise EngineFailure(FailureReason.CREATE_REFUSED, message)
        if (self._units / name).exists():
            message = f"{name} is there already"
            raise EngineFailure(FailureReason.CREATE_REFUSED, message, transient=True)
        prefix = f"{_TEMPORARY}{_short_hash(workload.instance)}-"
        temporary = self._units / f"{prefix}{uuid.uuid4().hex}"
        try:
            temporary.mkdir(mode=0o700)
            (temporary / "root").mkdir()
            command = _layout(workload.image).unpack(workload.image.digest, temporary / "root")
            _link_blobs(blob_paths(self._blobs, workload), temporary / _BLOBS)
            document = self._document(workload, host_ports, self._units / name, command)
            document["argv"][0] = _resolved(document["argv"][0], temporary, self._units / name)
            if secret_env.wanted(workload):
                document["argv"] = secret_env.wrapped(workload, document["argv"])
            if workload.packages is not None:
                document["argv"] = packages.wrapped(document["argv"])
            with open(temporary / "unit.json", "w") as file:
                json.dump(document, file)
            temporary.rename(self._units / name)
        except OSError as error:
            full = error.errno in DISK_FULL_NUMBERS
            reason = FailureReason.DISK_FULL if full else FailureReason.CREATE_REFUSED
            message = f"its folder can't be made ({error.strerror})"
            raise EngineFailure(reason, message, transient=full) from None
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def start(self, unit: Unit) -> None:
        if unit.gpu_vendor is not None:
            there = gpu_host(unit.gpu_vendor, EngineFacts(), self._paths).uuids
            require(unit.gpu_vendor, unit.gpu_uuids, there)
        folder = self._units / unit.unit_id
        if self._main_process(folder) is not None:
            return
        self._end_everything(folder, grace_ms=0)
        for endpoint in unit.endpoints:
            if not port_is_free(endpoint.host_port):
                message = f"port {endpoint.host_port} of the host is taken"
                raise EngineFailure(FailureReason.PORT_IN_USE, message)
        for name in ("run.json", "exit.json"):
            (folder / name).unlink(missing_ok=True)
        failure = _run_shim(folder)
        if failure not in {0, errno.EALREADY}:
            raise _start_failure(failure)

    def stop(self, unit: Unit, grace_ms: int) -> None:
        self._end_everything(self._units / unit.unit_id, grace_ms)

    def remove(self, unit: Unit) -> None:
        folder = self._units / unit.unit_id
        self._end_everything(folder, grace_ms=0)
        self._own_sockets.pop(unit.unit_id, None)
        # Renamed first: a folder half removed must not be taken for a unit after a crash.
        doomed = self._units / f"{_TEMPORARY}{_short_hash(unit.instance)}-{uuid.uuid4().hex}"
        try:
            folder.rename(doomed)
            shutil.rmtree(doomed)
        except FileNotFoundError:
            return
        except OSError as error:
            message = f"its folder can't be removed ({error.strerror})"
            raise EngineFailure(
                FailureReason.TEARDOWN_INCOMPLETE, message, transient=True
            ) from None

    def probe(self, unit: Unit, probe: Probe, timeout_ms: int) -> Probed:
        document = _read(self._units / unit.unit_id / "unit.json")
        if document is None:
            return Probed(False, "it is gone")
        if isinstance(probe, ExecProbe):
            return _probe_exec(document, probe, timeout_ms)
        probed = probe_network(unit, probe, timeout_ms)
        if probed.ready and not self._listens(unit, document, probe.port):
            return Probed(False, f"port {probe.port}: another process answers there")
        return probed

    def sweep(self, instance: str) -> None:
        for folder in self._leftovers(instance):
            shutil.rmtree(folder, ignore_errors=True)

    def residue(self, instance: str) -> Residue:
        units = self.units(instance)
        folders = len(units) + len(list(self._leftovers(instance)))
        return Residue(containers=len(units), networks=0, volumes=0, paths=folders)

    def watch(self, changed: Callable[[str | None], None], stop: threading.Event) -> None:
        """Looks at each unit's main process; a pid file that goes stale is the event."""
        before: dict[str, str] = {}
        while not (stop.wait(WATCH_S) or self._closed.is_set()):
            try:
                now = {unit.unit_id: unit for unit in self.units()}
            except (EngineFailure, OSError):
                continue
            for unit_id, unit in now.items():
                if before.get(unit_id) != unit.status:
                    changed(unit.instance)
            if before.keys() - now.keys():
                changed(None)
            before = {unit_id: unit.status for unit_id, unit in now.items()}

    def close(self) -> None:
        self._closed.set()

    # --- units ---

    def _document(
        self,
        workload: Workload,
        host_ports: Mapping[str, int],
        folder: Path,
        image_command: tuple[str, ...],
    ) -> dict[str, Any]:
        argv = list(workload.command or image_command)
        if not argv:
            message = "neither the workload nor its image names a command"
            raise EngineFailure(FailureReason.COMMAND_NOT_FOUND, message)
        token = uuid.uuid4().hex
        root = str(folder / "root")
        return {
            "instance": workload.instance,
            "node": self._node,
            "spec_hash": workload.spec_hash,
            "created_at_ms": shim.now_ms(),
            "image_digest": workload.image.digest,
            "endpoints": [e.model_dump() for e in endpoints_of(workload, host_ports)],
            "argv": argv,
            "root": root,
            "env": {
                **_environment(workload, host_ports, folder, token),
                **self._told(workload, folder),
            },
            "gpu_vendor": workload.limits.gpu_vendor if workload.limits.gpu_uuids else None,
            "gpu_uuids": workload.limits.gpu_uuids,
            "rlimits": rlimits(workload.limits),
            "cores": cores(workload.limits, os.sched_getaffinity(0), self._taken_cores()),
            "token": token,
        }

    def _told(self, workload: Workload, folder: Path) -> dict[str, str]:
        """Where secrets and blobs are: no mount gives a folder the name it should have."""
        told = {BLOBS_VARIABLE: str(folder / _BLOBS)} if workload.blobs else {}
        if workload.secrets:
            told[SECRETS_VARIABLE] = str(self._secrets.folder_of(workload))
        return told

    def _taken_cores(self) -> Iterator[list[int]]:
        for folder in self._units.iterdir():
            yield (_read(folder / "unit.json") or {}).get("cores") or []

    def _unit(self, folder: Path, document: Mapping[str, Any]) -> Unit:
        alive = self._main_process(folder) is not None
        ended = _read(folder / "exit.json") or {}
        started = (folder / "run.json").exists()
        status: Literal["created", "running", "exited"] = "created"
        if started:
            status = "running" if alive else "exited"
        return Unit(
            unit_id=folder.name,
            name=folder.name,
            engine="process",
            instance=document["instance"],
            node=document["node"],
            spec_hash=document["spec_hash"],
            status=status,
            created_at_ms=document["created_at_ms"],
            image_digest=document["image_digest"],
            endpoints=tuple(Endpoint(**fields) for fields in document["endpoints"]),
            exit_code=ended.get("code") if status == "exited" else None,
            gpu_vendor=document.get("gpu_vendor"),
            gpu_uuids=tuple(document.get("gpu_uuids", ())),
        )

    def _main_process(self, folder: Path) -> int | None:
        """The pid of the workload's first process, if that very process lives."""
        run = _read(folder / "run.json")
        if run is None or run["boot_id"] != self._boot_id:
            return None
        return run["pid"] if _lives(run["pid"], run["start_ticks"]) else None

    def _listens(self, unit: Unit, document: Mapping[str, Any], container_port: int) -> bool:
        """Whether it is this unit that listens: nothing reserves a port of the host for it."""
        sockets = listening(unit.host_port(container_port) or 0)
        if self._own_sockets.get(unit.unit_id, "") in sockets:
            return True
        word = f"{UNIT_VARIABLE}={document['token']}".encode()
        for pid in processes_with(word):
            own = sockets & sockets_of(pid)
            if own:
                self._own_sockets[unit.unit_id] = min(own)
                return True
        return False

    def _leftovers(self, instance: str) -> Iterator[Path]:
        return self._units.glob(f"{_TEMPORARY}{_short_hash(instance)}-*")

    def _end_everything(self, folder: Path, grace_ms: int) -> None:
        """Asks the main process and its group, waits, then kills all that has the unit's word."""
        main = self._main_process(folder)
        if main is not None and grace_ms:
            _signal_group(main, signal.SIGTERM)
            _wait_until(lambda: self._main_process(folder) is None, grace_ms / 1_000)
        document = _read(folder / "unit.json")
        if document is None:
            return
        word = f"{UNIT_VARIABLE}={document['token']}".encode()
        deadline_s = time.monotonic() + KILL_TIMEOUT_S
        while self._kill_marked(folder, word):
            if time.monotonic() > deadline_s:
                message = "a process can't be killed; it may be stuck in the kernel"
                raise EngineFailure(FailureReason.TEARDOWN_INCOMPLETE, message, transient=True)
            time.sleep(POLL_S)

    def _kill_marked(self, folder: Path, word: bytes) -> bool:
        main = self._main_process(folder)
        if main is not None:
            _signal_group(main, signal.SIGKILL)
        marked = list(processes_with(word))
        for pid in marked:
            _signal(pid, signal.SIGKILL)
        return main is not None or bool(marked)


# --- helpers -------------------------------------------------------------------------------------


def _layout(image: Image) -> Layout:
    if not image.registry.startswith(LAYOUT_PREFIX):
        message = "the process engine takes images from a layout folder only (layout:/folder)"
        raise EngineFailure(FailureReason.CREATE_REFUSED, message)
    return Layout(Path(image.registry.removeprefix(LAYOUT_PREFIX)))


def _environment(
    workload: Workload, host_ports: Mapping[str, int], folder: Path, token: str
) -> dict[str, str]:
    ports = {
        f"PORT_{port.name.upper().replace('-', '_')}": str(host_ports[port.name])
        for port in workload.ports
    }
    gpus = {}
    if workload.limits.gpu_uuids:
        vendor = workload.limits.gpu_vendor
        variable = "ROCR_VISIBLE_DEVICES" if vendor == "amd" else "CUDA_VISIBLE_DEVICES"
        gpus = {variable: ",".join(workload.limits.gpu_uuids)}
    base = {"PATH": PATH, "HOME": str(folder / "root"), "LANG": "C.UTF-8"}
    found = {**base, **workload.env, **ports, **gpus, UNIT_VARIABLE: token}
    if workload.packages is not None:
        into = str(folder / "packages")
        found.update(packages.variables(workload.packages, into, found))
    return found


def _link_blobs(paths: Mapping[str, Path], folder: Path) -> None:
    """Under the names that the workload knows them by; the cache keeps the content."""
    if paths:
        folder.mkdir()
    for name, path in sorted(paths.items()):
        (folder / name).symlink_to(path)


def _resolved(word: str, temporary: Path, folder: Path) -> str:
    """A program inside the image comes before one of the host with the same name."""
    if os.path.isabs(word):
        return word
    root = temporary / "root"
    inside = Path(os.path.realpath(root / word))
    if inside.is_relative_to(os.path.realpath(root)) and inside.is_file():
        return str(folder / "root" / word)
    return word


def _run_shim(folder: Path) -> int:
    """Returns 0 or the error number of what failed."""
    command = [sys.executable, "-I", "-S", shim.__file__, str(folder)]
    try:
        ended = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd="/",
            timeout=START_TIMEOUT_S,
            check=False,
        )
        return int(json.loads(ended.stdout).get("errno", 0))
    except subprocess.TimeoutExpired:
        return errno.ETIMEDOUT
    except ValueError:
        return errno.ECHILD


def _start_failure(number: int) -> EngineFailure:
    what = os.strerror(number)
    if number in DISK_FULL_NUMBERS:
        message = f"it can't be started: {what}"
        return EngineFailure(FailureReason.DISK_FULL, message, transient=True)
    if number == errno.ECHILD:
        what = "what starts it ended before it did"
    if number in {errno.ENOENT, errno.EACCES, errno.ENOEXEC, errno.ENOTDIR}:
        message = f"the command can't be run: {what}"
        return EngineFailure(FailureReason.COMMAND_NOT_FOUND, message)
    if number == errno.ENOMEM:
        message = "the command does not fit in its memory limit"
        return EngineFailure(FailureReason.OUT_OF_MEMORY, message)
    return EngineFailure(FailureReason.CREATE_REFUSED, f"it can't be started: {what}")


def _probe_exec(document: Mapping[str, Any], probe: ExecProbe, timeout_ms: int) -> Probed:
    try:
        ended = subprocess.run(
            probe.command,
            cwd=document["root"],
            env=document["env"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            timeout=timeout_ms / 1_000,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Probed(False, f"the command did not end within {timeout_ms} ms")
    except OSError as error:
        return Probed(False, f"the command can't be run: {error.strerror}")
    return Probed(ended.returncode == 0, f"the command exited with {ended.returncode}")


def _read(path: Path) -> dict[str, Any] | None:
    try:
        document = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return document if isinstance(document, dict) else None


def _lives(pid: int, start_ticks: int) -> bool:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return False
    if int(fields[19]) != start_ticks:
        return False
    return fields[0] not in {"Z", "X"} or _threads_of(pid) > 1


def _threads_of(pid: int) -> int:
    """A first thread that is dead says little: files and ports are held until the last one is."""
    try:
        return len(os.listdir(f"/proc/{pid}/task"))
    except OSError:
        return 0


def _signal_group(pid: int, number: signal.Signals) -> None:
    # The workload leads a group of its own; right after its fork it may not have made it yet.
    try:
        os.killpg(pid, number)
    except ProcessLookupError:
        _signal(pid, number)


def _signal(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def _wait_until(condition: Callable[[], bool], timeout_s: float) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not condition() and time.monotonic() < deadline_s:
        time.sleep(POLL_S)


def _short_hash(instance: str) -> str:
    return sha256(instance.encode()).hexdigest()[:16]
