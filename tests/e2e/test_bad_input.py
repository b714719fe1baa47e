"""Wrong command lines, settings and repos, through the real programs: what people see."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.platform import Platform, gpuaas

Make = Callable[..., Platform]
INSTANCE_FILE = "tenants/acme/projects/research/instances/hello.yaml"


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["frobnicate"], "such command 'frobnicate'"),
        (["plan", "--frobnicate"], "No such option"),
        (["plan", "--format", "xml"], "'xml' is not one of 'text', 'markdown', 'json'"),
        (["events", "--after", "-1"], "-1 is not in the range x>=0"),
        (["node", "join"], "Missing argument 'NAME'"),
        (["validate", "/nowhere/at/all"], "'/nowhere/at/all' does not exist"),
        (["--log-level", "loud", "plan"], "'loud' is not one of"),
    ],
)
def test_a_wrong_command_line_exits_1_and_says_why(args: list[str], says: str) -> None:
    done = gpuaas(*args)
    assert (done.returncode, done.stdout) == (1, "")
    assert says in done.stderr
    assert "Traceback" not in done.stderr


SETTINGS = [
    ("no environment", {}, "no_environment: which environment? (pass --environment NAME"),
    ("port is no port", {"environment": "dev", "listen": "127.0.0.1:http"}, "127.0.0.1:http"),
    ("negative", {"environment": "dev", "poll_interval_s": "-1"}, "poll_interval_s: Input should"),
    ("no repo", {"environment": "dev", "repo": "/nowhere/at/all"}, "/nowhere/at/all"),
]


@pytest.mark.parametrize(("name", "settings", "says"), SETTINGS, ids=[s[0] for s in SETTINGS])
def test_run_refuses_settings_that_cannot_work(
    tmp_path: Path, name: str, settings: dict[str, str], says: str
) -> None:
    environment = {f"GPUAAS_{key.upper()}": value for key, value in settings.items()}
    refused(environment, tmp_path, says, "run" if name != "no repo" else "plan")


@pytest.mark.parametrize(
    ("toml", "says"),
    [
        ("environment = ", "gpuaas.toml: bad_setting: "),
        ('enviroment = "dev"\n', "bad_setting: enviroment: Extra inputs are not permitted"),
        ("poll_interval_s = 'often'\n", "bad_setting: poll_interval_s: Input should be a valid"),
    ],
    ids=["malformed", "unknown", "wrong type"],
)
def test_a_wrong_settings_file_is_refused(tmp_path: Path, toml: str, says: str) -> None:
    (tmp_path / "gpuaas.toml").write_text(toml)
    refused({}, tmp_path, says)


def test_a_state_folder_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("not a folder")
    for folder in (file, file / "below", Path("/proc/gpuaas")):
        environment = {"GPUAAS_ENVIRONMENT": "dev", "GPUAAS_STATE_DIR": str(folder)}
        refused(environment, tmp_path, f"error: {folder}: state_dir: cannot make the state")
    assert file.read_text() == "not a folder"


@pytest.mark.parametrize("args", [["status"], ["status", "acme/research/hello"], ["events"]])
def test_who_only_looks_makes_no_state_folder(args: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "state"
    refused({"GPUAAS_STATE_DIR": str(folder)}, tmp_path, f"error: {folder}: no_state: ", *args)
    assert not folder.exists()


def test_a_taken_port_is_said_at_once(process_platform: Make) -> None:
    platform = process_platform()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        for name in ("GPUAAS_LISTEN", "GPUAAS_AGENTS_LISTEN"):
            refused({**platform.environment, name: listen}, platform.root, listen)


def test_an_environment_that_is_not_in_the_repo_is_named(process_platform: Make) -> None:
    platform = process_platform()
    environment = {**platform.environment, "GPUAAS_ENVIRONMENT": "prod"}
    says = "environments/prod.yaml: unknown_environment: Environment/prod does not exist"
    refused(environment, platform.root, says, "plan")


def test_a_folder_that_is_no_repository_is_refused(tmp_path: Path) -> None:
    environment = {"GPUAAS_ENVIRONMENT": "dev", "GPUAAS_REPO": str(tmp_path)}
    refused(environment, tmp_path, str(tmp_path), "plan")


def test_a_broken_commit_stops_nothing_and_its_fix_converges(process_platform: Make) -> None:
    platform = process_platform()
    platform.start()
    platform.wait_settled("running")
    told = platform.events()
    platform.set_version("1.1.0")
    platform.edit_instance("desired: running", "desired: [running")
    platform.commit("broken while editing")
    platform.wait_settled("running", "stalled")
    assert platform.page() == "1.0.0"
    problem = next(f for f in platform.findings() if f["type"] == "problem" and f["line"])
    file, line, *_ = problem["where"].split(":")
    assert (file, int(line) > 0) == (INSTANCE_FILE, True)
    status = platform.gpuaas("status")
    assert f"{problem['code']}: {problem['where']}: " in status.stdout
    assert platform.gpuaas("validate", str(platform.repo.folder)).returncode == 1
    assert platform.events() == told

    platform.kill_workload()
    platform.wait(lambda: platform.instance()["restarts"] == 1)

    platform.edit_instance("desired: [running", "desired: running")
    platform.commit("the fix")
    platform.wait_settled("running")
    assert platform.page() == "1.1.0"
    assert platform.findings() == []


def refused(environment: dict[str, str], folder: Path, says: str, *args: str) -> None:
    """Exit code 1, one message, no traceback, nothing on standard output."""
    complete = {
        "GPUAAS_STATE_DIR": str(folder / "state"),
        "GPUAAS_LISTEN": "127.0.0.1:0",
        "GPUAAS_AGENTS_LISTEN": "127.0.0.1:0",
        **environment,
    }
    done = gpuaas(*(args or ("run",)), environment=complete, folder=folder)
    assert (done.returncode, done.stdout) == (1, ""), done.stderr
    assert says in done.stderr, done.stderr
    assert "error: " in done.stderr
    assert "Traceback" not in done.stderr
