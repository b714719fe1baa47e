"""Brings a branch, or a tag, of a remote into a bare mirror, with the git command line.

Rules: the only module that starts Git, and only to fetch. Git gets a clean environment, four
transports, no hooks, no prompts, checked objects and a deadline; its whole process group ends with
it. Fetches into one mirror take turns through a file lock, so any number of processes may share it.
Objects are never pruned: what was accepted stays readable after a force-push.
"""

from __future__ import annotations

import fcntl
import logging
import os
import shlex
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from reconciler.adapters.git_failures import failure, speaks_of_corruption
from reconciler.adapters.git_remote import Remote, mask_credentials
from reconciler.errors import GpuaasError, Refused, Transient

if TYPE_CHECKING:
    from reconciler.settings import Settings

_log = logging.getLogger(__name__)

_STDERR_BYTES_MAX = 8192
_SUSPECT = "gpuaas-suspect"
_CLONE = ".clone-"
_KEPT_GIT_VARIABLES = frozenset(
    {"GIT_ASKPASS", "GIT_CONFIG_GLOBAL", "GIT_CONFIG_SYSTEM", "GIT_CONFIG_NOSYSTEM"}
)
_CONFIG = {
    "core.hooksPath": "/dev/null",
    "core.fsmonitor": "false",
    "fetch.fsckObjects": "true",
    "transfer.fsckObjects": "true",
    "gc.pruneExpire": "never",
    "gc.autoDetach": "false",
    "protocol.ext.allow": "never",
}
# The values travel in the environment, which only this user can read; argv is public.
_HELPER = (
    '!f() { test "$1" = get || exit 0; '
    'printf "username=%s\\npassword=%s\\n" "$GPUAAS_GIT_USER" "$GPUAAS_GIT_PASSWORD"; }; f'
)


def fetch_branch(remote: Remote, branch: str, mirror: Path, settings: Settings) -> None:
    """Makes `refs/heads/<branch>` of the mirror equal to the remote's; makes the mirror if need be.

    Waits for another fetch of the same mirror. Raises Transient (network, timeout) or Refused
    (credentials, host key, no such branch or repository). A damaged mirror is moved aside and made
    anew.
    """
    fetch_ref(remote, f"refs/heads/{branch}", mirror, settings)


def fetch_ref(remote: Remote, ref: str, mirror: Path, settings: Settings) -> None:
    """As `fetch_branch`, for a ref by its full name: another branch, or a tag."""
    deadline = time.monotonic() + settings.fetch_timeout_s
    git = _Git(remote, settings, deadline)
    try:
        mirror.parent.mkdir(parents=True, exist_ok=True)
        with _turn(mirror.with_name(mirror.name + ".lock"), deadline, remote.url):
            _remove_leftovers(mirror)
            _fetch_or_clone(git, ref, mirror)
    except OSError as error:
        raise Transient(
            "git_mirror_io", f"{error.strerror or error}", where=str(mirror), retry_after_s=30.0
        ) from None


def mark_suspect(mirror: Path) -> None:
    """Leaves word, for whichever process fetches next, that an object of the mirror is missing."""
    with suppress(OSError):
        (mirror / _SUSPECT).touch()


def _fetch_or_clone(git: _Git, ref: str, mirror: Path) -> None:
    if mirror.exists() and not _looks_whole(mirror):
        _set_aside(mirror, "it is incomplete or an object in it could not be read")
    if not mirror.exists():
        _clone(git, ref, mirror)
        return
    before = _loose_ref(mirror, ref)
    try:
        git.fetch(mirror, ref)
    except GpuaasError as error:
        if not speaks_of_corruption(git.stderr) or git.is_sound(mirror):
            raise
        _set_aside(mirror, error.message)
        _clone(git, ref, mirror)
    else:
        if _loose_ref(mirror, ref) != before:
            git.tidy(mirror)


