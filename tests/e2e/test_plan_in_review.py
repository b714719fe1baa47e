"""A plan from the pull request to the apply: in CI without a credential, saved, carried out once.

And the way back: what runs undeclared is declared, and nothing happens to it.
"""

from __future__ import annotations

import base64
import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from reconciler.devkit import process, state_repo
from reconciler.devkit.state_repo import StateRepo
from tests.e2e.platform import AGENT, CONTROL_PLANE, Platform, gpuaas

ENVIRONMENT_FILE = "environments/dev.yaml"


@pytest.fixture
def platform(process_platform: Callable[..., Platform]) -> Platform:
    made = process_platform()
    made.start()
    made.wait_settled("running")
    return made


def in_environment(repo: StateRepo, lines: str) -> None:
    repo.edit(ENVIRONMENT_FILE, lambda text: text.replace("spec:\n", f"spec:\n{lines}", 1))


def said(done: subprocess.CompletedProcess[str], code: int) -> str:
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def clone(platform: Platform, folder: Path) -> StateRepo:
    """What CI has: a checkout, and nothing of the control plane but its address."""
    platform.repo.git("clone", "--quiet", str(platform.repo.folder), str(folder))
    made = StateRepo(folder)
    made.git("checkout", "--quiet", "-b", "change")
    return made


def test_ci_plans_a_pull_request_offline(platform: Platform, tmp_path: Path) -> None:
    key = platform.gpuaas("snapshot", "--key").stdout.strip()
    in_environment(platform.repo, f'  snapshot_keys: ["{key}"]\n')
    platform.commit("Believe snapshots of this control plane")
    platform.wait_settled("running")
    checkout = clone(platform, tmp_path / "ci")
    state_repo.set_version(checkout, "1.1.0")
    checkout.commit("Upgrade")
    url = f"http://{platform.listen}/v1/snapshot"

    def plan(*args: str) -> subprocess.CompletedProcess[str]:
        return gpuaas("plan", "-e", "dev", "--base", "origin/main", *args, folder=checkout.folder)

    text = said(plan("--snapshot", url, "--format", "markdown"), 2)
    lines = text.splitlines()
    assert lines[0] == "<!-- gpuaas-plan:dev -->"
    assert re.fullmatch("> planned offline from a snapshot taken [0-9]+ s ago, at .*Z", lines[3])
    assert "#### This change (1)" in lines
    assert "#### Pending without this change (0)" in lines
    row = next(line for line in lines if line.startswith("| `~` upgrade"))
    assert "| `acme/research/hello` |" in row
    assert "version 1.0.0 → 1.1.0" in row
    assert "<br>image.digest" in row, "what runs is known field by field"

    file = tmp_path / "snapshot.json"
    said(platform.gpuaas("snapshot", "--out", str(file)), 0)
    raw = file.read_text()
    told = base64.b64decode(json.loads(raw)["payload"]).decode()
    assert "127.0.0.1" not in told
    assert "command" not in told, "manifests stay where they are"
    assert "This change: 1" in said(plan("--snapshot", str(file)), 2)
    file.write_text(raw.replace('"payload": "', '"payload": "A', 1))
    assert "error: snapshot_" in said(plan("--snapshot", str(file)), 1)


def test_a_change_cannot_vouch_for_its_own_snapshot(platform: Platform, tmp_path: Path) -> None:
    """Attempted: a pull request that brings the key its snapshot is signed with."""
    key = platform.gpuaas("snapshot", "--key").stdout.strip()
    checkout = clone(platform, tmp_path / "ci")
    in_environment(checkout, f'  snapshot_keys: ["{key}"]\n')
    checkout.commit("Trust me")
    (checkout.folder / "gpuaas.toml").write_text('repo = "elsewhere"\n')
    url = f"http://{platform.listen}/v1/snapshot"
    plan = ["plan", "-e", "dev", "--snapshot", url]
    refused = said(gpuaas(*plan, "--base", "origin/main", folder=checkout.folder), 1)
    assert "snapshot_key_missing: Environment/dev at origin/main has no snapshot_keys" in refused
    refused = said(gpuaas(*plan, folder=checkout.folder), 1)
    assert "snapshot_key_missing: no key to check the snapshot with" in refused
    allowed = gpuaas(*plan, "--snapshot-key", key, folder=checkout.folder)
    assert "Nothing to do" in said(allowed, 0)


