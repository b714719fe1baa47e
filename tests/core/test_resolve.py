"""One row a check: what is bent, what is said about it, and which object is blamed."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconciler.core.checks.catalog import ENGINES, in_canary
from reconciler.core.desired import Guards, Policy
from reconciler.core.kinds import Manifest
from reconciler.core.kinds.promotion import PromotionSpec
from reconciler.core.names import InstanceKey
from reconciler.core.resolve import Resolution, resolve
from reconciler.core.world import Entry
from renderers import RENDERERS
from tests.core import builders as b
from tests.core.resolve_cases import (
    CASES,
    SHARED,
    Bend,
    both,
    parameters,
    profile,
    second,
    spec,
)

ONE = InstanceKey("acme/research/one")


def run(documents: b.Documents, **options: Any) -> Resolution:
    return resolve(b.objects(documents), b.ENVIRONMENT, b.REVISION, **options)


def test_the_small_world_resolves_whole() -> None:
    found = run(b.world())
    assert found.problems == ()
    assert not found.blocked
    instance = found.instances[ONE]
    assert instance.policy == Policy(
        "tenant_dedicated", "project", "launchable_oci", "project_isolated"
    )
    assert (instance.org_id, instance.project_id, instance.node) == ("org-1", "prj-1", "gpu-1")
    assert (instance.cpu_millis, instance.memory_mib) == (2000, 4096)
    assert instance.gpu_uuids == ("GPU-0",)
    assert instance.may_start
    assert found.nodes == {"gpu-1"}
    assert found.guards == Guards(5, 30)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_a_check_names_its_culprit_and_says_what_to_do(case: tuple[Bend, str, str, str]) -> None:
    bend, culprit, code, text = case
    documents = b.world()
    bend(documents)
    problems = [problem for problem in run(documents).problems if problem.code == code]
    found = {problem.object: problem for problem in problems}
    assert culprit in found, run(documents).problems
    assert text in str(found[culprit])
    assert found[culprit].where.endswith(".yaml:1:1")


@pytest.mark.parametrize("name", CASES)
def test_an_instance_either_resolves_or_is_blocked_with_a_reason(name: str) -> None:
    documents = b.world()
    CASES[name][0](documents)
    found = run(documents)
    keys = {InstanceKey("/".join(r.path)) for r in b.objects(documents) if r.kind == "AppInstance"}
    assert {*found.instances} | {*found.blocked} == keys
    assert not {*found.instances} & {*found.blocked}
    assert all(found.blocked.values())


def test_an_artifact_of_another_tenant_is_not_visible() -> None:
    documents = b.world()
    folder = b.add_project(documents, "umbra", "lab")
    b.add_instance(documents, "far", folder, gpu_count=0)
    (problem,) = run(documents).problems
    assert problem.code == "artifact_not_visible"
    assert f"{b.IMAGE} is not visible to project umbra/lab" in problem.message
    assert "who may use it" in problem.hint


def test_the_environment_that_is_asked_for_must_exist() -> None:
    found = resolve(b.objects(b.world()), "evil", b.REVISION)
    (problem,) = found.problems
    assert str(problem) == (
        "environments/evil.yaml: unknown_environment: "
        "Environment/evil does not exist (did you mean eval?)"
    )
    assert {*found.blocked} == {ONE}
    unnamed = resolve(b.objects(b.world()), "", b.REVISION).problems[0]
    assert unnamed.hint == "known: eval"


def test_a_reference_to_a_quarantined_object_says_so() -> None:
    documents = b.world()
    refs = [ref for ref in b.objects(documents) if ref.kind == "Allocation"]
    del documents[b.ALLOCATION_FILE]
    (problem,) = run(documents, quarantined=frozenset(refs)).problems
    assert problem.code == "reference_quarantined"
    assert problem.message == f"{refs[0]} has a problem of its own"


@pytest.mark.parametrize(
    "bend", [spec(b.PROMOTION_FILE, state="deprecated"), spec(b.ARTIFACT_FILE, state="deprecated")]
)
def test_what_is_deprecated_goes_on_and_takes_no_new_instances(bend: Bend) -> None:
    documents = b.world()
    bend(documents)
    found = run(documents)
    assert found.problems == ()
    assert not found.instances[ONE].may_start


def test_a_decommissioned_instance_is_checked_by_nobody() -> None:
    documents = b.world()
    both(
        spec(b.PROMOTION_FILE, state="retired"),
        spec(b.INSTANCE_FILE, desired="decommissioned"),
        second(gpu_count=4, cpu_cores=16, memory_gib=64),
    )(documents)
    found = run(documents)
    assert found.instances[ONE].run == "decommissioned"
    assert found.instances[ONE].gpu_uuids == ()
    del documents[b.ALLOCATION_FILE]
    assert ONE not in {**run(documents).instances, **run(documents).blocked}


def test_entitlements_widen_policy_and_hints_choose_within_it() -> None:
    documents = b.world()
    spec("tenants/acme/tenant.yaml", attached_projects=["research"])(documents)
    overrides = {"allowed_operating_modes": ["tenant_shared", "tenant_dedicated"]}
    spec(b.ENTITLEMENT_FILE, policy_overrides=overrides)(documents)
    assert run(documents).instances[ONE].policy.operating_mode == "tenant_dedicated"
    spec(b.INSTANCE_FILE, requested=SHARED)(documents)
    assert run(documents).instances[ONE].policy.operating_mode == "tenant_shared"
    assert run(documents).instances[ONE].policy.tenant_boundary_mode == "tenant_shared"
    narrow = {"allowed_operating_modes": ["tenant_shared"]}
    both(spec(b.INSTANCE_FILE, requested=None), spec(b.ENTITLEMENT_FILE, policy_overrides=narrow))(
        documents
    )
    assert run(documents).instances[ONE].policy.operating_mode == "tenant_shared"


def test_the_image_is_the_variant_of_the_node() -> None:
    documents = b.world()
    other = b.IMAGE.replace("a" * 64, "c" * 64)
    profile(variants={"nvidia-h200": other})(documents)
    registered = {**documents[b.ARTIFACT_FILE]["spec"], "digest": other.partition("@")[2]}
    b.add(documents, b.ARTIFACT_FILE.replace("image", "h200"), registered)
    assert str(run(documents).instances[ONE].artifact) == other


def test_what_is_not_asked_comes_from_schema_then_minimum_then_lease() -> None:
    documents = b.world()
    documents[b.INSTANCE_FILE]["spec"]["parameters"] = {}
    found = run(documents).instances[ONE]
    assert (len(found.gpu_uuids), found.cpu_millis, found.memory_mib) == (1, 16_000, 65_536)
    profile(resources={"min_vcpu": 1.5, "min_memory_mib": 512})(documents)
    found = run(documents).instances[ONE]
    assert (found.cpu_millis, found.memory_mib) == (1500, 512)


def test_the_host_port_is_for_the_first_port() -> None:
    documents = b.world()
    ports = [{"name": "http", "container": 8080}, {"name": "metrics", "container": 9090}]
    both(parameters(host_port=9000), profile(ports=ports))(documents)
    assert run(documents).instances[ONE].ports == (("http", 8080, 9000), ("metrics", 9090, None))


def test_every_offered_runtime_has_a_renderer() -> None:
    assert {*ENGINES} == {*RENDERERS}


@given(st.integers(0, 100), st.integers(0, 100), st.from_regex(r"[a-z]{1,8}", fullmatch=True))
def test_a_project_stays_in_the_canary_as_it_grows(low: int, high: int, project: str) -> None:
    low, high = sorted((low, high))

    def within(percent: int) -> bool:
        canary = {"percent": percent}
        wanted = {"state": "canary", "canary": canary, "reason": "try"}
        promotion = b.document(b.PROMOTION_FILE, "1.0.0", wanted)
        (found,) = b.objects({b.PROMOTION_FILE: promotion}).values()
        manifest: Manifest = found.manifest
        assert isinstance(manifest.spec, PromotionSpec)
        return in_canary(Entry(found, manifest.spec), ("acme", project))

    assert within(high) or not within(low)
    assert within(100)
    assert not within(0)


COUNTS = st.dictionaries(st.sampled_from("abcdefgh"), st.integers(0, 3), max_size=5)


def with_counts(counts: dict[str, int]) -> b.Documents:
    documents = b.world()
    del documents[b.INSTANCE_FILE]
    for name, count in counts.items():
        b.add_instance(documents, name, gpu_count=count, cpu_cores=0.1, memory_gib=0.1)
    return documents


@given(COUNTS, COUNTS)
def test_gpus_are_exclusive_and_stay_where_they_are(
    before: dict[str, int], after: dict[str, int]
) -> None:
    first = run(with_counts(before)).instances
    holding = {key: found.gpu_uuids for key, found in first.items()}
    second = run(with_counts(after), holding=holding).instances
    if sum(after.values()) <= 4:
        assert len(second) == len(after)
    given_out = [gpu for found in second.values() for gpu in found.gpu_uuids]
    assert len(given_out) == len({*given_out})
    for key, found in second.items():
        assert len(found.gpu_uuids) == after[key.rpartition("/")[2]]
        kept = {*found.gpu_uuids} & {*holding.get(key, ())}
        assert len(kept) == min(len(found.gpu_uuids), len(holding.get(key, ())))


def test_gpus_that_nobody_holds_are_handed_out_first() -> None:
    leaving = {InstanceKey("acme/research/gone"): ("GPU-0", "GPU-1")}
    assert run(b.world(), holding=leaving).instances[ONE].gpu_uuids == ("GPU-2",)
