"""Attacks by merges: who merges answers for what he adds, and passes on what others might do."""

from __future__ import annotations

import pytest

from tests.e2e.authority.red_team import (
    ADMIN,
    DEVELOPER,
    ENTITLEMENT,
    ENTITLEMENT_FILE,
    FORGE,
    INSTANCE,
    LAB_INSTANCE,
    LAB_ONE,
    NO_NODE,
    NODE,
    NODE_FILE,
    ROLES,
    RedTeam,
    by_forge,
    more_cores,
    more_memory,
    said,
    with_subject,
)

DORA, ADA = ("Dora", "dora@acme.example"), ("Ada", "ada@acme.example")


def on_a_branch(team: RedTeam, who: str, files: dict[str, str], name: str = "topic") -> str:
    """A commit on a branch made from main; back on main after it."""
    team.repo.git("checkout", "--quiet", "-B", name)
    made = team.commit(who, files, f"on {name}")
    team.repo.git("checkout", "--quiet", "main")
    return made


def test_an_evil_merge(team: RedTeam) -> None:
    """The merge commit itself changes what neither side has, where no review looks."""
    on_a_branch(team, DEVELOPER, more_memory(team))
    team.repo.git("merge", "--quiet", "--no-ff", "--no-commit", "topic")
    made = team.commit(DEVELOPER, {ROLES: with_subject(team.text(ROLES), DEVELOPER)}, "Merge topic")
    assert len(team.repo.git("rev-list", "--parents", "-1", "HEAD").split()) == 3
    team.push()
    subject = "RoleBinding/admins"
    message = f"user/dora may not change {subject}: platform.iam.edit is missing on the platform"
    team.refused(made, subject, "change_not_allowed", message)
    assert team.made_by(INSTANCE) == "user/dora"


def test_a_merge_that_drops_what_the_admin_did(team: RedTeam) -> None:
    """`-s ours` from an older branch takes back what main has: a change like any other."""
    team.repo.git("checkout", "--quiet", "-B", "topic")
    team.commit(DEVELOPER, more_memory(team))
    team.repo.git("checkout", "--quiet", "main")
    team.send(ADMIN, more_cores(team), "More cores")
    team.note()
    team.repo.git("checkout", "--quiet", "topic")
    made = team.merge(DEVELOPER, "main", "--strategy", "ours")
    team.push()
    team.refused(made, NODE, "change_not_allowed", NO_NODE)
    team.unchanged(NODE)


def test_an_unsigned_commit_below_a_signed_merge(team: RedTeam) -> None:
    """The admin's signature on the merge is none on what it brings in."""
    side = on_a_branch(team, "", more_memory(team))
    team.merge(ADMIN, "topic")
    team.push()
    team.rejected("commit_unsigned", said(side, "is not signed", "on topic"))


def test_an_unsigned_commit_below_a_merge_in_the_forge(team: RedTeam) -> None:
    side = on_a_branch(team, "eve", more_memory(team))
    team.merge_in_forge(ADA, "topic")
    team.push()
    what = f"is signed with {team.keys['eve'].fingerprint}, a key that no Identity has"
    team.rejected("signer_unknown", said(side, what, "on topic"))


def test_a_merge_in_the_forge_by_who_may_not(team: RedTeam) -> None:
    on_a_branch(team, DEVELOPER, more_cores(team))
    made = team.merge_in_forge(DORA, "topic")
    team.push()
    team.refused(made, NODE, "change_not_allowed", NO_NODE)
    (row,) = [e for e in team.audit() if e.object == NODE]
    assert (row.actor, row.via, row.key_id) == ("user/dora", FORGE, "forge-1")


def test_a_description_of_a_branch_that_approves_something_else(team: RedTeam) -> None:
    """The forge makes the merge's message of what the developer wrote; Ada pressed a button."""
    forbidden = team.send(DEVELOPER, more_cores(team))
    on_a_branch(team, DEVELOPER, more_memory(team))
    text = f"Merge topic\n\nPlease merge.\n\nApproves: {NODE}"
    made = team.merge_in_forge(ADA, "topic", "--message", text)
    team.push()
    team.refused(forbidden, NODE, "change_not_allowed", NO_NODE, head=made)


