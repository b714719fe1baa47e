"""Differences, histories and rollbacks for people, for pull requests and for machines.

Rules: pure. Text that others wrote is made printable; what can't be told apart in YAML is quoted as
YAML would have it. One field is one line.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from reconciler.core.authority.facts import Actor
from reconciler.core.changes import ABSENT, FieldChange, ObjectChange, dotted
from reconciler.core.effects import Comparison, Effect
from reconciler.core.history import Commit, History, Step
from reconciler.core.names import Revision
from reconciler.core.parse import resolve_scalar
from reconciler.core.printable import printable
from reconciler.core.problems import Problem
from reconciler.core.records import NumberedEvent
from reconciler.core.times import time_text
from reconciler.views.plan_markdown import cell

DIFF_FORMAT = "gpuaas.dev/diff/v1"
HISTORY_FORMAT = "gpuaas.dev/history/v1"
VALUE_COLUMNS_MAX = 64
FIELD_COLUMNS_MAX = 48
_CODE_CHARS_MAX = 200
ROWS_MAX = 100
"""Rows of a Markdown table: a forge cuts long comments off, and says nothing."""
SIGNS = {
    "added": "+", "removed": "-", "changed": "~", "moved": "=", "unreadable": "!", "readable": "*",
    "launch": "+", "remove": "-", "replace": "~", "move": "~", "rename": "=", "stop": "~",
    "start": "~", "held": "!",
}  # fmt: skip
_VERBS = {
    "launch": "to launch", "replace": "to replace", "move": "to move", "rename": "renamed",
    "stop": "to stop", "start": "to start", "remove": "to remove", "held": "held as they are",
}  # fmt: skip
_STYLES = {"+": "added", "-": "removed", "~": "changed", "!": "problem", "=": "dim", "*": "added"}
_DIGEST = re.compile(r"(sha256:[0-9a-f]{12})[0-9a-f]{52}")
_UNCOMMITTED = re.compile("0+")


@dataclass(frozen=True)
class Line:
    """One line of a text view. `style` names what it says, not a colour."""

    text: str
    style: str = "plain"


def revision_text(revision: str) -> str:
    return "the working tree" if _UNCOMMITTED.fullmatch(revision) else revision[:12]


# --- fields --------------------------------------------------------------------------------------


def value_text(value: object, columns_max: int = VALUE_COLUMNS_MAX) -> str:
    """A JSON value as YAML would have it on one line, cut when long."""
    if isinstance(value, str):
        text = value if _plain(value) else json.dumps(value, ensure_ascii=False)
    else:
        text = json.dumps(value, ensure_ascii=False, default=str)
    text = _DIGEST.sub(r"\1…", printable(text))
    return text if len(text) <= columns_max else text[: columns_max - 1] + "…"


def field_line(change: FieldChange, width: int = 0) -> str:
    """`~ spec.version  1.0.0 → 1.1.0`, `+ spec.suspend  {…}`, `- spec.parameters.host_port  80`."""
    name = printable(dotted(change.pointer)).ljust(width)
    if change.old is ABSENT:
        return f"+ {name}  {value_text(change.new)}"
    if change.new is ABSENT:
        return f"- {name}  {value_text(change.old)}"
    old, new = _told_apart(change.old, change.new)
    return f"~ {name}  {old} → {new}"


def field_lines(fields: Sequence[FieldChange]) -> list[Line]:
    """One a field, values under each other."""
    width = max((len(dotted(field.pointer)) for field in fields), default=0)
    lines = (field_line(field, min(width, FIELD_COLUMNS_MAX)) for field in fields)
    return [Line(line, _STYLES[line[0]]) for line in lines]


def field_document(change: FieldChange) -> dict[str, Any]:
    """`old` or `new` is left out where the field was not there."""
    sides = {"old": change.old, "new": change.new}
    there = {side: value for side, value in sides.items() if value is not ABSENT}
    return {"field": dotted(change.pointer), "pointer": change.pointer, **there}


def _plain(text: str) -> bool:
    if not text or text != text.strip() or any(c in text for c in "\n\t\"'#") or ": " in text:
        return False
    if text[0] in "[]{}&*!|>%@`,?-" and len(text.split()) > 1:
        return False
    try:
        return isinstance(resolve_scalar(text), str)
    except ValueError:
        return False


def _told_apart(old: object, new: object) -> tuple[str, str]:
    """Both values, from where they begin to differ when they are long and start alike."""
    texts = value_text(old, 100_000), value_text(new, 100_000)
    if max(map(len, texts)) <= VALUE_COLUMNS_MAX:
        return texts
    pairs = enumerate(zip(*texts, strict=False))
    first = next((i for i, pair in pairs if pair[0] != pair[1]), min(map(len, texts)))
    cut = max(0, first - 16)
    shown = (("…" if cut else "") + text[cut:] for text in texts)
    ends = [t if len(t) <= VALUE_COLUMNS_MAX else t[: VALUE_COLUMNS_MAX - 1] + "…" for t in shown]
    return ends[0], ends[1]


# --- what differs --------------------------------------------------------------------------------


def diff_lines(found: Comparison) -> list[Line]:
    """The text view of `gpuaas diff`."""
    before, after = revision_text(found.before), revision_text(found.after)
    lines = [Line(f"{before} → {after}", "title"), Line("")]
    for change in found.changes:
        lines += _object_lines(change)
    for environment, those in sorted(found.effects.items()):
        if those:
            title = f"What it means for instances in {environment}, by itself: {_counted(those)}"
            lines += [Line(""), Line(title, "title"), *map(_effect_line, those)]
    lines += _problem_lines(found)
    if found.same:
        return [*lines, Line("Nothing differs.", "good")]
    return [*lines, Line(""), Line(_summary(found), "title")]


def _object_lines(change: ObjectChange) -> list[Line]:
    sign = SIGNS[change.kind]
    head = Line(f"{sign} {change.ref}  {_told_of(change)}".rstrip(), _STYLES[sign])
    return [head, *(Line(f"    {line.text}", line.style) for line in field_lines(change.fields))]


def _told_of(change: ObjectChange) -> str:
    """What there is to say of it beside its fields."""
    path = printable(change.path)
    if change.renamed_from is not None:
        former = change.renamed_from
        if change.declared:
            return f"renamed from {former}"
        hint = f"without `moved_from: {former.name}` that one is kept and this one waits"
        return f"renamed? {former} is gone and said the same; {hint}"
    return {
        "moved": f"{printable(change.path_before)} → {path}",
        "unreadable": f"can't be read any more, so it counts as it was: {path}",
        "readable": f"can be read again: {path}",
    }.get(change.kind, path)


def _effect_line(effect: Effect) -> Line:
    sign = SIGNS[effect.kind]
    where = f" on {effect.node}" if effect.node and effect.kind != "move" else ""
    text = f"  {sign} {effect.kind:<7} {effect.instance}{where}: {printable(effect.text)}"
    return Line(text, _STYLES[sign])


def _problem_lines(found: Comparison) -> list[Line]:
    lines: list[Line] = []
    sides = ((found.before, found.problems_before), (found.after, found.problems_after))
    for revision, problems in sides:
        if problems:
            title = f"Problems in {revision_text(revision)}: {len(problems)}"
            lines += [Line(""), Line(title, "problem")]
            lines += [Line(f"  ! {printable(str(problem))}", "problem") for problem in problems]
    return lines


def _counted(found: Iterable[Effect]) -> str:
    counts = Counter[str](effect.kind for effect in found)
    return ", ".join(f"{counts[kind]} {verb}" for kind, verb in _VERBS.items() if counts[kind])


def _summary(found: Comparison) -> str:
    kinds = Counter[str](change.kind for change in found.changes)
    words = ", ".join(f"{kinds[kind]} {kind}" for kind in SIGNS if kinds[kind])
    number = len(found.changes)
    differ = "1 object differs" if number == 1 else f"{number} objects differ"
    objects = f"{differ}: {words}" if words else "No object differs"
    effects = _counted(effect for those in found.effects.values() for effect in those)
    return f"{objects}. Instances: {effects or 'none is touched'}."


def diff_markdown(found: Comparison) -> str:
    """The comment on a pull request: what it means first, then what was changed."""
    title = f"### `{revision_text(found.before)}` → `{revision_text(found.after)}`"
    head = [title, "", f"**{_summary(found)}**", ""]
    body: list[str] = []
    for environment, those in sorted(found.effects.items()):
        rows = [_effect_row(effect) for effect in those]
        if rows:
            body += [f"| | In `{environment}` | Instance | Node | What |", "|---|---|---|---|---|"]
            body += [*_cut(rows), ""]
    if found.changes:
        rows = [row for change in found.changes for row in _change_rows(change)]
        body += ["| | Object | Field | Change |", "|---|---|---|---|", *_cut(rows), ""]
    sides = ((found.before, found.problems_before), (found.after, found.problems_after))
    for revision, problems in sides:
        body += [f"- **{p.code}** {_markdown_problem(p, revision)}" for p in problems[:ROWS_MAX]]
    return "\n".join([*head, *body, ""])


def _cut(rows: list[str]) -> list[str]:
    more = len(rows) - ROWS_MAX
    return [*rows[:ROWS_MAX], f"| | … and {more} more | | |"] if more > 0 else rows


def _effect_row(effect: Effect) -> str:
    cells = (
        f"`{SIGNS[effect.kind]}`", effect.kind, markdown_code(effect.instance),
        markdown_code(effect.node) if effect.node else "", cell(effect.text),
    )  # fmt: skip
    return "| " + " | ".join(cells) + " |"


def _change_rows(change: ObjectChange) -> Iterator[str]:
    sign, ref = f"`{SIGNS[change.kind]}`", markdown_code(str(change.ref))
    if not change.fields or change.kind == "added":
        yield f"| {sign} | {ref} | | {cell(_told_of(change))} |"
    for field in change.fields:
        line = field_line(field)
        said = line.partition("  ")[2] or line
        name = markdown_code(dotted(field.pointer))
        yield f"| `{line[0]}` | {ref} | {name} | {cell(said)} |"


def _markdown_problem(problem: Problem, revision: str) -> str:
    where = markdown_code(problem.where)
    return f"in {revision_text(revision)}, {where}: {cell(problem.message)}"


def markdown_code(text: str) -> str:
    """A code span, which neither a backtick nor a bar can end."""
    text = printable(" ".join(text.replace("`", "'").replace("|", "¦").split()))
    return f"`{text[:_CODE_CHARS_MAX] or '-'}`"


def diff_document(found: Comparison) -> dict[str, Any]:
    """The JSON view of `gpuaas diff`."""
    return {
        "format": DIFF_FORMAT,
        "from": _revision_or_null(found.before),
        "to": _revision_or_null(found.after),
        "same": found.same,
        "objects": [_change_document(change) for change in found.changes],
        "effects": {
            environment: [_effect_document(effect) for effect in those]
            for environment, those in sorted(found.effects.items())
        },
        "problems": {
            "from": [problem_document(problem) for problem in found.problems_before],
            "to": [problem_document(problem) for problem in found.problems_after],
        },
    }


def _revision_or_null(revision: str) -> str | None:
    """null: files that are not committed."""
    return None if _UNCOMMITTED.fullmatch(revision) else revision


def _change_document(change: ObjectChange) -> dict[str, Any]:
    return {
        "object": str(change.ref),
        "change": change.kind,
        "path": change.path,
        "path_before": change.path_before or None,
        "renamed_from": str(change.renamed_from) if change.renamed_from else None,
        "rename_declared": change.declared,
        "fields": [field_document(field) for field in change.fields],
    }


def _effect_document(effect: Effect) -> dict[str, Any]:
    return {
        "effect": effect.kind,
        "instance": effect.instance,
        "node": effect.node,
        "text": effect.text,
        "fields": [field_document(field) for field in effect.fields],
    }


def problem_document(problem: Problem) -> dict[str, Any]:
    return {
        "where": problem.where, "code": problem.code, "message": problem.message,
        "pointer": problem.pointer, "hint": problem.hint, "object": problem.object,
    }  # fmt: skip


# --- what commits did ----------------------------------------------------------------------------

Outcomes = Mapping[Revision, Sequence[NumberedEvent]]
Signers = Mapping[Revision, Actor | Problem]
"""Whose each commit counts as, or why it counts as nobody's, where that was checked."""
NOT_CHECKED: Signers = MappingProxyType({})


