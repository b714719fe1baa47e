"""`gpuaas validate`: every problem in a state repo at once, with file, line and column."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from time import perf_counter

import click

from reconciler.cli.common import EXIT_ERROR, EXIT_OK, load_settings, out, plain, print_json
from reconciler.collector import without_collector
from reconciler.errors import Refused
from reconciler.settings import Settings
from reconciler.use_cases.review import Review, review
from reconciler.use_cases.validation import Checked, CheckMemo, check, check_path
from reconciler.views.problems import (
    Verdict,
    github_lines,
    json_document,
    sarif_document,
    text_lines,
)
from reconciler.wiring.files import prefix_in_repository, read_base, read_local

_TO_FORGES = ("sarif", "github")


@click.command(
    epilog="Exit codes: 0 no problem, 1 at least one problem or an error.",
)
@click.argument("path", type=click.Path(exists=True, path_type=Path), default=Path())
@click.option("--ref", help="Check this commit, branch or tag of the repository at PATH instead.")
@click.option(
    "--base",
    help="Say what is new since PATH (or --ref) parted from this branch, as `git diff BASE...` "
    "does: problems introduced here, objects that differ, and what only a comparison shows.",
)
@click.option(
    "--environment",
    "-e",
    help="Check against this Environment only.  [default: GPUAAS_ENVIRONMENT, else all there are]",
)
@click.option(
    "--format",
    "output",
    type=click.Choice(["text", "json", "sarif", "github"]),
    default="text",
    show_default=True,
    help="Text for people, JSON for machines, SARIF 2.1.0 for code scanning, github for "
    "annotations in a workflow.",
)
def validate(
    path: Path, ref: str | None, base: str | None, environment: str | None, output: str
) -> int:
    """Check the state repo at PATH: syntax, schemas, references, entitlements, capacity.

    Without --ref the files are read as they are in the folder, committed or not. Any problem
    fails, also one that was there before: --base only says whose it is. No gpuaas.toml is read,
    since whoever wrote the checked files could have written it; GPUAAS_* variables count.

    \b
    Examples:
      gpuaas validate
      gpuaas validate ../state --format json
      gpuaas validate . --ref origin/main --environment prod
      gpuaas validate . --base origin/main --format github
    """
    begun_s = perf_counter()
    _refuse_file(path)
    settings = load_settings(file=False, environment=environment)
    verdict = _verdict(path, ref, base, settings, begun_s, output)
    _print(verdict, output)
    return EXIT_ERROR if verdict.problems else EXIT_OK


def _verdict(
    path: Path, ref: str | None, base: str | None, settings: Settings, begun_s: float, output: str
) -> Verdict:
    with without_collector():
        checked, compared = _check(path, ref, base, settings)
    return Verdict(
        revision=checked.revision,
        objects=checked.objects,
        problems=checked.problems if compared is None else compared.problems,
        elapsed_s=perf_counter() - begun_s,
        review=compared,
        prefix=prefix_in_repository(path, settings) if output in _TO_FORGES else "",
    )


def _check(
    path: Path, ref: str | None, base: str | None, settings: Settings
) -> tuple[Checked, Review | None]:
    if base is None:
        return check_path(path, ref, settings), None
    memo = CheckMemo()  # What did not change since the base is checked once.
    before = check(read_base(path, ref, base, settings), settings, memo)
    checked = check(read_local(path, ref, settings), settings, memo)
    return checked, review(before, checked, settings.parse_limits, settings.environment)


def _refuse_file(path: Path) -> None:
    if not path.is_dir():
        raise Refused(
            "not_a_folder",
            "a file alone can't be checked: objects refer to each other",
            where=str(path),
            hint="pass the folder of the state repo, the one that holds environments/",
        )


def _print(verdict: Verdict, output: str) -> None:
    if output == "json":
        print_json(json_document(verdict))
    elif output == "sarif":
        print_json(sarif_document(verdict, version("gpuaas")))
    elif output == "github":
        click.echo("\n".join(github_lines(verdict)))
    else:
        _print_text(verdict)


def _print_text(verdict: Verdict) -> None:
    if plain() or not out().is_terminal:
        # Laying out a hundred thousand lines in colours takes longer than finding them.
        lines = ("".join(piece.text for piece in line) for line in text_lines(verdict))
        click.echo("\n".join(lines))
        return
    from rich.text import Text  # noqa: PLC0415 - see `plain`

    console = out()
    for line in text_lines(verdict):
        console.print(Text.assemble(*(Text(piece.text, piece.style) for piece in line)))
