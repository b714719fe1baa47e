"""Acceptance is per object: a bad file blocks neither the rest nor its fix, and removes nothing."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconciler.core.accept import AcceptedState, accept, parse_accepted, to_desired
from reconciler.core.desired import Candidate, StateObject
from reconciler.core.names import InstanceKey
from reconciler.core.problems import Problem
from reconciler.core.records import Accepted, AcceptedObject
from renderers import CannotRender, render
from tests.core import builders as b

ONE, TWO = InstanceKey("acme/research/one"), InstanceKey("acme/research/two")
TWO_FILE = b.INSTANCE_FILE.replace("one", "two")
NEXT_VERSION = "catalog/hello/versions/2.0.0.yaml"


def two() -> b.Documents:
    documents = b.world()
    b.add_instance(documents, "two")
    return documents


def run(documents: b.Documents, last: Accepted | None = None, **candidate: Any) -> AcceptedState:
    stored = b.accepted(two()) if last is None else last
    return accept(b.candidate(documents, **candidate), stored, parse_accepted, b.ENVIRONMENT)


def codes(state: AcceptedState) -> set[str]:
    return {problem.code for problem in state.problems}


def said(state: AcceptedState, code: str) -> str:
    return next(str(problem) for problem in state.problems if problem.code == code)


def test_a_good_revision_is_accepted_whole() -> None:
    state = run(two(), Accepted())
    assert state.problems == ()
    assert {*state.instances} == {ONE, TWO}
    assert state.accepted == b.accepted(two(), b.LATER)
    assert not state.held


def test_what_did_not_change_keeps_the_revision_it_was_accepted_in() -> None:
    documents = two()
    documents[b.INSTANCE_FILE]["spec"]["desired"] = "stopped"
    stored = run(documents).accepted
    assert stored.revision == b.LATER
    changed = {ref for ref, found in stored.objects.items() if found.revision == b.LATER}
    assert changed == {"AppInstance/acme/research/one"}


def test_a_stored_object_comes_back_as_it_was() -> None:
    for ref, found in b.objects(two()).items():
        assert parse_accepted(b.accepted(two()).objects[str(ref)]) == found


@pytest.mark.parametrize("how", ["broken", "invalid"])
def test_a_bad_file_keeps_the_last_accepted_form_and_the_rest_goes_ahead(how: str) -> None:
    documents = two()
    documents[b.INSTANCE_FILE]["spec"]["desired"] = "stopped"
    documents[TWO_FILE]["spec"]["desired"] = "stopped"
    bad: dict[str, Any] = {how: [b.INSTANCE_FILE]}
    state = run(documents, **bad)
    assert state.instances[ONE].run == "running"
    assert state.instances[TWO].run == "stopped"
    assert not state.held


def test_a_new_object_with_a_problem_is_not_accepted() -> None:
    documents = two()
    b.add_instance(documents, "three", gpu_count=9)
    state = run(documents)
    assert codes(state) == {"exceeds_allocation", "out_of_range"}
    assert {*state.instances} == {ONE, TWO}
    assert not state.held
    assert "AppInstance/acme/research/three" not in state.accepted.objects


def test_a_clean_deletion_is_a_deletion() -> None:
    documents = two()
    del documents[TWO_FILE]
    state = run(documents)
    assert state.problems == ()
    assert {*state.instances} == {ONE}
    assert "AppInstance/acme/research/two" not in state.accepted.objects


def test_nothing_is_removed_in_the_scope_of_an_invalid_document() -> None:
    documents = two()
    del documents[TWO_FILE]
    state = run(documents, invalid=[b.ENTITLEMENT_FILE])
    assert {*state.instances} == {ONE, TWO}
    assert said(state, "removal_suspended") == (
        f"{TWO_FILE}: removal_suspended: AppInstance/acme/research/two is not removed while a "
        f"document in {b.PROJECT} is invalid "
        "(mend what is invalid there; the removal follows by itself)"
    )


def test_an_invalid_document_elsewhere_stops_no_removal() -> None:
    documents = two()
    b.add_project(documents, "umbra", "lab")
    last = b.accepted(documents)
    del documents[TWO_FILE]
    state = run(documents, last, invalid=["tenants/umbra/projects/lab/project.yaml"])
    assert {*state.instances} == {ONE}
    assert "removal_suspended" not in codes(state)


def test_an_object_that_moved_into_a_broken_file_is_kept() -> None:
    documents = two()
    documents[b.INSTANCE_FILE.replace("one", "all")] = documents.pop(TWO_FILE)
    state = run(documents, broken=[b.INSTANCE_FILE.replace("one", "all")])
    assert {*state.instances} == {ONE, TWO}


def test_an_object_that_moved_out_of_a_broken_file_counts_where_it_is() -> None:
    documents = two()
    moved = documents[b.INSTANCE_FILE.replace("one", "all")] = documents[TWO_FILE]
    moved["spec"]["desired"] = "stopped"
    state = run(documents, broken=[TWO_FILE])
    assert state.instances[TWO].run == "stopped"
    assert state.accepted.objects["AppInstance/acme/research/two"].path.endswith("all.yaml")


def test_a_link_in_place_of_a_folder_removes_nothing_below_it() -> None:
    documents = {p: d for p, d in two().items() if not p.startswith("tenants/")}
    found = b.candidate(documents)
    linked = replace(found, broken_paths=frozenset({"tenants/acme"}))
    state = accept(linked, b.accepted(two()), parse_accepted, b.ENVIRONMENT)
    assert {*state.instances} == {ONE, TWO}


def test_deleting_what_an_instance_needs_holds_it_and_names_the_missing_object() -> None:
    documents = two()
    del documents[b.ALLOCATION_FILE]
    state = run(documents)
    assert not state.instances
    missing = "unknown_reference: Allocation/acme/research/lease does not exist"
    assert state.held == {ONE: missing, TWO: missing}
    assert "AppInstance/acme/research/one" in state.accepted.objects
    back = run(two(), state.accepted)
    assert {*back.instances} == {ONE, TWO}


def test_an_upgrade_to_a_quarantined_version_keeps_the_old_one() -> None:
    documents = two()
    b.add(documents, NEXT_VERSION, b.version_spec("2.0.0"), "2.0.0")
    documents[b.INSTANCE_FILE]["spec"]["version"] = "2.0.0"
    state = run(documents, invalid=[NEXT_VERSION])
    assert state.instances[ONE].version == "1.0.0"
    assert said(state, "reference_quarantined") == (
        f"{b.INSTANCE_FILE}:1:1: reference_quarantined: AppVersion/hello/2.0.0 has a problem "
        "of its own (mend AppVersion/hello/2.0.0 first)"
    )


def test_what_depends_on_a_bad_change_waits_with_it_and_says_so() -> None:
    documents = two()
    b.add(documents, b.ALLOCATION_FILE.replace("lease", "new"), lease_on("gpu-9"))
    b.add_instance(documents, "three", allocation="new", gpu_count=0)
    state = run(documents)
    assert {*state.instances} == {ONE, TWO}
    assert "Node/gpu-9 does not exist" in said(state, "not_accepted")
    assert "AppInstance/acme/research/three" in [p.object for p in state.problems]


def lease_on(node: str) -> dict[str, Any]:
    return {**copy.deepcopy(b.world()[b.ALLOCATION_FILE]["spec"]), "node": node, "gpus": []}


def test_overcommitting_an_allocation_leaves_those_that_were_there_alone() -> None:
    documents = two()
    b.add_instance(documents, "a-new-one", gpu_count=4)
    state = run(documents)
    assert {*state.instances} == {ONE, TWO}
    assert "instances a-new-one, one, two ask 6 GPUs" in said(state, "allocation_overcommitted")
    assert "Allocation/acme/research/lease: " in said(state, "not_accepted")


def test_shrinking_an_allocation_below_what_is_used_is_put_back() -> None:
    documents = two()
    documents[b.ALLOCATION_FILE]["spec"]["gpus"] = ["GPU-0"]
    state = run(documents)
    assert {*state.instances} == {ONE, TWO}
    assert not state.held


def test_swapping_host_ports_is_one_step() -> None:
    before, after = two(), two()
    for documents, ports in ((before, (9001, 9002)), (after, (9002, 9001))):
        for path, port in zip((b.INSTANCE_FILE, TWO_FILE), ports, strict=True):
            documents[path]["spec"]["parameters"]["host_port"] = port
    assert run(after, b.accepted(before)).problems == ()


def test_without_the_environment_everything_is_held() -> None:
    documents = two()
    del documents[b.ENVIRONMENT_FILE]
    state = run(documents)
    assert {*state.held} == {ONE, TWO}
    assert state.accepted == b.accepted(two())
    wrong = accept(b.candidate(two()), b.accepted(two()), parse_accepted, "evall")
    assert {*wrong.held} == {ONE, TWO}
    assert said(wrong, "unknown_environment").endswith("(did you mean eval?)")


def test_an_unreadable_environment_keeps_its_last_form() -> None:
    assert {*run(two(), broken=[b.ENVIRONMENT_FILE]).instances} == {ONE, TWO}


def test_an_empty_revision_is_suspicious_and_removes_nothing() -> None:
    state = run({})
    assert {*state.instances} == {ONE, TWO}
    assert {*state.accepted.objects} == {*b.accepted(two()).objects}
    assert said(state, "empty_revision") == (
        ".: empty_revision: the revision holds no readable manifest, 12 were accepted before; all "
        "are kept (restore the files; to remove everything, decommission the instances first)"
    )


def test_a_stored_form_that_no_longer_parses_is_held_and_kept() -> None:
    last = b.accepted(two())
    ref = "AppInstance/acme/research/one"
    last = Accepted(
        last.revision, {**last.objects, ref: replace(last.objects[ref], document_json="{")}
    )
    state = run(two(), last, broken=[b.INSTANCE_FILE])
    assert "stored_form_unreadable" in state.held[ONE]
    assert state.accepted.objects[ref] == last.objects[ref]
    assert {*run(two(), last).instances} == {ONE, TWO}


def test_desired_holds_what_cannot_be_rendered() -> None:
    state = run(two())
    desired = to_desired(state, render)
    assert {*desired.targets} == {ONE, TWO}
    assert desired.targets[ONE].workload.limits.gpu_uuids == ("GPU-0",)
    refused = to_desired(state, lambda _: CannotRender("invalid_workload", "too small"))
    assert not refused.targets
    assert refused.held == dict.fromkeys((ONE, TWO), "invalid_workload: too small")


def test_a_gpu_already_held_is_kept_when_another_instance_comes_first() -> None:
    documents = two()
    b.add_instance(documents, "a-new-one")
    holding = {ONE: ("GPU-0",), TWO: ("GPU-1",)}
    found = accept(
        b.candidate(documents), b.accepted(two()), parse_accepted, b.ENVIRONMENT, holding
    ).instances
    assert found[ONE].gpu_uuids == ("GPU-0",)
    assert found[TWO].gpu_uuids == ("GPU-1",)


def test_a_long_chain_of_changes_that_wait_for_a_bad_one_goes_back_together() -> None:
    names = [f"i{number:02}" for number in range(40)]

    def chain(shift: int) -> b.Documents:
        documents = b.world()
        for number, name in enumerate(names):
            ask: dict[str, Any] = {"gpu_count": 0, "cpu_cores": 0.1, "memory_gib": 0.1}
            b.add_instance(documents, name, host_port=9000 + number + shift, **ask)
        return documents

    last = f"{b.PROJECT}/instances/{names[-1]}.yaml"
    rounds: list[str] = []

    def counted(stored: AcceptedObject) -> StateObject | Problem:
        rounds.append(stored.ref)
        return parse_accepted(stored)

    bad = b.candidate(chain(1), invalid=[last])
    state = accept(bad, b.accepted(chain(0)), counted, b.ENVIRONMENT)
    assert len(state.instances) == 41
    assert not state.held
    assert sorted(rounds) == [f"AppInstance/acme/research/{name}" for name in names]
    assert "too many changes in its project wait" in said(state, "not_accepted")
    waiting = [p for p in state.problems if p.code == "host_port_taken"]
    assert len(waiting) < 40
    assert run(chain(1), state.accepted).problems == ()


# --- whatever happens to the files ---------------------------------------------------------------

FATES = ("kept", "broken", "invalid", "deleted", "moved", "nonsense")
PATHS = sorted(two())
LAST = b.accepted(two())


def fated(fates: dict[str, str]) -> Candidate:
    """A revision in which each file met its fate; `moved` leaves a broken file where it went."""
    documents = two()
    broken, invalid = set(), set()
    for path, fate in fates.items():
        if fate == "deleted":
            del documents[path]
        elif fate == "moved":
            del documents[path]
            broken.add(path.replace(".yaml", "-moved.yaml"))
        elif fate == "broken":
            broken.add(path)
        elif fate == "invalid":
            invalid.add(path)
        elif fate == "nonsense" and "/instances/" in path:
            documents[path]["spec"]["app"] = "nowhere"
        elif fate == "nonsense" and "/allocations/" in path:
            documents[path]["spec"]["gpus"] = ["GPU-7"]
    return b.candidate(documents, broken=broken, invalid=invalid)


WORLDS = st.fixed_dictionaries({path: st.sampled_from(FATES) for path in PATHS})


@given(WORLDS)
def test_only_a_clean_deletion_removes_an_instance(fates: dict[str, str]) -> None:
    state = accept(fated(fates), LAST, parse_accepted, b.ENVIRONMENT)
    gone = {
        key for key, path in ((ONE, b.INSTANCE_FILE), (TWO, TWO_FILE)) if fates[path] == "deleted"
    }
    there = {*state.instances} | {*state.held}
    assert there >= {ONE, TWO} - gone
    assert not {*state.instances} & {*state.held}
    assert all(state.held.values())
    desired = to_desired(state, render)
    assert {*desired.targets} | {*desired.held} == there
    stored = {ref for ref in state.accepted.objects if ref.startswith("AppInstance/")}
    assert stored == {f"AppInstance/{key}" for key in there} or state.environment is None


@given(WORLDS)
def test_the_same_revision_again_changes_nothing(fates: dict[str, str]) -> None:
    once = accept(fated(fates), LAST, parse_accepted, b.ENVIRONMENT)
    again = accept(fated(fates), once.accepted, parse_accepted, b.ENVIRONMENT)
    assert again.accepted == once.accepted
    assert (again.instances, again.held) == (once.instances, once.held)


@given(WORLDS)
def test_whatever_went_wrong_the_fix_is_accepted(fates: dict[str, str]) -> None:
    bad = accept(fated(fates), LAST, parse_accepted, b.ENVIRONMENT)
    fixed = accept(b.candidate(two()), bad.accepted, parse_accepted, b.ENVIRONMENT)
    assert fixed.problems == ()
    assert {*fixed.instances} == {ONE, TWO}
    assert not fixed.held


ASKS = st.fixed_dictionaries(
    {
        "gpu_count": st.integers(0, 3),
        "cpu_cores": st.sampled_from([1, 4, 9]),
        "host_port": st.sampled_from([9001, 9002, 9003]),
        "desired": st.sampled_from(["running", "stopped"]),
    }
)
CROWDS = st.dictionaries(st.sampled_from("abcd"), ASKS, max_size=4)


def crowd(asks: dict[str, dict[str, Any]]) -> b.Documents:
    """Instances that compete for one lease's GPUs and CPU and for host ports."""
    documents = b.world()
    del documents[b.INSTANCE_FILE]
    for name, ask in asks.items():
        parameters = {key: value for key, value in ask.items() if key != "desired"}
        b.add_instance(documents, name, **parameters)
        documents[f"{b.PROJECT}/instances/{name}.yaml"]["spec"]["desired"] = ask["desired"]
    return documents


