"""A fleet at rest: everything the repo asks for runs, and the pure half of a pass looks at commits.

`Pipeline` are the public functions of that half, so that a test may put a wrong one in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from node_agent.wire import Inventory, Phase, WorkloadReport
from reconciler.adapters.schema_files import load_schemas
from reconciler.core.accept import AcceptedState, AcceptMemo, accept, parse_accepted
from reconciler.core.desired import Candidate, Desired, Target
from reconciler.core.names import InstanceKey
from reconciler.core.observed import ArtifactSeen, Known, NodeSeen, Observed
from reconciler.core.parse import ParseLimits
from reconciler.core.plan import Plan, moves
from reconciler.core.records import Accepted, InstanceRecord
from reconciler.core.schema import SchemaSet
from reconciler.core.settle import settle_all
from reconciler.core.source import Snapshot
from reconciler.core.validate import ValidateMemo, validate
from reconciler.cycle import plan_from
from tests.fakes.state_source import Entry, FakeRemote
from tests.faults import repo

SCHEMAS = SchemaSet.build(load_schemas())
LIMITS = ParseLimits()
NOW_MS = 1_800_000_000_000
INVENTORY = Inventory(
    engines=("docker",),
    cpu_count=192,
    memory_mib=2_097_152,
    disk_free_mib=1_000_000,
    architecture="x86_64",
    operating_system="linux",
)

Tree = dict[str, Entry]
Records = Mapping[InstanceKey, InstanceRecord]


def snapshot(tree: Mapping[str, Entry]) -> Snapshot:
    """The tree as Git would give it."""
    remote = FakeRemote(file_bytes_max=LIMITS.file_bytes_max)
    return remote.commits[remote.push(tree)].snapshot


@dataclass
class Memory:
    """What a control plane that goes on running keeps between passes, to be quick."""

    validate: ValidateMemo = field(default_factory=ValidateMemo)
    accept: AcceptMemo = field(default_factory=AcceptMemo)


@dataclass(frozen=True)
class Pipeline:
    """From bytes to a plan, step by step. It remembers, unless `memory` is None."""

    validate: Callable[..., Candidate] = validate
    accept: Callable[..., AcceptedState] = accept
    plan_from: Callable[..., tuple[Plan, Desired]] = plan_from
    observe: Callable[[Observed], Observed] = lambda observed: observed
    memory: Memory | None = field(default_factory=Memory)

    def read(self, tree: Mapping[str, Entry]) -> Candidate:
        memo = self.memory.validate if self.memory else None
        return self.validate(snapshot(tree), SCHEMAS, LIMITS, memo)

    def decide(
        self, candidate: Candidate, last: Accepted, records: Records, observed: Observed
    ) -> Decision:
        """What a pass over this revision would do and remember."""
        seen = self.observe(observed)
        holding = moves.holding(candidate.objects.values(), records)
        memo = self.memory.accept if self.memory else None
        state = self.accept(candidate, last, parse_accepted, repo.ENVIRONMENT, holding, memo)
        plan, desired = self.plan_from(state, seen, records, (), NOW_MS)
        settled = settle_all(desired, seen, records, NOW_MS)
        return Decision(state, desired, plan, settled.records)


@dataclass(frozen=True)
class Decision:
    state: AcceptedState
    desired: Desired
    plan: Plan
    records: Records

    @property
    def accepted(self) -> Accepted:
        return self.state.accepted


@dataclass
class Fleet:
    """What the repo asks for, accepted, running and remembered."""

    pipeline: Pipeline = field(default_factory=Pipeline)
    tree: Tree = field(default_factory=lambda: {**repo.files()})

    @cached_property
    def candidate(self) -> Candidate:
        return self.pipeline.read(self.tree)

    @cached_property
    def first(self) -> Decision:
        """The first pass on what runs already."""
        nothing = Observed(nodes={name: node_seen(name) for name in repo.NODES})
        there = self.pipeline.decide(self.candidate, Accepted(), {}, nothing).desired
        return self.pipeline.decide(self.candidate, Accepted(), {}, running(there))

    @cached_property
    def observed(self) -> Observed:
        return running(self.first.desired)

    def commit(self, tree: Mapping[str, Entry], **other: Any) -> Decision:
        """A pass over `tree` on top of the fleet at rest."""
        given = {"last": self.first.accepted, "records": self.first.records, **other}
        given.setdefault("observed", self.observed)
        return self.pipeline.decide(self.pipeline.read(tree), **given)

    def revert(self, last: Accepted) -> Decision:
        """A pass over the repo as it was, after something else was accepted."""
        return self.pipeline.decide(self.candidate, last, self.first.records, self.observed)


def running(desired: Desired) -> Observed:
    """Every node reports just what is desired of it, and the registry has every image."""
    by_node: dict[str, list[WorkloadReport]] = {name: [] for name in repo.NODES}
    for target in desired.targets.values():
        by_node[target.instance.node].append(_report(target))
    images = {
        t.instance.artifact: Known(ArtifactSeen(exists=True)) for t in desired.targets.values()
    }
    return Observed(images, {name: node_seen(name, *found) for name, found in by_node.items()})


def node_seen(name: str, *reports: WorkloadReport) -> Known[NodeSeen]:
    workloads = {InstanceKey(report.instance): report for report in reports}
    return Known(NodeSeen(name, "0.1.0", 0, NOW_MS, INVENTORY, workloads))


def _report(target: Target) -> WorkloadReport:
    workload = target.workload
    stopped = target.instance.run == "stopped"
    return WorkloadReport(
        instance=target.instance.key,
        target_hash=workload.spec_hash,
        running_hash=workload.spec_hash,
        phase=Phase.STOPPED if stopped else Phase.READY,
        image_digest=workload.image.digest,
    )
