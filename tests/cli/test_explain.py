"""`gpuaas explain`: where each value comes from, and why what runs is not like it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from node_agent.wire import Endpoint, FailureReason, Phase, WorkloadReport
from reconciler.cli.explain import _objects, _print_rows, _said, explain
from reconciler.cli.terminal import Terminal
from reconciler.core.accept import accept
from reconciler.core.desired import Target
from reconciler.core.forms import parse_accepted
from reconciler.core.names import InstanceKey, ObjectRef, Revision
from reconciler.core.observed import Known
from reconciler.core.plan import Finding, Plan
from reconciler.core.records import Accepted, State
from reconciler.core.validate import validate
from reconciler.cycle import load, reconcile
from reconciler.errors import Refused
from reconciler.ports import Changes
from reconciler.settings import Settings
from reconciler.use_cases.explain import Explanation
from reconciler.use_cases.explain import explain as explained
from reconciler.use_cases.explained_fields import Live, Subject
from reconciler.wiring.files import schema_set
from reconciler.wiring.history import local_history
from reconciler.wiring.ports import first_start, open_ports
from renderers import render
from tests.cli.state_repo import HELLO, INSTANCE, Done, StateRepo, make, run
from tests.core.builders import ALLOCATION_FILE, ENTITLEMENT_FILE, ENVIRONMENT_FILE, PROJECT

REF = ObjectRef.parse(HELLO)
KEY = InstanceKey("acme/research/hello")
VERSION = "AppVersion/hello/1.1.0"
VERSION_FILE = "catalog/hello/versions/1.1.0.yaml"


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StateRepo:
    for name in ("GPUAAS_STATE_DIR", "GPUAAS_ENVIRONMENT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    return make(tmp_path / "state")


def told(state: StateRepo, *args: Any, of: str = HELLO) -> Done:
    return run(explain, of, *args, "--repo", state.folder)


def fields(state: StateRepo, *args: Any, of: str = HELLO) -> dict[str, dict[str, Any]]:
    found = told(state, *args, "--format", "json", of=of).document["fields"]
    return {row["field"]: row for row in found}


def subject_of(state: StateRepo, row: dict[str, Any]) -> str:
    return state.repo.git("log", "-1", "--format=%s", row["commit"]).strip()


def test_where_each_value_comes_from(state: StateRepo) -> None:
    state.edit(VERSION_FILE, "- serve", "- serve2", "another command")
    state.edit(ALLOCATION_FILE, "cpu_cores: 16", "cpu_cores: 17", "a larger lease")
    rows = fields(state)
    first = "The platform, one app and one instance"
    assert {
        name: (row["desired"], row["cause"], subject_of(state, row) if row["commit"] else "")
        for name, row in rows.items()
    } == {
        "version": ("1.1.0", "spec.version", "Move hello to 1.1.0"),
        "image": (
            "gpuaas/apps/research/hello@sha256:bbbbbbbbbbbb…",
            f"{VERSION} spec.artifact_ref",
            first,
        ),
        "node": ("gpu-1", "Allocation/acme/research/lease spec.node", first),
        "gpus": (
            "GPU-0",
            f"{VERSION} spec.launch_parameters.properties.gpu_count.default",
            first,
        ),
        "cpu": ("0.5 cores", "spec.parameters.cpu_cores", first),
        "memory": ("512 MiB", "spec.parameters.memory_gib", "More memory for hello"),
        "ports": ("http 8080 at any", f"{VERSION} spec.runtime_profile.ports", first),
        "run": ("running", "spec.desired", first),
        "operating_mode": ("tenant_dedicated", "built-in default", ""),
        "control_plane_scope": ("project", "built-in default", ""),
        "tenant_boundary_mode": ("project_isolated", "built-in default", ""),
        "health": ("http :8080/ready within 60 s", f"{VERSION} spec.runtime_profile.health", first),
        "promotion": ("active", "Promotion/hello/1.1.0 spec.state", first),
    }  # fmt: skip
    assert rows["version"]["observed"] == "unknown: no control plane state here"
    assert not any(row["differs"] for row in rows.values())
    assert rows["memory"]["signer"] == "Ada Admin <ada@acme.example>"
    assert rows["memory"]["signature"] == "absent"


CAUSES = {
    "the lease": (
        (INSTANCE, "    cpu_cores: 0.5\n", ""),
        ("cpu", "16 cores", "Allocation/acme/research/lease spec.cpu_cores"),
    ),
    "the version's minimum": (
        (VERSION_FILE, "_profile:\n", "_profile:\n    resources: {min_vcpu: 3}\n"),
        ("cpu", "3 cores", f"{VERSION} spec.runtime_profile.resources.min_vcpu"),
    ),
    "the environment": (
        (ENVIRONMENT_FILE, "spec:\n", "spec:\n  defaults: {control_plane_scope: tenant}\n"),
        ("control_plane_scope", "tenant", "Environment/eval spec.defaults.control_plane_scope"),
    ),
    "an entitlement": (
        (
            ENTITLEMENT_FILE,
            "  enabled: true",
            "  enabled: true\n  policy_overrides: {allowed_control_plane_scopes: [tenant]}",
        ),
        (
            "control_plane_scope",
            "tenant",
            "Entitlement/acme/research/hello "
            "spec.policy_overrides.allowed_control_plane_scopes",
        ),
    ),
    "a hint": (
        (INSTANCE, "spec:\n", "spec:\n  requested: {operating_mode: tenant_dedicated}\n"),
        ("operating_mode", "tenant_dedicated", "spec.requested.operating_mode"),
    ),
    "a port of one's own": (
        (INSTANCE, "  parameters:\n", "  parameters:\n    host_port: 8081\n"),
        ("ports", "http 8080 at 8081", "spec.parameters.host_port"),
    ),
    "a suspended project": (
        (
            f"{PROJECT}/project.yaml",
            "spec:\n",
            "spec:\n  suspend: {by: ada, reason: move, until: '2099-01-01T00:00Z'}\n",
        ),
        ("suspend", "\"by ada: move\"", "Project/acme/research spec.suspend"),
    ),
}  # fmt: skip


@pytest.mark.parametrize(("edit", "row"), CAUSES.values(), ids=CAUSES.keys())
def test_causes(state: StateRepo, edit: tuple[str, str, str], row: tuple[str, str, str]) -> None:
    if row[2].endswith("min_vcpu"):
        state.edit(INSTANCE, "    cpu_cores: 0.5\n", "", "no cores of its own")
    state.edit(*edit, "the deciding one")
    found = fields(state)[row[0]]
    assert (found["desired"], found["cause"]) == row[1:]
    if not row[2].startswith("Allocation"):
        assert subject_of(state, found) == "the deciding one"


def test_one_field(state: StateRepo) -> None:
    assert [*fields(state, "memory")] == ["memory"]
    row = fields(state, "spec.parameters.memory_gib")["spec.parameters.memory_gib"]
    assert (row["desired"], row["decided_by"]["object"]) == ("0.5", HELLO)
    assert subject_of(state, row) == "More memory for hello"
    assert fields(state, "/spec/app")["spec.app"]["desired"] == "hello"


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("acme/research/hallo",), f"no_such_object: .*did you mean {HELLO}"),
        ((HELLO, "memroy"), r"no_such_field: .*did you mean memory\?"),
        ((HELLO, "spec.parameters.memory_gb"), r"did you mean spec\.parameters\.memory_gib\?"),
        ((HELLO, "zzzzzz"), "there are: version, image, node"),
        ((INSTANCE.replace("hello.", "hallo."),), f"no_such_object: .*did you mean {INSTANCE}"),
        ((HELLO, "--ref", "v9"), "unknown_revision"),
    ],
)
def test_names_that_nothing_answers_to(state: StateRepo, args: tuple[str, ...], says: str) -> None:
    with pytest.raises(Refused, match=says):
        told(state, *args[1:], of=args[0])


def test_one_that_was_removed(state: StateRepo) -> None:
    revision = state.repo.commit({INSTANCE: None}, "no longer needed")[:12]
    says = rf"object_removed: .*{revision} \(no longer needed\).*gpuaas rollback"
    with pytest.raises(Refused, match=says):
        told(state)


def test_one_that_was_renamed(state: StateRepo) -> None:
    text = state.read(INSTANCE).replace("name: hello", "name: hi")
    moved = text.replace("spec:", "spec:\n  moved_from: hello")
    state.repo.commit({INSTANCE: None, f"{PROJECT}/instances/hi.yaml": moved}, "another name")
    says = f"object_renamed: {HELLO} is called AppInstance/acme/research/hi now"
    with pytest.raises(Refused, match=says):
        told(state)


def test_two_environments_need_a_name(state: StateRepo) -> None:
    text = state.read(ENVIRONMENT_FILE).replace("name: eval", "name: prod")
    state.repo.commit({"environments/prod.yaml": text})
    with pytest.raises(Refused, match=r"which environment.*there are eval, prod"):
        told(state)
    assert told(state, "-e", "prod").code == 0


def test_other_kinds_say_who_depends_on_them(state: StateRepo) -> None:
    lines = told(state, of="Node/gpu-1").output.splitlines()
    assert lines[0] == "Node/gpu-1  platform/nodes/gpu-1.yaml:1"
    assert lines[-2:] == ["Named by: Allocation/acme/research/lease", f"Instances: {HELLO}"]
    found = told(state, "--format", "json", of="Promotion/hello/1.1.0").document
    assert found["instances"] == ["acme/research/hello"]
    assert [row["field"] for row in found["fields"]] == ["spec.reason", "spec.state"]


def test_a_broken_one_says_what_is_wrong(state: StateRepo) -> None:
    state.edit(INSTANCE, 'version: "1.1.0"', 'version: "9.9.9"', "no such version")
    output = told(state).output
    assert f"! {INSTANCE}:7:3: unknown_reference: AppVersion/hello/9.9.9 does not exist" in output


# --- with a control plane ------------------------------------------------------------------------


@contextmanager
def one_pass(state: StateRepo, tmp_path: Path) -> Iterator[Path]:
    """Makes a pass of a control plane on the repository's head; yields its state folder."""
    folder = tmp_path / "kept"
    settings = Settings(
        repo=str(state.folder), state_dir=folder, environment="eval", signatures="off"
    )
    with open_ports(settings) as ports:
        first_start(ports)
        snapshot = ports.source.snapshot(ports.source.fetch())
        reconcile(load(snapshot, schema_set(), ports, settings), ports, settings)
    yield folder


