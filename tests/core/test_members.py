"""What an instance with members comes to, and what can be wrong with one."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node_agent.wire import Workload
from reconciler.core.desired import Instance
from reconciler.core.names import InstanceKey, ObjectRef
from reconciler.core.resolve import Resolution, ResolveMemo, resolve
from renderers import render
from tests.core import builders as b
from tests.core import spread as s
from tests.core.spread import member, set_members, spread

HEAD, W1, W2 = (InstanceKey(f"{s.HEAD}{name}") for name in ("", ".w1", ".w2"))
ONE_REF, VERSION_REF = "AppInstance/acme/research/one", "AppVersion/hello/1.0.0"
Bend = Callable[[b.Documents], object]


def run(documents: b.Documents, **options: Any) -> Resolution:
    return resolve(b.objects(documents), b.ENVIRONMENT, b.REVISION, **options)


def workload(instance: Instance) -> Workload:
    found = render(instance)
    assert isinstance(found, Workload), found
    return found


def hashes(documents: b.Documents, **options: Any) -> dict[InstanceKey, str]:
    found = run(documents, **options)
    assert found.problems == ()
    return {key: workload(one).spec_hash for key, one in found.instances.items()}


def holding(documents: b.Documents) -> dict[InstanceKey, tuple[str, ...]]:
    return {key: one.gpu_uuids for key, one in run(documents).instances.items()}


# --- what they come to ---------------------------------------------------------------------------


def test_each_member_is_an_instance_of_its_own() -> None:
    found = run(spread())
    assert found.problems == ()
    head, w1, w2 = (found.instances[key] for key in (HEAD, W1, W2))
    assert [(one.node, one.role, one.gpu_uuids) for one in (head, w1, w2)] == [
        ("gpu-1", "head", ("GPU-0",)),
        ("gpu-2", "worker", ("GPU-8",)),
        ("gpu-1", "worker", ("GPU-1",)),
    ]
    assert (head.member_of, w1.member_of, w2.member_of) == (None, HEAD, HEAD)
    assert (head.depends_on, w1.depends_on) == ((), (HEAD,))
    assert {one.ref for one in (head, w1, w2)} == {ObjectRef.parse(ONE_REF)}
    assert (w1.command, w1.ports, w1.access) == (("work",), (), "")
    assert (w1.memory_mib, w1.version, w1.artifact) == (4096, head.version, head.artifact)


def test_a_member_knows_itself_and_where_the_first_one_is() -> None:
    found = run(spread()).instances
    assert {k: v for k, v in found[HEAD].env.items() if k.startswith("GPUAAS")} == {
        "GPUAAS_MEMBER": "head",
        "GPUAAS_ROLE": "head",
        "GPUAAS_SELF_GCS": "10.0.0.5:6379",
        "GPUAAS_HEAD_GCS": "10.0.0.5:6379",
    }
    assert found[W1].env == {
        "C": "3",
        "GPUAAS_MEMBER": "w1",
        "GPUAAS_ROLE": "worker",
        "GPUAAS_HEAD_GCS": "10.0.0.5:6379",
    }


def test_only_what_is_for_members_leaves_the_loopback() -> None:
    ports = {port.name: port for port in workload(run(spread()).instances[HEAD]).ports}
    assert (ports["gcs"].address, ports["gcs"].host) == ("10.0.0.5", 6379)
    assert (ports["http"].address, ports["http"].host) == (None, None)


def test_addresses_in_the_newer_form_have_brackets() -> None:
    documents = spread()
    documents[b.NODE_FILE]["spec"]["address"] = "fd00::5"
    assert run(documents).instances[W1].env["GPUAAS_HEAD_GCS"] == "[fd00::5]:6379"


def test_the_first_members_port_is_where_its_parameter_says() -> None:
    documents = spread()
    ports = s.profile_of(documents)["ports"]
    ports.reverse()
    documents[b.INSTANCE_FILE]["spec"]["parameters"]["host_port"] = 16379
    found = run(documents)
    assert found.problems == ()
    assert found.instances[HEAD].ports[0] == ("gcs", 6379, 16379)
    assert found.instances[W1].env["GPUAAS_HEAD_GCS"] == "10.0.0.5:16379"


def test_a_member_has_its_own_parameters_over_the_instances() -> None:
    documents = spread(member("w1", gpu_count=2, cpu_cores=3), member("w2", "lease"))
    documents[b.INSTANCE_FILE]["spec"]["parameters"]["host_port"] = 9000
    found = run(documents).instances
    assert (found[W1].gpu_uuids, found[W1].cpu_millis) == (("GPU-8", "GPU-9"), 3000)
    assert (found[W2].gpu_uuids, found[W2].cpu_millis) == (("GPU-1",), 2000)


def test_an_app_without_roles_is_what_it_was() -> None:
    """Nothing of members is in its workload: else an update of us would restart every fleet."""
    plain = run(b.world()).instances[HEAD]
    assert (plain.role, plain.member_of, plain.port_addresses) == ("", None, {})
    assert plain.env == {"A": "1", "B": "2"}


@pytest.mark.parametrize("state", ["stopped", "decommissioned"])
def test_what_is_wanted_of_an_instance_is_wanted_of_all_its_members(state: str) -> None:
    documents = spread()
    documents[b.INSTANCE_FILE]["spec"]["desired"] = state
    assert {one.run for one in run(documents).instances.values()} == {state}


def test_a_rename_takes_all_members_along() -> None:
    documents = spread()
    documents[b.INSTANCE_FILE]["spec"]["moved_from"] = "former"
    former = {key: one.moved_from for key, one in run(documents).instances.items()}
    assert former == {
        HEAD: "acme/research/former",
        W1: "acme/research/former.w1",
        W2: "acme/research/former.w2",
    }


NAMES = ("w1", "w2", "a", "z", "b2")
SETS = st.dictionaries(st.sampled_from(NAMES), st.sampled_from(["other", "lease"]), max_size=3)


@given(before=SETS, after=SETS)
def test_members_come_and_go_without_disturbing_the_others(
    before: dict[str, str], after: dict[str, str]
) -> None:
    """Those that stay have the very same workload, GPUs included, in whatever order they stand."""
    documents, later = spread(member("w0", "lease")), spread(member("w0", "lease"))
    free: Any = {"gpu_count": 0, "cpu_cores": 0.5, "memory_gib": 1}
    set_members(documents, *(member(name, at, **free) for name, at in before.items()))
    set_members(later, *(member(name, at, **free) for name, at in after.items()))
    old, new = hashes(documents), hashes(later, holding=holding(documents))
    stayed = [HEAD, *(f"{HEAD}.{name}" for name, at in before.items() if after.get(name) == at)]
    assert [old[InstanceKey(key)] for key in stayed] == [new[InstanceKey(key)] for key in stayed]


@given(st.lists(st.tuples(st.sampled_from(NAMES), st.booleans()), max_size=6))
def test_with_a_memo_it_is_the_same(steps: list[tuple[str, bool]]) -> None:
    """Members that come, go and change their node, one commit after another."""
    memo, documents = ResolveMemo(), spread()
    objects = b.objects(documents)
    for name, beside in steps:
        documents = copy.deepcopy(documents)
        kept = [one for one in documents[b.INSTANCE_FILE]["spec"]["members"] if one["name"] != name]
        if len(kept) == len(documents[b.INSTANCE_FILE]["spec"]["members"]):
            kept.append(member(name, "lease" if beside else "other", gpu_count=1))
        set_members(documents, *kept)
        fresh = b.objects(documents)
        objects = {
            ref: objects[ref] if ref in objects and objects[ref] == one else one
            for ref, one in fresh.items()
        }
        again = resolve(objects, b.ENVIRONMENT, b.REVISION, memo=memo)
        assert again == resolve(objects, b.ENVIRONMENT, b.REVISION)


def test_when_the_first_member_changes_its_node_the_others_hear_of_it() -> None:
    memo, documents = ResolveMemo(), spread(member("w1", gpu_count=1))
    objects = b.objects(documents)
    resolve(objects, b.ENVIRONMENT, b.REVISION, memo=memo)
    documents[b.NODE_FILE]["spec"]["address"] = "10.0.0.7"
    node = ObjectRef.parse("Node/gpu-1")
    objects = {**objects, node: b.objects(documents)[node]}
    found = resolve(objects, b.ENVIRONMENT, b.REVISION, memo=memo).instances
    assert found[W1].env["GPUAAS_HEAD_GCS"] == "10.0.0.7:6379"


# --- what is wrong with them ---------------------------------------------------------------------


def members(*given: dict[str, Any]) -> Bend:
    return lambda documents: set_members(documents, *given)


def profile(**changes: Any) -> Bend:
    return lambda documents: s.profile_of(documents).update(changes)


def field(path: str, name: str, value: Any) -> Bend:
    return lambda documents: documents[path]["spec"].update({name: value})


def no_address(path: str) -> Bend:
    return lambda documents: documents[path]["spec"].pop("address")


def each(*bends: Bend) -> Bend:
    return lambda documents: [bend(documents) for bend in bends]


WORKER: dict[str, Any] = {"role": "worker"}
CASES: dict[str, tuple[Bend, str, str, str, str]] = {
    "no such role": (
        members(member("w1", role="wrker")),
        ONE_REF,
        "/spec/members/0/role",
        "unknown_role",
        "AppVersion/hello/1.0.0 has no role wrker for further members (did you mean worker?)",
    ),
    "no roles at all": (
        profile(members=[], ports=[{"name": "http", "container": 8080}]),
        ONE_REF,
        "/spec/members/0/role",
        "unknown_role",
        "AppVersion/hello/1.0.0 has no role worker for further members (it runs on one node only)",
    ),
    "two of one name": (
        members(member("w1"), member("w1", "lease")),
        ONE_REF,
        "/spec/members/1/name",
        "member_twice",
        "two members are called w1 "
        "(the first member goes by its role, the others by names of their own)",
    ),
    "the name of the first": (
        members(member("head")),
        ONE_REF,
        "/spec/members/0/name",
        "member_twice",
        "two members are called head "
        "(the first member goes by its role, the others by names of their own)",
    ),
    "too many": (
        members(*(member(f"w{n}", gpu_count=0, cpu_cores=1, memory_gib=1) for n in range(4))),
        ONE_REF,
        "/spec/members",
        "member_count",
        "4 of role worker, AppVersion/hello/1.0.0 takes at most 3 "
        "(take some out under spec.members)",
    ),
    "too few": (
        profile(members=[{**WORKER, "members_min": 3}]),
        ONE_REF,
        "/spec/members",
        "member_count",
        "2 of role worker, AppVersion/hello/1.0.0 takes at least 3 (add some under spec.members)",
    ),
    "no such allocation": (
        members(member("w1", "othr")),
        ONE_REF,
        "/spec/members/0/allocation",
        "unknown_reference",
        "Allocation/acme/research/othr does not exist (did you mean other?)",
    ),
    "an allocation that is released": (
        field(s.OTHER_ALLOCATION_FILE, "state", "released"),
        ONE_REF,
        "/spec/members/0/allocation",
        "allocation_not_active",
        "Allocation/acme/research/other is released (place the instance on an active allocation)",
    ),
    "more GPUs than its allocation has, as it says itself": (
        members(member("w1", gpu_count=3)),
        ONE_REF,
        "/spec/members/0/parameters/gpu_count",
        "exceeds_allocation",
        "3 GPUs asked, Allocation/acme/research/other has 2",
    ),
    "more than its allocation has, by the instance": (
        field(s.OTHER_ALLOCATION_FILE, "memory_mib", 2048),
        ONE_REF,
        "/spec/members/0",
        "exceeds_allocation",
        "4096 MiB of memory asked, Allocation/acme/research/other has 2048",
    ),
    "more together than is leased": (
        members(*(member(f"w{n}", gpu_count=1, memory_gib=1) for n in range(3))),
        "Allocation/acme/research/other",
        "/spec",
        "allocation_overcommitted",
        "instances one.w0, one.w1, one.w2 ask 3 GPUs in all, 2 are leased "
        "(lower or state the parameter gpu_count, or lease more)",
    ),
    "a parameter that its app does not know": (
        members(member("w1", gpu_cont=1)),
        ONE_REF,
        "/spec/members/0/parameters/gpu_cont",
        "unknown_field",
        "unknown field 'gpu_cont' (did you mean 'gpu_count'?)",
    ),
    "two that take one port of a node": (
        members(member("a", role="store"), member("b", role="store")),
        ONE_REF,
        "/spec/members/0",
        "host_port_taken",
        "host port 7000 on Node/gpu-2 is asked by AppInstance/acme/research/one.b as well "
        "(it is for other members to reach: give one of the two another host_port)",
    ),
    "the first on a node without address": (
        no_address(b.NODE_FILE),
        ONE_REF,
        "/spec/placement_intent/allocation",
        "node_without_address",
        "port gcs is for other members, and Node/gpu-1 has no address for them "
        "(say under spec.address of Node/gpu-1 where other nodes reach it)",
    ),
    "another on a node without address": (
        each(members(member("a", role="store")), no_address(s.OTHER_NODE_FILE)),
        ONE_REF,
        "/spec/members/0/allocation",
        "node_without_address",
        "port data is for other members, and Node/gpu-2 has no address for them "
        "(say under spec.address of Node/gpu-2 where other nodes reach it)",
    ),
    "an address nobody can reach": (
        field(b.NODE_FILE, "address", "0.0.0.0"),
        "Node/gpu-1",
        "/spec/address",
        "unusable_address",
        "0.0.0.0 is no address that another node could reach this one at "
        "(give the address of its interface on the network that the nodes share)",
    ),
    "an address that two nodes have": (
        field(s.OTHER_NODE_FILE, "address", "10.0.0.5"),
        "Node/gpu-2",
        "/spec/address",
        "address_taken",
        "10.0.0.5 is the address of Node/gpu-1 already "
        "(members on other nodes could not tell the two apart)",
    ),
    "a runtime that can't": (
        profile(kind="bare_metal"),
        VERSION_REF,
        "/spec/runtime_profile/kind",
        "members_not_offered",
        "runtime kind bare_metal carries no further members (kinds that do: launchable_oci)",
    ),
    "a port for nobody": (
        each(profile(members=[]), members()),
        VERSION_REF,
        "/spec/runtime_profile/ports/1/expose",
        "no_member_roles",
        "port gcs is for other members, and the version has no roles for any "
        "(say which under runtime_profile.members, or expose it as private)",
    ),
    "a role twice": (
        profile(members=[WORKER, WORKER]),
        VERSION_REF,
        "/spec/runtime_profile/members/1/role",
        "role_twice",
        "there are two roles worker "
        "(the first member's role counts too: it is runtime_profile.role)",
    ),
    "bounds without a number between them": (
        profile(members=[{**WORKER, "members_min": 3, "members_max": 2}]),
        VERSION_REF,
        "/spec/runtime_profile/members/0/members_min",
        "bad_member_count",
        "at least 3 and at most 2 worker (no number is both)",
    ),
    "an image of a role that is not registered": (
        profile(members=[{**WORKER, "image_ref": b.IMAGE.replace("a" * 64, "e" * 64)}]),
        "Promotion/hello/1.0.0",
        "/spec/state",
        "artifact_unregistered",
        f"version is active, but {b.IMAGE.replace('a' * 64, 'e' * 64)} "
        "(AppVersion/hello/1.0.0/spec/runtime_profile/members/0/image_ref) is unregistered "
        "(register it as an Artifact, by repository and digest)",
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_it_is_told_where_it_stands(case: tuple[Bend, str, str, str, str]) -> None:
    bend, culprit, pointer, code, text = case
    documents = spread()
    bend(documents)
    found = run(documents)
    told = [p for p in found.problems if (p.object, p.code) == (culprit, code)]
    assert pointer in {problem.pointer for problem in told}, found.problems
    problem = next(problem for problem in told if problem.pointer == pointer)
    said = f"{problem.message} ({problem.hint})" if problem.hint else problem.message
    assert said == text
    assert not any("." in p.object for p in found.problems if p.object.startswith("AppInstance"))


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_no_member_is_launched_when_one_can_not(case: tuple[Bend, str, str, str, str]) -> None:
    """All members of an instance or none: half of one serves nobody."""
    documents = spread()
    case[0](documents)
    found = run(documents)
    there = {HEAD, *(f"{HEAD}.{m['name']}" for m in documents[b.INSTANCE_FILE]["spec"]["members"])}
    assert there <= found.blocked.keys()
    assert not there & found.instances.keys()


def test_what_is_decommissioned_needs_no_role_and_no_place() -> None:
    documents = spread(member("w1", "gone", role="gone"))
    documents[b.INSTANCE_FILE]["spec"]["desired"] = "decommissioned"
    assert run(documents).problems == ()
