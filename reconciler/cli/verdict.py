"""What `gpuaas validate` finds, and how it is shown. Takes long to load: see `cli.validate`."""

from __future__ import annotations

from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, NamedTuple

import click

from reconciler.cli.common import keep, out, plain, print_json
from reconciler.core.source import Snapshot
from reconciler.settings import Settings
from reconciler.use_cases.validation import Checked, CheckMemo, check
from reconciler.views.problems import (
    Verdict,
    github_lines,
    json_document,
    sarif_document,
    text_lines,
)
from reconciler.wiring.files import prefix_in_repository, read_base, read_local, uncommitted

if TYPE_CHECKING:
    from reconciler.use_cases.review import Review
    from reconciler.wiring.ahead import Ahead

_TO_FORGES = ("sarif", "github")


class Asked(NamedTuple):
    """The command line; `ref` and `base` None: the folder as it is, compared with nothing."""

    path: Path
    ref: str | None
    base: str | None
    output: str


def verdict_on(
    asked: Asked, settings: Settings, begun_s: float, ahead: Ahead | None = None
) -> Verdict:
    """`ahead` may have read and checked the files of the folder at the path already."""
    memo = CheckMemo()
    keep(memo)
    checked, compared = _check(asked, settings, memo, ahead)
    in_forge = asked.output in _TO_FORGES
    return Verdict(
        revision=checked.revision,
        objects=checked.objects,
        problems=checked.problems if compared is None else compared.problems,
        elapsed_s=perf_counter() - begun_s,
        review=compared,
        prefix=prefix_in_repository(asked.path, settings) if in_forge else "",
    )


def _check(
    asked: Asked, settings: Settings, memo: CheckMemo, ahead: Ahead | None
) -> tuple[Checked, Review | None]:
    if ahead is not None:
        ahead.hold_to(settings)
        memo.validated.ahead = ahead
    if asked.base is None:
        return check(_read(asked, settings, ahead), settings, memo), None
    from reconciler.use_cases.review import review  # noqa: PLC0415 - for this alone

    # What did not change since the base is checked once.
    base = read_base(asked.path, asked.ref, asked.base, settings)
    snapshot = _read(asked, settings, ahead)
    before = check(base, settings, memo)
    checked = check(snapshot, settings, memo)
    return checked, review(before, checked, settings.parse_limits, settings.environment)


def _read(asked: Asked, settings: Settings, ahead: Ahead | None) -> Snapshot:
    files = ahead.files() if ahead is not None else None
    if files is None:
        return read_local(asked.path, asked.ref, settings)
    return uncommitted(files)


def show(verdict: Verdict, output: str) -> None:
    if output == "json":
        print_json(json_document(verdict))
    elif output == "sarif":
        from importlib.metadata import version  # noqa: PLC0415 - for this alone

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