def test_what_the_plan_says(state: StateRepo, tmp_path: Path) -> None:
    head = state.repo.head()[:12]
    with one_pass(state, tmp_path) as kept:
        output = told(state, "--state-dir", kept, "-e", "eval").output
        rows = fields(state, "--state-dir", kept, "-e", "eval")
    lines = output.splitlines()
    assert lines[1] == f"  what counts was accepted in {head}; nothing newer is in {head}"
    assert lines[2].startswith("  state: requested since ")
    assert lines[3].startswith("  plan: launch on gpu-1, ")
    assert lines[3].endswith("; held, node_never_joined: node gpu-1 never joined")
    assert "observed is unknown: node gpu-1 never joined" in output
    assert rows["version"]["differs"]
    assert rows["version"]["cause"] == "spec.version; held: node_never_joined"
    assert not rows["memory"]["differs"]


def test_one_whose_removal_is_held(state: StateRepo, tmp_path: Path) -> None:
    """It runs on, and whoever is paged for it wants to know why it is not gone."""
    with one_pass(state, tmp_path) as kept:
        settings = Settings(repo=str(state.folder), state_dir=kept, signatures="off")
        with open_ports(settings) as ports:
            (record,) = ports.store.records().values()
            running = replace(record, state=State.RUNNING, applied_hash="sha256:" + "1" * 64)
            ports.store.commit(Changes(records=(running,)))
        state.repo.commit({INSTANCE: None}, "no longer needed")
        lines = told(state, "--state-dir", kept, "-e", "eval").output.splitlines()
    assert lines[0] == f"{HELLO}  no manifest any more"
    assert lines[1] == f"  its manifest was removed in {state.repo.head()[:12]} (no longer needed)"
    assert lines[2].startswith("  state: running since ")
    assert lines[3].startswith("  plan: remove on gpu-1, its manifest was removed; held, node_")


