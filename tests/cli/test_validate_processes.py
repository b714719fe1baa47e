"""`gpuaas validate` as CI runs it: a process of its own, on one core or more, into a pipe."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "example-state-repo"
TENANT = "tenants/acme/tenant.yaml"
PROGRAM = [sys.executable, "-c", "from reconciler.cli.main import main; main()"]
ALL_CORES = os.sched_getaffinity(0)


def start(*words: str, cores: set[int] = ALL_CORES) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*PROGRAM, *words],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: os.sched_setaffinity(0, cores),  # noqa: PLW1509
        env={**os.environ, "PYTHONPATH": str(EXAMPLE.parent)},
    )


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return shutil.copytree(EXAMPLE, tmp_path / "state")


@pytest.mark.parametrize("wrong", [False, True])
def test_one_core_or_more(wrong: bool, root: Path) -> None:
    if wrong:
        (root / TENANT).write_bytes(b"kind: Tenant\nkind: Tenant\n")
    found = []
    for cores in (ALL_CORES, {min(ALL_CORES)}):
        code, out, err = ended(start("validate", str(root), "--format", "json", cores=cores))
        assert (code, err) == (int(wrong), "")
        document = json.loads(out)
        document.pop("elapsed_s", None)
        found.append(document)
    assert found[0] == found[1]
    assert bool(found[0]["problems"]) == wrong


def test_all_of_a_long_output_arrives(root: Path) -> None:
    for number in range(2_000):
        (root / "tenants" / "acme" / f"{number}.yaml").write_text("a: 1\n")
    code, out, err = ended(start("validate", str(root)))
    assert (code, err) == (1, "")
    assert sum("unknown_path" in line for line in out.splitlines()) == 2_000
    assert len(out) > 100_000


def test_a_reader_that_goes_away_is_no_traceback(root: Path) -> None:
    for number in range(5_000):
        (root / "tenants" / "acme" / f"{number}.yaml").write_text("a: 1\n")
    process = start("validate", str(root))
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait(timeout=120) == 1
    process.stderr.close()


def test_an_error_is_told_once(root: Path) -> None:
    code, out, err = ended(start("validate", str(root / TENANT)))
    assert (code, out) == (1, "")
    assert err.count("not_a_folder") == 1


def test_limits_of_the_environment_count(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPUAAS_FILES_MAX", "5")
    code, out, err = ended(start("validate", str(root)))
    assert (code, out) == (1, "")
    assert err.count("too_many_files") == 1
