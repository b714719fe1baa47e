"""The small world with one more node, and a version whose instances spread over both."""

from __future__ import annotations

from typing import Any

from tests.core import builders as b

OTHER_NODE_FILE = "platform/nodes/gpu-2.yaml"
OTHER_ALLOCATION_FILE = f"{b.PROJECT}/allocations/other.yaml"
HEAD = "acme/research/one"
GCS = {"name": "gcs", "container": 6379, "expose": "members"}


def member(name: str, allocation: str = "other", role: str = "worker", **parameters: Any) -> Any:
    return {"name": name, "role": role, "allocation": allocation, "parameters": parameters}


def spread(*members: dict[str, Any]) -> b.Documents:
    """A head on gpu-1 and these members; without any, w1 on gpu-2 and w2 beside the head."""
    documents = b.world()
    profile = documents[b.VERSION_FILE]["spec"]["runtime_profile"]
    profile["role"] = "head"
    profile["ports"].append(dict(GCS))
    profile["members"] = [
        {
            "role": "worker",
            "command": ["work"],
            "env": {"C": "3"},
            "members_max": 3,
            "resources": {"min_memory_mib": 512},
        },
        {"role": "store", "ports": [{"name": "data", "container": 7000, "expose": "members"}]},
    ]
    documents[b.NODE_FILE]["spec"]["address"] = "10.0.0.5"
    gpus = [b.gpu(8), b.gpu(9)]
    other = {**documents[b.NODE_FILE]["spec"], "address": "10.0.0.6", "accelerators": gpus}
    b.add(documents, OTHER_NODE_FILE, other)
    lease = {**documents[b.ALLOCATION_FILE]["spec"], "node": "gpu-2", "gpus": ["GPU-8", "GPU-9"]}
    b.add(documents, OTHER_ALLOCATION_FILE, lease)
    set_members(documents, *(members or (member("w1"), member("w2", "lease"))))
    return documents


def set_members(documents: b.Documents, *members: dict[str, Any]) -> None:
    documents[b.INSTANCE_FILE]["spec"]["members"] = list(members)


def profile_of(documents: b.Documents) -> dict[str, Any]:
    found: dict[str, Any] = documents[b.VERSION_FILE]["spec"]["runtime_profile"]
    return found
