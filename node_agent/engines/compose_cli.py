"""Compose v2 as a program: found, checked, and run with nothing of ours or of its surroundings.

Rules:
- It hears of one file, one project and one Docker. It gets no variables but those named here, an
  empty home, no input, and so many seconds; when they are over, or it is called off, it and all
  that it started are killed. Whatever it had done by then, the next run goes on from.
- Of its words the first line that says what failed is told, without what is not printable and
  without the values of the file's settings.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from node_agent.engines.base import EngineFailure
from node_agent.engines.docker_spec import failure_of, first_line
from node_agent.wire import FailureReason

PROGRAM = "docker-compose"
VERSION_MIN = (2, 20)
VERSION_LIMIT_S = 20.0
WORDS_BYTES_MAX = 64 * 1024
HOW_TO_GET_IT = "install Docker's docker-compose-plugin, or name the program: --compose-program"
_POLL_S = 0.1
_END_S = 5.0
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_PLUGINS = (
    "/usr/local/lib/docker/cli-plugins",
    "/usr/local/libexec/docker/cli-plugins",
    "/usr/lib/docker/cli-plugins",
    "/usr/libexec/docker/cli-plugins",
)
_VERSION = re.compile(r"v?(\d{1,4})\.(\d{1,4})(?:[.+-][-.+~0-9A-Za-z]{0,64})?")
_NOT_THE_FAILURE = re.compile(r'^(?:time="[^"]*" )?level=(?:warning|info|debug)\b')
_HIDDEN_LENGTH_MIN = 4
"""Shorter values of settings are words like `1` and `on`."""


@dataclass(frozen=True)
class Found:
    """A Compose that will do. `version` as it says it itself."""

    program: Path
    version: str


@dataclass(frozen=True)
class Call:
    """`file` as `project` in `folder`; `lock` is a file that the program inherits."""

    project: str
    folder: Path
    file: Path
    document: Mapping[str, Any]
    lock: int
    limit_s: float


class ComposeCli:
    """`program`: this one and no other. `host`: of Docker, None for the usual place."""

    def __init__(self, host: str | None, program: Path | None = None) -> None:
        self._host = host
        self._named = program
        self._lock = threading.Lock()
        self._known: tuple[Path, tuple[int, ...], str] | None = None

    def find(self, home: Path) -> Found:
        """Raises EngineFailure ENGINE_UNAVAILABLE, saying what was found instead. Asks a program
        once, and again when its file is another.
        """
        with self._lock:
            if self._known is not None and _looks(self._known[0]) == self._known[1]:
                return Found(self._known[0], self._known[2])
            refusals = []
            for candidate in self._candidates():
                looks = _looks(candidate)
                answer = self._asked(candidate, home) if looks else "there is no such program"
                if looks and _new_enough(answer):
                    self._known = (candidate, looks, answer)
                    return Found(candidate, answer)
                refusals.append(f"{candidate.name}: {_refusal(answer)}")
        said = "; ".join(dict.fromkeys(refusals)) or "there is none"
        message = f"Compose {_words(VERSION_MIN)} or later is needed; {said}; {HOW_TO_GET_IT}"
        raise EngineFailure(FailureReason.ENGINE_UNAVAILABLE, message, transient=True)

    def create(self, call: Call, home: Path, called_off: threading.Event) -> None:
        """Makes all that the file says anew, replaces what is there of it; starts nothing, and
        touches nothing else: what the file leaves out stays.
        """
        words = ["create", "--pull", "never", "--no-build", "--force-recreate"]
        self._run(call, words, home, called_off)

    def down(self, call: Call, grace_s: int, home: Path, called_off: threading.Event) -> None:
        """Removes the project's containers and networks."""
        self._run(call, ["down", "--remove-orphans", "-t", str(grace_s)], home, called_off)

    def _run(
        self, call: Call, words: Sequence[str], home: Path, called_off: threading.Event
    ) -> None:
        argv = [
            str(self.find(home).program),
            *("--ansi", "never", "--progress", "quiet"),
            *("-p", call.project, "--project-directory", str(call.folder)),
            *("--env-file", os.devnull, "-f", str(call.file)),
            *words,
        ]
        ended, said = self._ended(argv, call.folder, home, call.limit_s, called_off, call.lock)
        if ended is None:
            over = "was called off" if called_off.is_set() else f"took over {call.limit_s:.0f} s"
            message = f"Compose {over} at {words[0]}"
            raise EngineFailure(FailureReason.ENGINE_UNAVAILABLE, message, transient=True)
        if ended != 0:
            raise failed(ended, _without_values(said, call.document))

    def _asked(self, program: Path, home: Path) -> str:
        """What it says its version is, or why it says nothing."""
        argv = [str(program), "version", "--short"]
        never = threading.Event()
        try:
            ended, said = self._ended(argv, home, home, VERSION_LIMIT_S, never, None)
        except EngineFailure as failure:
            return failure.message
        if ended is None:
            return f"no answer within {VERSION_LIMIT_S:.0f} s"
        return said.strip() if ended == 0 else f"exited with {ended} when asked for its version"

    def _ended(
        self,
        argv: Sequence[str],
        folder: Path,
        home: Path,
        limit_s: float,
        called_off: threading.Event,
        lock: int | None,
    ) -> tuple[int | None, str]:
        """Its exit code and its words; None when it had to be killed."""
        try:
            process = subprocess.Popen(
                argv,
                cwd=folder,
                env=self._environment(home),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                pass_fds=() if lock is None else (lock,),
            )
        except OSError as error:
            message = f"{Path(argv[0]).name} can't be started ({error.strerror})"
            raise EngineFailure(FailureReason.ENGINE_UNAVAILABLE, message, transient=True) from None
        said, more = b"", True
        with _group_ended(process):
            deadline_s = time.monotonic() + limit_s
            while not called_off.is_set() and (left_s := deadline_s - time.monotonic()) > 0:
                wait_s = min(_POLL_S, left_s)
                if more:
                    heard = _heard(process, wait_s)
                    more = heard != b""
                    # However much it has to say, no more is kept.
                    said += (heard or b"")[: WORDS_BYTES_MAX - len(said)]
                    continue
                with contextlib.suppress(subprocess.TimeoutExpired):
                    return process.wait(wait_s), said.decode(errors="replace")
        return None, ""

    def _environment(self, home: Path) -> dict[str, str]:
        docker = {} if self._host is None else {"DOCKER_HOST": self._host}
        own = {"PATH": _PATH, "HOME": str(home), "DOCKER_CONFIG": str(home), "LC_ALL": "C.UTF-8"}
        return {**own, **docker, "COMPOSE_DISABLE_ENV_FILE": "1"}

    def _candidates(self) -> Iterator[Path]:
        if self._named is not None:
            yield self._named.absolute()
            return
        on_path = shutil.which(PROGRAM)
        if on_path is not None:
            yield Path(on_path)
        user = Path.home() / ".docker" / "cli-plugins"
        for folder in (user, *map(Path, _PLUGINS)):
            if (folder / PROGRAM).is_file():
                yield folder / PROGRAM


