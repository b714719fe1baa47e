"""`gpuaas diff`: what differs between two revisions, and what that means for what runs."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import click

from reconciler.cli.common import (
    EXIT_CHANGES,
    EXIT_ERROR,
    EXIT_OK,
    load_settings,
    out,
    print_json,
    review_format_option,
)
from reconciler.core.effects import Comparison
from reconciler.use_cases.compare import compare
from reconciler.views.changes import Line, diff_document, diff_lines, diff_markdown
from reconciler.wiring.files import read_local, schema_set

STYLES = {
    "title": "bold",
    "good": "green",
    "added": "green",
    "changed": "yellow",
    "removed": "red",
    "problem": "magenta",
    "dim": "dim",
}


@click.command(
    epilog="Exit codes: 0 nothing differs, 2 something differs, 1 an error or a problem in either "
    "revision."
)
@click.argument("from_", metavar="FROM")
@click.argument("to", metavar="[TO]", required=False)
@click.argument(
    "path", type=click.Path(exists=True, file_okay=False, path_type=Path), required=False
)
@click.option(
    "--environment",
    "-e",
    help="Instances of this Environment only.  [default: GPUAAS_ENVIRONMENT, else all there are]",
)
@review_format_option
def diff(
    from_: str, to: str | None, path: Path | None, environment: str | None, output: str
) -> int:
    """Show what differs between revisions FROM and TO of the state repo at PATH, field by field.

    Without TO, FROM is compared with the files in the folder as they are. Comments, order and the
    place of a document make no difference. No store, registry or node is asked: `gpuaas plan` says
    what would be done now, this says what the change means by itself.

    \b
    Examples:
      gpuaas diff HEAD
      gpuaas diff main my-branch --format markdown
      gpuaas diff HEAD~3 HEAD ../state -e prod
    """
    from_, to, path = _named(from_, to, path)
    settings = load_settings(environment=environment)
    folder = path or Path()
    before = read_local(folder, from_, settings)
    found = compare(before, read_local(folder, to, settings), schema_set(), settings)
    if output == "json":
        print_json(diff_document(found))
    elif output == "markdown":
        click.echo(diff_markdown(found))
    else:
        print_lines(diff_lines(found))
    return exit_code(found)


def _named(from_: str, to: str | None, path: Path | None) -> tuple[str, str | None, Path | None]:
    """FROM, TO and PATH, where `A..B` stands for two and TO may have been left out before PATH."""
    first, dots, second = from_.partition("..")
    if dots:
        if path is not None:
            raise click.UsageError(f"{from_} names both revisions: what is {to}?")
        return first or "HEAD", second or "HEAD", Path(to) if to else None
    if to is not None and path is None and Path(to).is_dir():
        return from_, None, Path(to)
    return from_, to, path


def exit_code(found: Comparison) -> int:
    """A revision with problems is an error: what is compared is not all of it."""
    if found.problems_before or found.problems_after:
        return EXIT_ERROR
    return EXIT_OK if found.same else EXIT_CHANGES


def print_lines(lines: Iterable[Line]) -> None:
    console = out()
    for line in lines:
        console.print(line.text, style=STYLES.get(line.style), markup=False)
