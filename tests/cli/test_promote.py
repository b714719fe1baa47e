"""`gpuaas promote` and `gpuaas retire`: the branch they write, what they refuse."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from reconciler.cli.promote import promote
from reconciler.cli.retire import retire
from reconciler.errors import Refused
from tests.cli.state_repo import Done, StateRepo, run
from tests.services.git_repo import GitRepo

EXAMPLE = Path(__file__).parents[2] / "example-state-repo"
ARTIFACTS = "tenants/platform/projects/catalog/artifacts"
FIRST = "Faster attention on H200; first in one project."
CANARY = "catalog/vllm/promotions/0.11.0.yaml"
STAGED = "catalog/jupyterlab/promotions/4.5.0.yaml"
OLD = "catalog/jupyterlab/promotions/4.2.5.yaml"
IMAGE = f"{ARTIFACTS}/jupyterlab/4.5.0/image.yaml"


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StateRepo:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    repo = GitRepo(tmp_path / "state")
    shutil.copytree(EXAMPLE, repo.folder, dirs_exist_ok=True)
    files = {str(p.relative_to(EXAMPLE)): p.read_text() for p in EXAMPLE.rglob("*.yaml")}
    repo.commit(files, "The example")
    return StateRepo(repo)


def go(state: StateRepo, *args: Any) -> Done:
    given: list[str | Path] = ["--repo", state.folder, "--branch", "next"]
    if "--reason" not in args:
        given += ["--reason", "tried"]
    return run(promote, *args, *given)


def refused(state: StateRepo, *args: Any) -> str:
    head = state.repo.git("for-each-ref")
    with pytest.raises(Refused) as error:
        go(state, *args)
    assert state.repo.git("for-each-ref") == head
    return str(error.value)


def published_is_promoted(state: StateRepo) -> None:
    for name in ("image", "cuda"):
        state.edit(IMAGE.replace("image", name), "state: published", "state: promoted")


# --- what is written -----------------------------------------------------------------------------


def test_the_next_state_of_a_version(state: StateRepo) -> None:
    before, head = state.read(CANARY), state.repo.head()
    state.edit(f"{ARTIFACTS}/vllm/0.11.0/image.yaml", "[canary]", "[canary, stable]")
    head = state.repo.head()
    done = go(state, "vllm", "0.11.0", "--to", "active", "--reason", "No failure in a week: go.")
    assert done.code == 0
    assert state.show(CANARY, "next") == before.replace("state: canary", "state: active").replace(
        f"reason: {FIRST}",
        "reason: 'No failure in a week: go.'",
    )
    assert (state.repo.head(), state.repo.git("status", "--porcelain")) == (head, "")
    assert state.repo.git("diff", "--name-only", head, "next").split() == [CANARY]
    assert state.repo.git("log", "-1", "--format=%B", "next").strip().splitlines() == [
        "Make Promotion/vllm/0.11.0 active",
        "",
        "~ spec.state  canary → active",
        f'~ spec.reason  {FIRST} → "No failure in a week: go."',
        "",
        "Reason: No failure in a week: go.",
    ]


def test_what_people_see(state: StateRepo) -> None:
    published_is_promoted(state)
    head = state.repo.head()[:12]
    done = go(state, "jupyterlab", "4.5.0", "--to", "canary", "--percent", "10", "--project",
              "borealis/vision", "--step-back", "0")  # fmt: skip
    assert done.output.splitlines() == [
        "Promotion/jupyterlab/4.5.0 is to be canary",
        f"  branch next, commit {state.repo.head('next')[:12]} on top of {head}",
        "",
        "  ~ spec.state   staged → canary",
        "  ~ spec.reason  Built and signed; to be tried by borealis/vision next. → tried",
        '  + spec.canary  {"projects": ["borealis/vision"], "percent": 10, "step_back": {…',
        "",
        f"--- a/{STAGED}",
        f"+++ b/{STAGED}",
        "@@ -4,5 +4,6 @@",
        " metadata:",
        '   name: "4.5.0"',
        " spec:",
        "-  state: staged",
        "-  reason: Built and signed; to be tried by borealis/vision next.",
        "+  state: canary",
        "+  reason: tried",
        "+  canary: {projects: [borealis/vision], percent: 10, step_back: {failed_max: 0}}",
        "",
        "Nothing changes until it is merged. To propose it:",
        "  git push origin next",
        "  gh pr create --head next --fill    # or open it in your forge",
    ]


def test_a_canary_gets_wider_and_keeps_its_comments(state: StateRepo) -> None:
    before = state.read(CANARY)
    go(state, "vllm", "0.11.0", "--to", "canary", "--percent", "25")
    assert state.show(CANARY, "next") == before.replace("percent: 0", "percent: 25").replace(
        FIRST, "tried"
    )


def test_a_promotion_that_is_not_there_is_made(state: StateRepo) -> None:
    version = state.read("catalog/hello/versions/1.1.0.yaml").replace("1.1.0", "1.2.0")
    state.repo.commit({"catalog/hello/versions/1.2.0.yaml": version}, "a version")
    go(state, "hello", "1.2.0", "--to", "staged")
    assert state.show("catalog/hello/promotions/1.2.0.yaml", "next") == (
        "apiVersion: gpuaas.dev/v1\nkind: Promotion\nmetadata:\n  name: 1.2.0\n"
        "spec:\n  state: staged\n  reason: tried\n"
    )


@pytest.mark.parametrize(
    "name",
    [
        "platform/catalog/jupyterlab/4.5.0/image",
        "Artifact/platform/catalog/jupyterlab/4.5.0/image",
        "gpuaas/apps/platform/catalog/jupyterlab@sha256:"
        "2fb5e274fca3e8823a072c19bdc9138a788d744662c346dcf2a2b8e8a9ed6b87",
    ],
)
def test_an_artifact_by_any_of_its_names(state: StateRepo, name: str) -> None:
    before = state.read(IMAGE)
    go(state, name, "--to", "promoted", "--channel", "canary", "--channel", "stable")
    after = before.replace("state: published\n", "state: promoted\n  channels: [canary, stable]\n")
    assert state.show(IMAGE, "next") == after


def test_channels_go_with_the_state_that_has_them(state: StateRepo) -> None:
    path = f"{ARTIFACTS}/vllm/0.10.2/image.yaml"
    before = state.read(path)
    go(state, "platform/catalog/vllm/0.10.2/image", "--to", "deprecated")
    after = before.replace("state: promoted\n  channels: [stable, canary]\n", "state: deprecated\n")
    assert state.show(path, "next") == after


def test_one_document_of_several(state: StateRepo) -> None:
    folder = "catalog/hello/promotions"
    first, second = state.read(f"{folder}/1.0.0.yaml"), state.read(f"{folder}/1.1.0.yaml")
    both = f"# ours\n{first}---\n# theirs\n{second}"
    gone = {f"{folder}/1.0.0.yaml": None, f"{folder}/1.1.0.yaml": None}
    state.repo.commit({f"{folder}/all.yaml": both, **gone}, "one file")
    go(state, "hello", "1.1.0", "--to", "deprecated")
    after = second.replace("state: active", "state: deprecated")
    after = after.replace("Smoke test passed on node-a.", "tried")
    assert state.show(f"{folder}/all.yaml", "next") == both.replace(second, after)


def test_json(state: StateRepo) -> None:
    found = go(state, "hello", "1.1.0", "--to", "deprecated", "--format", "json").document
    assert found["format"] == "gpuaas.dev/promotion/v1"
    assert (found["object"], found["state"]) == ("Promotion/hello/1.1.0", "deprecated")
    assert found["commit"] == state.repo.head("next")
    assert found["in_the_way"] == []


# --- what is refused -----------------------------------------------------------------------------

REFUSED: dict[str, tuple[tuple[str, ...], str]] = {
    "a state too far": (
        ("jupyterlab", "4.5.0", "--to", "active"),
        "illegal_step: Promotion/jupyterlab/4.5.0 can't go from staged to active: canary may "
        "follow (one step a commit: staged → canary → active)",
    ),
    "back": (
        ("hello", "1.1.0", "--to", "staged"),
        "illegal_step: Promotion/hello/1.1.0 can't go from active to staged: deprecated may follow "
        "(publish what replaces it as a version of its own)",
    ),
    "an artifact that skips a state": (
        ("platform/catalog/vllm/0.10.2/image", "--to", "retired"),
        "illegal_step: Artifact/platform/catalog/vllm/0.10.2/image can't go from promoted to "
        "retired: deprecated or revoked may follow (one step a commit: promoted → deprecated → "
        "retired)",
    ),
    "revoked, once retired": (
        ("platform/catalog/vllm/0.9.1/image", "--to", "revoked"),
        "illegal_step: Artifact/platform/catalog/vllm/0.9.1/image can't go from retired to revoked:"
        " removal may follow (register what replaces it as an Artifact of its own)",
    ),
    "a state of the other kind": (
        ("hello", "1.1.0", "--to", "promoted"),
        "unknown_state: Promotion has no state 'promoted' (states: active, canary, deprecated, "
        "draft, retired, staged)",
    ),
    "a version that is not there": (
        ("vllm", "0.11.1", "--to", "staged"),
        "no_such_object: there is no AppVersion/vllm/0.11.1 in ",
    ),
    "an artifact that is not there": (
        ("platform/catalog/hello/1.1.0/imag", "--to", "promoted"),
        "no_such_object: there is no Artifact/platform/catalog/hello/1.1.0/imag in ",
    ),
    "a digest that is not there": (
        (f"gpuaas/apps/x@sha256:{'0' * 64}", "--to", "promoted"),
        f"no_such_object: no Artifact names gpuaas/apps/x@sha256:{'0' * 64} (gpuaas artifact "
        "register writes one; gpuaas artifact list shows what there is)",
    ),
    "an instance": (
        ("acme/research/hello", "--to", "active"),
        "no_such_object: acme/research/hello is neither a version nor an artifact (APP VERSION, or "
        "TENANT/PROJECT/APP/VERSION/NAME of an Artifact, or REPOSITORY@DIGEST)",
    ),
    "a canary for nobody": (
        ("jupyterlab", "4.5.0", "--to", "canary"),
        "canary_without_scope: nobody would get Promotion/jupyterlab/4.5.0 as a canary (--project "
        "TENANT/PROJECT, or --percent N, or both)",
    ),
    "a scope of what is no canary": (
        ("vllm", "0.11.0", "--to", "staged", "--percent", "3"),
        "not_a_canary: only a canary has a scope, and not staged (leave --project, --percent and "
        "--step-back out, or say --to canary)",
    ),
    "a scope of an artifact": (
        ("platform/catalog/jupyterlab/4.5.0/image", "--to", "promoted", "--percent", "3"),
        "not_a_canary: an artifact has channels, and no canary scope (leave --project, --percent "
        "and --step-back out)",
    ),
    "a channel of a version": (
        ("vllm", "0.11.0", "--to", "staged", "--channel", "stable"),
        "not_for_versions: channels are of artifacts (leave --channel out)",
    ),
    "a channel of what is not promoted": (
        ("platform/catalog/vllm/0.10.2/image", "--to", "deprecated", "--channel", "stable"),
        "not_promoted: channels are of an artifact that is promoted (leave --channel out, or say "
        "--to promoted)",
    ),
    "nothing new": (
        ("platform/catalog/hello/1.1.0/image", "--to", "promoted"),
        "nothing_to_change: Artifact/platform/catalog/hello/1.1.0/image is promoted already, and "
        "says the same",
    ),
}


@pytest.mark.parametrize(("args", "said"), REFUSED.values(), ids=REFUSED.keys())
def test_what_is_refused_before_anything_is_written(
    state: StateRepo, args: tuple[str, ...], said: str
) -> None:
    assert said in refused(state, *args)


def test_what_would_be_a_new_problem_is_not_written(state: StateRepo) -> None:
    done = go(state, "jupyterlab", "4.5.0", "--to", "canary", "--percent", "10")
    assert done.code == 1
    title, first, *_, last = done.output.splitlines()
    assert (
        title == "Not canary: with Promotion/jupyterlab/4.5.0 as canary, 3 problem(s) would be new"
    )
    assert "artifact_not_promoted: version is canary, but " in first
    assert last == "Nothing was written."
    assert "next" not in state.repo.git("for-each-ref", "refs/heads")


def test_a_file_that_cannot_be_read_is_mended_first(state: StateRepo) -> None:
    state.repo.commit({CANARY: "kind: ["}, "broken")
    said = refused(state, "vllm", "0.11.0", "--to", "active")
    assert said.startswith(f"{CANARY}: form_unreadable: Promotion/vllm/0.11.0 can't be read")


# --- retire --------------------------------------------------------------------------------------


def test_retired_is_what_nobody_names(state: StateRepo) -> None:
    deprecated = f"{ARTIFACTS}/jupyterlab/4.2.5/image.yaml"
    done = run(retire, "jupyterlab", "4.2.5", "--reason", "x", "--repo", state.folder)
    assert (done.code, "Nothing was written." in done.output) == (1, True)
    assert "AppInstance" not in done.output.splitlines()[0]
    assert (
        "version_not_offered: AppVersion/jupyterlab/4.2.5 is retired, and takes no instances"
        in (done.output)
    )
    assert "old-notebook.yaml" in done.output
    named = "platform/catalog/jupyterlab/4.2.5/image"
    done = run(retire, named, "--reason", "x", "--repo", state.folder)
    assert "artifact_retired: version is deprecated, but " in done.output
    assert state.show(deprecated, "HEAD") == state.read(deprecated)


def test_once_it_is_gone_it_follows(state: StateRepo) -> None:
    folder = "tenants/borealis/projects/vision/instances"
    for path in sorted((state.folder / folder).glob("*.yaml")):
        if "4.2.5" in path.read_text():
            state.repo.commit({f"{folder}/{path.name}": None}, "gone")
    done = run(retire, "jupyterlab", "4.2.5", "--reason", "out of use", "--repo", state.folder)
    assert done.code == 0
    branch = "promote/jupyterlab-4.2.5-retired"
    assert "state: retired\n  reason: out of use\n" in state.show(OLD, branch)


def test_what_is_on_offer_is_deprecated_first(state: StateRepo) -> None:
    with pytest.raises(Refused) as error:
        run(retire, "hello", "1.0.0", "--reason", "x", "--repo", state.folder)
    assert str(error.value) == (
        "illegal_step: Promotion/hello/1.0.0 can't go from active to retired: deprecated may "
        "follow (one step a commit: active → deprecated → retired)"
    )
