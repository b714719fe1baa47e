"""Which SSH keys open tunnels on which node, and which key pairs there should be. Pure.

Rules:
- A key opens what its project's instances publish on that node, and nothing else there.
- The version that the manifest asks for is the newest. One before it stays on the nodes that have
  it until each node of the project has the newest; a node that let go of it does not get it back.
- A key pair is deleted once no node has it. What a node has that does not answer is not known, and
  counts as all of it, wherever the project is now.
- Nor is one deleted while it is not sure that nobody asks for it: a project whose manifest is
  refused, broken or misplaced at the moment is not gone, above all where nothing is remembered.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from node_agent.membership import SshKey
from node_agent.wire import Endpoint
from reconciler.core.custody.paths import Owner, ssh_key_path
from reconciler.core.kind_places import TOP_FOLDERS
from reconciler.core.names import InstanceKey
from reconciler.core.observed import Known, NodeSeen, Seen
from reconciler.core.problems import Problem
from reconciler.core.records import UNBEGUN, Accepted, EnrolledNode, InstanceRecord

Records = Mapping[InstanceKey, InstanceRecord]
KeyName = tuple[Owner, int]
"""Whose key, and which version of it."""
Installed = Mapping[str, frozenset[str] | None]
"""By node, the ids of the keys it reports as installed; None where that is not known."""
Paths = Iterable[str]
Openings = Mapping[Owner, Mapping[str, tuple[str, ...]]]
"""By project and node of it, the sorted `host:port` of what its instances publish there."""

_REVOKED = "node_revoked"


@dataclass(frozen=True)
class SshSteps:
    """The key pairs that are to be made and deleted, and those that are kept until it is sure that
    nobody asks for them; sorted.
    """

    make: tuple[KeyName, ...] = ()
    delete: tuple[KeyName, ...] = ()
    doubted: tuple[KeyName, ...] = ()


@dataclass(frozen=True)
class Doubt:
    """What the revision leaves open that was accepted. `unread` are names that files bear which are
    not read; `whole`: nothing can be said of it.
    """

    problems: tuple[Problem, ...] = ()
    unread: frozenset[str] = frozenset()
    whole: bool = False

    def of(self, owner: Owner, accepted: Accepted) -> bool:
        """Whether the project may ask for a key that its accepted form does not ask for."""
        tenant, project = owner
        refs = {f"Project/{tenant}/{project}", f"Tenant/{tenant}"}
        if self.whole or accepted.revision is None or not refs.isdisjoint(accepted.refused):
            return True
        if any(problem.object in refs for problem in self.problems):
            return True
        known = accepted.objects.get(f"Project/{tenant}/{project}")
        if known is not None:
            return any(problem.path == known.path for problem in self.problems)
        if not self.unread.isdisjoint(owner):
            return True
        return any(_may_hold(problem.path, tenant, accepted) for problem in self.problems)


def _may_hold(path: str, tenant: str, accepted: Accepted) -> bool:
    """Whether a project of this tenant may be in that file, by a slip too. Where other objects live
    it is not, nor with another tenant that is accepted.
    """
    top, _, rest = path.partition("/")
    if top != "tenants":
        return top not in TOP_FOLDERS
    other = rest.partition("/")[0]
    return other == tenant or f"Tenant/{other}" not in accepted.objects


def wanted_versions(accepted: Accepted) -> dict[Owner, int]:
    """By project, the version of its key; without the projects that ask for none."""
    found: dict[Owner, int] = {}
    for ref, spec in _specs(accepted, "Project"):
        if spec.get("ssh_key"):
            tenant, project = ref.split("/")
            found[tenant, project] = int(spec["ssh_key"]["version"])
    return found


def ssh_users(accepted: Accepted) -> dict[str, str]:
    """By node, the user that keys let in; without the nodes that have none."""
    return {
        ref: str(spec["ssh_user"]) for ref, spec in _specs(accepted, "Node") if spec.get("ssh_user")
    }


def _specs(accepted: Accepted, kind: str) -> Iterator[tuple[str, dict[str, dict[str, int]]]]:
    start = f"{kind}/"
    for ref in sorted(ref for ref in accepted.objects if ref.startswith(start)):
        yield ref.removeprefix(start), json.loads(accepted.objects[ref].document_json)["spec"]


def openings(records: Records) -> Openings:
    """What each project publishes; a node with nothing has an instance that publishes nothing."""
    found: dict[Owner, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for key, record in sorted(records.items()):
        if record.state not in UNBEGUN:
            tenant, project, _ = key.split("/")
            found[tenant, project][record.node].update(map(opened, record.endpoints))
    return {
        owner: {node: tuple(sorted(there)) for node, there in sorted(nodes.items())}
        for owner, nodes in found.items()
    }


def opened(endpoint: Endpoint) -> str:
    """`host:port` as ssh writes it."""
    host = f"[{endpoint.host_ip}]" if ":" in endpoint.host_ip else endpoint.host_ip
    return f"{host}:{endpoint.host_port}"


def installed_on(nodes: Mapping[str, Seen[NodeSeen]]) -> dict[str, frozenset[str] | None]:
    """What the nodes report. One that is revoked has none: nothing of it is believed."""
    found: dict[str, frozenset[str] | None] = {}
    for name, seen in sorted(nodes.items()):
        if isinstance(seen, Known):
            config = seen.value.config
            found[name] = frozenset(config.ssh_keys if config is not None else ())
        else:
            found[name] = frozenset() if seen.code == _REVOKED else None
    return found


def reported_by(nodes: Iterable[EnrolledNode]) -> dict[str, frozenset[str] | None]:
    """What each node said last, however long ago: it still has what it had then."""
    return {
        node.name: None if node.report_json is None else _ids(node.report_json)
        for node in nodes
        if node.revoked_at_ms is None
    }


def _ids(report_json: str) -> frozenset[str] | None:
    try:
        config = json.loads(report_json).get("config")
        return frozenset(config["ssh_keys"]) if config else frozenset()
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def ssh_id(name: KeyName) -> str:
    """What a node calls a key: `<tenant>/<project>/<version>`."""
    (tenant, project), version = name
    return f"{tenant}/{project}/{version}"


def keys_wanted(accepted: Accepted, records: Records, installed: Installed) -> list[KeyName]:
    """Every key that some node should have, sorted: those whose public halves are needed."""
    return sorted({name for names in _by_node(accepted, records, installed) for name in names[1]})


def _by_node(
    accepted: Accepted, records: Records, installed: Installed
) -> Iterator[tuple[str, list[KeyName]]]:
    """Nodes, each once a project, with the keys of that project that they should have."""
    users, there = ssh_users(accepted), openings(records)
    for owner, newest in sorted(wanted_versions(accepted).items()):
        nodes = _nodes(owner, there, users)
        done = all(newest in _versions(owner, installed.get(node)) for node in nodes)
        for node in nodes:
            before = () if done else _versions(owner, installed.get(node))
            yield node, [(owner, v) for v in sorted({newest, *before}) if v <= newest]


def keys_by_node(
    accepted: Accepted, records: Records, installed: Installed, public: Mapping[KeyName, str]
) -> dict[str, tuple[SshKey, ...]]:
    """By node, the keys for it, sorted by id. `public`: OpenSSH lines without comment; a key that
    is not in there is left out.
    """
    users, there = ssh_users(accepted), openings(records)
    found: dict[str, list[SshKey]] = defaultdict(list)
    for node, names in _by_node(accepted, records, installed):
        found[node] += (
            SshKey(
                user=users[node],
                id=ssh_id(name),
                public_key=public[name],
                permit_open=there[name[0]][node],
            )
            for name in names
            if name in public
        )
    return {
        node: tuple(sorted(keys, key=lambda key: key.id))
        for node, keys in sorted(found.items())
        if keys
    }


def key_steps(
    accepted: Accepted,
    installed: Installed,
    whole: Paths,
    halves: Paths = (),
    doubt: Doubt | None = None,
) -> SshSteps:
    """What is to be made and deleted. `whole` are the paths of the key pairs there are, `halves` of
    those that only one half is there of.
    """
    doubt, wanted = doubt or Doubt(), wanted_versions(accepted)
    pairs, rests = _names_at(whole), _names_at(halves)
    loose = [
        name
        for name in sorted(pairs | rests)
        if wanted.get(name[0]) != name[1] and _let_go(name, installed)
    ]
    doubted = tuple(name for name in loose if doubt.of(name[0], accepted))
    return SshSteps(
        make=tuple(sorted({*wanted.items()} - pairs)),
        delete=tuple(name for name in loose if name not in doubted),
        doubted=doubted,
    )


def rotating(
    accepted: Accepted, records: Records, installed: Installed
) -> dict[KeyName, tuple[str, ...]]:
    """By the newest key of a project, the nodes that do not have it yet while an older one goes
    on; nothing for a project whose key is the only one.
    """
    users, there = ssh_users(accepted), openings(records)
    found = {}
    for owner, newest in sorted(wanted_versions(accepted).items()):
        nodes = _nodes(owner, there, users)
        there_now = {node: _versions(owner, installed.get(node)) for node in nodes}
        missing = tuple(node for node, versions in there_now.items() if newest not in versions)
        if missing and any(v < newest for versions in there_now.values() for v in versions):
            found[owner, newest] = missing
    return found


def _nodes(owner: Owner, there: Openings, users: Mapping[str, str]) -> tuple[str, ...]:
    """The nodes where a project's key lets somebody in."""
    return tuple(node for node in there.get(owner, ()) if node in users)


def _versions(owner: Owner, ids: frozenset[str] | None) -> frozenset[int]:
    """The versions of one project's key among what a node reports, which may be anything."""
    start = "/".join(owner) + "/"
    tails = (one.removeprefix(start) for one in ids or () if one.startswith(start))
    return frozenset(int(tail) for tail in tails if _is_number(tail))


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) < 10


def _let_go(name: KeyName, installed: Installed) -> bool:
    """Whether no node has it, and each says so: where a project was once is not remembered."""
    return all(ids is not None and ssh_id(name) not in ids for ids in installed.values())


def _names_at(paths: Paths) -> set[KeyName]:
    """The keys whose private halves are at these paths; others are nobody's."""
    found = set()
    for path in paths:
        parts = path.split("/")
        if len(parts) == 4 and _is_number(parts[3][1:]):
            owner, version = (parts[1], parts[2]), int(parts[3][1:])
            if ssh_key_path(*owner, version) == path:
                found.add((owner, version))
    return found
