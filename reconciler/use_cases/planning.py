"""Plans for people: of a revision, against live state or a snapshot, compared with another one.

Rule: nothing here acts. What a plan is made from comes through `Look`, live or offline, so that
both make the same plan of the same state.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

from node_agent.wire import Workload
from reconciler.core.accept import AcceptedState, parse_accepted
from reconciler.core.actions import Replace, action_id, blob_action_id, key_action_id
from reconciler.core.authority.facts import Walked
from reconciler.core.desired import Desired
from reconciler.core.names import ActionId, ArtifactKey, InstanceKey, Revision
from reconciler.core.observed import ArtifactSeen, NodeSeen, Observed, Seen
from reconciler.core.plan import Plan, moves
from reconciler.core.problems import Problem
from reconciler.core.records import Accepted, InstanceRecord, Intent, StepBack
from reconciler.core.resolve import resolve
from reconciler.core.schema import SchemaSet
from reconciler.core.source import Snapshot
from reconciler.cycle import LoadMemo, load_from, plan_of, wanted
from reconciler.errors import Refused
from reconciler.observe import (
    artifacts_to_launch,
    look_for,
    look_up,
    secrets_to_launch,
    see_nodes,
    with_keys,
    with_trust,
)
from reconciler.ports import Ports, Registry, SecretStore, Store
from reconciler.settings import Settings
from reconciler.views.plan_services import FieldChange
from reconciler.views.plan_words import Comparison, Shown, workload_changes
from renderers import render

Artifacts = Mapping[ArtifactKey, Seen[ArtifactSeen]]
Secrets = Mapping[str, Seen[bool]]
"""By path, whether there is one."""
Walk = Callable[[Accepted], Walked | None]


class Look(Protocol):
    """Everything a plan is made from besides the revision. `nodes` are under the nodes' names."""

    @property
    def accepted(self) -> Accepted: ...

    @property
    def records(self) -> Mapping[InstanceKey, InstanceRecord]: ...

    @property
    def intents(self) -> tuple[Intent, ...]: ...

    @property
    def nodes(self) -> Mapping[str, Seen[NodeSeen]]: ...

    @property
    def now_ms(self) -> int: ...

    @property
    def step_backs(self) -> Mapping[str, StepBack]:
        """Canaries that went back, by their Promotion."""
        ...

    @property
    def walked(self) -> Walked | None:
        """What the commits up to one revision come to; None where nobody looked."""
        ...

    def artifacts_for(self, desired: Desired, seen: Observed) -> Artifacts: ...

    def secrets_for(self, desired: Desired, seen: Observed) -> Secrets: ...

    def with_keys(self, desired: Desired, seen: Observed) -> Observed:
        """The same with the signing keys that something is wanted of."""
        ...

    def with_trust(self, desired: Desired, seen: Observed) -> Observed:
        """The same with what is known of the signatures that are asked for."""
        ...


@dataclass(frozen=True)
class LiveLook:
    """The store as it is now; registry and secret store are asked when a revision needs it."""

    registry: Registry
    custody: SecretStore
    store: Store
    accepted: Accepted
    records: Mapping[InstanceKey, InstanceRecord]
    intents: tuple[Intent, ...]
    nodes: Mapping[str, Seen[NodeSeen]]
    now_ms: int
    trust_recheck_s: float
    walked: Walked | None = None
    step_backs: Mapping[str, StepBack] = field(default_factory=dict)

    def artifacts_for(self, desired: Desired, seen: Observed) -> Artifacts:
        return look_up(self.registry, artifacts_to_launch(desired, seen))

    def secrets_for(self, desired: Desired, seen: Observed) -> Secrets:
        return look_for(self.custody, secrets_to_launch(desired, seen))

    def with_keys(self, desired: Desired, seen: Observed) -> Observed:
        return with_keys(self.custody, desired, seen)

    def with_trust(self, desired: Desired, seen: Observed) -> Observed:
        asking, recheck_s = (self.store, self.registry), self.trust_recheck_s
        return with_trust(*asking, desired, seen, self.records, self.now_ms, recheck_s)


def look_now(ports: Ports, settings: Settings, walk: Walk | None = None) -> LiveLook:
    """Raises only when our own store does not answer, or as `walk` does, which says what the
    commits after those accepted come to.
    """
    store, now_ms = ports.store, ports.clock.now_ms()
    accepted = store.accepted()
    return LiveLook(
        registry=ports.registry,
        custody=ports.secrets,
        store=store,
        accepted=accepted,
        records=store.records(),
        intents=tuple(store.open_intents(now_ms)),
        nodes=see_nodes(ports, settings, now_ms).nodes,
        now_ms=now_ms,
        trust_recheck_s=settings.trust_recheck_s,
        walked=walk(accepted) if walk is not None else None,
        step_backs=store.step_backs(),
    )


