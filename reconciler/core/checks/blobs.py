"""Can the blobs that a version names be brought to it, and may the project read them?

That each is registered, and promoted where its version is, is asked with its images (`catalog`).
"""

from __future__ import annotations

from reconciler.core.blobs import BLOBS_POINTER
from reconciler.core.checks.catalog import NOT_FOR_CHANNEL
from reconciler.core.checks.instances import Case
from reconciler.core.world import Findings, World, finding

CARRY_BLOBS = frozenset(("bare_metal", "docker_compose", "launchable_oci"))
"""The runtime kinds whose engines put blobs in place before a start."""
_VERSION = "/spec/version"


def check_blobs(world: World) -> Findings:
    for entry in world.versions.values():
        profile = entry.spec.runtime_profile
        if profile.blobs and profile.kind not in CARRY_BLOBS:
            yield finding(
                entry,
                "blobs_not_carried",
                f"runtime kind {profile.kind} brings no blobs to a workload",
                BLOBS_POINTER,
                f"it is done by: {', '.join(sorted(CARRY_BLOBS))}",
            )
        names: set[str] = set()
        for index, blob in enumerate(profile.blobs):
            if blob.name in names:
                message = f"two blobs are called {blob.name}, and each is a file of that name"
                where = f"{BLOBS_POINTER}/{index}/name"
                yield finding(entry, "blob_name_taken", message, where, "call one something else")
            names.add(blob.name)


def _usable(case: Case) -> Findings:
    """What the promotion accepts may still be good in another project's registration only."""
    standings = case.setting.blobs
    for blob, found in zip(case.version.spec.runtime_profile.blobs, standings, strict=True):
        seen_by = "/".join(case.owner)
        if found == "not_visible":
            message = f"blob {blob.name} ({blob.ref}) is not visible to project {seen_by}"
            hint = "its Artifact says who may use it: visibility project, tenant or platform"
            yield finding(case.entry, "artifact_not_visible", message, _VERSION, hint)
        elif found in ("published", "retired", NOT_FOR_CHANNEL):
            message = f"blob {blob.name} ({blob.ref}) is {found} where project {seen_by} can see it"
            yield finding(case.entry, "artifact_not_promoted", message, _VERSION)


SHARED_CHECKS = (_usable,)
"""Of what all instances of one project and version share."""
