"""`gpuaas import`: manifests for what is already there."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

import click

from reconciler.cli.common import (
    EXIT_OK,
    cell,
    environment_of,
    format_option,
    load_settings,
    out,
    print_json,
    settings_options,
)
from reconciler.core.names import InstanceKey, Revision
from reconciler.core.validate import validate
from reconciler.errors import Refused
from reconciler.ports import Ports
from reconciler.settings import Settings
from reconciler.use_cases.importing import (
    Importable,
    Manifest,
    importables,
    instance_manifest,
    node_manifest,
)
from reconciler.use_cases.planning import Walk, look_now, plan_revision
from reconciler.wiring.files import schema_set
from reconciler.wiring.gate import walked_to
from reconciler.wiring.ports import open_ports

FORMAT = "gpuaas.dev/importable/v1"
_out_option = click.option(
    "--out",
    "folder",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    help="Checkout to write into.  [default: --repo where that is a folder, else here]",
)


@click.group(
    "import",
    invoke_without_command=True,
    epilog="Exit codes: 0 as asked, 1 an error or something that can't be imported.",
)
@click.option("--list", "listing", is_flag=True, help="Show what there is to import, and stop.")
@settings_options
@format_option
@click.pass_context
def import_(context: click.Context, /, listing: bool, output: str, **given: Any) -> int:
    """Write manifests for nodes that joined, and for instances that run undeclared.

    Nothing is taken over: the files are yours to review and commit, and an instance's is written
    only when the plan with it has nothing to do.

    \b
    Examples:
      gpuaas import --list
      gpuaas import node gpu-07 --pool research
      gpuaas import instance acme/research/notebook
    """
    if context.invoked_subcommand is not None:
        shared = {name: value for name, value in given.items() if value is not None}
        context.default_map = {"node": shared, "instance": shared}
        return EXIT_OK
    if not listing:
        click.echo(context.get_help())
        return EXIT_OK
    settings = load_settings(**given)
    environment_of(settings)
    with open_ports(settings, make=False) as ports:
        found = _list(ports, settings)
    _show(found, output)
    return EXIT_OK


@import_.command(
    short_help="Write the manifest of a node from its report.",
    epilog="Exit codes: 0 written, or as it was already, 1 an error.",
)
@click.argument("name")
@settings_options
@click.option("--pool", default="default", show_default=True, help="Pool the node goes into.")
@_out_option
def node(name: str, pool: str, folder: Path | None, **given: Any) -> int:
    """Write platform/nodes/NAME.yaml from what the agent on node NAME reports.

    GPUs by UUID, cores, memory and engines are the agent's word; the accelerator family is guessed
    from the model, and says so.

    \b
    Examples:
      gpuaas import node gpu-07
      gpuaas import node gpu-07 --pool research --out ../state
    """
    settings = load_settings(**given)
    with open_ports(settings, make=False) as ports:
        source = ports.source.snapshot(ports.source.fetch())
        made = node_manifest(ports.store.node(name), name, pool, source, schema_set(), settings)
    return _write(made, folder or _checkout(settings))


@import_.command(
    short_help="Write the manifest of what runs undeclared.",
    epilog="Exit codes: 0 written, or as it was already, 1 an error or no manifest.",
)
@click.argument("instance")
@settings_options
@_out_option
def instance(instance: str, folder: Path | None, **given: Any) -> int:
    """Write the manifest of TENANT/PROJECT/NAME, which a node runs and nobody declares.

    Looks for an allocation and parameters that give exactly what runs, and proves it: the plan
    with the manifest must have nothing to do there. Else it says what differs, and writes nothing.

    \b
    Examples:
      gpuaas import instance acme/research/notebook
    """
    settings = load_settings(**given)
    environment_of(settings)
    if len(instance.split("/")) != 3:
        raise Refused("bad_instance", f"{instance[:80]!r} is no TENANT/PROJECT/NAME")
    with open_ports(settings, make=False) as ports:
        source = ports.source.snapshot(ports.source.fetch())
        look = look_now(ports, settings, _walk_to(source.revision, settings, ports))
        made = instance_manifest(look, InstanceKey(instance), source, schema_set(), settings)
    return _write(made, folder or _checkout(settings))


def _list(ports: Ports, settings: Settings) -> tuple[Importable, ...]:
    schemas = schema_set()
    source = ports.source.snapshot(ports.source.fetch())
    look = look_now(ports, settings, _walk_to(source.revision, settings, ports))
    now = plan_revision(look, source, schemas, settings)
    objects = validate(source, schemas, settings.parse_limits).objects
    return importables(look, ports.store.nodes(), now, objects)


def _walk_to(head: Revision, settings: Settings, ports: Ports) -> Walk:
    return lambda last: walked_to(head, last, settings, ports)


def _show(found: tuple[Importable, ...], output: str) -> None:
    if output == "json":
        rows = [
            {"kind": one.kind, "name": one.name, "node": one.where, "why_not": one.why_not}
            for one in found
        ]
        print_json({"format": FORMAT, "importable": rows})
        return
    console = out()
    if not found:
        console.print("All that is there is declared: nothing to import.")
    for one in found:
        on = f" on {one.where}" if one.where else ""
        console.print(cell(f"gpuaas import {one.kind} {one.name}"), cell(on, "dim"), sep="")
        if one.why_not:
            console.print(f"    not now: {one.why_not}", style="yellow", markup=False)


def _checkout(settings: Settings) -> Path:
    local = Path(settings.repo)
    return local if local.is_dir() and (local / ".git").exists() else Path()


def _refuse_outside(path: Path, folder: Path) -> None:
    """A link in the checkout, which anybody may have committed, leads nowhere else."""
    if not path.resolve().is_relative_to(folder.resolve()):
        raise ValueError(
            "a link in the checkout leads out of it: put a folder or file in its place"
        )


def _write(made: Manifest, folder: Path) -> int:
    """A new file, never in place of another: that one is somebody's decision."""
    console, path = out(), folder / made.path
    try:
        _refuse_outside(path, folder)
        before = path.read_text(encoding="utf-8") if path.exists() else None
        if before is None:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("x", encoding="utf-8") as file:
                file.write(made.text)
    except (OSError, ValueError) as error:
        raise Refused("not_written", str(error), where=str(path)) from None
    if before is None:
        console.print(f"wrote {path}: {made.proof}", markup=False)
        console.print("Review and commit it; until then nothing changes.", style="dim")
        return EXIT_OK
    if before == made.text:
        console.print(f"{path} says so already", markup=False)
        return EXIT_OK
    lines = difflib.unified_diff(
        before.splitlines(), made.text.splitlines(), str(path), "imported", lineterm=""
    )
    for line in lines:
        console.print(line, markup=False)
    raise Refused(
        "import_exists",
        "the file is there and says something else",
        where=str(path),
        hint="take over from the difference above what you want",
    )
