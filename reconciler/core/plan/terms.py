"""What people said about when: suspensions, windows, manual mode, known drift, tombstones.

Rule: everything with an end has no effect from that moment on, without anybody doing anything.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase

from reconciler.core.actions import Action, Held, Remove, action_id, subject_of
from reconciler.core.desired import Desired, Guards, IgnoreRule, Term
from reconciler.core.names import InstanceKey, instance_of
from reconciler.core.plan import Finding
from reconciler.core.plan.windows import window_hold
from reconciler.core.records import InstanceRecord, State
from reconciler.core.times import time_text

DRIFT = "drift"
_INSTANCE = "AppInstance/"

Records = Mapping[InstanceKey, InstanceRecord]


def in_force(term: Term | None, now_ms: int) -> Term | None:
    return term if term is not None and now_ms < term.until_ms else None


def suspension(action: Action, desired: Desired, now_ms: int) -> Held | None:
    """Nothing is done about it, drift included; of several terms the last to end counts."""
    of = instance_of(action.instance)
    target = desired.targets.get(action.instance) or desired.targets.get(of)
    given = [("the environment", desired.guards.suspend)]
    if desired.suspended:
        concerned = {_project(action.instance), _project(subject_of(action))}
        given += [(f"project {one}", desired.suspended.get(one)) for one in sorted(concerned)]
    given.append(("the instance", target.instance.suspend if target is not None else None))
    terms = [(what, term) for what, term in given if term and now_ms < term.until_ms]
    if not terms:
        return None
    what, last = max(terms, key=lambda one: one[1].until_ms)
    why = f"{what} is suspended by {last.by} until {time_text(last.until_ms)}: {last.reason}"
    return Held("suspended", why, last.until_ms)


def known_drift(action: Action, guards: Guards, now_ms: int) -> Held | None:
    """Drift that a rule says to leave alone."""
    if action.cause != DRIFT:
        return None
    rule = _matching(guards.ignore, DRIFT, f"AppInstance/{action.instance}", now_ms)
    if rule is None:
        return None
    term = rule.term
    why = f"left alone for {term.by} until {time_text(term.until_ms)}: {term.reason}"
    return Held("ignored", why, term.until_ms)


def tombstone(action: Action, desired: Desired, records: Records) -> Held | None:
    """A file that is gone is no word on what it named, where tombstones are asked for."""
    if not desired.guards.tombstones or not isinstance(action, Remove):
        return None
    begun = records[action.instance].state is State.DECOMMISSIONING
    if begun or {action.instance, instance_of(action.instance)} & desired.targets.keys():
        return None  # A member that is taken out is taken out of a file that is still there.
    return Held(
        "tombstone_missing",
        f"its manifest was removed, but nothing said to decommission it: put {path_of(action)} "
        "back with desired: decommissioned, and remove it once that is done",
    )


def path_of(action: Action) -> str:
    """Where its manifest has to stand."""
    tenant, project, name = instance_of(action.instance).split("/")
    return f"tenants/{tenant}/projects/{project}/instances/{name}.yaml"


def closed_projects(actions: Iterable[Action], guards: Guards, now_ms: int) -> dict[str, Held]:
    """`tenant/project` → why nothing is changed there at this hour."""
    if not guards.windows or in_force(guards.break_glass, now_ms) is not None:
        return {}
    projects = {_project(action.instance) for action in actions}
    holds = {one: window_hold(guards.windows, one, now_ms) for one in sorted(projects)}
    return {project: held for project, held in holds.items() if held is not None}


def timing(action: Action, closed: Mapping[str, Held]) -> Held | None:
    """Changes wait for their window; what repairs or goes on does not."""
    return closed.get(_project(action.instance)) if action.cause == "change" else None


def awaiting(action: Action, records: Records, plan_id: str) -> Held | None:
    """In manual mode a change waits until somebody applies a plan with it."""
    record = records.get(subject_of(action))
    if action.cause != "change" or (record is not None and record.approved == action_id(action)):
        return None
    return Held("awaiting_apply", f"changes are applied by hand here: gpuaas apply {plan_id}")


def sort_out(
    findings: Iterable[Finding], guards: Guards, now_ms: int
) -> tuple[list[Finding], list[Finding]]:
    """(told, ignored): a rule keeps a finding from being told, and does nothing else."""
    told: list[Finding] = []
    ignored: list[Finding] = []
    for finding in findings:
        rule = _matching(guards.ignore, finding.code, finding.object, now_ms)
        (told if rule is None else ignored).append(finding)
    return told, ignored


def _matching(rules: Sequence[IgnoreRule], code: str, name: str, now_ms: int) -> IgnoreRule | None:
    names = {name}
    if name.startswith(_INSTANCE):
        names.add(instance_of(InstanceKey(name)))  # What is said of an instance is of its members.
    meant = (
        rule
        for rule in rules
        if code in rule.codes
        and any(fnmatchcase(one, pattern) for pattern in rule.objects for one in names)
    )
    return next((rule for rule in meant if in_force(rule.term, now_ms) is not None), None)


def _project(key: InstanceKey) -> str:
    return key.rpartition("/")[0]
