"""`gpuaas unwrap`: for whoever was handed a secret."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import click

from reconciler.cli.common import EXIT_OK, err, load_settings, local_actor, settings_options
from reconciler.core.audit import ALARMS
from reconciler.errors import Refused
from reconciler.ports import Secret
from reconciler.use_cases.handover import TOKEN_BYTES_MAX, Asker, read_token, take
from reconciler.wiring.keys import request_unwrap, write_private
from reconciler.wiring.ports import open_ports

EXIT_SPENT = 4
_SAID = (
    "Somebody may have this secret. The alarm is raised: have the secret changed, and find out who "
    "was first."
)


@click.command(
    epilog="Exit codes: 0 unwrapped, 4 somebody was first or the token was changed (the alarm is "
    "raised), 1 an error."
)
@click.option(
    "--token-file",
    type=click.Path(exists=True, dir_okay=False, allow_dash=True, path_type=Path),
    default="-",
    help="File with the hand-over token.  [default: -, standard input]",
)
@click.option(
    "--out",
    "place",
    required=True,
    type=click.Path(dir_okay=False, allow_dash=True, path_type=Path),
    help="File to write the secret to, for its owner alone; - prints it.",
)
@click.option(
    "--server", metavar="URL", help="The control plane's address.  [default: the one of this host]"
)
@settings_options
def unwrap(token_file: Path, place: Path, server: str | None, **given: Any) -> int:
    """Get the secret that a hand-over token stands for. It is given out once.

    Whoever finds that the token was used already knows that somebody else has the secret. So
    unwrap it at once, and don't send it on.

    \b
    Examples:
      gpuaas unwrap --server https://gpuaas.example --out notebook-token
      gpuaas unwrap --server https://gpuaas.example --token-file token --out ~/.ssh/lab
    """
    token = _token(token_file)
    # Whatever can go wrong is tried before the token is spent.
    read_token(token)
    _refuse_unwritable(place)
    settings = load_settings(**given)
    try:
        if server is not None:
            value = request_unwrap(server, token, settings.fetch_timeout_s)
        else:
            with open_ports(settings, make=False) as ports:
                value = take(ports, token, Asker(local_actor(), "local"))
    except Refused as refused:
        if refused.code not in ALARMS:
            raise
        err().print("error:", str(refused), markup=False)
        err().print(_SAID, style="red")
        return EXIT_SPENT
    if place == Path("-"):
        click.echo(value.reveal(), nl=not value.reveal().endswith("\n"))
    else:
        write_private(place, Secret(value.reveal().removesuffix("\n")))
        err().print(f"wrote {place}, for its owner alone", markup=False)
    return EXIT_OK


def _token(place: Path) -> Secret:
    if place != Path("-"):
        with place.open("rb") as file:
            return Secret(file.read(TOKEN_BYTES_MAX + 1).decode(errors="replace"))
    if sys.stdin.isatty():
        return Secret(click.prompt("Hand-over token", hide_input=True, err=True))
    return Secret(sys.stdin.read(TOKEN_BYTES_MAX + 1))


def _refuse_unwritable(place: Path) -> None:
    if place == Path("-") or (place.parent.is_dir() and os.access(place.parent, os.W_OK)):
        return
    hint = "name a file in a folder of yours; the token is still good"
    raise Refused("not_written", "there is no such folder to write in", where=str(place), hint=hint)