def test_a_file_that_cannot_be_read(state: StateRepo, tmp_path: Path) -> None:
    with one_pass(state, tmp_path) as kept:
        state.repo.commit({INSTANCE: "kind: [AppInstance\n"}, "a typing mistake")
        output = told(state, "--state-dir", kept, "-e", "eval").output
    assert f"  ! {INSTANCE}:2:1: yaml_syntax: " in output


def test_a_form_that_is_not_accepted(state: StateRepo, tmp_path: Path) -> None:
    """What counts is explained, with the commits that made it so; the newest form is named."""
    with one_pass(state, tmp_path) as kept:
        accepted = state.repo.head()
        state.edit(INSTANCE, "memory_gib: 0.5", "memory_gib: 400", "far too much")
        done = told(state, "--state-dir", kept, "-e", "eval")
        rows = fields(state, "--state-dir", kept, "-e", "eval")
    head = state.repo.head()[:12]
    assert (
        f"  what counts was accepted in {accepted[:12]}; {head} says otherwise, and that is not "
        "accepted"
    ) in done.output.splitlines()
    assert "exceeds_allocation: 409600 MiB of memory asked" in done.output
    assert rows["memory"]["desired"] == "512 MiB"
    assert subject_of(state, rows["memory"]) == "More memory for hello"


