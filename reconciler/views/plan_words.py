"""What is said of a plan, whatever it is shown in: verbs, groups, details, times. Pure.

Rule: nothing in here knows of a terminal, of Markdown or of JSON. Text from others stays as it is;
who shows it makes it safe.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from node_agent.wire import LABEL_APP, LABEL_VERSION, Workload
from reconciler.core.actions import (
    Action,
    Control,
    KeyAction,
    Launch,
    Move,
    Remove,
    Replace,
    action_id,
    key_action_id,
)
from reconciler.core.names import ActionId, InstanceKey, Revision
from reconciler.core.plan import Finding, Plan
from reconciler.core.plan.radius import Radius, blast_radius
from reconciler.core.problems import Problem
from reconciler.core.records import InstanceRecord
from reconciler.core.services import further_images
from reconciler.core.times import time_text
from reconciler.views.plan_services import (
    FieldChange,
    ServiceChange,
    service_changes,
    service_lines,
    services_launched,
)

Records = Mapping[InstanceKey, InstanceRecord]
VALUE_LENGTH_MAX = 60
_RENAMED = "maybe_renamed"
_TOLD_APART = frozenset(f"labels.{name}" for name in (LABEL_APP, LABEL_VERSION))
"""Fields of a workload that say no more than the action's version does."""
GROUPS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("Removals", ("remove",)),
    ("Replacements", ("upgrade", "rollback")),
    ("Stops and starts", ("stop", "start")),
    ("Launches", ("launch",)),
    ("Moves", ("move",)),
)
"""In the order in which a reviewer should see them, with the verbs in each."""
_BREAK_GLASS = (
    "sooner: break_glass: {by: …, reason: …, until: …} under spec.sync of the Environment"
)
SOONER: Mapping[str, str] = {
    "suspended": "sooner: take that suspend out of its manifest with a commit",
    "outside_sync_window": _BREAK_GLASS,
    "inside_deny_window": _BREAK_GLASS,
}
"""What a person may do who can't wait until a held group goes ahead."""


@dataclass(frozen=True)
class Comparison:
    """What a change to the state repo itself causes: its plan against the plan without it.

    `gone` was to be done at `base` and no longer is.
    """

    base: Revision
    caused: frozenset[ActionId]
    gone: tuple[Action, ...] = ()
    keys: frozenset[str] = frozenset()
    """Ids of the actions on keys and blobs that it causes."""


@dataclass(frozen=True)
class Offline:
    """The plan was made from a snapshot, taken then."""

    taken_at_ms: int


@dataclass(frozen=True)
class Shown:
    """A plan with everything that is told about it."""

    plan: Plan
    records: Records = field(default_factory=dict)
    problems: Sequence[Problem] = ()
    now_ms: int = 0
    environment: str = ""
    changes: Mapping[ActionId, tuple[FieldChange, ...]] = field(default_factory=dict)
    comparison: Comparison | None = None
    offline: Offline | None = None

    @property
    def radius(self) -> Radius:
        return blast_radius(self.plan, self.records)

    @property
    def quiet(self) -> bool:
        """Nothing to do and nothing to tell."""
        comparison = self.comparison
        told = self.plan.findings or self.problems or (comparison and comparison.gone)
        return self.plan.empty and not told


def sign_of(action: Action) -> str:
    if isinstance(action, Launch):
        return "+"
    if isinstance(action, Remove):
        return "-"
    if isinstance(action, Move):
        return "→"
    if isinstance(action, Replace) and action.direction == "rollback":
        return "↩"
    return "~"


def verb_of(action: Action) -> str:
    if isinstance(action, Replace):
        return action.direction
    if isinstance(action, Control):
        return "start" if action.run else "stop"
    return action.kind


def change_of(action: Action) -> str:
    """What changes, as short as it can be said."""
    if isinstance(action, Launch):
        return f"version {action.version} ({short(action.workload.image.digest)})"
    if isinstance(action, Replace):
        digest = short(action.workload.image.digest)
        if action.version == action.version_from:
            return f"version {action.version} ({digest}), parameters"
        return f"version {action.version_from} → {action.version} ({digest})"
    if isinstance(action, Remove):
        return f"version {action.version_from}"
    if isinstance(action, Move):
        return f"was {action.moved_from}, nothing is restarted"
    return verb_of(action)


