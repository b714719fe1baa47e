"""What commands about artifacts in a registry share: which registry, and with what credential."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from reconciler.errors import Refused
from reconciler.ports import Secret
from reconciler.wiring.signing import Credential, Place

PASSWORD_VARIABLE = "GPUAAS_REGISTRY_PASSWORD"  # noqa: S105 - where it is, not what it is
_PASSWORD_BYTES_MAX = 4096
F = TypeVar("F", bound=Callable[..., Any])

_OPTIONS = (
    click.option(
        "--tree",
        type=click.Path(exists=True, file_okay=False, path_type=Path),
        help="Read the state repo in this folder, committed or not, instead of what was accepted.",
    ),
    click.option(
        "--registry",
        metavar="HOST:PORT",
        help="This registry instead of the Environment's.",
    ),
    click.option("--plain-http", is_flag=True, help="With --registry: it speaks no TLS."),
    click.option("--user", help="Name for the registry's token server, such as an intent's id."),
    click.option(
        "--password-file",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        help=f"With --user: file with the password; else {PASSWORD_VARIABLE} holds it.",
    ),
)


def registry_options(command: F) -> F:
    """Adds `tree`, `registry`, `plain_http`, `user` and `password_file`."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def place_of(tree: Path | None, registry: str | None, *, plain_http: bool) -> Place:
    if plain_http and registry is None:
        raise click.UsageError("--plain-http needs --registry; an Environment says it itself")
    return Place(registry, plain_http, tree)


def credential_of(user: str | None, password_file: Path | None) -> Credential | None:
    if user is None:
        if password_file is not None:
            raise click.UsageError("--password-file needs --user")
        return None
    if password_file is None:
        text = os.environ.get(PASSWORD_VARIABLE, "")
    else:
        with password_file.open("rb") as file:
            text = file.read(_PASSWORD_BYTES_MAX).decode(errors="replace").strip()
    if not text:
        hint = f"pass --password-file, or set {PASSWORD_VARIABLE}"
        raise Refused("no_password", f"there is no password for {user[:100]!r}", hint=hint)
    return Credential(user, Secret(text))
