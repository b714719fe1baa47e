"""How the endpoints of instances are reached, by what is accepted. Decides only."""

from __future__ import annotations

import json

from reconciler.core.endpoints import Forms, forms_of
from reconciler.core.records import Accepted, InstanceRecord
from reconciler.core.ssh_access import ssh_users, wanted_versions
from reconciler.views.access import Document, tunnels


class Reach:
    """Looks up each version and node once, however many instances are asked about."""

    def __init__(self, accepted: Accepted) -> None:
        self._accepted = accepted
        self._users = ssh_users(accepted)
        self._keys = wanted_versions(accepted)
        self._forms: dict[tuple[str, str], Forms] = {}
        self._addresses: dict[str, str] = {}

    def forms(self, record: InstanceRecord) -> Forms:
        """Its endpoints as the version has them that runs."""
        named = (record.app, record.applied_version or record.target_version)
        if named not in self._forms:
            self._forms[named] = forms_of(self._accepted, record)
        return self._forms[named]

    def address(self, node: str) -> str:
        """The node's address by its accepted manifest; empty where that gives none."""
        if node not in self._addresses:
            manifest = self._accepted.objects.get(f"Node/{node}")
            spec = json.loads(manifest.document_json)["spec"] if manifest is not None else {}
            self._addresses[node] = str(spec.get("address") or "")
        return self._addresses[node]

    def ssh(self, record: InstanceRecord) -> tuple[str, str]:
        """The node's user for tunnels, and the project whose key lets in as that; or nothing."""
        tenant, project, _ = record.key.split("/")
        user = self._users.get(record.node, "")
        if not user or (tenant, project) not in self._keys:
            return "", ""
        return user, f"{tenant}/{project}"

    def tunnels(self, record: InstanceRecord) -> list[Document]:
        """As `views.access.tunnels`."""
        host = self.address(record.node) or record.node
        return tunnels(record.endpoints, host, self.ssh(record)[0], self.forms(record))
