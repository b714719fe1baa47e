"""Instances of several services: what each is, what it may run, and what it is too small for."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reconciler.core.names import ArtifactKey
from reconciler.core.resolve import ResolveMemo, resolve
from tests.core import builders as b
from tests.core.topology_world import (
    GENERIC,
    INDEX,
    INDEX_AMD,
    INDEX_ARTIFACT,
    INDEX_FILE,
    INDEX_IMAGE,
    INSTANCE,
    JUPYTER,
    MAIN,
    ONE,
    PROMOTION,
    VERSION,
    VLLM,
    Bend,
    Profile,
    S,
    both,
    more,
    part,
    profile_of,
    run,
    service,
    topology,
    world,
)

Edit = Callable[[b.Documents], object]

# --- of one instance -----------------------------------------------------------------------------

OF_INSTANCE: dict[str, tuple[Profile, Bend, dict[str, Any], str, str, str]] = {
    "fewer GPUs than are counted": (
        GENERIC, both(service(0, gpus=2), more(gpus=1)), {"gpu_count": 2}, "gpu_count",
        "gpus_too_few", "the services of AppVersion/hello/1.0.0 count 3 GPUs (api 2, more 1), "
        "2 asked (raise gpu_count)",
    ),
    "no GPU left for the rest": (
        GENERIC, both(service(0, gpus="rest"), more(gpus=1)), {"gpu_count": 1}, "gpu_count",
        "gpus_too_few", "count 1 GPU (more 1), 1 asked, and api is to have some as well",
    ),
    "more in parallel than there are": (
        VLLM, part("vllm", tensor_parallel=2, pipeline_parallel=2), {"gpu_count": 3}, "gpu_count",
        "gpus_too_few", "count 4 GPUs (vllm 4), 3 asked",
    ),
    "GPUs that are not the same number twice": (
        VLLM, part("vllm", pipeline_parallel=2), {"gpu_count": 3}, "gpu_count",
        "tensor_parallel_uneven", "3 GPUs for vllm are not the same number 2 times "
        "(pipeline_parallel has to divide them: choose another gpu_count)",
    ),
    "no GPU left for vLLM": (
        VLLM, more(gpus=2), {"gpu_count": 2}, "gpu_count", "gpus_too_few",
        "the services of AppVersion/hello/1.0.0 count 2 GPUs (more 2), 2 asked, and vllm needs 1 "
        "as well (raise gpu_count)",
    ),
    "no GPU for stages": (
        VLLM, part("vllm", pipeline_parallel=2), {"gpu_count": 0}, "gpu_count", "gpus_too_few",
        "0 GPUs asked, and vllm needs 2 (raise gpu_count)",
    ),
    "no GPU to be the rest": (
        GENERIC, service(0, gpus="rest"), {"gpu_count": 0}, "gpu_count", "gpus_too_few",
        "0 GPUs asked, and api is to have some (raise gpu_count)",
    ),
    "memory that the sidecars leave too little of": (
        GENERIC, lambda profile: None, {"memory_gib": 1.5}, "memory_gib", "below_minimum",
        "1536 MiB of memory asked; the sidecars of AppVersion/hello/1.0.0 take 576, and its main "
        "service needs 1024 (raise memory_gib)",
    ),
    "cores that the sidecars leave too few of": (
        GENERIC, lambda profile: None, {"cpu_cores": 1.5}, "cpu_cores", "below_minimum",
        "1.5 CPU cores asked; the sidecars of AppVersion/hello/1.0.0 take 0.6, and its main "
        "service needs 1 (raise cpu_cores)",
    ),
    "memory for the scratch of the main service": (
        GENERIC, service(0, scratch=[{"path": "/x", "size_mib": 3600}]), {}, "memory_gib",
        "below_minimum", "4096 MiB of memory asked; the sidecars of AppVersion/hello/1.0.0 take "
        "576, and its main service needs 3606",
    ),
    "a fixed port where nobody is reached": (
        GENERIC, topology(endpoints=[]), {"host_port": 9000}, "host_port", "no_port",
        "AppVersion/hello/1.0.0 has no port that host_port could be for",
    ),
    "packages": (
        GENERIC, lambda profile: None, {"pip_packages": ["numpy"]}, "pip_packages",
        "packages_not_carried", "the runtime kind docker_compose puts no packages into its "
        "services (put them into the image)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", OF_INSTANCE)
def test_what_an_instance_is_too_small_for_is_told_of_it(name: str) -> None:
    profile, bend, parameters, parameter, code, text = OF_INSTANCE[name]
    documents = world(profile, **parameters)
    bend(profile_of(documents))
    if "pip_packages" in parameters:
        documents[b.VERSION_FILE]["spec"]["launch_parameters"] = {"type": "object"}
    found = [one for one in run(documents).problems if one.code == code]
    assert [(one.object, one.pointer) for one in found] == [
        (INSTANCE, f"/spec/parameters/{parameter}")
    ]
    assert text in str(found[0])


def test_an_instance_that_says_nothing_has_what_its_version_needs_at_least() -> None:
    documents = world()
    parameters = documents[b.INSTANCE_FILE]["spec"]["parameters"]
    del parameters["memory_gib"], parameters["cpu_cores"]
    instance = run(documents).instances[ONE]
    assert (instance.memory_mib, instance.cpu_millis) == (1024 + 512 + 64, 1600)
    del profile_of(documents)["resources"]
    instance = run(documents).instances[ONE]
    assert (instance.memory_mib, instance.cpu_millis) == (65_536, 16_000)


def test_what_it_has_by_default_is_enough_for_the_scratch_of_its_main_service() -> None:
    documents = world()
    profile = profile_of(documents)
    profile["resources"] = {"min_memory_mib": 100, "min_vcpu": 0.001}
    service(0, scratch=[{"path": "/x", "size_mib": 500}])(profile)
    parameters = documents[b.INSTANCE_FILE]["spec"]["parameters"]
    del parameters["memory_gib"], parameters["cpu_cores"]
    instance = run(documents).instances[ONE]
    assert (instance.memory_mib, instance.cpu_millis) == (506 + 512 + 64, 10 + 600)


def test_a_node_without_compose_takes_none() -> None:
    documents = world()
    documents[b.NODE_FILE]["spec"]["engines"] = ["docker"]
    (problem,) = run(documents).problems
    assert problem.code == "engine_not_on_node"
    assert "needs engine compose, which Node/gpu-1 does not have" in problem.message


# --- what comes out ------------------------------------------------------------------------------


def test_an_instance_has_the_image_of_each_service_and_the_ports_reached_from_outside() -> None:
    instance = run(world(host_port=9000)).instances[ONE]
    assert instance.topology is not None
    assert instance.topology.images == {"api": MAIN, "fill": MAIN, "index": INDEX}
    assert instance.artifacts == (MAIN, INDEX)
    assert instance.ports == (("api", 8080, 9000), ("ui", 8081, None))
    assert [secret.name for secret in instance.secrets] == ["token"]
    assert instance.command == ()


@pytest.mark.parametrize(
    ("profile", "images", "ports"),
    [
        (VLLM, {"load", "vllm"}, (("api", 8000, 9000),)),
        (JUPYTER, {"notebook"}, (("notebook", 8888, 9000),)),
    ],
    ids=["vllm", "jupyter"],
)
def test_the_service_that_a_renderer_makes_is_one_of_them(
    profile: Profile, images: set[str], ports: tuple[tuple[str, int, int], ...]
) -> None:
    instance = run(world(profile, host_port=9000)).instances[ONE]
    assert instance.topology is not None
    assert instance.topology.images == dict.fromkeys(sorted(images), MAIN)
    assert instance.ports == ports


def test_the_fixed_port_is_for_the_main_service_whatever_stands_first() -> None:
    documents = world(host_port=9000)
    ends = profile_of(documents)["topology"]["endpoints"]
    ends[0]["expose"] = "private"
    assert run(documents).instances[ONE].ports == (
        ("index", 6333, None),
        ("api", 8080, 9000),
        ("ui", 8081, None),
    )


def test_a_plain_instance_has_no_topology() -> None:
    instance = run(b.world()).instances[ONE]
    assert instance.topology is None
    assert instance.artifacts == (MAIN,)


def test_each_service_runs_the_image_for_the_family_of_its_node() -> None:
    documents = world()
    service(1, variants={"nvidia-h200": b.IMAGE, "amd-mi300": INDEX_AMD})(profile_of(documents))
    assert run(documents).problems[0].code == "artifact_unregistered"
    image = {**documents[INDEX_FILE]["spec"], "digest": "sha256:" + "c" * 64}
    b.add(documents, INDEX_FILE.replace("index", "amd"), image)
    found = run(documents)
    assert found.problems == ()
    nvidia = found.instances[ONE]
    assert nvidia.topology is not None
    assert nvidia.topology.images["index"] == MAIN
    documents[b.NODE_FILE]["spec"]["accelerator_family"] = "amd-mi300"
    amd = run(documents).instances[ONE]
    assert amd.topology is not None
    assert amd.topology.images["index"] == ArtifactKey.parse(INDEX_AMD)


# --- whether each image may be run ---------------------------------------------------------------


def test_a_service_without_an_image_for_the_node_is_named() -> None:
    documents = world()
    service(1, image_ref=None, variants={"amd-mi300": INDEX_IMAGE})(profile_of(documents))
    (problem,) = run(documents).problems
    assert str(problem).endswith(
        "no_image_variant: service index: AppVersion/hello/1.0.0 has no image for nvidia-h200 "
        "(Node/gpu-1) (it has images for amd-mi300)"
    )
    assert problem.object == INSTANCE


@pytest.mark.parametrize(
    ("state", "code"),
    [
        ("published", "artifact_not_promoted"),
        ("retired", "artifact_retired"),
        ("revoked", "artifact_revoked"),
    ],
)
def test_a_version_is_offered_when_the_image_of_each_service_may_be(state: str, code: str) -> None:
    documents = world()
    documents[INDEX_FILE]["spec"]["state"] = state
    found = {one.object: one for one in run(documents).problems}
    assert found[PROMOTION].code == code
    where = f"{INDEX_IMAGE} ({VERSION}{S}/1/image_ref) is {state}"
    assert where in found[PROMOTION].message


def test_an_image_of_a_service_that_is_not_registered() -> None:
    documents = world()
    del documents[INDEX_FILE]
    (problem,) = [one for one in run(documents).problems if one.object == PROMOTION]
    assert problem.code == "artifact_unregistered"


def test_an_image_of_a_service_that_the_project_does_not_see() -> None:
    documents = world()
    folder = b.add_project(documents, "umbra", "lab")
    documents[b.ARTIFACT_FILE]["spec"]["visibility"] = "platform"
    b.add_instance(documents, "far", folder, gpu_count=0)
    (problem,) = run(documents).problems
    assert problem.code == "artifact_not_visible"
    assert problem.message == f"service index: {INDEX_IMAGE} is not visible to project umbra/lab"


def test_an_image_of_a_service_that_is_promoted_for_another_channel() -> None:
    documents = world()
    documents[b.ENVIRONMENT_FILE]["spec"]["trust"] = {"channel": "stable"}
    documents[INDEX_FILE]["spec"]["channels"] = ["beta"]
    found = {one.object: one for one in run(documents).problems}
    assert found[PROMOTION].code == found[INSTANCE].code == "artifact_not_in_channel"
    assert f"service index: {INDEX_IMAGE} is not promoted for stable" in found[INSTANCE].message


def test_a_revoked_image_of_a_service_is_revoked_for_its_app() -> None:
    documents = world()
    documents[INDEX_FILE]["spec"]["state"] = "revoked"
    digest = INDEX_IMAGE.partition("@")[2]
    assert (digest, "hello", "acme/research") in run(documents).revoked


def test_a_deprecated_image_of_a_service_takes_no_new_instances() -> None:
    documents = world()
    documents[INDEX_FILE]["spec"]["state"] = "deprecated"
    found = run(documents)
    assert found.problems == ()
    assert not found.instances[ONE].may_start


def test_what_was_kept_is_dropped_when_the_image_of_a_service_changes() -> None:
    memo, documents = ResolveMemo(), world()
    assert run(documents, memo=memo).instances[ONE].may_start
    documents[INDEX_FILE]["spec"]["state"] = "deprecated"
    assert not run(documents, memo=memo).instances[ONE].may_start
    documents[INDEX_FILE]["spec"]["state"] = "revoked"
    blamed = run(documents, memo=memo).problems
    assert {one.object for one in blamed} == {PROMOTION}
    assert INDEX_ARTIFACT not in {one.object for one in blamed}
    documents[INDEX_FILE]["spec"]["state"] = "promoted"
    assert run(documents, memo=memo).problems == ()


def _registered_as(state: str) -> Edit:
    return lambda documents: documents[INDEX_FILE]["spec"].update(state=state)


def _variants(**images: str) -> Edit:
    named = {family.replace("_", "-"): image for family, image in images.items()}
    return lambda documents: service(1, variants=named)(profile_of(documents))


def _family(name: str) -> Edit:
    return lambda documents: documents[b.NODE_FILE]["spec"].update(accelerator_family=name)


EDITS: tuple[Edit, ...] = (
    *(_registered_as(state) for state in ("promoted", "deprecated", "revoked", "published")),
    _variants(amd_mi300=b.IMAGE),
    _variants(nvidia_h200=b.IMAGE, amd_mi300=INDEX_AMD),
    _variants(),
    _family("amd-mi300"),
    _family("nvidia-h200"),
    lambda documents: documents.pop(INDEX_FILE, None),
    lambda documents: documents.update({INDEX_FILE: world()[INDEX_FILE]}),
    lambda documents: documents.update({b.VERSION_FILE: b.world()[b.VERSION_FILE]}),
    lambda documents: documents.update({b.VERSION_FILE: world()[b.VERSION_FILE]}),
    lambda documents: documents.pop(b.ALLOCATION_FILE, None),
    lambda documents: documents.update({b.ALLOCATION_FILE: world()[b.ALLOCATION_FILE]}),
)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from(EDITS), min_size=1, max_size=8))
def test_with_a_memo_the_answer_is_the_same(edits: list[Edit]) -> None:
    memo, documents = ResolveMemo(), world()
    known = b.objects(documents)
    for edit in edits:
        with suppress(KeyError):  # What it would edit was taken out by one before.
            edit(documents)
        found = b.objects(documents)
        known = {ref: known[ref] if known.get(ref) == one else one for ref, one in found.items()}
        kept = resolve(known, b.ENVIRONMENT, b.REVISION, memo=memo)
        assert repr(kept) == repr(resolve(known, b.ENVIRONMENT, b.REVISION))
