"""`gpuaas snapshot`: what a plan elsewhere is made from, signed and redacted."""

from __future__ import annotations

from collections.abc import Sized
from pathlib import Path
from typing import Any

import click

from reconciler.cli.common import (
    EXIT_OK,
    environment_of,
    err,
    load_settings,
    settings_options,
    write_file,
)
from reconciler.custody.signing import newest_verifier
from reconciler.use_cases import snapshot as snapshots
from reconciler.wiring.ports import open_ports


@click.command(epilog="Exit codes: 0 as asked, 1 an error.")
@settings_options
@click.option(
    "--out",
    "out_file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write it there instead of to standard output.",
)
@click.option(
    "--key",
    is_flag=True,
    help="Print the public key that signs, for snapshot_keys of the Environment, and no more.",
)
def snapshot(out_file: Path | None, key: bool, **given: Any) -> int:
    """Export what is observed and remembered, so that CI can plan without any access to here.

    It says what runs where, by hash and phase, which artifacts the registry has, and which form of
    each manifest is accepted, by commit and hash. Manifests, endpoints, access texts, messages and
    what hosts are made of stay here. A running control plane serves the same at /v1/snapshot.

    \b
    Examples:
      gpuaas snapshot --key
      gpuaas snapshot -e prod --out snapshot.json
      gpuaas plan -e prod --snapshot snapshot.json --repo . --ref HEAD --base origin/main
    """
    settings = load_settings(**given)
    if not key:
        environment_of(settings)
    with open_ports(settings, make=False) as ports:
        if key:
            click.echo(newest_verifier(ports.secrets, snapshots.SNAPSHOT_KEY).public_key)
            return EXIT_OK
        seen = snapshots.take(ports, settings)
        raw = snapshots.sealed(seen, ports.secrets)
    if out_file is None:
        click.echo(raw)
        return EXIT_OK
    write_file(out_file, raw)
    err().print(
        f"{_count(seen.accepted.objects, 'object')}, {_count(seen.records, 'instance')}, "
        f"{_count(seen.nodes, 'node')}, {len(raw) // 1024} KiB",
        markup=False,
    )
    return EXIT_OK


def _count(found: Sized, word: str) -> str:
    return f"{len(found)} {word}{'' if len(found) == 1 else 's'}"
