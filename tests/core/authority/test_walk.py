"""Commits from one revision to another: what is rejected, refused, and what counts instead."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from reconciler.core.authority.facts import Signature
from reconciler.core.authority.walk import Start, walk
from reconciler.core.forms import canonical_json
from reconciler.core.records import Accepted
from reconciler.core.times import time_text
from tests.core.authority.chains import (
    LIMITS,
    MINUTE_MS,
    NOW_MS,
    OPERATOR,
    PEOPLE,
    Repo,
    accepted,
    iam,
    instance,
    instance_file,
    key_of,
    known,
    node,
    refusals,
    walked,
    yaml,
)
from tests.core.authority.trust_builders import (
    AT_MS,
    Document,
    binding,
    identity,
    ssh,
)

ONE, ONE_FILE = "AppInstance/acme/lab/one", instance_file("one")
NODE, NODE_FILE = "Node/gpu-1", "platform/nodes/gpu-1.yaml"
STOPPED = yaml(instance(desired="stopped"))
REVOKED = {"at": "2026-05-01T00:00:00Z", "reason": "stolen"}
CORES = yaml(node(cpu_cores=8))
GRANT = yaml(binding("zoe", "project-admin", "acme/lab", "zoe")[1])


def text(document: Document) -> str:
    return canonical_json(document)


def rejected(repo: Repo, last: Accepted | None = None, **more: Any) -> tuple[str, str]:
    found = walked(repo, last, **more)
    assert found.rejection is not None
    assert found.changes == ()
    assert found.refused == {}
    return found.rejection.code, found.rejection.message


# --- rejected as a whole --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("signature", "expected"),
    [
        (Signature("none"), "commit_unsigned"),
        (Signature("bad"), "signature_bad"),
        (Signature("unsupported"), "signature_unsupported"),
        (Signature("too_large"), "commit_too_large"),
        (Signature("good", key_of("eve")), "signer_unknown"),
    ],
)
def test_one_bad_commit_rejects_the_revision(signature: Signature, expected: str) -> None:
    repo = known()
    repo.commit({ONE_FILE: STOPPED}, by="nils")
    bad = repo.commit({NODE_FILE: yaml(node(cpu_cores=8))}, signature=signature, message="Bad one")
    repo.commit({NODE_FILE: yaml(node(cpu_cores=9))}, signature=Signature("none"))
    code, message = rejected(repo)
    assert code == expected
    assert f"{bad[:12]} (Bad one)" in message


def test_a_commit_that_nobody_checked_counts_as_unsigned() -> None:
    repo = known()
    start = Start({}, {}, (OPERATOR,), 0)
    found = walk(repo.chain(None), {}, start, NOW_MS, LIMITS)
    assert found.rejection is not None
    assert found.rejection.code == "commit_unsigned"


def expiring() -> Repo:
    """nils' key ends an hour after the first commit."""
    until = time_text(AT_MS + 60 * MINUTE_MS)
    who = yaml(identity("ada")[1], identity("nils", keys=[ssh("nils", valid_until=until)])[1])
    return known({iam("people"): who})


def test_a_backdated_commit_does_not_bring_an_expired_key_back() -> None:
    repo = expiring()
    repo.commit({ONE_FILE: STOPPED}, by="nils")
    assert walked(repo).rejection is None
    repo.commit({}, at_ms=AT_MS + 120 * MINUTE_MS)
    repo.commit({ONE_FILE: yaml(instance())}, by="nils", at_ms=AT_MS + 2 * MINUTE_MS)
    assert rejected(repo)[0] == "key_expired"


def test_the_time_goes_on_from_the_walk_before() -> None:
    repo = expiring()
    repo.commit({}, at_ms=AT_MS + 120 * MINUTE_MS)
    first = walked(repo)
    assert first.at_ms == AT_MS + 120 * MINUTE_MS
    last = accepted(repo, first)
    repo.commit({ONE_FILE: STOPPED}, by="nils", at_ms=AT_MS + 2 * MINUTE_MS)
    assert rejected(repo, replace(last, at_ms=first.at_ms))[0] == "key_expired"


def test_a_commit_from_the_future() -> None:
    repo = known()
    limit_ms = LIMITS.ahead_max_ms
    repo.commit({ONE_FILE: STOPPED}, at_ms=NOW_MS + limit_ms)
    assert walked(repo).rejection is None
    repo.commit({}, at_ms=NOW_MS + limit_ms + 1)
    assert rejected(repo)[0] == "commit_from_future"