def key_change_of(action: KeyAction) -> str:
    """`version 1 → 2`, or `versions below 2`."""
    if action.kind == "retire":
        return f"versions below {action.version}"
    before = f"{action.version_from} → " if action.version_from else ""
    return f"version {before}{action.version}"


def key_cause_of(shown: Shown, action: KeyAction) -> str:
    comparison = shown.comparison
    mine = comparison is not None and key_action_id(action) in comparison.keys
    return ", by this change" if mine else ""


def details_of(shown: Shown, action: Action) -> tuple[str, ...]:
    """What other hosts reach of what starts, and what is known of the fields a replacement changes,
    one a line.
    """
    if not isinstance(action, Launch | Replace):
        return ()
    open_to = published_at(action.workload)
    told = (f"published at {', '.join(open_to)}",) if open_to else ()
    if isinstance(action, Launch):
        return (*told, *services_launched(action.workload))
    return (*told, *_changes(shown, action))


def published_at(workload: Workload) -> tuple[str, ...]:
    """Where other hosts reach it: `10.0.0.5:6379 (gcs)`. Nothing where all is on loopback."""
    return tuple(
        f"{f'[{port.address}]' if ':' in port.address else port.address}:{port.host} ({port.name})"
        for port in workload.ports
        if port.address is not None
    )


def _changes(shown: Shown, action: Replace) -> tuple[str, ...]:
    known = shown.changes.get(action_id(action))
    if known is not None:
        services, rest = service_changes(action.workload, known)
        return (*service_lines(action.workload, services), *map(str, rest))
    record = shown.records.get(action.instance)
    return _by_record(record, action) if record is not None else ()


def services_of(shown: Shown, action: Replace) -> tuple[ServiceChange, ...] | None:
    """What becomes of each service; None where that is not known, or there are none."""
    known = shown.changes.get(action_id(action))
    found = service_changes(action.workload, known)[0] if known is not None else ()
    return found or None


def _by_record(record: InstanceRecord, action: Replace) -> tuple[str, ...]:
    """The record holds no more of what runs than its digest, GPUs and fixed ports."""
    workload = action.workload
    ports = sorted(port.host for port in workload.ports if port.host is not None)
    pairs = (
        ("digest", short(record.applied_digest), short(workload.image.digest)),
        ("further images", *_further(record, workload)),
        ("gpus", ", ".join(record.gpu_uuids), ", ".join(workload.limits.gpu_uuids)),
        ("host_ports", ", ".join(map(str, record.host_ports)), ", ".join(map(str, ports))),
    )
    told = [str(FieldChange(*pair)) for pair in pairs if pair[1] != pair[2]]
    return (*told, "more may change: what runs is on record by version and digest only")


def _further(record: InstanceRecord, workload: Workload) -> tuple[str, str]:
    """Of services, beside its own."""
    ran, wanted = (
        " ".join(short(image.rpartition("@")[2]) for image in images)
        for images in (record.applied_images, further_images(workload))
    )
    return ran, wanted


def workload_changes(before: Workload, after: Workload) -> tuple[FieldChange, ...]:
    """Every field that differs, by its path, sorted."""
    old, new = _flat("", before.model_dump(mode="json")), _flat("", after.model_dump(mode="json"))
    names = sorted(name for name in {*old, *new} - _TOLD_APART if old.get(name) != new.get(name))
    return tuple(FieldChange(n, _value(old.get(n, "")), _value(new.get(n, ""))) for n in names)


def _flat(path: str, value: object) -> dict[str, str]:
    if isinstance(value, dict):
        items = [(f"{path}.{key}" if path else str(key), one) for key, one in value.items()]
    elif isinstance(value, list) and any(isinstance(one, dict) for one in value):
        named = [one if isinstance(one, dict) else {} for one in value]
        items = [(f"{path}.{one.get('name', i)}", one) for i, one in enumerate(named)]
    elif isinstance(value, list):
        return {path: " ".join(map(str, value))}
    else:
        return {path: "" if value is None else str(value)}
    return {name: text for key, one in items for name, text in _flat(key, one).items()}


