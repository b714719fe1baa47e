"""`gpuaas audit`: who did what, that nobody changed it since, and a copy to keep elsewhere."""

from __future__ import annotations

import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import click

from node_agent.wire import VerifierKey
from reconciler.cli.common import (
    EXIT_ERROR,
    EXIT_OK,
    err,
    format_option,
    load_settings,
    print_json,
    settings_options,
)
from reconciler.cli.diff import print_lines
from reconciler.core.printable import printable_json
from reconciler.core.times import parse_time_ms
from reconciler.custody.signing import newest_verifier
from reconciler.errors import Refused
from reconciler.ports import Ports
from reconciler.settings import Settings
from reconciler.use_cases import audit as trail
from reconciler.views.audit import (
    compact,
    row_document,
    row_line,
    verification_document,
    verification_lines,
)
from reconciler.wiring.ports import open_ports

_LAST = 50
_UNITS_MS = {"s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_AGO = re.compile(r"([0-9]{1,6})([smhd])")
_EXIT_CODES = "Exit codes: 0 as asked, 1 an error."


@click.group(epilog="Exit codes: 0 as asked or whole, 1 an error or not whole.")
def audit() -> None:
    """Show who did what, check that nobody changed it since, take a copy elsewhere.

    \b
    Examples:
      gpuaas audit list --object AppInstance/acme/research/hello
      gpuaas audit verify
      gpuaas audit export --out audit.jsonl
    """


@audit.command("list", epilog=_EXIT_CODES)
@settings_options
@click.option("--object", "object_", default="", help="Only this object, or all below KIND/SCOPE.")
@click.option("--actor", default="", help="Only what this one did: user/ada, or ada.")
@click.option("--since", help="From then on: 2026-03-01T12:00:00Z, or so long ago as 90m, 12h, 7d.")
@click.option(
    "--last",
    type=click.IntRange(min=1),
    help=f"The newest so many.  [default: {_LAST}, without --since]",
)
@click.option(
    "--format",
    "output",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="Text, or one JSON object a line.",
)
def list_(
    object_: str, actor: str, since: str | None, last: int | None, output: str, **given: Any
) -> int:
    """Show what was done and refused, and by whom, oldest first.

    \b
    Examples:
      gpuaas audit list --last 20
      gpuaas audit list --object Project/acme/research --since 7d
      gpuaas audit list --actor ada --format json | jq 'select(.result != "done")'
    """
    with open_ports(load_settings(**given), make=False) as ports:
        since_ms = _since_ms(since, ports.clock.now_ms()) if since else None
        last = last or (None if since else _LAST)
        rows = trail.found(ports.store, trail.Wanted(object_, actor, since_ms, last))
        newest = ports.store.audit_head()[0]
    if output == "json":
        for row in rows:
            click.echo(printable_json(compact(row_document(row))))
    else:
        print_lines(row_line(row) for row in rows)
    if len(rows) == last and newest > last:
        text = f"there may be more: --last {last * 10} goes further back, the newest is {newest}"
        err().print(text, style="yellow")
    elif not rows:
        err().print(f"nothing of that among {newest} rows", style="yellow")
    return EXIT_OK


def _since_ms(text: str, now_ms: int) -> int:
    ago = _AGO.fullmatch(text)
    if ago is not None:
        return now_ms - int(ago[1]) * _UNITS_MS[ago[2]]
    try:
        return parse_time_ms(text)
    except ValueError:
        hint = "write 2026-03-01T12:00:00Z, or how long ago: 90m, 12h, 7d"
        raise Refused("bad_time", f"{text[:80]!r} is no time", hint=hint) from None


@audit.command(epilog="Exit codes: 0 whole, 1 broken or unreadable.")
@settings_options
@click.option(
    "--from",
    "from_file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Check this export instead of the store.",
)
@click.option(
    "--checkpoint",
    help="Hash of a row, or an export, of before: it has to be part of what is checked.",
)
@click.option(
    "--key",
    "keys",
    multiple=True,
    help="Public key that checkpoints are signed with.  [default: those of the state directory]",
)
@format_option
def verify(
    from_file: Path | None,
    checkpoint: str | None,
    keys: tuple[str, ...],
    output: str,
    **given: Any,
) -> int:
    """Check that every row is there, as it was written, in its place.

    Each row is hashed together with the one before. Who can write to the store can write all of it
    anew: keep an export elsewhere, and give it as --checkpoint.

    \b
    Examples:
      gpuaas audit verify
      gpuaas audit verify --checkpoint last-month.jsonl
      gpuaas audit verify --from audit.jsonl --key "$(cat audit-key)"
    """
    settings = load_settings(**given)
    trusted = [trail.verifier(key) for key in keys] or _local_keys(settings)
    known = _checkpoint(checkpoint, trusted) if checkpoint else None
    with _progress("checked") as progress:
        if from_file is not None:
            with _lines(from_file) as lines:
                found = trail.verify_export(lines, trusted, known, progress)
        else:
            with open_ports(settings, make=False) as ports:
                found = trail.verify_store(ports.store, known, progress)
    document = verification_document(
        found.first, found.last, found.broken, found.signature, known is not None
    )
    if output == "json":
        print_json(document)
    else:
        print_lines(verification_lines(document))
    return EXIT_OK if found.broken is None else EXIT_ERROR


def _local_keys(settings: Settings) -> list[VerifierKey]:
    """None where no control plane keeps its state: an export is checked anywhere."""
    try:
        with open_ports(settings, make=False) as ports:
            return [*ports.secrets.verifier_keys(trail.AUDIT_KEY)]
    except Refused as refused:
        if refused.code != "no_state":
            raise
        return []


def _checkpoint(given: str, keys: list[VerifierKey]) -> trail.Checkpoint:
    if trail.is_hash(given):
        return trail.Checkpoint(None, given)
    if not Path(given).is_file():
        hint = "give the hash of a row (64 hex digits), or an export"
        raise Refused("no_checkpoint", "neither a hash nor a file", where=given, hint=hint)
    with _lines(Path(given)) as lines:
        return trail.checkpoint_in(lines, keys)


@contextmanager
def _lines(path: Path) -> Iterator[Iterable[str]]:
    """Lines of a file that anybody wrote: none longer than an export has any."""
    try:
        with path.open(encoding="ascii", errors="replace", newline="\n") as file:
            yield _lines_of(file)
    except OSError as error:
        raise Refused("not_read", f"{error.strerror}", where=str(path)) from None


def _lines_of(file: TextIO) -> Iterator[str]:
    while line := file.readline(trail.LINE_LENGTH_MAX):
        yield line.removesuffix("\n")


@audit.command(short_help="Write rows as lines of JSON, and a checkpoint.", epilog=_EXIT_CODES)
@settings_options
@click.option(
    "--out",
    "--output",
    "out_file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write it there instead of to standard output, all of it or nothing.",
)
@click.option(
    "--after", type=click.IntRange(min=0), default=0, help="Only the rows after this number."
)
@click.option(
    "--key",
    is_flag=True,
    help="Print the public key that signs checkpoints, for `audit verify --key`, and no more.",
)
def export(out_file: Path | None, after: int, key: bool, **given: Any) -> int:
    """Write the rows as lines of JSON, and a signed checkpoint of the last one below them.

    They are checked on the way: nothing is signed that is not whole.

    \b
    Examples:
      gpuaas audit export --key > audit-key
      gpuaas audit export --out audit.jsonl
      gpuaas audit export --after 120000 --out since.jsonl
    """
    with open_ports(load_settings(**given), make=False) as ports:
        if key:
            click.echo(newest_verifier(ports.secrets, trail.AUDIT_KEY).public_key)
            return EXIT_OK
        with _progress("exported") as progress:
            lines = _exported(ports, after, progress)
            if out_file is None:
                for line in lines:
                    click.echo(line)
                return EXIT_OK
            count = _write_whole(out_file, lines) - 1
    err().print(f"{count} rows and a checkpoint in {out_file}", markup=False)
    return EXIT_OK


def _exported(ports: Ports, after: int, progress: trail.Progress) -> Iterator[str]:
    return trail.export(ports.store, ports.secrets, after, ports.clock.now_ms(), progress)


def _write_whole(path: Path, lines: Iterable[str]) -> int:
    """The number of lines. Until all are on disk, `path` is as it was."""
    count, made = 0, ""
    try:
        folder = path.parent
        with tempfile.NamedTemporaryFile(
            "w", dir=folder, prefix=f".{path.name}.", delete=False
        ) as file:
            made = file.name
            for line in lines:
                file.write(line + "\n")
                count += 1
            file.flush()
            os.fsync(file.fileno())
        os.replace(made, path)
        made = ""
    except OSError as error:
        raise Refused("not_written", f"{error.strerror}", where=str(path)) from None
    finally:
        if made:
            Path(made).unlink(missing_ok=True)
    return count


@contextmanager
def _progress(done: str) -> Iterator[Callable[[int], None]]:
    """How far it is, on a terminal only."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    with err().status(f"{done} no rows yet") as status:
        yield lambda seq: status.update(f"{done} {seq} rows")
