"""What others changed on a branch counts, whatever the merge that brings it in makes of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reconciler.core.names import Revision
from reconciler.core.records import Accepted
from tests.core.authority.chains import (
    PEOPLE,
    Repo,
    accepted,
    iam,
    instance,
    instance_file,
    known,
    node,
    refusals,
    walked,
    yaml,
)
from tests.core.authority.trust_builders import DEPLOYER, binding, identity, stand_in

ZR, ZR_FILE = "RoleBinding/zr", iam("zr")
NODE, NODE_FILE = "Node/gpu-1", "platform/nodes/gpu-1.yaml"
ONE, ONE_FILE = "AppInstance/acme/lab/one", instance_file("one")
ADMIN = yaml(binding("zr", "platform-admin", "", "zoe")[1])
VIEWER = yaml(binding("zr", "viewer", "", "zoe")[1])
MINE = {iam("mine"): yaml(binding("mine", "platform-admin", "", "zoe")[1])}
CORES = yaml(node(cpu_cores=8))
STOPPED = yaml(instance(desired="stopped"))


def parted(changed: Mapping[str, str | None], by: str = "ada") -> tuple[Repo, Accepted, Revision]:
    """What was accepted, with zoe an admin; ada's next commit; the head, zoe's beside it."""
    repo = known({ZR_FILE: ADMIN})
    last = accepted(repo, walked(repo))
    base = repo.head
    side = repo.commit(changed, by=by)
    repo.commit({"docs/x.yaml": "a: 1"}, by="zoe", onto=[base])
    return repo, last, side


def ours(repo: Repo, side: Revision, by: str = "zoe", **more: Any) -> Revision:
    return repo.commit(more.pop("changed", {}), by=by, onto=[repo.head, side], **more)


def counts(repo: Repo, last: Accepted, ref: str = ZR) -> str | None:
    found = accepted(repo, walked(repo, last), last).objects.get(ref)
    return None if found is None else found.document_json


@pytest.mark.parametrize("revoked", [None, VIEWER])
def test_a_merge_can_t_leave_out_a_revocation(revoked: str | None) -> None:
    repo, last, side = parted({ZR_FILE: revoked})
    merged = ours(repo, side)
    found = walked(repo, last)
    assert [*refusals(found)] == [(ZR, "change_not_allowed")]
    assert (found.refused[ZR].revision, found.refused[ZR].actor) == (merged, "user/zoe")
    assert [(str(one.actor), one.refusal) for one in found.changes] == [
        ("user/ada", ""),
        ("user/zoe", "change_not_allowed"),
    ]
    repo.commit(MINE, by="zoe")
    assert "RoleBinding/mine" in walked(repo, last).refused
    last = accepted(repo, walked(repo, last, head=merged), last)
    assert "RoleBinding/mine" in walked(repo, last).refused


def test_nor_can_it_after_the_revocation_was_accepted() -> None:
    repo, last, side = parted({ZR_FILE: None})
    last = accepted(repo, walked(repo, last, head=side), last)
    ours(repo, side)
    assert [*refusals(walked(repo, last))] == [(ZR, "change_not_allowed")]
    assert counts(repo, last) is None


def test_nor_by_another_merge_on_the_way() -> None:
    repo, last, side = parted({ZR_FILE: None})
    base = repo.chain(last.revision)[0].onto
    assert base is not None
    inner = ours(repo, side)
    repo.commit({}, by="zoe", onto=[repo.commit({}, by="zoe", onto=[base]), inner])
    assert counts(repo, last) is None


def test_nor_by_a_commit_on_top_of_it() -> None:
    repo, last, side = parted({ZR_FILE: None})
    own = repo.head
    again = repo.commit({ZR_FILE: ADMIN, **MINE}, by="zoe", onto=[side])
    repo.merge(again, by="zoe", onto=own)
    assert {*walked(repo, last).refused} == {ZR, "RoleBinding/mine"}


@pytest.mark.parametrize("more", [{"message": f"x\n\nApproves: {ZR}"}, {"changed": MINE}])
def test_nor_by_what_its_signer_could_do_before(more: Any) -> None:
    repo, last, side = parted({ZR_FILE: None})
    ours(repo, side, **more)
    assert ZR in walked(repo, last).refused
    if "changed" in more:
        assert "RoleBinding/mine" in walked(repo, last).refused


def test_nor_by_making_the_file_unreadable() -> None:
    repo, last, side = parted({ZR_FILE: None})
    ours(repo, side, changed={ZR_FILE: "a: ["})
    assert ZR in walked(repo, last).refused
    repo.commit({ZR_FILE: ADMIN, **MINE}, by="zoe")
    assert {ZR, "RoleBinding/mine"} <= {*walked(repo, last).refused}


def test_nor_by_a_change_of_its_own_before() -> None:
    repo, last, side = parted({ZR_FILE: None})
    repo.commit({ZR_FILE: yaml(binding("zr", "platform-admin", "", "zoe", "nils")[1])}, by="zoe")
    ours(repo, side)
    assert counts(repo, last) is None


def test_a_merge_that_brings_a_revocation_in_whole() -> None:
    for inner in (False, True):
        repo, last, side = parted({ZR_FILE: None})
        base = repo.commits[side].facts.parents[0]
        merged = repo.merge(side, by="zoe")
        if inner:
            repo.merge(merged, by="zoe", onto=repo.commit({}, by="zoe", onto=[base]))
        assert not walked(repo, last).refused
        assert counts(repo, last) is None


def test_who_may_leaves_it_out() -> None:
    repo, last, side = parted({ZR_FILE: None})
    ours(repo, side, by="ada")
    found = walked(repo, last)
    assert (found.changes, found.refused) == ((), {})


def test_what_somebody_changed_who_may_not_is_left_out_by_anybody() -> None:
    repo, last, side = parted({ZR_FILE: None}, by="nils")
    ours(repo, side)
    found = walked(repo, last)
    assert (found.changes, found.refused) == ((), {})


def test_any_object_counts_as_the_branch_has_it() -> None:
    repo, last, side = parted({NODE_FILE: CORES})
    ours(repo, side, by="nils", changed={NODE_FILE: yaml(node(cpu_cores=64))})
    found = walked(repo, last)
    assert [*refusals(found)] == [(NODE, "change_not_allowed")]
    assert '"cpu_cores":8' in (found.refused[NODE].form_json or "")


def test_the_last_admin_stays_as_the_merge_has_it() -> None:
    repo = known()
    last = accepted(repo, walked(repo))
    base = repo.head
    side = repo.commit({iam("roles"): yaml(binding("lab", "project-admin", "acme/lab", "nils")[1])})
    repo.commit({}, by="zoe", onto=[base])
    ours(repo, side)
    found = walked(repo, last)
    assert [one.refusal for one in found.changes] == ["last_admin", "change_not_allowed"]
    assert not found.refused


def test_what_a_branch_took_in_from_the_line_is_not_of_the_branch() -> None:
    repo = known({ZR_FILE: ADMIN})
    base = repo.head
    gone = repo.commit({ZR_FILE: None})
    branch = repo.merge(gone, by="ada", onto=repo.commit({}, by="nils", onto=[base]))
    repo.commit({ZR_FILE: ADMIN}, onto=[gone])
    ours(repo, branch, by="nils")
    assert not walked(repo).refused


def test_a_branch_of_many_commits_and_parents() -> None:
    repo, last, _ = parted({})
    base = repo.head
    line = [base]
    for number in range(60):
        form = yaml(node(cpu_cores=number + 5))
        line.append(repo.commit({NODE_FILE: form}, by="nils", onto=[line[-1]]))
    repo.commit({NODE_FILE: None}, by="nils", onto=[base, *line[:0:-1]])
    assert [*refusals(walked(repo, last))] == [(NODE, "change_not_allowed")]


# --- whatever is merged ---------------------------------------------------------------------------

FORMS: Mapping[str, tuple[str | None, ...]] = {
    ZR_FILE: (None, ADMIN, VIEWER, "a: ["),
    iam("mine"): (None, *MINE.values()),
    NODE_FILE: (None, CORES, yaml(node())),
    ONE_FILE: (None, STOPPED),
    iam("people"): (
        PEOPLE[iam("people")],
        yaml(*(identity(name)[1] for name in ("ada", "zoe")), stand_in("bot", DEPLOYER)[1]),
    ),
}
CHANGED = st.lists(
    st.sampled_from([*FORMS]).flatmap(
        lambda path: st.tuples(st.just(path), st.sampled_from(FORMS[path]))
    ),
    max_size=2,
).map(dict)
MESSAGES = st.sampled_from(["a merge", f"x\n\nApproves: {ZR}\nApproves: {NODE}"])
COMMITS = st.lists(
    st.tuples(CHANGED, MESSAGES, st.lists(st.integers(0, 30), min_size=1, max_size=3)),
    min_size=1,
    max_size=7,
)


def grown(repo: Repo, pool: list[Revision], made: Any, line: Revision) -> Revision:
    """zoe's commits and merges, and what brings them and all of `pool` to one head. She changes
    something only where she knows of the first one.
    """
    knowing = {pool[0]}
    for changed, message, at in made:
        parents = dict.fromkeys(pool[number % len(pool)] for number in at)
        knows = not knowing.isdisjoint(parents)
        one = repo.commit(changed if knows else {}, by="zoe", message=message, onto=parents)
        pool.append(one)
        knowing |= {one} if knows else set()
    return repo.commit({}, by="zoe", onto=dict.fromkeys([line, *reversed(pool)]))


def forms(given_: Accepted) -> Mapping[str, str]:
    return {ref: one.document_json for ref, one in given_.objects.items()}


@settings(max_examples=150)
@given(COMMITS)
def test_no_merge_by_who_may_not_changes_what_counts(made: Any) -> None:
    repo = known()
    last = accepted(repo, walked(repo))
    base = repo.head
    grown(repo, [base], made, base)
    found = walked(repo, last)
    assert not [one for one in found.changes if not one.refusal]
    assert all(
        one.form_json == forms(last).get(subject)
        for subject, one in found.refused.items()
        if not one.is_file
    )


@settings(max_examples=150)
@given(COMMITS, st.booleans())
def test_no_merge_brings_back_what_was_revoked(made: Any, accepted_first: bool) -> None:
    """All that zoe does is merged with, or made on top of, what takes her rights."""
    repo = known({ZR_FILE: ADMIN})
    last = accepted(repo, walked(repo))
    base = repo.head
    revoked = repo.commit({ZR_FILE: None, NODE_FILE: CORES})
    own = repo.commit({}, by="zoe", onto=[base])
    if accepted_first:
        last = accepted(repo, walked(repo, last, head=revoked), last)
    grown(repo, [revoked, own], made, own)
    repo.commit(MINE, by="zoe")
    found = walked(repo, last)
    assert "RoleBinding/mine" in found.refused
    refused = found.refused.get(ZR)
    assert refused is None or refused.form_json is None
    allowed = [one for one in found.changes if one.ref.name in ("zr", "mine") and not one.refusal]
    assert all(one.after == "" for one in allowed if one.ref.name == "zr")


@settings(max_examples=100)
@given(st.lists(st.tuples(COMMITS, st.sampled_from(["ada", "zoe", "nils"])), max_size=3), st.data())
def test_merges_in_one_go_or_in_several(groups: Any, data: st.DataObject) -> None:
    repo = known({ZR_FILE: ADMIN})
    first = last = accepted(repo, walked(repo))
    pool, base = [repo.head], repo.head
    for made, by in groups:
        for changed, message, at in made:
            parents = dict.fromkeys(pool[-1 - number % len(pool)] for number in at)
            read = {path: text for path, text in changed.items() if path != iam("people")}
            tree = {path: text for path, text in read.items() if text != "a: ["}
            pool.append(repo.commit(tree, by=by, message=message, onto=parents))
    line = [step.facts.revision for step in repo.chain(base)]
    stops = data.draw(st.sets(st.sampled_from(line))) if line else set()
    for stop in [one for one in line[:-1] if one in stops]:
        last = accepted(repo, walked(repo, last, head=stop), last)
    rest, whole = walked(repo, last), walked(repo, first)
    assert forms(accepted(repo, rest, last)) == forms(accepted(repo, whole, first))
    assert {*refusals(rest)} == {*refusals(whole)}