def test_a_side_commit_has_to_verify_too() -> None:
    repo = known()
    base = repo.head
    side = repo.commit({ONE_FILE: STOPPED}, signature=Signature("none"), message="On a branch")
    repo.merge(side, onto=base)
    code, message = rejected(repo)
    assert code == "commit_unsigned"
    assert f"{side[:12]} (On a branch)" in message


def test_a_side_branch_signed_with_a_key_that_was_removed_meanwhile() -> None:
    repo = known()
    base = repo.head
    side = repo.commit({ONE_FILE: STOPPED}, by="nils")
    people = yaml(identity("ada")[1], identity("zoe")[1])
    main = repo.commit({iam("people"): people}, onto=[base])
    repo.merge(side, onto=main)
    assert rejected(repo)[0] == "signer_unknown"


# --- the beginning --------------------------------------------------------------------------------


def test_the_first_commits_are_the_operator_s_until_somebody_can_let_others_in() -> None:
    repo = Repo()
    repo.commit({NODE_FILE: PEOPLE[NODE_FILE]}, by="operator")
    repo.commit({path: text for path, text in PEOPLE.items() if path != NODE_FILE}, by="operator")
    first = walked(repo)
    assert first.rejection is None
    assert first.refused == {}
    assert {change.actor.key_id for change in first.changes} == {key_of("operator")}
    assert len(first.changes) == 10
    repo.commit({ONE_FILE: STOPPED}, by="operator")
    assert rejected(repo)[0] == "signer_unknown"
    assert rejected(repo, accepted(repo, first))[0] == "signer_unknown"


def test_nobody_begins_but_the_operator() -> None:
    repo = Repo()
    repo.commit(dict(PEOPLE), by="ada")
    assert rejected(repo)[0] == "signer_unknown"


def test_admin_keys_count_where_the_root_names_nobody() -> None:
    repo = Repo()
    root = repo.commit({NODE_FILE: PEOPLE[NODE_FILE]}, signature=Signature("none"))
    last = Accepted(root, {}, {})
    repo.commit({iam("people"): PEOPLE[iam("people")]}, by="operator")
    assert walked(repo, last).rejection is None


def test_an_identity_that_is_not_valid_never_enters_trust() -> None:
    wrong = identity("eve", speck=1)
    repo = known({iam("eve"): yaml(wrong[1])})
    found = walked(repo)
    assert not found.refused
    repo.commit({ONE_FILE: STOPPED}, by="eve")
    assert rejected(repo)[0] == "signer_unknown"


def test_a_change_that_is_not_valid_leaves_the_identity_before_in_force() -> None:
    repo = known()
    people = yaml(identity("ada")[1], identity("nils", speck=1, disabled=True)[1])
    repo.commit({iam("people"): people})
    repo.commit({ONE_FILE: STOPPED}, by="nils")
    assert not walked(repo).refused


# --- one line -------------------------------------------------------------------------------------


def test_who_may_changes_and_who_may_not_is_refused() -> None:
    repo = known()
    repo.commit({ONE_FILE: STOPPED}, by="nils", message="Stop it\n\nReason: too\x1b loud")
    made = repo.commit({NODE_FILE: yaml(node(cpu_cores=8))}, by="nils", message="More cores")
    found = walked(repo)
    assert dict(refusals(found)) == {NODE: "change_not_allowed"}
    refused = found.refused[NODE]
    assert refused.form_json == text(node())
    assert refused.wanted_json == text(node(cpu_cores=8))
    assert (refused.path, refused.revision, refused.actor) == (NODE_FILE, made, "user/nils")
    assert "user/nils may not change Node/gpu-1" in refused.message
    stop, cores = found.changes[-2:]
    assert (str(stop.ref), stop.reason, stop.refusal) == (ONE, "too\\x1b loud", "")
    assert (str(cores.ref), cores.reason, cores.refusal) == (
        NODE,
        "More cores",
        "change_not_allowed",
    )
    assert stop.before.startswith("sha256:")
    assert stop.before != stop.after
    assert stop.at_ms == AT_MS + 2 * MINUTE_MS
    assert found.commits == 3


def test_a_long_reason_is_cut() -> None:
    repo = known()
    repo.commit({ONE_FILE: STOPPED}, message="x" * 1000)
    assert len(walked(repo).changes[-1].reason) == 300


def test_added_and_deleted_without_right() -> None:
    repo = known()
    repo.commit({NODE_FILE: None, "platform/nodes/gpu-2.yaml": yaml(node("gpu-2"))}, by="nils")
    found = walked(repo)
    assert dict(refusals(found)) == {NODE: "change_not_allowed", "Node/gpu-2": "change_not_allowed"}
    assert found.refused[NODE].form_json == text(node())
    assert found.refused[NODE].wanted_json is None
    assert found.refused["Node/gpu-2"].form_json is None


