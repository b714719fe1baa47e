"""`gpuaas validate`: every problem in a state repo at once, with file, line and column.

Rules: the files are looked at by a second process while this one loads what checks them, so that
all of that is loaded late, in `cli.verdict`.
"""

from __future__ import annotations

from pathlib import Path
from time import perf_counter

import click

from reconciler.cli.common import EXIT_ERROR, EXIT_OK, load_settings
from reconciler.collector import without_collector
from reconciler.errors import Refused
from reconciler.wiring.ahead import read_ahead


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
    "--authority",
    type=click.Choice(["auto", "require", "off"]),
    default="auto",
    show_default=True,
    help="With --base: whether the commits since then are signed by who may make their changes, by "
    "the identities of the base. auto: where it has any, unless GPUAAS_SIGNATURES is off.",
)
@click.option(
    "--commits",
    metavar="REF",
    help="With --base: judge the commits up to this one, where what is checked is a merge that a "
    "forge made to try them.  [default: --ref, else HEAD]",
)
@click.option(
    "--as",
    "identity",
    metavar="IDENTITY",
    help="With --base: judge all that differs as if this one had committed it, signatures aside, "
    "for forges that squash and sign at the merge.",
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
    path: Path,
    ref: str | None,
    base: str | None,
    authority: str,
    commits: str | None,
    identity: str | None,
    environment: str | None,
    output: str,
) -> int:
    """Check the state repo at PATH: syntax, schemas, references, entitlements, capacity.

    Without --ref the files are read as they are in the folder, committed or not. Any problem
    fails, also one that was there before: --base only says whose it is. No gpuaas.toml is read,
    since whoever wrote the checked files could have written it; GPUAAS_* variables count. What is
    not committed has no signer yet, so authority looks at commits alone.

    \b
    Examples:
      gpuaas validate
      gpuaas validate ../state --format json
      gpuaas validate . --ref origin/main --environment prod
      gpuaas validate . --base origin/main --format github
      gpuaas validate . --base origin/main --as ada
    """
    begun_s = perf_counter()
    _refuse_file(path)
    if base is None and (identity or commits or authority == "require"):
        raise click.UsageError("--as, --commits and --authority need --base")
    if identity is not None and authority == "off":
        raise click.UsageError("--as asks for authority, --authority off for none")
    ahead = read_ahead(path) if ref is None else None
    try:
        with without_collector():
            from reconciler.cli.verdict import Asked, show, verdict_on  # noqa: PLC0415 - see above

            settings = load_settings(file=False, environment=environment)
            asked = Asked(path, ref, base, output, authority, identity, commits)
            verdict = verdict_on(asked, settings, begun_s, ahead)
    finally:
        if ahead is not None:
            ahead.close()
    show(verdict, output)
    return EXIT_ERROR if verdict.problems else EXIT_OK


def _refuse_file(path: Path) -> None:
    if not path.is_dir():
        raise Refused(
            "not_a_folder",
            "a file alone can't be checked: objects refer to each other",
            where=str(path),
            hint="pass the folder of the state repo, the one that holds environments/",
        )
