"""What is accepted of states where nobody's signature counts, and what waits until it is unused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from reconciler.core.accept import AcceptedState, accept, parse_accepted
from reconciler.core.names import InstanceKey, Revision
from reconciler.core.records import Accepted, InstanceRecord, State
from reconciler.core.steps_taken import Bounds, Use, names_of, uses_of
from tests.core import builders as b

ONE = InstanceKey("acme/research/one")
DIGEST = b.IMAGE.partition("@")[2]
PROMOTION = "Promotion/hello/1.0.0"
ARTIFACT = "Artifact/acme/research/hello/1.0.0/image"


def world(version: str = "active", artifact: str = "promoted") -> b.Documents:
    """Without an instance, so that nothing else asks for the version."""
    documents = b.world()
    del documents[b.INSTANCE_FILE]
    spec = documents[b.PROMOTION_FILE]["spec"]
    spec["state"] = version
    if version == "canary":
        spec["canary"] = {"percent": 5}
    documents[b.ARTIFACT_FILE]["spec"]["state"] = artifact
    return documents


def run(
    before: b.Documents | None,
    now: b.Documents,
    commits: int | None = 1,
    uses: Mapping[InstanceKey, Use] | None = None,
    **candidate: Any,
) -> AcceptedState:
    asked: list[Revision] = []

    def commits_since(revision: Revision) -> int:
        asked.append(revision)
        assert revision == b.REVISION
        return commits or 0

    bounds = Bounds(uses or {}, commits_since if commits is not None else None)
    last = b.accepted(before) if before is not None else Accepted()
    found = replace(b.candidate(now), **candidate)
    return accept(found, last, parse_accepted, b.ENVIRONMENT, bounds=bounds)


def state_of(state: AcceptedState, ref: str = PROMOTION) -> str:
    stored = state.accepted.objects.get(ref)
    return stored.document_json.partition('"state":"')[2].partition('"')[0] if stored else ""


def said(state: AcceptedState) -> list[str]:
    return [str(problem) for problem in state.problems]


def test_what_is_accepted_first_begins_anywhere() -> None:
    state = run(None, world("retired", "retired"))
    assert (state_of(state), state.problems) == ("retired", ())


def test_a_legal_step_is_accepted() -> None:
    assert state_of(run(world("canary"), world("active"))) == "active"


def test_an_illegal_one_keeps_the_form_before() -> None:
    state = run(world("staged"), world("active"))
    assert state_of(state) == "staged"
    assert said(state) == [
        f"{b.PROMOTION_FILE}:1:1: illegal_step: {PROMOTION} can't go from staged to active: canary"
        " may follow (one step a commit: staged → canary → active)"
    ]


@pytest.mark.parametrize(("commits", "after"), [(1, "staged"), (2, "active"), (9, "active")])
def test_as_many_steps_as_commits(commits: int, after: str) -> None:
    assert state_of(run(world("staged"), world("active"), commits)) == after


def test_where_nobody_can_count_them_the_way_has_to_be_there() -> None:
    assert state_of(run(world("draft"), world("active"), None)) == "active"
    assert state_of(run(world("canary", "published"), world("retired", "promoted"), None)) != ""
    state = run(world(artifact="revoked"), world(artifact="promoted"), None)
    assert state_of(state, ARTIFACT) == "revoked"


def test_a_removed_one_stays() -> None:
    now = world()
    del now[b.PROMOTION_FILE]
    state = run(world(), now)
    assert state_of(state) == "active"
    assert said(state) == [
        f"{b.PROMOTION_FILE}: illegal_step: {PROMOTION} is active, and can't be removed: deprecated"
        " may follow (one step a commit: active → deprecated → retired → removed)"
    ]


def test_where_signed_commits_were_walked_they_were_judged_already() -> None:
    state = run(world("staged"), world("active"), decided=frozenset())
    assert (state_of(state), state.problems) == ("active", ())


def test_a_new_one_is_not_there_yet() -> None:
    before = world()
    del before[b.PROMOTION_FILE]
    state = run(before, world("active"))
    assert state_of(state) == ""
    assert "can't begin as active" in said(state)[0]


# --- retiring ------------------------------------------------------------------------------------

USING = Use("hello", frozenset(["1.0.0"]), frozenset([DIGEST]))


def test_a_version_is_not_retired_while_something_runs_it() -> None:
    before, now = world("deprecated"), world("retired")
    state = run(before, now, uses={ONE: USING})
    assert (state_of(state), state.retiring) == ("deprecated", True)
    assert said(state) == [
        f"{b.PROMOTION_FILE}:1:1: version_in_use: {PROMOTION} is not retired yet:"
        f" it is still run by AppInstance/{ONE} (it follows by itself, once they run something else"
        " or are taken down)"
    ]
    state = run(before, now)
    assert (state_of(state), state.retiring, state.problems) == ("retired", False, ())


def test_also_where_signatures_count() -> None:
    state = run(world("deprecated"), world("retired"), uses={ONE: USING}, decided=frozenset())
    assert state.retiring


def test_nor_is_an_artifact() -> None:
    before, now = world("draft", "deprecated"), world("draft", "retired")
    state = run(before, now, uses={ONE: USING})
    assert (state_of(state, ARTIFACT), state.retiring) == ("deprecated", True)
    assert f"artifact_in_use: {ARTIFACT} is not retired yet" in said(state)[0]
    other = Use("hello", frozenset(["1.0.0"]), frozenset(["sha256:" + "c" * 64]))
    assert not run(before, now, uses={ONE: other}).retiring


def test_nor_while_a_version_names_it() -> None:
    state = run(world("active", "deprecated"), world("active", "retired"))
    assert state_of(state, ARTIFACT) == "deprecated"
    told = [one for one in said(state) if "artifact_retired" in one]
    assert "AppVersion/hello/1.0.0" in told[0]


def test_revoking_waits_for_nobody() -> None:
    state = run(world(), world(artifact="revoked"), uses={ONE: USING})
    assert (state_of(state, ARTIFACT), state.retiring) == ("revoked", False)


def test_nor_while_a_manifest_names_it() -> None:
    before, now = b.world(), b.world()
    before[b.PROMOTION_FILE]["spec"]["state"] = "deprecated"
    now[b.PROMOTION_FILE]["spec"]["state"] = "retired"
    state = run(before, now)
    assert state_of(state) == "deprecated"
    assert not state.held
    assert any(
        "version_not_offered: AppVersion/hello/1.0.0 is retired, and takes no instances" in one
        for one in said(state)
    )


def record(**fields: Any) -> InstanceRecord:
    known: dict[str, Any] = {
        "key": ONE,
        "app": "hello",
        "org_id": "org-1",
        "project_id": "prj-1",
        "node": "gpu-1",
        "epoch": 1,
        "correlation_id": "c",
        "revision": b.REVISION,
        "target_version": "1.0.0",
        "target_hash": "h",
        "target_digest": DIGEST,
    }
    return InstanceRecord(**{**known, **fields})


def test_what_a_node_may_have_is_used() -> None:
    kept = record(state=State.UPGRADING, target_version="1.1.0", applied_version="1.0.0")
    new = record(state=State.REQUESTED)
    gone = record(state=State.DECOMMISSIONED)
    assert uses_of({ONE: kept})[ONE].versions == {"1.0.0", "1.1.0"}
    assert uses_of({ONE: new}) == uses_of({ONE: gone}) == {}


def test_who_is_named() -> None:
    keys = [InstanceKey(f"acme/lab/i{number}") for number in range(5)]
    assert names_of(keys[:2]) == "AppInstance/acme/lab/i0, AppInstance/acme/lab/i1"
    assert names_of(keys).endswith("AppInstance/acme/lab/i2 and 2 more")


# --- what a version runs -------------------------------------------------------------------------

EVIL = "sha256:" + "e" * 64
VERSION = "AppVersion/hello/1.0.0"


def both(state: str, documents: b.Documents | None = None) -> b.Documents:
    """With another digest registered beside that of the version."""
    found = documents or world(state)
    found[b.PROMOTION_FILE]["spec"]["state"] = state
    spec = found[b.ARTIFACT_FILE]["spec"]
    b.add(found, b.ARTIFACT_FILE.replace("image", "other"), {**spec, "digest": EVIL})
    return found


def swapped(state: str, documents: b.Documents | None = None) -> b.Documents:
    """And the version with that."""
    found = both(state, documents)
    found[b.VERSION_FILE]["spec"]["artifact_ref"] = b.IMAGE.replace(DIGEST, EVIL)
    return found


def runs(state: AcceptedState) -> bool:
    """Whether the other digest counts."""
    return EVIL in state.accepted.objects[VERSION].document_json


@pytest.mark.parametrize("version", ["canary", "active", "deprecated"])
def test_where_nobody_signs_it_is_told_in_review_alone(version: str) -> None:
    """Whoever may commit there may do anything; a private state repo is edited like that."""
    state = run(both(version), swapped(version))
    assert runs(state)
    assert said(state) == []


def test_before_that_it_may_change_and_go_back() -> None:
    assert runs(run(both("staged"), swapped("staged")))
    assert not runs(run(swapped("staged"), both("staged")))
    assert runs(run(both("staged"), swapped("canary")))


def test_where_signed_commits_were_walked_what_runs_was_judged_already() -> None:
    assert runs(run(both("canary"), swapped("canary"), decided=frozenset()))


def test_but_nothing_is_swapped_below_a_promotion_that_is_put_back() -> None:
    """Attempted: to change it while its Promotion says retired, and still is run."""
    before, now = both("deprecated"), swapped("retired")
    state = run(before, now, uses={ONE: USING}, decided=frozenset())
    assert (state_of(state), runs(state)) == ("deprecated", False)
    assert "version_changed_in_place" in said(state)[1]


def test_nor_below_one_that_an_instance_keeps_back() -> None:
    before, now = both("deprecated", b.world()), swapped("retired", b.world())
    state = run(before, now, decided=frozenset())
    assert (state_of(state), runs(state)) == ("deprecated", False)
    assert state.instances[ONE].artifact.digest.value == DIGEST
    assert any(f"{PROMOTION} is not accepted" in one for one in said(state))
