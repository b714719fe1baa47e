"""`gpuaas rollback`: a commit on a new branch that takes one object back, and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from reconciler.cli.common import EXIT_ERROR, EXIT_OK, format_option, load_settings, print_json
from reconciler.cli.diff import print_lines
from reconciler.cli.proposed import changed_document, committed, in_the_way, next_steps
from reconciler.core.history import Commit
from reconciler.core.names import ObjectRef, Revision
from reconciler.use_cases.history import parse_target
from reconciler.use_cases.rollback import Rollback, message_of, prepare
from reconciler.use_cases.validation import check
from reconciler.wiring.history import commit_on_branch, local_history, remotes

FORMAT = "gpuaas.dev/rollback/v1"


@click.command(
    epilog="Exit codes: 0 the branch is there, 1 an error or something in the way; then nothing "
    "was written."
)
@click.argument("target", metavar="OBJECT")
@click.option(
    "--to", metavar="REVISION", help="As it was there.  [default: before its last change]"
)
@click.option("--branch", help="Name of the new branch.  [default: rollback/NAME-REVISION]")
@click.option(
    "--base", default="HEAD", show_default=True, help="The commit that the branch begins at."
)
@click.option(
    "--repo",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    default=Path(),
    help="The state repo, a Git repository here.  [default: the current folder]",
)
@format_option
def rollback(
    target: str, to: str | None, branch: str | None, base: str, repo: Path, output: str
) -> int:
    """Write a commit that takes one object back to an earlier form, on a new branch.

    Replaces the object's own document and nothing else, brings a removed one back, or removes one
    that was added. The working tree, the index and the branch you are on stay as they are. The
    result is validated first. Merging the branch is what rolls back; a rollback of the rollback
    goes forward again. To take back whole commits, use `git revert`.

    \b
    Examples:
      gpuaas rollback acme/research/hello
      gpuaas rollback Promotion/hello/1.1.0 --to v42 --branch undo-promotion
      gpuaas rollback acme/research/hello --base origin/main --repo ../state
    """
    settings = load_settings()
    ref = parse_target(target)
    assert isinstance(ref, ObjectRef)
    commits = local_history(repo, settings)
    head = commits.resolve(base)
    revision = commits.resolve(to) if to else None
    found = prepare(
        commits, ref, head, revision, lambda s: check(s, settings).problems, settings.parse_limits
    )
    if found.in_the_way:
        return _refuse(found, output)
    of, back = commits.commit(head), commits.commit(found.to)
    name = branch or found.branch
    made = commit_on_branch(
        repo, parent=head, branch=name, files=found.files, message=_message(found, of, back)
    )
    if output == "json":
        print_json(_document(found, name, made))
    else:
        title = f"Rolled back {found.ref} to {found.what}"
        print_lines([*committed(title, found, name, made), *next_steps(name, remotes(repo))])
    return EXIT_OK


def _message(found: Rollback, of: Commit, back: Commit) -> str:
    return message_of(found, of.subject, back.subject)


def _refuse(found: Rollback, output: str) -> int:
    if output == "json":
        print_json(_document(found, None, None))
        return EXIT_ERROR
    count = len(found.in_the_way)
    title = f"Not rolled back: with {found.ref} at {found.what}, {count} problem(s) would be new"
    print_lines([*in_the_way(title, found.in_the_way)])
    return EXIT_ERROR


def _document(found: Rollback, branch: str | None, made: Revision | None) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "object": str(found.ref),
        "branch": branch,
        "commit": made,
        "base": found.base,
        "to": found.to,
        "to_what": found.what,
        **changed_document(found),
    }
