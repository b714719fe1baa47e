"""A node agent without a node: takes signed tasks from a store and reports what came of them.

Every task goes through the real envelope check. What happens to a workload is up to the test.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from node_agent.envelope import unseal
from node_agent.status import origin_of
from node_agent.wire import (
    TASK_TYPE,
    BlobSeen,
    ConfigSeen,
    ControlTask,
    FailureReason,
    Inventory,
    LaunchTask,
    Phase,
    Proof,
    PullBlobTask,
    Report,
    ServicePhase,
    TaskAck,
    VerifierKey,
    Workload,
    WorkloadReport,
    parse_task,
)
from reconciler.ports import Store

INVENTORY = Inventory(
    engines=("docker",),
    cpu_count=8,
    memory_mib=32_000,
    disk_free_mib=100_000,
    architecture="x86_64",
    operating_system="linux",
)


@dataclass
class FakeAgent:
    """`broken` are image digests that never get ready, `not_there` blobs that are not to be had;
    `missing` are services that never come up.
    """

    node: str
    store: Store
    verifiers: tuple[VerifierKey, ...]
    broken: set[str] = field(default_factory=set)
    reports: dict[str, WorkloadReport] = field(default_factory=dict)
    launches: list[str] = field(default_factory=list)
    seq: int = 0
    last_task_seq: int = 0
    config: ConfigSeen | None = None
    blobs: dict[str, BlobSeen] = field(default_factory=dict)
    not_there: set[str] = field(default_factory=set)
    pulled: list[str] = field(default_factory=list)
    missing: set[str] = field(default_factory=set)
    kinds: list[str] = field(default_factory=list)

    def join(self, now_ms: int) -> None:
        self.store.add_join_token("secret-hash-" + self.node, self.node, now_ms + 1000)
        self.store.redeem_join_token("secret-hash-" + self.node, self.node, "a" * 64, now_ms)

    def work(self, now_ms: int) -> int:
        """Takes what is queued, carries it out, reports; returns how many tasks there were."""
        tasks = self.store.tasks_for(self.node, now_ms)
        acks = tuple(self._take(intent.envelope, now_ms) for intent in tasks)
        self.report(now_ms)
        self.store.acknowledge(self.node, acks)
        return len(tasks)

    def report(self, now_ms: int, complete: bool = True) -> None:
        self.seq += 1
        report = Report(
            node=self.node,
            agent_version="0.1.0",
            sent_at_ms=now_ms,
            report_seq=self.seq,
            last_seq=self.last_task_seq,
            connected_at_ms=now_ms,
            complete=complete,
            inventory=INVENTORY,
            workloads=tuple(w for _, w in sorted(self.reports.items())),
            config=self.config,
            blobs=tuple(blob for _, blob in sorted(self.blobs.items())),
        )
        self.store.save_report(
            self.node, report.canonical().decode(), self.seq, self.last_task_seq, now_ms
        )

    def _take(self, envelope: str, now_ms: int) -> TaskAck:
        payload, _ = unseal(envelope.encode(), TASK_TYPE, self.verifiers)
        task = parse_task(payload)
        assert task.node == self.node
        assert task.seq > self.last_task_seq
        self.last_task_seq = task.seq
        self.kinds.append(task.kind)
        if isinstance(task, LaunchTask):
            self.reports[task.instance] = self._launched(task.workload)
        elif isinstance(task, ControlTask):
            phase = Phase.READY if task.run else Phase.STOPPED
            now = self.reports[task.instance]
            self.reports[task.instance] = now.model_copy(update={"phase": phase})
        elif isinstance(task, PullBlobTask):
            self._pull(task.digest)
        else:
            proof = Proof(checked_at_ms=now_ms, containers=0, networks=0, volumes=0, paths=0)
            self.reports[task.instance] = WorkloadReport(
                instance=task.instance,
                target_hash=None,
                running_hash=None,
                phase=Phase.REMOVED,
                proof=proof,
            )
        return TaskAck(task_id=task.task_id, accepted=True)

    def _services(self, workload: Workload) -> tuple[ServicePhase, ...]:
        return tuple(
            ServicePhase(
                name=one.name,
                phase="failed" if one.name in self.missing else "ready",
                vital=one.vital,
                image_digest=one.image.digest,
            )
            for one in (workload.topology.services if workload.topology is not None else ())
        )

    def _pull(self, digest: str) -> None:
        self.pulled.append(digest)
        seen = BlobSeen(digest=digest, state="ready", bytes_done=7, size_bytes=7)
        if digest in self.not_there:
            seen = BlobSeen(digest=digest, state="failed", error="no_such_blob: not there")
        self.blobs[digest] = seen

    def _launched(self, workload: Workload) -> WorkloadReport:
        self.launches.append(workload.image.digest)
        before = self.reports.get(workload.instance)
        ready = WorkloadReport(
            instance=workload.instance,
            target_hash=workload.spec_hash,
            running_hash=workload.spec_hash,
            phase=Phase.READY,
            image_digest=workload.image.digest,
            origin=origin_of(workload),
            services=self._services(workload),
        )
        if self.missing & {one.name for one in ready.services}:
            ready = ready.model_copy(update={"phase": Phase.DEGRADED})
        if workload.image.digest not in self.broken:
            return ready
        kept = before.running_hash if before else None
        return ready.model_copy(
            update={
                "running_hash": kept,
                "phase": Phase.FAILED,
                "reason": FailureReason.NOT_READY_IN_TIME,
                "message": "not ready in 30 s",
                "retained": kept is not None,
            }
        )