def test_a_saved_plan_is_carried_out_once_by_who_leads(platform: Platform) -> None:
    in_environment(platform.repo, "  sync: {mode: manual}\n")
    platform.commit("Changes wait for an apply")
    platform.wait_settled("running")
    platform.set_version("1.1.0")
    platform.commit("Upgrade")
    platform.wait(lambda: platform.status()["last_pass"]["held"] == 1)
    file = platform.root / "plan.json"
    planned = said(platform.gpuaas("plan", "--out", str(file)), 2)
    assert "Held, awaiting_apply (1)" in planned
    assert platform.instance()["applied_version"] == "1.0.0"
    applied = said(platform.gpuaas("apply", str(file)), 0)
    assert "apps.instance.upgraded" in applied
    assert "is carried out" in applied
    assert platform.page() == "1.1.0"
    assert "error: plan_used: 1 of its 1 actions" in said(platform.gpuaas("apply", str(file)), 1)
    assert "Nothing to do" in said(platform.gpuaas("plan"), 0)


def test_a_saved_plan_is_carried_out_without_a_leader_and_nothing_else(platform: Platform) -> None:
    platform.kill(CONTROL_PLANE)
    platform.set_version("1.1.0")
    platform.repo.commit("Upgrade")
    file = platform.root / "plan.json"
    said(platform.gpuaas("plan", "--out", str(file)), 2)
    platform.remove_instance()
    platform.repo.commit("Remove")
    stale = said(platform.gpuaas("apply", str(file)), 1)
    assert "error: plan_stale: the branch is at " in stale
    platform.repo.git("reset", "--quiet", "--hard", "HEAD~1")
    applied = said(platform.gpuaas("apply", str(file)), 0)
    assert "apps.instance.upgraded" in applied
    shown = said(platform.gpuaas("plan"), 0)
    assert "Nothing to do" in shown


def test_a_plan_is_applied_by_the_id_on_the_screen(platform: Platform) -> None:
    platform.kill(CONTROL_PLANE)
    platform.remove_instance()
    platform.repo.commit("Remove")
    planned = said(platform.gpuaas("plan"), 2)
    assert "  removes acme/research/hello on " in planned
    found = re.search(r"^Plan ([0-9a-f]{16}) for revision", planned, re.MULTILINE)
    assert found is not None
    assert "error: plan_stale: the plan is" in said(platform.gpuaas("apply", "0" * 16), 1)
    applied = said(platform.gpuaas("apply", found[1]), 0)
    assert "apps.instance.decommissioned" in applied
    assert platform.workload_processes() == []


def test_what_runs_undeclared_is_imported_and_left_alone(platform: Platform) -> None:
    """The store and the manifest are gone; the node still runs it."""
    before = platform.workload_processes()
    platform.kill(CONTROL_PLANE, AGENT)
    for path in (platform.root / "state").glob("store.db*"):
        path.unlink()
    platform.remove_instance()
    platform.repo.commit("Forget it")
    platform.start_control_plane()
    token = platform.root / "token"
    token.write_text(platform.gpuaas("node", "join", platform.node).stdout)
    agent = platform._agent_command()
    process.run([*agent, "join", "--again", "--token-file", str(token)])
    platform.start_agent()
    platform.wait(lambda: any(one["code"] == "not_in_inventory" for one in platform.findings()))
    listed = said(platform.gpuaas("import", "--list"), 0)
    assert f"gpuaas import instance acme/research/hello on {platform.node}" in listed
    wrote = said(platform.gpuaas("import", "instance", "acme/research/hello"), 0)
    assert "and the plan with it does nothing to it" in wrote
    platform.repo.commit("Declare what runs")
    assert "Nothing to do" in said(platform.gpuaas("plan"), 0)
    said(platform.gpuaas("apply"), 0)
    assert platform.instance()["applied_version"] == "1.0.0"
    assert platform.workload_processes() == before
    assert "nothing to import" in said(platform.gpuaas("import", "--list"), 0)
    differs = said(platform.gpuaas("import", "node", platform.node), 1)
    assert "import_exists: the file is there and says something else" in differs
    assert "+  engines: [process]" in differs
