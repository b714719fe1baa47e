"""`gpuaas promote`: a commit on a new branch that moves a version or an artifact on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from reconciler.cli.common import EXIT_ERROR, EXIT_OK, format_option, load_settings, print_json
from reconciler.cli.diff import print_lines
from reconciler.cli.proposed import changed_document, committed, in_the_way, next_steps
from reconciler.core.names import Revision
from reconciler.core.promotion_steps import STEPS
from reconciler.use_cases.promoting import Asked, Promoting, find_target, message_of, prepare
from reconciler.use_cases.validation import check
from reconciler.wiring.history import commit_on_branch, local_history, remotes

FORMAT = "gpuaas.dev/promotion/v1"
STATES = tuple(dict.fromkeys(state for steps in STEPS.values() for state in steps if state))
branch_options = (
    click.option("--branch", help="Name of the new branch.  [default: promote/NAME-STATE]"),
    click.option(
        "--base", default="HEAD", show_default=True, help="The commit that the branch begins at."
    ),
    click.option(
        "--repo",
        type=click.Path(exists=True, file_okay=False, path_type=Path),
        default=Path(),
        help="The state repo, a Git repository here.  [default: the current folder]",
    ),
)


def on_a_branch(command: Any) -> Any:
    """Adds the options that say where the commit goes."""
    for option in reversed(branch_options):
        command = option(command)
    return command


@click.command(
    epilog="Exit codes: 0 the branch is there, 1 an error or something in the way; then nothing "
    "was written."
)
@click.argument("target", nargs=-1, required=True, metavar="APP VERSION | ARTIFACT")
@click.option("--to", "state", required=True, type=click.Choice(STATES), help="The new state.")
@click.option("--reason", required=True, help="Why; for the file, the commit and the audit trail.")
@click.option(
    "--percent", type=click.IntRange(0, 100), help="Of a canary: that share of projects has it."
)
@click.option(
    "--project",
    "projects",
    multiple=True,
    metavar="TENANT/PROJECT",
    help="Of a canary: this project has it. May be given again.",
)
@click.option(
    "--step-back",
    "failed_max",
    type=click.IntRange(min=0),
    metavar="N",
    help="Of a canary: it goes back by itself once more than N of its instances failed.",
)
@click.option(
    "--channel",
    "channels",
    multiple=True,
    help="Of an artifact: promoted for this channel. May be given again; without, for all.",
)
@on_a_branch
@format_option
def promote(
    target: tuple[str, ...],
    state: str,
    reason: str,
    percent: int | None,
    projects: tuple[str, ...],
    failed_max: int | None,
    channels: tuple[str, ...],
    branch: str | None,
    base: str,
    repo: Path,
    output: str,
) -> int:
    """Write a commit that moves a version or an artifact to another state, on a new branch.

    Versions go draft, staged, canary, active, deprecated, retired, and from canary back to staged;
    artifacts published, promoted, deprecated, retired, and to revoked from all but the last. An
    illegal step is refused, and so is what would bring the state repo a new problem. Merging the
    branch is what promotes. An ARTIFACT is TENANT/PROJECT/APP/VERSION/NAME, or REPOSITORY@DIGEST.

    \b
    Examples:
      gpuaas promote hello 1.1.0 --to canary --percent 10 --reason "smoke test passed"
      gpuaas promote vllm 0.11.0 --to canary --project acme/assistant --step-back 0 --reason try
      gpuaas promote platform/catalog/hello/1.1.0/image --to promoted --channel stable --reason ok
    """
    asked = Asked(state, reason, channels or None, percent, projects or None, failed_max)
    return propose(target, asked, branch, base, repo, output)


def propose(
    target: tuple[str, ...],
    asked: Asked,
    branch: str | None,
    base: str,
    repo: Path,
    output: str,
) -> int:
    """Makes the commit, and shows it."""
    settings = load_settings()
    commits = local_history(repo, settings)
    head = commits.resolve(base)
    ref = find_target(target, commits, head)
    made = prepare(
        commits, ref, head, asked, lambda s: check(s, settings).problems, settings.parse_limits
    )
    if made.in_the_way:
        return _refuse(made, output)
    name = branch or made.branch
    message = message_of(made)
    revision = commit_on_branch(repo, parent=head, branch=name, files=made.files, message=message)
    if output == "json":
        print_json(_document(made, name, revision))
    else:
        title = f"{made.ref} is to be {made.state}"
        shown = committed(title, made, name, revision)
        print_lines([*shown, *next_steps(name, remotes(repo))])
    return EXIT_OK


def _refuse(made: Promoting, output: str) -> int:
    if output == "json":
        print_json(_document(made, None, None))
        return EXIT_ERROR
    count = len(made.in_the_way)
    title = f"Not {made.state}: with {made.ref} as {made.state}, {count} problem(s) would be new"
    print_lines([*in_the_way(title, made.in_the_way)])
    return EXIT_ERROR


def _document(made: Promoting, branch: str | None, revision: Revision | None) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "object": str(made.ref),
        "state": made.state,
        "reason": made.reason,
        "branch": branch,
        "commit": revision,
        "base": made.base,
        **changed_document(made),
    }