def test_one_that_was_never_accepted(state: StateRepo, tmp_path: Path) -> None:
    with one_pass(state, tmp_path) as kept:
        text = state.read(INSTANCE).replace("name: hello", "name: two")
        state.repo.commit({f"{PROJECT}/instances/two.yaml": text.replace("lease", "none")})
        done = told(state, "--state-dir", kept, "-e", "eval", of="acme/research/two")
    assert "  not accepted: no form of it counts yet" in done.output.splitlines()
    assert "unknown_reference: Allocation/acme/research/none does not exist" in done.output


# --- what nodes report ---------------------------------------------------------------------------


def live(state: StateRepo, **said: Any) -> Explanation:
    """Explains the instance with this report of its node; `running` False: an earlier form runs."""
    settings = Settings()
    commits = local_history(state.folder, settings)
    head = commits.head()
    candidate = validate(commits.snapshot(head), schema_set(), settings.parse_limits)
    accepted = accept(candidate, Accepted(), parse_accepted, "eval")
    instance = accepted.instances[KEY]
    workload: Any = render(instance)
    report = WorkloadReport(
        instance=KEY,
        target_hash=workload.spec_hash,
        running_hash=workload.spec_hash,
        phase=Phase.READY,
        image_digest=str(instance.artifact.digest),
        endpoints=(Endpoint(name="http", host_ip="127.0.0.1", host_port=4711, container=8080),),
    )
    subject = Subject(
        candidate.objects,
        accepted,
        Target(instance, workload),
        Live(None, Known(report.model_copy(update=said)), why="not_ready_in_time"),
    )
    return explained(REF, subject, commits, head)


def differing(found: Explanation) -> dict[str, str]:
    return {row.field: row.observed or "" for row in found.rows if row.differs}


def test_as_desired(state: StateRepo) -> None:
    found = live(state)
    seen = {row.field: row.observed for row in found.rows}
    assert (seen["memory"], seen["ports"], seen["run"], seen["health"]) == (
        "512 MiB", "http at 127.0.0.1:4711", "ready", "ready",
    )  # fmt: skip
    assert differing(found) == {"version": "nothing there"}


def test_after_an_upgrade_that_failed(state: StateRepo) -> None:
    found = live(
        state,
        running_hash="sha256:" + "0" * 64,
        phase=Phase.FAILED,
        reason=FailureReason.NOT_READY_IN_TIME,
        message="no answer on :8080",
        image_digest="sha256:" + "a" * 64,
        restarts=2,
    )
    told_of = differing(found)
    assert told_of["image"].endswith("@sha256:aaaaaaaaaaaa…")
    assert told_of["memory"] == "of an earlier form"
    assert told_of["health"] == "failed, not_ready_in_time: no answer on :8080, 2 restart(s)"
    causes = {row.field: row.deciding.cause for row in found.rows}
    assert causes["image"] == f"{VERSION} spec.artifact_ref; not_ready_in_time"


def test_nothing_there(state: StateRepo) -> None:
    found = live(state, phase=Phase.PENDING, running_hash=None, image_digest=None, endpoints=())
    assert differing(found)["cpu"] == "does not run"


def test_what_is_wrong_with_its_node_is_said_too() -> None:
    ref, node = ObjectRef.parse(HELLO), "node-a"
    finding = Finding("info", "task_refused", f"Node/{node}", "it takes no tasks", "make room")
    other = replace(finding, object="Node/node-b")
    says, why = _said(Plan(Revision("r"), "", findings=(other, finding)), ref, KEY, node)
    assert (says, why) == (("task_refused: it takes no tasks (make room)",), "task_refused")


def test_on_a_narrow_terminal_each_signer_stands_once_below(state: StateRepo) -> None:
    assert "SIGNER" in told(state).output
    commits = local_history(state.folder, Settings())
    head = commits.resolve("HEAD")
    candidate = validate(commits.snapshot(head), schema_set(), Settings().parse_limits)
    accepted = accept(candidate, Accepted(), parse_accepted, "dev")
    rows = explained(REF, Subject(_objects(accepted), accepted, alone=True), commits, head).rows
    console = Terminal(width=100, highlight=False, soft_wrap=True)
    with console.capture() as captured:
        _print_rows(console, rows)
    lines = captured.get().splitlines()
    assert "SIGNER" not in lines[0]
    assert max(map(len, lines)) <= 100
    revisions = {row.commit.revision[:12] for row in rows if row.commit}
    assert {line.split()[1] for line in lines if line.startswith("commit ")} == revisions
