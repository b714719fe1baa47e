"""`gpuaas plan`: what would change, and nothing else happens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from reconciler.cli.common import (
    EXIT_CHANGES,
    EXIT_ERROR,
    EXIT_OK,
    environment_of,
    load_settings,
    out,
    print_json,
    settings_options,
)
from reconciler.core.accept import AcceptedState
from reconciler.core.plan import Plan
from reconciler.core.problems import Problem
from reconciler.cycle import load, preview
from reconciler.errors import Refused
from reconciler.plan_views import plan_document, plan_lines, plan_markdown
from reconciler.wiring.files import schema_set
from reconciler.wiring.ports import open_ports

STYLES = {
    "title": "bold",
    "good": "green",
    "launch": "green",
    "upgrade": "yellow",
    "rollback": "yellow",
    "start": "yellow",
    "stop": "yellow",
    "remove": "red",
    "held": "magenta",
    "waiting": "cyan",
    "dim": "dim",
}


@click.command(
    epilog="Exit codes: 0 nothing to do, 2 something would change, 1 an error or a problem in the "
    "revision."
)
@settings_options
@click.option("--ref", help="Plan this commit, branch or tag instead of the branch's head.")
@click.option(
    "--format",
    "output",
    type=click.Choice(["text", "markdown", "json"]),
    default="text",
    show_default=True,
    help="Text for a terminal, Markdown for a pull request, JSON for machines.",
)
def plan(ref: str | None, output: str, **given: Any) -> int:
    """Show what would change to bring what runs to what the state repo says.

    Compares the accepted form of the newest revision with what the nodes last reported and the
    registry serves. Changes nothing.

    \b
    Examples:
      gpuaas plan --environment dev
      gpuaas plan --ref my-branch --format markdown
      gpuaas plan --format json | jq .actions
    """
    settings = load_settings(**given)
    environment_of(settings)
    with open_ports(settings) as ports:
        head = ports.source.fetch()
        revision = ports.source.resolve(ref) if ref else head
        state = load(ports.source.snapshot(revision), schema_set(), ports, settings)
        _refuse_unknown_environment(state)
        planned, _ = preview(state, ports, settings)
    if output == "json":
        print_json(
            {
                **plan_document(planned),
                "problems": [
                    {"where": p.where, "code": p.code, "message": p.message} for p in state.problems
                ],
            }
        )
    elif output == "markdown":
        click.echo(plan_markdown(planned, state.problems))
    else:
        console = out()
        for line in plan_lines(planned, state.problems):
            console.print(line.text, style=STYLES.get(line.style), markup=False)
    return exit_code(planned, state.problems)


def exit_code(planned: Plan, problems: Sequence[Problem]) -> int:
    """A revision with problems is an error, whatever the rest of it would change."""
    if problems:
        return EXIT_ERROR
    return EXIT_OK if planned.empty else EXIT_CHANGES


def _refuse_unknown_environment(state: AcceptedState) -> None:
    """A plan for an environment that is not there would say that there is nothing to do."""
    for problem in state.problems:
        if problem.code == "unknown_environment":
            raise Refused(problem.code, problem.message, where=problem.where, hint=problem.hint)
