"""`gpuaas retire`: a commit on a new branch that ends the life of a version or an artifact."""

from __future__ import annotations

from pathlib import Path

import click

from reconciler.cli.common import format_option
from reconciler.cli.promote import on_a_branch, propose
from reconciler.use_cases.promoting import Asked


@click.command(
    epilog="Exit codes: 0 the branch is there, 1 an error or something in the way; then nothing "
    "was written."
)
@click.argument("target", nargs=-1, required=True, metavar="APP VERSION | ARTIFACT")
@click.option("--reason", required=True, help="Why; for the file, the commit and the audit trail.")
@on_a_branch
@format_option
def retire(
    target: tuple[str, ...], reason: str, branch: str | None, base: str, repo: Path, output: str
) -> int:
    """Write a commit that retires a deprecated version or artifact, on a new branch.

    Refused while an instance in the state repo names the version, or a version the artifact; they
    are named. Where something runs it that is declared no more, the control plane holds the
    retirement until that is gone.

    \b
    Examples:
      gpuaas retire hello 1.0.0 --reason "nobody runs it any more"
      gpuaas retire platform/catalog/hello/1.0.0/image --reason "superseded"
    """
    return propose(target, Asked("retired", reason), branch, base, repo, output)
