"""`gpuaas plan` as a process: with a second core and without one, it says the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from reconciler.devkit.state_repo import INSTANCE, Published, StateRepo, make_state_repo

DIGESTS = {"1.0.0": "sha256:" + "1" * 64, "1.1.0": "sha256:" + "2" * 64}
CORES = sorted(os.sched_getaffinity(0))


@pytest.fixture
def repo(tmp_path: Path) -> StateRepo:
    return make_state_repo(tmp_path / "repo", Published("127.0.0.1:9", None, DIGESTS))


def plan(repo: StateRepo, *args: str, cores: int) -> tuple[int, str, str]:
    command = [str(Path(sys.executable).with_name("gpuaas")), "plan", *args, "-e", "dev"]
    command += ["--repo", str(repo.folder), "--state-dir", str(repo.folder.parent / "state")]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: os.sched_setaffinity(0, CORES[:cores]),
    )
    return done.returncode, done.stdout, done.stderr


def document(repo: StateRepo, cores: int, code: int) -> Any:
    returned, out, err = plan(repo, "--format", "json", cores=cores)
    assert (returned, err) == (code, "")
    return json.loads(out)


def test_one_core_and_two_make_the_same_plan(repo: StateRepo) -> None:
    alone, both = document(repo, 1, 2), document(repo, 2, 2)
    assert alone == both
    assert [action["instance"] for action in both["actions"]] == ["acme/research/hello"]


def test_one_core_and_two_find_the_same_problems(repo: StateRepo) -> None:
    path = repo.folder / INSTANCE
    path.write_text(path.read_text() + "  no_such_field: 1\n")
    repo.commit("A mistake")
    alone, both = document(repo, 1, 1), document(repo, 2, 1)
    assert alone == both
    assert [problem["line"] for problem in both["problems"]]


def test_what_was_not_fetched_before_is_read_too(repo: StateRepo) -> None:
    first = document(repo, 2, 2)
    path = repo.folder / "tenants" / "README.md"
    path.write_text("no manifest\n")
    repo.commit("A new commit")
    assert document(repo, 2, 2)["revision"] != first["revision"]


def test_a_refusal_is_one_line(repo: StateRepo) -> None:
    code, out, err = plan(repo, "--ref", "nowhere", cores=2)
    assert (code, out) == (1, "")
    assert err.startswith("error: unknown_revision: ")
    assert err.count("\n") <= 2
