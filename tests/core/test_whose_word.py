"""Several projects register one digest: whose word on it counts for whom."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from reconciler.core.checks.catalog import standing
from reconciler.core.desired import StateObject
from reconciler.core.kinds.artifact import Artifact, ArtifactSpec
from reconciler.core.names import InstanceKey, ObjectRef
from reconciler.core.resolve import Resolution, resolve
from reconciler.core.world import Entry
from tests.core import builders as b

OURS = "gpuaas/apps/acme/research/hello"
NOBODYS = "library/hello"
DIGEST = b.IMAGE.partition("@")[2]
Registered = tuple[str, str, str, tuple[str, ...]]
"""(project, state, visibility, channels)"""


def said(project: str, state: str, visibility: str = "platform", *channels: str) -> Registered:
    return project, state, visibility, channels


def entries(repository: str, *registered: Registered) -> tuple[Entry[ArtifactSpec], ...]:
    return tuple(entry(repository, *one) for one in registered)


def entry(
    repository: str, project: str, state: str, visibility: str, channels: tuple[str, ...]
) -> Entry[ArtifactSpec]:
    ref = ObjectRef("Artifact", (*project.split("/"), "hello", "1.0.0", f"x-{state}-{visibility}"))
    spec: dict[str, object] = {"kind": "oci", "repository": repository, "digest": DIGEST}
    spec |= {"state": state, "visibility": visibility}
    if channels:
        spec["channels"] = [*channels]
    manifest = Artifact.model_validate(
        {
            "apiVersion": "gpuaas.dev/v1",
            "kind": "Artifact",
            "metadata": {"name": ref.name},
            "spec": spec,
        }
    )
    return Entry(StateObject(ref, "x.yaml", 1, manifest, {}), manifest.spec)


Case = tuple[tuple[Registered, ...], Mapping[str | None, str]]
OWNER, EVIL, OTHER = "acme/research", "evil/lab", "globex/lab"
OWNED: dict[str, Case] = {
    "anothers promotion lifts nothing": (
        (said(OWNER, "published"), said(EVIL, "promoted")),
        {None: "published", OTHER: "published", EVIL: "published", OWNER: "published"},
    ),
    "nor does it open a channel": (
        (said(OWNER, "promoted", "platform", "beta"), said(EVIL, "promoted")),
        {None: "not_for_channel", OTHER: "not_for_channel", EVIL: "not_for_channel"},
    ),
    "nor does it show what is not shown": (
        (said(OWNER, "promoted", "project"), said(EVIL, "promoted")),
        {None: "promoted", OTHER: "not_visible", EVIL: "not_visible", OWNER: "promoted"},
    ),
    "nor does it bring back what is retired": (
        (said(OWNER, "retired"), said(EVIL, "promoted")),
        {None: "retired", EVIL: "retired", OTHER: "retired"},
    ),
    "nor what is revoked": (
        (said(OWNER, "revoked", "project"), said(EVIL, "promoted")),
        {None: "revoked", EVIL: "revoked", OTHER: "revoked"},
    ),
    "it narrows for its own project": (
        (said(OWNER, "promoted"), said(EVIL, "published")),
        {None: "promoted", EVIL: "published", OTHER: "promoted"},
    ),
    "and revokes for its own": (
        (said(OWNER, "promoted"), said(EVIL, "revoked")),
        {None: "promoted", EVIL: "revoked", OTHER: "promoted", OWNER: "promoted"},
    ),
    "the owner may say it twice": (
        (said(OWNER, "promoted", "project"), said(OWNER, "published")),
        {None: "promoted", OWNER: "promoted", OTHER: "published"},
    ),
    "without the owner's word there is none": (
        (said(EVIL, "promoted"),),
        {None: "unregistered", EVIL: "unregistered", OTHER: "unregistered"},
    ),
}
NOBODY: dict[str, Case] = {
    "the only word binds all who see it": (
        (said(OWNER, "revoked"),),
        {None: "revoked", OWNER: "revoked", OTHER: "revoked"},
    ),
    "a neighbour revokes for itself": (
        (said(OWNER, "promoted"), said(EVIL, "revoked")),
        {None: "promoted", OWNER: "promoted", EVIL: "revoked", OTHER: "promoted"},
    ),
    "who only uses it himself vouches for nobody else": (
        (said(OWNER, "revoked"), said(EVIL, "promoted", "project")),
        {OWNER: "revoked", EVIL: "promoted", OTHER: "revoked"},
    ),
    "one's own word comes first": (
        (said(OWNER, "published"), said(OTHER, "promoted")),
        {None: "promoted", OWNER: "published", OTHER: "promoted", EVIL: "promoted"},
    ),
    "what nobody shows is not seen": (
        (said(OWNER, "promoted", "project"),),
        {OWNER: "promoted", OTHER: "not_visible"},
    ),
    "nobody registered it": ((), {None: "unregistered", OWNER: "unregistered"}),
}
CASES = [(OURS, name, *case) for name, case in OWNED.items()]
CASES += [(NOBODYS, name, *case) for name, case in NOBODY.items()]


@pytest.mark.parametrize(
    ("repository", "registered", "expected"),
    [(place, registered, expected) for place, _, registered, expected in CASES],
    ids=[name for _, name, _, _ in CASES],
)
def test_whose_word_counts(
    repository: str, registered: tuple[Registered, ...], expected: Mapping[str | None, str]
) -> None:
    there = entries(repository, *registered)
    found = {
        viewer: standing(there, tuple(viewer.split("/")) if viewer else None, "stable")
        for viewer in expected
    }
    assert found == expected
    assert found == {
        viewer: standing(there[::-1], tuple(viewer.split("/")) if viewer else None, "stable")
        for viewer in expected
    }


# --- what runs -----------------------------------------------------------------------------------


def resolved(repository: str, state: str, by: str, its_state: str) -> Resolution:
    """The small world, its image in that repository, registered by another project as well."""
    documents = b.world()
    documents[b.VERSION_FILE]["spec"]["artifact_ref"] = f"{repository}@{DIGEST}"
    spec = documents[b.ARTIFACT_FILE]["spec"]
    spec |= {"repository": repository, "state": state, "visibility": "platform"}
    tenant, project = by.split("/")
    folder = b.add_project(documents, tenant, project)
    b.add(documents, f"{folder}/artifacts/hello/1.0.0/image.yaml", {**spec, "state": its_state})
    return resolve(b.objects(documents), b.ENVIRONMENT, b.REVISION)


@pytest.mark.parametrize("repository", [OURS, NOBODYS])
def test_a_neighbours_revocation_marks_what_the_neighbour_runs(repository: str) -> None:
    """Attempted: to stop everybody's image by registering and revoking it oneself."""
    found = resolved(repository, "promoted", EVIL, "revoked")
    assert found.problems == ()
    assert InstanceKey("acme/research/one") in found.instances
    assert found.revoked == {(DIGEST, "hello", EVIL): f"Artifact/{EVIL}/hello/1.0.0/image"}


def test_the_owners_revocation_marks_it_everywhere() -> None:
    found = resolved(OURS, "revoked", EVIL, "promoted")
    assert found.revoked == {(DIGEST, "hello", ""): "Artifact/acme/research/hello/1.0.0/image"}
    assert {one.code for one in found.problems} == {"artifact_revoked"}


def test_a_revoked_digest_in_a_place_of_ones_own_marks_nothing_elsewhere() -> None:
    documents = b.world()
    folder = b.add_project(documents, "evil", "lab")
    spec = {**documents[b.ARTIFACT_FILE]["spec"], "state": "revoked"}
    spec["repository"] = "gpuaas/apps/evil/lab/hello"
    b.add(documents, f"{folder}/artifacts/hello/1.0.0/image.yaml", spec)
    assert resolve(b.objects(documents), b.ENVIRONMENT, b.REVISION).revoked == {}
