"""A plan as text for a terminal and as JSON. Pure: lines and documents out, nothing printed here.

The text for people is in `plan_words`, the comment on a pull request in `plan_markdown`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from reconciler.core.actions import (
    Action,
    Held,
    KeyAction,
    Launch,
    Move,
    Remove,
    Replace,
    action_id,
    key_action_id,
)
from reconciler.core.names import instance_of, member_name
from reconciler.core.plan import Finding
from reconciler.core.times import time_text
from reconciler.views.findings import said_once
from reconciler.views.plan_blobs import blob_document, blob_rows
from reconciler.views.plan_services import services_document
from reconciler.views.plan_words import (
    Shown,
    age_of,
    approval,
    break_glass_of,
    by_project,
    by_this_change,
    change_of,
    details_of,
    disturbed,
    grouped,
    held_groups,
    key_cause_of,
    key_change_of,
    listed,
    opens,
    order_of,
    published_at,
    reach,
    removals_of,
    renames,
    services_of,
    shared_reason,
    sign_of,
    splits,
    summary,
    told_apart,
    verb_of,
)

__all__ = ["FORMAT", "Line", "plan_document", "plan_lines", "verb_of"]

FORMAT = "gpuaas.dev/plan/v1"
ACTIONS_MAX = 60
"""Actions shown one by one before a section is summed up by project; removals always are."""
_NAMES_MAX = 12
_APPROVED_FOR_MS = 24 * 3_600_000


@dataclass(frozen=True)
class Line:
    """One line of the text view. `style` names what it says, not a colour."""

    text: str
    style: str = "plain"


def plan_lines(shown: Shown, *, everything: bool = False) -> list[Line]:
    """The text view, line by line; `everything` sums nothing up."""
    plan = shown.plan
    revision = plan.revision[:12]
    notes = [Line(text, "notice") for text in (age_of(shown), break_glass_of(plan)) if text]
    if shown.quiet:
        return [*notes, Line(f"Nothing to do at revision {revision}: {summary(plan)}", "good")]
    of = f", environment {shown.environment}" if shown.environment else ""
    return [
        Line(f"Plan {plan.plan_id} for revision {revision}{of}", "title"),
        *notes,
        *_keys(shown),
        *_blobs(shown),
        *_radius(shown),
        *_ready(shown, everything),
        *_gone(shown),
        *_held(shown, everything),
        *_order(shown),
        *_notes(shown, everything),
        Line(""),
        Line(summary(plan), "title"),
    ]


def _keys(shown: Shown) -> Iterator[Line]:
    if shown.plan.keys:
        yield Line("")
        yield Line(f"Signing keys ({len(shown.plan.keys)})", "title")
    for action in shown.plan.keys:
        change = key_change_of(action) + key_cause_of(shown, action)
        style = "held" if action.held else "upgrade"
        yield Line(f"  ~ {action.kind:<9} {action.key}: {change}", style)
        yield Line(f"      {action.reason}", "dim")
        if action.held:
            yield Line(f"      held, {action.held.code}: {action.held.message}", "held")


def _blobs(shown: Shown) -> Iterator[Line]:
    rows = blob_rows(shown.plan)
    if rows:
        yield Line("")
        yield Line(f"Blobs ahead ({len(shown.plan.blobs)})", "title")
    for row in rows:
        yield Line(f"  + {row}", "held" if row.held else "launch")
        if row.held:
            yield Line(f"      held, {row.held.code}: {row.held.message}", "held")


def _radius(shown: Shown) -> Iterator[Line]:
    radius = shown.radius
    yield Line("")
    busy = shown.plan.ready_keys or shown.plan.ready_blobs
    idle = "no instance is touched" if busy else "nothing is carried out now"
    nothing = "" if shown.plan.ready else idle
    yield Line(f"Blast radius: {nothing or disturbed(radius)}", "title")
    for what, names in reach(radius):
        yield Line(f"  {what}: {listed(names, _NAMES_MAX)}")
    for action in removals_of(shown.plan):
        held = f" (held, {action.held.code})" if action.held else ""
        yield Line(f"  removes {action.instance} on {action.node}{held}", "remove")
    for finding in renames(shown.plan):
        yield Line(f"  {finding.object}: {finding.message}; {finding.hint}", "finding")


def _ready(shown: Shown, everything: bool) -> Iterator[Line]:
    for part, actions in splits(shown):
        if part:
            yield Line("")
            yield Line(f"{part}: {len(actions)}", "title")
        for title, those in grouped(actions):
            yield Line("")
            reason = shared_reason(those)
            yield Line(f"{title} ({len(those)})" + (f": {reason}" if reason else ""), "title")
            if len(those) > ACTIONS_MAX and title != "Removals" and not everything:
                yield from _summed_up(those)
                continue
            for action in those:
                yield from _action(shown, action, reason)


def _summed_up(actions: Sequence[Action]) -> Iterator[Line]:
    for project, counts in by_project(actions):
        yield Line(f"  {project}: {counts}")
    yield Line("  --all shows each of them", "dim")


def _action(shown: Shown, action: Action, said: str) -> Iterator[Line]:
    """`said` is the reason that stands above already, if any."""
    head = f"  {sign_of(action)} {verb_of(action):<9} {action.instance} on {action.node}"
    change = change_of(action) + (", by this change" if by_this_change(shown, action) else "")
    yield Line(f"{head}: {change}", "held" if action.held else verb_of(action))
    if action.reason not in change and action.reason != said:
        yield Line(f"      {action.reason}", "dim")
    for detail in details_of(shown, action):
        yield Line(f"      {detail}", "dim")


def _gone(shown: Shown) -> Iterator[Line]:
    gone = shown.comparison.gone if shown.comparison else ()
    if gone:
        yield Line("")
        yield Line(f"Pending now, and no more with this change: {len(gone)}", "title")
    for action in gone:
        yield Line(f"    {verb_of(action):<9} {action.instance} on {action.node}", "dim")


def _held(shown: Shown, everything: bool) -> Iterator[Line]:
    for group in held_groups(shown.plan):
        yield Line("")
        yield Line(f"Held, {group.code} ({len(group.actions)}): {group.message}", "held")
        hint = "" if group.code == "removal_budget" else group.hint
        reason = shared_reason(group.actions)
        for text in (opens(group, shown.now_ms), hint, reason):
            if text:
                yield Line(f"  {text}", "held")
        if len(group.actions) > ACTIONS_MAX and not everything:
            yield from _summed_up(group.actions)
            continue
        for action in group.actions:
            yield from _action(shown, action, reason)
    if shown.plan.removals_approved:
        yield Line("")
        yield Line("The Environment approves of exactly these removals.", "held")
    if approval(shown.plan):
        yield Line("")
        yield Line("What is to stay gets its file back: `git revert`, or `gpuaas rollback OBJECT`.")
        yield Line("To approve exactly these removals, commit to the Environment:", "held")
        for text in approval_yaml(shown.plan.removals_id, shown.now_ms):
            yield Line(f"  {text}")


def approval_yaml(removals_id: str, now_ms: int) -> tuple[str, ...]:
    """What a person writes to agree to a set of removals, within a day."""
    return (
        "spec:",
        "  guards:",
        "    approvals:",
        f'      - removals: "{removals_id}"',
        "        reason: why they are meant",
        f'        until: "{time_text(now_ms + _APPROVED_FOR_MS)}"',
    )


def _order(shown: Shown) -> Iterator[Line]:
    steps = order_of(shown.plan)
    if steps:
        yield Line("")
        yield Line("In this order", "title")
    for number, step in enumerate(steps, 1):
        yield Line(f"  {number}. {step}")


def _notes(shown: Shown, everything: bool) -> Iterator[Line]:
    plan = shown.plan
    findings = told_apart(plan)
    if plan.waiting or findings or shown.problems or plan.ignored:
        yield Line("")
    waiting = plan.waiting if everything else plan.waiting[:ACTIONS_MAX]
    for item in waiting:
        where = f"{item.instance} on {item.node}"
        yield Line(f"  … {item.code:<9} {where}: {item.message}", "waiting")
    if len(waiting) < len(plan.waiting):
        yield Line(f"  … and {len(plan.waiting) - len(waiting)} more under way", "waiting")
    for told, where in said_once(map(asdict, findings), everything=everything):
        mark = "!" if told["level"] == "stalled" else "i"
        yield Line(f"  {mark} {told['code']} {where}: {told['message']}", "finding")
        if told["hint"]:
            yield Line(f"      {told['hint']}", "dim")
    for problem in shown.problems:
        yield Line(f"  ! {problem}", "finding")
    if plan.ignored:
        yield Line(f"  {len(plan.ignored)} known findings are ignored by a rule", "dim")


# --- JSON ----------------------------------------------------------------------------------------


def plan_document(shown: Shown) -> Mapping[str, Any]:
    """The JSON view; `format` changes when a field does."""
    plan, comparison = shown.plan, shown.comparison
    term = plan.break_glass
    return {
        "format": FORMAT,
        "plan_id": plan.plan_id,
        "environment": shown.environment,
        "revision": plan.revision,
        "observed": plan.base,
        "snapshot_taken_at_ms": shown.offline.taken_at_ms if shown.offline else None,
        "empty": plan.empty,
        "summary": summary(plan),
        "radius": asdict(shown.radius),
        "unchanged": plan.unchanged,
        "removals_id": plan.removals_id,
        "removals_approved": plan.removals_approved,
        "break_glass": asdict(term) if term else None,
        "wake_at_ms": plan.wake_at_ms,
        "base": comparison.base if comparison else None,
        "keys": [_key_document(shown, action) for action in plan.keys],
        "blobs": [
            blob_document(action, comparison.keys if comparison else None) for action in plan.blobs
        ],
        "actions": [_action_document(shown, action) for action in plan.actions],
        "no_longer_pending": [action_id(a) for a in comparison.gone] if comparison else [],
        "waiting": [asdict(waiting) for waiting in plan.waiting],
        "findings": [_finding_document(finding) for finding in plan.findings],
        "ignored": [_finding_document(finding) for finding in plan.ignored],
        "problems": [{**asdict(problem), "where": problem.where} for problem in shown.problems],
    }


def _finding_document(finding: Finding) -> dict[str, Any]:
    return asdict(finding)


def _key_document(shown: Shown, action: KeyAction) -> dict[str, Any]:
    key, comparison = key_action_id(action), shown.comparison
    return {
        "action_id": key,
        "action": action.kind,
        "key": action.key,
        "version": action.version,
        "version_from": action.version_from,
        "reason": action.reason,
        "held": _held_document(action.held) if action.held else None,
        "by_this_change": key in comparison.keys if comparison else None,
    }


def _action_document(shown: Shown, action: Action) -> dict[str, Any]:
    key, comparison = action_id(action), shown.comparison
    document: dict[str, Any] = {
        "action_id": key,
        "action": verb_of(action),
        "instance": action.instance,
        "member_of": instance_of(action.instance) if member_name(action.instance) else None,
        "node": action.node,
        "reason": action.reason,
        "cause": action.cause,
        "precondition": {"target_hash": action.precondition.target_hash},
        "depends_on": list(action.depends_on),
        "held": _held_document(action.held) if action.held else None,
        "by_this_change": key in comparison.caused if comparison else None,
    }
    if isinstance(action, Launch | Replace):
        document["version"] = action.version
        document["digest"] = action.workload.image.digest
        document["published"] = list(published_at(action.workload))
    if isinstance(action, Replace | Remove):
        document["version_from"] = action.version_from
    if isinstance(action, Replace):
        known = shown.changes.get(key)
        document["changes"] = None if known is None else [asdict(change) for change in known]
        services = services_of(shown, action)
        document["services"] = None if services is None else services_document(services)
    if isinstance(action, Move):
        document["moved_from"] = action.moved_from
    return document


def _held_document(held: Held) -> dict[str, Any]:
    until = None if held.until_ms is None else time_text(held.until_ms)
    return {**asdict(held), "until": until}