def test_moving_and_reordering_is_no_change() -> None:
    repo = known()
    both = yaml(node(), node("gpu-2"))
    repo.commit({NODE_FILE: both})
    before = len(walked(repo).changes)
    swapped = "# a note\n" + yaml(node("gpu-2"), node())
    repo.commit({NODE_FILE: None, "platform/nodes/all.yaml": swapped}, by="zoe")
    found = walked(repo)
    assert not found.refused
    assert len(found.changes) == before


def test_another_object_in_a_file_is_not_touched() -> None:
    repo = known({NODE_FILE: yaml(node(), node("gpu-2"))})
    repo.commit({NODE_FILE: yaml(node(cpu_cores=8), node("gpu-2"))}, by="nils")
    repo.commit({NODE_FILE: yaml(node(cpu_cores=8), node("gpu-2", cpu_cores=8))}, by="ada")
    found = walked(repo)
    assert [*refusals(found)] == [(NODE, "change_not_allowed")]


def test_who_moves_what_was_refused_does_not_approve_it() -> None:
    repo = known()
    repo.commit({NODE_FILE: yaml(node(cpu_cores=8))}, by="nils")
    repo.commit({NODE_FILE: None, "platform/nodes/all.yaml": yaml(node(cpu_cores=8))}, by="ada")
    refused = walked(repo).refused[NODE]
    assert refused.path == "platform/nodes/all.yaml"
    assert refused.form_json == text(node())


def test_refused_and_then_made_by_somebody_who_may() -> None:
    repo = known()
    repo.commit({NODE_FILE: yaml(node(cpu_cores=8))}, by="nils")
    repo.commit({NODE_FILE: yaml(node())}, by="nils")
    repo.commit({NODE_FILE: yaml(node(cpu_cores=9))}, by="ada")
    assert not walked(repo).refused


@pytest.mark.parametrize("approves", [False, True])
def test_an_edit_on_top_of_what_was_refused_makes_it_good_only_if_it_says_so(
    approves: bool,
) -> None:
    """Its maker's own difference shows one line, and not what another slipped in before."""
    repo = known()
    repo.commit({NODE_FILE: yaml(node(cpu_cores=8))}, by="nils")
    message = f"More memory\n\nApproves: {NODE}" if approves else "More memory"
    repo.commit({NODE_FILE: yaml(node(cpu_cores=8, memory_gib=9))}, by="ada", message=message)
    found = walked(repo)
    assert [*refusals(found)] == ([] if approves else [(NODE, "keeps_refused_change")])
    assert found.changes[-1].before == found.changes[-2].before
    if not approves:
        told = found.refused[NODE]
        assert told.message == f"user/ada changed {NODE} on top of what user/nils may not change"
        assert f"Approves: {NODE}" in told.hint
        repo.commit({NODE_FILE: yaml(node())}, by="ada")
        assert not walked(repo).refused


@pytest.mark.parametrize("by", ["nils", "ada"])
def test_refused_and_then_undone(by: str) -> None:
    repo = known()
    repo.commit({NODE_FILE: yaml(node(cpu_cores=8))}, by="nils")
    repo.commit({NODE_FILE: yaml(node())}, by=by)
    assert not walked(repo).refused


def test_a_refused_change_keeps_what_was_authorised_before_it() -> None:
    repo = known()
    repo.commit({NODE_FILE: yaml(node(cpu_cores=8))}, by="ada")
    repo.commit({NODE_FILE: yaml(node(cpu_cores=9))}, by="nils")
    repo.commit({NODE_FILE: yaml(node(cpu_cores=10))}, by="nils")
    refused = walked(repo).refused[NODE]
    assert refused.form_json == text(node(cpu_cores=8))
    assert refused.wanted_json == text(node(cpu_cores=10))


def test_a_revocation_can_t_be_suppressed_by_a_change_that_is_refused() -> None:
    repo = known()
    nils = identity("nils", keys=[ssh("nils", revoked=REVOKED)])
    people = yaml(identity("ada")[1], nils[1], identity("zoe")[1])
    repo.commit({iam("people"): people})
    back = repo.commit({iam("people"): PEOPLE[iam("people")]}, by="zoe")
    found = walked(repo)
    assert found.refused["Identity/nils"].form_json == text(nils[1])
    repo.commit({ONE_FILE: STOPPED}, by="nils")
    assert rejected(repo)[0] == "key_revoked"
    assert rejected(repo, accepted(repo, walked(repo, head=back)))[0] == "key_revoked"


