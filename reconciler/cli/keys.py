"""`gpuaas keys`: the keys that the control plane signs with. What they are to be is a commit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import click

from reconciler.cli.common import (
    EXIT_OK,
    cell,
    format_option,
    load_settings,
    out,
    print_json,
    settings_options,
)
from reconciler.settings import Settings
from reconciler.use_cases.keys import NAMES, KeyState, keys_now, public_key
from reconciler.wiring.ports import open_ports

FORMAT = "gpuaas.dev/keys/v1"
_NODES_NAMED_MAX = 5


@click.group(invoke_without_command=True, epilog="Exit codes: 0 as asked, 1 an error.")
@settings_options
@format_option
def keys(output: str, **given: Any) -> int:
    """Show the signing keys: versions, which one signs, which agents do not know the newest.

    To rotate a key, raise its version under signing_keys of the Environment with a commit; `gpuaas
    plan` shows what follows from it.

    \b
    Examples:
      gpuaas keys
      gpuaas keys --format json | jq '.keys[].versions'
      gpuaas keys show artifacts > cosign.pub
    """
    if click.get_current_context().invoked_subcommand is not None:
        return EXIT_OK
    settings = load_settings(**given)
    with open_ports(settings, make=False) as ports:
        found = keys_now(ports, settings)
    if output == "json":
        print_json({"format": FORMAT, "keys": [_document(state) for state in found]})
    else:
        _print(found)
    return EXIT_OK


@keys.command(epilog="Exit codes: 0 as asked, 1 an error.")
@click.argument("name", type=click.Choice(NAMES))
@click.option("--version", type=click.IntRange(min=1), help="This version instead of the newest.")
@settings_options
def show(name: str, version: int | None, **given: Any) -> int:
    """Print the public half of a signing key, PEM.

    \b
    Examples:
      gpuaas keys show artifacts > cosign.pub
      gpuaas keys show tasks --version 1
    """
    settings = _settings(given)
    with open_ports(settings, make=False) as ports:
        found = public_key(ports.secrets, name, version)
    click.echo(found.pem, nl=not found.pem.endswith("\n"))
    return EXIT_OK


def _settings(given: Mapping[str, Any]) -> Settings:
    """What stands before `show` counts as well as what stands after it."""
    parent = click.get_current_context().parent
    before = parent.params if parent is not None else {}
    chosen: dict[str, Any] = {n: before.get(n) if v is None else v for n, v in given.items()}
    return load_settings(**chosen)


def _document(state: KeyState) -> dict[str, Any]:
    return {**asdict(state), "min_version": state.min_version}


def _print(found: Sequence[KeyState]) -> None:
    from rich import box  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for title in ("KEY", "KIND", "VERSIONS", "SIGNS WITH", "MIN", "AGENTS UNAWARE OF THE NEWEST"):
        table.add_column(title)
    for state in found:
        versions = ", ".join(map(str, state.versions))
        table.add_row(
            state.name,
            state.kind,
            cell(f"unknown: {state.unknown}") if state.unknown else versions or "none yet",
            str(state.signs_with or "-"),
            str(state.min_version or "-"),
            cell(_named(state.unaware)),
        )
    out().print(table)


def _named(nodes: Sequence[str]) -> str:
    more = len(nodes) - _NODES_NAMED_MAX
    return ", ".join(nodes[:_NODES_NAMED_MAX]) + (f" and {more} more" if more > 0 else "")
