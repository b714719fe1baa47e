"""A small fleet to plan for: targets, records and reports, with what does not matter filled in."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from node_agent.wire import (
    FailureReason,
    Image,
    Inventory,
    Limits,
    Phase,
    Port,
    Proof,
    Workload,
    WorkloadReport,
)
from reconciler.core.actions import Launch, Precondition
from reconciler.core.desired import Desired, Guards, Instance, Policy, Run, Target, Term
from reconciler.core.lifecycle import begin
from reconciler.core.names import ArtifactKey, Digest, InstanceKey, ObjectRef, Revision
from reconciler.core.observed import ArtifactSeen, Known, NodeSeen, Observed, Seen
from reconciler.core.records import InstanceRecord, Intent, State

REVISION = Revision("a" * 40)
NEXT_REVISION = Revision("b" * 40)
NOW_MS = 1_800_000_000_000
NODE = "node-a"
POLICY = Policy("tenant_dedicated", "project", "launchable_oci", "project_isolated")


def digest_of(version: str) -> Digest:
    return Digest.of(version.encode())


def key_of(name: str) -> InstanceKey:
    return InstanceKey(f"acme/research/{name}")


def target(
    name: str = "hello",
    version: str = "1.0.0",
    *,
    node: str = NODE,
    run: Run = "running",
    gpus: tuple[str, ...] = (),
    host_port: int | None = None,
    may_start: bool = True,
    depends_on: tuple[str, ...] = (),
    moved_from: str | None = None,
    suspend: Term | None = None,
    called: str = "",
) -> Target:
    """`called` is its name on the node, where that is another."""
    key = key_of(name)
    artifact = ArtifactKey("gpuaas/apps/platform/hello", digest_of(version))
    instance = Instance(
        key=key,
        ref=ObjectRef("AppInstance", ("acme", "research", name)),
        org_id="org-acme",
        project_id="prj-research",
        app="hello",
        version=version,
        artifact=artifact,
        node=node,
        run=run,
        policy=POLICY,
        registry_endpoint="127.0.0.1:5000",
        registry_plain_http=True,
        gpu_uuids=gpus,
        gpu_vendor="nvidia" if gpus else None,
        may_start=may_start,
        depends_on=tuple(map(key_of, depends_on)),
        moved_from=key_of(moved_from) if moved_from else None,
        suspend=suspend,
    )
    workload = Workload(
        instance=key_of(called or name),
        engine="docker",
        image=Image(
            registry="127.0.0.1:5000", repository=artifact.repository, digest=str(artifact.digest)
        ),
        ports=(Port(name="http", container=8080, host=host_port),),
        limits=Limits(gpu_uuids=gpus, gpu_vendor="nvidia" if gpus else None),
    )
    return Target(instance, workload)


def desired(*targets: Target, **rest: Any) -> Desired:
    by_key = {t.instance.key: t for t in targets}
    given = {"revision": REVISION, "nodes": frozenset({NODE}), "guards": Guards(), **rest}
    return Desired(targets=by_key, **given)


def report(
    of: Target,
    phase: Phase = Phase.READY,
    *,
    runs: Target | None = None,
    reason: FailureReason | None = None,
    retained: bool = False,
    proof: Proof | None = None,
) -> WorkloadReport:
    """The node's word: `of` was asked for last; `runs` is what runs, `of` itself unless given."""
    return WorkloadReport(
        instance=of.instance.key,
        target_hash=of.workload.spec_hash,
        running_hash=(runs or of).workload.spec_hash,
        phase=phase,
        reason=reason,
        message=reason.value if reason else "",
        retained=retained,
        proof=proof,
    )


CLEAN = Proof(checked_at_ms=NOW_MS, containers=0, networks=0, volumes=0, paths=0)


def removed(of: Target, proof: Proof | None = CLEAN) -> WorkloadReport:
    gone = report(of, Phase.REMOVED, proof=proof)
    return gone.model_copy(update={"target_hash": None, "running_hash": None})


def node(*reports: WorkloadReport, name: str = NODE) -> Seen[NodeSeen]:
    return Known(
        NodeSeen(
            name=name,
            agent_version="0.1.0",
            age_ms=0,
            connected_at_ms=NOW_MS,
            inventory=Inventory(
                engines=("docker",),
                cpu_count=8,
                memory_mib=32_000,
                disk_free_mib=100_000,
                architecture="x86_64",
                operating_system="linux",
            ),
            workloads={InstanceKey(r.instance): r for r in reports},
        )
    )


def observed(*reports: WorkloadReport, versions: tuple[str, ...] = ("1.0.0", "1.1.0")) -> Observed:
    """One node that reports, and a registry that has these versions."""
    artifacts = {
        ArtifactKey("gpuaas/apps/platform/hello", digest_of(v)): Known(ArtifactSeen(exists=True))
        for v in versions
    }
    return Observed(artifacts=artifacts, nodes={NODE: node(*reports)})


def deploying(of: Target, revision: Revision = REVISION) -> InstanceRecord:
    """The record of an instance whose first launch was just journalled."""
    action = Launch(
        of.instance.key, of.instance.node, of.workload, of.instance.version, 1, "new instance",
        Precondition(None),
    )  # fmt: skip
    return begin(action, of, None, revision, NOW_MS)[0]


def running(of: Target, *, previous: str = "") -> InstanceRecord:
    record = deploying(of)
    return replace(
        record,
        state=State.RUNNING,
        applied_version=of.instance.version,
        applied_hash=of.workload.spec_hash,
        applied_digest=of.workload.image.digest,
        applied_revision=REVISION,
        previous_version=previous,
    )


def intent(of: Target, kind: str = "launch", **rest: Any) -> Intent:
    given: dict[str, Any] = {
        "action_id": "1" * 32,
        "kind": kind,
        "instance": of.instance.key,
        "node": of.instance.node,
        "task_id": "1" * 32,
        "seq": 1,
        "correlation_id": "c" * 32,
        "target_hash": "" if kind in ("remove", "control") else of.workload.spec_hash,
        "envelope": "{}",
        "created_at_ms": NOW_MS,
        "expires_at_ms": NOW_MS + 120_000,
        **rest,
    }
    return Intent(**given)


def inventory(*records: InstanceRecord) -> dict[InstanceKey, InstanceRecord]:
    return {record.key: record for record in records}
