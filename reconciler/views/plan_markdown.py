"""A plan as the one comment on a pull request. Pure: text in, text out.

Rules:
- The first line is a marker, so that the next comment for the same environment replaces this one.
- It fits: below `MARKDOWN_CHARS_MAX`, whatever the plan. What is cut is counted; what matters most
  (reach, removals) comes first, so that it is never what is cut.
- What nodes and files say is shown, never obeyed: no markup, no link, no mention comes out of it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from reconciler.core.actions import Action, Remove
from reconciler.core.printable import printable
from reconciler.views.plan import approval_yaml
from reconciler.views.plan_blobs import blob_rows
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
    reach,
    removals_of,
    renames,
    sign_of,
    splits,
    summary,
    told_apart,
    verb_of,
)

MARKDOWN_CHARS_MAX = 59_000
ROWS_OPEN_MAX = 12
"""Longer tables are folded; removals that go ahead never are, and none is only counted."""
ROWS_MAX = 60
_TEXT_CHARS_MAX = 600
_NAMES_MAX = 20
_MARKS = re.compile(r"([\\`*_\[\]<>|~$])")
_TABLE = ("| | Instance | Node | Change | Why |", "|---|---|---|---|---|")


@dataclass(frozen=True)
class _Section:
    """`rows` are what may be cut; `head` and `foot` are whole or not there at all."""

    head: tuple[str, ...]
    rows: tuple[str, ...] = ()
    foot: tuple[str, ...] = ()


def marker(environment: str) -> str:
    """The first line of the comment: how the next one finds it."""
    return f"<!-- gpuaas-plan:{re.sub('[^-.0-9A-Za-z]', '', environment)} -->"


def plan_markdown(shown: Shown, *, everything: bool = False) -> str:
    """The comment: reach and removals first, then what changes, then what waits and why."""
    plan = shown.plan
    where = f" for {_code(shown.environment)}" if shown.environment else ""
    head = [marker(shown.environment), f"### Plan{where} at `{plan.revision[:12]}`", ""]
    head += [f"> {cell(text)}\n" for text in (age_of(shown), break_glass_of(plan)) if text]
    head += [f"**{summary(plan)}**", ""]
    foot = [f"<sub>plan {plan.plan_id}, observed {plan.base[:12]}</sub>", ""]
    if shown.quiet:
        return "\n".join([*head, "Nothing to do.", "", *foot])
    sections = [
        *_radius(shown),
        *_problems(shown),
        *_keys(shown),
        *_blobs(shown),
        *_ready(shown, everything),
        *_gone(shown),
        *_held(shown, everything),
        *_order(shown),
        *_notes(shown),
    ]
    return "\n".join([*head, *_fit(sections, MARKDOWN_CHARS_MAX - 1_000), *foot])


def _fit(sections: Sequence[_Section], chars_max: int) -> list[str]:
    """All sections while there is room; a line says what was cut."""
    lines: list[str] = []
    room, cut = chars_max, 0
    for section in sections:
        frame = sum(len(line) + 1 for line in (*section.head, *section.foot))
        if frame > room:
            cut += max(1, len(section.rows))
            continue
        room -= frame
        kept: list[str] = []
        # One long section leaves room for those after it.
        share = room if section is sections[-1] else room * 6 // 10
        for row in section.rows:
            if len(row) + 1 > share:
                break
            kept.append(row)
            share -= len(row) + 1
            room -= len(row) + 1
        cut += len(section.rows) - len(kept)
        lines += [*section.head, *kept, *section.foot]
    if cut:
        lines += [f"_{cut} more lines do not fit here: run_ `gpuaas plan --all` _to see them._", ""]
    return lines


def _radius(shown: Shown) -> list[_Section]:
    plan, radius = shown.plan, shown.radius
    head: list[str] = []
    removals = removals_of(plan)
    if removals:
        held = sum(a.held is not None for a in removals)
        names = [_code(a.instance) + (" (held)" if a.held else "") for a in removals]
        if held == len(removals):
            names = [_code(a.instance) for a in removals]
        count = f"Removes {len(names)} instance{'s' if len(names) > 1 else ''}"
        all_held = ", all held" if held == len(removals) else ""
        head += [f"> **{count}{all_held}:** {listed(names, _NAMES_MAX)}"]
        likely = [
            f">\n> {_code(f.object)} {cell(f.message)}; {cell(f.hint)}" for f in renames(plan)
        ]
        more = [f"> and {len(likely) - _NAMES_MAX} more like it"]
        head += [*likely[:_NAMES_MAX], *(more if len(likely) > _NAMES_MAX else []), ""]
    if plan.ready:
        names_of = ((what, [_code(name) for name in names]) for what, names in reach(radius))
        rows = [f"- {what}: {listed(names, _NAMES_MAX)}" for what, names in names_of]
        head += [f"Reach: {disturbed(radius)}", *rows, ""]
    return [_Section(tuple(head))]


def _problems(shown: Shown) -> list[_Section]:
    rows = tuple(
        f"- {_code(p.code)} {_code(p.where)}: {cell(p.message)}"
        + (f" — {cell(p.hint)}" if p.hint else "")
        for p in shown.problems
    )
    return [_Section(("#### Problems of this revision", ""), rows, ("",))] if rows else []


def _keys(shown: Shown) -> list[_Section]:
    rows = tuple(
        f"- {action.kind} {_code(action.key)}: {key_change_of(action)}{key_cause_of(shown, action)}"
        f" ({cell(action.reason)})"
        + (f", held, {_code(action.held.code)}: {cell(action.held.message)}" if action.held else "")
        for action in shown.plan.keys
    )
    return [_Section((f"#### Signing keys ({len(rows)})", ""), rows, ("",))] if rows else []


def _blobs(shown: Shown) -> list[_Section]:
    rows = tuple(
        f"- {cell(str(row))}"
        + (f", held, {_code(row.held.code)}: {cell(row.held.message)}" if row.held else "")
        for row in blob_rows(shown.plan)
    )
    title = f"#### Blobs ahead ({len(shown.plan.blobs)})"
    return [_Section((title, ""), rows, ("",))] if rows else []


def _ready(shown: Shown, everything: bool) -> list[_Section]:
    sections = []
    for part, actions in splits(shown):
        if part:
            none = () if actions else ("Nothing.", "")
            sections.append(_Section((f"#### {part} ({len(actions)})", "", *none)))
        for title, those in grouped(actions):
            folded = title != "Removals"
            heading = f"{title} ({len(those)})"
            sections.append(_table(shown, heading, those, folded=folded, everything=everything))
    return sections


def _table(
    shown: Shown, title: str, actions: Sequence[Action], *, folded: bool, everything: bool
) -> _Section:
    removals = any(isinstance(action, Remove) for action in actions)
    if folded and len(actions) > ROWS_MAX and not removals and not everything:
        rows = tuple(f"- {_code(project)}: {counts}" for project, counts in by_project(actions))
        return _Section((f"**{title}**, by project:", ""), rows, ("",))
    rows = tuple(_row(shown, action) for action in actions)
    if folded and len(actions) > ROWS_OPEN_MAX:
        head = (f"<details><summary>{title}</summary>", "", *_TABLE)
        return _Section(head, rows, ("", "</details>", ""))
    return _Section((f"**{title}**", "", *_TABLE), rows, ("",))


def _row(shown: Shown, action: Action) -> str:
    details = "".join(f"<br>{cell(line)}" for line in details_of(shown, action))
    mine = "<br>by this change" if by_this_change(shown, action) else ""
    cells = (
        f"`{sign_of(action)}` {verb_of(action)}",
        _code(action.instance, table=True),
        _code(action.node, table=True),
        cell(change_of(action)) + details + mine,
        cell(action.reason),
    )
    return "| " + " | ".join(cells) + " |"


def _gone(shown: Shown) -> list[_Section]:
    gone = shown.comparison.gone if shown.comparison else ()
    rows = tuple(f"- {verb_of(a)} {_code(a.instance)} on {_code(a.node)}" for a in gone)
    title = f"**Pending now, and no more with this change ({len(gone)})**"
    return [_Section((title, ""), rows, ("",))] if rows else []


def _held(shown: Shown, everything: bool) -> list[_Section]:
    sections = []
    for group in held_groups(shown.plan):
        when = opens(group, shown.now_ms)
        hint = "" if group.code == "removal_budget" else cell(group.hint)
        # Never at the start of a line, where forges look for commands and markup.
        why = "Why: " + "; ".join(text for text in (cell(group.message), when, hint) if text)
        sections.append(_Section((f"#### Held: {_code(group.code)}", "", why, "")))
        title = f"Held ({len(group.actions)})"
        sections.append(_table(shown, title, group.actions, folded=True, everything=everything))
    if shown.plan.removals_approved:
        sections.append(_Section(("The Environment approves of exactly these removals.", "")))
    if approval(shown.plan):
        text = "To approve exactly these removals, commit to the Environment:"
        yaml = approval_yaml(shown.plan.removals_id, shown.now_ms)
        lines = (text, "", "```yaml", *yaml, "```", "")
        sections.append(_Section(lines))
    return sections


def _order(shown: Shown) -> list[_Section]:
    rows = tuple(f"{number}. {cell(step)}" for number, step in enumerate(order_of(shown.plan), 1))
    return [_Section(("**In this order**", ""), rows, ("",))] if rows else []


def _notes(shown: Shown) -> list[_Section]:
    plan = shown.plan
    rows = [
        f"- {'**stalled** ' if f.level == 'stalled' else ''}{_code(f.code)} {_code(f.object)}: "
        f"{cell(f.message)}" + (f" — {cell(f.hint)}" if f.hint else "")
        for f in told_apart(plan)
    ]
    rows += [
        f"- under way, {_code(w.code)}: {_code(w.instance)} on {_code(w.node)}: {cell(w.message)}"
        for w in plan.waiting
    ]
    if plan.ignored:
        rows.append(f"- {len(plan.ignored)} known findings are ignored by a rule")
    if not rows:
        return []
    if len(rows) > ROWS_OPEN_MAX:
        head = (f"<details><summary>Also to know ({len(rows)})</summary>", "")
        return [_Section(head, tuple(rows), ("", "</details>", ""))]
    return [_Section(("**Also to know**", ""), tuple(rows), ("",))]


def cell(text: str) -> str:
    """Text on one line that cannot end its table cell, turn into markup, or call on anybody."""
    text = " ".join(text.split())
    if len(text) > _TEXT_CHARS_MAX:
        text = text[: _TEXT_CHARS_MAX - 1] + "…"
    text = printable(_MARKS.sub(r"\\\1", text.replace("&", "&amp;")))
    # An empty comment inside keeps a forge from making a mention, a reference or a link of it.
    text = re.sub(r"@(?=\w)|#(?=\d)|!(?=\d)|\bGH-(?=\d)", r"\g<0><!-- -->", text)
    return re.sub(r"(?i):(?=//)|\bwww(?=\.)", r"\g<0><!-- -->", text)


def _code(text: str, *, table: bool = False) -> str:
    """A code span, which a backtick would end, and in a table a bar."""
    text = printable(" ".join(text.replace("`", "'").split()))[:_TEXT_CHARS_MAX] or "-"
    return f"`{text.replace('|', chr(92) + '|') if table else text}`"