def signature_text(commit: Commit, signer: Actor | Problem | None = None) -> str:
    """`signer` None: nobody checked."""
    if isinstance(signer, Actor):
        return f"signed by {signer}" + (f" in {signer.via}" if signer.via else "")
    if signer is not None and commit.signed:
        return f"signed, but {signer.code}"
    return "signature present, not checked" if commit.signed else "unsigned"


def history_lines(
    title: str, found: History, outcomes: Outcomes, signers: Signers = NOT_CHECKED
) -> list[Line]:
    """The text view of `gpuaas history`, newest first."""
    lines = [Line(title, "title")]
    for step in found.steps:
        revision = step.commit.revision
        told = _step_lines(step, outcomes.get(revision, ()), signers.get(revision))
        lines += [Line(""), *told]
    return [*lines, *_end_lines(found)]


def _step_lines(
    step: Step, events: Sequence[NumberedEvent], signer: Actor | Problem | None
) -> Iterator[Line]:
    commit = step.commit
    when = time_text(commit.committed_at_ms)
    who = f"{printable(commit.author)}  ({signature_text(commit, signer)})"
    yield Line(f"{commit.revision[:12]}  {when}  {who}", "changed")
    yield Line(f"    {printable(commit.subject)}", "title")
    verb = _step_verb(step)
    if verb:
        yield Line(f"    {verb}", "added" if step.verb == "added" else "removed")
    yield from (Line(f"    {line.text}", line.style) for line in field_lines(step.fields))
    if events:
        yield Line(f"    ⇒ {_told_by(events)}", "dim")


