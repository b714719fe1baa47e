"""`gpuaas node`: let a host join."""

from __future__ import annotations

import base64
import hashlib
import ipaddress
import secrets
from typing import Any
from urllib.parse import urlsplit

import click

from node_agent.wire import JoinReply, JoinToken
from reconciler.cli.common import EXIT_OK, err, load_settings, print_json, settings_options
from reconciler.errors import Refused
from reconciler.ports import TASK_KEY, Ports
from reconciler.wiring.ports import first_start, open_ports


@click.group(epilog="Exit codes: 0 as asked, 1 an error.")
def node() -> None:
    """Let hosts join the fleet.

    \b
    Examples:
      gpuaas node join node-a > token
    """


@node.command(epilog="Exit codes: 0 as asked, 1 an error.")
@click.argument("name")
@settings_options
@click.option("--server", help="URL the agent dials; default: http:// and the listen address.")
@click.option(
    "--allow-plain-http",
    is_flag=True,
    help="Let the agent dial http:// beyond this host: who listens on the way may join first.",
)
@click.option("--ttl-s", type=float, help="How long the token may be used; it is used once only.")
@click.option(
    "--format", "output", type=click.Choice(["text", "json"]), default="text", show_default=True
)
def join(
    name: str,
    server: str | None,
    ttl_s: float | None,
    allow_plain_http: bool,
    output: str,
    **given: Any,
) -> int:
    """Print a single-use token with which the agent on node NAME joins.

    The token pins the control plane's task keys. It goes to standard output, the instructions
    to standard error.

    \b
    Examples:
      gpuaas node join node-a > token
      gpuaas-agent join --token-file token && gpuaas-agent run
    """
    settings = load_settings(**given)
    url = server or f"http://{settings.listen}"
    if not allow_plain_http:
        _refuse_plain_http(url)
    lifetime_s = ttl_s or settings.join_token_ttl_s
    with open_ports(settings) as ports:
        token = make_join_token(ports, name, url, lifetime_s)
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


def _refuse_plain_http(url: str) -> None:
    """A join token that travels in the clear can be used by whoever sees it first."""
    parts = urlsplit(url)
    if parts.scheme == "https" or (parts.scheme == "http" and _is_loopback(parts.hostname or "")):
        return
    raise Refused(
        "insecure_server",
        f"the join token would travel unencrypted to {url}",
        hint="put TLS in front and pass --server https://…, or pass --allow-plain-http",
    )


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def make_join_token(ports: Ports, name: str, url: str, lifetime_s: float) -> str:
    """A token for one node, base64url. Only its hash is kept."""
    first_start(ports)
    reply = JoinReply(node=name, verifiers=ports.secrets.verifier_keys(TASK_KEY))
    secret = secrets.token_urlsafe(32)
    token = JoinToken(server=url, node=name, secret=secret, verifier_hash=reply.verifier_hash)
    expires_at_ms = ports.clock.now_ms() + int(lifetime_s * 1000)
    digest = hashlib.sha256(secret.encode()).hexdigest()
    ports.store.add_join_token(digest, name, expires_at_ms)
    return base64.urlsafe_b64encode(token.canonical()).decode()
