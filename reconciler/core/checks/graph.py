"""Do instances depend on, and follow from, what can be depended on and followed?

A decommissioned instance depends on nothing and follows from nobody: it can always be removed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice

from reconciler.core.checks.references import missing_reference
from reconciler.core.kinds.app_instance import AppInstanceSpec
from reconciler.core.names import ObjectRef
from reconciler.core.world import Entry, Findings, Path, World, finding

Edges = Mapping[Path, Sequence[Path]]
_SHOWN_MAX = 8


def check_dependencies(world: World) -> Findings:
    """`depends_on` names instances of the project that run, and never leads back."""
    live = dict(_live(world))
    edges: dict[Path, list[Path]] = {}
    for path, entry in live.items():
        targets = [(*path[:2], name) for name in entry.spec.depends_on]
        for index, target in enumerate(targets):
            yield from _dependency(world, entry, target, f"/spec/depends_on/{index}")
        edges[path] = [target for target in targets if target in live]
    for cycle in cycles_of(edges):
        yield from _cycle(world, cycle)


def check_moves(world: World) -> Findings:
    """`moved_from` names an instance that is gone, and each is followed by one."""
    claims: dict[Path, list[Entry[AppInstanceSpec]]] = defaultdict(list)
    for path, entry in _live(world):
        former = entry.spec.moved_from
        if former is not None:
            claims[*path[:2], former].append(entry)
    for path, claimants in claims.items():
        yield from _still_there(world, path, claimants)
        first, *others = claimants
        for entry in others:
            message = f"{_ref(path)} moved to {first.ref} already"
            hint = "an instance moves to one other: take moved_from out of all but one"
            involved = (first.ref,)
            yield finding(entry, "moved_twice", message, "/spec/moved_from", hint, involved)


def _live(world: World) -> Iterator[tuple[Path, Entry[AppInstanceSpec]]]:
    for path, entry in world.linked.items():
        if entry.spec.desired != "decommissioned":
            yield path, entry


def _ref(path: Path) -> ObjectRef:
    return ObjectRef("AppInstance", path)


def _dependency(
    world: World, entry: Entry[AppInstanceSpec], target: Path, pointer: str
) -> Findings:
    found = world.instances.get(target)
    if found is None:
        yield missing_reference(world, entry, _ref(target), pointer)
    elif entry.spec.desired == "running" and found.spec.desired != "running":
        message = f"waits for {found.ref}, which is {found.spec.desired}"
        hint = "let that one run, stop this one, or take it out of depends_on"
        involved = (found.ref,)
        yield finding(entry, "dependency_not_running", message, pointer, hint, involved)


def _cycle(world: World, cycle: Sequence[Path]) -> Findings:
    entry = world.instances[cycle[0]]
    names = [path[-1] for path in (*cycle, cycle[0])]
    if len(names) > _SHOWN_MAX:
        names[_SHOWN_MAX - 2 : -1] = [f"({len(names) - _SHOWN_MAX + 1} more)"]
    index = entry.spec.depends_on.index(cycle[1 % len(cycle)][-1])
    itself = len(cycle) == 1
    message = "depends on itself" if itself else f"depends on itself: {' → '.join(names)}"
    hint = "take it out of depends_on" if itself else "take one of these out of a depends_on"
    involved = tuple(_ref(path) for path in cycle[1:])
    where = f"/spec/depends_on/{index}"
    yield finding(entry, "dependency_cycle", message, where, hint, involved)


def cycles_of(edges: Edges) -> Iterator[Sequence[Path]]:
    """Cycles that share no member, each beginning with its least one; at least one of each knot.

    What leads to no cycle is peeled off. From what is left, following the first edge that is left
    must come round. What was walked before the cycle is not walked again for the next.
    """
    leading_to: dict[Path, list[Path]] = defaultdict(list)
    open_edges = {path: len(targets) for path, targets in edges.items()}
    for path, targets in edges.items():
        for target in targets:
            leading_to[target].append(path)
    left = {path for path in edges if open_edges[path]}
    _peel([path for path in edges if not open_edges[path]], leading_to, open_edges, left)
    for start in sorted(left):
        walked = {start: 0}
        while walked:
            at = next(reversed(walked))
            if at not in left:
                del walked[at]
                continue
            target = next(target for target in edges[at] if target in left)
            if target not in walked:
                walked[target] = len(walked)
                continue
            members = list(islice(reversed(walked), len(walked) - walked[target]))[::-1]
            least = members.index(min(members))
            yield members[least:] + members[:least]
            left.difference_update(members)
            _peel(members, leading_to, open_edges, left)


def _peel(
    gone: list[Path],
    leading_to: Mapping[Path, Sequence[Path]],
    open_edges: dict[Path, int],
    left: set[Path],
) -> None:
    """Takes out of `left` what leads nowhere any more, now that `gone` are out."""
    queue = list(gone)
    while queue:
        for path in leading_to.get(queue.pop(), ()):
            open_edges[path] -= 1
            if path in left and not open_edges[path]:
                left.discard(path)
                queue.append(path)


def _still_there(world: World, path: Path, claimants: Sequence[Entry[AppInstanceSpec]]) -> Findings:
    former = _ref(path)
    if path not in world.instances and former not in world.quarantined:
        return
    for entry in claimants:
        itself = entry.path == path
        message = f"moved from {'itself' if itself else f'{former}, which is still declared'}"
        hint = "take moved_from out" if itself else f"remove {former}, or take moved_from out"
        involved = () if itself else (former,)
        yield finding(entry, "moved_from_present", message, "/spec/moved_from", hint, involved)