# --- grants ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("grants", "expected"),
    [
        ("ada", {}),
        ("nils", {ONE, "RoleBinding/zoe"}),
        ("zoe", {ONE, "RoleBinding/zoe"}),
    ],
)
def test_granted_in_one_commit_and_used_in_the_next(grants: str, expected: set[str]) -> None:
    repo = known()
    repo.commit({iam("zoe"): GRANT}, by=grants)
    repo.commit({ONE_FILE: STOPPED}, by="zoe")
    assert {subject for subject, _ in refusals(walked(repo))} == {*expected}


def test_granted_and_used_in_one_commit() -> None:
    repo = known()
    repo.commit({iam("zoe"): GRANT, ONE_FILE: STOPPED}, by="zoe")
    assert {subject for subject, _ in refusals(walked(repo))} == {ONE, "RoleBinding/zoe"}


def test_a_refused_grant_counts_once_it_is_approved() -> None:
    repo = known()
    repo.commit({iam("zoe"): GRANT}, by="zoe")
    repo.commit({}, by="ada", message="Welcome\n\nApproves: RoleBinding/zoe\nReason: she asked")
    repo.commit({ONE_FILE: STOPPED}, by="zoe")
    found = walked(repo)
    assert not found.refused
    assert found.changes[-2].reason == "she asked"
    assert str(found.changes[-2].actor) == "user/ada"


def test_the_last_admin_stays() -> None:
    repo = known()
    repo.commit({iam("roles"): yaml(binding("lab", "project-admin", "acme/lab", "nils")[1])})
    repo.commit({NODE_FILE: yaml(node(cpu_cores=8))})
    found = walked(repo)
    assert [*refusals(found)] == [("RoleBinding/admins", "last_admin")]
    assert found.changes[-2].refusal == "last_admin"


@pytest.mark.parametrize(
    "ada",
    [
        identity("ada", disabled=True),
        identity("ada", keys=[]),
        identity("ada", keys=[ssh("ada", revoked=REVOKED)]),
        identity("ada", "forge"),
    ],
)
def test_the_last_admin_can_t_be_narrowed_away(ada: Any) -> None:
    repo = known()
    repo.commit({iam("people"): yaml(ada[1], identity("nils")[1], identity("zoe")[1])})
    assert ("Identity/ada", "last_admin") in refusals(walked(repo))


def test_a_key_that_would_make_the_last_admin_ambiguous() -> None:
    repo = known()
    repo.commit({iam("eve"): yaml(identity("eve", keys=[ssh("ada", id="eve")])[1])})
    assert [*refusals(walked(repo))] == [("Identity/eve", "last_admin")]


def test_an_admin_may_leave_when_another_comes() -> None:
    repo = known()
    repo.commit({iam("roles"): yaml(binding("admins", "platform-admin", "", "zoe")[1])})
    assert not walked(repo).refused


# --- Approves -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("by", "message", "left"),
    [
        ("ada", "Fine\n\nApproves: Node/gpu-1", set()),
        ("ada", "Fine\n\napproves:   Node/gpu-1  ", set()),
        ("ada", "Fine\n\nApproves: Node/gpu-2\nApproves: Node/gpu-1", set()),
        ("ada", "Approves: Node/gpu-1", {NODE}),
        ("ada", "Fine\n\nApproves: Node/gpu-1\n\nnot the last paragraph", {NODE}),
        ("ada", "Fine\n\nApproves: Node/gpu-2", {NODE}),
        ("ada", "Fine\n\nApproves: ../../x", {NODE}),
        ("nils", "Fine\n\nApproves: Node/gpu-1", {NODE}),
        ("bot", "Fine\n\nApproves: Node/gpu-1", {NODE}),
    ],
)
def test_approves(by: str, message: str, left: set[str]) -> None:
    repo = known()
    repo.commit({NODE_FILE: yaml(node(cpu_cores=8))}, by="nils")
    last = accepted(repo, walked(repo))
    repo.commit({}, by=by, message=message)
    for found in (walked(repo), walked(repo, last)):
        assert {subject for subject, _ in refusals(found)} == left


def test_an_approved_deletion() -> None:
    repo = known()
    repo.commit({NODE_FILE: None}, by="nils")
    repo.commit({}, message="Fine\n\nApproves: Node/gpu-1")
    assert not walked(repo).refused