def failed(ended: int, said: str) -> EngineFailure:
    """Compose's words as one of our reasons."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    line = next((one for one in lines if not _NOT_THE_FAILURE.match(one)), "")
    text = line.removeprefix("Error response from daemon: ")
    lower = text.lower()
    if ended < 0 or not text:
        how = f"was ended by signal {-ended}" if ended < 0 else f"exited with {ended}"
        message = f"Compose {how} and said nothing"
        return EngineFailure(FailureReason.ENGINE_UNAVAILABLE, message, transient=True)
    if any(words in lower for words in _AWAY):
        message = "Docker does not answer Compose"
        return EngineFailure(FailureReason.ENGINE_UNAVAILABLE, message, transient=True)
    if any(words in lower for words in _NO_RANGE):
        message = (
            "Docker has no range of addresses left for another network: give it more, as "
            "default-address-pools in its daemon.json, or remove networks that nobody uses"
        )
        return EngineFailure(FailureReason.CREATE_REFUSED, message, transient=True)
    if any(words in lower for words in _GONE):
        # It was there a moment ago.
        return EngineFailure(FailureReason.CREATE_REFUSED, first_line(text), transient=True)
    conflict = "is already in use by container" in lower
    return failure_of(409 if conflict else 400, text, "create")


_AWAY = ("cannot connect to the docker daemon", "error during connect", "connection refused",
         "connection reset")  # fmt: skip
_GONE = ("declared as external, but could not be found", "external volume ")
_NO_RANGE = ("non-overlapping ipv4 address pool", "predefined address pools have been fully")


def _heard(process: subprocess.Popen[bytes], wait_s: float) -> bytes | None:
    """None where it says nothing now; empty at the end of all it says."""
    if process.stdout is None:
        return b""
    poll = select.poll()
    poll.register(process.stdout, select.POLLIN)
    ready = poll.poll(wait_s * 1_000)
    return os.read(process.stdout.fileno(), WORDS_BYTES_MAX) if ready else None


@contextlib.contextmanager
def _group_ended(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Nothing that it started outlives it. Its own end is waited for, so its number is its own."""
    try:
        yield
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_END_S)
        if process.stdout is not None:
            process.stdout.close()


def _looks(program: Path) -> tuple[int, ...]:
    """What is another when its file is; nothing where there is none that can be run."""
    try:
        seen = program.stat()
    except OSError:
        return ()
    if not os.access(program, os.X_OK) or not program.is_file():
        return ()
    return seen.st_dev, seen.st_ino, seen.st_size, seen.st_mtime_ns


def _new_enough(answer: str) -> bool:
    found = _VERSION.fullmatch(answer)
    return found is not None and (int(found[1]), int(found[2])) >= VERSION_MIN


def _refusal(answer: str) -> str:
    found = _VERSION.fullmatch(answer)
    if found is not None:
        return f"version {answer} is too old"
    return first_line(answer, 80) or "said no version"


def _words(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"


def _without_values(said: str, document: Mapping[str, Any]) -> str:
    """The values of settings, longest first, so that none is left as the rest of another."""
    services = document.get("services") or {}
    values = {
        str(value)
        for service in services.values()
        for value in (service.get("environment") or {}).values()
        if len(str(value)) >= _HIDDEN_LENGTH_MIN
    }
    for value in sorted(values, key=lambda one: (-len(one), one)):
        said = said.replace(value, "…")
    return said
