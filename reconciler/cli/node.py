"""`gpuaas node`: let hosts join the fleet, see who did, shut one out, forget one."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

import click

from reconciler.cli.common import (
    EXIT_OK,
    cell,
    err,
    format_option,
    load_settings,
    local_actor,
    out,
    print_json,
    settings_options,
)
from reconciler.core.times import time_text
from reconciler.errors import Refused
from reconciler.settings import Settings
from reconciler.use_cases.nodes import (
    NodeRow,
    forget_node,
    list_nodes,
    make_join_token,
    revoke_node,
)
from reconciler.wiring.ports import open_ports

FORMAT = "gpuaas.dev/nodes/v1"
_EPILOG = "Exit codes: 0 as asked, 1 an error."
_DIGEST_SHOWN = 12


@click.group(epilog=_EPILOG)
def node() -> None:
    """Let hosts join the fleet, and shut them out. To be run where the control plane is.

    \b
    Examples:
      gpuaas node join node-a > token
      gpuaas node list
      gpuaas node revoke node-a --reason "disk sold"
    """


@node.command(epilog=_EPILOG)
@click.argument("name")
@settings_options
@click.option("--server", help="URL the agent dials.  [default: https:// and agents_listen]")
@click.option("--ttl-s", type=float, help="How long the token may be used; it is used once only.")
@format_option
def join(name: str, server: str | None, ttl_s: float | None, output: str, **given: Any) -> int:
    """Print a single-use token with which the agent on node NAME joins.

    The token pins the CA of the control plane, so that no other is believed. It goes to standard
    output, the instructions to standard error. A token that somebody else used first is refused,
    and the audit trail tells of it: `gpuaas node revoke` then, and a new one.

    \b
    Examples:
      gpuaas node join node-a > token
      gpuaas node join node-a --server https://control.example:8471 > token
      gpuaas-agent join --token-file token && gpuaas-agent run
    """
    settings = load_settings(**given)
    url = _dialled(server, settings)
    lifetime_s = ttl_s or settings.join_token_ttl_s
    with open_ports(settings) as ports:
        made = make_join_token(ports, name, url, lifetime_s, local_actor())
    token = made.text.reveal()
    if output == "json":
        print_json({"node": name, "server": url, "token": token, "expires_in_s": lifetime_s})
        return EXIT_OK
    click.echo(token)
    err().print(
        f"On {name}, within {lifetime_s / 60:.0f} minutes: "
        "gpuaas-agent join --token-file FILE && gpuaas-agent run",
        markup=False,
    )
    return EXIT_OK


@node.command("list", short_help="Show the nodes that joined.", epilog=_EPILOG)
@settings_options
@format_option
def list_(output: str, **given: Any) -> int:
    """Show the nodes that joined: agent, last report, certificate, configuration in force.

    \b
    Examples:
      gpuaas node list
      gpuaas node list --format json | jq -r '.nodes[] | select(.revoked_at) | .name'
    """
    with open_ports(load_settings(**given), make=False) as ports:
        found = list_nodes(ports)
        now_ms = ports.clock.now_ms()
    if output == "json":
        print_json({"format": FORMAT, "nodes": [_document(one) for one in found]})
    else:
        _print(found, now_ms)
    return EXIT_OK


@node.command(
    short_help="Shut node NAME out.",
    epilog="Exit codes: 0 revoked, 1 an error; then nothing was changed.",
)
@click.argument("name")
@click.option("--reason", required=True, help="Why, for the audit trail and for whoever asks.")
@settings_options
def revoke(name: str, reason: str, **given: Any) -> int:
    """Shut node NAME out: nothing its agent says is believed from now on, and it is told nothing.

    Its open poll ends at once, unused join tokens for it are good no more, and its certificate goes
    on the CA's list. What runs there goes on, unseen: nothing is moved. It may join anew, with a
    new key and a new token.

    \b
    Examples:
      gpuaas node revoke node-a --reason "left the rack unattended"
    """
    with open_ports(load_settings(**given), make=False) as ports:
        listed = revoke_node(ports, name, reason, local_actor())
    console = out()
    console.print(f"{name} is revoked: nothing of it is believed any more", markup=False)
    if not listed:
        console.print(
            "The CA did not take its certificate on its list yet; the control plane tries again.",
            markup=False,
        )
    return EXIT_OK


@node.command(epilog="Exit codes: 0 forgotten, 1 an error; then nothing was changed.")
@click.argument("name")
@click.option(
    "--even-with-instances",
    is_flag=True,
    help="Although instances are placed there, whose end nobody can prove then.",
)
@settings_options
def forget(name: str, even_with_instances: bool, **given: Any) -> int:
    """Forget node NAME, as if it had never joined. For a host that is gone for good.

    \b
    Examples:
      gpuaas node forget node-a
    """
    with open_ports(load_settings(**given), make=False) as ports:
        forget_node(ports, name, local_actor(), even_with_instances)
    out().print(f"{name} is forgotten", markup=False)
    return EXIT_OK


def _dialled(server: str | None, settings: Settings) -> str:
    """The agents' listener as it is dialled; Refused for what is no https:// URL of a host."""
    url = server or f"https://{settings.agents_listen}"
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
    except ValueError:
        raise _no_server(url) from None
    if parts.scheme == "http":
        raise Refused(
            "insecure_server",
            f"agents speak TLS only, and {url} is not",
            hint="pass --server https://HOST:PORT, that of agents_listen; no proxy may end TLS",
        )
    if parts.scheme != "https" or not host:
        raise _no_server(url)
    if _is_any(host):
        raise Refused(
            "server_unknown",
            f"{url} is every address of this host, and none that an agent could dial",
            hint="pass --server https://HOST:PORT",
        )
    return url


def _no_server(url: str) -> Refused:
    return Refused("server_invalid", f"not a URL to dial: {url}", hint="use https://HOST:PORT")


def _is_any(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False


def _document(row: NodeRow) -> dict[str, Any]:
    one = row.node
    return {
        "name": one.name,
        "joined_at": time_text(one.joined_at_ms),
        "agent_version": row.agent_version,
        "reported_at": _time(one.reported_at_ms),
        "certificate_ends_at": _time(one.certificate_ends_at_ms),
        "config_digest": row.config_digest,
        "revoked_at": _time(one.revoked_at_ms),
        "revoked_reason": one.revoked_reason or None,
    }


def _time(at_ms: int | None) -> str | None:
    return time_text(at_ms) if at_ms is not None else None


def _print(found: Sequence[NodeRow], now_ms: int) -> None:
    from rich import box  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for title in ("NODE", "AGENT", "LAST REPORT", "CERTIFICATE UNTIL", "CONFIG", "REVOKED"):
        table.add_column(title)
    for row in found:
        one = row.node
        age_s = None if one.reported_at_ms is None else (now_ms - one.reported_at_ms) // 1000
        table.add_row(
            cell(one.name),
            cell(row.agent_version or "-"),
            "never" if age_s is None else f"{age_s} s ago",
            _time(one.certificate_ends_at_ms) or "none yet",
            cell((row.config_digest or "-")[:_DIGEST_SHOWN]),
            cell(_revoked(row), "red"),
        )
    out().print(table)


def _revoked(row: NodeRow) -> str:
    at = _time(row.node.revoked_at_ms)
    return f"{at}: {row.node.revoked_reason}" if at is not None else ""
