"""Checking a repository again and again: the answer of a fresh look, for the price of a change."""

from __future__ import annotations

import shutil
from pathlib import Path

from reconciler.settings import Settings
from reconciler.use_cases.validation import CheckMemo, check, check_path
from reconciler.wiring.files import read_local

EXAMPLE = Path(__file__).parents[1] / "example-state-repo"
INSTANCE = "tenants/acme/projects/research/instances/hello.yaml"
SETTINGS = Settings()


def test_a_memo_gives_what_a_fresh_look_gives(tmp_path: Path) -> None:
    root = shutil.copytree(EXAMPLE, tmp_path / "state")
    memo = CheckMemo()
    first = check(read_local(root, None, SETTINGS), SETTINGS, memo)
    assert first == check_path(root, None, SETTINGS)
    assert first.problems == ()

    looked_at = memo.validated.files_checked
    path = root / INSTANCE
    text = path.read_text()
    path.write_text(text.replace("allocation: small", "allocation: smal"))
    wrong = check(read_local(root, None, SETTINGS), SETTINGS, memo)
    assert wrong == check_path(root, None, SETTINGS)
    assert [(problem.path, problem.code) for problem in wrong.problems] == [
        (INSTANCE, "unknown_reference")
    ]
    assert memo.validated.files_checked == looked_at + 1

    path.write_text(text)
    assert check(read_local(root, None, SETTINGS), SETTINGS, memo) == first


def test_an_environment_that_is_invalid_is_not_said_to_be_missing(tmp_path: Path) -> None:
    root = shutil.copytree(EXAMPLE, tmp_path / "state")
    broken = root / "environments" / "dev.yaml"
    broken.write_text(broken.read_text().replace("removals_max: 5", "removals_max: five"))
    found = check_path(root, None, Settings(environment="dev"))
    told = [problem for problem in found.problems if problem.code == "unknown_environment"]
    assert [(problem.message, problem.hint) for problem in told] == [
        ("Environment/dev is invalid, so nothing can be checked against it", "mend it first")
    ]


def test_an_environment_that_is_gone_is_forgotten(tmp_path: Path) -> None:
    root = shutil.copytree(EXAMPLE, tmp_path / "state")
    memo = CheckMemo()
    check(read_local(root, None, SETTINGS), SETTINGS, memo)
    names = set(memo.resolved)
    gone = root / "environments" / "dev.yaml"
    gone.unlink()
    found = check(read_local(root, None, SETTINGS), SETTINGS, memo)
    assert set(memo.resolved) == names - {"dev"}
    assert found == check_path(root, None, SETTINGS)
