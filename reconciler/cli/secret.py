"""`gpuaas secret`: the secrets that instances refer to, put there by people."""

from __future__ import annotations

import getpass
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import click

from reconciler.cli.common import (
    EXIT_OK,
    cell,
    err,
    format_option,
    load_settings,
    local_actor,
    out,
    print_json,
    settings_options,
)
from reconciler.core.times import time_text
from reconciler.errors import Refused
from reconciler.ports import Secret
from reconciler.use_cases.secrets import (
    Listed,
    Written,
    delete_secret,
    list_secrets,
    parse_secret,
    set_secret,
    value_from,
)
from reconciler.wiring.ports import open_ports

FORMAT = "gpuaas.dev/secrets/v1"
_CHANGE_FORMAT = "gpuaas.dev/secret-change/v1"
_READ_BYTES_MAX = 64 * 1024 + len("\r\n")
_STDIN = Path("-")


@click.group(epilog="Exit codes: 0 as asked, 1 an error; then nothing was changed.")
def secret() -> None:
    """Keep the secrets that instances refer to: set, list, delete. No command shows a value.

    A secret is a project's (TENANT/PROJECT/NAME, which its instances call secret://project/NAME) or
    a tenant's (TENANT/NAME, secret://tenant/NAME). To be run where the control plane is.

    \b
    Examples:
      gpuaas secret set acme/lab/hf-token
      gpuaas secret list acme/lab
      gpuaas secret delete acme/lab/hf-token
    """


@secret.command(
    "set",
    short_help="Write the value of secret NAME.",
    epilog="Exit codes: 0 written, 1 an error; then nothing was written.",
)
@click.argument("name", metavar="NAME")
@click.option(
    "--file",
    "source",
    type=click.Path(dir_okay=False, allow_dash=True, path_type=Path),
    default=_STDIN,
    help="File with the value; - is standard input.  [default: -, asked for on a terminal]",
)
@click.option(
    "--keep-newline", is_flag=True, help="Keep the newline at the end; else one is taken off."
)
@settings_options
@format_option
def set_(name: str, source: Path, keep_newline: bool, output: str, **given: Any) -> int:
    """Write the value of secret NAME, in place of the one before if there is one.

    The value comes from standard input or a file, never from the command line: others on this host
    see that. On a terminal it is asked for twice and not shown. It is text of up to 64 KiB; one
    newline at its end is taken off, as most programs add one, unless --keep-newline is given.

    Launches that wait for it go on. What runs reads the new value at its next start.

    \b
    Examples:
      gpuaas secret set acme/lab/hf-token
      gpuaas secret set acme/lab/hf-token < token.txt
      pass show license | gpuaas secret set acme/license
      gpuaas secret set acme/lab/tls-key --file key.pem --keep-newline
    """
    ref = parse_secret(name)
    settings = load_settings(**given)
    value = _value(source, keep_newline=keep_newline)
    with open_ports(settings, make=False) as ports:
        written = set_secret(ports, ref, value, local_actor())
    if output == "json":
        print_json(_written_document(written))
    else:
        _print_written(written)
    return EXIT_OK


@secret.command(
    "list",
    short_help="Show which secrets there are, and who uses them.",
    epilog="Exit codes: 0 as asked, 1 an error.",
)
@click.argument("scope", default="", metavar="[TENANT[/PROJECT]]")
@settings_options
@format_option
def list_(scope: str, output: str, **given: Any) -> int:
    """Show which secrets there are, when each was changed, and which instances refer to it.

    Also those that instances refer to and nobody has set yet. Values are never shown.

    \b
    Examples:
      gpuaas secret list
      gpuaas secret list acme/lab
      gpuaas secret list --format json | jq -r '.secrets[] | select(.version == null) | .name'
    """
    with open_ports(load_settings(**given), make=False) as ports:
        found = list_secrets(ports, scope)
    if output == "json":
        print_json({"format": FORMAT, "secrets": [_document(one) for one in found]})
    else:
        _print_list(found)
    return EXIT_OK


