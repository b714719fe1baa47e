"""`gpuaas validate --base`: a pull request against real Git, as CI runs it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from reconciler.cli.validate import validate
from reconciler.errors import Refused

EXAMPLE = Path(__file__).parents[2] / "example-state-repo"
INSTANCE = "tenants/acme/projects/research/instances/hello.yaml"
TENANT = "tenants/acme/tenant.yaml"
WHO = {
    "GIT_AUTHOR_NAME": "Ann",
    "GIT_AUTHOR_EMAIL": "ann@gpu.example",
    "GIT_COMMITTER_NAME": "Ann",
    "GIT_COMMITTER_EMAIL": "ann@gpu.example",
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_CONFIG_SYSTEM": os.devnull,
}


class Repo:
    """The example state repo below `folder` of a Git repository, on a branch made from main."""

    def __init__(self, root: Path, folder: str = "") -> None:
        self.root = root
        self.state = root / folder
        shutil.copytree(EXAMPLE, self.state, dirs_exist_ok=True)
        self.git("init", "--quiet", "--initial-branch", "main")
        self.commit("first")
        self.git("checkout", "--quiet", "-b", "topic")

    def git(self, *args: str) -> str:
        done = subprocess.run(
            ["git", *args],
            cwd=self.root,
            env={"PATH": os.environ["PATH"], **WHO},
            check=True,
            capture_output=True,
            text=True,
        )
        return done.stdout.strip()

    def commit(self, message: str) -> str:
        self.git("add", "--all")
        self.git("commit", "--quiet", "--allow-empty", "--message", message)
        return self.git("rev-parse", "HEAD")

    def edit(self, path: str, change: Callable[[str], str]) -> None:
        file = self.state / path
        file.write_text(change(file.read_text()))

    def append(self, path: str, text: str) -> None:
        self.edit(path, lambda found: found + text)


@pytest.fixture
def repo(tmp_path: Path) -> Repo:
    return Repo(tmp_path / "repo")


def run(folder: Path, *args: str) -> Result:
    return CliRunner().invoke(validate, [str(folder), *args], standalone_mode=False)


def refusal(folder: Path, *args: str) -> str:
    error = run(folder, *args).exception
    assert isinstance(error, Refused)
    return str(error)


def test_nothing_changed(repo: Repo) -> None:
    done = run(repo.state, "--base", "main")
    assert done.return_value == 0
    assert "nothing changed, no problem. (" in done.output


def test_what_is_introduced_stands_first_and_what_was_there_fails_too(repo: Repo) -> None:
    repo.git("checkout", "--quiet", "main")
    repo.append(TENANT, "  extra: 1\n")
    repo.commit("a mistake on main")
    repo.git("checkout", "--quiet", "-B", "topic")
    repo.edit(TENANT, lambda found: "# a line more\n" + found)
    done = run(repo.state, "--base", "main")
    assert done.return_value == 1
    assert done.output.startswith("Already there at ")
    repo.append(INSTANCE, "  depends_on: [helo]\n")
    repo.commit("another")
    done = run(repo.state, "--base", "main")
    title, first, hint, *_ = done.output.splitlines()
    assert title == "Introduced here:"
    assert first.startswith(f"{INSTANCE}:")
    assert "unknown_reference: AppInstance/acme/research/helo does not exist" in first
    assert hint == "    did you mean hello?"
    assert "  ~ AppInstance/acme/research/hello" in done.output
    assert "(1 introduced here)" in done.output


def test_the_base_is_where_the_branch_was_made(repo: Repo) -> None:
    """What was merged to main since is not taken for removed here."""
    repo.git("checkout", "--quiet", "main")
    repo.edit("catalog/hello/app.yaml", lambda found: found.replace("owner: ", "owner: x-"))
    repo.commit("later on main")
    repo.git("checkout", "--quiet", "topic")
    repo.edit(TENANT, lambda found: found.replace("display_name: ", "display_name: My "))
    found = json.loads(run(repo.state, "--base", "main", "--format", "json").output)
    assert [change["object"] for change in found["changes"]] == ["Tenant/acme"]
    assert found["base"] == repo.git("merge-base", "main", "topic")


def test_a_commit_against_a_commit(repo: Repo) -> None:
    repo.append(TENANT, "  extra: 1\n")
    repo.commit("wrong")
    repo.edit(TENANT, lambda found: found.replace("  extra: 1\n", ""))
    assert run(repo.state, "--base", "main").return_value == 0
    done = run(repo.state, "--ref", "topic", "--base", "main")
    assert done.return_value == 1
    assert "unknown_field" in done.output
    mended = run(repo.state, "--base", "topic")
    assert " mended. (" in mended.output


def test_a_tombstone_is_asked_for(repo: Repo) -> None:
    on = "guards:\n    tombstones: true"
    repo.edit("environments/dev.yaml", lambda found: found.replace("guards:", on))
    (repo.state / INSTANCE).unlink()
    done = run(repo.state, "--base", "main")
    says = "tombstone_missing: AppInstance/acme/research/hello is removed without having been"
    assert f"{INSTANCE}: {says}" in done.output


def test_a_state_repo_in_a_folder_of_a_repository(tmp_path: Path) -> None:
    repo = Repo(tmp_path / "mono", "platform state/live")
    repo.append(INSTANCE, "  depends_on: [helo]\n")
    done = run(repo.state, "--base", "main", "--format", "github")
    assert done.output.startswith(f"::error file=platform state/live/{INSTANCE},line=")
    sarif = json.loads(run(repo.state, "--base", "main", "--format", "sarif").output)
    (result,) = sarif["runs"][0]["results"]
    uri = result["locations"][0]["physicalLocation"]["artifactLocation"]["uri"]
    assert uri == f"platform%20state/live/{INSTANCE}"
    assert result["baselineState"] == "new"
    repo.commit("broken")
    assert run(repo.state, "--ref", "main").return_value == 0
    assert run(repo.state, "--ref", "topic").return_value == 1


def test_names_that_are_not_there(repo: Repo) -> None:
    said = refusal(repo.state, "--base", "orign/main")
    assert said == (
        "unknown_revision: no such commit here: 'orign/main' "
        "(git fetch origin, or see git branch --all: is 'orign/main' there?)"
    )
    assert "not a name of a commit: '--all'" in refusal(repo.state, "--base=--all")
    assert "no such commit here: 'nope'" in refusal(repo.state, "--ref", "nope")


def test_a_shallow_clone_says_how_to_deepen_it(repo: Repo, tmp_path: Path) -> None:
    for number in range(3):
        repo.append(TENANT, f"# {number}\n")
        repo.commit("more")
    clone = tmp_path / "clone"
    url = f"file://{repo.root}"
    repo.git("clone", "--quiet", "--depth=1", "--branch=topic", url, str(clone))
    said = refusal(clone, "--base", "origin/main")
    assert "unknown_revision: no such commit here: 'origin/main' (the clone is shallow: " in said
    assert "fetch-depth: 0 (GitHub" in said
    fetch = ("-C", str(clone), "fetch", "--quiet", "--depth=1", "origin")
    repo.git(*fetch, "main:refs/remotes/origin/main")
    said = refusal(clone, "--base", "origin/main")
    assert "no_merge_base: HEAD and origin/main have no commit in common here (the cl" in said
    repo.git("-C", str(clone), "fetch", "--quiet", "--unshallow", "origin")
    assert run(clone, "--base", "origin/main").return_value == 0


def test_histories_without_a_common_commit(repo: Repo) -> None:
    repo.git("checkout", "--quiet", "--orphan", "other")
    repo.commit("from nothing")
    said = refusal(repo.state, "--base", "main")
    assert "no_merge_base: HEAD and main have no commit in common here (name a branch that" in said


def test_a_folder_that_is_no_repository(tmp_path: Path) -> None:
    said = refusal(tmp_path, "--base", "main")
    assert said.endswith(
        "not_a_repository: there is no Git repository "
        "(name a folder of a repository; validate alone reads any folder)"
    )


def test_a_repository_without_a_commit(tmp_path: Path) -> None:
    subprocess.run(["git", "init", "--quiet", str(tmp_path)], check=True)
    assert "unknown_revision: no such commit here: 'HEAD'" in refusal(tmp_path, "--base", "main")


def test_a_file_instead_of_the_folder() -> None:
    said = refusal(EXAMPLE / INSTANCE)
    assert said.endswith(
        "not_a_folder: a file alone can't be checked: objects refer to each other "
        "(pass the folder of the state repo, the one that holds environments/)"
    )


def test_settings_in_the_checked_files_are_not_read(
    repo: Repo, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Attempted: a pull request that changes what its own check allows."""
    (repo.state / "gpuaas.toml").write_text("file_bytes_max = 1\nyaml_depth_max = 1\n")
    monkeypatch.chdir(repo.state)
    assert run(Path(), "--base", "main").return_value == 0
    monkeypatch.setenv("GPUAAS_FILE_BYTES_MAX", "1")
    assert "file_too_large" in run(Path()).output


