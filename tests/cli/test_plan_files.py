"""`plan`, `apply`, `snapshot` and `import` on a real repository and store, without a node."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from reconciler.cli.apply import apply
from reconciler.cli.import_ import import_
from reconciler.cli.plan import plan
from reconciler.cli.snapshot import snapshot
from reconciler.core.records import Accepted
from reconciler.devkit.state_repo import (
    INSTANCE,
    Published,
    StateRepo,
    make_state_repo,
    set_version,
)
from reconciler.errors import GpuaasError
from reconciler.settings import Settings
from reconciler.wiring.ports import open_ports

DIGESTS = {"1.0.0": "sha256:" + "1" * 64, "1.1.0": "sha256:" + "2" * 64}


@dataclass
class Desk:
    """A checkout, a state directory, and the commands a person types."""

    repo: StateRepo
    root: Path

    @property
    def state(self) -> Path:
        return self.root / "state"

    def run(self, command: click.Command, *args: str) -> Result:
        """By default with everything that a live command needs."""
        given = ["--state-dir", str(self.state), "--repo", str(self.repo.folder), "-e", "dev"]
        return CliRunner().invoke(command, [*args, *given], standalone_mode=False)

    def offline(self, *args: str) -> Result:
        """Only a checkout: no state directory is named, and none may be made."""
        given = ["--repo", str(self.repo.folder), "-e", "dev"]
        return CliRunner().invoke(plan, [*args, *given], standalone_mode=False)

    def file(self, name: str) -> str:
        return str(self.root / name)


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Desk:
    monkeypatch.chdir(tmp_path)
    repo = make_state_repo(tmp_path / "repo", Published("127.0.0.1:9", None, DIGESTS))
    made = Desk(repo, tmp_path)
    with open_ports(Settings(state_dir=made.state, repo=str(repo.folder), environment="dev")):
        pass
    return made


def refused(done: Result) -> str:
    assert isinstance(done.exception, GpuaasError), done.output
    return str(done.exception)


def test_plan_saved_and_applied_with_everything_held(desk: Desk) -> None:
    done = desk.run(plan, "--out", desk.file("plan.json"))
    assert done.return_value == 2
    assert "Held, node_never_joined (1): node node-a never joined" in done.output
    assert "apply it within 900 s" in done.output
    applied = desk.run(apply, desk.file("plan.json"))
    assert applied.return_value == 2
    assert "has nothing to carry out; 1 actions are held" in applied.output


def test_formats(desk: Desk) -> None:
    document = json.loads(desk.run(plan, "--format", "json").output)
    assert document["actions"][0]["held"]["code"] == "node_never_joined"
    assert document["problems"] == []
    assert document["environment"] == "dev"
    text = desk.run(plan, "--format", "markdown").output
    assert text.startswith("<!-- gpuaas-plan:dev -->\n")


def test_base_tells_what_the_change_causes(desk: Desk) -> None:
    set_version(desk.repo, "1.1.0")
    desk.repo.commit("Upgrade")
    document = json.loads(desk.run(plan, "--base", "HEAD~1", "--format", "json").output)
    assert [action["by_this_change"] for action in document["actions"]] == [True]
    assert len(document["no_longer_pending"]) == 1, "the launch of the version before"
    document = json.loads(desk.run(plan, "--base", "HEAD", "--format", "json").output)
    assert [action["by_this_change"] for action in document["actions"]] == [False]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--ref", "HEAD~1", "--out", "x"], "plan_not_head: "),
        (["--snapshot-key", "0" * 64], "no_snapshot: --snapshot-key is for --snapshot"),
        (["--ref", "nowhere"], "unknown_revision: "),
    ],
)
def test_plan_refusals(desk: Desk, args: list[str], message: str) -> None:
    set_version(desk.repo, "1.1.0")
    desk.repo.commit("Upgrade")
    assert message in refused(desk.run(plan, *args))


def test_a_plan_with_problems_is_not_saved(desk: Desk) -> None:
    (desk.repo.folder / "platform/nodes/odd.yaml").write_text("kind: [Node\n")
    desk.repo.commit("Break it")
    done = desk.run(plan, "--out", desk.file("plan.json"))
    assert "plan_problems: the revision has 1 problems, the first: platform/nodes/odd" in refused(
        done
    )
    assert not Path(desk.file("plan.json")).exists()


def test_a_branch_that_was_only_pushed_is_planned(desk: Desk) -> None:
    """As the examples of `--help` have it: nobody but the remote knows that branch."""
    desk.repo.git("checkout", "-q", "-b", "my-branch")
    set_version(desk.repo, "1.1.0")
    desk.repo.commit("Upgrade")
    desk.repo.git("checkout", "-q", "main")
    for ref in ("my-branch", "origin/my-branch"):
        done = desk.run(plan, "--ref", ref, "--base", "main", "--format", "json")
        (action,) = json.loads(done.output)["actions"]
        assert (action["version"], action["by_this_change"]) == ("1.1.0", True)


def test_apply_says_where_and_what_to_do(desk: Desk) -> None:
    (desk.repo.folder / "platform/nodes/odd.yaml").write_text("kind: [Node\n")
    (desk.repo.folder / INSTANCE).unlink()
    desk.repo.commit("Break it")
    done = desk.run(apply, "--listen", "127.0.0.1:0", "--timeout-s", "100")
    assert done.return_value == 1, done.output
    assert "platform/nodes/odd.yaml:2:1: " in done.output


def test_apply_of_what_is_no_plan(desk: Desk) -> None:
    assert "plan_unreadable: it cannot be read: No such file" in refused(
        desk.run(apply, desk.file("none.json"))
    )
    Path(desk.file("x.json")).write_text("{}")
    assert "plan_unreadable: it is no saved plan" in refused(desk.run(apply, desk.file("x.json")))


def snap(desk: Desk, *args: str) -> Result:
    return desk.run(snapshot, *args)


def key_of(desk: Desk) -> str:
    return snap(desk, "--key").output.strip()


def test_snapshot_there_and_planned_with(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    done = snap(desk, "--out", desk.file("snap.json"))
    assert done.return_value == 0
    assert "0 objects, 0 instances, 0 nodes" in done.output
    monkeypatch.setenv("GPUAAS_STATE_DIR", str(desk.root / "never"))
    shown = desk.offline("--snapshot", desk.file("snap.json"), "--snapshot-key", key_of(desk))
    assert shown.return_value == 2, shown.output
    assert "planned offline from a snapshot taken" in shown.output
    assert not (desk.root / "never").exists()


def test_the_checkout_cannot_configure_who_checks_it(desk: Desk) -> None:
    snap(desk, "--out", desk.file("snap.json"))
    Path("gpuaas.toml").write_text('repo = "/elsewhere"\nfile_bytes_max = 1\n')
    shown = desk.offline("--snapshot", desk.file("snap.json"), "--snapshot-key", key_of(desk))
    assert shown.return_value == 2, shown.output


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--max-age-s", "0.5"], "0.5 is not in the range"),
        (["--out", "x"], "plan_offline: a plan made from a snapshot can't be applied"),
        (["--base", "HEAD"], "snapshot_key_missing: Environment/dev at HEAD has no snapshot_keys"),
        ([], "snapshot_key_missing: no key to check the snapshot with"),
        (["--snapshot-key", "0" * 64], "snapshot_not_trusted: "),
        (["--snapshot-key", "nonsense"], "bad_key: "),
    ],
)
def test_offline_refusals(desk: Desk, args: list[str], message: str) -> None:
    snap(desk, "--out", desk.file("snap.json"))
    done = desk.offline("--snapshot", desk.file("snap.json"), *args)
    assert message in str(done.exception)


def test_a_snapshot_needs_a_control_plane_that_was_here(desk: Desk) -> None:
    other = ["--state-dir", str(desk.root / "none"), "-e", "dev"]
    done = CliRunner().invoke(snapshot, other, standalone_mode=False)
    assert "no_state: no control plane has kept its state here yet" in refused(done)
    assert not (desk.root / "none").exists()


def test_import_list_and_node(desk: Desk) -> None:
    assert "nothing to import" in desk.run(import_, "--list").output
    document = json.loads(desk.run(import_, "--list", "--format", "json").output)
    assert document == {"format": "gpuaas.dev/importable/v1", "importable": []}
    given: dict[str, Any] = {"standalone_mode": False}
    args = ["--state-dir", str(desk.state), "--repo", str(desk.repo.folder)]
    done = CliRunner().invoke(import_, ["node", "gpu-07", *args], **given)
    assert "import_unknown_node: no node gpu-07 has joined" in refused(done)
    done = CliRunner().invoke(import_, ["-e", "dev", "instance", "hello", *args], **given)
    assert "bad_instance: 'hello' is no TENANT/PROJECT/NAME" in refused(done)


def test_accepted_objects_travel(desk: Desk) -> None:
    settings = Settings(state_dir=desk.state, repo=str(desk.repo.folder), environment="dev")
    with open_ports(settings) as ports:
        ports.store.save_accepted(Accepted(ports.source.fetch(), {}))
    done = snap(desk)
    assert json.loads(done.output)["payloadType"] == "application/vnd.gpuaas.snapshot.v1+json"
