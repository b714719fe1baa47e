"""`gpuaas ssh-key`: the keys with which people of a project open tunnels."""

from __future__ import annotations

import json
from typing import Any

import click

from reconciler.cli.common import (
    EXIT_OK,
    err,
    format_option,
    load_settings,
    local_actor,
    out,
    print_json,
    settings_options,
)
from reconciler.core.custody.paths import ssh_key_path
from reconciler.core.names import nearest
from reconciler.core.records import Accepted
from reconciler.core.ssh_access import reported_by
from reconciler.core.times import time_text
from reconciler.errors import Refused
from reconciler.ports import Ports
from reconciler.use_cases.handover import Asker, HandedOver, hand_over
from reconciler.views.ssh_keys import Document, ssh_key_documents, ssh_key_lines, tunnel_lines
from reconciler.wiring.ports import open_ports

_LIST = "list"
_FILE = "FILE"


@click.command(epilog="Exit codes: 0 as asked, 1 an error.")
@click.argument("project", metavar="TENANT/PROJECT|list")
@settings_options
@click.option("--to", default="", help="Whom it is for, for the audit trail.")
@click.option("--ttl-s", type=float, help="How long the token waits.  [default: wrap_ttl_s]")
@format_option
def ssh_key(project: str, to: str, ttl_s: float | None, output: str, **given: Any) -> int:
    """Hand over the private key of a project, newest version: a token to unwrap once.

    Its holder may open tunnels to the ports of the project's instances, and nothing else: no
    shell, no other port. A key is made when the project's manifest has ssh_key, and another one
    when its version is raised. `list` shows which nodes have it.

    \b
    Examples:
      gpuaas ssh-key acme/research --to ada > token
      gpuaas ssh-key list
    """
    settings = load_settings(**given)
    with open_ports(settings, make=False) as ports:
        documents = _documents(ports)
        if project == _LIST:
            return _list(documents, output)
        one = _found(ports, documents, project)
        tenant, _, name = project.partition("/")
        path = ssh_key_path(tenant, name, one["version"])
        if ports.secrets.seen(path) is None:
            hint = "a pass makes it; gpuaas status says what is in its way"
            raise Refused("ssh_key_not_made", f"the key of {project} is not made yet", hint=hint)
        asker = Asker(local_actor(), "local")
        given_out = hand_over(ports, path, asker, ttl_s or settings.wrap_ttl_s, to)
    if output == "json":
        print_json({**one, **_handed(given_out)})
        return EXIT_OK
    click.echo(given_out.token.reveal())
    for line in _instructions(one, given_out):
        err().print(line, markup=False, soft_wrap=True)
    return EXIT_OK


def _list(documents: list[Document], output: str) -> int:
    if output == "json":
        print_json(documents)
        return EXIT_OK
    for line in ssh_key_lines(documents):
        out().print(line, markup=False, soft_wrap=True)
    if not documents:
        err().print("no project has a key: ssh_key in its manifest asks for one", style="yellow")
    return EXIT_OK


def _documents(ports: Ports) -> list[Document]:
    accepted = ports.store.accepted()
    installed = reported_by(ports.store.nodes())
    return ssh_key_documents(accepted, ports.store.records(), installed, _addresses(accepted))


def _addresses(accepted: Accepted) -> dict[str, str]:
    found = {
        ref.removeprefix("Node/"): json.loads(one.document_json)["spec"].get("address")
        for ref, one in accepted.objects.items()
        if ref.startswith("Node/")
    }
    return {node: address for node, address in found.items() if address}


def _found(ports: Ports, documents: list[Document], project: str) -> Document:
    for one in documents:
        if one["project"] == project:
            return one
    start = "Project/"
    known = [
        ref.removeprefix(start) for ref in ports.store.accepted().objects if ref.startswith(start)
    ]
    if project in known:
        hint = "put ssh_key: {version: 1} into the spec of its project.yaml"
        raise Refused("no_ssh_key", f"{project} asks for no SSH key", hint=hint)
    near = nearest(project, known)
    hint = f"did you mean {near}?" if near else "name it as TENANT/PROJECT"
    raise Refused("no_such_project", f"no project {project}", hint=hint)


def _handed(given_out: HandedOver) -> Document:
    expires_at = time_text(given_out.expires_at_ms)
    return {"token": given_out.token.reveal(), "expires_at": expires_at}


def _instructions(one: Document, given_out: HandedOver) -> list[str]:
    until = time_text(given_out.expires_at_ms)
    return [
        f"The key of {one['project']}, version {one['version']}, once, until {until}. On the host "
        "of whoever it is for:",
        f"  gpuaas unwrap --server URL --out {_FILE}",
        *tunnel_lines(one, _FILE),
    ]