PROMOTION = "catalog/jupyterlab/promotions/4.5.0.yaml"


def at_state(repo: Repo, state: str, message: str = "") -> None:
    """4.5.0 of jupyterlab, which is staged, and its images with it, which are published."""
    for name in ("image", "cuda"):
        path = f"tenants/platform/projects/catalog/artifacts/jupyterlab/4.5.0/{name}.yaml"
        text = (repo.state / path).read_text().replace("state: published", "state: promoted")
        (repo.state / path).write_text(text)
    scope = "  canary: {percent: 10}\n" if state == "canary" else ""
    lines = (repo.state / PROMOTION).read_text().splitlines(keepends=True)
    kept = [line for line in lines if "canary:" not in line and "state:" not in line]
    (repo.state / PROMOTION).write_text("".join([*kept, f"  state: {state}\n", scope]))
    if message:
        repo.commit(message)


def test_one_step_a_commit(repo: Repo) -> None:
    at_state(repo, "canary")
    assert run(repo.state, "--base", "main").return_value == 0
    at_state(repo, "active")
    done = run(repo.state, "--base", "main")
    assert done.return_value == 1
    assert "Promotion/jupyterlab/4.5.0 can't go from staged to active: canary may follow" in (
        done.output
    )
    at_state(repo, "canary", "a canary")
    at_state(repo, "active")
    assert run(repo.state, "--base", "main").return_value == 0
    repo.commit("and on")
    assert run(repo.state, "--ref", "topic", "--base", "main").return_value == 0
    repo.git("reset", "--quiet", "--soft", "main")
    repo.commit("squashed")
    assert run(repo.state, "--ref", "topic", "--base", "main").return_value == 1


def test_whoever_squashes_makes_one_commit(repo: Repo) -> None:
    at_state(repo, "canary", "a canary")
    assert run(repo.state, "--ref", "topic", "--base", "main", "--as", "ada").return_value == 0
    at_state(repo, "active", "and on")
    done = run(repo.state, "--ref", "topic", "--base", "main", "--as", "ada")
    assert "illegal_step" in done.output
