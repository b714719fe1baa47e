"""How to reach an instance: its instructions filled in, a tunnel for each port, its secrets. Pure.

Rules:
- A secret's value is shown where the caller gives it, and nowhere else: `***` stands in its place.
  An instance's own identity is nobody else's, and not even named. Of a secret that it refers to,
  the reference is shown and never the value: who put it there has it.
- What is shown can be pasted into a shell as it is. Names, addresses and ports come from records,
  and a report with others is not taken; the instructions are the words of the version's author.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from node_agent.wire import MACHINE_IDENTITY, SECRETS_PATH, Endpoint
from reconciler.core.access_template import with_host_ports
from reconciler.core.custody.paths import asked_for
from reconciler.core.endpoints import LOOPBACK, Forms, url
from reconciler.core.records import InstanceRecord, State
from reconciler.core.ssh_access import opened

Document = dict[str, Any]
HIDDEN = "***"
_NOT_YET = "not made yet: it is when its node first asks for it"
_SECRET = re.compile(r"\{secret:([^{}]*)\}")
_OPEN_TO_ALL_FROM = 1024
"""Ports below may be opened by root alone, on most hosts."""
_GONE = (State.DECOMMISSIONED, State.DECOMMISSIONING)


def for_people(record: InstanceRecord) -> tuple[str, ...]:
    """The names of the secrets made for it, without the one that is its identity."""
    return tuple(one for one in record.secrets if one != MACHINE_IDENTITY and not asked_for(one)[1])


def references(record: InstanceRecord) -> tuple[tuple[str, str], ...]:
    """Name and reference of the secrets that it refers to, those of former versions included."""
    return tuple(pair for pair in map(asked_for, record.secrets) if pair[1])


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
    }
    ports = {one.name: one.host_port for one in record.endpoints}
    text = with_host_ports(record.access, _entrance(record).host_port, ports)
    for placeholder, value in known.items():
        text = text.replace(placeholder, value)
    # Last, so that nothing in a value is taken for a placeholder.
    return _SECRET.sub(lambda found: (values or {}).get(found[1], HIDDEN), text)


def _entrance(record: InstanceRecord) -> Endpoint:
    """The first endpoint on the loopback: what is published for other members is not for people."""
    private = (one for one in record.endpoints if one.host_ip == LOOPBACK)
    return next(private, record.endpoints[0])


def access_document(
    record: InstanceRecord,
    host: str = "",
    values: Mapping[str, str | None] | None = None,
    handed: Mapping[str, Document] | None = None,
    ssh_user: str = "",
    ssh_key: str = "",
    forms: Forms | None = None,
) -> Document:
    """Everything `gpuaas access` shows. `values`: of its secrets, None for one not made yet.

    `handed` has `token` (None for one not made yet) and `expires_at`, by name. Tunnels go to
    `ssh_user`, with the key of the project that `ssh_key` names; `forms` are its endpoints as its
    version has them.
    """
    shown = {name: value for name, value in (values or {}).items() if value is not None}
    problem = _not_ready(record)
    return {
        "instance": str(record.key),
        "node": record.node,
        "address": host or record.node,
        "ready": not problem,
        "reason": problem,
        "instructions": instructions(record, host, shown),
        "endpoints": tunnels(record.endpoints, host or record.node, ssh_user, forms),
        "ssh_key": ssh_key,
        "secrets": [
            *(
                {
                    **_secret(name, "", shown.get(name), values is not None),
                    "hand_over": (handed or {}).get(name),
                }
                for name in for_people(record)
            ),
            *(
                {**_secret(name, reference, None, False), "hand_over": None}
                for name, reference in references(record)
            ),
        ],
    }


def _secret(name: str, reference: str, value: str | None, is_shown: bool) -> Document:
    return {
        "name": name,
        "path": f"{SECRETS_PATH}/{name}",
        "reference": reference,
        "shown": is_shown,
        "value": value,
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
        yield f"Port {endpoint['name']}, while this runs at {endpoint['url'] or endpoint['local']}:"
        yield f"  {endpoint['tunnel']}"
    if document["endpoints"] and document["ssh_key"]:
        yield ""
        yield "Whoever has the project's key may open these tunnels, and nothing else:"
        yield f"  gpuaas ssh-key {document['ssh_key']}"
    if document["secrets"]:
        yield ""
        yield "Secrets:"
        width = max(len(secret["name"]) for secret in document["secrets"])
        yield from (f"  {one['name']:<{width}}  {_shown(one)}" for one in document["secrets"])


def _shown(secret: Mapping[str, Any]) -> str:
    if secret["reference"]:
        return str(secret["reference"])
    handed = secret["hand_over"]
    if handed:
        if not handed["token"]:
            return _NOT_YET
        return f"{handed['token']}  (once, until {handed['expires_at']}: gpuaas unwrap)"
    if not secret["shown"]:
        return f"{HIDDEN}  (handed over with --wrap)"
    return str(secret["value"] or _NOT_YET)


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


def tunnels(
    endpoints: Sequence[Endpoint], host: str, user: str = "", forms: Forms | None = None
) -> list[Document]:
    """For each endpoint the tunnel to it, where that ends, and what is there then.

    All of them can be open at once: no two end at the same port of one's own.
    """
    found: list[Document] = []
    taken: set[int] = set()
    for endpoint in endpoints:
        port = endpoint.container
        free = port >= _OPEN_TO_ALL_FROM and port not in taken
        local = port if free else endpoint.host_port
        taken.add(local)
        form = (forms or {}).get(endpoint.name)
        there, at = f"{user}@{host}" if user else host, f"{LOOPBACK}:{local}"
        found.append(
            {
                "name": endpoint.name,
                "service": form.service if form is not None else "",
                "protocol": form.protocol if form is not None else "",
                "tunnel": f"ssh -N -L {local}:{opened(endpoint)} {there}",
                "local": at,
                "url": url(form.protocol, form.path, at) if form is not None else "",
            }
        )
    return found
