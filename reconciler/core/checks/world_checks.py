"""Every check between objects, with what it reads: so that only what a change touches runs again.

Rules:
- A check that says nothing of what it reads is run whole after every change.
- What is said may depend on anything (a hint names what is near), so findings are made anew each
  time. Only that nothing was found is taken over, while all that is read is the same.
- The objects in quarantine are read by every check.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from reconciler.core.checks import (
    artifacts,
    blobs,
    capacity,
    catalog,
    graph,
    members,
    packages,
    platform,
    references,
    secret_files,
    signing_keys,
    terms,
    topology,
    trust,
)
from reconciler.core.names import ObjectRef
from reconciler.core.world import Finding, Findings, World


@dataclass(frozen=True)
class WorldCheck:
    """`reads` are the kinds whose objects decide, all when None.

    `alone`: each object is looked at by itself, so that the changed ones will do.
    """

    name: str
    run: Callable[[World], Findings]
    reads: frozenset[str] | None = None
    alone: bool = False


def _of_references(kind: str) -> WorldCheck:
    reads = {kind, *(reference.kind for reference in references.REFERENCES[kind])}
    run = partial(references.check_references, kinds=(kind,))
    return WorldCheck(f"references of {kind}", run, frozenset(reads))


_CATALOG = frozenset(("App", "AppVersion", "Promotion", "Artifact"))
_LEASES = frozenset(("Allocation", "Node"))
_INSTANCES = frozenset(("AppInstance",))

WORLD_CHECKS: tuple[WorldCheck, ...] = (
    # Those of an instance are looked up with its setting; see `core.resolve`.
    *(_of_references(kind) for kind in references.REFERENCES if kind != "AppInstance"),
    WorldCheck("platform", platform.check_platform, platform.READS),
    WorldCheck("channels", trust.check_channels, trust.READS),
    WorldCheck("terms", terms.check_terms, alone=True),
    WorldCheck("signing keys", signing_keys.check_signing_keys, alone=True),
    WorldCheck("versions", packages.check_versions, frozenset(("AppVersion", "PlatformRelease"))),
    WorldCheck("dependencies", graph.check_dependencies, _INSTANCES),
    WorldCheck("moves", graph.check_moves, _INSTANCES),
    WorldCheck("runtime kind", catalog.check_runtime_kind, alone=True),
    WorldCheck("roles of members", members.check_roles, alone=True),
    WorldCheck("addresses of nodes", members.check_addresses, frozenset(("Node",))),
    WorldCheck("secrets", secret_files.check_secrets, alone=True),
    WorldCheck("blobs", blobs.check_blobs, alone=True),
    WorldCheck("topologies", topology.check_topologies, alone=True),
    WorldCheck("artifacts", artifacts.check_artifacts, artifacts.READS),
    WorldCheck("promoted images", catalog.check_promoted_images, _CATALOG),
    WorldCheck("GPUs of leases", capacity.check_lease_gpus, _LEASES),
    WorldCheck("GPUs leased once", capacity.check_gpu_leased_once, _LEASES),
    WorldCheck("exclusive leases", capacity.check_exclusive_lease, _LEASES),
    WorldCheck("leases fit nodes", capacity.check_leases_fit_node, _LEASES),
)

Found = dict[str, tuple[Finding, ...]]
"""By a check's name, what it found last."""


def world_findings(world: World, before: World | None, found: Found) -> Iterator[Finding]:
    """What is wrong in `world`, in the order of the checks; `found` is brought up to date.

    `found` is what they found in `before`, from which `world` was built; empty when there is none.
    """
    changed = world.only_changed()
    same = before is not None and before.quarantined == world.quarantined
    for check in WORLD_CHECKS:
        if check.alone:
            kept = found.get(check.name, ())
            found[check.name] = _merged(kept, tuple(check.run(changed)), world)
        elif not (same and found.get(check.name) == () and not _touched(check, world)):
            found[check.name] = tuple(check.run(world))
        yield from found[check.name]


def _touched(check: WorldCheck, world: World) -> bool:
    return bool(world.changed if check.reads is None else check.reads & world.changed.keys())


def _merged(
    kept: tuple[Finding, ...], fresh: tuple[Finding, ...], world: World
) -> tuple[Finding, ...]:
    """Findings by object: fresh ones, and of what did not change those of before."""
    if not kept and not fresh:
        return ()
    by_object: dict[ObjectRef, list[Finding]] = defaultdict(list)
    for found in kept:
        culprit = found.involved[0]
        if culprit.path not in world.changed.get(culprit.kind, ()):
            by_object[culprit].append(found)
    for found in fresh:
        by_object[found.involved[0]].append(found)
    return tuple(one for _, those in sorted(by_object.items()) for one in those)