def _value(text: str) -> str:
    text = short(text) if text.startswith("sha256:") else text
    return text if len(text) <= VALUE_LENGTH_MAX else text[: VALUE_LENGTH_MAX - 1] + "…"


def short(digest: str) -> str:
    return digest[7:19]


# --- all of it in a few words --------------------------------------------------------------------


def summary(plan: Plan) -> str:
    ready = plan.ready
    counts = {
        "to start": sum(isinstance(a, Launch) for a in ready),
        "to change": sum(isinstance(a, Replace | Control) for a in ready),
        "to remove": sum(isinstance(a, Remove) for a in ready),
        "to move": sum(isinstance(a, Move) for a in ready),
        "to do with keys": len(plan.ready_keys),
        "blobs to pull": len(plan.ready_blobs),
        "held": len(plan.holds),
        "under way": len(plan.waiting),
        "ignored": len(plan.ignored),
        "unchanged": plan.unchanged,
    }
    rare = ("to move", "to do with keys", "blobs to pull", "ignored")
    told = [f"{count} {name}" for name, count in counts.items() if count or name not in rare]
    return ", ".join(told) + "."


def reach(radius: Radius) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Whom it touches when it is carried out now: (what, names), without what is empty."""
    rows = (("tenants", radius.tenants), ("projects", radius.projects), ("nodes", radius.nodes))
    return tuple(row for row in rows if row[1])


def disturbed(radius: Radius) -> str:
    """The share of the fleet that feels it."""
    gpus = f", {_count(radius.gpus, 'GPU')}" if radius.gpus else ""
    touched = _count(radius.changes, "change") + ", " + _count(radius.removals, "removal")
    return (
        f"{touched}, {_count(radius.starts, 'start')}: {radius.percent} % of "
        f"{_count(radius.instances, 'instance')} disturbed{gpus}"
    )


def _count(number: int, word: str) -> str:
    return f"{number} {word}" if number == 1 else f"{number} {word}s"


def listed(names: Sequence[str], most: int) -> str:
    """The first so many names, and how many more there are."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")


def removals_of(plan: Plan) -> tuple[Remove, ...]:
    """Every removal, those that are held too."""
    found = (action for action in plan.actions if isinstance(action, Remove))
    return tuple(sorted(found, key=lambda action: action.instance))


# --- groups --------------------------------------------------------------------------------------


def grouped(actions: Iterable[Action]) -> tuple[tuple[str, tuple[Action, ...]], ...]:
    """(title, actions in the order of the plan) of every group that has any."""
    actions = tuple(actions)
    found = ((title, [a for a in actions if verb_of(a) in verbs]) for title, verbs in GROUPS)
    return tuple((title, tuple(those)) for title, those in found if those)


def by_project(actions: Iterable[Action]) -> tuple[tuple[str, str], ...]:
    """(project, "3 launch, 1 upgrade") for a plan that is too long to read line by line."""
    counts: dict[str, Counter[str]] = {}
    for action in actions:
        counts.setdefault(action.instance.rpartition("/")[0], Counter())[verb_of(action)] += 1
    return tuple(
        (project, ", ".join(f"{number} {verb}" for verb, number in sorted(verbs.items())))
        for project, verbs in sorted(counts.items())
    )


@dataclass(frozen=True)
class HeldGroup:
    """Actions held back for one and the same reason; `hint` says what a person may do."""

    code: str
    message: str
    until_ms: int | None
    hint: str
    actions: tuple[Action, ...]


def by_this_change(shown: Shown, action: Action) -> bool:
    """Whether a held action would not be there without the change under review."""
    comparison = shown.comparison
    return (
        comparison is not None
        and action.held is not None
        and (action_id(action) in comparison.caused)
    )


def held_groups(plan: Plan) -> tuple[HeldGroup, ...]:
    """By code, then by message."""
    groups: dict[tuple[str, str, int], list[Action]] = {}
    for action in plan.held:
        assert action.held is not None
        key = (action.held.code, action.held.message, action.held.until_ms or 0)
        groups.setdefault(key, []).append(action)
    hints = {(f.code, f.message): f.hint for f in plan.findings}
    return tuple(
        HeldGroup(
            code,
            message,
            until_ms or None,
            hints.get((code, message)) or SOONER.get(code, ""),
            tuple(those),
        )
        for (code, message, until_ms), those in sorted(groups.items())
    )


