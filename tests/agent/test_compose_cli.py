"""Compose as a program: which is taken, what it is told, and what becomes of its words."""

from __future__ import annotations

import os
import threading
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from node_agent.engines.base import EngineFailure
from node_agent.engines.compose_cli import Call, ComposeCli, failed
from node_agent.wire import FailureReason

ENVIRONMENT = {"services": {"api": {"environment": {"KEY": "hunter2-hunter2", "ON": "yes"}}}}


def program(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def of_version(path: Path, version: str, then: str = "") -> Path:
    return program(path, f'[ "$1" = version ] && echo {version} && exit 0\n{then}')


def call(folder: Path, limit_s: float = 20.0) -> Call:
    file = folder / "compose.json"
    file.write_text("{}")
    lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT)
    return Call("p", folder, file, ENVIRONMENT, lock, limit_s)


@pytest.mark.parametrize("version", ["2.20.0", "v2.40.3", "2.29.7+ds1-0ubuntu1", "2.33.0-desktop.1",
                                     "5.0.0"])  # fmt: skip
def test_versions_that_are_taken(tmp_path: Path, version: str) -> None:
    found = ComposeCli(None, of_version(tmp_path / "compose", version)).find(tmp_path)
    assert (found.program, found.version) == (tmp_path / "compose", version)


@pytest.mark.parametrize(
    ("says", "told"),
    [
        ("echo 1.29.2", "version 1.29.2 is too old"),
        ("echo 2.19.1", "version 2.19.1 is too old"),
        ("echo Docker Compose version", "Docker Compose version"),
        ("printf 'a\\033[31mb'", "a?[31mb"),
        ("exit 3", "exited with 3 when asked for its version"),
        ("true", "said no version"),
    ],
)
def test_what_is_not_taken_and_why(tmp_path: Path, says: str, told: str) -> None:
    with pytest.raises(EngineFailure) as refused:
        ComposeCli(None, program(tmp_path / "compose", says)).find(tmp_path)
    assert refused.value.reason is FailureReason.ENGINE_UNAVAILABLE
    assert refused.value.transient
    assert refused.value.message == (
        f"Compose 2.20 or later is needed; compose: {told}; install Docker's "
        "docker-compose-plugin, or name the program: --compose-program"
    )


def test_none_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("node_agent.engines.compose_cli._PLUGINS", ())
    with pytest.raises(EngineFailure, match="needed; there is none; install"):
        ComposeCli(None).find(tmp_path)
    with pytest.raises(EngineFailure, match="nowhere: there is no such program"):
        ComposeCli(None, tmp_path / "nowhere").find(tmp_path)


def test_an_old_one_in_the_path_hides_no_plugin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_version(tmp_path / "bin" / "docker-compose", "1.29.2")
    plugin = of_version(tmp_path / "plugins" / "docker-compose", "2.40.3")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(
        "node_agent.engines.compose_cli._PLUGINS", (str(plugin.parent), str(tmp_path))
    )
    assert ComposeCli(None).find(tmp_path).program == plugin


def test_it_is_asked_once_until_it_is_another(tmp_path: Path) -> None:
    asked = tmp_path / "asked"
    one = program(tmp_path / "compose", f"echo >> {asked}; echo 2.30.0")
    cli = ComposeCli(None, one)
    for _ in range(3):
        assert cli.find(tmp_path).version == "2.30.0"
    assert len(asked.read_text()) == 1
    program(one, "echo 2.31.0 # now")
    assert cli.find(tmp_path).version == "2.31.0"


def test_what_it_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMPOSE_FILE", "evil.yaml")
    seen = tmp_path / "seen"
    then = f'env > {seen}; for w in "$@"; do echo "$w" >> {seen}.words; done; read x && exit 9'
    cli = ComposeCli(
        "unix:///docker.sock", of_version(tmp_path / "compose", "2.40.3", then + "; :")
    )
    cli.create(call(tmp_path), tmp_path, threading.Event())
    assert (tmp_path / "seen.words").read_text().split() == [
        "--ansi", "never", "--progress", "quiet", "-p", "p",
        "--project-directory", str(tmp_path), "--env-file", "/dev/null",
        "-f", str(tmp_path / "compose.json"),
        "create", "--pull", "never", "--no-build", "--force-recreate",
    ]  # fmt: skip
    names = {line.partition("=")[0] for line in seen.read_text().splitlines()}
    ours = {"PATH", "HOME", "DOCKER_CONFIG", "DOCKER_HOST", "LC_ALL", "COMPOSE_DISABLE_ENV_FILE"}
    assert ours <= names <= ours | {"PWD", "OLDPWD", "SHLVL", "_"}
    (tmp_path / "seen.words").unlink()
    cli.down(call(tmp_path), 3, tmp_path, threading.Event())
    words = (tmp_path / "seen.words").read_text().split()
    assert words[-4:] == ["down", "--remove-orphans", "-t", "3"]


