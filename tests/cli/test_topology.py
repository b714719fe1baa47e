"""`gpuaas topology`: of instances and versions, from files alone and beside what a node says."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from node_agent.wire import Phase, ServicePhase, Workload, WorkloadReport
from reconciler.cli.common import EXIT_CHANGES, EXIT_OK
from reconciler.cli.terminal import Terminal
from reconciler.cli.topology import print_topology, topology
from reconciler.core.names import InstanceKey
from reconciler.cycle import load, reconcile
from reconciler.errors import Refused
from reconciler.ports import Store
from reconciler.settings import Settings
from reconciler.use_cases.files_alone import accepted_alone
from reconciler.use_cases.topology import of_instance
from reconciler.wiring.files import read_local, schema_set
from reconciler.wiring.ports import first_start, open_ports
from renderers import render
from tests.cli.state_repo import Done, run
from tests.core import builders as b
from tests.core import spread as s
from tests.core import topology_world as t
from tests.server.harness import Agent
from tests.services.git_repo import GitRepo
from tests.services.go_tools import program


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout with an instance of several services."""
    for name in ("GPUAAS_STATE_DIR", "GPUAAS_ENVIRONMENT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    return checkout(tmp_path / "state", t.world(host_port=9000))


def checkout(folder: Path, documents: b.Documents) -> Path:
    repo = GitRepo(folder)
    texts = {path: yaml.safe_dump(one, sort_keys=False) for path, one in documents.items()}
    repo.commit(texts, "An app of several services")
    return folder


def told(folder: Path, *args: str | Path) -> Done:
    return run(topology, *args, "--repo", folder)


def said(folder: Path, *args: str | Path) -> str:
    with pytest.raises(Refused) as refused:
        told(folder, *args)
    return str(refused.value)


# --- from files alone ----------------------------------------------------------------------------


def test_an_instance_from_the_files_alone(folder: Path) -> None:
    done = told(folder, t.ONE)
    assert done.code == EXIT_OK
    note, *lines = [line.rstrip() for line in done.output.splitlines()]
    assert note == "note: no control plane state here: this is what the state repo alone comes to"
    assert lines[0] == "acme/research/one  hello 1.0.0  generic_services on gpu-1"
    api = next(line for line in lines if line.startswith("api") and "main" in line)
    assert "fill completed, index healthy" in api
    assert "1 GPU, 1.4 cores, 3520 MiB" in api
    internal = next(line for line in lines if line.startswith("index") and "grpc" in line)
    assert internal.endswith("not published")
    assert lines[-1] == "When a vital service ends, it alone is started again."


@pytest.mark.parametrize("width", [80, 100, 120, 160])
def test_nothing_is_cut_on_a_narrow_terminal(folder: Path, width: int) -> None:
    state = accepted_alone(read_local(folder, None, Settings()), schema_set(), Settings())
    console = Terminal(width=width, highlight=False)
    with console.capture() as captured:
        print_topology(console, of_instance(InstanceKey(t.ONE), state).view)
    lines = [line.rstrip() for line in captured.get().splitlines()]
    rows = [line for line in lines if line.startswith("api ")]
    shown = next(line.split()[-1] for line in rows if "@" in line)
    assert re.fullmatch(r"[a-z-]+@[0-9a-f]{12}", shown)
    assert all(len(line) <= width for line in lines if not line.startswith("When"))
    assert ("IMAGE" in lines[2]) == (width == 160)


def test_a_version_before_there_is_an_instance(folder: Path) -> None:
    (folder / b.INSTANCE_FILE).unlink()
    for args in (("hello", "1.0.0"), ("AppVersion/hello/1.0.0",)):
        done = told(folder, *args, "--offline")
        assert done.output.splitlines()[0].rstrip() == "hello 1.0.0  generic_services"
        assert "a free port" in done.output
    document = told(folder, "hello", "1.0.0", "--offline", "--format", "json").document
    assert (document["instance"], document["node"], document["runs"]) == ("", "", "")
    api = document["services"][0]
    assert (api["share"]["cpu_millis"], api["share"]["memory_mib"]) == (1000, 1024)
    assert api["share"]["gpu_uuids"] == []


@pytest.mark.parametrize(
    ("profile", "services"),
    [(t.VLLM, ["load", "vllm"]), (t.JUPYTER, ["notebook"]), (None, ["api", "fill", "index"])],
    ids=["vllm", "jupyter", "generic"],
)
@pytest.mark.parametrize("output", ["json", "compose"])
def test_every_renderer_has_an_example(
    tmp_path: Path, profile: dict[str, Any] | None, services: list[str], output: str
) -> None:
    folder = checkout(tmp_path / "state", t.world(profile))
    args = ("hello", "1.0.0", "--offline", "-e", b.ENVIRONMENT, "--format", output)
    text = told(folder, *args).output
    found = json.loads(text[text.index("{") :])["services"]
    names = [one["name"] for one in found] if output == "json" else sorted(found)
    assert names == services


def _at_least(count: int) -> Callable[[b.Documents], object]:
    return lambda d: d[b.VERSION_FILE]["spec"].update(compatibility={"min_gpu_count": count})


H200 = {"nvidia-h200": t.INDEX_IMAGE}
SMALLEST: dict[str, tuple[dict[str, Any], t.Bend, Callable[[b.Documents], object], int]] = {
    "two stages": (t.VLLM, t.part("vllm", pipeline_parallel=2), _at_least(0), 2),
    "two stages of three": (t.VLLM, t.part("vllm", pipeline_parallel=2), _at_least(3), 4),
    "two stages beside another": (
        t.VLLM, t.both(t.part("vllm", pipeline_parallel=2), t.more(gpus=1)), _at_least(2), 3,
    ),
    "a sidecar of one family alone": (
        t.GENERIC, t.service(1, image_ref=None, variants=H200), _at_least(0), 0,
    ),
    "the family of all of them": (
        t.GENERIC,
        t.both(
            t.fields(variants={"amd-mi300x": b.IMAGE, "nvidia-h200": b.IMAGE}),
            t.service(1, image_ref=None, variants=H200),
        ),
        _at_least(1), 1,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SMALLEST)
def test_whatever_version_is_valid_has_an_example(tmp_path: Path, name: str) -> None:
    profile, bend, edit, gpus = SMALLEST[name]
    documents = t.world(profile)
    bend(t.profile_of(documents))
    edit(documents)
    folder = checkout(tmp_path / "state", documents)
    found = told(folder, "hello", "1.0.0", "--offline", "--format", "json").document
    assert len({uuid for one in found["services"] for uuid in one["share"]["gpu_uuids"]}) == gpus


def test_a_plain_instance_and_a_further_member(tmp_path: Path) -> None:
    folder = checkout(tmp_path / "state", s.spread())
    for key, command in ((s.HEAD, "http :8080/ready"), (f"{s.HEAD}.w1", "runs")):
        document = told(folder, key, "--offline", "--format", "json").document
        assert document["instance"] == key
        (only,) = document["services"]
        assert (only["name"], only["probe"]) == ("main", command)


def test_as_of_a_commit(folder: Path) -> None:
    path = folder / b.VERSION_FILE
    path.write_text(path.read_text().replace("generic_services", "no_such_renderer"))
    assert "instance_unresolved" in said(folder, t.ONE, "--offline")
    assert told(folder, t.ONE, "--ref", "HEAD").code == EXIT_OK


def test_as_a_picture(folder: Path) -> None:
    drawn = told(folder, t.ONE, "--offline", "--format", "mermaid").output
    assert drawn.startswith("flowchart LR\n")
    assert 's0["api<br/>main<br/>' in drawn


def test_the_compose_file_is_one_that_compose_takes(folder: Path) -> None:
    done = told(folder, t.ONE, "--offline", "--format", "compose")
    note, _, text = done.output.partition("\n")
    assert note.startswith("note: an example: images' own settings and volumes, ")
    assert sorted(json.loads(text)["services"]) == ["api", "fill", "index"]
    file = folder / "compose.json"
    file.write_text(text)
    command = [
        str(program("docker-compose")),
        "--env-file",
        "/dev/null",
        "-p",
        "x",
        "-f",
        str(file),
    ]
    subprocess.run([*command, "config", "--quiet"], check=True, env={"HOME": str(folder)})


REFUSALS = {
    "acme/research/on": "no instance acme/research/on (did you mean acme/research/one?)",
    "acme/research/one.w1": "no instance acme/research/one.w1",
    "hello": "which version of hello? (there are 1.0.0)",
    "hello 1.0": "hello has no version 1.0 (there are 1.0.0)",
    "helo 1.0.0": "no app helo in the catalog (did you mean hello?)",
    "zzz": "no app zzz in the catalog (gpuaas status and gpuaas validate list what is there)",
    "Node/gpu-1": "no_topology: Node has no services (name an instance, tenant/project/name,",
    "one/two/three/four": "bad_object_name",
}


@pytest.mark.parametrize("target", REFUSALS)
def test_what_is_not_there_is_refused(folder: Path, target: str) -> None:
    assert REFUSALS[target] in said(folder, *target.split(), "--offline")


def test_what_comes_to_nothing_says_why(folder: Path) -> None:
    path = folder / b.ALLOCATION_FILE
    path.write_text(path.read_text().replace("node: gpu-1", "node: gpu-9"))
    text = said(folder, t.ONE, "--offline")
    assert text.startswith("instance_unresolved: nothing can run for acme/research/one: ")
    assert "gpu-9" in text
    assert text.endswith("(gpuaas explain acme/research/one says more)")


def test_a_single_container_has_no_compose_file(tmp_path: Path) -> None:
    folder = checkout(tmp_path / "state", b.world())
    text = said(folder, t.ONE, "--offline", "--format", "compose")
    assert text.startswith("not_a_topology: it is a single container: ")


def test_a_remote_is_not_read(folder: Path) -> None:
    with pytest.raises(Refused, match="repo_not_local"):
        run(topology, t.ONE, "--repo", "ssh://git@forge.example/state.git", "--offline")
    assert folder.is_dir()


# --- with a control plane ------------------------------------------------------------------------


@contextmanager
def control_plane(folder: Path, kept: Path) -> Iterator[tuple[Store, Workload]]:
    """The state of one pass, and the workload that its node is asked for."""
    settings = Settings(
        repo=str(folder), state_dir=kept, environment=b.ENVIRONMENT, signatures="off"
    )
    with open_ports(settings) as ports:
        first_start(ports)
        snapshot = ports.source.snapshot(ports.source.fetch())
        state = load(snapshot, schema_set(), ports, settings)
        reconcile(state, ports, settings)
        workload = render(state.instances[t.ONE])
        assert isinstance(workload, Workload)
        yield ports.store, workload


def reports(store: Store, workload: Workload, now_ms: int, *services: ServicePhase) -> None:
    agent = Agent("gpu-1")
    store.add_join_token("hash", "gpu-1", now_ms + 1)
    assert store.redeem_join_token("hash", "gpu-1", agent.public_key, now_ms) is not None
    found = WorkloadReport(
        instance=t.ONE,
        target_hash=workload.spec_hash,
        running_hash=workload.spec_hash,
        phase=Phase.DEGRADED,
        message="index: the probe fails",
        services=services,
    )
    text = agent.make_report(workloads=(found,)).model_dump_json()
    assert store.save_report("gpu-1", text, 1, 0, now_ms)


def test_live_health_stands_beside_what_is_asked(folder: Path, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    args = (t.ONE, "--state-dir", kept, "-e", b.ENVIRONMENT)
    with control_plane(folder, kept) as (store, workload):
        before = told(folder, *args)
        assert before.code == EXIT_CHANGES
        assert "node_never_joined: node gpu-1 never joined" in before.output
        at_ms = store.last_pass()
        assert at_ms is not None
        reports(
            store,
            workload,
            at_ms.started_at_ms,
            ServicePhase(name="api", phase="ready"),
            ServicePhase(name="fill", phase="completed", exit_code=0),
            ServicePhase(name="index", phase="degraded", detail="the probe fails", restarts=2),
        )
    done = told(folder, *args)
    assert done.code == EXIT_CHANGES
    line = done.output.splitlines()[1]
    assert line == (
        "  requested: its node runs this form, 2 of 3 services ready; index: the probe fails"
    )
    assert "index: degraded: the probe fails, restarted 2 times" in done.output
    document = told(folder, *args, "--format", "json").document
    healths = {one["name"]: one["health"] for one in document["services"]}
    assert healths == {"api": "ready", "fill": "completed", "index": "degraded"}
    offline = told(folder, *args, "--offline", "--format", "json").document
    assert {one["health"] for one in offline["services"]} == {""}


def test_what_counts_is_shown_and_not_what_is_newer(folder: Path, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    with control_plane(folder, kept):
        pass
    path = folder / b.INSTANCE_FILE
    path.write_text(path.read_text().replace("host_port: 9000", "host_port: 9001"))
    args = (t.ONE, "-e", b.ENVIRONMENT, "--format", "json")
    live = told(folder, *args, "--state-dir", kept).document
    alone = told(folder, *args, "--offline").document
    ports = [one["services"][0]["endpoints"][0]["host_port"] for one in (live, alone)]
    assert ports == [9000, 9001]
    version = told(folder, "hello", "1.0.0", "-e", b.ENVIRONMENT, "--state-dir", kept)
    assert version.output.startswith("hello 1.0.0  generic_services")
    near = said(folder, "acme/research/onne", "-e", b.ENVIRONMENT, "--state-dir", kept)
    assert "did you mean acme/research/one?" in near
