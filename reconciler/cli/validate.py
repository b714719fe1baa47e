"""`gpuaas validate`: every problem in a state repo at once, with file, line and column."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import click
from rich.text import Text

from reconciler.cli.common import (
    EXIT_ERROR,
    EXIT_OK,
    cell,
    format_option,
    load_settings,
    out,
    print_json,
)
from reconciler.core.problems import Problem
from reconciler.validation import Checked, check_path

FORMAT = "gpuaas.dev/validation/v1"


@click.command(
    epilog="Exit codes: 0 no problem, 1 at least one problem or an error.",
)
@click.argument(
    "path", type=click.Path(exists=True, file_okay=False, path_type=Path), default=Path()
)
@click.option("--ref", help="Check this commit, branch or tag of the repository at PATH instead.")
@click.option(
    "--environment",
    "-e",
    help="Check against this Environment only.  [default: GPUAAS_ENVIRONMENT, else all there are]",
)
@format_option
def validate(path: Path, ref: str | None, environment: str | None, output: str) -> int:
    """Check the state repo at PATH: syntax, schemas, references, entitlements, capacity.

    Without --ref the files are read as they are in the folder, committed or not.

    \b
    Examples:
      gpuaas validate
      gpuaas validate ../state --format json
      gpuaas validate . --ref origin/main --environment prod
    """
    checked = check_path(path, ref, load_settings(environment=environment))
    if output == "json":
        print_json(document(checked))
    else:
        _print(checked)
    return EXIT_ERROR if checked.problems else EXIT_OK


def document(checked: Checked) -> dict[str, object]:
    """The JSON form of a validation."""
    return {
        "format": FORMAT,
        "revision": checked.revision,
        "objects": checked.objects,
        "problems": [{**asdict(p), "where": p.where} for p in checked.problems],
    }


def _print(checked: Checked) -> None:
    console = out()
    for problem in checked.problems:
        where, code = cell(problem.where, "bold"), cell(problem.code, "red")
        console.print(Text(": ").join((where, code, cell(_sentence(problem)))))
        if problem.hint:
            console.print(f"    {problem.hint}", style="dim", markup=False)
    console.print(_verdict(checked.problems, checked.objects), markup=False)


def _sentence(problem: Problem) -> str:
    return f"{problem.message} (at {problem.pointer})" if problem.pointer else problem.message


def _verdict(problems: Sequence[Problem], objects: int) -> str:
    if not problems:
        return f"{objects} objects, no problem."
    files = len({problem.path for problem in problems})
    return f"{objects} objects, {len(problems)} problem(s) in {files} file(s)."