def _step_verb(step: Step) -> str:
    """What field changes can't say."""
    if step.before is None and step.after is not None:
        return f"+ added as {step.of}" if step.of else "+ added"
    if step.after is None:
        return "- removed"
    if step.of is None:
        return ""
    if step.after.document is None:
        return f"! can't be read from here on: {printable(step.after.path)}"
    if step.before is not None and step.before.document is None:
        return f"* can be read again: {printable(step.after.path)}"
    return ""


def _told_by(events: Sequence[NumberedEvent]) -> str:
    """`upgrade_requested 12:00:05Z, failed 12:00:41Z (not_ready_in_time), …`"""
    words = []
    for numbered in events:
        event = numbered.event
        reason = event.data.get("reason")
        told = f" ({printable(reason)})" if reason else ""
        name = event.type.removeprefix("apps.instance.")
        words.append(f"{name} {time_text(event.at_ms)[11:]}{told}")
    return ", ".join(words)


def _end_lines(found: History) -> list[Line]:
    if found.end == "limit":
        return [Line(""), Line("There may be more: --limit shows more.", "dim")]
    if found.end == "shallow":
        where = (found.end_revision or "")[:12]
        text = f"This clone is shallow: what was before {where} is not here."
        return [Line(""), Line(f"{text} `git fetch --unshallow` brings it.", "problem")]
    return []


