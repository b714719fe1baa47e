"""Signed commits move versions and artifacts one step at a time, whoever signs them."""

from __future__ import annotations

import hashlib
import json

import pytest

from reconciler.core.names import Revision
from reconciler.core.records import Accepted
from tests.core.authority.chains import (
    LAB,
    Repo,
    accepted,
    iam,
    known,
    refusals,
    seen,
    walked,
    yaml,
)
from tests.core.authority.trust_builders import binding, manifest

VERSION, VERSION_FILE = "Promotion/hello/1.1.0", "catalog/hello/promotions/1.1.0.yaml"
IMAGE = "Artifact/acme/lab/hello/1.1.0/image"
IMAGE_FILE = f"{LAB}/artifacts/hello/1.1.0/image.yaml"
DIGEST = "sha256:" + "a" * 64


def version(state: str, **spec: object) -> str:
    canary = {"canary": {"percent": 10}} if state == "canary" else {}
    document = manifest("Promotion", "1.1.0", {"state": state, "reason": "x", **canary, **spec})
    return yaml(document)


def image(state: str, **spec: object) -> str:
    place = {"kind": "oci", "repository": "gpuaas/apps/acme/lab/hello", "digest": DIGEST}
    return yaml(manifest("Artifact", "image", {**place, "state": state, **spec}))


def begun(*states: str, file: str = VERSION_FILE) -> tuple[Repo, Accepted]:
    """What is accepted after one commit for each state, the first of them the repo's first."""
    form = version if file == VERSION_FILE else image
    repo = known({file: form(states[0])})
    for state in states[1:]:
        repo.commit({file: form(state)})
    return repo, accepted(repo, walked(repo))


def state_of(repo: Repo, last: Accepted, ref: str = VERSION) -> str:
    form = accepted(repo, walked(repo, last), last).objects.get(ref)
    return form.document_json.partition('"state":"')[2].partition('"')[0] if form else ""


@pytest.mark.parametrize("state", ["draft", "active", "retired"])
def test_the_first_commit_may_begin_anywhere(state: str) -> None:
    repo, last = begun(state)
    assert (state_of(repo, last), [*refusals(walked(repo))]) == (state, [])


def test_each_commit_makes_a_step() -> None:
    repo, last = begun("draft", "staged", "canary", "staged", "canary", "active", "deprecated")
    assert (last.refused, state_of(repo, last)) == ({}, "deprecated")


def test_a_step_too_far_counts_as_not_made() -> None:
    repo, last = begun("staged")
    made = repo.commit({VERSION_FILE: version("active")})
    found = walked(repo, last)
    assert [*refusals(found)] == [(VERSION, "illegal_step")]
    refused = found.refused[VERSION]
    assert (refused.revision, refused.actor) == (made, "user/ada")
    assert refused.message == (
        "Promotion/hello/1.1.0 can't go from staged to active: canary may follow"
    )
    assert state_of(repo, last) == "staged"
    told = [one for one in seen(repo, found, last).problems if one.object == VERSION]
    assert [one.code for one in told] == ["illegal_step"]


def test_a_new_one_that_begins_as_active_is_not_there() -> None:
    repo, last = begun("draft")
    repo.commit({VERSION_FILE.replace("1.1", "1.2"): version("active").replace("1.1", "1.2")})
    assert [*refusals(walked(repo, last))] == [("Promotion/hello/1.2.0", "illegal_step")]
    assert state_of(repo, last, "Promotion/hello/1.2.0") == ""


def test_nobody_can_approve_one() -> None:
    repo, last = begun("staged")
    repo.commit({VERSION_FILE: version("active")})
    repo.commit({"docs/x.yaml": "a: 1"}, message=f"go on\n\nApproves: {VERSION}")
    assert [*refusals(walked(repo, last))] == [(VERSION, "illegal_step")]
    assert state_of(repo, last) == "staged"


