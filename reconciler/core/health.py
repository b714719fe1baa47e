"""How well an instance is, in one word, with since when and why. Pure.

Rules:
- The word follows from the record, its node's report, the limits and the time, and from nothing
  else. A node that nobody can see makes it `unknown`, never worse and never better.
- `why` says since when, not for how long, so that it reads the same in every pass.
- `stuck` is for what goes on by itself no more: each kind of it has a limit, and says what to do.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import StrEnum

from node_agent.wire import Phase, Readiness, WorkloadReport
from reconciler.core.desired import Desired
from reconciler.core.names import InstanceKey
from reconciler.core.observed import Observed, Seen, Unknown
from reconciler.core.records import Condition, InstanceRecord, State, node_name
from reconciler.core.services import missing_of, reason_words, serves, services_words
from reconciler.core.times import time_text

Records = Mapping[InstanceKey, InstanceRecord]


class Health(StrEnum):
    """`stopped`: it does not run and nothing is wrong: told to stop, not begun, going or gone."""

    STARTING = "starting"
    READY = "ready"
    DEGRADED = "degraded"
    STUCK = "stuck"
    STOPPED = "stopped"
    FAILED = "failed"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class HealthLimits:
    """From when on something counts as stuck. A start may also take its version's start budget."""

    pull_ms: int = 600_000
    queued_ms: int = 120_000
    removal_ms: int = 600_000
    degraded_ms: int = 600_000


@dataclass(frozen=True)
class HealthSeen:
    """`hint` is what a person may do about one that is stuck. `code` tells unknown ones apart.

    `serves`: it does what it is for all the same: only services that are not vital are missing.
    """

    health: Health
    since_ms: int = 0
    why: str = ""
    hint: str = ""
    code: str = ""
    serves: bool = False


@dataclass(frozen=True)
class Circumstances:
    """What counts beside the record and the report: its budget, and what it waits for.

    `queued`: its node was given a task that it has not taken over. `to_stop`: it is wanted there,
    but not running. `failed_dependency` is one that it waits for and that failed.
    """

    start_budget_ms: int = Readiness().start_budget_ms
    queued: bool = False
    to_stop: bool = False
    failed_dependency: InstanceKey | None = None


READY = HealthSeen(Health.READY)
SERVICES_READY = "ServicesReady"
"""The condition of what is made of several services."""
_UNDER_WAY = (State.DEPLOYING, State.UPGRADING, State.ROLLING_BACK)
_ENDS = (Phase.FAILED, Phase.STOPPED)
_ORDINARY = Circumstances()
_UNTAKEN_YET = "its node has not taken its task over yet"


def health_of(
    record: InstanceRecord,
    seen: Seen[WorkloadReport | None],
    now_ms: int,
    limits: HealthLimits,
    around: Circumstances = _ORDINARY,
) -> HealthSeen:
    """How one instance is, by what its node says of it."""
    if record.state is State.DECOMMISSIONED:
        return HealthSeen(Health.STOPPED, record.since_ms, record.message or "decommissioned")
    if record.state is State.REQUESTED:
        return _requested(record, around)
    if isinstance(seen, Unknown):
        return HealthSeen(Health.UNKNOWN, now_ms, seen.reason, code=seen.code)
    if record.state is State.DECOMMISSIONING:
        return _leaving(record, seen.value, now_ms, limits, around)
    return _living(record, seen.value, now_ms, limits, around)


def _living(
    record: InstanceRecord,
    report: WorkloadReport | None,
    now_ms: int,
    limits: HealthLimits,
    around: Circumstances,
) -> HealthSeen:
    state = record.state
    if report is not None and (serves(report) or _serves_on(report)):
        if state in _UNDER_WAY and report.target_hash != record.target_hash:
            return _starting(record, report, now_ms, limits, around)
        if report.phase is Phase.READY or not missing_of(report.services):
            return READY
        return _partly(record, report, now_ms, limits)
    if state in _UNDER_WAY and (report is None or report.phase not in _ENDS):
        return _starting(record, report, now_ms, limits, around)
    if report.phase is Phase.STOPPED if report is not None else around.to_stop:
        return HealthSeen(Health.STOPPED, record.since_ms, "told to stop")
    if state is State.FAILED or (report is not None and report.phase is Phase.FAILED):
        return HealthSeen(Health.FAILED, record.since_ms, _words(record, report))
    return _degraded(record, report, now_ms, limits)


