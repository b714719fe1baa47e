"""How to reach an instance: its instructions filled in, a tunnel for each port, its secrets. Pure.

Rules:
- A secret's value is shown where the caller gives it, and nowhere else: `***` stands in its place.
  An instance's own identity is nobody else's, and not even named.
- What is shown can be pasted into a shell as it is. Names, addresses and ports come from records,
  and a report with others is not taken; the instructions are the words of the version's author.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from node_agent.wire import MACHINE_IDENTITY, SECRETS_PATH, Endpoint
from reconciler.core.records import InstanceRecord, State

Document = dict[str, Any]
HIDDEN = "***"
_SECRET = re.compile(r"\{secret:([^{}]*)\}")
_OPEN_TO_ALL_FROM = 1024
"""Ports below may be opened by root alone, on most hosts."""
_LOOPBACK = "127.0.0.1"
_GONE = (State.DECOMMISSIONED, State.DECOMMISSIONING)


def for_people(record: InstanceRecord) -> tuple[str, ...]:
    """The names of its secrets, without the one that is the instance's own."""
    return tuple(name for name in record.secrets if name != MACHINE_IDENTITY)


def instructions(
    record: InstanceRecord, host: str = "", values: Mapping[str, str] | None = None
) -> str:
    """The version's access instructions, filled in; empty while there is nothing to reach.

    `host` is what its node is reached at, by its name when left out; `values` are secrets to show.
    """
    if not record.endpoints:
        return ""
    known = {
        "{node}": host or record.node,
        "{name}": str(record.key).rpartition("/")[2],
        "{host_port}": str(_entrance(record).host_port),
    }
    text = record.access
    for placeholder, value in known.items():
        text = text.replace(placeholder, value)
    # Last, so that nothing in a value is taken for a placeholder.
    return _SECRET.sub(lambda found: (values or {}).get(found[1], HIDDEN), text)


def _entrance(record: InstanceRecord) -> Endpoint:
    """The first endpoint on the loopback: what is published for other members is not for people."""
    private = (one for one in record.endpoints if one.host_ip == _LOOPBACK)
    return next(private, record.endpoints[0])


def access_document(
    record: InstanceRecord, host: str = "", values: Mapping[str, str | None] | None = None
) -> Document:
    """Everything `gpuaas access` shows. `values`: of its secrets, None for one not made yet."""
    shown = {name: value for name, value in (values or {}).items() if value is not None}
    problem = _not_ready(record)
    return {
        "instance": str(record.key),
        "node": record.node,
        "address": host or record.node,
        "ready": not problem,
        "reason": problem,
        "instructions": instructions(record, host, shown),
        "endpoints": [_endpoint(endpoint, host or record.node) for endpoint in record.endpoints],
        "secrets": [
            {
                "name": name,
                "path": f"{SECRETS_PATH}/{name}",
                "shown": values is not None,
                "value": shown.get(name),
            }
            for name in for_people(record)
        ],
    }


def access_lines(document: Mapping[str, Any]) -> Iterator[str]:
    """The same for people."""
    where = f"{document['instance']} on {document['node']}"
    yield f"{where} is ready." if document["ready"] else f"{where}: {document['reason']}"
    if document["instructions"]:
        yield ""
        yield from (line for line in document["instructions"].rstrip().splitlines())
    for endpoint in document["endpoints"]:
        yield ""
        yield f"Port {endpoint['name']}, while this runs at {endpoint['local']}:"
        yield f"  {endpoint['tunnel']}"
    if document["secrets"]:
        yield ""
        yield "Secrets:"
        width = max(len(secret["name"]) for secret in document["secrets"])
        yield from (f"  {one['name']:<{width}}  {_shown(one)}" for one in document["secrets"])


def _shown(secret: Mapping[str, Any]) -> str:
    if not secret["shown"]:
        return f"{HIDDEN}  (shown with --show-secrets)"
    return str(secret["value"] or "not made yet: it is when its node first asks for it")


def _not_ready(record: InstanceRecord) -> str:
    """Why nobody can use it now; empty when it is ready."""
    if record.state in _GONE:
        return f"not there, it is {record.state.value}"
    ready = next((one for one in record.conditions if one.type == "Ready"), None)
    if ready is None:
        return f"not ready, it is {record.state.value}"
    if ready.status == "True":
        return ""
    words = ": ".join(word for word in (ready.reason, ready.message) if word)
    return f"not ready ({words})"


def _endpoint(endpoint: Endpoint, host: str) -> Document:
    port = endpoint.container
    local = port if port >= _OPEN_TO_ALL_FROM else endpoint.host_port
    far = f"[{endpoint.host_ip}]" if ":" in endpoint.host_ip else endpoint.host_ip
    return {
        "name": endpoint.name,
        "tunnel": f"ssh -N -L {local}:{far}:{endpoint.host_port} {host}",
        "local": f"127.0.0.1:{local}",
    }