def test_a_squash_merge_by_an_address_that_nobody_has(team: RedTeam) -> None:
    """As forges do it for who hides his address: the author is no one that is known."""
    on_a_branch(team, DEVELOPER, more_memory(team))
    team.repo.git("merge", "--quiet", "--squash", "topic")
    author = "1234+dora@users.noreply.forge.example"
    made = team.commit(FORGE, {}, "edit (#7)", **by_forge(("Dora", author)))
    team.push()
    what = f"was made in forge by <{author}>, an address that no Identity has"
    found = team.rejected("forge_author_unknown", said(made, what, "edit (#7)"))
    assert found["hint"] == (
        "add it to the emails of an Identity first, in a commit before this one"
    )


def test_a_squash_merge_counts_as_who_the_forge_names(team: RedTeam) -> None:
    """What was signed on the branch is not there any more, and nobody else's rights with it."""
    on_a_branch(team, ADMIN, more_cores(team))
    team.repo.git("merge", "--quiet", "--squash", "topic")
    made = team.commit(FORGE, {}, "edit (#8)", **by_forge(DORA))
    team.push()
    team.refused(made, NODE, "change_not_allowed", NO_NODE)


def test_a_branch_in_which_a_forbidden_change_is_built_on_by_who_may(team: RedTeam) -> None:
    """Each commit of a branch answers for its own: a good last one does not cover for the first."""
    team.repo.git("checkout", "--quiet", "-B", "topic")
    team.commit(DEVELOPER, more_cores(team), "forbidden")
    team.commit(ADMIN, team.edited(NODE_FILE, "pool: main", "pool: other"), "fine by itself")
    team.repo.git("checkout", "--quiet", "main")
    made = team.merge(DEVELOPER, "topic")
    team.push()
    team.refused(made, NODE, "change_not_allowed", NO_NODE)


def test_rights_that_a_branch_gives_are_not_there_on_the_branch(team: RedTeam) -> None:
    team.repo.git("checkout", "--quiet", "-B", "topic")
    team.commit(ADMIN, {ROLES: with_subject(team.text(ROLES), DEVELOPER)}, "grant")
    team.commit(DEVELOPER, more_cores(team), "use")
    team.repo.git("checkout", "--quiet", "main")
    made = team.merge(DEVELOPER, "topic")
    team.push()
    team.refused(made, NODE, "change_not_allowed", NO_NODE)
    assert team.made_by("RoleBinding/admins") == "user/ada"


# --- as it is meant ------------------------------------------------------------------------------


@pytest.mark.parametrize("merges", [ADMIN, DEVELOPER])
def test_a_signed_branch_that_is_merged(team: RedTeam, merges: str) -> None:
    """What the admin did on a branch is hers, whoever merges it."""
    on_a_branch(team, ADMIN, more_cores(team) | more_memory(team))
    made = team.merge(merges, "topic")
    team.push()
    team.wait_accepted(made)
    assert not team.accepted().refused
    by = {NODE: "user/ada", INSTANCE: f"user/{merges}"}
    assert {name: team.made_by(name) for name in by} == by


def test_a_merge_in_the_forge_by_who_may(team: RedTeam) -> None:
    on_a_branch(team, DEVELOPER, more_memory(team) | more_cores(team))
    made = team.merge_in_forge(ADA, "topic")
    team.push()
    team.wait_accepted(made)
    assert not team.accepted().refused
    rows = [e for e in team.audit() if (e.revision, e.object) == (made, NODE)]
    assert [(e.actor, e.via, e.key_id, e.result) for e in rows] == [
        ("user/ada", FORGE, "forge-1", "done")
    ]


def test_an_octopus_of_three_people(team: RedTeam) -> None:
    """Each branch as its own people may; the merge answers for nothing of it."""
    lab = team.edited(LAB_INSTANCE, "memory_gib: 4", "memory_gib: 3")
    off = team.edited(ENTITLEMENT_FILE, "enabled: true", "enabled: false")
    on_a_branch(team, ADMIN, more_cores(team), "one")
    on_a_branch(team, DEVELOPER, lab, "two")
    on_a_branch(team, "bot", off, "three")
    made = team.recorded(
        DEVELOPER, "merge", "--quiet", "--no-ff", "-m", "all", "one", "two", "three"
    )
    team.push()
    team.wait_accepted(made)
    found = {name: one.code for name, one in team.accepted().refused.items()}
    assert found == {LAB_ONE: "change_not_allowed", ENTITLEMENT: "needs_human"}
    assert team.made_by(NODE) == "user/ada"
    team.unchanged(LAB_ONE, ENTITLEMENT)
