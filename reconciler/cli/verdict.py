"""What `gpuaas validate` finds, and how it is shown. Takes long to load: see `cli.validate`."""

from __future__ import annotations

from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, NamedTuple

import click

from reconciler.cli.common import keep, out, plain, print_json
from reconciler.core.problems import Problem
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
from reconciler.wiring.files import (
    below,
    commits_since,
    prefix_in_repository,
    read_base,
    read_local,
    uncommitted,
)

if TYPE_CHECKING:
    from reconciler.use_cases.review import Review
    from reconciler.wiring.ahead import Ahead

_TO_FORGES = ("sarif", "github")


class Asked(NamedTuple):
    """The command line; `ref` and `base` None: the folder as it is, compared with nothing.

    `authority` is auto, require or off; with `identity` all is judged as if that one had made it.
    `commits`: those up to there are judged, where what is checked is a merge of them.
    """

    path: Path
    ref: str | None
    base: str | None
    output: str
    authority: str = "auto"
    identity: str | None = None
    commits: str | None = None


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
    found = _authority(asked, settings, before, checked)
    steps_max = 1 if asked.identity is not None else _commits(asked, before, settings)
    return checked, review(
        before, checked, settings.parse_limits, settings.environment, found, steps_max
    )


def _commits(asked: Asked, before: Checked, settings: Settings) -> int:
    """How many commits what is checked is away from the base; a merge that is tried is one, and so
    is what is not committed yet.
    """
    tip = asked.commits or asked.ref or "HEAD"
    made = commits_since(asked.path, before.revision, tip, settings)
    one_more = asked.ref is None or asked.commits is not None
    return max(1, made + one_more)


def _authority(
    asked: Asked, settings: Settings, before: Checked, checked: Checked
) -> tuple[Problem, ...]:
    """Whether who made the commits may; nothing where nobody asks, or nobody is known."""
    if asked.authority == "off":
        return ()
    from reconciler.use_cases import authority_review  # noqa: PLC0415 - for this alone
    from reconciler.wiring.authority import local_commits, now_ms  # noqa: PLC0415

    if asked.authority == "require" or asked.identity is not None:
        authority_review.refuse_unknown(before)
    if asked.identity is not None:
        return authority_review.problems_as(asked.identity, before, checked.candidate, now_ms())
    asks = asked.authority == "require" or settings.signatures == "required"
    if not asks or not authority_review.has_identities(before):
        return ()
    log = local_commits(asked.path, settings)
    tip, prefix = log.resolve(asked.commits or asked.ref or "HEAD"), log.prefix_of(asked.path)
    if asked.commits is not None and asked.base is not None:
        # What they were made on, which may be older than what they are merged with.
        base = log.merge_base(tip, asked.base)
        if base != before.revision:
            before = check(below(log.snapshot(base), prefix), settings)
    return authority_review.commit_problems(
        log, before, checked.candidate, tip, settings, now_ms(), prefix
    )


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