def _clone(git: _Git, ref: str, mirror: Path) -> None:
    # Made beside its place and linked when whole: a killed clone never looks like a mirror. Each
    # clone has a folder of its own, as libgit2 takes packs with one path for one pack.
    clone = Path(tempfile.mkdtemp(prefix=mirror.name + _CLONE, dir=mirror.parent))
    try:
        git.run(clone, ["init", "--bare", "--quiet", "--template=", "--", str(clone)])
        git.run(clone, ["symbolic-ref", "HEAD", ref])
        git.run(clone, ["config", "gc.pruneExpire", "never"])
        git.fetch(clone, ref)
        mirror.symlink_to(clone.name)
    except BaseException:
        shutil.rmtree(clone, ignore_errors=True)
        raise


def _looks_whole(mirror: Path) -> bool:
    parts = (mirror / "HEAD").is_file() and (mirror / "objects").is_dir()
    return parts and not (mirror / _SUSPECT).exists()


def _set_aside(mirror: Path, reason: str) -> None:
    kept = mirror.with_name(mirror.name + ".corrupt")
    shutil.rmtree(kept, ignore_errors=True)
    mirror.resolve().rename(kept)
    if mirror.is_symlink():
        mirror.unlink()
    _log.error("git_mirror_damaged: %s; kept at %s, cloning again", reason, kept)


def _remove_leftovers(mirror: Path) -> None:
    """Locks and half-packs of a Git that was killed. We hold the turn, so nobody else owns them."""
    for clone in mirror.parent.glob(mirror.name + _CLONE + "*"):
        if clone.name != mirror.resolve().name:
            shutil.rmtree(clone, ignore_errors=True)
    if mirror.is_symlink() and not mirror.exists():
        mirror.unlink()
    stale = (
        *mirror.glob("*.lock"),
        *mirror.glob("refs/**/*.lock"),
        *mirror.glob("objects/pack/tmp_*"),
    )
    for path in stale:
        path.unlink(missing_ok=True)


def _loose_ref(mirror: Path, ref: str) -> bytes:
    try:
        return (mirror / ref).read_bytes()
    except OSError:
        return b""


@contextmanager
def _turn(lock: Path, deadline: float, where: str) -> Iterator[None]:
    with lock.open("a") as handle:
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise Transient(
                        "git_busy", "another fetch of this mirror takes too long", where=where
                    ) from None
                time.sleep(0.02)
        yield


