"""The secrets of workloads as files in memory: made before a start, gone with the instance.

Rules:
- They lie on a memory file system or nowhere: a value on a disk outlives its deletion. After a
  reboot there are none, and they are asked for anew.
- The folder of all is 0700 and the agent's, so nobody else on the host gets through it. Inside,
  folders are 0755 and files 0444: a container's user is known to its image alone, and sees its
  own folder through a read-only mount, without passing the one above. Whoever runs in a container
  may read what that container was given; no file there can be changed, and none can be run.
- A workload that reads what others wrote has a folder of its own: under the same name the one
  before may have read something else, and its node may go back to it. All others of an instance
  share one. A folder that no workload will need again goes; the instance's all go with it.
- Of a topology each service has its own, with its secrets and no others. As long as these are the
  same it stays the same folder, else each upgrade would replace the container. The folder of the
  workload then says by the names in it which these are.
- Every failure leaves as `EngineFailure`, with `secret_unavailable`, and quotes no value.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import stat
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

from node_agent.engines.base import EngineFailure
from node_agent.wire import FailureReason, Workload

MEMORY_FILE_SYSTEMS = frozenset({"tmpfs", "ramfs"})
_MOUNTS = Path("/proc/self/mountinfo")


class SecretFiles:
    """The secrets folder: the first of `candidates` that is ours and in memory.

    Safe to use from several threads, for one instance by one at a time.
    """

    def __init__(self, candidates: Sequence[Path]) -> None:
        self.candidates = tuple(candidates)
        self._lock = threading.Lock()
        self._chosen: Path | None = None

    @classmethod
    def for_node(cls, node: str, folder: Path | None = None) -> SecretFiles:
        """In `folder` and nowhere else, or where a host keeps such things by default."""
        shared = Path("/dev/shm")  # noqa: S108 - in memory, and of everybody
        # The last is for when another user's agent has been a node of that name on this host.
        names = (f"gpuaas-{node}", f"gpuaas-{node}-{os.geteuid()}")
        usual = (Path("/run/gpuaas") / node, *(shared / name for name in names))
        return cls((folder,) if folder is not None else usual)

    def folder(self, instance: str) -> Path:
        """The folder that an instance's workloads share."""
        return self._root() / _name(instance)

    def folder_of(self, workload: Workload) -> Path:
        """The folder of a workload's secrets, there once something was `put` into it."""
        return self._root() / _folder_name(workload)

    def folder_of_service(self, workload: Workload, service: str) -> Path:
        """The folder of the secrets of one service of a topology that has any."""
        return self._root() / _service_folder(workload, service)

    def missing(self, workload: Workload) -> tuple[str, ...]:
        """Names of those secrets of it that are not there, sorted."""
        root = self._root()
        gone = {
            name
            for folder, names in _folders(workload).items()
            for name in names
            if not (root / folder / name).is_file()
        }
        return tuple(sorted(gone))

    def put(self, workload: Workload, values: Mapping[str, str]) -> None:
        """Each file appears whole. The others stay. A value that no service has is left out.

        Of a topology also without any values, before each start: what a service had of another
        version stays only if it is known to be of this one as well.
        """
        root = self._root()
        folders = _folders(workload)
        if workload.topology is not None:
            _fill(root / _folder_name(workload), dict.fromkeys(folders, ""))
        for folder, names in sorted(folders.items()):
            _fill(root / folder, {name: values[name] for name in names & values.keys()})

    def keep_only(self, instance: str, spec_hashes: Collection[str]) -> None:
        """Removes the folders of its other workloads, as far as they had their own."""
        shared = _name(instance)
        ours = {f"{shared}-{_short(spec_hash)}" for spec_hash in spec_hashes}
        there = self._left_of(instance)
        noted = {name for path in there if path.name in ours for name in _listed(path)}
        for path in there:
            if path.name not in {shared, *ours, *noted}:
                _remove(path)

    def remove(self, instance: str) -> None:
        """Harmless when there is nothing."""
        for path in self._left_of(instance):
            _remove(path)

    def residue(self, instance: str) -> int:
        """How many folders of the instance are there, wherever one may ever have been."""
        return len(self._left_of(instance))

    def _left_of(self, instance: str) -> list[Path]:
        return [path for candidate in self.candidates for path in _of(candidate, _name(instance))]

    def _root(self) -> Path:
        with self._lock:
            # Looked at each time: a file system can be mounted, or unmounted, over it.
            if self._chosen is not None and _refusal(self._chosen) is None:
                return self._chosen
            refusals = []
            for candidate in self.candidates:
                refusal = _made(candidate) or _refusal(candidate)
                if refusal is None:
                    self._chosen = candidate
                    return candidate
                refusals.append(refusal)
        message = f"no folder in memory to keep secrets in: {'; '.join(refusals)}"
        raise EngineFailure(FailureReason.SECRET_UNAVAILABLE, message)