def _serves_on(report: WorkloadReport) -> bool:
    """What ran before serves again, or still, after a newer one was given up."""
    return report.retained and report.phase is Phase.FAILED


def _requested(record: InstanceRecord, around: Circumstances) -> HealthSeen:
    blocker = around.failed_dependency
    if blocker is None:
        return HealthSeen(Health.STOPPED, record.since_ms, "requested, not yet handed to its node")
    why = f"it waits for {blocker}, which failed"
    return HealthSeen(Health.STUCK, record.since_ms, why, f"mend that one: gpuaas status {blocker}")


def _starting(
    record: InstanceRecord,
    report: WorkloadReport | None,
    now_ms: int,
    limits: HealthLimits,
    around: Circumstances,
) -> HealthSeen:
    since_ms = record.sought_since_ms or record.since_ms
    untaken = report is None or report.target_hash != record.target_hash
    if around.queued and untaken and now_ms >= since_ms + limits.queued_ms:
        return _untaken(record, since_ms)
    if now_ms < since_ms + around.start_budget_ms + limits.pull_ms:
        # What the report says is of what ran before.
        words = _UNTAKEN_YET if untaken and around.queued else _words(record, report)
        return HealthSeen(Health.STARTING, since_ms, words)
    why = f"{record.state.value} since {time_text(since_ms)} without an outcome; last heard: "
    return HealthSeen(
        Health.STUCK,
        since_ms,
        why + _words(record, report),
        f"on {record.node}: journalctl -u gpuaas-agent, and systemctl status docker; a new commit "
        "or gpuaas rollback starts afresh",
    )


def _leaving(
    record: InstanceRecord,
    report: WorkloadReport | None,
    now_ms: int,
    limits: HealthLimits,
    around: Circumstances,
) -> HealthSeen:
    since_ms = record.sought_since_ms or record.since_ms
    begun = report is not None and report.phase in (Phase.REMOVING, Phase.REMOVED)
    if around.queued and not begun and now_ms >= since_ms + limits.queued_ms:
        return _untaken(record, since_ms)
    if now_ms < since_ms + limits.removal_ms:
        return HealthSeen(Health.STOPPED, since_ms, "being removed")
    found = f": {report.message}" if report is not None and report.message else ""
    return HealthSeen(
        Health.STUCK,
        since_ms,
        f"being removed since {time_text(since_ms)} without proof that it is gone{found}",
        f"on {record.node}: docker ps -a --filter label=dev.gpuaas.instance={record.key}, and "
        "journalctl -u gpuaas-agent",
    )


def _untaken(record: InstanceRecord, since_ms: int) -> HealthSeen:
    return HealthSeen(
        Health.STUCK,
        since_ms,
        f"{record.node} reports, but has not taken its task since {time_text(since_ms)}",
        f"on {record.node}: journalctl -u gpuaas-agent says why; systemctl restart gpuaas-agent "
        "disturbs nothing that runs",
    )


def _degraded(
    record: InstanceRecord, report: WorkloadReport | None, now_ms: int, limits: HealthLimits
) -> HealthSeen:
    ready = _condition(record)
    since_ms = ready.last_transition_ms if ready and ready.status == "False" else now_ms
    # It may have been stopped until then, and told to start.
    since_ms = max(since_ms, record.sought_since_ms)
    words = _words(record, report)
    if now_ms < since_ms + limits.degraded_ms:
        return HealthSeen(Health.DEGRADED, since_ms, words)
    return HealthSeen(
        Health.STUCK,
        since_ms,
        f"was ready, and is not since {time_text(since_ms)}: {words}",
        f"its log on {record.node} says more; gpuaas rollback AppInstance/{record.key} goes back",
    )


