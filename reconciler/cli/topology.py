"""`gpuaas topology`: the services that an instance, or a version, is made of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import click
from rich import box
from rich.console import Console
from rich.table import Table

from reconciler.cli.common import (
    EXIT_CHANGES,
    EXIT_OK,
    cell,
    err,
    load_settings,
    out,
    print_json,
    settings_options,
    table_width,
)
from reconciler.core.accept import AcceptedState
from reconciler.core.names import InstanceKey, ObjectRef, instance_key, member_key
from reconciler.core.printable import printable, printable_json
from reconciler.core.topology_view import TopologyView
from reconciler.errors import Refused
from reconciler.settings import Settings
from reconciler.use_cases.compose_example import NOTE as EXAMPLE
from reconciler.use_cases.compose_example import compose_example
from reconciler.use_cases.files_alone import NOTE as ALONE
from reconciler.use_cases.files_alone import accepted_alone
from reconciler.use_cases.history import member_of_target, parse_target
from reconciler.use_cases.topology import Shown, Topologies, of_instance, of_version
from reconciler.views import topology as words
from reconciler.wiring.files import read_local, schema_set
from reconciler.wiring.history import ports_if_any

_STYLES = {
    "ready": "green",
    "completed": "green",
    "degraded": "red",
    "failed": "red",
    "absent": "red",
    "stopped": "dim",
}
_WELL = frozenset(("ready", "completed", "stopped", ""))


@click.command(
    epilog="Exit codes: 0 as asked, 2 a service is not ready, 1 an error or nothing of that name."
)
@click.argument("target", metavar="INSTANCE_OR_APP")
@click.argument("version", required=False)
@settings_options
@click.option("--ref", help="From the files of this commit, branch or tag alone.")
@click.option("--offline", is_flag=True, help="From the files in --repo alone, as they are.")
@click.option(
    "--format",
    "output",
    type=click.Choice(["table", "mermaid", "json", "compose"]),
    default="table",
    show_default=True,
    help="Tables for people, a Mermaid flowchart for documents, JSON for machines, or the Compose "
    "file that a node writes of it.",
)
def topology(
    target: str, version: str | None, ref: str | None, offline: bool, output: str, **given: Any
) -> int:
    """Show the services of an instance or a version: roles, needs, endpoints, storage, health.

    INSTANCE is tenant/project/name, tenant/project/name.member for a further member of one; APP
    VERSION is a version of the catalog, before there is any instance of it. Where the control plane
    keeps its state, what is accepted and how its node finds each service is taken from there;
    without, or with --ref or --offline, the state repo's files are read alone. Secrets are named
    and never shown. Changes nothing.

    \b
    Examples:
      gpuaas topology acme/research/assistant
      gpuaas topology acme/research/assistant --format mermaid > assistant.mmd
      gpuaas topology vllm 0.11.0 --repo . --offline
      gpuaas topology acme/research/assistant --format json | jq '.services[].health'
      gpuaas topology retrieval 2.0.0 --format compose
    """
    wanted = _wanted(target, version)
    settings = load_settings(**given)
    shown = _shown(wanted, settings, ref, offline=offline, asked=given["state_dir"] is not None)
    if output == "mermaid":
        click.echo(words.mermaid(shown.view), nl=False)
    elif output == "json":
        print_json(words.topology_document(shown.view))
    elif output == "compose":
        err().print(f"note: {EXAMPLE}", style="dim", markup=False)
        click.echo(printable_json(compose_example(shown.workload, shown.view.node)))
    else:
        print_topology(out(), shown.view)
    return EXIT_OK if all(one.health in _WELL for one in shown.view.services) else EXIT_CHANGES


Wanted = InstanceKey | ObjectRef
"""An instance, or an AppVersion whose version may be left out."""


def _wanted(target: str, version: str | None) -> Wanted:
    if version is not None or "/" not in target:
        return ObjectRef("AppVersion", (target, version or ""))
    ref = parse_target(target)
    assert isinstance(ref, ObjectRef)
    if ref.kind == "AppVersion":
        return ref
    if ref.kind != "AppInstance":
        hint = "name an instance, tenant/project/name, or a version, APP VERSION"
        raise Refused("no_topology", f"{ref.kind} has no services", hint=hint)
    key, member = instance_key(ref), member_of_target(target, ref)
    return member_key(key, member) if member else key


def _shown(
    wanted: Wanted, settings: Settings, ref: str | None, *, offline: bool, asked: bool
) -> Shown:
    if ref is None and not offline:
        with ports_if_any(settings, wanted=asked) as ports:
            if ports is not None:
                found = Topologies(ports, settings)
                if isinstance(wanted, ObjectRef):
                    return _version(wanted, found.state())
                return found.shown(wanted)
        err().print(f"note: {ALONE}", style="dim", markup=False)
    if not Path(settings.repo).is_dir():
        raise Refused(
            "repo_not_local",
            "only a folder can be read without a control plane",
            where=settings.repo,
            hint="pass --repo with a checkout, or --state-dir with the control plane's state",
        )
    state = accepted_alone(read_local(Path(settings.repo), ref, settings), schema_set(), settings)
    return _version(wanted, state) if isinstance(wanted, ObjectRef) else of_instance(wanted, state)


def _version(ref: ObjectRef, state: AcceptedState) -> Shown:
    app, version = ref.path
    return of_version(app, version, state)


def print_topology(console: Console, view: TopologyView) -> None:
    """Tables of services, endpoints and storage, and what is wrong."""
    console.print(words.title(view), style="bold", markup=False)
    state = words.state_line(view)
    if state:
        well = view.runs == "this" and all(one.health in _WELL for one in view.services)
        console.print(f"  {printable(state)}", style="green" if well else "yellow", markup=False)
    console.print()
    _print_services(console, view)
    for columns, rows in (
        (words.ENDPOINT_COLUMNS, [*words.endpoint_rows(view)]),
        (words.STORAGE_COLUMNS, [*words.storage_rows(view)]),
    ):
        if rows:
            table = _table(columns)
            for row in rows:
                table.add_row(*map(cell, row))
            console.print()
            console.print(table)
    troubles, remarks = [*words.troubles(view)], [*words.remarks(view)]
    if troubles or remarks:
        console.print()
    for line in troubles:
        console.print(line, style="yellow", markup=False)
    for line in remarks:
        console.print(line, style="dim", markup=False)


def _print_services(console: Console, view: TopologyView) -> None:
    """In one table, or in two where it would be wider than the console."""
    healths = {one.name: one.health for one in view.services}
    styles = {name: _STYLES.get(one, "yellow" if one else "") for name, one in healths.items()}
    rows = [dict(zip(words.SERVICE_COLUMNS, row, strict=True)) for row in words.service_rows(view)]
    parts: tuple[tuple[str, ...], ...] = (words.SERVICE_COLUMNS,)
    widths = [max(len(c), *(len(row[c]) for row in rows)) for c in words.SERVICE_COLUMNS]
    if table_width(widths) > console.width:
        first, *middle = words.SERVICE_COLUMNS
        parts = ((first, *middle[:-2]), (first, *middle[-2:]))
    for number, columns in enumerate(parts):
        if number:
            console.print()
        console.print(_services_table(columns, rows, styles))


def _services_table(
    columns: tuple[str, ...], rows: Iterable[Mapping[str, str]], styles: Mapping[str, str]
) -> Table:
    table = _table(columns)
    for row in rows:
        style = styles[row["SERVICE"]]
        table.add_row(*(cell(row[c], style if c == "HEALTH" else "") for c in columns))
    return table


def _table(columns: tuple[str, ...]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for number, column in enumerate(columns):
        table.add_column(column, overflow="fold", no_wrap=number == 0)
    return table