def test_nor_do_two_commits_make_one_of_two_halves() -> None:
    """Attempted: by way of a state that there is not."""
    repo, last = begun("staged")
    repo.commit({VERSION_FILE: version("activ")})
    last = accepted(repo, walked(repo, last), last)
    repo.commit({VERSION_FILE: version("active")})
    assert [*refusals(walked(repo, last))] == [(VERSION, "illegal_step")]
    assert state_of(repo, last) == "staged"


def test_or_by_way_of_no_file() -> None:
    repo, last = begun("active")
    repo.commit({VERSION_FILE: None})
    repo.commit({VERSION_FILE: version("draft")})
    assert state_of(repo, last) == "active"


def test_whoever_comes_next_may_make_the_step_that_is_legal() -> None:
    root = {iam("root"): yaml(binding("root", "platform-admin", "", "zoe")[1])}
    repo = known({VERSION_FILE: version("staged"), **root})
    last = accepted(repo, walked(repo))
    repo.commit({VERSION_FILE: version("active")})
    assert [*refusals(walked(repo, last))] == [(VERSION, "illegal_step")]
    repo.commit({VERSION_FILE: version("canary")}, by="zoe")
    assert [*refusals(walked(repo, last))] == []
    assert state_of(repo, last) == "canary"


def test_undone_it_is_as_if_it_had_not_been() -> None:
    repo, last = begun("staged")
    repo.commit({VERSION_FILE: version("active")})
    repo.commit({VERSION_FILE: version("staged")})
    assert [*refusals(walked(repo, last))] == []


def test_walked_in_one_go_or_in_several() -> None:
    repo, last = begun("draft")
    for state in ("canary", "staged", "active", "canary"):
        repo.commit({VERSION_FILE: version(state)})
    at_once = accepted(repo, walked(repo, last), last)
    for step in repo.chain(last.revision):
        head = step.facts.revision
        last = accepted(repo, walked(repo, last, head=head), last)
    assert last.refused == at_once.refused
    assert last.objects[VERSION].document_json == at_once.objects[VERSION].document_json


# --- merges --------------------------------------------------------------------------------------


def branched(*states: str) -> tuple[Repo, Accepted, Revision]:
    """A branch with a commit for each state; the head is beside it."""
    repo, last = begun("staged")
    base = repo.head
    for state in states:
        repo.commit({VERSION_FILE: version(state)})
    tip = repo.head
    repo.commit({"docs/x.yaml": "a: 1"}, onto=[base])
    return repo, last, tip


def test_a_merge_brings_in_the_steps_of_its_branch() -> None:
    repo, last, tip = branched("canary", "active")
    repo.merge(tip)
    assert [*refusals(walked(repo, last))] == []
    assert state_of(repo, last) == "active"


def test_and_no_step_that_its_branch_skipped() -> None:
    repo, last, tip = branched("active", "deprecated")
    repo.merge(tip)
    assert [code for _, code in refusals(walked(repo, last))] == ["illegal_step"]
    assert state_of(repo, last) == "staged"


def test_nor_one_that_the_merge_itself_adds() -> None:
    repo, last, tip = branched("canary")
    repo.merge(tip, changed={VERSION_FILE: version("deprecated")})
    assert [code for _, code in refusals(walked(repo, last))] == ["illegal_step"]
    assert state_of(repo, last) == "canary"


def test_two_branches_from_one_state_make_no_way_between_theirs() -> None:
    repo, last = begun("staged", "canary")
    base = repo.head
    back = repo.commit({VERSION_FILE: version("staged")})
    repo.commit({VERSION_FILE: version("active")}, onto=[base])
    repo.merge(back, changed={VERSION_FILE: version("staged")})
    assert [code for _, code in refusals(walked(repo, last))] == ["illegal_step"]
    assert state_of(repo, last) == "active"


# --- artifacts -----------------------------------------------------------------------------------


def test_an_artifact_goes_its_way() -> None:
    repo, last = begun("published", "promoted", "deprecated", "retired", file=IMAGE_FILE)
    assert (last.refused, state_of(repo, last, IMAGE)) == ({}, "retired")