@secret.command(epilog="Exit codes: 0 deleted, 1 an error; then nothing was deleted.")
@click.argument("name", metavar="NAME")
@click.option("--force", is_flag=True, help="Delete it although instances refer to it.")
@settings_options
@format_option
def delete(name: str, force: bool, output: str, **given: Any) -> int:
    """Delete secret NAME, unless instances refer to it.

    With --force those that run keep what they have read, and are held where they are to be launched
    anew, until there is one again.

    \b
    Examples:
      gpuaas secret delete acme/lab/hf-token
      gpuaas secret delete acme/lab/hf-token --force
    """
    ref = parse_secret(name)
    with open_ports(load_settings(**given), make=False) as ports:
        used = delete_secret(ports, ref, local_actor(), force=force).get(ref.path, ())
    if output == "json":
        print_json(
            {"format": _CHANGE_FORMAT, "name": str(ref), "deleted": True, "used_by": [*used]}
        )
        return EXIT_OK
    out().print(f"deleted {ref}", markup=False)
    for key in used:
        out().print(f"  {key} still refers to it", markup=False)
    return EXIT_OK


# --- the value -----------------------------------------------------------------------------------


def _value(source: Path, *, keep_newline: bool) -> Secret:
    if source != _STDIN:
        try:
            with source.open("rb") as file:
                return _read(file, keep_newline=keep_newline)
        except OSError as error:
            raise Refused("secret_unreadable", f"{error.strerror}", where=str(source)) from None
    if sys.stdin.isatty():
        return _asked()
    return _read(sys.stdin.buffer, keep_newline=keep_newline)


def _read(file: BinaryIO, *, keep_newline: bool) -> Secret:
    raw = file.read(_READ_BYTES_MAX + 1)
    if len(raw) > _READ_BYTES_MAX:
        raise Refused("secret_too_large", "more than 64 KiB")
    return value_from(raw, keep_newline=keep_newline)


def _asked() -> Secret:
    """Typed twice and not shown; a terminal that would show it is refused."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", getpass.GetPassWarning)
        try:
            first, again = getpass.getpass("Value: "), getpass.getpass("Once more: ")
        except getpass.GetPassWarning:
            hint = "pass the value on standard input, or with --file"
            message = "this terminal would show what is typed"
            raise Refused("secret_would_show", message, hint=hint) from None
        except EOFError:
            raise click.Abort from None
    if first != again:
        raise Refused("secret_differs", "the two values typed are not the same")
    return value_from(first.encode(), keep_newline=True)


# --- what is shown -------------------------------------------------------------------------------


def _print_written(written: Written) -> None:
    console = out()
    console.print(f"{written.ref} is set, version {written.version}", markup=False)
    for record in written.readers:
        text = f"  {record.key} on {record.node} reads it at its next start"
        console.print(text, markup=False)
    for key in written.waiting:
        console.print(f"  {key} refers to it, and nothing that reads it runs yet", markup=False)
    if written.unknown:
        err().print(f"note: {written.unknown}", markup=False)


def _written_document(written: Written) -> dict[str, Any]:
    return {
        "format": _CHANGE_FORMAT,
        "name": str(written.ref),
        "reference": written.ref.reference,
        "version": written.version,
        "read_at_next_start_by": [record.key for record in written.readers],
        "waited_for_by": [*written.waiting],
        "note": written.unknown,
    }


def _document(one: Listed) -> dict[str, Any]:
    return {
        "name": str(one.ref),
        "reference": one.ref.reference,
        "version": one.seen.version if one.seen else None,
        "changed_at_ms": one.seen.changed_at_ms if one.seen else None,
        "used_by": [*one.used_by],
    }


def _print_list(found: Sequence[Listed]) -> None:
    console = out()
    if not found:
        console.print("There is no secret here.")
        return
    rows = [("NAME", "VERSION", "CHANGED", "USED BY"), *map(_row, found)]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    for row in rows:
        start = "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=False))
        missing = row[1] == _MISSING
        console.print(cell(f"{start}  {row[3]}".rstrip(), "yellow" if missing else ""))


_MISSING = "not set"


def _row(one: Listed) -> tuple[str, str, str, str]:
    used = " ".join(one.used_by)
    if one.seen is None:
        return str(one.ref), _MISSING, "-", used
    return str(one.ref), str(one.seen.version), time_text(one.seen.changed_at_ms), used
