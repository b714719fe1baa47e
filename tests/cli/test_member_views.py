"""What people see of an instance with members: status, explain, diff, and names of members."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from node_agent.wire import Endpoint
from reconciler.cli.diff import diff
from reconciler.cli.explain import explain
from reconciler.cli.history import history
from reconciler.cli.status import about, print_instance, print_status
from reconciler.core.names import InstanceKey, ObjectRef
from reconciler.core.records import Condition, InstanceRecord, State
from reconciler.errors import Refused
from reconciler.use_cases.history import member_of_target, parse_target
from reconciler.views.access import instructions
from reconciler.views.read_models import instance_document, status_document
from tests.cli.state_repo import Done, StateRepo, run
from tests.core import builders as b
from tests.core.fleet import NOW_MS, REVISION, inventory, running, target
from tests.core.spread import member, spread
from tests.services.git_repo import GitRepo

ONE, W1 = "acme/research/one", "acme/research/one.w1"


def record(name: str, role: str, **conditions: str) -> InstanceRecord:
    told = tuple(
        Condition(kind, "True" if says == "Ready" else "False", says, "", REVISION, NOW_MS)
        for kind, says in conditions.items()
    )
    made = replace(running(target(name)), role=role, conditions=told)
    return replace(made, node="node-b") if "." in name else made


MEMBERS = Condition(
    "MembersReady", "False", "NotAllReady", "1/2 members ready: w1 is failed", REVISION, NOW_MS
)
HEAD = record("one", "head", Ready="Ready", Converged="Ready")
HEAD = replace(HEAD, conditions=(*HEAD.conditions, MEMBERS))
WORKER = record("one.w1", "worker", Ready="Failed", Converged="Ready")
BESIDE = record("one-2", "", Ready="Ready", Converged="Ready")


def shown(*records: InstanceRecord) -> list[str]:
    console = Console(width=160, highlight=False)
    with console.capture() as captured:
        print_status(console, status_document(inventory(*records), [], None, NOW_MS))
    return captured.get().splitlines()


def test_members_stand_below_their_instance() -> None:
    lines = shown(HEAD, WORKER, BESIDE)
    rows = [line for line in lines if "one" in line.split("(")[0] and "pass" not in line]
    assert [row.split("  ")[0] or row.strip().split("  ")[0] for row in rows] == [
        ONE,
        "one.w1 (worker)",
        "acme/research/one-2",
    ]
    assert rows[0].endswith("1/2 members ready: w1 is failed")
    assert "node-b" in rows[1]


def test_one_whose_instance_is_not_shown_has_its_whole_name() -> None:
    assert any(f"{W1} (worker)" in line for line in shown(WORKER))


def test_one_instance_lists_its_members() -> None:
    console = Console(width=160, highlight=False)
    with console.capture() as captured:
        print_instance(console, instance_document(HEAD), (), [instance_document(WORKER)])
        print_instance(console, instance_document(WORKER), ())
    text = captured.get()
    assert "role:      head" in text
    assert "MembersReady: False NotAllReady  1/2 members ready: w1 is failed" in text
    assert f"{W1} (worker)" in text
    assert f"member of: {ONE}" in text


def test_findings_about_the_file_are_findings_about_each_member() -> None:
    where = "tenants/acme/projects/research/instances/one.yaml:9:3"
    told = {"findings": [{"where": where, "code": "unknown_role"}, {"where": "x.yaml:1:1"}]}
    found = about(instance_document(WORKER), told)
    assert found is not None
    assert [one["code"] for one in found["findings"]] == ["unknown_role"]


def test_people_are_sent_to_the_loopback_port() -> None:
    """What is for members may come first by name; instructions are for what is private."""
    ports = (
        Endpoint(name="gcs", container=6379, host_ip="10.0.0.5", host_port=6379),
        Endpoint(name="http", container=8080, host_ip="127.0.0.1", host_port=20001),
    )
    assert instructions(replace(HEAD, endpoints=ports, access="{host_port}")) == "20001"
    assert instructions(replace(HEAD, endpoints=ports[:1], access="{host_port}")) == "6379"


@pytest.mark.parametrize("text", [W1, f"AppInstance/{W1}"])
def test_a_members_name_leads_to_the_manifest(text: str) -> None:
    ref = parse_target(text)
    assert ref == ObjectRef.parse(f"AppInstance/{ONE}")
    assert isinstance(ref, ObjectRef)
    assert member_of_target(text, ref) == "w1"
    assert member_of_target("AppVersion/hello/1.0.0", ObjectRef("AppVersion", ("a", "1.0"))) == ""


# --- on a state repo -----------------------------------------------------------------------------


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StateRepo:
    for name in ("GPUAAS_STATE_DIR", "GPUAAS_ENVIRONMENT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    repo = GitRepo(tmp_path / "repo")
    documents = spread(member("w1", gpu_count=2), member("w2", "lease"))
    repo.commit(texts(documents), "A head and two workers")
    return StateRepo(repo)


def texts(documents: b.Documents) -> dict[str, Any]:
    return {path: yaml.safe_dump(one, sort_keys=False) for path, one in documents.items()}


def told(state: StateRepo, name: str, *args: str) -> Done:
    return run(explain, name, *args, "--repo", state.folder, "--format", "json")


def rows(state: StateRepo, name: str) -> dict[str, tuple[str, str]]:
    found = told(state, name).document["fields"]
    return {row["field"]: (row["desired"], row["cause"]) for row in found}


def test_a_member_is_explained_by_its_part_of_the_manifest(state: StateRepo) -> None:
    head, worker = rows(state, ONE), rows(state, W1)
    assert head["members"] == ("w1(worker) w2(worker)", "spec.members")
    assert head["role"][0] == "head"
    assert head["ports"][0] == "http 8080 at any, gcs 6379 at 10.0.0.5:6379"
    assert worker["role"] == ("worker", "spec.members.0.role")
    assert worker["node"] == ("gpu-2", "Allocation/acme/research/other spec.node")
    assert worker["gpus"] == ("GPU-8 GPU-9", "spec.members.0.parameters.gpu_count")
    assert worker["cpu"] == ("2 cores", "spec.parameters.cpu_cores")
    assert worker["ports"][0] == "none"
    assert "members" not in worker


def test_who_uses_an_allocation_counts_members(state: StateRepo) -> None:
    document = told(state, "Allocation/acme/research/other").document
    assert document["dependents"] == [f"AppInstance/{ONE}"]


def test_a_member_that_is_not_there(state: StateRepo) -> None:
    with pytest.raises(Refused) as refused:
        told(state, f"{ONE}.worker-1")
    assert (refused.value.code, refused.value.message, refused.value.hint) == (
        "no_such_object",
        f"AppInstance/{ONE} has no member worker-1",
        "its members: w1, w2",
    )


def test_the_history_of_a_member_is_that_of_its_instance(state: StateRepo) -> None:
    done = run(history, W1, "--repo", str(state.folder))
    assert "A head and two workers" in done.output


def test_a_diff_tells_each_member(state: StateRepo) -> None:
    documents = spread(member("w2", "lease"), member("w3", "lease"))
    before = state.repo.git("rev-parse", "HEAD").strip()
    after = state.repo.commit(texts(documents), "w3 for w1")
    done = run(diff, before, str(after), state.folder, "--format", "json")
    (found,) = json.loads(done.output)["effects"].values()
    assert [(one["effect"], one["instance"]) for one in found] == [
        ("remove", InstanceKey(W1)),
        ("launch", InstanceKey(f"{ONE}.w3")),
    ]
    assert found[0]["text"] == "version 1.0.0, its instance has it no longer"


def test_a_renamed_instance_keeps_its_members(state: StateRepo) -> None:
    documents = spread(member("w1", gpu_count=2), member("w2", "lease"))
    documents[b.INSTANCE_FILE.replace("one", "two")] = {
        **documents.pop(b.INSTANCE_FILE),
        "metadata": {"name": "two"},
    }
    moved = documents[b.INSTANCE_FILE.replace("one", "two")]
    moved["spec"]["moved_from"] = "one"
    before = state.repo.git("rev-parse", "HEAD").strip()
    (state.folder / b.INSTANCE_FILE).unlink()
    after = state.repo.commit(texts(documents), "one is two now")
    done = run(diff, before, str(after), state.folder, "--format", "json")
    (found,) = json.loads(done.output)["effects"].values()
    assert {(one["effect"], one["instance"]) for one in found} == {
        ("rename", f"acme/research/two{name}") for name in ("", ".w1", ".w2")
    }


def test_a_state_of_its_own(state: StateRepo) -> None:
    """Records of members read back what they were written as, roles included."""
    document = instance_document(replace(WORKER, state=State.FAILED))
    assert (document["role"], document["member_of"], document["state"]) == ("worker", ONE, "failed")