@pytest.mark.parametrize("after", [image("promoted"), image("published"), None])
def test_revoked_is_the_end(after: str | None) -> None:
    """Attempted: to take a revocation back, in the file or without it."""
    repo, last = begun("revoked", file=IMAGE_FILE)
    repo.commit({IMAGE_FILE: after})
    assert [*refusals(walked(repo, last))] == [(IMAGE, "illegal_step")]
    assert state_of(repo, last, IMAGE) == "revoked"


def test_a_promotion_is_of_the_digest_that_was_agreed_to() -> None:
    repo, last = begun("published", "promoted", file=IMAGE_FILE)
    repo.commit({IMAGE_FILE: image("promoted", digest="sha256:" + "b" * 64)})
    found = walked(repo, last).refused[IMAGE]
    assert (found.code, found.message) == (
        "illegal_step",
        f"{IMAGE} has another digest, which can't change any more: it is promoted",
    )


def test_who_lacks_the_right_hears_of_that() -> None:
    repo = known({IMAGE_FILE: image("promoted")})
    last = accepted(repo, walked(repo))
    repo.commit({IMAGE_FILE: image("retired")}, by="bot")
    assert [*refusals(walked(repo, last))] == [(IMAGE, "needs_human")]


# --- what a version runs -------------------------------------------------------------------------

APP_VERSION, APP_VERSION_FILE = "AppVersion/hello/1.1.0", "catalog/hello/versions/1.1.0.yaml"
PUBLISHER = binding("pub", "custom", "", "zoe", permissions=["apps.version.publish"])[1]
IN_PLACE = [(APP_VERSION, "version_changed_in_place")]


def runs(word: str, **spec: object) -> str:
    digest = hashlib.sha256(word.encode()).hexdigest()
    ref = f"gpuaas/apps/acme/lab/hello@sha256:{digest}"
    known = {
        "slug": "hello",
        "display_name": "Hello",
        "version": "1.1.0",
        "artifact_kind": "oci",
        "artifact_ref": ref,
        "runtime_profile": {"kind": "launchable_oci"},
        "launch_parameters": {},
    }
    return yaml(manifest("AppVersion", "1.1.0", {**known, **spec}))


def offered(state: str) -> tuple[Repo, Accepted]:
    files = {APP_VERSION_FILE: runs("good"), VERSION_FILE: version(state)}
    repo = known({**files, iam("pub"): yaml(PUBLISHER)})
    return repo, accepted(repo, walked(repo))


def what_runs(repo: Repo, last: Accepted) -> str:
    stored = accepted(repo, walked(repo, last), last).objects[APP_VERSION].document_json
    found = [one for one in ("good", "evil") if json.loads(runs(one)) == json.loads(stored)]
    return found[0] if found else stored


@pytest.mark.parametrize("state", ["canary", "active", "deprecated", "retired"])
@pytest.mark.parametrize("by", ["zoe", "ada"])
def test_nobody_changes_what_an_offered_version_runs(state: str, by: str) -> None:
    """Attempted: with the right to publish, to have instances run what nobody promoted."""
    repo, last = offered(state)
    repo.commit({APP_VERSION_FILE: runs("evil")}, by=by)
    found = walked(repo, last)
    assert [*refusals(found)] == IN_PLACE
    assert found.refused[APP_VERSION].message == (
        f"artifact_ref of {APP_VERSION} changes, which is {state} already"
    )
    assert what_runs(repo, last) == "good"
    repo.commit({APP_VERSION_FILE: runs("good")}, by=by)
    assert [*refusals(walked(repo, last))] == []


@pytest.mark.parametrize("state", ["draft", "staged"])
def test_before_it_is_offered_it_may_change_and_go_back(state: str) -> None:
    repo, last = offered(state)
    for word in ("evil", "good", "evil"):
        repo.commit({APP_VERSION_FILE: runs(word)}, by="zoe")
        assert [*refusals(walked(repo, last))] == []
        assert what_runs(repo, last) == word