@dataclass
class _Git:
    """Runs git against one mirror until `deadline`; `stderr` is the last run's, masked."""

    remote: Remote
    settings: Settings
    deadline: float
    stderr: str = ""

    def fetch(self, mirror: Path, ref: str) -> None:
        options = [
            "--quiet", "--atomic", "--no-tags", "--no-auto-maintenance",
            "--no-recurse-submodules", "--no-write-fetch-head",
        ]  # fmt: skip
        refspec = f"+{ref}:{ref}"
        self.run(mirror, ["fetch", *options, "--end-of-options", self.remote.url, refspec])

    def tidy(self, mirror: Path) -> None:
        try:
            self.run(mirror, ["gc", "--auto", "--quiet"])
        except GpuaasError as error:
            _log.warning("git_mirror_gc_failed: %s: %s", mirror, error.message)

    def is_sound(self, mirror: Path) -> bool:
        try:
            self.run(mirror, ["fsck", "--connectivity-only", "--no-dangling", "--no-progress"])
        except Transient as error:
            if error.code == "git_timeout":
                raise
            return False
        except Refused:
            return False
        return True

    def run(self, mirror: Path, args: Sequence[str]) -> None:
        """Runs one git command; raises for any exit but 0."""
        options = [word for key, value in _CONFIG.items() for word in ("-c", f"{key}={value}")]
        command = ["git", f"--git-dir={mirror}", *options, *args]
        with tempfile.TemporaryFile() as stderr:
            try:
                process = subprocess.Popen(
                    command, env=self._environment(), cwd="/", start_new_session=True,
                    stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=stderr,
                )  # fmt: skip
            except FileNotFoundError:
                raise Refused(
                    "git_missing", "there is no git on this host", hint="install git 2.34 or newer"
                ) from None
            exit_code = self._wait(process)
            self.stderr = self._read(stderr.fileno())
        if exit_code != 0:
            raise failure(self.stderr, self.remote.url)

    def _wait(self, process: subprocess.Popen[bytes]) -> int:
        try:
            return process.wait(max(0.0, self.deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            raise Transient(
                "git_timeout",
                f"no end after {self.settings.fetch_timeout_s:g} s",
                where=self.remote.url,
                hint="check the network, or raise fetch_timeout_s for a first clone",
            ) from None
        finally:
            _end_group(process)

    def _read(self, descriptor: int) -> str:
        size = os.fstat(descriptor).st_size
        tail = os.pread(descriptor, _STDERR_BYTES_MAX, max(0, size - _STDERR_BYTES_MAX))
        password = self.remote.password.reveal() if self.remote.password else ""
        return mask_credentials(tail.decode("utf-8", "replace"), password)

    def _environment(self) -> dict[str, str]:
        kept = {
            key: value
            for key, value in os.environ.items()
            if key != "SSH_ASKPASS"
            and (not key.startswith("GIT_") or key in _KEPT_GIT_VARIABLES or "SSL" in key)
        }
        idle_s = max(1, int(self.settings.fetch_timeout_s))
        # The idle limit ends an orphan too, should this process be killed outright.
        config = {"http.lowSpeedLimit": "1", "http.lowSpeedTime": str(idle_s)}
        return kept | {
            "LC_ALL": "C",
            "GIT_TERMINAL_PROMPT": "0",
            "GCM_INTERACTIVE": "never",
            "GIT_ALLOW_PROTOCOL": "file:ssh:http:https",
            "GIT_SSH_COMMAND": _ssh_command(self.settings, idle_s),
            "GIT_SSH_VARIANT": "ssh",
            **_credential_variables(self.remote),
            **_config_variables([*config.items(), *_credential_config(self.remote)]),
        }


def _ssh_command(settings: Settings, idle_s: int) -> str:
    options = [
        "BatchMode=yes", "StrictHostKeyChecking=yes", "ForwardAgent=no", "PermitLocalCommand=no",
        f"ConnectTimeout={idle_s}", f"ServerAliveInterval={idle_s}", "ServerAliveCountMax=1",
    ]  # fmt: skip
    if settings.git_known_hosts:
        options += [
            f"UserKnownHostsFile={_ssh_path(settings.git_known_hosts)}",
            "GlobalKnownHostsFile=/dev/null",
        ]
    if settings.git_ssh_key:
        options += [f"IdentityFile={_ssh_path(settings.git_ssh_key)}", "IdentitiesOnly=yes"]
    return shlex.join(["ssh", *(word for option in options for word in ("-o", option))])


def _ssh_path(path: Path) -> str:
    """As ssh's option parser wants it: quoted, and with its % tokens escaped."""
    return '"' + str(path.absolute()).replace("%", "%%").replace('"', '\\"') + '"'


def _credential_variables(remote: Remote) -> dict[str, str]:
    if remote.password is None:
        return {}
    return {"GPUAAS_GIT_USER": remote.user, "GPUAAS_GIT_PASSWORD": remote.password.reveal()}


def _credential_config(remote: Remote) -> list[tuple[str, str]]:
    """A helper that answers for the remote's own origin only, so a redirect gets nothing."""
    if remote.transport != "http" or not (remote.user or remote.password):
        return []
    if remote.password is None:
        return [(f"credential.{remote.origin}.username", remote.user)]
    key = f"credential.{remote.origin}.helper"
    return [(key, ""), (key, _HELPER)]


def _config_variables(pairs: Sequence[tuple[str, str]]) -> dict[str, str]:
    variables = {"GIT_CONFIG_COUNT": str(len(pairs))}
    for number, (key, value) in enumerate(pairs):
        variables |= {f"GIT_CONFIG_KEY_{number}": key, f"GIT_CONFIG_VALUE_{number}": value}
    return variables


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """Ends git and all it started, if it has not ended: first politely, so that it tidies up."""
    if process.poll() is not None:
        return
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        process.wait(1.0)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
