"""One change of every sort, by kind and letter.

c create, u change, d delete; a approve removals, b break the glass; p promote, x deprecate,
t retire, r revoke; s suspend, e end by desired: decommissioned, m create with moved_from.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, NamedTuple

from hypothesis import strategies as st

from reconciler.core.kind_places import PLACE_OF
from reconciler.core.names import ObjectRef
from tests.core.authority.trust_builders import Document, manifest, scope_of


class Change(NamedTuple):
    ref: ObjectRef
    before: Document | None
    after: Document | None


TERM = {"by": "ada", "reason": "why not", "until": "2026-09-01T00:00:00Z"}
APPROVAL = {"removals": "0" * 16, "reason": "meant", "until": "2026-09-01T00:00:00Z"}
INSTANCE = {"app": "hello", "version": "1.0.0", "placement_intent": {"allocation": "lease"}}
SPECS: Mapping[str, Document] = {
    "Environment": {"domain": "gpu.example", "registry": {"endpoint": "registry.example:5000"}},
    "TrustPolicy": {"blob_sources": []},
    "Identity": {"type": "user", "display_name": "Zoe"},
    "RoleBinding": {
        "subjects": [{"identity": "zoe"}],
        "role": "viewer",
        "scope": scope_of("acme/lab"),
    },
    "FleetPolicy": {"selector": {"pools": ["main"]}},
    "Node": {"pool": "main", "cpu_cores": 4},
    "PlatformRelease": {"channel": "stable", "state": "published"},
    "App": {"slug": "hello", "display_name": "Hello", "owner": "platform"},
    "AppVersion": {"slug": "hello", "version": "1.0.0"},
    "Promotion": {"state": "draft", "reason": "tested"},
    "Tenant": {"org_id": "org-1", "display_name": "Acme"},
    "Project": {"project_id": "prj-1", "display_name": "Lab"},
    "Entitlement": {"enabled": True},
    "ServiceAccount": {"roles": ["app-operator"]},
    "Allocation": {"node": "gpu-1", "state": "active", "cpu_cores": 4, "memory_mib": 1024},
    "Artifact": {"kind": "oci", "repository": "r", "digest": "sha256:1", "state": "published"},
    "AppInstance": INSTANCE,
}


def ref_of(kind: str, tenant: str = "acme", project: str = "lab") -> ObjectRef:
    """An object of that kind in that project, or wherever the kind lives."""
    names = {"tenant": tenant, "project": project, "app": "hello", "version": "1.0.0"}
    last = {"Tenant": tenant, "Project": project}.get(kind, "zoe")
    folders = PLACE_OF[kind].path.replace("{name}", "").split("/")
    scope = [names[part.strip("{}")] for part in folders if part.strip("{}") in names]
    return ObjectRef(kind, (*scope, last))


def document(kind: str, **changed: Any) -> Document:
    return manifest(kind, "zoe", {**copy.deepcopy(SPECS[kind]), **changed})


def labelled(found: Document) -> Document:
    return {**found, "metadata": {**found["metadata"], "labels": {"a": "b"}}}


def stepping(kind: str, before: str, after: str) -> tuple[Document, Document]:
    return document(kind, state=before), document(kind, state=after)


def changes(kind: str, tenant: str = "acme", project: str = "lab") -> dict[str, Change]:
    """Letter → the change it stands for."""
    there = document(kind)
    found: dict[str, tuple[Document | None, Document | None]] = {
        "c": (None, there),
        "u": (there, labelled(there)),
        "d": (there, None),
    }
    if kind == "Environment":
        found["a"] = there, document(kind, guards={"approvals": [APPROVAL]})
        found["b"] = there, document(kind, sync={"break_glass": TERM})
    if kind == "Promotion":
        found["p"] = stepping(kind, "canary", "active")
        found["x"] = stepping(kind, "active", "deprecated")
        found["t"] = stepping(kind, "deprecated", "retired")
    if kind == "Artifact":
        found["p"] = stepping(kind, "published", "promoted")
        found["x"] = stepping(kind, "promoted", "deprecated")
        found["t"] = stepping(kind, "deprecated", "retired")
        found["r"] = stepping(kind, "promoted", "revoked")
    if kind == "AppInstance":
        found["s"] = there, document(kind, suspend=TERM)
        found["e"] = there, document(kind, desired="decommissioned")
        found["m"] = None, document(kind, moved_from="yan")
    return {letter: Change(ref_of(kind, tenant, project), *pair) for letter, pair in found.items()}


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=12,
)
_FIELDS = ("approvals", "break_glass", "desired", "guards", "spec", "state", "suspend", "sync")
ODD = st.recursive(
    _JSON, lambda inner: st.dictionaries(st.sampled_from(_FIELDS), inner, max_size=4), max_leaves=12
)
"""Any JSON, with the fields that decide something in likely places."""
