"""A canary that fails goes back by itself: when that is, which instances go where, what is told.

Rules:
- Git says what is wanted, and stays as it is: what is accepted, and what is wrong with it, does not
  depend on what failed. Which version runs in the place of the one that went back is decided here,
  after acceptance, and undone by nothing but another content of the Promotion.
- An instance goes back to the version that it ran before, as its manifest comes to with that
  version. Where there is none, or it would not do, what runs goes on and nothing is started.
- What a node is short of says nothing of a version (`NOT_THE_VERSION`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace

from node_agent.wire import FailureReason
from reconciler.core.accept import AcceptedState
from reconciler.core.audit import DONE, SYSTEM
from reconciler.core.checks.capacity import Holding
from reconciler.core.desired import Instance, StateObject, Stepped
from reconciler.core.kinds.app_instance import AppInstanceSpec
from reconciler.core.kinds.promotion import PromotionSpec
from reconciler.core.names import (
    InstanceKey,
    ObjectRef,
    content_hash,
    instance_key,
    instance_of,
    member_name,
)
from reconciler.core.plan import moves
from reconciler.core.records import AuditEntry, Event, InstanceRecord, State, StepBack
from reconciler.core.resolve import resolve

EVENT = "apps.version.stepped_back"
NOT_THE_VERSION = frozenset(
    reason.value
    for reason in (
        FailureReason.IMAGE_PULL_FAILED,
        FailureReason.PORT_IN_USE,
        FailureReason.GPU_UNAVAILABLE,
        FailureReason.SECRET_UNAVAILABLE,
        FailureReason.BLOB_UNAVAILABLE,
        FailureReason.DISK_FULL,
        FailureReason.ALTERED,
        FailureReason.ENGINE_UNAVAILABLE,
        FailureReason.TEARDOWN_INCOMPLETE,
    )
)
"""Failures that any version would have had there and then."""

Records = Mapping[InstanceKey, InstanceRecord]
Version = tuple[str, ...]
"""(app, version), the path of its Promotion."""
Back = Mapping[InstanceKey, str]
"""By instance (a further member counts as its own), the version it goes back to, if any."""


@dataclass
class StepMemo:
    """Held by whoever makes pass after pass; spares resolving again what went back already."""

    made: tuple[AcceptedState, object, AcceptedState] | None = None


@dataclass(frozen=True)
class Decided:
    """What a pass comes to about canaries: those that go back now, and those that no more do."""

    new: tuple[StepBack, ...] = ()
    over: tuple[str, ...] = ()
    events: tuple[Event, ...] = ()
    audit: tuple[AuditEntry, ...] = ()


NOTHING_DECIDED = Decided()


def content_of(promotion: StateObject) -> str:
    """Of its spec: a Promotion with another one is tried anew."""
    return content_hash("promotion", promotion.document.get("spec"))


def in_force(state: AcceptedState, known: Mapping[str, StepBack]) -> dict[Version, StepBack]:
    """Those of the Promotions that still have the content that failed."""
    found = ((canary, known.get(str(canary.ref))) for canary in state.canaries)
    return {
        canary.ref.path: back
        for canary, back in found
        if back is not None and back.content == content_of(canary)
    }


# --- when ----------------------------------------------------------------------------------------


def due(
    state: AcceptedState, records: Records, known: Mapping[str, StepBack], now_ms: int
) -> tuple[StepBack, ...]:
    """The canaries of which more failed than may, apart from those that went back already."""
    holds = in_force(state, known)
    left = {one.ref.path: one for one in state.canaries if one.ref.path not in holds}
    if not left:
        return ()
    failed: dict[Version, set[InstanceKey]] = {}
    for key, record in records.items():
        version = (record.app, record.target_version)
        if version in left and has_failed(record) and _asks_for(state.instances.get(key), version):
            failed.setdefault(version, set()).add(instance_of(key))
    return tuple(
        _step_back(left[version], sorted(keys), state, now_ms)
        for version, keys in sorted(failed.items())
        if len(keys) > _failed_max(left[version])
    )


def has_failed(record: InstanceRecord) -> bool:
    """Whether its target was given up: it is failed, or its node put back what ran before."""
    fell_back = record.state is State.RUNNING and record.reason != ""
    given_up = record.state is State.FAILED or fell_back
    return given_up and record.reason not in NOT_THE_VERSION


def _asks_for(instance: Instance | None, version: Version) -> bool:
    if instance is None or instance.run == "decommissioned":
        return False
    return (instance.app, instance.version) == version


def _failed_max(canary: StateObject) -> int:
    spec = canary.manifest.spec
    scope = spec.canary if isinstance(spec, PromotionSpec) else None
    limit = scope.step_back if scope is not None else None
    return limit.failed_max if limit is not None else 0


def _step_back(
    canary: StateObject, failed: list[InstanceKey], state: AcceptedState, now_ms: int
) -> StepBack:
    path = canary.ref.path
    of = {instance_of(key) for key, one in state.instances.items() if _asks_for(one, path)}
    failed_max = _failed_max(canary)
    message = f"{len(failed)} of its {len(of)} instances failed, and {failed_max} may"
    return StepBack(str(canary.ref), content_of(canary), now_ms, tuple(failed), message)


def decided(
    state: AcceptedState,
    records: Records,
    known: Mapping[str, StepBack],
    new: tuple[StepBack, ...],
    now_ms: int,
) -> Decided:
    """What is to be stored and told. `known` are those of the store, `new` what is due besides."""
    if state.environment is None:
        return NOTHING_DECIDED
    over = known.keys() - {str(ObjectRef("Promotion", path)) for path in in_force(state, known)}
    events = [event for back in new for event in _events(back, state, records, now_ms)]
    audit = tuple(_audit(back, state, now_ms) for back in new)
    return Decided(new, tuple(sorted(over)), tuple(events), audit)


def _events(back: StepBack, state: AcceptedState, records: Records, now_ms: int) -> Iterable[Event]:
    """One for each instance that has, or tried, the version: whoever may see it is told."""
    path = ObjectRef.parse(back.promotion).path
    for key, instance in sorted(state.instances.items()):
        record = records.get(key)
        if record is None or not _asks_for(instance, path) or member_name(key):
            continue
        data = {
            "promotion": back.promotion,
            "app": record.app,
            "node": record.node,
            "version": _before(record, (path[1],)),
            "version_from": path[1],
            "org_id": record.org_id,
            "project_id": record.project_id,
            "reason": "canary_stepped_back",
            "message": back.message,
        }
        known = (record.key, record.epoch, state.revision, EVENT, record.told, back.content)
        yield Event(
            event_id=content_hash("event", *known)[:32],
            type=EVENT,
            instance=key,
            correlation_id=record.correlation_id,
            revision=state.revision,
            at_ms=now_ms,
            data={name: value for name, value in data.items() if value},
        )


def _audit(back: StepBack, state: AcceptedState, now_ms: int) -> AuditEntry:
    return AuditEntry(
        at_ms=now_ms,
        actor=SYSTEM,
        requester_type=SYSTEM,
        action=EVENT,
        object=back.promotion,
        before=back.content,
        after=back.content,
        reason=f"{back.message}: {', '.join(back.failed)}",
        revision=state.revision,
        correlation_id=content_hash(back.promotion, back.content)[:32],
        result=DONE,
    )


# --- where to ------------------------------------------------------------------------------------


def stepped_back(
    state: AcceptedState,
    known: Mapping[str, StepBack],
    records: Records,
    memo: StepMemo | None = None,
) -> AcceptedState:
    """The state as it is to be carried out, with other versions in the place of those that failed.

    What is accepted, and what is wrong with it, stays the same.
    """
    holds = in_force(state, known) if known and state.environment is not None else {}
    if not holds:
        return state
    back = _back(state, records, holds)
    concerned = _concerned(state, back)
    holding = moves.holding(concerned.values(), records)
    made_from = (holds, back, holding)
    if memo is not None and memo.made is not None:
        was, of, made = memo.made
        if was is state and of == made_from:
            return made
    made = _carried_out(state, holds, back, concerned, holding)
    if memo is not None:
        memo.made = (state, made_from, made)
    return made


def _back(state: AcceptedState, records: Records, holds: Collection[Version]) -> Back:
    versions: dict[str, set[str]] = {}
    for app, version in holds:
        versions.setdefault(app, set()).add(version)
    asking = {k: one for k, one in state.instances.items() if (one.app, one.version) in holds}
    return {
        key: _before(_record_of(instance, records), versions[instance.app])
        for key, instance in sorted(asking.items())
        if instance.run != "decommissioned" and not member_name(key)
    }


def _record_of(instance: Instance, records: Records) -> InstanceRecord | None:
    former = records.get(instance.moved_from) if instance.moved_from is not None else None
    return records.get(instance.key) or former


def _before(record: InstanceRecord | None, gone: Collection[str]) -> str:
    """The version it ran last, apart from those that went back; empty where there is none."""
    if record is None or record.state is State.DECOMMISSIONED:
        return ""
    ran = (record.applied_version, record.previous_version)
    return next((version for version in ran if version and version not in gone), "")


def _concerned(state: AcceptedState, back: Back) -> dict[ObjectRef, StateObject]:
    """All that those need to be resolved; of other instances, those that they share a project, an
    allocation or a node with. Those that go back do so in here.
    """
    projects = {key.rpartition("/")[0] for key in back}
    nodes = {one.node for key, one in state.instances.items() if instance_of(key) in back}
    found: dict[ObjectRef, StateObject] = {}
    for ref, one in state.objects.items():
        if ref.kind == "AppInstance":
            key = instance_key(ref)
            instance = state.instances.get(key)
            if "/".join(ref.path[:2]) in projects or (instance and instance.node in nodes):
                found[ref] = _with_version(one, back.get(key, ""))
        elif ref.kind != "Environment" or one.manifest.spec is state.environment:
            found[ref] = one
    return found


def _with_version(found: StateObject, version: str) -> StateObject:
    spec = found.manifest.spec
    if not version or not isinstance(spec, AppInstanceSpec):
        return found
    manifest = found.manifest.model_copy(
        update={"spec": spec.model_copy(update={"version": version})}
    )
    return replace(found, manifest=manifest)


def _carried_out(
    state: AcceptedState,
    holds: Mapping[Version, StepBack],
    back: Back,
    concerned: Mapping[ObjectRef, StateObject],
    holding: Holding,
) -> AcceptedState:
    environment = next(ref.name for ref in concerned if ref.kind == "Environment")
    found = resolve(concerned, environment, state.revision, holding=holding)
    stepped: dict[InstanceKey, Stepped] = {}
    instances = dict(state.instances)
    for key, instance in state.instances.items():
        of, made = instance_of(key), found.instances.get(key)
        if of not in back:
            # It may have to give way to what another one that goes back has held all along.
            instances[key] = made if made is not None and made != instance else instance
            continue
        asked, instead = instance.version, back[of]
        if not instead:
            stepped[key] = Stepped(asked, "", "no version is known that it ran before")
        elif made is None:
            why = found.blocked.get(key) or f"version {instead} does not have it"
            stepped[key] = Stepped(asked, "", f"it can't go back to {instead}: {why}")
        else:
            stepped[key] = Stepped(asked, instead)
            instances[key] = made
    return replace(state, instances=instances, step_backs=tuple(holds.values()), stepped=stepped)