def history_document(
    target: str, found: History, outcomes: Outcomes, signers: Signers = NOT_CHECKED
) -> dict[str, Any]:
    """The JSON view of `gpuaas history`."""
    return {
        "format": HISTORY_FORMAT,
        "target": target,
        "end": found.end,
        "end_revision": found.end_revision,
        "commits": [
            {
                **commit_document(step.commit, signers.get(step.commit.revision)),
                "object": str(step.of) if step.of else None,
                "change": step.verb,
                "path": step.path,
                "fields": [field_document(field) for field in step.fields],
                "events": [
                    {
                        "cursor": numbered.cursor,
                        "type": numbered.event.type,
                        "at_ms": numbered.event.at_ms,
                        "reason": numbered.event.data.get("reason", ""),
                    }
                    for numbered in outcomes.get(step.commit.revision, ())
                ],
            }
            for step in found.steps
        ],
    }


def commit_document(commit: Commit, signer: Actor | Problem | None = None) -> dict[str, Any]:
    signature = "present_not_checked" if commit.signed else "absent"
    if commit.signed and signer is not None:
        signature = "verified" if isinstance(signer, Actor) else signer.code
    return {
        "revision": commit.revision,
        "parents": list(commit.parents),
        "author": commit.author,
        "committed_at_ms": commit.committed_at_ms,
        "subject": commit.subject,
        "signature": signature,
        "signed_by": str(signer) if isinstance(signer, Actor) else None,
    }
