"""`gpuaas vault`: what a Vault has to hold, shown and made."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import Any

import click

from reconciler.cli.common import (
    EXIT_CHANGES,
    EXIT_OK,
    F,
    err,
    format_option,
    load_settings,
    print_json,
)
from reconciler.cli.diff import print_lines
from reconciler.core.custody.diff import Change
from reconciler.core.custody.layout import CLASSES
from reconciler.core.custody.paths import SecretClass
from reconciler.errors import Refused
from reconciler.ports import Secret
from reconciler.settings import Settings
from reconciler.use_cases.vault import bootstrap as make_all
from reconciler.use_cases.vault import differences
from reconciler.views.changes import Line
from reconciler.views.vault import change_lines, plan_document, plan_lines
from reconciler.wiring.vault import hand_out, vault_admin, wanted

_TOKEN_VARIABLE = "VAULT_TOKEN"  # noqa: S105 - the name of a variable
_TOKEN_BYTES_MAX = 4096


def vault_options(command: F) -> F:
    """Adds the options that say which Vault and who asks; the command gets `settings`, `token`."""

    @wraps(command)
    def with_settings(
        address: str | None, prefix: str | None, token_file: Path | None, **given: Any
    ) -> Any:
        settings = load_settings(vault_address=address, vault_prefix=prefix)
        return command(settings=settings, token=_token(token_file), **given)

    for option in reversed(_OPTIONS):
        with_settings = option(with_settings)
    return with_settings  # type: ignore[return-value]


_OPTIONS: tuple[Callable[[Any], Any], ...] = (
    click.option("--address", metavar="URL", help="The Vault.  [default: vault_address]"),
    click.option("--prefix", help="What the names there begin with.  [default: vault_prefix]"),
    click.option(
        "--token-file",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        help="File with the token to ask with, instead of VAULT_TOKEN.",
    ),
)


@click.group(epilog="Exit codes: those of its commands.")
def vault() -> None:
    """Show and make what a Vault or OpenBao has to hold for a control plane.

    Mounts, policies, logins, signing keys and the CA are declared by this version of gpuaas; what
    differs is shown, and made so. Each class of login (runtime, operator, ci, bootstrap) may do
    what it needs and no more. Nothing is ever removed.

    \b
    Examples:
      gpuaas vault plan
      gpuaas vault bootstrap --issue runtime --out /etc/gpuaas/vault
    """


@vault.command(epilog="Exit codes: 0 all is as it should be, 2 something differs, 1 an error.")
@vault_options
@format_option
def plan(settings: Settings, token: Secret | None, output: str) -> int:
    """Show what differs from what the Vault has to hold. Changes nothing, reads no secret.

    Asks with VAULT_TOKEN or --token-file; without them by the logins in the settings. What nobody
    declared is shown too, and makes no difference to the exit code.

    \b
    Examples:
      gpuaas vault plan
      gpuaas vault plan --address https://vault.example:8200 --token-file ~/.vault-token
      gpuaas vault plan --format json | jq '.changes[]'
    """
    with vault_admin(settings, token, looks=True) as admin:
        changes = differences(admin, wanted(settings))
        _show(changes, settings, output)
    return EXIT_CHANGES if any(change.op != "foreign" for change in changes) else EXIT_OK


@vault.command(epilog="Exit codes: 0 all is as it should be, 2 something is left, 1 an error.")
@vault_options
@click.option(
    "--issue",
    "classes",
    multiple=True,
    type=click.Choice(sorted(CLASSES)),
    help="Hand out a login of this class afterwards; may be given several times.",
)
@click.option(
    "--out",
    "folder",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for the files of --issue, for their owner alone.",
)
def bootstrap(
    settings: Settings,
    token: Secret | None,
    classes: tuple[SecretClass, ...],
    folder: Path | None,
) -> int:
    """Make the Vault hold what it has to, and hand out logins to it.

    It may be run at any time: what is as it should be is left alone, a run that broke off is
    finished, and drift is put right. The first run, and one by a newer version of gpuaas, needs a
    token that may mount, write policies and enable logins; later ones may use the bootstrap class.

    --issue writes CLASS-role-id and CLASS-secret-id, which vault_role_id_file and
    vault_secret_id_file name. The second holds a token that gives the secret id once, within
    wrap_ttl_s: if somebody else was first, the login fails and says so.

    \b
    Examples:
      gpuaas vault bootstrap --issue runtime --out /etc/gpuaas/vault
      gpuaas vault bootstrap --address https://vault.example:8200 --token-file ~/.vault-token
      gpuaas vault bootstrap --issue ci --issue operator --out ./logins
    """
    if bool(classes) != (folder is not None):
        raise click.UsageError("--issue and --out go together")
    with vault_admin(settings, token, looks=False) as admin:
        print_lines([Line(_place(settings), "title")])
        made = make_all(admin, wanted(settings), _tell)
        if not made.done:
            print_lines([Line("nothing to do", "good")])
        for change in made.left:
            print_lines(change_lines(change))
        for secret_class in dict.fromkeys(classes):
            assert folder is not None
            places = hand_out(admin, secret_class, folder, settings.wrap_ttl_s)
            print_lines([Line(f"login of {secret_class}: {' '.join(map(str, places))}")])
    return EXIT_CHANGES if any(change.op != "foreign" for change in made.left) else EXIT_OK


def _show(changes: Sequence[Change], settings: Settings, output: str) -> None:
    if output == "json":
        print_json(plan_document(changes, settings.vault_address, settings.vault_prefix))
    else:
        print_lines(plan_lines(changes, _place(settings)))


def _place(settings: Settings) -> str:
    return f"{settings.vault_address}, everything named {settings.vault_prefix}-…"


def _tell(change: Change) -> None:
    print_lines(change_lines(change))


def _token(file: Path | None) -> Secret | None:
    """The token of who asks. It is no argument: those are seen by every process of the host."""
    if file is None:
        found = os.environ.get(_TOKEN_VARIABLE, "").strip()
        return Secret(found) if found else None
    try:
        with file.open("rb") as handle:
            mode = os.fstat(handle.fileno()).st_mode
            raw = handle.read(_TOKEN_BYTES_MAX)
    except OSError as error:
        raise Refused("token_unread", f"{error.strerror}", where=str(file)) from None
    if mode & 0o077:
        err().print("warning:", f"{file}: others may read it: chmod 600 {file}", markup=False)
    return Secret(raw.decode("ascii", "replace").strip())
