"""The SSH keys of projects as people and programs are shown them: where they are, what they open.

Pure. No key is in here, only which version of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from reconciler.core.custody.paths import Owner
from reconciler.core.records import UNBEGUN, Accepted
from reconciler.core.ssh_access import (
    Installed,
    Records,
    openings,
    rotating,
    ssh_id,
    ssh_users,
    wanted_versions,
)
from reconciler.views.access import access_document

Document = dict[str, Any]


def ssh_key_documents(
    accepted: Accepted, records: Records, installed: Installed, addresses: Mapping[str, str]
) -> list[Document]:
    """One for each project that has a key, sorted. `addresses`: of nodes that have one."""
    wanted, there, users = wanted_versions(accepted), openings(records), ssh_users(accepted)
    waiting = rotating(accepted, records, installed)
    return [
        {
            "project": "/".join(owner),
            "version": version,
            "rotating": (owner, version) in waiting,
            "nodes": [
                {
                    "node": node,
                    "user": users.get(node, ""),
                    "address": addresses.get(node) or node,
                    "state": _state(ssh_id((owner, version)), node, users, installed),
                    "opens": [*opens],
                }
                for node, opens in there.get(owner, {}).items()
            ],
            "tunnels": _tunnels(owner, records, users, addresses),
        }
        for owner, version in sorted(wanted.items())
    ]


def _state(key_id: str, node: str, users: Mapping[str, str], installed: Installed) -> str:
    """Whether its newest key lets somebody in there: installed, waiting, unknown, or no_user."""
    if node not in users:
        return "no_user"
    ids = installed.get(node)
    if ids is None:
        return "unknown"
    return "installed" if key_id in ids else "waiting"


def _tunnels(
    owner: Owner, records: Records, users: Mapping[str, str], addresses: Mapping[str, str]
) -> list[Document]:
    found: list[Document] = []
    start = "/".join(owner) + "/"
    for key, record in sorted(records.items()):
        if not key.startswith(start) or record.state in UNBEGUN or record.node not in users:
            continue
        host, user = addresses.get(record.node, ""), users[record.node]
        found += (
            {"instance": str(key), **endpoint}
            for endpoint in access_document(record, host, ssh_user=user)["endpoints"]
        )
    return found


_WORDS = {
    "installed": "installed",
    "waiting": "not there yet",
    "unknown": "not known, it does not report",
    "no_user": "its manifest has no ssh_user: no key lets anybody in there",
}


def ssh_key_lines(documents: list[Document]) -> Iterator[str]:
    """All of them, for people."""
    for one in documents:
        rotating_words = ", the one before goes on until all have it" if one["rotating"] else ""
        yield f"{one['project']}  version {one['version']}{rotating_words}"
        for node in one["nodes"]:
            who = f"{node['user']}@{node['address']}" if node["user"] else node["address"]
            yield f"  {node['node']}  {who}  {_WORDS[node['state']]}"
            yield from (f"    opens {opening}" for opening in node["opens"])
        if not one["nodes"]:
            yield "  no instance of it is on any node"


def tunnel_lines(document: Document, key_file: str) -> Iterator[str]:
    """What its holder types, for each port of the project."""
    for tunnel in document["tunnels"]:
        port = f"{tunnel['name']} of {tunnel['instance']}"
        yield f"Port {port}, while this runs at {tunnel['local']}:"
        yield f"  {tunnel['tunnel'].replace('ssh -N', f'ssh -i {key_file} -N', 1)}"
    if not document["tunnels"]:
        yield "Nothing of the project can be reached through a tunnel yet: see gpuaas ssh-key list"