def _of(candidate: Path, name: str) -> Iterator[Path]:
    for entry in _listed(candidate):
        if entry == name or entry.startswith(f"{name}-"):
            yield candidate / entry


def _listed(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        # What we may not look into is not ours, and so has nothing of ours.
        return []


def _remove(path: Path) -> None:
    try:
        shutil.rmtree(path)
    except FileNotFoundError:
        return
    except OSError as error:
        message = f"{path} can't be removed ({error.strerror})"
        raise EngineFailure(FailureReason.TEARDOWN_INCOMPLETE, message, transient=True) from None


def _made(folder: Path) -> str | None:
    """Makes it where there is none; why not, if that can't be. On a disk nothing is made."""
    above = next(path for path in folder.parents if path.exists())
    try:
        file_system = _file_system(above.stat().st_dev)
        if not folder.is_dir() and file_system not in MEMORY_FILE_SYSTEMS:
            return f"{folder} would not be in memory ({file_system})"
        folder.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=0o700)
    except OSError as error:
        return f"{folder} can't be made ({error.strerror})"
    return None


def _refusal(folder: Path) -> str | None:
    """Why no secret is put there; None for a folder that is in order."""
    try:
        seen = folder.lstat()
        file_system = _file_system(seen.st_dev)
    except OSError as error:
        return f"{folder} can't be read ({error.strerror})"
    if not stat.S_ISDIR(seen.st_mode) or seen.st_uid != os.geteuid():
        return f"{folder} is not a folder of this agent's"
    if seen.st_mode & 0o077:
        return f"{folder} is open to others (mode {seen.st_mode & 0o777:o}, wanted 700)"
    if file_system not in MEMORY_FILE_SYSTEMS:
        return f"{folder} is not in memory ({file_system})"
    return None


def _file_system(device: int) -> str:
    """The type of the file system with this device number, by the kernel's list of mounts."""
    number = f"{os.major(device)}:{os.minor(device)}"
    for line in _MOUNTS.read_text().splitlines():
        fields = line.split()
        if fields[2] == number:
            return fields[fields.index("-") + 1]
    return "unknown file system"


def _write(path: Path, value: str) -> None:
    temporary = path.with_name(f".{path.name}.part")
    temporary.unlink(missing_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
    with os.fdopen(os.open(temporary, flags, 0o400), "wb") as file:
        file.write(value.encode(errors="surrogatepass"))
        file.flush()
        os.fchmod(file.fileno(), 0o444)
    temporary.rename(path)


def _fill(folder: Path, files: Mapping[str, str]) -> None:
    """The folder is for its workload to look into; nobody else gets that far."""
    try:
        folder.mkdir(mode=0o755, exist_ok=True)
        folder.chmod(0o755)
        for name, value in sorted(files.items()):
            _write(folder / name, value)
    except OSError as error:
        raise _unavailable(f"{folder} can't be written ({error.strerror})") from None


def _folders(workload: Workload) -> dict[str, frozenset[str]]:
    """Names of folders, and of the secrets in each."""
    if workload.topology is None:
        return {_folder_name(workload): frozenset(one.name for one in workload.secrets)}
    return {
        _service_folder(workload, service.name): frozenset(service.secrets)
        for service in workload.topology.services
        if service.secrets
    }


def _service_folder(workload: Workload, service: str) -> str:
    found = workload.topology.service(service) if workload.topology is not None else None
    names = found.secrets if found is not None else ()
    asked = sorted(one.asked for one in workload.secrets if one.name in names)
    digest = hashlib.sha256("\0".join((service, *asked)).encode()).hexdigest()[:16]
    return f"{_name(workload.instance)}-s-{digest}"


def _folder_name(workload: Workload) -> str:
    shared = _name(workload.instance)
    if workload.topology is not None or any(secret.source for secret in workload.secrets):
        return f"{shared}-{_short(workload.spec_hash)}"
    return shared


def _short(spec_hash: str) -> str:
    return spec_hash.removeprefix("sha256:")[:16]


def _name(instance: str) -> str:
    return hashlib.sha256(instance.encode()).hexdigest()[:32]


def _unavailable(message: str) -> EngineFailure:
    return EngineFailure(FailureReason.SECRET_UNAVAILABLE, message, transient=True)
