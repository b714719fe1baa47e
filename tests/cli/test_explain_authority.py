"""`gpuaas explain` where signatures count: whose form it is, and whose change does not count."""

from __future__ import annotations

from pathlib import Path

import pytest

from reconciler.cli.explain import explain
from reconciler.core.names import Revision
from reconciler.cycle import load, reconcile
from reconciler.settings import Settings
from reconciler.wiring.files import schema_set
from reconciler.wiring.gate import walked_to
from reconciler.wiring.ports import first_start, open_ports
from tests.cli.signed_state import ADMIN, MORE_CORES, MORE_MEMORY, ONE, OPERATOR, SignedState
from tests.cli.state_repo import Done, run
from tests.core.builders import INSTANCE_FILE, NODE_FILE


class Kept:
    """A control plane that accepts what the branch has, and what is told of it."""

    def __init__(self, root: Path) -> None:
        self.state = SignedState(root)
        self.settings = Settings(
            repo=str(self.state.folder),
            branch="topic",
            state_dir=root / "kept",
            environment="eval",
            admin_keys=(self.state.keys[ADMIN].public_line,),
        )
        with open_ports(self.settings) as ports:
            first_start(ports)
        self.accept()

    def accept(self) -> Revision:
        with open_ports(self.settings) as ports:
            head = ports.source.fetch()
            walked = walked_to(head, ports.store.accepted(), self.settings, ports)
            snapshot = ports.source.snapshot(head)
            state = load(snapshot, schema_set(), ports, self.settings, walked=walked)
            reconcile(state, ports, self.settings)
        return head

    def told(self, target: str, *args: str) -> Done:
        where = ("--repo", self.state.folder, "--branch", "topic", "-e", "eval")
        return run(explain, target, *where, "--state-dir", self.settings.state_dir, *args)


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kept:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("GPUAAS_SIGNATURES", "required")
    monkeypatch.chdir(tmp_path)
    return Kept(tmp_path)


def test_whose_form_counts(kept: Kept) -> None:
    revision = kept.state.edit(OPERATOR, *MORE_MEMORY)
    kept.accept()
    lines = kept.told(ONE).output.splitlines()
    assert lines[1] == (
        f"  what counts was accepted in {revision[:12]}, signed by user/olga; "
        f"nothing newer is in {revision[:12]}"
    )
    found = kept.told(ONE, "--format", "json").document
    assert (found["accepted"]["by"], found["refused"]) == ("user/olga", None)
    signed = {row["field"]: row["signed_by"] for row in found["fields"]}
    assert (signed["memory"], signed["version"]) == ("user/olga", "user/ada")


@pytest.mark.parametrize("target", ["Node/gpu-1", NODE_FILE])
def test_a_change_that_was_refused(kept: Kept, target: str) -> None:
    first = kept.state.repo.head()
    revision = kept.state.edit(OPERATOR, *MORE_CORES)
    kept.accept()
    lines = kept.told(target).output.splitlines()
    by = f"  what counts was accepted in {first[:12]}, signed by user/admin key; "
    assert any(line.startswith(by) and "says otherwise" in line for line in lines)
    at = lines.index(
        f"  ! the change of Node/gpu-1 in {revision[:12]} by user/olga does not count: what counts "
        "instead is its form before"
    )
    assert lines[at + 1 : at + 4] == [
        "    change_not_allowed: user/olga may not change Node/gpu-1: fleet.node.edit is missing "
        "on the platform",
        "    roles with fleet.node.edit: platform-admin",
        "    who may can agree to it in a signed commit with the line `Approves: Node/gpu-1`",
    ]
    assert sum("change_not_allowed" in line for line in lines) == 1


def test_before_it_is_accepted_and_in_json(kept: Kept) -> None:
    """What the next pass would refuse is told as well."""
    revision = kept.state.edit(OPERATOR, *MORE_CORES)
    refused = kept.told("Node/gpu-1", "--format", "json").document["refused"]
    assert (refused["commit"], refused["actor"]) == (revision, "user/olga")
    assert refused["code"] == "change_not_allowed"
    document = kept.told(NODE_FILE, "--format", "json").document
    (node,) = document["objects"]
    assert (node["object"], node["refused"]["code"]) == ("Node/gpu-1", "change_not_allowed")


def test_an_object_that_was_refused_from_the_start(kept: Kept) -> None:
    text = (kept.state.folder / NODE_FILE).read_text().replace("gpu-1", "gpu-2")
    text = text.replace("GPU-", "GPU-x")
    kept.state.commit(OPERATOR, {"platform/nodes/gpu-2.yaml": text})
    kept.accept()
    lines = kept.told("Node/gpu-2").output.splitlines()
    assert "  not accepted: no form of it counts yet" in lines
    assert any(line.endswith("does not count: it does not exist") for line in lines)


def test_a_revision_that_is_rejected_whole(kept: Kept) -> None:
    revision = kept.state.edit("eve", *MORE_MEMORY)
    lines = kept.told(ONE).output.splitlines()
    says = (
        f"  the newest revision counts for nothing: signer_unknown: commit {revision[:12]} (edit)"
    )
    assert any(line.startswith(says) for line in lines)
    whole = kept.told(INSTANCE_FILE).output.splitlines()
    assert ONE in whole
    assert any("counts for nothing" in line for line in whole)
