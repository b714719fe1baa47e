"""`gpuaas whoami`: whose signature one made here would be, and what that may do."""

from __future__ import annotations

from pathlib import Path

import click

from reconciler.cli.common import EXIT_ERROR, EXIT_OK, err, format_option, load_settings, print_json
from reconciler.cli.diff import print_lines
from reconciler.core.authority.facts import Actor
from reconciler.core.authority.public_key import PublicKey
from reconciler.core.problems import Problem
from reconciler.use_cases.authority_questions import Trust, key_holder, who_is
from reconciler.views.authority import identity_lines, nobody_document, who_document, who_lines
from reconciler.wiring.authority import LocalTrust, now_ms
from reconciler.wiring.keys import local_signing_key, read_public_key


@click.command(epilog="Exit codes: 0 somebody, 1 nobody that counts, or an error.")
@click.option(
    "--repo",
    "--path",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    default=Path(),
    help="The state repo, a Git repository here.  [default: the current folder]",
)
@click.option(
    "--key",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="The holder of this public key, instead of the one that Git signs with here.",
)
@click.option("--commit", metavar="REF", help="Whoever signed this commit instead.")
@click.option(
    "--ref", default="HEAD", show_default=True, help="By the identities of this commit or branch."
)
@format_option
def whoami(repo: Path, key: Path | None, commit: str | None, ref: str, output: str) -> int:
    """Show who you are to a state repo: your identity, its keys, what you may do and why.

    By user.signingKey and gpg.format of the local Git, and the identities of HEAD. Nothing is
    signed and nothing is asked of the control plane.

    \b
    Examples:
      gpuaas whoami
      gpuaas whoami --key ~/.ssh/id_ed25519.pub --repo ../state
      gpuaas whoami --commit origin/main --format json
    """
    if key is not None and commit is not None:
        raise click.UsageError("give one of --key and --commit")
    here = LocalTrust(repo, load_settings())
    trust, at_ms = here.at(here.resolve(ref)), now_ms()
    if commit is not None:
        revision = here.resolve(commit)
        found, signed = here.signer(revision, trust), f"signed commit {revision[:12]}"
        return _show(found, None, signed, trust, at_ms, output)
    mine = read_public_key(key) if key is not None else local_signing_key(repo)
    signed = f"{mine.type} {mine.key_id}" + (" (user.signingKey)" if key is None else "")
    return _show(key_holder(mine.key_id, trust, at_ms), mine, signed, trust, at_ms, output)


def _show(
    found: Actor | Problem,
    key: PublicKey | None,
    signed: str,
    trust: Trust,
    at_ms: int,
    output: str,
) -> int:
    key_id = key.key_id if key is not None else ""
    if isinstance(found, Actor):
        who = who_is(found, trust, at_ms)
        if output == "json":
            print_json(who_document(who, key_id, at_ms))
        else:
            print_lines(who_lines(who, signed, at_ms))
        return EXIT_OK
    if output == "json":
        print_json(nobody_document(found, key_id))
        return EXIT_ERROR
    if key is None:
        err().print("error:", f"{found.code}: {found.message} ({found.hint})", markup=False)
        return EXIT_ERROR
    # The sentence is made for commits; of a key alone only its end is true.
    told = found.message.partition(") ")[2] or found.message
    err().print("error:", f"{found.code}: a commit made now {told}", markup=False)
    if found.code == "signer_unknown":
        print_lines(identity_lines(key))
    return EXIT_ERROR