@dataclass(frozen=True)
class Planned:
    """The plan of one revision, and what it was made from."""

    state: AcceptedState
    observed: Observed
    plan: Plan
    desired: Desired


def plan_revision(
    look: Look,
    source: Snapshot,
    schemas: SchemaSet,
    settings: Settings,
    known: Observed | None = None,
    memo: LoadMemo | None = None,
) -> Planned:
    """The plan of a revision; `known` was seen already, `memo` makes the next one cheap.

    Refused for an environment that is not there: a plan for it would say that there is nothing to
    do. So it is for a revision whose commits can't be trusted: nothing of it counts.
    """
    records, walked = look.records, look.walked
    if walked is not None and walked.head != source.revision:
        walked = None
    if walked is not None and walked.rejection is not None:
        raise Refused(
            walked.rejection.code,
            f"the revision {walked.head[:12]} is rejected: {walked.rejection.message}",
            hint=walked.rejection.hint,
        )
    state = load_from(
        source, schemas, look.accepted, records, settings, memo, walked, storing=False
    )
    for problem in state.problems:
        if problem.code == "unknown_environment":
            raise Refused(problem.code, problem.message, where=problem.where, hint=problem.hint)
    desired, seen = wanted(state, Observed(nodes=look.nodes), records, look.step_backs)
    known = known or Observed()
    seen = replace(
        seen,
        artifacts={**look.artifacts_for(desired, seen), **known.artifacts},
        secrets={**look.secrets_for(desired, seen), **known.secrets},
    )
    seen = look.with_keys(desired, look.with_trust(desired, seen))
    seen = replace(seen, trust={**seen.trust, **known.trust})
    plan = plan_of(desired, seen, records, look.intents, look.now_ms)
    return Planned(state, seen, plan, desired)


def shown(
    look: Look,
    source: Snapshot,
    base: Snapshot | None,
    schemas: SchemaSet,
    settings: Settings,
    memo: LoadMemo | None = None,
) -> Shown:
    """The plan of `source` with all that is told about it, compared with the one of `base`."""
    memo = memo or LoadMemo()
    planned = plan_revision(look, source, schemas, settings, memo=memo)
    compared = _compared(look, planned, base, schemas, settings, memo) if base else None
    return Shown(
        plan=planned.plan,
        records=look.records,
        problems=planned.state.problems,
        now_ms=look.now_ms,
        environment=settings.environment,
        changes=_changes(look, planned, settings),
        comparison=compared,
    )


def _compared(
    look: Look,
    planned: Planned,
    base: Snapshot,
    schemas: SchemaSet,
    settings: Settings,
    memo: LoadMemo,
) -> Comparison:
    """What is in one plan and not in the other, both made of the same observation."""
    before = plan_revision(look, base, schemas, settings, planned.observed, memo).plan
    known = {action_id(a): a.held.code if a.held else "" for a in before.actions}
    wanted = {action_id(a): a.held.code if a.held else "" for a in planned.plan.actions}
    caused = frozenset(key for key, held in wanted.items() if known.get(key) != held)
    gone = tuple(a for a in before.actions if action_id(a) not in wanted)
    others = _beside_instances(planned.plan) - _beside_instances(before)
    return Comparison(Revision(base.revision), caused, gone, others)


def _beside_instances(plan: Plan) -> frozenset[str]:
    """Ids of what it does about keys and blobs."""
    return frozenset((*map(key_action_id, plan.keys), *map(blob_action_id, plan.blobs)))


def _changes(
    look: Look, planned: Planned, settings: Settings
) -> Mapping[ActionId, tuple[FieldChange, ...]]:
    """Field by field what each replacement changes, where what runs can be rendered again.

    It can be while its last accepted form still is what runs, which its hash proves.
    """
    replaced = [a for a in planned.plan.actions if isinstance(a, Replace)]
    if not replaced:
        return {}
    former = _former(look, settings, frozenset(action.instance for action in replaced))
    found = {}
    for action in replaced:
        before, record = former.get(action.instance), look.records.get(action.instance)
        if before and record and before.spec_hash == record.applied_hash:
            found[action_id(action)] = workload_changes(before, action.workload)
    return found


def _former(
    look: Look, settings: Settings, keys: frozenset[InstanceKey]
) -> Mapping[InstanceKey, Workload]:
    """The workloads of what was accepted last, as their nodes know them."""
    parsed = (parse_accepted(one) for one in look.accepted.objects.values())
    objects = {one.ref: one for one in parsed if not isinstance(one, Problem)}
    holding = moves.holding(objects.values(), look.records)
    revision = look.accepted.revision or Revision("")
    found = resolve(objects, settings.environment, revision, holding=holding)
    names = moves.runtime_names(found.instances, look.records, look.nodes)
    rendered = (
        (key, render(replace(instance, key=names.get(key, key))))
        for key, instance in found.instances.items()
        if key in keys
    )
    return {key: one for key, one in rendered if isinstance(one, Workload)}
