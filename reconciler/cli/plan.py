"""`gpuaas plan`: what would change, and nothing else happens.

Rules: the files of the commit are read and parsed by a second process while this one loads what
makes a plan of them, so that all of that is loaded late, in `cli.planned`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from reconciler.cli.common import (
    environment_of,
    err,
    load_settings,
    review_format_option,
    settings_options,
)
from reconciler.collector import without_collector
from reconciler.core.times import PLAN_LIFETIME_S
from reconciler.errors import Refused
from reconciler.wiring.ahead import check_ahead
from reconciler.wiring.source import commit_to_plan, committed_files

AGE_S_MAX = 86_400


@click.command(
    epilog="Exit codes: 0 nothing to do, 2 something would change (also when all of it is held), "
    "or waits for a person, 1 an error or a problem in the revision."
)
@settings_options
@click.option("--ref", help="Plan this commit, branch or tag instead of the branch's head.")
@click.option(
    "--base",
    help="Also say what the change from this commit, branch or tag to --ref itself causes, and "
    "what is pending without it. With --snapshot: from where the two parted.",
)
@click.option(
    "--out",
    "out_file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Save the plan, signed, for `gpuaas apply FILE`.",
)
@click.option(
    "--expires-s",
    type=click.FloatRange(min=1),
    default=PLAN_LIFETIME_S,
    show_default=True,
    help="How long a saved plan may be applied.",
)
@click.option(
    "--snapshot",
    "from_snapshot",
    metavar="FILE_OR_URL",
    help="Plan offline, without store or credential, from what `gpuaas snapshot` exported. Its "
    "signature is checked against snapshot_keys of the Environment at --base, never at --ref: a "
    "change can't vouch for itself.",
)
@click.option(
    "--snapshot-key",
    "keys",
    multiple=True,
    help="Public key to check the snapshot with, in place of the ones at --base. Repeatable.",
)
@click.option(
    "--token-file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="File with the bearer token to fetch the --snapshot with; else GPUAAS_TOKEN holds it, if "
    "one is needed.",
)
@click.option(
    "--max-age-s",
    type=click.FloatRange(min=1),
    default=AGE_S_MAX,
    show_default=True,
    help="Refuse a snapshot that is older.",
)
@click.option("--all", "everything", is_flag=True, help="Sum nothing up, however long it gets.")
@review_format_option
def plan(
    ref: str | None,
    base: str | None,
    out_file: Path | None,
    expires_s: float,
    from_snapshot: str | None,
    keys: tuple[str, ...],
    token_file: Path | None,
    max_age_s: float,
    everything: bool,
    output: str,
    **given: Any,
) -> int:
    """Show what would change to bring what runs to what the state repo says.

    Compares the accepted form of the newest revision with what the nodes last reported and the
    registry serves. Changes nothing.

    \b
    Examples:
      gpuaas plan --environment dev
      gpuaas plan --ref my-branch --base main --format markdown
      gpuaas plan --out plan.json; gpuaas apply plan.json
      gpuaas plan --format json | jq .actions
      gpuaas plan -e prod --snapshot snapshot.json --repo . --ref HEAD --base origin/main
    """
    if keys and not from_snapshot:
        raise Refused("no_snapshot", "--snapshot-key is for --snapshot", hint="pass both")
    if token_file and not from_snapshot:
        raise Refused("no_snapshot", "--token-file is for --snapshot", hint="pass both")
    ahead = None if from_snapshot else check_ahead(committed_files)
    try:
        # A gpuaas.toml in the checkout belongs to whoever wrote the change under review.
        settings = load_settings(file=from_snapshot is None, **given)
        environment_of(settings)
        with without_collector():
            committed = None if from_snapshot else commit_to_plan(settings, ref, ahead)
            from reconciler.cli.planned import Wanted, exit_code, live, show  # noqa: PLC0415

        wanted = Wanted(ref, base, out_file, expires_s, from_snapshot, keys, max_age_s, token_file)
        if committed is not None:
            found = live(wanted, settings, committed)
        else:
            from reconciler.cli.plan_offline import offline  # noqa: PLC0415

            found = offline(wanted, settings)
    finally:
        if ahead is not None:
            ahead.close()
    show(found, output, everything=everything)
    if out_file:
        until = "as long as nothing else changes"
        err().print(f"saved to {out_file}: apply it within {expires_s:g} s, {until}", markup=False)
    return exit_code(found.plan, found.problems)
