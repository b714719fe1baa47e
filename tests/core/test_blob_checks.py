"""Blobs of versions and Artifacts: what is refused, what an instance gets, which node has which."""

from __future__ import annotations

import json
from typing import Any

import pytest

from node_agent.wire import BlobFile
from reconciler.core.desired import BlobWish
from reconciler.core.kinds.app_version import AppVersionSpec
from reconciler.core.members import version_of_role
from reconciler.core.names import InstanceKey
from reconciler.core.resolve import Resolution, ResolveMemo, resolve
from renderers import render
from tests.core import builders as b

ONE = InstanceKey("acme/research/one")
SOURCE = "artifact_store://projects/acme/research/artifacts/hello/1.0.0/weights"
DIGEST = "sha256:" + "b" * 64
BLOB_FILE = f"{b.PROJECT}/artifacts/hello/1.0.0/weights.yaml"
ARTIFACT = "Artifact/acme/research/hello/1.0.0/weights"
VERSION = "AppVersion/hello/1.0.0"
PROMOTION = "Promotion/hello/1.0.0"
INSTANCE = "AppInstance/acme/research/one"


def blob(**changes: Any) -> dict[str, Any]:
    fields = {"kind": "blob", "source": SOURCE, "digest": DIGEST, "visibility": "tenant",
              "state": "promoted"}  # fmt: skip
    return {**fields, **changes}


def world(*names: str, **changes: Any) -> b.Documents:
    """The small world whose version reads a blob under each of these names."""
    documents = b.world()
    profile = documents[b.VERSION_FILE]["spec"]["runtime_profile"]
    profile["blobs"] = [{"name": name, "ref": f"{SOURCE}@{DIGEST}"} for name in names]
    b.add(documents, BLOB_FILE, blob(**changes), "weights")
    return documents


def run(documents: b.Documents, **options: Any) -> Resolution:
    return resolve(b.objects(documents), b.ENVIRONMENT, b.REVISION, **options)


def test_an_instance_has_the_blobs_of_its_version() -> None:
    found = run(world("weights", "tokens"))
    assert found.problems == ()
    instance = found.instances[ONE]
    assert instance.blobs == (
        BlobFile(name="tokens", source=SOURCE, digest=DIGEST),
        BlobFile(name="weights", source=SOURCE, digest=DIGEST),
    )
    workload = render(instance)
    assert workload.blobs == instance.blobs  # type: ignore[union-attr]
    assert found.prefetch == ()


def test_a_workload_without_blobs_is_what_it_always_was() -> None:
    without, with_one = run(b.world()).instances[ONE], run(world("weights")).instances[ONE]
    assert without.blobs == ()
    assert render(without).spec_hash != render(with_one).spec_hash  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("documents", "culprit", "code", "text"),
    [
        (world("weights", "weights"), VERSION, "blob_name_taken", "two blobs are called weights"),
        (world("weights", digest="sha256:" + "c" * 64), PROMOTION, "artifact_unregistered",
         f"{SOURCE}@{DIGEST}"),
        (world("weights", source=f"{SOURCE}2"), PROMOTION, "artifact_unregistered", SOURCE),
        (world("weights", state="published"), PROMOTION, "artifact_not_promoted", "is published"),
        (world("weights", state="revoked"), PROMOTION, "artifact_revoked", "is revoked"),
        (world("weights", state="retired"), PROMOTION, "artifact_retired", "is retired"),
    ],
    ids=["name", "digest", "source", "published", "revoked", "retired"],
)  # fmt: skip
def test_what_is_refused(documents: b.Documents, culprit: str, code: str, text: str) -> None:
    found = [one for one in run(documents).problems if one.code == code]
    assert text in {one.object: one.message for one in found}[culprit]


def test_a_runtime_that_carries_none_is_refused() -> None:
    documents = world("weights")
    documents[b.VERSION_FILE]["spec"]["runtime_profile"]["kind"] = "ray"
    found = [one for one in run(documents).problems if one.code == "blobs_not_carried"]
    assert [(one.object, one.hint) for one in found] == [
        (VERSION, "it is done by: bare_metal, docker_compose, launchable_oci")
    ]


