"""`gpuaas demo` tells the whole story on both engines, and takes down what it put up, no more."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import httpx
import pytest

from tests.e2e.platform import gpuaas

STORY = [
    "requested", "deploying", "running",
    "upgrade_requested", "upgraded",
    "rollback_requested", "rolled_back",
]  # fmt: skip


def demo(root: Path, *args: str) -> subprocess.CompletedProcess[str]:
    return gpuaas("demo", "--dir", str(root), *args)


def told(output: str) -> list[str]:
    return re.findall(r"apps\.instance\.(\w+)", output)


def processes_of(root: Path) -> list[str]:
    """The command lines of whatever runs from the folder or was told of it."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            folder = (entry / "cwd").readlink()
        except OSError:
            continue
        if str(root) in line or folder.is_relative_to(root):
            found.append(line)
    return found


def test_the_demo_on_processes_ends_with_nothing_left(tmp_path: Path) -> None:
    tells_all_and_leaves_nothing(tmp_path / "demo", "process")


def test_the_demo_on_docker_ends_with_nothing_left(service_root: Path) -> None:
    tells_all_and_leaves_nothing(service_root / "demo", "docker")


def tells_all_and_leaves_nothing(root: Path, engine: str) -> None:
    done = demo(root, "--engine", engine)
    assert done.returncode == 0, done.stdout + done.stderr
    assert told(done.stdout) == [*STORY, "decommission_requested", "decommissioned"]
    answers = re.findall(r"^\$ curl \S+\n(\S+)$", done.stdout, flags=re.MULTILINE)
    assert answers == ["1.0.0", "1.1.0", "1.0.0"]
    assert "nothing of it is left on the node" in done.stdout
    assert not root.exists()
    assert processes_of(root) == []


def test_a_demo_that_is_kept_runs_until_it_is_taken_down(tmp_path: Path) -> None:
    root = tmp_path / "demo"
    done = demo(root, "--engine", "process", "--keep")
    assert done.returncode == 0, done.stdout + done.stderr
    assert told(done.stdout) == STORY
    (url,) = set(re.findall(r"^\$ curl (\S+)$", done.stdout, flags=re.MULTILINE))
    assert httpx.get(url, trust_env=False).text.strip() == "1.0.0"
    down = demo(root, "--down")
    assert (down.returncode, down.stdout) == (0, "the demo is down\n")
    assert not root.exists()
    assert processes_of(root) == []
    again = demo(root, "--down")
    assert again.returncode == 0, "taking down what is not there is harmless"


@pytest.mark.parametrize("args", [[], ["--down"], ["--keep", "--engine", "process"]])
def test_a_folder_that_is_somebody_elses_is_not_touched(tmp_path: Path, args: list[str]) -> None:
    folder = tmp_path / "thesis"
    (folder / "docker").mkdir(parents=True)
    (folder / "chapter-1.txt").write_text("years of work")
    done = demo(folder, *args)
    assert done.returncode == 1
    assert f"error: {folder}: not_a_demo: this folder was not made by the demo" in done.stderr
    assert "choose another with --dir" in done.stderr
    assert sorted(path.name for path in folder.rglob("*")) == ["chapter-1.txt", "docker"]
    assert (folder / "chapter-1.txt").read_text() == "years of work"