def _partly(
    record: InstanceRecord, report: WorkloadReport, now_ms: int, limits: HealthLimits
) -> HealthSeen:
    """It serves, without some of its services."""
    told = _condition(record, SERVICES_READY)
    since_ms = told.last_transition_ms if told and told.status == "False" else now_ms
    since_ms = max(since_ms, record.sought_since_ms)
    words = services_words(report.services)
    if now_ms < since_ms + limits.degraded_ms:
        return HealthSeen(Health.DEGRADED, since_ms, words, serves=True)
    return HealthSeen(
        Health.STUCK,
        since_ms,
        f"serves, but not whole since {time_text(since_ms)}: {words}",
        f"on {record.node}: docker ps -a --filter label=dev.gpuaas.instance={node_name(record)}, "
        f"and docker logs of what is missing; gpuaas rollback AppInstance/{record.key} goes back",
        serves=True,
    )


def _words(record: InstanceRecord, report: WorkloadReport | None) -> str:
    """What the node says, else what we remember."""
    if report is None:
        return f"{record.node} does not have it"
    if report.reason is not None:
        return reason_words(report)
    if record.state is State.FAILED and record.reason:
        return f"{record.reason}: {record.message}" if record.message else record.reason
    if report.services and not report.message:
        return services_words(report.services)
    return report.message or report.phase.value


def _condition(record: InstanceRecord, name: str = "Ready") -> Condition | None:
    return next((one for one in record.conditions if one.type == name), None)


# --- a whole fleet -------------------------------------------------------------------------------


def healths(
    records: Records,
    desired: Desired,
    observed: Observed,
    queued: Collection[InstanceKey],
    now_ms: int,
    limits: HealthLimits,
    moved: Mapping[InstanceKey, InstanceKey] | None = None,
) -> dict[InstanceKey, HealthSeen]:
    """Every record's health. `moved` says under which former name its report still stands."""
    names = moved or {}
    reported = {
        name: seen.value.workloads
        for name, seen in observed.nodes.items()
        if not isinstance(seen, Unknown)
    }
    found: dict[InstanceKey, HealthSeen] = {}
    for key, record in records.items():
        if record.state is State.RUNNING and record.node in reported:
            # Most of a fleet, most of the time.
            report = reported[record.node].get(names.get(key, key))
            if report is not None and report.phase is Phase.READY:
                found[key] = READY
                continue
        seen = observed.workload(record.node, names.get(key, key))
        around = _around(record, desired, records, queued)
        found[key] = health_of(record, seen, now_ms, limits, around)
    return found


def _around(
    record: InstanceRecord, desired: Desired, records: Records, queued: Collection[InstanceKey]
) -> Circumstances:
    target = desired.targets.get(record.key)
    failed = (one for one in sorted(record.depends_on) if _has_failed(records.get(one)))
    return Circumstances(
        target.workload.readiness.start_budget_ms if target else _ORDINARY.start_budget_ms,
        record.key in queued,
        target is not None and target.instance.run == "stopped",
        next(failed, None),
    )


def _has_failed(record: InstanceRecord | None) -> bool:
    """Also while it is tried again: who waits for it should not wake up and fall back each time."""
    if record is None or record.state is State.DECOMMISSIONED:
        return False
    return record.state is State.FAILED or record.attempts > 0


def told_health(record: InstanceRecord) -> HealthSeen:
    """The health that the last pass wrote into the record's conditions."""
    ready = _condition(record)
    if record.state is State.DECOMMISSIONED:
        return HealthSeen(Health.STOPPED, record.since_ms, record.message)
    if ready is None:
        return HealthSeen(Health.UNKNOWN, 0, "no pass has looked yet")
    word = ready.reason.lower()
    health = Health(word) if word in _WORDS and ready.status != "Unknown" else Health.UNKNOWN
    since_ms = ready.last_transition_ms
    partly = _condition(record, SERVICES_READY)
    if ready.status == "True" and partly is not None and partly.status == "False":
        since_ms = partly.last_transition_ms
    if health is Health.FAILED and record.state is State.FAILED:
        # It was not ready before either, while it started.
        since_ms = max(since_ms, record.since_ms)
    return HealthSeen(health, since_ms, ready.message)


_WORDS = frozenset(health.value for health in Health)
