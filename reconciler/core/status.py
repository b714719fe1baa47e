"""Outcomes become conditions here, and only here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from reconciler.core.actions import Action, Held, subject_of
from reconciler.core.desired import Desired
from reconciler.core.health import READY, SERVICES_READY, Health, HealthSeen
from reconciler.core.names import InstanceKey, instance_of, member_name
from reconciler.core.plan import Finding, Plan, Waiting
from reconciler.core.plan.stepped import CODE, in_its_place
from reconciler.core.records import UNDER_WAY, Condition, InstanceRecord, State
from reconciler.core.services import missing_of, services_words
from reconciler.core.times import time_text
from reconciler.core.trust.evidence import Verdict

Truth = Literal["True", "False", "Unknown"]
_TRUTH: Mapping[str, Truth] = {"True": "True", "False": "False", "Unknown": "Unknown"}
_NAMES_MAX = 5


@dataclass(frozen=True)
class Judgement:
    """A condition before it is compared with the one before."""

    type: str
    status: Truth
    reason: str
    message: str


def with_conditions(
    records: Mapping[InstanceKey, InstanceRecord],
    desired: Desired,
    healths: Mapping[InstanceKey, HealthSeen],
    plan: Plan,
    now_ms: int,
    trust: Mapping[InstanceKey, Verdict | None] | None = None,
) -> dict[InstanceKey, InstanceRecord]:
    """Every record with its conditions of now; `last_transition_ms` moves with the status only.

    `trust` as `trust.standing.standings` gives it.
    """
    trusted = {key: _trusted(records[key], one) for key, one in (trust or {}).items()}
    actions = {subject_of(action): action for action in plan.actions}
    actions |= {action.instance: action for action in plan.actions}
    waiting = {item.instance: item for item in plan.waiting}
    findings = {f.object.partition("/")[2]: f for f in plan.stalled}
    members = _members(records, desired, healths)
    told = actions.keys() | waiting.keys() | findings.keys() | desired.held.keys() | members.keys()
    told |= desired.stepped.keys()
    result = {}
    for key, record in sorted(records.items()):
        more = trusted.get(key, ())
        if record.services:
            more = (*_services_ready(record, healths[key]), *more)
        if healths[key] is READY and key not in told and _is_calm(record, more):
            result[key] = record
            continue
        judgements = (
            _ready(record, healths[key]),
            _converged(key, record, desired, actions.get(key), waiting.get(key), findings.get(key)),
            *members.get(key, ()),
            *more,
        )
        now = tuple(_stamp(j, record, desired.revision, now_ms) for j in judgements)
        result[key] = record if now == record.conditions else replace(record, conditions=now)
    return result


_CALM = (("Ready", "True", "Ready", ""), ("Converged", "True", "AsDesired", ""))


def _is_calm(record: InstanceRecord, more: Sequence[Judgement]) -> bool:
    """Whether it runs, and was already told to be ready and as desired: most of a fleet is."""
    known = tuple((c.type, c.status, c.reason, c.message) for c in record.conditions)
    now = (*_CALM, *((one.type, one.status, one.reason, one.message) for one in more))
    return record.state is State.RUNNING and known == now


def _trusted(record: InstanceRecord, verdict: Verdict | None) -> tuple[Judgement, ...]:
    """Whether what runs is good; while nobody could look, what was told before."""
    if verdict is None:
        before = (one for one in record.conditions if one.type == "Trusted")
        return tuple(
            Judgement(one.type, _TRUTH[one.status], one.reason, one.message) for one in before
        )
    if verdict.good:
        return (Judgement("Trusted", "True", "Verified", verdict.message),)
    hint = f"; {verdict.hint}" if verdict.hint else ""
    return (Judgement("Trusted", "False", _camel(verdict.code), verdict.message + hint),)


def _ready(record: InstanceRecord, seen: HealthSeen) -> Judgement:
    """Its reason is the health; what nobody can see has the code of why instead."""
    if record.state is State.DECOMMISSIONED:
        return Judgement("Ready", "False", "Decommissioned", seen.why)
    if seen.health is Health.UNKNOWN:
        return Judgement("Ready", "Unknown", _camel(seen.code), seen.why)
    truth: Truth = "True" if seen.health is Health.READY or seen.serves else "False"
    return Judgement("Ready", truth, _camel(seen.health.value), seen.why)


def _services_ready(record: InstanceRecord, seen: HealthSeen) -> tuple[Judgement, ...]:
    """Whether all services of one that has several are up, and which are not."""
    if record.state is State.DECOMMISSIONED:
        return ()
    if seen.health is Health.UNKNOWN:
        return (Judgement(SERVICES_READY, "Unknown", _camel(seen.code), seen.why),)
    words = services_words(record.services)
    if seen.health is Health.STOPPED:
        return (Judgement(SERVICES_READY, "False", "Stopped", seen.why),)
    if missing_of(record.services):
        return (Judgement(SERVICES_READY, "False", "NotAllReady", words),)
    if seen.health is Health.READY:
        return (Judgement(SERVICES_READY, "True", "AllReady", words),)
    return (Judgement(SERVICES_READY, "False", _camel(seen.health.value), seen.why),)


def _members(
    records: Mapping[InstanceKey, InstanceRecord],
    desired: Desired,
    healths: Mapping[InstanceKey, HealthSeen],
) -> dict[InstanceKey, tuple[Judgement, ...]]:
    """Of each instance with further members, whether all of them are ready, the first included."""
    further: dict[InstanceKey, set[InstanceKey]] = {}
    for key in (*records, *desired.targets):
        if "." in key:
            further.setdefault(instance_of(key), set()).add(key)
    judged: dict[InstanceKey, tuple[Judgement, ...]] = {}
    for of, keys in further.items():
        record = records.get(of)
        if record is None or record.state is State.DECOMMISSIONED:
            continue
        wanted = keys & desired.targets.keys() if of in desired.targets else keys & records.keys()
        there = sorted(key for key in wanted if _stays(records.get(key)))
        if there:
            judged[of] = (_members_ready((of, *there), records, healths),)
    return judged


def _stays(record: InstanceRecord | None) -> bool:
    """Whether a member counts: what was to go and is gone does not, what is yet to come does."""
    return record is None or record.state is not State.DECOMMISSIONED


def _members_ready(
    keys: Sequence[InstanceKey],
    records: Mapping[InstanceKey, InstanceRecord],
    healths: Mapping[InstanceKey, HealthSeen],
) -> Judgement:
    seen = {key: healths.get(key) for key in keys}
    missing = [
        f"{member_name(key) or records[key].role} {_how(one)}"
        for key, one in seen.items()
        if one is None or one.health is not Health.READY
    ]
    count = f"{len(keys) - len(missing)}/{len(keys)} members ready"
    if not missing:
        return Judgement("MembersReady", "True", "AllReady", count)
    kinds = {one.health if one else None for one in seen.values()} - {Health.READY}
    if kinds == {Health.STOPPED}:
        return Judgement("MembersReady", "False", "Stopped", count)
    more = f" and {len(missing) - _NAMES_MAX} more" if len(missing) > _NAMES_MAX else ""
    said = f"{count}: {', '.join(missing[:_NAMES_MAX])}{more}"
    truth: Truth = "Unknown" if kinds == {Health.UNKNOWN} else "False"
    return Judgement("MembersReady", truth, "NotAllReady", said)


def _how(seen: HealthSeen | None) -> str:
    if seen is None:
        return "is not there yet"
    return f"is {seen.health.value}" + (f" ({seen.code})" if seen.code else "")


def _converged(
    key: InstanceKey,
    record: InstanceRecord,
    desired: Desired,
    action: Action | None,
    waiting: Waiting | None,
    finding: Finding | None,
) -> Judgement:
    if key in desired.held:
        return Judgement("Converged", "False", "Quarantined", desired.held[key])
    if finding is not None:
        return Judgement("Converged", "False", _camel(finding.code), finding.message)
    if action is not None and action.held is not None:
        return Judgement("Converged", "False", _camel(action.held.code), _held_words(action.held))
    if action is not None or record.state in UNDER_WAY:
        message = waiting.message if waiting else (action.reason if action else "")
        return Judgement("Converged", "False", "Progressing", message)
    if waiting is not None:
        return Judgement("Converged", "False", _camel(waiting.code), waiting.message)
    if record.state is State.FAILED:
        return Judgement("Converged", "False", _camel(record.reason or "failed"), record.message)
    stepped = desired.stepped.get(key)
    if stepped is not None and stepped.instead:
        return Judgement("Converged", "False", _camel(CODE), in_its_place(stepped))
    return Judgement("Converged", "True", "AsDesired", "")


def _held_words(held: Held) -> str:
    """Why it is held, and for what failed also when it is tried again."""
    if held.code == "backing_off" and held.until_ms is not None:
        return f"{held.message}, at {time_text(held.until_ms)}"
    if held.code == "task_refused" and held.until_ms is not None:
        return f"{held.message}; asked again at {time_text(held.until_ms)}"
    return held.message


def _stamp(new: Judgement, record: InstanceRecord, revision: str, now_ms: int) -> Condition:
    before = next((c for c in record.conditions if c.type == new.type), None)
    if before and (before.status, before.reason, before.message) == (
        new.status,
        new.reason,
        new.message,
    ):
        return before
    same = before is not None and before.status == new.status
    since = before.last_transition_ms if before is not None and same else now_ms
    return Condition(new.type, new.status, new.reason, new.message, revision, since)


def _camel(code: str) -> str:
    return "".join(part.capitalize() for part in code.split("_"))