@given(CROWDS, CROWDS, CROWDS)
def test_instances_that_compete_never_get_each_other_held(
    first: dict[str, Any], then: dict[str, Any], last: dict[str, Any]
) -> None:
    stored = Accepted()
    for asks in (first, then, last):
        state = run(crowd(asks), stored)
        assert not state.held
        left = {ref for ref in stored.objects if ref.rpartition("/")[2] in asks}
        assert {ref for ref in left if ref.startswith("AppInstance/")} <= {*state.accepted.objects}
        gpus = [gpu for found in state.instances.values() for gpu in found.gpu_uuids]
        ports = [port for found in state.instances.values() for _, _, port in found.ports]
        assert len({*gpus}) == len(gpus)
        assert len({*ports}) == len(ports)
        stored = state.accepted


def test_a_stored_reference_to_an_unknown_kind_is_a_problem() -> None:
    one = LAST.objects["AppInstance/acme/research/one"]
    found = parse_accepted(replace(one, ref="Gadget/x"))
    assert isinstance(found, Problem)
    assert "can't be read any more" in str(found)
    assert isinstance(parse_accepted(one), StateObject)


def test_a_thousand_that_ask_too_much_are_told_in_few_words() -> None:
    """Attempted: one line more in each of very many files, told in full in each of very many."""
    before, after = b.world(), b.world()
    for number in range(1_000):
        b.add_instance(after, f"hungry-{number:04}", gpu_count=0, cpu_cores=0.1, memory_gib=0.1)
    state = accept(b.candidate(after), b.accepted(before), parse_accepted, b.ENVIRONMENT)
    assert len(state.problems) > 1_000
    assert max(len(problem.message) + len(problem.hint) for problem in state.problems) < 1_000
    assert "and 993 more ask" in said(state, "allocation_overcommitted")


def test_another_tenant_keeps_nobody_elses_instance_by_its_name() -> None:
    before = two()
    corp = b.add_project(before, "evil", "corp")
    gone = {path: found for path, found in before.items() if path != TWO_FILE}
    b.add_instance(gone, "two", corp, cpu_cores=4096)
    state = run(gone, b.accepted(before))
    assert {"AppInstance/evil/corp/two"} <= {problem.object for problem in state.problems}
    assert TWO not in {**state.instances, **state.held}


@pytest.mark.parametrize("how", ["broken", "invalid"])
def test_nothing_is_removed_while_the_environment_is_rejected(how: str) -> None:
    gone = {path: found for path, found in two().items() if path != TWO_FILE}
    bad: dict[str, Any] = {how: [b.ENVIRONMENT_FILE]}
    assert run(gone).guards.removals_max > 0
    assert run(gone, **bad).guards.removals_max == 0
