"""What a plan says of blobs that are brought to nodes ahead, whatever it is shown in. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from reconciler.core.actions import BlobAction, Held, blob_action_id, blob_subject
from reconciler.core.plan import Plan
from reconciler.views.plan_words import listed, short

_NODES_MAX = 8


@dataclass(frozen=True)
class BlobRow:
    """One blob and the nodes that it goes to, or is held for, alike."""

    artifact: str
    digest: str
    nodes: tuple[str, ...]
    held: Held | None

    def __str__(self) -> str:
        return f"{self.artifact} ({short(self.digest)}) to {listed(self.nodes, _NODES_MAX)}"


def blob_rows(plan: Plan) -> tuple[BlobRow, ...]:
    """What goes ahead first; one row for all nodes that are held for the same."""
    rows: dict[tuple[str, str, str, str], list[BlobAction]] = defaultdict(list)
    for action in plan.blobs:
        held = action.held
        why = (held.code, held.message) if held is not None else ("", "")
        rows[*why, action.artifact, action.digest].append(action)
    return tuple(
        BlobRow(artifact, digest, tuple(sorted(one.node for one in alike)), alike[0].held)
        for (_, _, artifact, digest), alike in sorted(rows.items())
    )


def blob_document(action: BlobAction, caused: frozenset[str] | None) -> Mapping[str, Any]:
    """`caused`: ids of what a change to the repo itself causes; None where that is not asked."""
    key = blob_action_id(action)
    return {
        "action_id": key,
        "action": action.kind,
        "instance": blob_subject(action.node, action.digest),
        "node": action.node,
        "artifact": action.artifact,
        "digest": action.digest,
        "reason": action.reason,
        "held": asdict(action.held) if action.held else None,
        "by_this_change": key in caused if caused is not None else None,
    }