@pytest.mark.parametrize(
    ("state", "code"),
    [("promoted", "artifact_not_visible"), ("published", "artifact_not_promoted")],
)
def test_a_blob_of_another_project_has_to_be_visible_and_good_there(state: str, code: str) -> None:
    documents = world("weights")
    folder = b.add_project(documents, "globex", "lab")
    other = BLOB_FILE.replace(b.PROJECT, folder)
    del documents[BLOB_FILE]
    source = SOURCE.replace("acme/research", "globex/lab")
    profile = documents[b.VERSION_FILE]["spec"]["runtime_profile"]
    profile["blobs"][0]["ref"] = f"{source}@{DIGEST}"
    b.add(documents, other, blob(source=source), "weights")
    if state == "published":
        shown = blob(source=source, state=state, visibility="platform")
        b.add(documents, other.replace("weights", "shown"), shown, "shown")
    found = [one for one in run(documents).problems if one.code == code]
    assert INSTANCE in [one.object for one in found]
    assert f"blob weights ({source}@{DIGEST}) is " in found[0].message


def test_nobody_registers_a_blob_for_the_project_that_has_it() -> None:
    """Attempted: to have a blob of another project count as promoted by saying so oneself."""
    documents = world("weights", state="published")
    folder = b.add_project(documents, "globex", "lab")
    shown = blob(visibility="platform")
    b.add(documents, BLOB_FILE.replace(b.PROJECT, folder), shown, "weights")
    codes = {(one.object, one.code) for one in run(documents).problems}
    assert (PROMOTION, "artifact_not_promoted") in codes


def test_a_deprecated_blob_takes_no_new_instances() -> None:
    found = run(world("weights", state="deprecated"))
    assert found.problems == ()
    assert not found.instances[ONE].may_start


def test_what_was_kept_of_the_last_look_is_dropped_when_the_blob_changes() -> None:
    memo = ResolveMemo()
    assert run(world("weights"), memo=memo).instances[ONE].may_start
    assert not run(world("weights", state="deprecated"), memo=memo).instances[ONE].may_start
    fresh = run(world("weights", "more"), memo=memo)
    assert [one.name for one in fresh.instances[ONE].blobs] == ["more", "weights"]
    assert run(b.world(), memo=memo).instances[ONE].blobs == ()


# --- ahead --------------------------------------------------------------------------------------

WISH = BlobWish("gpu-1", DIGEST, SOURCE, ARTIFACT)


@pytest.mark.parametrize("state", ["published", "promoted", "deprecated"])
def test_it_is_wanted_where_its_project_has_an_active_allocation(state: str) -> None:
    assert run(world(prefetch=True, state=state)).prefetch == (WISH,)


@pytest.mark.parametrize("state", ["retired", "revoked"])
def test_what_nobody_may_use_is_brought_nowhere(state: str) -> None:
    assert run(world(prefetch=True, state=state)).prefetch == ()


def test_it_is_wanted_nowhere_once_the_allocation_is_released() -> None:
    memo, documents = ResolveMemo(), world(prefetch=True)
    del documents[b.INSTANCE_FILE]
    assert run(documents, memo=memo).prefetch == (WISH,)
    documents[b.ALLOCATION_FILE]["spec"]["state"] = "released"
    assert run(documents, memo=memo).prefetch == ()


def test_once_for_a_node_however_many_allocations_there_are() -> None:
    documents = world(prefetch=True)
    lease = documents[b.ALLOCATION_FILE]["spec"]
    other = b.ALLOCATION_FILE.replace("lease", "other")
    b.add(documents, other, {**lease, "gpus": [], "cpu_cores": 1, "memory_mib": 1024}, "other")
    assert run(documents).prefetch == (WISH,)


def test_other_projects_nodes_are_left_alone() -> None:
    documents = world(prefetch=True, visibility="platform")
    b.add_project(documents, "globex", "lab")
    assert {one.node for one in run(documents).prefetch} == {"gpu-1"}


def test_every_member_of_an_instance_reads_them() -> None:
    spec = b.version_spec()
    spec["runtime_profile"]["blobs"] = [{"name": "weights", "ref": f"{SOURCE}@{DIGEST}"}]
    spec["runtime_profile"]["members"] = [{"role": "worker", "command": ["work"]}]
    profile = AppVersionSpec.model_validate_json(json.dumps(spec)).runtime_profile
    (role,) = profile.members
    version = AppVersionSpec.model_validate_json(json.dumps(spec))
    assert version_of_role(version, role).runtime_profile.blobs == profile.blobs
