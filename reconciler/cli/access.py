"""`gpuaas access`: how to reach an instance, and its secrets for who is to have them."""

from __future__ import annotations

from typing import Any

import click

from reconciler.cli.common import (
    EXIT_CHANGES,
    EXIT_OK,
    err,
    format_option,
    load_settings,
    local_actor,
    out,
    print_json,
    settings_options,
)
from reconciler.core.names import InstanceKey, nearest, secret_path
from reconciler.core.records import InstanceRecord, node_name
from reconciler.core.times import time_text
from reconciler.errors import Refused
from reconciler.ports import Ports
from reconciler.use_cases.handover import Asker, hand_over, told_shown
from reconciler.use_cases.reach import Reach
from reconciler.views.access import Document, access_document, access_lines, for_people
from reconciler.wiring.ports import open_ports

_WARNING = "Secrets are shown below: keep them out of logs, tickets and screen shares."


@click.command(epilog="Exit codes: 0 as asked, 2 the instance is not ready, 1 an error.")
@click.argument("instance")
@settings_options
@click.option("--wrap", is_flag=True, help="Hand over its secrets: a token for each, good once.")
@click.option("--to", default="", help="Whom they are for, for the audit trail.")
@click.option("--ttl-s", type=float, help="How long the tokens wait.  [default: wrap_ttl_s]")
@click.option(
    "--show-secrets", is_flag=True, help="Print the values; the audit trail tells that you did."
)
@format_option
def access(
    instance: str,
    wrap: bool,
    to: str,
    ttl_s: float | None,
    show_secrets: bool,
    output: str,
    **given: Any,
) -> int:
    """Show how to reach INSTANCE: its instructions, a tunnel for each port, its secrets.

    Ports are open on the node's own loopback alone, so each is reached through ssh. A node is
    called by its address where its manifest gives one, else by its name.

    \b
    Examples:
      gpuaas access acme/research/notebook
      gpuaas access acme/research/notebook --wrap --to ada
      gpuaas access acme/research/notebook --wrap --format json | jq '.secrets[].hand_over'
    """
    if wrap and show_secrets:
        raise click.UsageError("give one of --wrap and --show-secrets")
    settings = load_settings(**given)
    with open_ports(settings, make=False) as ports:
        record, reach = _record(ports, instance), Reach(ports.store.accepted())
        values = _values(ports, record) if show_secrets else None
        handed = _handed(ports, record, ttl_s or settings.wrap_ttl_s, to) if wrap else None
        document = access_document(
            record,
            reach.address(record.node),
            values,
            handed,
            *reach.ssh(record),
            reach.forms(record),
        )
    if show_secrets:
        err().print(_WARNING, style="yellow")
    if output == "json":
        print_json(document)
    else:
        for line in access_lines(document):
            out().print(line, markup=False, soft_wrap=True)
    return EXIT_OK if document["ready"] else EXIT_CHANGES


def _record(ports: Ports, name: str) -> InstanceRecord:
    records = ports.store.records()
    found = records.get(InstanceKey(name))
    if found is None:
        near = nearest(name, records)
        hint = f"did you mean {near}?" if near else "see gpuaas status --all"
        raise Refused("no_such_instance", f"no instance {name}", hint=hint)
    return found


def _paths(record: InstanceRecord) -> dict[str, str]:
    """Where its own secrets are, by name."""
    names = for_people(record)
    if not names:
        hint = "its version names none in runtime_profile.secrets that are made for it"
        raise Refused("no_secrets", f"{record.key} has no secrets", hint=hint)
    return {name: secret_path(record.node, node_name(record), name) for name in names}


def _values(ports: Ports, record: InstanceRecord) -> dict[str, str | None]:
    values: dict[str, str | None] = {}
    for name, path in _paths(record).items():
        found = ports.secrets.read(path)
        if found is not None:
            told_shown(ports, path, Asker(local_actor(), "local"))
        values[name] = found.reveal() if found is not None else None
    return values


def _handed(ports: Ports, record: InstanceRecord, ttl_s: float, to: str) -> dict[str, Document]:
    handed: dict[str, Document] = {}
    for name, path in _paths(record).items():
        if ports.secrets.seen(path) is None:
            handed[name] = {"token": None, "expires_at": None}
            continue
        given = hand_over(ports, path, Asker(local_actor(), "local"), ttl_s, to)
        expires_at = time_text(given.expires_at_ms)
        handed[name] = {"token": given.token.reveal(), "expires_at": expires_at}
    return handed
