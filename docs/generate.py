"""The reference pages, written from the code they describe: `python docs/generate.py [--check]`.

Rules:
- A page is a function from the code to text. The same code gives the same bytes.
- Nothing here is edited by hand afterwards; a test compares every page with its function.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import click
import yaml

from docs import editor_schemas
from docs.impossible import IMPOSSIBLE
from node_agent.main import main as agent_command
from reconciler.cli.main import gpuaas
from reconciler.core.authority.needs import table_rows
from reconciler.core.authority.roles import (
    MACHINE_PERMISSIONS,
    MACHINE_ROLES,
    PLATFORM_ONLY,
    ROLES,
)
from reconciler.core.kinds import KINDS
from reconciler.core.lifecycle import EVENT, TRANSITIONS, Trigger
from reconciler.core.records import State
from reconciler.server.openapi import openapi_json
from reconciler.settings import Settings
from reconciler.views.failure_words import FAILURE_WORDS

ROOT = Path(__file__).resolve().parent.parent
REFERENCE = ROOT / "docs" / "reference"
COLUMNS = 96
_MADE = "<!-- Written by docs/generate.py; edit the code instead. -->\n"


@dataclass(frozen=True)
class Page:
    """One generated file."""

    name: str
    make: Callable[[], str]
    folder: Path = REFERENCE

    @property
    def path(self) -> Path:
        return self.folder / self.name

    @property
    def fresh(self) -> bool:
        return self.path.is_file() and self.path.read_text() == self.make()


# --- cli.md --------------------------------------------------------------------------------------


def cli_page() -> str:
    intro = (
        "# Command line\n\n"
        "`gpuaas` is for people, CI and the server; `gpuaas-agent` runs on each node. Settings\n"
        "come from the command line, then `GPUAAS_…` variables, then `gpuaas.toml`: see\n"
        "[settings](settings.md).\n"
    )
    sections = [
        f"## `{name}`\n\n```text\n{text}\n```\n"
        for root, program in ((gpuaas, "gpuaas"), (agent_command, "gpuaas-agent"))
        for name, text in _helps(root, program)
    ]
    return "\n".join([_MADE + intro, *sections])


def _helps(command: click.Command, name: str) -> Iterator[tuple[str, str]]:
    context = click.Context(
        command, info_name=name, terminal_width=COLUMNS, help_option_names=["-h", "--help"]
    )
    context.max_content_width = COLUMNS
    yield name, "\n".join(line.rstrip() for line in command.get_help(context).splitlines())
    if isinstance(command, click.Group):
        for child in command.list_commands(context):
            found = command.get_command(context, child)
            assert found is not None
            yield from _helps(found, f"{name} {child}")


# --- settings.md ---------------------------------------------------------------------------------


def settings_page() -> str:
    meanings = _docstrings_of_fields(Settings)
    rows = [
        (
            f"`{name}`",
            f"`GPUAAS_{name.upper()}`",
            f"`{_default(field.default)}`",
            meanings[name],
        )
        for name, field in Settings.model_fields.items()
    ]
    return (
        _MADE + "# Settings\n\n"
        "Of `gpuaas`. A setting comes from the command line where it has an option, then from its\n"
        "variable, then from `gpuaas.toml` in the working directory, then from its default. Units\n"
        "stand last in names: `_s` seconds, `_bytes` bytes.\n\n"
        + _table(("setting", "variable", "default", "what it bounds or says"), rows)
    )


def _docstrings_of_fields(model: type) -> dict[str, str]:
    """Field → the text below it, read here and not at each start of the program."""
    (declared,) = ast.parse(inspect.getsource(model)).body
    assert isinstance(declared, ast.ClassDef)
    return {
        ast.unparse(field.target): inspect.cleandoc(ast.literal_eval(text.value))
        for field, text in pairwise(declared.body)
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr)
    }


def _default(value: Any) -> str:
    if isinstance(value, str) or value is None:
        return json.dumps(value or "")
    return str(value).lower() if isinstance(value, bool) else str(value)


# --- manifests.md --------------------------------------------------------------------------------


def manifests_page() -> str:
    rows = []
    for kind in KINDS.values():
        about = editor_schemas.about(_schema(kind.schema_file))
        rows.append((f"[{kind.name}](#{kind.name.lower()})", f"`{kind.path}`", about))
    intro = (
        "# Manifests\n\n"
        "Every file of a state repo, kind by kind. The contract itself is in\n"
        "[`schemas/`](../../schemas), one JSON Schema (draft 2020-12) a kind; editors take it as\n"
        "[it is](../how-to/edit-with-completion.md). Unknown fields are refused, and nothing is\n"
        "null.\n\n"
    )
    sections = [_kind_section(kind.name, kind.path, kind.schema_file) for kind in KINDS.values()]
    return _MADE + intro + "\n".join([_table(("kind", "path", "says"), rows), *sections])


def _kind_section(name: str, path: str, schema_file: str) -> str:
    schema = _schema(schema_file)
    properties = schema["properties"]
    fields = [
        *_fields(properties["metadata"]["properties"]["name"], "metadata.name", required=True),
        *_fields(properties["spec"], "spec", required=True),
    ]
    rows = [row for row in fields if row[0] != "`spec`"]
    example = yaml.safe_dump(schema["examples"][0], sort_keys=False, width=COLUMNS).rstrip()
    about = editor_schemas.about(schema)
    return (
        f"## {name}\n\n`{path}` · [schema](../../schemas/{schema_file})\n\n{about}\n\n"
        + _table(("field", "type", "", "says"), rows)
        + f"\n```yaml\n{example}\n```\n"
    )


def _schema(file: str) -> Mapping[str, Any]:
    found: Mapping[str, Any] = json.loads((ROOT / "schemas" / file).read_text())
    return found


def _fields(schema: Mapping[str, Any], name: str, *, required: bool) -> Iterator[tuple[str, ...]]:
    """A field and those below it: name, type, whether it is needed, what it says."""
    default = f"default {json.dumps(schema['default'])}" if "default" in schema else ""
    must = "required" if required else default
    yield f"`{name}`", _type(schema), must, schema.get("description", "")
    needed = set(schema.get("required", ()))
    for child, below in schema.get("properties", {}).items():
        yield from _fields(below, f"{name}.{child}", required=child in needed)
    for inner, mark in ((schema.get("items"), "[]"), (schema.get("additionalProperties"), ".*")):
        entry = inner if isinstance(inner, dict) else {}
        needed = set(entry.get("required", ()))
        for child, below in entry.get("properties", {}).items():
            yield from _fields(below, f"{name}{mark}.{child}", required=child in needed)


def _type(schema: Mapping[str, Any]) -> str:
    if "const" in schema:
        return f"`{json.dumps(schema['const']).strip(chr(34))}`"
    if "enum" in schema:
        return ", ".join(f"`{choice}`" for choice in schema["enum"])
    kind = schema.get("type", "any")
    if isinstance(kind, list):
        return " or ".join(kind)
    if kind == "array":
        return f"list of {_type(schema.get('items', {}))}"
    if kind == "object" and isinstance(schema.get("additionalProperties"), dict):
        return f"map to {_type(schema['additionalProperties'])}"
    low = schema.get("minimum", schema.get("exclusiveMinimum"))
    if kind in ("integer", "number") and low is not None and "maximum" in schema:
        return f"{kind}, {low} to {schema['maximum']}"
    return str(kind)


# --- permissions.md ------------------------------------------------------------------------------


def permissions_page() -> str:
    changes = [
        (row.kind, row.change, f"`{row.permission}`", row.scope, _mark(row.human_only), row.notes)
        for row in table_rows()
    ]
    machine = MACHINE_PERMISSIONS - PLATFORM_ONLY
    roles = [
        (f"`{name}`", _mark(name in MACHINE_ROLES), _permissions(held))
        for name, held in ROLES.items()
    ]
    return (
        _MADE + "# Permissions\n\n"
        "What each change to the state repo takes, from the table that decides it\n"
        "(`reconciler/core/authority/needs.py`). How it is judged, and why so:\n"
        "[who may change what](../explanation/authority.md). Whether somebody may make a change:\n"
        "`gpuaas can`.\n\n"
        "A change needs every permission that it falls under, at the scope named or wider.\n"
        "*Human*: no machine may, whatever a RoleBinding says. What can't be made out (an invalid\n"
        "manifest) needs all permissions of its kind.\n\n"
        + _table(("kind", "change", "permission", "at", "human", ""), changes)
        + "\n## Roles\n\n"
        "Held by a [RoleBinding](manifests.md#rolebinding) at the platform, a tenant or a\n"
        "project, and for all below. A `platform-admin` makes sense for the platform only, a\n"
        "`tenant-admin` for a tenant or wider. The role `custom` has what its binding names.\n\n"
        + _table(("role", "for machines", "permissions"), roles)
        + f"\nHeld at a tenant or project, these give nothing: {_permissions(PLATFORM_ONLY)}.\n"
        "\nA service account acts in its own project, and there at most with: "
        f"{_permissions(machine)}.\n\n"
        "What only looks (`….read`) is asked for by the [read API](../how-to/read-over-http.md).\n"
    )


def _mark(holds: bool) -> str:
    return "yes" if holds else ""


def _permissions(held: Iterable[str]) -> str:
    return ", ".join(f"`{key}`" for key in sorted(held))


# --- lifecycle.md --------------------------------------------------------------------------------


def lifecycle_page() -> str:
    rows = []
    for (state, trigger), step in TRANSITIONS.items():
        events = ", ".join(f"`{event}`" for event in step.events)
        rows.append((_state_cell(state), trigger.value, f"`{step.to.value}`", events))
    never = [
        (", ".join(map(_state_cell, states)), ", ".join(trigger.value for trigger in triggers), why)
        for states, triggers, why in IMPOSSIBLE
    ]
    live = _live()
    diagram = "\n".join(["```mermaid", "stateDiagram-v2", *_arrows(live), "```"])
    return (
        _MADE + "# The life of an instance\n\n"
        "From `TRANSITIONS` in `reconciler/core/lifecycle.py`, the only place that says which\n"
        f"state follows which: {len(State)} states, {len(TRANSITIONS)} transitions. What is not in "
        "the table can't happen.\n\n"
        "An arrow is a pair of states. On it stand the triggers that lead there, each with the\n"
        "events it makes behind a slash.\n\n"
        f"{diagram}\n\n`live` stands for {', '.join(f'`{name}`' for name in sorted(live))}: what "
        "a new commit asks for\ncounts at once, whatever is under way. A rename (`move`) leaves "
        "the state of each of them as it is.\n\n"
        "How well an instance is (`starting`, `ready`, `degraded`, `stuck`, `stopped`, `failed`,\n"
        "`unknown`) is another question, answered in [monitor](../how-to/monitor.md#health).\n\n"
        f"## Transitions and their events\n\nEvent types are these words behind `{EVENT}`. Each "
        "carries `version` and\n`digest` of what it leads to, `version_from` and `digest_from` of "
        "what it leads away from, where\nthere are any, and for a failure and what follows on it a "
        "`reason` of the\n[fixed list](../failures/README.md).\n\n"
        + _table(("state", "trigger", "next state", "events, in order"), sorted(rows))
        + "\n## What can't happen, and why\n\n"
        + _table(("state", "trigger", "why not"), never)
    )


def _state_cell(state: State | None) -> str:
    return f"`{state.value}`" if state else "(none)"


def _live() -> frozenset[str]:
    """The states that any new wish of a commit can follow on."""
    return frozenset(s.value for s, trigger in TRANSITIONS if s and trigger is Trigger.UPGRADE)


def _arrows(live: frozenset[str]) -> Iterator[str]:
    """A line a pair of states: `start --> to: trigger / events` for every trigger between them."""
    yield f'    state "{", ".join(sorted(live))}" as live'
    sources: dict[tuple[str, str, tuple[str, ...]], set[str]] = {}
    for (state, trigger), step in TRANSITIONS.items():
        if trigger is Trigger.MOVE:
            continue  # From each live state to itself: more arrows than news.
        start = state.value if state else "[*]"
        sources.setdefault((trigger.value, step.to.value, step.events), set()).add(start)
    edges: dict[tuple[str, str], list[str]] = {}
    for (trigger_name, to, events), starts in sources.items():
        drawn = {*(starts - live), "live"} if live <= starts else starts
        label = " / ".join(filter(None, (trigger_name, " + ".join(events))))
        for start in sorted(drawn):
            edges.setdefault((start, to), []).append(label)
    for (start, to), labels in sorted(edges.items()):
        yield f"    {start} --> {to}: {'<br/>'.join(labels)}"


# --- codes.md ------------------------------------------------------------------------------------

# What is called to make a code → the heading it goes under, and which argument the code is.
_PLAN, _PROBLEMS = "Findings of a pass", "Problems in a state repo"
_ERRORS, _TASKS = "Errors of the control plane", "Why an agent refuses a task"
_HELD, _AGENT = "Why an action is held", "Errors of the agent"
_CHANGES, _API = "Why a commit or a change does not count", "Errors of the HTTP API"
_AUDIT = "What a check of the audit trail finds"
_CALLS: Mapping[str, tuple[str, int]] = {
    "Held": (_HELD, 0),
    "Unknown": (_HELD, 0),
    "Verdict": (_HELD, 1),
    "Finding": (_PROBLEMS, 1),
    "Problem": (_PROBLEMS, 3),
    "finding": (_PROBLEMS, 1),
    "problem": (_PROBLEMS, 1),
    "CannotRender": (_PROBLEMS, 0),
    "Unfit": (_PROBLEMS, 0),
    "Refusal": (_TASKS, 0),
    "RefusedChange": (_CHANGES, 4),
    "commit_problem": (_CHANGES, 1),
    "Broken": (_AUDIT, 1),
    "Standing": (_API, 0),
    "EnvelopeRefused": (_TASKS, 0),
    "Refused": (_ERRORS, 0),
    "Transient": (_ERRORS, 0),
    "_means": (_ERRORS, 1),
    "ApiError": (_API, 1),
    "Denied": (_API, 1),
    "_unauthorized": (_API, 0),
    "JoinRefused": (_AGENT, 0),
    "StateUnusable": (_AGENT, 0),
    "Away": (_AGENT, 0),
}
_TABLES: Mapping[str, str] = {"_UNVERIFIED": _CHANGES}
"""Tables of the code whose rows begin with a code and its words."""
_GROUPS = (_HELD, _PLAN, _PROBLEMS, _CHANGES, _TASKS, _ERRORS, _API, _AUDIT, _AGENT)
_CODE = re.compile(r"[a-z]+(?:_[a-z0-9]+)*")


def codes_page() -> str:
    reasons = [
        (f"[`{reason.value}`](../failures/{reason.value}.md)", words.means)
        for reason, words in FAILURE_WORDS.items()
    ]
    found = codes()
    sections = [
        f"## {group}\n\n" + _table(("code", "says"), [_code_row(*one) for one in made])
        for group in _GROUPS
        if (made := sorted(found[group].items()))
    ]
    return (
        _MADE + "# Codes\n\n"
        "Codes are stable; messages may get better. What stands in braces is filled in. What to\n"
        "do about those in `gpuaas status` is in [recover](../how-to/recover.md).\n\n"
        "## Why a workload failed\n\nThe fixed list, with a page on each:\n\n"
        + _table(("code", "says"), reasons)
        + "\n"
        + "\n".join(sections)
    )


def _code_row(code: str, texts: set[str]) -> tuple[str, str]:
    return f"`{code}`", "; or: ".join(sorted(filter(None, texts))) or "(in its message)"


def codes() -> dict[str, dict[str, set[str]]]:
    """Heading → code → message templates, read from the calls that make them."""
    found: dict[str, dict[str, set[str]]] = {group: {} for group in _GROUPS}
    for package in ("node_agent", "reconciler", "renderers"):
        for path in sorted((ROOT / package).rglob("*.py")):
            if "devkit" not in path.parts:
                for group, code, text in _codes_in(path):
                    found[group].setdefault(code, set()).add(text)
    return found


def _codes_in(path: Path) -> Iterator[tuple[str, str, str]]:
    tree = ast.parse(path.read_text())
    scopes = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    seen: set[int] = set()
    yield from _codes_of_tables(tree)
    for scope in (*reversed(scopes), tree):
        named = [*_assigned(tree.body), *_assigned(ast.walk(scope))]
        for node in ast.walk(scope):
            if isinstance(node, ast.Call) and id(node) not in seen:
                seen.add(id(node))
                yield from _code_of(node, named, path)


def _codes_of_tables(tree: ast.Module) -> Iterator[tuple[str, str, str]]:
    for node in tree.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.value, ast.Dict):
            group = _TABLES.get(ast.unparse(node.target), "")
            for row in node.value.values if group else ():
                assert isinstance(row, ast.Tuple)
                yield group, _template(row.elts[0]), _template(row.elts[1])


def _code_of(
    call: ast.Call, named: Sequence[tuple[int, str, ast.expr]], path: Path
) -> Iterator[tuple[str, str, str]]:
    name = ast.unparse(call.func).rpartition(".")[2]
    group, index = _CALLS.get(name, ("", 0))
    after = 1
    if name == "Finding" and "plan" in path.parts:
        group, after = _PLAN, 2
    if name == "Refusal" and "reconciler" in path.parts:
        group = _CHANGES
    if not group or len(call.args) <= index:
        return
    known = {name: value for line, name, value in named if line <= call.lineno}
    code = known.get(ast.unparse(call.args[index]), call.args[index])
    if isinstance(code, ast.Constant) and _CODE.fullmatch(str(code.value)):
        words = call.args[index + after] if len(call.args) > index + after else call.args[index]
        text = _template(known.get(ast.unparse(words), words))
        yield group, str(code.value), text if " " in text else ""


def _assigned(nodes: Iterable[ast.AST]) -> list[tuple[int, str, ast.expr]]:
    """(line, name, text) of every name that is given a text, in the order of lines."""
    found = [
        (node.lineno, ast.unparse(node.targets[0]), node.value)
        for node in nodes
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant | ast.JoinedStr)
    ]
    return sorted(found, key=lambda one: one[0])


def _template(node: ast.expr) -> str:
    """The words of a text; what is filled in stands in braces. Empty for anything else."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if not isinstance(node, ast.JoinedStr):
        return ""
    return "".join(
        str(part.value) if isinstance(part, ast.Constant) else "{" + _blank(part) + "}"
        for part in node.values
    )


def _blank(part: ast.expr) -> str:
    assert isinstance(part, ast.FormattedValue)
    text = ast.unparse(part.value)
    words = re.findall(r"[a-z_]\w*", text)
    return words[-1].strip("_") if words else "…"


# --- all -----------------------------------------------------------------------------------------


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "".join("| " + " | ".join(_cell(cell) for cell in line) + " |\n" for line in lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")


PAGES = (
    Page("cli.md", cli_page),
    Page("settings.md", settings_page),
    Page("manifests.md", manifests_page),
    Page("permissions.md", permissions_page),
    Page("lifecycle.md", lifecycle_page),
    Page("codes.md", codes_page),
    Page("openapi.json", openapi_json),
    *(
        Page(name, partial(str, text), editor_schemas.SCHEMAS)
        for name, text in editor_schemas.files().items()
    ),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="Write nothing; 1 when one is old.")
    check = parser.parse_args().check
    old = [page for page in PAGES if not page.fresh]
    for page in old:
        print(page.path.relative_to(ROOT), "is out of date" if check else "written")
        if not check:
            page.path.parent.mkdir(parents=True, exist_ok=True)
            page.path.write_text(page.make())
    return 1 if old and check else 0


if __name__ == "__main__":
    sys.exit(main())
