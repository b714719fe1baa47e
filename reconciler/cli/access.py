"""`gpuaas access`: how to reach an instance, and its secrets for who asks for them."""

from __future__ import annotations

import json
from typing import Any

import click

from reconciler.cli.common import (
    EXIT_CHANGES,
    EXIT_OK,
    err,
    format_option,
    load_settings,
    out,
    print_json,
    settings_options,
)
from reconciler.core.names import InstanceKey, nearest, secret_path
from reconciler.core.records import InstanceRecord, node_name
from reconciler.errors import Refused
from reconciler.ports import Ports
from reconciler.views.access import access_document, access_lines, for_people
from reconciler.wiring.ports import open_ports

_WARNING = "Secrets are shown below: keep them out of logs, tickets and screen shares."


@click.command(epilog="Exit codes: 0 as asked, 2 the instance is not ready, 1 an error.")
@click.argument("instance")
@settings_options
@click.option("--show-secrets", is_flag=True, help="Print the values of its secrets too.")
@format_option
def access(instance: str, show_secrets: bool, output: str, **given: Any) -> int:
    """Show how to reach INSTANCE: its instructions, a tunnel for each port, its secrets.

    Ports are open on the node's own loopback alone, so each is reached through ssh. A node is
    called by its address where its manifest gives one, else by its name.

    \b
    Examples:
      gpuaas access acme/research/notebook
      gpuaas access acme/research/notebook --show-secrets
      gpuaas access acme/research/notebook --show-secrets --format json | jq -r '.secrets[0].value'
    """
    with open_ports(load_settings(**given), make=False) as ports:
        record = _record(ports, instance)
        values = _values(ports, record) if show_secrets else None
        document = access_document(record, _address(ports, record.node), values)
    if show_secrets:
        err().print(_WARNING, style="yellow")
    if output == "json":
        print_json(document)
    else:
        for line in access_lines(document):
            out().print(line, markup=False)
    return EXIT_OK if document["ready"] else EXIT_CHANGES


def _record(ports: Ports, name: str) -> InstanceRecord:
    records = ports.store.records()
    found = records.get(InstanceKey(name))
    if found is None:
        near = nearest(name, records)
        hint = f"did you mean {near}?" if near else "see gpuaas status --all"
        raise Refused("no_such_instance", f"no instance {name}", hint=hint)
    return found


def _values(ports: Ports, record: InstanceRecord) -> dict[str, str | None]:
    names = for_people(record)
    if not names:
        hint = "its version names none in runtime_profile.secrets"
        raise Refused("no_secrets", f"{record.key} has no secrets", hint=hint)
    name, values = node_name(record), {}
    for secret in names:
        found = ports.secrets.read(secret_path(record.node, name, secret))
        values[secret] = found.reveal() if found is not None else None
    return values


def _address(ports: Ports, node: str) -> str:
    """The node's address by its accepted manifest; empty where that gives none."""
    manifest = ports.store.accepted().objects.get(f"Node/{node}")
    if manifest is None:
        return ""
    return str(json.loads(manifest.document_json)["spec"].get("address") or "")
