"""The order of actions: a real graph, sorted by what depends on what, then by name."""

from __future__ import annotations

from collections.abc import Iterable
from graphlib import TopologicalSorter

from reconciler.core.actions import Action, action_id

_RANK = {"remove": 0, "control": 1, "replace": 2, "launch": 3}


def ordered(actions: Iterable[Action]) -> tuple[Action, ...]:
    """Dependencies first; among equals removals come first, since they free what others need.

    Dependencies only ever point from a launch to what frees its resources, so there is no cycle.
    """
    by_id = {action_id(action): action for action in actions}
    rank = {key: (_RANK[a.kind], a.node, a.instance) for key, a in by_id.items()}
    graph = TopologicalSorter(
        {key: [d for d in action.depends_on if d in by_id] for key, action in by_id.items()}
    )
    graph.prepare()
    result: list[Action] = []
    while graph.is_active():
        batch = sorted(graph.get_ready(), key=lambda key: rank[key])
        result.extend(by_id[key] for key in batch)
        graph.done(*batch)
    return tuple(result)
