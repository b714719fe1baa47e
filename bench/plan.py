"""A fleet where everything runs as desired: how long until a plan says that there is nothing to do.

Rules:
- The store is filled through its port: nodes join and report, passes adopt what they report. Then
  nothing is written any more but what a pass writes.
- Cold is `gpuaas plan` as a process, from `exec` to exit, on a local Git repository. Warm is the
  running control plane: it holds the last revision, and looks again.
- The yardstick is one reading of the same files with PyYAML's C loader, in a process of its own,
  turn about with the plan, so that whatever slows this machine down slows both.
- Seconds are medians, processor time is that of all its processes; memory is the largest peak of
  any round, that of the first process. The second one holds a fourth of that.

Run: `python bench/plan.py [--instances 1000 10000] [--rounds 5] [--json FILE]`.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from node_agent.wire import Endpoint, Inventory, Phase, Report, WorkloadReport
from reconciler.core.accept import AcceptedState, to_desired
from reconciler.core.desired import Desired, Target
from reconciler.cycle import LoadMemo, load, preview, reconcile
from reconciler.ports import Ports
from reconciler.settings import Settings
from reconciler.wiring.files import schema_set
from reconciler.wiring.ports import open_ports
from renderers import render

T = TypeVar("T")
ENVIRONMENT = "bench"
APPS = 20
VERSIONS = ("1.0.0", "1.1.0")
INSTANCES_PER_PROJECT = 50
GPUS = 8
PROJECTS_PER_TENANT = 10
OFFLINE_AFTER_S = 10_000_000.0
YARDSTICK = """
import pathlib, sys, yaml
for path in sorted(pathlib.Path(sys.argv[1]).rglob("*.yaml")):
    yaml.load(path.read_bytes(), yaml.CSafeLoader)
"""
LAUNCHER = """
import os, subprocess, sys, time
began = time.perf_counter()
with open("out", "w") as out:
    child = subprocess.Popen(sys.argv[1:], stdout=out, stderr=out)
    _, status, used = os.wait4(child.pid, 0)