def test_words_about_it_may_change() -> None:
    repo, last = offered("active")
    repo.commit({APP_VERSION_FILE: runs("good", release_notes="fewer errors")}, by="zoe")
    assert [*refusals(walked(repo, last))] == []


def test_the_state_before_the_commit_decides() -> None:
    repo, last = offered("canary")
    repo.commit({APP_VERSION_FILE: runs("evil"), VERSION_FILE: version("staged")})
    assert [*refusals(walked(repo, last))] == IN_PLACE
    repo, last = offered("staged")
    repo.commit({APP_VERSION_FILE: runs("evil"), VERSION_FILE: version("canary")})
    assert [*refusals(walked(repo, last))] == []


def test_after_a_step_back_it_may() -> None:
    repo, last = offered("canary")
    repo.commit({VERSION_FILE: version("staged")})
    repo.commit({APP_VERSION_FILE: runs("evil")}, by="zoe")
    repo.commit({VERSION_FILE: version("canary")})
    assert [*refusals(walked(repo, last))] == []
    assert what_runs(repo, last) == "evil"


def test_it_neither_goes_nor_comes_back_as_something_else() -> None:
    repo, last = offered("active")
    repo.commit({APP_VERSION_FILE: None}, by="zoe")
    assert [*refusals(walked(repo, last))] == IN_PLACE
    repo.commit({APP_VERSION_FILE: runs("evil")}, by="zoe")
    assert [*refusals(walked(repo, last))] == IN_PLACE
    assert what_runs(repo, last) == "good"
    repo, last = offered("retired")
    repo.commit({APP_VERSION_FILE: None}, by="zoe")
    assert [*refusals(walked(repo, last))] == []
    repo.commit({APP_VERSION_FILE: runs("evil")}, by="zoe")
    assert [*refusals(walked(repo, last))] == IN_PLACE


def test_nor_does_an_approval_swap_it() -> None:
    repo, last = offered("active")
    repo.commit({APP_VERSION_FILE: runs("evil")}, by="zoe")
    repo.commit({"docs/x.yaml": "a: 1"}, message=f"go on\n\nApproves: {APP_VERSION}")
    assert [*refusals(walked(repo, last))] == IN_PLACE
    assert what_runs(repo, last) == "good"


@pytest.mark.parametrize("by", ["zoe", "ada"])
def test_a_merge_makes_nothing_of_it_good(by: str) -> None:
    repo, last = offered("active")
    base = repo.head
    tip = repo.commit({APP_VERSION_FILE: runs("evil")}, by="zoe")
    repo.commit({"docs/x.yaml": "a: 1"}, onto=[base])
    repo.merge(tip, by=by)
    assert [*refusals(walked(repo, last))] == IN_PLACE
    assert what_runs(repo, last) == "good"


def test_a_branch_that_was_begun_while_it_was_staged_comes_too_late() -> None:
    repo, last = offered("staged")
    base = repo.head
    tip = repo.commit({APP_VERSION_FILE: runs("evil")}, by="zoe")
    repo.commit({VERSION_FILE: version("canary")}, onto=[base])
    repo.merge(tip)
    assert [*refusals(walked(repo, last))] == IN_PLACE
    assert what_runs(repo, last) == "good"


def test_a_branch_that_steps_back_first_may() -> None:
    repo, last = offered("canary")
    base = repo.head
    repo.commit({VERSION_FILE: version("staged")})
    repo.commit({APP_VERSION_FILE: runs("evil")}, by="zoe")
    tip = repo.commit({VERSION_FILE: version("canary", reason="mended")})
    repo.commit({"docs/x.yaml": "a: 1"}, onto=[base])
    repo.merge(tip)
    assert [*refusals(walked(repo, last))] == []
    assert what_runs(repo, last) == "evil"
