"""`gpuaas service-account`: manifests of the machines that act for a project."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import click

from reconciler.cli.common import (
    EXIT_OK,
    cell,
    format_option,
    load_settings,
    out,
    print_json,
)
from reconciler.cli.diff import print_lines
from reconciler.core.kinds.service_account import ServiceRole
from reconciler.core.names import ObjectRef
from reconciler.errors import Refused
from reconciler.use_cases.service_accounts import AccountKey, Accounts, Edited, parse_account
from reconciler.views.authority import account_document, account_row
from reconciler.views.changes import Line
from reconciler.wiring.files import read_local, schema_set
from reconciler.wiring.keys import generate_account_key, read_account_key, write_manifest
from reconciler.wiring.snapshots import now_ms

FORMAT = "gpuaas.dev/service-accounts/v1"
_CHANGE_FORMAT = "gpuaas.dev/manifest-change/v1"
_UNITS_S = {"m": 60, "h": 3600, "d": 86400}
_EPILOG = "Exit codes: 0 written, 1 an error; then nothing was written."


class Span(click.ParamType[int]):
    """`30m`, `24h`, `7d` as milliseconds."""

    name = "span"

    def convert(self, value: Any, param: Any, ctx: Any) -> int:
        found = re.fullmatch(r"([0-9]{1,6})([mhd])", str(value))
        if found is None:
            self.fail(f"{value!r} is no span of time: 30m, 24h or 7d", param, ctx)
        return int(found[1]) * _UNITS_S[found[2]] * 1000


_repo_option = click.option(
    "--repo",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    default=Path(),
    help="The checkout to write into.  [default: the current folder]",
)
_key_options = (
    click.option(
        "--key",
        "key_file",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        help="Its public key: PEM, or an OpenSSH .pub file; ed25519 or ECDSA P-256.",
    ),
    click.option(
        "--generate-key",
        "new_file",
        type=click.Path(path_type=Path),
        help="Make a pair, and write the private key to this new file, for its owner alone.",
    ),
    click.option("--key-id", help="What the key is called.  [default: NAME and a number]"),
)


def _with_keys(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in reversed(_key_options):
        command = option(command)
    return command


@click.group(
    "service-account", epilog="Exit codes: 0 as asked, 1 an error; then nothing was written."
)
def service_account() -> None:
    """Let a machine act for a project: who it is, what it may do, its keys.

    Edits manifests in a checkout, which are yours to review, commit and sign; until that is merged
    nothing changes. A machine proves itself with a key and gets a token (gpuaas token), or signs
    commits by way of an Identity of type service_account.

    \b
    Examples:
      gpuaas service-account create acme/lab/ci --role app-operator --generate-key ci.pem
      gpuaas service-account rotate acme/lab/ci --generate-key ci-2.pem --overlap 24h
      gpuaas service-account list
    """


@service_account.command(epilog=_EPILOG)
@click.argument("account", metavar="TENANT/PROJECT/NAME")
@click.option(
    "--role",
    "roles",
    multiple=True,
    required=True,
    type=click.Choice(get_args(ServiceRole)),
    help="What it may do in its project; may be given several times.",
)
@click.option("--display-name", default="", help="A line about it, for people.")
@_with_keys
@_repo_option
@format_option
def create(
    account: str, roles: tuple[str, ...], display_name: str, output: str, **given: Any
) -> int:
    """Write the manifest of a new service account.

    \b
    Examples:
      gpuaas service-account create acme/lab/ci --role app-operator --generate-key ~/ci.pem
      gpuaas service-account create acme/lab/ci --role viewer --key ci.pub --repo ../state
    """
    ref, accounts = parse_account(account), _accounts(given["repo"])
    there = any(one.ref == ref for one in accounts.all())
    # Asked before a key is made: a file that no manifest names would be left.
    if not there:
        accounts.create(ref, sorted({*roles}), display_name, None)
    key = None if there else _key(ref, 0, given, wanted=False)
    edited = accounts.create(ref, sorted({*roles}), display_name, key)
    return _write(edited, given, output)


@service_account.command(epilog=_EPILOG)
@click.argument("account", metavar="TENANT/PROJECT/NAME")
@_with_keys
@click.option(
    "--overlap",
    type=Span(),
    default="24h",
    show_default=True,
    help="How long the keys it has stay valid beside the new one: 30m, 24h, 7d.",
)
@_repo_option
@format_option
def rotate(account: str, overlap: int, output: str, **given: Any) -> int:
    """Give it a new key, and let those it has end.

    Where an old key got into wrong hands, do not wait for its end: revoke it in the manifest.

    \b
    Examples:
      gpuaas service-account rotate acme/lab/ci --generate-key ~/ci-2.pem
      gpuaas service-account rotate acme/lab/ci --key new.pub --overlap 7d
    """
    ref, accounts = parse_account(account), _accounts(given["repo"])
    key = _key(ref, accounts.keys(ref), given, wanted=True)
    assert key is not None
    return _write(accounts.rotate(ref, key, now_ms() + overlap), given, output)


@service_account.command(epilog=_EPILOG)
@click.argument("account", metavar="TENANT/PROJECT/NAME")
@_repo_option
@format_option
def disable(account: str, output: str, **given: Any) -> int:
    """Take everything from it, until it is enabled again. Tokens it has end with that.

    \b
    Examples:
      gpuaas service-account disable acme/lab/ci
    """
    return _set_disabled(account, given, output, disabled=True)


@service_account.command(epilog=_EPILOG)
@click.argument("account", metavar="TENANT/PROJECT/NAME")
@_repo_option
@format_option
def enable(account: str, output: str, **given: Any) -> int:
    """Give it back what it had.

    \b
    Examples:
      gpuaas service-account enable acme/lab/ci
    """
    return _set_disabled(account, given, output, disabled=False)


@service_account.command(epilog=_EPILOG)
@click.argument("account", metavar="TENANT/PROJECT/NAME")
@_repo_option
@format_option
def delete(account: str, output: str, **given: Any) -> int:
    """Remove its manifest, and say which other objects still name it.

    \b
    Examples:
      gpuaas service-account delete acme/lab/ci
    """
    return _write(_accounts(given["repo"]).delete(parse_account(account)), given, output)


@service_account.command(
    "list",
    short_help="Show the service accounts of a checkout.",
    epilog="Exit codes: 0 as asked, 1 an error.",
)
@_repo_option
@format_option
def list_(repo: Path, output: str) -> int:
    """Show the service accounts of a checkout: roles, keys and when they end.

    \b
    Examples:
      gpuaas service-account list
      gpuaas service-account list --format json | jq -r '.accounts[].account'
    """
    found = _accounts(repo).all()
    at_ms = now_ms()
    if output == "json":
        print_json({"format": FORMAT, "accounts": [account_document(one, at_ms) for one in found]})
        return EXIT_OK
    console = out()
    if not found:
        console.print("There is no service account here.")
    for one in found:
        name, roles, keys = account_row(one, at_ms)
        console.print(cell(name, "bold"), cell(roles), cell(keys, "dim"), sep="  ")
    return EXIT_OK


def _set_disabled(account: str, given: dict[str, Any], output: str, *, disabled: bool) -> int:
    accounts = _accounts(given["repo"])
    return _write(accounts.set_disabled(parse_account(account), disabled=disabled), given, output)


def _accounts(repo: Path) -> Accounts:
    settings = load_settings()
    return Accounts(read_local(repo, None, settings), schema_set(), settings.parse_limits)


def _key(ref: ObjectRef, known: int, given: dict[str, Any], *, wanted: bool) -> AccountKey | None:
    """The key that was asked for: read from a file, or made."""
    key_file, new_file = given["key_file"], given["new_file"]
    if key_file is not None and new_file is not None:
        raise click.UsageError("give one of --key and --generate-key")
    if key_file is None and new_file is None:
        if wanted or given["key_id"]:
            raise click.UsageError("give --key or --generate-key")
        return None
    if new_file is not None:
        _refuse_inside(new_file, given["repo"])
        scheme, text = generate_account_key(new_file)
    else:
        scheme, text = read_account_key(key_file)
    return AccountKey(given["key_id"] or f"{ref.name}-{known + 1}", scheme, text)


def _refuse_inside(file: Path, repo: Path) -> None:
    if file.resolve().is_relative_to(repo.resolve()):
        message = "a private key in a checkout is soon a private key in a repository"
        hint = "name a file outside of it"
        raise Refused("key_in_checkout", message, where=str(file), hint=hint)


def _write(edited: Edited, given: dict[str, Any], output: str) -> int:
    repo: Path = given["repo"]
    write_manifest(repo, edited.path, edited.content)
    if output == "json":
        document = {
            "object": str(edited.ref),
            "path": edited.path,
            "changes": list(edited.told),
            "named_by": list(edited.mentions),
        }
        print_json({"format": _CHANGE_FORMAT, **document})
        return EXIT_OK
    print_lines([*_lines(edited, repo, given.get("new_file"))])
    return EXIT_OK


def _lines(edited: Edited, repo: Path, private: Path | None) -> Iterator[Line]:
    verb = "removed from" if edited.told == ("deleted",) else "wrote"
    yield Line(f"{verb} {repo / edited.path}: {', '.join(edited.told)}", "changed")
    if private is not None:
        yield Line(f"wrote {private}: its private key, readable by you alone", "added")
    if edited.mentions:
        yield Line(f"Still named by {', '.join(edited.mentions)}: change these too", "problem")
    yield Line("Review, commit and sign it; until that is merged nothing changes.", "dim")
