"""A plan for people, for a pull request and for machines. Pure: text out, nothing printed here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from reconciler.core.actions import Action, Control, Launch, Remove, Replace, action_id
from reconciler.core.plan import Plan
from reconciler.core.printable import printable
from reconciler.core.problems import Problem

FORMAT = "gpuaas.dev/plan/v1"


@dataclass(frozen=True)
class Line:
    """One line of the text view. `style` names what it says, not a colour."""

    text: str
    style: str = "plain"


def sign_of(action: Action) -> str:
    if isinstance(action, Launch):
        return "+"
    if isinstance(action, Remove):
        return "-"
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
        return f"version {action.version} ({action.workload.image.digest[7:19]})"
    if isinstance(action, Replace):
        digest = action.workload.image.digest[7:19]
        if action.version == action.version_from:
            return f"version {action.version} ({digest}), parameters"
        return f"version {action.version_from} → {action.version} ({digest})"
    if isinstance(action, Remove):
        return f"version {action.version_from}"
    return verb_of(action)


def summary(plan: Plan) -> str:
    counts = {
        "to start": sum(isinstance(a, Launch) for a in plan.ready),
        "to change": sum(isinstance(a, Replace | Control) for a in plan.ready),
        "to remove": sum(isinstance(a, Remove) for a in plan.ready),
        "held": len(plan.held),
        "under way": len(plan.waiting),
        "unchanged": plan.unchanged,
    }
    return ", ".join(f"{count} {name}" for name, count in counts.items()) + "."


def plan_lines(plan: Plan, problems: Sequence[Problem] = ()) -> list[Line]:
    """The text view, line by line; `problems` are those of the revision it was made from."""
    if plan.empty and not plan.findings and not problems:
        return [Line(f"Nothing to do at revision {plan.revision[:12]}: {summary(plan)}", "good")]
    lines = [Line(f"Plan {plan.plan_id} for revision {plan.revision[:12]}", "title"), Line("")]
    for action in plan.actions:
        lines += _action_lines(action)
    for item in plan.waiting:
        where = f"{item.instance} on {item.node}"
        lines.append(Line(f"  … {item.code:<9} {where}: {item.message}", "waiting"))
    for finding in plan.findings:
        mark = "!" if finding.level == "stalled" else "i"
        lines.append(
            Line(f"  {mark} {finding.code} {finding.object}: {finding.message}", "finding")
        )
        if finding.hint:
            lines.append(Line(f"      {finding.hint}", "dim"))
    lines += [Line(f"  ! {problem}", "finding") for problem in problems]
    return [*lines, Line(""), Line(summary(plan), "title")]


def _action_lines(action: Action) -> list[Line]:
    held = action.held
    style = "held" if held else verb_of(action)
    head = f"  {sign_of(action)} {verb_of(action):<9} {action.instance} on {action.node}"
    change = change_of(action)
    lines = [Line(f"{head}: {change}", style)]
    if action.reason not in change:
        lines.append(Line(f"      {action.reason}", "dim"))
    if held:
        lines.append(Line(f"      held, {held.code}: {held.message}", "held"))
    return lines


def plan_markdown(plan: Plan, problems: Sequence[Problem] = ()) -> str:
    """The comment on a pull request: counts first, then what changes, then what waits and why."""
    head = [f"### Plan for `{plan.revision[:12]}`", "", f"**{summary(plan)}**", ""]
    if plan.empty and not plan.findings and not problems:
        return "\n".join([*head, "Nothing to do.", ""])
    body: list[str] = []
    if plan.actions:
        body += ["| | Action | Instance | Node | Change | Why |", "|---|---|---|---|---|---|"]
        body += [_row(action) for action in plan.actions]
        body.append("")
    if plan.waiting:
        body += [
            f"- under way: `{_code(w.instance)}` on `{_code(w.node)}`: {_cell(w.message)}"
            for w in plan.waiting
        ]
        body.append("")
    body += [
        f"- **{f.code}** `{_code(f.object)}`: {_cell(f.message)}"
        + (f" — {_cell(f.hint)}" if f.hint else "")
        for f in plan.findings
    ]
    body += [f"- **{p.code}** `{_code(p.where)}`: {_cell(p.message)}" for p in problems]
    foot = ["", f"<sub>plan {plan.plan_id}, observed {plan.base[:12]}</sub>", ""]
    return "\n".join([*head, *body, *foot])


def _row(action: Action) -> str:
    why = _cell(action.reason)
    if action.held:
        why += f"<br>**held** ({action.held.code}): {_cell(action.held.message)}"
    cells = (
        f"`{sign_of(action)}`",
        verb_of(action),
        f"`{action.instance}`",
        f"`{action.node}`",
        _cell(change_of(action)),
        why,
    )
    return "| " + " | ".join(cells) + " |"


def _cell(text: str) -> str:
    """Text that cannot break out of its table cell or turn into markup."""
    for mark in "\\`*_[]<>|":
        text = text.replace(mark, "\\" + mark)
    return printable(" ".join(text.split()))


def _code(text: str) -> str:
    """Text inside a code span, which a backtick would end."""
    return printable(" ".join(text.replace("`", "'").split()))


def plan_document(plan: Plan) -> Mapping[str, Any]:
    """The JSON view; `format` changes when a field does."""
    return {
        "format": FORMAT,
        "plan_id": plan.plan_id,
        "revision": plan.revision,
        "observed": plan.base,
        "empty": plan.empty,
        "unchanged": plan.unchanged,
        "actions": [_action_document(action) for action in plan.actions],
        "waiting": [
            {"instance": w.instance, "node": w.node, "code": w.code, "message": w.message}
            for w in plan.waiting
        ],
        "findings": [
            {
                "level": f.level,
                "code": f.code,
                "object": f.object,
                "message": f.message,
                "hint": f.hint,
            }
            for f in plan.findings
        ],
    }


def _action_document(action: Action) -> dict[str, Any]:
    document: dict[str, Any] = {
        "action_id": action_id(action),
        "action": verb_of(action),
        "instance": action.instance,
        "node": action.node,
        "reason": action.reason,
        "precondition": {"target_hash": action.precondition.target_hash},
        "depends_on": list(action.depends_on),
        "held": {"code": action.held.code, "message": action.held.message} if action.held else None,
    }
    if isinstance(action, Launch | Replace):
        document["version"] = action.version
        document["digest"] = action.workload.image.digest
    if isinstance(action, Replace | Remove):
        document["version_from"] = action.version_from
    return document
