"""What a merge makes good, and for whom it answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from reconciler.core.names import Revision
from reconciler.core.records import Accepted
from tests.core.authority.chains import (
    CORES,
    GRANT,
    NODE,
    NODE_FILE,
    ONE,
    ONE_FILE,
    STOPPED,
    Repo,
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
)


def rejected(repo: Repo, last: Accepted | None = None, **more: Any) -> tuple[str, str]:
    found = walked(repo, last, **more)
    assert found.rejection is not None
    assert found.changes == ()
    assert found.refused == {}
    return found.rejection.code, found.rejection.message


def branched(changed: Mapping[str, str | None], by: str, **repo: Any) -> tuple[Repo, Revision]:
    """A branch of one commit; the head is where it began."""
    made = known(**repo)
    base = made.head
    side = made.commit(changed, by=by)
    made.head = base
    return made, side


@pytest.mark.parametrize(
    ("author", "merges", "changed", "left"),
    [
        ("nils", "ada", {ONE_FILE: STOPPED}, {}),
        ("nils", "zoe", {ONE_FILE: STOPPED}, {}),
        ("zoe", "nils", {ONE_FILE: STOPPED}, {}),
        ("zoe", "zoe", {ONE_FILE: STOPPED}, {ONE: "change_not_allowed"}),
        ("ada", "zoe", {NODE_FILE: CORES}, {}),
        ("ada", "zoe", {NODE_FILE: None}, {}),
        ("nils", "zoe", {NODE_FILE: CORES}, {NODE: "change_not_allowed"}),
        ("nils", "ada", {NODE_FILE: CORES}, {}),
        ("bot", "zoe", {ONE_FILE: STOPPED}, {}),
        ("bot", "ada", {ONE_FILE: STOPPED}, {}),
        ("bot", "ada", {NODE_FILE: CORES}, {NODE: "needs_human"}),
        ("ada", "bot", {NODE_FILE: CORES}, {}),
    ],
)
def test_a_merge(author: str, merges: str, changed: Any, left: Any) -> None:
    repo, side = branched(changed, author)
    repo.merge(side, by=merges)
    assert dict(refusals(walked(repo))) == left


def test_a_merge_tells_who_made_what_it_passes_on() -> None:
    repo, side = branched({NODE_FILE: CORES}, "ada")
    merged = repo.merge(side, by="zoe")
    change = walked(repo).changes[-1]
    assert (str(change.actor), change.revision) == ("user/ada", merged)


def test_an_evil_merge_answers_for_what_it_adds() -> None:
    repo, side = branched({NODE_FILE: CORES}, "ada")
    repo.merge(side, by="nils", changed={NODE_FILE: yaml(node(cpu_cores=64)), ONE_FILE: STOPPED})
    assert dict(refusals(walked(repo))) == {NODE: "change_not_allowed"}


def test_a_merge_that_takes_an_old_form_back() -> None:
    """Both sides changed it, so that to take one of them is a decision."""
    repo, side = branched({NODE_FILE: CORES}, "ada")
    repo.commit({NODE_FILE: yaml(node(cpu_cores=2))}, by="ada")
    repo.merge(side, by="nils", changed={NODE_FILE: CORES})
    found = walked(repo)
    assert dict(refusals(found)) == {NODE: "change_not_allowed"}
    assert found.refused[NODE].form_json == text(node(cpu_cores=2))


def test_each_commit_of_a_branch_answers_for_its_own() -> None:
    repo = known()
    base = repo.head
    repo.commit({NODE_FILE: CORES}, by="ada")
    side = repo.commit({NODE_FILE: yaml(node(cpu_cores=8, memory_mib=1))}, by="nils")
    repo.merge(side, by="zoe", onto=base)
    found = walked(repo)
    assert dict(refusals(found)) == {NODE: "change_not_allowed"}
    repo, side = branched({ONE_FILE: STOPPED}, "nils")
    side = repo.commit({ONE_FILE: yaml(instance(desired="running"))}, by="ada", onto=[side])
    repo.merge(side, by="zoe", onto=repo.chain(None)[0].facts.revision)
    assert not walked(repo).refused


def test_a_forbidden_change_of_a_machine_is_approved_by_name_only() -> None:
    repo, side = branched({NODE_FILE: CORES}, "bot")
    repo.merge(side, by="ada", message="Merge\n\nApproves: Node/gpu-1")
    found = walked(repo)
    assert not found.refused
    repo, side = branched({NODE_FILE: CORES}, "bot")
    merged = repo.merge(side, by="ada")
    refused = walked(repo).refused[NODE]
    assert refused.actor == f"service_account/{DEPLOYER}"
    assert refused.revision == merged
    assert side[:12] in refused.message


def test_a_machine_outside_its_project() -> None:
    other = "tenants/acme/projects/other"
    path = instance_file("two", other)
    repo, side = branched({path: yaml(instance("two"))}, "bot")
    repo.merge(side, by="ada")
    assert dict(refusals(walked(repo))) == {"AppInstance/acme/other/two": "outside_own_project"}


def test_an_octopus() -> None:
    repo = known()
    base = repo.head
    sides = [
        repo.commit({NODE_FILE: CORES}, by="ada", onto=[base]),
        repo.commit({ONE_FILE: STOPPED}, by="nils", onto=[base]),
        repo.commit({iam("zoe"): GRANT}, by="zoe", onto=[base]),
    ]
    repo.merge(*sides, by="zoe", onto=base)
    found = walked(repo)
    assert dict(refusals(found)) == {"RoleBinding/zoe": "change_not_allowed"}
    assert found.commits == 5


def test_a_branch_that_takes_the_line_in_changes_nothing_of_it() -> None:
    repo, side = branched({ONE_FILE: STOPPED}, "nils")
    main = repo.commit({NODE_FILE: CORES}, by="ada")
    up_to_date = repo.merge(main, by="nils", onto=side)
    repo.merge(up_to_date, by="nils", onto=main)
    assert not walked(repo).refused


def test_pushed_as_the_branch_itself() -> None:
    """The line is what was accepted, whichever parent that is."""
    repo, side = branched({ONE_FILE: STOPPED}, "nils")
    last = accepted(repo, walked(repo))
    main = repo.commit({NODE_FILE: CORES}, by="ada")
    last = accepted(repo, walked(repo, last), last)
    repo.merge(main, by="nils", onto=side)
    found = walked(repo, last)
    assert not found.refused
    assert [str(change.ref) for change in found.changes] == [ONE]


def test_a_grant_on_a_branch_counts_after_the_merge_only() -> None:
    repo = known()
    base = repo.head
    repo.commit({iam("zoe"): GRANT}, by="ada")
    side = repo.commit({ONE_FILE: STOPPED}, by="zoe")
    repo.merge(side, by="zoe", onto=base)
    assert dict(refusals(walked(repo))) == {ONE: "change_not_allowed"}
    repo.commit({ONE_FILE: yaml(instance(desired="running"))}, by="zoe")
    assert not walked(repo).refused


def test_a_good_commit_on_a_branch_does_not_cover_for_the_one_before_it() -> None:
    repo = known()
    base = repo.head
    repo.commit({NODE_FILE: yaml(node(cpu_cores=8))}, by="nils")
    side = repo.commit({NODE_FILE: yaml(node(cpu_cores=8, memory_gib=9))}, by="ada")
    repo.merge(side, by="nils", onto=base)
    assert dict(refusals(walked(repo))) == {NODE: "change_not_allowed"}


def test_merged_in_a_forge() -> None:
    repo, side = branched({ONE_FILE: STOPPED}, "zoe")
    repo.merge(side, by="forge", author="NILS@acme.example")
    found = walked(repo)
    assert not found.refused
    assert (str(found.changes[-1].actor), found.changes[-1].actor.via) == ("user/nils", "forge")
    repo, side = branched({ONE_FILE: STOPPED}, "nils")
    repo.merge(side, by="forge", author="eve@acme.example")
    assert rejected(repo)[0] == "forge_author_unknown"


def test_the_words_of_a_merge_in_a_forge_approve_nothing() -> None:
    """A forge fills them in from what others wrote; so does nobody who signs himself."""
    repo, side = branched({ONE_FILE: STOPPED}, "zoe")
    repo.commit({NODE_FILE: yaml(node(cpu_cores=8))}, by="nils")
    text = f"Merge\n\nA fine change\n\nApproves: {NODE}"
    repo.merge(side, by="forge", author="ada@acme.example", message=text)
    assert set(walked(repo).refused) == {NODE}
    repo.commit({}, by="ada", message=text)
    assert not walked(repo).refused