def shared_reason(actions: Sequence[Action]) -> str:
    """The reason of all of several actions, to be said once; empty when they differ."""
    reasons = {action.reason for action in actions}
    alike = len(actions) > 1 and len(reasons) == 1
    return reasons.pop() if alike and actions[0].reason not in change_of(actions[0]) else ""


def told_apart(plan: Plan) -> tuple[Finding, ...]:
    """Findings that no held group says already, those that need a person first."""
    said = {(a.held.code, a.held.message) for a in plan.held if a.held}
    found = (f for f in plan.findings if (f.code, f.message) not in said and f.code != _RENAMED)
    return tuple(sorted(found, key=lambda f: f.level != "stalled"))


def renames(plan: Plan) -> tuple[Finding, ...]:
    """Removals that may be meant as a rename: to be read beside the removals."""
    return tuple(finding for finding in plan.findings if finding.code == _RENAMED)


def opens(group: HeldGroup, now_ms: int) -> str:
    """When a held group goes ahead by itself; empty where that is not known."""
    if group.until_ms is None:
        return ""
    moment, left_ms = time_text(group.until_ms), group.until_ms - now_ms
    within = f" in {span(left_ms)}" if left_ms > 0 else ""
    if moment in group.message:
        return f"goes ahead{within}" if within else ""
    return f"opens{within}, at {moment}"


def approval(plan: Plan) -> str:
    """The id to approve the removals by, when they wait for that."""
    over = any(a.held and a.held.code == "removal_budget" for a in plan.held)
    return plan.removals_id if over else ""


def order_of(plan: Plan) -> tuple[str, ...]:
    """The steps of everything that waits for something else in the plan; empty when nothing does.

    What one step names is done side by side.
    """
    by_id = {action_id(action): action for action in plan.actions}
    needs = {key: [d for d in a.depends_on if d in by_id] for key, a in by_id.items()}
    involved = {key for key, on in needs.items() if on} | {d for on in needs.values() for d in on}
    depth: dict[ActionId, int] = {}
    for key in by_id:  # the plan's order: what is depended on comes first
        depth[key] = max((depth.get(d, 0) + 1 for d in needs[key]), default=0)
    steps: dict[int, list[str]] = {}
    for key, action in by_id.items():
        if key in involved:
            steps.setdefault(depth[key], []).append(f"{verb_of(action)} {action.instance}")
    return tuple(listed(sorted(steps[number]), 8) for number in sorted(steps))


def splits(shown: Shown) -> tuple[tuple[str, tuple[Action, ...]], ...]:
    """What is carried out: in one part, or as this change causes it and as it was pending."""
    ready = shown.plan.ready
    if shown.comparison is None:
        return (("", ready),)
    caused = shown.comparison.caused
    mine = tuple(a for a in ready if action_id(a) in caused)
    rest = tuple(a for a in ready if action_id(a) not in caused)
    return (("This change", mine), ("Pending without this change", rest))


# --- times ---------------------------------------------------------------------------------------


def span(length_ms: int) -> str:
    """`3 d 4 h`, `3 h 12 min`, `12 min`, `40 s`."""
    seconds = max(0, length_ms) // 1000
    days, hours, minutes = seconds // 86_400, seconds // 3600 % 24, seconds // 60 % 60
    if days:
        return f"{days} d {hours} h"
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min" if minutes else f"{seconds} s"


def age_of(shown: Shown) -> str:
    """How old what an offline plan was made from is; empty for a live plan."""
    if shown.offline is None:
        return ""
    taken_at_ms = shown.offline.taken_at_ms
    age = span(shown.now_ms - taken_at_ms)
    return f"planned offline from a snapshot taken {age} ago, at {time_text(taken_at_ms)}"


def break_glass_of(plan: Plan) -> str:
    """The exception in force, as one sentence; empty when there is none."""
    term = plan.break_glass
    if term is None:
        return ""
    return f"break glass until {time_text(term.until_ms)}, by {term.by}: {term.reason}"
