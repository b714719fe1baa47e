"""What `gpuaas plan` shows, made live or offline, and printed.

Rule: `cli.plan` loads this after it began to have files parsed; see `wiring.ahead`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from reconciler.cli.common import (
    EXIT_CHANGES,
    EXIT_ERROR,
    EXIT_OK,
    keep,
    out,
    plain,
    print_json,
    write_file,
)
from reconciler.collector import without_collector
from reconciler.core.authority.facts import Walked
from reconciler.core.plan import Plan
from reconciler.core.printable import printable
from reconciler.core.problems import Problem
from reconciler.core.records import Accepted
from reconciler.core.validate import ValidateMemo
from reconciler.cycle import LoadMemo
from reconciler.errors import Refused
from reconciler.settings import Settings
from reconciler.use_cases.planning import look_now, shown
from reconciler.views.plan import Line, plan_document, plan_lines
from reconciler.views.plan_words import Shown
from reconciler.wiring.files import schema_set
from reconciler.wiring.gate import walked_to
from reconciler.wiring.ports import open_ports
from reconciler.wiring.source import Committed

STYLES = {
    "title": "bold",
    "notice": "bold yellow",
    "good": "green",
    "launch": "green",
    "upgrade": "yellow",
    "rollback": "yellow",
    "start": "yellow",
    "stop": "yellow",
    "move": "cyan",
    "remove": "red",
    "held": "magenta",
    "waiting": "cyan",
    "dim": "dim",
}


@dataclass(frozen=True)
class Wanted:
    """What the command line asks for."""

    ref: str | None
    base: str | None
    out: Path | None
    lifetime_s: float
    snapshot: str | None
    keys: tuple[str, ...]
    age_s_max: float
    token_file: Path | None = None


@without_collector()
def live(wanted: Wanted, settings: Settings, committed: Committed) -> Shown:
    """The plan against the store, the nodes' reports and the registry; saved when asked for."""
    if wanted.out and committed.revision != committed.head:
        raise Refused(
            "plan_not_head",
            f"{committed.revision[:12]} is not the head of {settings.branch}: it can't be applied",
            hint="leave out --ref, or merge it first",
        )
    memo = LoadMemo(validated=ValidateMemo(ahead=committed.ahead))
    keep(memo)
    with open_ports(settings, source=committed.source) as ports:
        base = ports.source.snapshot(ports.source.find(wanted.base)) if wanted.base else None

        def walk(last: Accepted) -> Walked | None:
            return walked_to(committed.head, last, settings, ports)

        look = look_now(ports, settings, walk if committed.revision == committed.head else None)
        found = shown(look, committed.snapshot(), base, schema_set(), settings, memo)
        if wanted.out:
            from reconciler.use_cases import saved_plan  # noqa: PLC0415 - loads cryptography

            _refuse_problems(found.problems)
            raw = saved_plan.sealed(
                found, settings.branch, look.now_ms, wanted.lifetime_s, ports.secrets
            )
            write_file(wanted.out, raw)
    return found


def _refuse_problems(problems: Sequence[Problem]) -> None:
    if problems:
        raise Refused(
            "plan_problems",
            f"the revision has {len(problems)} problems, the first: {problems[0]}",
            hint="mend them first; `gpuaas plan` without --out shows all",
        )


def show(found: Shown, output: str, *, everything: bool) -> None:
    if output == "json":
        print_json(plan_document(found))
    elif output == "markdown":
        from reconciler.views.plan_markdown import plan_markdown  # noqa: PLC0415

        click.echo(plan_markdown(found, everything=everything))
    else:
        _print_text(plan_lines(found, everything=everything))


def _print_text(lines: Sequence[Line]) -> None:
    if plain():
        click.echo("\n".join(printable(line.text) for line in lines))
        return
    console = out()
    for line in lines:
        console.print(line.text, style=STYLES.get(line.style), markup=False)


def exit_code(planned: Plan, problems: Sequence[Problem]) -> int:
    """A revision with problems is an error, whatever the rest of it would change.

    What was given up runs in another form than is wanted: nothing will be done, and yet it differs.
    """
    if problems:
        return EXIT_ERROR
    return EXIT_OK if planned.empty and not planned.stalled else EXIT_CHANGES
