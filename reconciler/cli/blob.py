"""`gpuaas blob`: large files to and from the artifact store, resumable."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from reconciler.cli.common import (
    EXIT_OK,
    err,
    format_option,
    load_settings,
    print_json,
    settings_options,
)
from reconciler.core.names import Digest
from reconciler.errors import Refused
from reconciler.ports import Secret

if TYPE_CHECKING:
    from reconciler.wiring.blob_transfer import BlobServer, Moved, Told

_PASSWORD_BYTES_MAX = 4096

_intent_option = click.option(
    "--intent", required=True, metavar="ID", help="The intent that opens it: gpuaas intent."
)
_password_option = click.option(
    "--password-file",
    type=click.Path(exists=True, dir_okay=False, allow_dash=True, path_type=Path),
    required=True,
    help="File with the intent's credential, as gpuaas unwrap writes it; - is standard input.",
)
_server_option = click.option(
    "--server", metavar="URL", help="The control plane's address.  [default: the one of this host]"
)


@click.group(epilog="Exit codes: 0 all of it was moved, 1 an error; the same again goes on.")
def blob() -> None:
    """Move large files to and from the artifact store.

    What opens the store is an intent (gpuaas intent publish, gpuaas intent pull) with its
    credential. Whatever is cut off goes on where it was when the same command is given again.

    \b
    Examples:
      gpuaas blob upload --server URL --intent 0f… --password-file credential weights.safetensors
      gpuaas blob download --server URL --intent 3c… --password-file credential sha256:9f…
    """


@blob.command(epilog="Exit codes: 0 it is in the artifact store, 1 an error.")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@_intent_option
@_password_option
@_server_option
@format_option
@settings_options
def upload(
    file: Path,
    intent: str,
    password_file: Path,
    server: str | None,
    output: str,
    **given: Any,
) -> int:
    """Upload FILE for a publish intent, and print its digest.

    \b
    Examples:
      gpuaas blob upload --server https://gpuaas.example --intent 0f… --password-file credential \\
        weights.safetensors
    """
    from reconciler.wiring.blob_transfer import upload as send  # noqa: PLC0415

    place = _server(server, intent, password_file, given)
    with _progress(f"upload {file.name}") as told:
        moved = send(place, file, told)
    _say(moved, output)
    if output == "text":
        command = f"gpuaas intent complete {intent} --digest {moved.digest}"
        err().print(f"it is in the artifact store; what is left: {command}", markup=False)
    return EXIT_OK


@blob.command(epilog="Exit codes: 0 the file is there and hashes right, 1 an error.")
@click.argument("digest")
@click.option(
    "--out",
    "-o",
    "place",
    type=click.Path(dir_okay=False, path_type=Path),
    help="File to write it to.  [default: the digest's digits]",
)
@_intent_option
@_password_option
@_server_option
@format_option
@settings_options
def download(
    digest: str,
    place: Path | None,
    intent: str,
    password_file: Path,
    server: str | None,
    output: str,
    **given: Any,
) -> int:
    """Download the blob with this DIGEST for a pull intent.

    The file is there once all of it hashed to the digest. Until then what came is kept beside it,
    in FILE.….part.

    \b
    Examples:
      gpuaas blob download --server https://gpuaas.example --intent 3c… \\
        --password-file credential -o weights.safetensors sha256:9f…
    """
    from reconciler.wiring.blob_transfer import download as receive  # noqa: PLC0415

    try:
        wanted = Digest.parse(digest)
    except ValueError:
        hint = "sha256: and 64 hex digits"
        raise Refused("digest_invalid", f"no digest: {digest[:80]!r}", hint=hint) from None
    place = place or Path(wanted.value.removeprefix("sha256:"))
    with _progress(f"download {place.name}") as told:
        moved = receive(_server(server, intent, password_file, given), wanted, place, told)
    _say(moved, output)
    return EXIT_OK


def _server(
    server: str | None, intent: str, password_file: Path, given: dict[str, Any]
) -> BlobServer:
    from reconciler.wiring.blob_transfer import BlobServer  # noqa: PLC0415

    settings = load_settings(**given)
    address = server or settings.public_address or f"http://{settings.listen}"
    return BlobServer(address, intent, _password(password_file), settings.body_timeout_s)


def _password(place: Path) -> Secret:
    if place == Path("-"):
        found = sys.stdin.read(_PASSWORD_BYTES_MAX + 1)
    else:
        with place.open("rb") as file:
            found = file.read(_PASSWORD_BYTES_MAX + 1).decode(errors="replace")
    words = found.split()
    if len(words) != 1:
        hint = "it is what gpuaas unwrap writes for the intent's hand-over token"
        message = "there is no credential in it"
        raise Refused("no_credential", message, where=str(place), hint=hint)
    return Secret(words[0])


def _say(moved: Moved, output: str) -> None:
    if output == "json":
        print_json({"digest": str(moved.digest), "size_bytes": moved.size_bytes})
    else:
        click.echo(str(moved.digest))


def _say_nothing(done: int, total: int) -> None:
    """Nobody watches."""
    del done, total


@contextmanager
def _progress(what: str) -> Iterator[Told]:
    """A line that moves, on a terminal; nothing elsewhere."""
    console = err()
    if not console.is_terminal:
        yield _say_nothing
        return
    from rich.markup import escape  # noqa: PLC0415
    from rich.progress import (  # noqa: PLC0415
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(escape(what), total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)
