"""Files that can't be read, objects that stand twice, and walks in one go or in several."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reconciler.core.authority.facts import Walked
from reconciler.core.authority.walk import Start, openpgp_keys
from reconciler.core.records import Accepted
from tests.core.authority.chains import (
    CORES,
    GRANT,
    LIMITS,
    NODE,
    NODE_FILE,
    ONE,
    ONE_FILE,
    PEOPLE,
    STOPPED,
    accepted,
    iam,
    instance,
    instance_file,
    known,
    node,
    refusals,
    text,
    walked,
    yaml,
)
from tests.core.authority.trust_builders import (
    DEPLOYER,
    Document,
    binding,
    identity,
    manifest,
    ssh,
    stand_in,
)

# --- files that can't be read ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "broken",
    ["a: [", yaml(instance(), instance()), "a: &x 1", "\x00"],
)
@pytest.mark.parametrize("split", [False, True])
def test_an_unread_file_keeps_what_it_held(broken: str, split: bool) -> None:
    repo = known()
    made = repo.commit({ONE_FILE: broken}, by="nils")
    found = walked(repo)
    assert dict(refusals(found)) == {ONE_FILE: "unread_change"}
    assert found.refused[ONE_FILE].revision == made
    last = accepted(repo, found) if split else None
    repo.commit({ONE_FILE: STOPPED}, by="zoe")
    found = walked(repo, last)
    assert dict(refusals(found)) == {ONE: "change_not_allowed"}
    assert found.refused[ONE].form_json == text(instance())
    repo.commit({ONE_FILE: yaml(instance())}, by="zoe")
    assert not walked(repo, last).refused


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize(("by", "left"), [("nils", {}), ("zoe", {ONE: "change_not_allowed"})])
def test_what_an_unread_file_held_is_deleted_with_it(by: str, left: Any, split: bool) -> None:
    repo = known()
    repo.commit({ONE_FILE: "a: ["}, by="zoe")
    last = accepted(repo, walked(repo)) if split else None
    repo.commit({ONE_FILE: None}, by=by)
    assert dict(refusals(walked(repo, last))) == left


@pytest.mark.parametrize("broken", ["nils: [", None])
def test_what_may_have_moved_into_an_unread_file_is_not_taken_for_deleted(broken: Any) -> None:
    repo = known()
    broken = broken or PEOPLE[iam("people")] + "\n---\n- a list"
    repo.commit({iam("people"): None, iam("humans"): broken}, by="ada")
    found = walked(repo)
    assert found.refused[iam("humans")].code == "unread_change"
    assert "may be in platform/iam/humans.yaml" in found.refused["Identity/nils"].message
    repo.commit({ONE_FILE: STOPPED}, by="nils")
    last = accepted(repo, walked(repo))
    repo.commit({iam("humans"): PEOPLE[iam("people")]}, by="zoe")
    for found in (walked(repo), walked(repo, last)):
        assert not found.refused


@pytest.mark.parametrize(
    "path", [instance_file("other"), iam("x")], ids=["of another name", "of another kind"]
)
def test_a_file_that_does_not_say_what_it_is_is_not_read(path: str) -> None:
    repo = known()
    repo.commit({path: yaml(instance())}, by="ada")
    found = walked(repo)
    assert dict(refusals(found)) == {path: "unread_change"}
    assert "does not say what it is" in found.refused[path].message


def test_trust_in_an_unread_file_counts_on() -> None:
    repo = known()
    repo.commit({iam("people"): "a: ["}, by="zoe")
    last = accepted(repo, walked(repo))
    repo.commit({ONE_FILE: STOPPED}, by="nils")
    for found in (walked(repo), walked(repo, last)):
        assert dict(refusals(found)) == {iam("people"): "unread_change"}


def test_files_that_hold_no_manifests_are_not_looked_at() -> None:
    repo = known()
    repo.commit({".ci/pipeline.yml": "a: [", "platform/iam/x/y.yaml": "a: ["}, by="zoe")
    assert not walked(repo).refused


# --- one object in two files ----------------------------------------------------------------------

EXTRA = "platform/nodes/extra.yaml"


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("extra", [CORES, yaml(node())])
def test_a_second_document_of_an_object_counts_for_nothing(extra: str, split: bool) -> None:
    repo = known()
    repo.commit({EXTRA: extra}, by="zoe")
    found = walked(repo)
    assert dict(refusals(found)) == {NODE: "unread_change"}
    assert found.refused[NODE].form_json == text(node())
    assert f"{NODE} stands in {EXTRA} and in {NODE_FILE}" in found.refused[NODE].message
    last = accepted(repo, found) if split else None
    repo.commit({NODE_FILE: yaml(node(cpu_cores=2))}, by="ada")
    found = walked(repo, last)
    assert found.refused[NODE].form_json == text(node(cpu_cores=2))
    repo.commit({EXTRA: None}, by="zoe")
    assert not walked(repo, last).refused


@pytest.mark.parametrize("split", [False, True])
def test_of_two_documents_the_one_that_is_left_is_approved_by_name(split: bool) -> None:
    repo = known()
    repo.commit({EXTRA: CORES}, by="ada")
    last = accepted(repo, walked(repo)) if split else None
    repo.commit({NODE_FILE: None}, by="ada")
    found = walked(repo, last)
    assert dict(refusals(found)) == {NODE: "change_not_allowed"}
    assert found.refused[NODE].form_json == text(node())
    assert f"Approves: {NODE}" in found.refused[NODE].hint
    repo.commit({}, by="ada", message=f"x\n\nApproves: {NODE}")
    assert not walked(repo, last).refused


@pytest.mark.parametrize("split", [False, True])
def test_cleaning_up_a_second_document_takes_nobody_s_trust(split: bool) -> None:
    repo = known()
    repo.commit({iam("extra"): yaml(identity("ada", emails=["x@acme.example"])[1])}, by="zoe")
    last = accepted(repo, walked(repo)) if split else None
    repo.commit({iam("extra"): None}, by="ada")
    repo.commit({NODE_FILE: CORES}, by="ada")
    assert not walked(repo, last).refused


@pytest.mark.parametrize("split", [False, True])
def test_moved_in_two_commits(split: bool) -> None:
    repo = known()
    repo.commit({iam("all"): PEOPLE[iam("people")]}, by="zoe")
    last = accepted(repo, walked(repo)) if split else None
    repo.commit({iam("people"): None}, by="zoe")
    repo.commit({NODE_FILE: CORES}, by="ada")
    assert not walked(repo, last).refused


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("cleans", ["ada", "nils"])
def test_a_second_document_launders_nothing(cleans: str, split: bool) -> None:
    repo = known()
    repo.commit({NODE_FILE: CORES, "platform/nodes/extra.yaml": yaml(node())}, by="nils")
    last = accepted(repo, walked(repo)) if split else None
    repo.commit({"platform/nodes/extra.yaml": None}, by=cleans)
    found = walked(repo, last)
    assert dict(refusals(found)) == {NODE: "change_not_allowed"}
    assert found.refused[NODE].form_json == text(node())


# --- keys -----------------------------------------------------------------------------------------


def test_openpgp_keys_of_before_and_on_the_way() -> None:
    def armored(body: str) -> str:
        block = "PGP PUBLIC KEY BLOCK-----"
        return f"-----BEGIN {block}\n\n{body}\n-----END {block}\n"

    def pgp(name: str, **more: Any) -> Document:
        key = {"id": name, "type": "openpgp", "public_key": armored(name), "fingerprint": "A" * 40}
        return identity(name, keys=[{**key, **more}, ssh(f"{name}-ssh")])[1]

    repo = known({iam("zero"): yaml(pgp("zero"))})
    last = accepted(repo, walked(repo))
    base = repo.head
    repo.commit({iam("one"): yaml(pgp("one")), "docs/x.yaml": yaml(pgp("no"))})
    repo.commit({iam("bad"): yaml(pgp("two", public_key="-----"), manifest("Identity", "x", {}))})
    side = repo.commit({iam("side"): yaml(pgp("side"))}, onto=[base])
    repo.merge(side, onto=base)
    start = Start(last.objects, last.refused, (), 0)
    steps = repo.chain(last.revision, repo.head)
    assert openpgp_keys(start, steps, LIMITS) == (armored("side"), armored("zero"))
    everything = repo.chain(None, base) + repo.chain(base, side)
    assert openpgp_keys(Start({}, {}, (), 0), everything, LIMITS) == (
        armored("side"),
        armored("zero"),
    )


# --- in one go or in several ----------------------------------------------------------------------

PATHS = (NODE_FILE, ONE_FILE, EXTRA, iam("people"), iam("roles"), iam("more"))
FORMS: Mapping[str, tuple[str | None, ...]] = {
    NODE_FILE: (None, yaml(node()), CORES, yaml(node(), node("gpu-2")), "a: ["),
    ONE_FILE: (None, yaml(instance()), STOPPED, "a: ["),
    EXTRA: (None, yaml(node()), CORES, yaml(node("gpu-2", cpu_cores=8))),
    iam("people"): (
        PEOPLE[iam("people")],
        yaml(*(identity(name)[1] for name in ("ada", "nils", "zoe")), stand_in("bot", DEPLOYER)[1]),
        "a: [",
    ),
    iam("roles"): (
        PEOPLE[iam("roles")],
        yaml(binding("admins", "platform-admin", "", "ada", "zoe")[1]),
        yaml(binding("lab", "project-admin", "acme/lab", "zoe")[1]),
    ),
    iam("more"): (
        None,
        GRANT,
        yaml(binding("lab", "project-admin", "acme/lab", "zoe", "nils")[1]),
    ),
}
MESSAGES = ("a change", f"x\n\nApproves: {NODE}\nApproves: {ONE}\nApproves: RoleBinding/zoe")
COMMIT = st.tuples(
    st.sampled_from(("ada", "nils", "zoe", "bot")),
    st.sampled_from(MESSAGES),
    st.lists(
        st.sampled_from(PATHS).flatmap(
            lambda path: st.tuples(st.just(path), st.sampled_from(FORMS[path]))
        ),
        max_size=2,
    ),
)


def forms(given: Accepted) -> Mapping[str, Any]:
    return {ref: json.loads(one.document_json) for ref, one in given.objects.items()}


def standing(found: Walked) -> Mapping[str, tuple[str, str | None, str | None]]:
    return {
        subject: (one.code, one.form_json, one.wanted_json)
        for subject, one in found.refused.items()
    }


@settings(max_examples=100)
@given(st.lists(COMMIT, min_size=2, max_size=8), st.data())
def test_walked_in_one_go_or_in_several(commits: Any, data: st.DataObject) -> None:
    repo = known()
    for by, message, changed in commits:
        repo.commit(dict(changed), by=by, message=message)
    whole = walked(repo)
    last = Accepted()
    line = [step.facts.revision for step in repo.chain(None)]
    stops = data.draw(st.lists(st.sampled_from(line), unique=True)) if line else []
    for stop in [one for one in line if one in stops and one != line[-1]]:
        part = walked(repo, last, head=stop)
        assert part.rejection is None
        last = replace(accepted(repo, part, last), at_ms=part.at_ms)
    rest = walked(repo, last)
    assert standing(rest) == standing(whole)
    if not any(one.code == "unread_change" for one in whole.refused.values()):
        assert forms(accepted(repo, rest, last)) == forms(accepted(repo, whole))


def test_what_stood_twice_outlives_the_one_that_can_be_read() -> None:
    """Attempted: to break its file with a copy beside it, and to take the copy away later."""
    repo = known()
    last = accepted(repo, walked(repo))
    before = forms(last)
    for files in (
        {NODE_FILE: "a: [", "platform/nodes/extra.yaml": yaml(node())},
        {"platform/nodes/extra.yaml": None},
    ):
        repo.commit(files, by="zoe")
        last = accepted(repo, walked(repo, last), last)
        assert forms(last) == before


@settings(max_examples=100)
@given(st.lists(st.tuples(COMMIT, st.booleans()), min_size=1, max_size=8))
def test_nobody_changes_what_counts_who_may_not(commits: Any) -> None:
    """zoe may do nothing, at whichever of her commits we look."""
    repo = known()
    last = accepted(repo, walked(repo))
    before = forms(last)
    for (_, message, changed), looked_at in commits:
        repo.commit(dict(changed), by="zoe", message=message)
        if looked_at:
            last = accepted(repo, walked(repo, last), last)
            assert forms(last) == before


def test_a_large_first_commit() -> None:
    """100,000 objects take seconds; here a part of them, and that all of them count."""
    files = {instance_file(f"i{number}"): yaml(instance(f"i{number}")) for number in range(2000)}
    found = walked(known(files))
    assert len(found.changes) == 2010
    assert not found.refused