WORDS: dict[str, tuple[str, FailureReason, str, bool]] = {
    "a missing image": (
        "Error response from daemon: No such image: reg/app@sha256:00",
        FailureReason.IMAGE_NOT_FOUND, "No such image: reg/app@sha256:00", False,
    ),
    "a full disk": (
        "Error response from daemon: mkdir /data: no space left on device",
        FailureReason.DISK_FULL, "mkdir /data: no space left on device", True,
    ),
    "no Docker": (
        "unable to get image 'a': Cannot connect to the Docker daemon at unix:///x. Is it running?",
        FailureReason.ENGINE_UNAVAILABLE, "Docker does not answer Compose", True,
    ),
    "no range of addresses": (
        "failed to create network p: Error response from daemon: could not find an available, "
        "non-overlapping IPv4 address pool among the defaults to assign to the network",
        FailureReason.CREATE_REFUSED,
        "Docker has no range of addresses left for another network: give it more, as "
        "default-address-pools in its daemon.json, or remove networks that nobody uses", True,
    ),
    "a name that is taken": (
        'Error response from daemon: Conflict. The container name "/p-a-1" is already in use by '
        "container 12. You have to remove it.",
        FailureReason.CREATE_REFUSED,
        'Conflict. The container name "/p-a-1" is already in use by container 12. You have to '
        "remove it.", True,
    ),
    "a GPU that is not there": (
        'Error response from daemon: could not select device driver "nvidia" with capabilities',
        FailureReason.GPU_UNAVAILABLE,
        'could not select device driver "nvidia" with capabilities', False,
    ),
    "a network that went meanwhile": (
        "network gpuaas-x declared as external, but could not be found",
        FailureReason.CREATE_REFUSED,
        "network gpuaas-x declared as external, but could not be found", True,
    ),
    "a volume that went meanwhile": (
        'external volume "gpuaas-x_data" not found',
        FailureReason.CREATE_REFUSED, 'external volume "gpuaas-x_data" not found', True,
    ),
    "warnings before, more behind": (
        'time="2026-01-01T00:00:00Z" level=warning msg="careful"\n\nbad \033[31mthing\nmore',
        FailureReason.CREATE_REFUSED, "bad ?[31mthing", False,
    ),
    "nothing": (
        "", FailureReason.ENGINE_UNAVAILABLE, "Compose exited with 1 and said nothing", True,
    ),
}  # fmt: skip


@pytest.mark.parametrize(("said", "reason", "told", "transient"), WORDS.values(), ids=WORDS.keys())
def test_its_words_are_one_of_our_reasons(
    said: str, reason: FailureReason, told: str, transient: bool
) -> None:
    failure = failed(1, said)
    assert (failure.reason, failure.message, failure.transient) == (reason, told, transient)


def test_one_that_was_killed_from_outside() -> None:
    assert failed(-9, "").message == "Compose was ended by signal 9 and said nothing"


def test_values_of_settings_are_in_no_words(tmp_path: Path) -> None:
    then = "echo 'services.api.environment.KEY: hunter2-hunter2 is wrong, yes' >&2; exit 1"
    cli = ComposeCli(None, of_version(tmp_path / "compose", "2.40.3", then))
    with pytest.raises(EngineFailure) as told:
        cli.create(call(tmp_path), tmp_path, threading.Event())
    assert told.value.message == "services.api.environment.KEY: … is wrong, yes"


@pytest.mark.parametrize("called_off", [False, True])
def test_over_time_or_called_off_nothing_of_it_goes_on(tmp_path: Path, called_off: bool) -> None:
    marker = tmp_path / "still-there"
    then = f"(sleep 1; touch {marker}) & sleep 600"
    cli = ComposeCli(None, of_version(tmp_path / "compose", "2.40.3", then))
    cli.find(tmp_path)
    event = threading.Event()
    if called_off:
        threading.Timer(0.2, event.set).start()
    limit_s, words = (20.0, "was called off") if called_off else (0.2, "took over")
    with pytest.raises(EngineFailure, match=words) as told:
        cli.create(call(tmp_path, limit_s), tmp_path, event)
    assert told.value.reason is FailureReason.ENGINE_UNAVAILABLE
    assert told.value.transient
    time.sleep(1.2)
    assert not marker.exists()


def test_a_program_that_can_not_be_started(tmp_path: Path) -> None:
    broken = tmp_path / "compose"
    broken.write_text("no program")
    broken.chmod(0o755)
    with pytest.raises(EngineFailure, match=r"compose can't be started \(Exec format error\)"):
        ComposeCli(None, broken).find(tmp_path)


def test_its_words_are_capped(tmp_path: Path) -> None:
    then = "i=0; while [ $i -lt 3000 ]; do echo 'level=info 0123456789012345678901234567890'; "
    then += "i=$((i+1)); done; echo late; exit 1"
    cli = ComposeCli(None, of_version(tmp_path / "compose", "2.40.3", then))
    with pytest.raises(EngineFailure) as told:
        cli.create(call(tmp_path), tmp_path, threading.Event())
    assert len(told.value.message) < 600


def test_what_it_says_too_much_is_not_kept(tmp_path: Path) -> None:
    then = "head -c 64000000 /dev/zero | tr '\\0' x; exit 1"
    cli = ComposeCli(None, of_version(tmp_path / "compose", "2.40.3", then))
    cli.find(tmp_path)
    tracemalloc.start()
    try:
        with pytest.raises(EngineFailure):
            cli.create(call(tmp_path), tmp_path, threading.Event())
        assert tracemalloc.get_traced_memory()[1] < 4_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("end", ["exec >&- 2>&-; sleep 0.3; exit 3", "exec >&- 2>&-; sleep 600"])
def test_one_that_says_nothing_more_is_waited_for(tmp_path: Path, end: str) -> None:
    cli = ComposeCli(None, of_version(tmp_path / "compose", "2.40.3", end))
    cli.find(tmp_path)
    ends = "exit 3" in end
    with pytest.raises(EngineFailure, match="exited with 3" if ends else "took over"):
        cli.create(call(tmp_path, 30.0 if ends else 0.3), tmp_path, threading.Event())


def test_the_lock_is_inherited(tmp_path: Path) -> None:
    """So that what outlives its agent is waited for."""
    given: Any = call(tmp_path)
    then = f'readlink "/proc/$$/fd/{given.lock}" > {tmp_path}/held'
    cli = ComposeCli(None, of_version(tmp_path / "compose", "2.40.3", then))
    cli.create(given, tmp_path, threading.Event())
    assert (tmp_path / "held").read_text().strip() == str(tmp_path / "lock")