wall_s, code = time.perf_counter() - began, os.waitstatus_to_exitcode(status)
print(wall_s, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024, code)
"""


@dataclass(frozen=True)
class Used:
    """By one process: seconds of wall time, seconds of processor time, peak MiB."""

    wall_s: float
    cpu_s: float
    mib: float


@dataclass(frozen=True)
class Result:
    """Seconds, and MiB. `reread_s` is a load without a memo, `changed_s` one with it after a
    commit that changed one file.
    """

    instances: int
    files: int
    plan: Used
    yardstick: Used
    preview_s: float
    pass_s: float
    reread_s: float
    changed_s: float

    @property
    def ratio(self) -> float:
        """Of processor time, which depends least on what else this machine does."""
        return self.plan.cpu_s / self.yardstick.cpu_s


# --- the state repo ------------------------------------------------------------------------------


def manifests(instances: int) -> Iterator[tuple[str, str]]:
    """(path, text): an app for every fifth instance of a project, a project and a node for 50."""
    registry = "registry: {endpoint: registry.bench.example:5000}"
    yield _manifest(f"environments/{ENVIRONMENT}.yaml", f"domain: bench.example\n  {registry}")
    yield from _catalog()
    for first in range(0, instances, INSTANCES_PER_PROJECT):
        count = min(INSTANCES_PER_PROJECT, instances - first)
        yield from _project(first // INSTANCES_PER_PROJECT, count)


def _manifest(path: str, spec: str, name: str = "") -> tuple[str, str]:
    kinds = {"environments": "Environment", "nodes": "Node", "versions": "AppVersion"}
    kinds |= {"promotions": "Promotion", "entitlements": "Entitlement", "instances": "AppInstance"}
    folder, _, file = path.rpartition("/")
    stem = file.removesuffix(".yaml")
    kind = {"app": "App", "tenant": "Tenant", "project": "Project", "lease": "Allocation"}.get(stem)
    kind = kind or ("Artifact" if "/artifacts/" in path else kinds[folder.rpartition("/")[2]])
    head = f'apiVersion: gpuaas.dev/v1\nkind: {kind}\nmetadata:\n  name: "{name or stem}"\n'
    return path, f"{head}  labels:\n    team: platform\nspec:\n  {spec}\n"


def _image(app: str, version: str) -> tuple[str, str]:
    digest = "sha256:" + hashlib.sha256(f"{app}/{version}".encode()).hexdigest()
    return f"gpuaas/apps/catalog/{app}", digest


def _catalog() -> Iterator[tuple[str, str]]:
    below = "tenants/platform/projects/catalog"
    yield _manifest("tenants/platform/tenant.yaml", "org_id: o-0\n  display_name: P", "platform")
    yield _manifest(f"{below}/project.yaml", "project_id: p-0\n  display_name: C", "catalog")
    for app in (f"app-{number:02}" for number in range(APPS)):
        shown = f"slug: {app}\n  display_name: {app}"
        yield _manifest(f"catalog/{app}/app.yaml", f"{shown}\n  owner: platform", app)
        for version in VERSIONS:
            repository, digest = _image(app, version)
            number = "{type: number}"
            yield _manifest(
                f"catalog/{app}/versions/{version}.yaml",
                f'{shown}\n  version: "{version}"\n  artifact_kind: launchable\n'
                f"  artifact_ref: {repository}@{digest}\n"
                "  runtime_profile:\n    kind: launchable_oci\n    command: [serve]\n"
                "    ports: [{name: http, container: 8080}]\n"
                "    health: {readiness: {http: {port: 8080, path: /ready}}}\n"
                "  launch_parameters:\n    type: object\n    additionalProperties: false\n"
                f"    properties: {{gpu_count: {{type: integer}}, cpu_cores: {number}, "
                f"memory_gib: {number}}}",
            )
            reason = "state: active\n  reason: tested"
            yield _manifest(f"catalog/{app}/promotions/{version}.yaml", reason)
            yield _manifest(
                f"{below}/artifacts/{app}/{version}/image.yaml",
                f"kind: oci\n  repository: {repository}\n  digest: {digest}\n"
                "  visibility: platform\n  state: promoted",
            )


def _project(number: int, instances: int) -> Iterator[tuple[str, str]]:
    tenant, project, node = (
        f"tenant-{number // PROJECTS_PER_TENANT:03}",
        f"team-{number:04}",
        f"gpu-{number:04}",
    )
    below = f"tenants/{tenant}/projects/{project}"
    if number % PROJECTS_PER_TENANT == 0:
        spec = f"org_id: org-{tenant}\n  display_name: {tenant}"
        yield _manifest(f"tenants/{tenant}/tenant.yaml", spec, tenant)
    spec = f"project_id: prj-{project}\n  display_name: {project}"
    yield _manifest(f"{below}/project.yaml", spec, project)
    uuids = [f"GPU-{number:04}-{index}" for index in range(GPUS)]
    gpus = "".join(
        f"\n    - {{uuid: {uuid}, vendor: nvidia, model: H200, memory_mib: 143771}}"
        for uuid in uuids
    )
    yield _manifest(
        f"platform/nodes/{node}.yaml",
        "pool: main\n  capacity_shape: baremetal\n  accelerator_family: nvidia-h200\n"
        f"  cpu_cores: 256\n  memory_mib: 2097152\n  engines: [docker]\n  accelerators:{gpus}",
    )
    yield _manifest(
        f"{below}/allocations/lease.yaml",
        f"node: {node}\n  state: active\n  gpus: [{', '.join(uuids)}]\n"
        "  cpu_cores: 128\n  memory_mib: 1048576",
    )
    apps = [f"app-{(number * 3 + index) % APPS:02}" for index in range(4)]
    for app in apps:
        yield _manifest(f"{below}/entitlements/{app}.yaml", "enabled: true")
    for index in range(instances):
        yield _manifest(
            f"{below}/instances/serve-{index:03}.yaml",
            f'app: {apps[index % 4]}\n  version: "{VERSIONS[index % 2]}"\n'
            "  placement_intent:\n    allocation: lease\n"
            f"  parameters:\n    gpu_count: {int(index < GPUS)}\n"
            "    cpu_cores: 2\n    memory_gib: 4\n  desired: running",
        )


# --- the stage -----------------------------------------------------------------------------------


def git(repo: Path, *args: str) -> None:
    who = ("-c", "user.name=bench", "-c", "user.email=bench@bench.example")
    subprocess.run(["git", "-C", str(repo), *who, *args], check=True)


def commit(repo: Path, message: str) -> None:
    git(repo, "add", "--all")
    git(repo, "commit", "--quiet", "--message", message)


def make_repo(repo: Path, instances: int) -> int:
    """Writes and commits the manifests; returns how many files they are."""
    files = dict(manifests(instances))
    for path, text in files.items():
        (repo / path).parent.mkdir(parents=True, exist_ok=True)
        (repo / path).write_text(text)
    git(repo.parent, "init", "--quiet", "--initial-branch", "main", str(repo))
    commit(repo, "a fleet")
    git(repo, "gc", "--quiet")
    return len(files)


def let_run(ports: Ports, settings: Settings, state: AcceptedState) -> None:
    """Nodes join and say that all of it runs; passes take it over until nothing is left to do."""
    desired = to_desired(state, render)
    for seq in range(1, 4):
        now_ms = ports.clock.now_ms()
        for node in sorted(desired.nodes):
            if seq == 1:
                ports.store.add_join_token(node, node, now_ms + 1_000_000)
                key = hashlib.sha256(node.encode()).hexdigest()
                ports.store.redeem_join_token(node, node, key, now_ms)
            word = _report(node, desired, seq, now_ms)
            ports.store.save_report(node, word.model_dump_json(), seq, 0, now_ms)
        done = reconcile(state, ports, settings)
    assert done.plan.empty, done.plan.actions[:3]
    assert not state.problems, state.problems[:3]


def _report(node: str, desired: Desired, seq: int, now_ms: int) -> Report:
    there = [target for target in desired.targets.values() if target.instance.node == node]
    return Report(
        node=node,
        agent_version="0.0.0",
        sent_at_ms=now_ms,
        report_seq=seq,
        last_seq=0,
        connected_at_ms=now_ms,
        complete=True,
        inventory=Inventory(
            engines=("docker",),
            cpu_count=256,
            memory_mib=2_097_152,
            disk_free_mib=1_000_000,
            architecture="x86_64",
            operating_system="linux",
        ),
        workloads=tuple(_ready(target, 30_000 + port) for port, target in enumerate(there)),
    )


def _ready(target: Target, port: int) -> WorkloadReport:
    return WorkloadReport(
        instance=target.instance.key,
        target_hash=target.workload.spec_hash,
        running_hash=target.workload.spec_hash,
        phase=Phase.READY,
        image_digest=target.workload.image.digest,
        endpoints=(Endpoint(name="http", container=8080, host_ip="127.0.0.1", host_port=port),),
    )


# --- measuring -----------------------------------------------------------------------------------


def timed(took: list[float], work: Callable[..., T], *given: Any) -> T:
    gc.collect()
    began = time.perf_counter()
    found = work(*given)
    took.append(time.perf_counter() - began)
    return found


def process(command: Sequence[str], folder: Path) -> Used:
    """Runs one process, which has to succeed. A small one starts it, whose memory is no part."""
    environment = {**os.environ, "GPUAAS_NODE_OFFLINE_AFTER_S": str(OFFLINE_AFTER_S)}
    launcher = [sys.executable, "-c", LAUNCHER, *command]
    run = subprocess.run(launcher, cwd=folder, env=environment, capture_output=True, check=True)
    wall_s, cpu_s, mib, code = map(float, run.stdout.split())
    if code:
        raise SystemExit(f"{command[0]}: {code:g}\n{(folder / 'out').read_text()}")
    return Used(wall_s, cpu_s, mib)


def warm(settings: Settings, repo: Path, rounds: int) -> dict[str, float]:
    """Medians of what the running control plane does, in seconds."""
    schemas, memo = schema_set(), LoadMemo()
    took: dict[str, list[float]] = {key: [] for key in ("preview", "pass", "reread", "changed")}
    file = next(iter(sorted(repo.glob("tenants/*/projects/*/instances/*.yaml"))))
    with open_ports(settings) as ports:
        state = load(ports.source.snapshot(ports.source.fetch()), schemas, ports, settings, memo)
        let_run(ports, settings, state)
        for number in range(rounds):
            plan, _ = timed(took["preview"], preview, state, ports, settings)
            done = timed(took["pass"], reconcile, state, ports, settings)
            assert plan.empty
            assert done.plan.empty
            file.write_text(re.sub(r"team: \S+", f"team: round-{number}", file.read_text()))
            commit(repo, "a label")
            snapshot = ports.source.snapshot(ports.source.fetch())
            timed(took["reread"], load, snapshot, schemas, ports, settings)
            state = timed(took["changed"], load, snapshot, schemas, ports, settings, memo)
            assert not state.problems
            reconcile(state, ports, settings)
    return {key: statistics.median(seconds) for key, seconds in took.items()}


def measure(instances: int, rounds: int, folder: Path) -> Result:
    repo = folder / "repo"
    settings = Settings(
        repo=str(repo),
        state_dir=folder / "state",
        environment=ENVIRONMENT,
        node_offline_after_s=OFFLINE_AFTER_S,
    )
    repo.mkdir()
    files = make_repo(repo, instances)
    inside = warm(settings, repo, rounds)
    script = str(Path(sys.executable).with_name("gpuaas"))
    state = str(settings.state_dir)
    plan = [script, "plan", "--repo", str(repo), "--state-dir", state, "-e", ENVIRONMENT]
    plans, readings = [], []
    for _ in range(rounds):
        plans.append(process(plan, folder))
        readings.append(process([sys.executable, "-c", YARDSTICK, str(repo)], folder))
    return Result(
        instances=instances,
        files=files,
        plan=_median(plans),
        yardstick=_median(readings),
        preview_s=inside["preview"],
        pass_s=inside["pass"],
        reread_s=inside["reread"],
        changed_s=inside["changed"],
    )


def _median(rounds: Sequence[Used]) -> Used:
    return Used(
        wall_s=statistics.median(used.wall_s for used in rounds),
        cpu_s=statistics.median(used.cpu_s for used in rounds),
        mib=max(used.mib for used in rounds),
    )


def lines(found: Result) -> Iterator[str]:
    yield f"{found.instances} instances, {found.files} files, all as desired"
    yield f"  gpuaas plan, whole process      {_shown(found.plan)}"
    yield f"  the same files, PyYAML in C     {_shown(found.yardstick)}   ratio {found.ratio:.2f}"
    yield f"  running: plan again             {found.preview_s:8.3f} s"
    yield f"  running: pass, nothing to do    {found.pass_s:8.3f} s"
    yield f"  one file changed: read, accept  {found.changed_s:8.3f} s"
    yield f"  the same without a memo         {found.reread_s:8.3f} s"


def _shown(used: Used) -> str:
    return f"{used.wall_s:8.3f} s  {used.cpu_s:7.3f} s of processor  {used.mib:5.0f} MiB"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--instances", type=int, nargs="+", default=[1_000, 10_000])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dir", type=Path, help="where to work; removed at the end")
    parser.add_argument("--json", type=Path, help="also write the figures there")
    given = parser.parse_args()
    results = []
    for instances in given.instances:
        with tempfile.TemporaryDirectory(dir=given.dir) as folder:
            results.append(measure(instances, given.rounds, Path(folder)))
        print("\n".join(lines(results[-1])), flush=True)
    if given.json:
        found = [{**asdict(result), "ratio": result.ratio} for result in results]
        given.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
