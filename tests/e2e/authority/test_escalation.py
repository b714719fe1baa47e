"""Attacks on who may do what: nobody gets more than somebody who has it gave him."""

from __future__ import annotations

import os

import pytest

from reconciler.devkit.signing import SigningKey
from tests.cli.signed_state import binding, dumped, identity
from tests.e2e.authority.red_team import (
    ADMIN,
    DEVELOPER,
    ENTITLEMENT,
    ENTITLEMENT_FILE,
    ENVIRONMENT_FILE,
    FORGE,
    INSTANCE,
    INSTANCE_FILE,
    LAB_INSTANCE,
    MACHINES,
    NODE,
    NODE_FILE,
    PEOPLE,
    ROLES,
    RedTeam,
    by_forge,
    changed_identity,
    more_memory,
    said,
    with_subject,
)

IAM = "platform.iam.edit is missing on the platform"
UNREAD = "can't be read, so that nobody can tell what it changes"


def may_not(what: str, missing: str = IAM, who: str = "user/dora", verb: str = "change") -> str:
    return f"{who} may not {verb} {what}: {missing}"


# --- giving oneself something --------------------------------------------------------------------


def test_the_developer_adds_himself_to_the_admins(team: RedTeam) -> None:
    made = team.commit(DEVELOPER, {ROLES: with_subject(team.text(ROLES), DEVELOPER)})
    team.push()
    subject = "RoleBinding/admins"
    team.refused(made, subject, "change_not_allowed", may_not(subject))
    team.unchanged()


def test_the_developer_makes_a_binding_of_his_own_and_uses_it_in_the_next(team: RedTeam) -> None:
    mine = dumped(binding("mine", DEVELOPER, "platform-admin", {"platform": True}))
    grant = team.commit(DEVELOPER, {"platform/iam/mine.yaml": mine}, "grant")
    use = team.commit(DEVELOPER, team.edited(NODE_FILE, "cpu_cores: 32", "cpu_cores: 64"), "use")
    team.push()
    missing = "fleet.node.edit is missing on the platform"
    team.refused(use, NODE, "change_not_allowed", may_not(NODE, missing))
    subject = "RoleBinding/mine"
    team.refused(grant, subject, "change_not_allowed", may_not(subject), head=use)
    team.unchanged()


def test_granted_and_used_in_one_commit_by_who_may_not_have_it_yet(team: RedTeam) -> None:
    """Also a grant that is good counts from the next commit on only."""
    team.person("lena", role="project-admin")
    files = {
        "platform/iam/x.yaml": dumped(binding("x", "lena", "platform-admin", {"platform": True}))
    }
    files |= team.edited(NODE_FILE, "cpu_cores: 32", "cpu_cores: 64")
    team.note()
    made = team.commit("lena", files)
    team.push()
    missing = "fleet.node.edit is missing on the platform"
    team.refused(made, NODE, "change_not_allowed", may_not(NODE, missing, "user/lena"))
    team.unchanged()


def test_the_developer_adds_his_key_to_the_admin(team: RedTeam) -> None:
    keys = [
        team.keys[ADMIN].identity_key("ada-1"),
        {**team.keys["eve"].identity_key("ada-2")},
    ]
    made = team.commit(DEVELOPER, {PEOPLE: changed_identity(team.text(PEOPLE), ADMIN, keys=keys)})
    team.push()
    subject = "Identity/ada"
    team.refused(made, subject, "change_not_allowed", may_not(subject))
    team.note()
    used = team.commit("eve", more_memory(team))
    team.push()
    what = f"is signed with {team.keys['eve'].fingerprint}, a key that no Identity has"
    team.rejected("signer_unknown", said(used, what))


def test_the_developer_makes_a_second_identity_with_the_admin_s_key(team: RedTeam) -> None:
    """Were it to count, the admin's key would be nobody's any more."""
    twin = dumped(identity("twin", team.keys[ADMIN]))
    made = team.commit(DEVELOPER, {"platform/iam/twin.yaml": twin})
    team.push()
    subject = "Identity/twin"
    team.refused(made, subject, "change_not_allowed", may_not(subject))
    good = team.send(ADMIN, more_memory(team))
    assert ("user/ada", INSTANCE) in team.done_by(good)


def test_the_developer_gives_the_admin_s_identity_his_address(team: RedTeam) -> None:
    """So that a forge, which vouches for addresses, would speak for the admin."""
    emails = ["ada@acme.example", "evil@acme.example"]
    text = changed_identity(team.text(PEOPLE), ADMIN, emails=emails)
    made = team.commit(DEVELOPER, {PEOPLE: text})
    team.push()
    subject = "Identity/ada"
    team.refused(made, subject, "change_not_allowed", may_not(subject))
    team.note()
    used = team.commit(FORGE, more_memory(team), **by_forge(("Ada", "evil@acme.example")))
    team.push()
    what = "was made in forge by <evil@acme.example>, an address that no Identity has"
    team.rejected("forge_author_unknown", said(used, what))


def test_the_developer_takes_the_admin_s_address(team: RedTeam) -> None:
    emails = ["dora@acme.example", "ada@acme.example"]
    text = changed_identity(team.text(PEOPLE), DEVELOPER, emails=emails)
    made = team.commit(DEVELOPER, {PEOPLE: text})
    team.push()
    subject = "Identity/dora"
    team.refused(made, subject, "change_not_allowed", may_not(subject))


def test_the_developer_makes_himself_a_forge(team: RedTeam) -> None:
    mine = dumped(identity("mine", team.keys["eve"], type="forge", vouches_for_author=True))
    made = team.commit(DEVELOPER, {"platform/iam/mine.yaml": mine})
    team.push()
    subject = "Identity/mine"
    team.refused(made, subject, "change_not_allowed", may_not(subject))


def test_who_may_edit_identities_gives_no_more_than_he_has(team: RedTeam) -> None:
    """Somebody who only looks after identities can't make himself an admin, by any way."""
    key = team.keys["ines"] = SigningKey.ssh(team.root / "keys", f"ines-{os.urandom(4).hex()}")
    may = binding("ines-may", "ines", "custom", {"platform": True})
    may["spec"]["permissions"] = ["platform.iam.edit"]
    team.send(ADMIN, {"platform/iam/ines.yaml": dumped(identity("ines", key), may)})
    team.note()
    files = {
        ROLES: with_subject(team.text(ROLES), "ines"),
        "platform/iam/forge2.yaml": dumped(
            identity("forge2", team.keys["eve"], type="forge", vouches_for_author=True)
        ),
        PEOPLE: changed_identity(
            team.text(PEOPLE), ADMIN, keys=[key.identity_key("x")], emails=["ines@acme.example"]
        ),
    }
    made = team.commit("ines", files)
    team.push()
    team.wait_accepted(made)
    found = team.accepted().refused
    assert {name: one.code for name, one in found.items()} == {
        "Identity/ada": "more_than_own_rights",
        "Identity/forge2": "more_than_own_rights",
        "RoleBinding/admins": "more_than_own_rights",
    }
    message = found["RoleBinding/admins"].message
    assert message.startswith(
        "user/ines may not give apps.app.edit on the platform to Identity/ines: user/ines holds"
        " it not there, nor "
    ), message
    assert "to a forge, which speaks for everybody" in found["Identity/forge2"].message
    team.unchanged()


# --- the last admin ------------------------------------------------------------------------------


def test_the_developer_disables_the_admin(team: RedTeam) -> None:
    text = changed_identity(team.text(PEOPLE), ADMIN, disabled=True)
    made = team.commit(DEVELOPER, {PEOPLE: text})
    team.push()
    subject = "Identity/ada"
    team.refused(made, subject, "change_not_allowed", may_not(subject))


@pytest.mark.parametrize(
    ("change", "subject"),
    [
        ({"disabled": True}, "Identity/ada"),
        ({"keys": []}, "Identity/ada"),
        ({}, "RoleBinding/admins"),
    ],
)
def test_the_last_admin_leaves(team: RedTeam, change: dict[str, object], subject: str) -> None:
    files: dict[str, str | None] = {
        ROLES: team.text(ROLES).replace("identity: ada", "identity: ghost")
    }
    if change:
        files = {PEOPLE: changed_identity(team.text(PEOPLE), ADMIN, **change)}
    made = team.commit(ADMIN, files)
    team.push()
    message = f"user/ada may not change {subject}: no admin would be left"
    refused = team.refused(made, subject, "last_admin", message)
    assert (
        refused.hint
        == "somebody else with platform.iam.edit and a key of his own has to be there first"
    )
    team.unchanged()


# --- ways around the object ----------------------------------------------------------------------


def test_a_file_that_can_t_be_read_any_more_keeps_what_it_held(team: RedTeam) -> None:
    """Broken YAML takes nothing away from who is in it, and gives nothing."""
    broken = team.text(PEOPLE) + "---\nkind: [Identity\n"
    made = team.commit(DEVELOPER, {PEOPLE: broken})
    team.push()
    team.wait_accepted(made)
    (refused,) = team.accepted().refused.values()
    assert (refused.subject, refused.code) == (PEOPLE, "unread_change")
    assert refused.message.startswith(f"{PEOPLE} {UNREAD}: line ")
    (finding,) = team.findings("unread_change")
    assert (finding["path"], finding["message"]) == (PEOPLE, refused.message)
    team.unchanged()
    used = team.send(ADMIN, more_memory(team), "Ada is still who she is")
    assert ("user/ada", INSTANCE) in team.done_by(used)


def test_broken_and_mended_with_something_else_in_it(team: RedTeam) -> None:
    """What is smuggled past the break is judged against what counted before it."""
    team.commit(DEVELOPER, {ENTITLEMENT_FILE: "kind: [\n"}, "break")
    text = team.text_at_base(ENTITLEMENT_FILE)
    mended = text.replace("enabled: true", "enabled: false")
    made = team.commit(DEVELOPER, {ENTITLEMENT_FILE: mended}, "mend")
    team.push()
    missing = "tenants.entitlement.edit is missing in acme/research"
    team.refused(made, ENTITLEMENT, "change_not_allowed", may_not(ENTITLEMENT, missing))
    team.unchanged()


def test_a_copy_beside_a_broken_file_that_is_taken_away_later(team: RedTeam) -> None:
    """The object was accepted where the copy stood; it still is not his to delete."""
    text, copy = team.text(NODE_FILE), "platform/nodes/copy.yaml"
    team.send(DEVELOPER, {NODE_FILE: "kind: [\n", copy: text})
    team.unchanged()
    team.send(DEVELOPER, {copy: None})
    assert list(team.accepted().refused) == [NODE_FILE]
    team.unchanged()


def test_a_file_that_he_may_not_delete(team: RedTeam) -> None:
    made = team.commit(DEVELOPER, {ENTITLEMENT_FILE: None, NODE_FILE: None, LAB_INSTANCE: None})
    team.push()
    missing = "tenants.entitlement.edit is missing in acme/research"
    message = may_not(ENTITLEMENT, missing)
    team.refused(made, ENTITLEMENT, "change_not_allowed", message)
    assert set(team.accepted().refused) == {ENTITLEMENT, NODE, "AppInstance/acme/lab/two"}
    team.unchanged()


def test_a_file_that_is_moved_and_changed_on_the_way(team: RedTeam) -> None:
    text = with_subject(team.text(ROLES), DEVELOPER)
    made = team.commit(DEVELOPER, {ROLES: None, "platform/iam/bindings.yaml": text})
    team.push()
    subject = "RoleBinding/admins"
    team.refused(made, subject, "change_not_allowed", may_not(subject))
    team.unchanged()


def test_a_file_that_is_moved_as_it_is(team: RedTeam) -> None:
    """Where it stands is nobody's right: nothing of what counts is another."""
    made = team.commit(DEVELOPER, {ROLES: None, "platform/iam/bindings.yaml": team.text(ROLES)})
    team.push()
    team.wait_accepted(made)
    assert not team.accepted().refused
    team.unchanged()
    used = team.send(ADMIN, more_memory(team))
    assert ("user/ada", INSTANCE) in team.done_by(used)


def test_a_second_document_of_the_same_name(team: RedTeam) -> None:
    double = dumped(binding("admins", DEVELOPER, "platform-admin", {"platform": True}))
    made = team.commit(DEVELOPER, {"platform/iam/a.yaml": double})
    team.push()
    message = (
        f"RoleBinding/admins stands in platform/iam/a.yaml and in {ROLES}: nobody can tell which"
        " of the two counts"
    )
    team.refused(made, "RoleBinding/admins", "unread_change", message)
    team.unchanged()


def test_a_file_that_is_made_a_link_to_another(team: RedTeam) -> None:
    """What a link leads to is not read, and what stood there counts on."""
    team.write({"platform/iam/zz.yaml": "# not mine\n"})
    place = team.repo.folder / ENTITLEMENT_FILE
    place.unlink()
    place.symlink_to("../../../../../platform/iam/zz.yaml")
    made = team.commit(DEVELOPER, {"platform/iam/zz.yaml": None})
    team.push()
    missing = "tenants.entitlement.edit is missing in acme/research"
    message = may_not(ENTITLEMENT, missing)
    team.refused(made, ENTITLEMENT, "change_not_allowed", message)
    team.unchanged()


def test_a_manifest_where_its_kind_does_not_live(team: RedTeam) -> None:
    """A binding below a project that he may write to is no binding."""
    mine = dumped(binding("mine", DEVELOPER, "platform-admin", {"platform": True}))
    path = "tenants/acme/projects/research/instances/mine.yaml"
    made = team.commit(DEVELOPER, {path: mine})
    team.push()
    team.wait_accepted(made)
    assert [one.code for one in team.accepted().refused.values()] == ["unread_change"]
    assert "RoleBinding/mine" not in team.accepted().objects
    team.unchanged()


def test_taking_over_an_instance_of_another_project(team: RedTeam) -> None:
    mine = team.text(INSTANCE_FILE).replace("name: one", "name: three")
    assert "spec:\n" in mine
    mine = mine.replace("spec:\n", "spec:\n  moved_from: two\n")
    files: dict[str, str | None] = {
        "tenants/acme/projects/research/instances/three.yaml": mine,
        LAB_INSTANCE: None,
    }
    made = team.commit(DEVELOPER, files)
    team.push()
    missing = "apps.instance.delete is missing in acme/lab"
    message = may_not("AppInstance/acme/lab/two", missing, verb="take down")
    team.refused(made, "AppInstance/acme/lab/two", "change_not_allowed", message)
    team.unchanged("AppInstance/acme/lab/two", INSTANCE)


# --- how it comes to an end ----------------------------------------------------------------------


@pytest.mark.parametrize("who", [ADMIN, DEVELOPER])
def test_a_refused_change_is_reverted(team: RedTeam, who: str) -> None:
    """Whoever undoes it clears what was said of it."""
    made = team.send(DEVELOPER, team.edited(NODE_FILE, "cpu_cores: 32", "cpu_cores: 64"))
    assert list(team.accepted().refused) == [NODE]
    undone = team.recorded(who, "revert", "--no-edit", made)
    team.push()
    team.wait_accepted(undone)
    assert not team.accepted().refused
    assert team.findings("change_not_allowed") == []
    team.unchanged()


def test_a_refused_change_is_approved_by_name(team: RedTeam) -> None:
    team.send(DEVELOPER, team.edited(NODE_FILE, "cpu_cores: 32", "cpu_cores: 64"))
    own = team.send(DEVELOPER, {}, f"I say it is fine\n\nApproves: {NODE}")
    assert team.accepted().refused[NODE].code == "change_not_allowed"
    assert team.accepted().revision == own
    made = team.send(ADMIN, {}, f"It has more cores\n\nApproves: {NODE}\nReason: seen on site")
    assert not team.accepted().refused
    form = team.form(NODE)
    assert form is not None
    assert form["spec"]["cpu_cores"] == 64
    (row,) = [e for e in team.audit() if (e.revision, e.object) == (made, NODE)]
    assert (row.actor, row.result, row.reason) == ("user/ada", "done", "seen on site")


def test_who_tidies_up_after_it_does_not_approve_it(team: RedTeam) -> None:
    """The admin changes another object of the same file; the one that was refused stays so."""
    made = team.commit(DEVELOPER, {ROLES: with_subject(team.text(ROLES), DEVELOPER)})
    team.push()
    subject = "RoleBinding/admins"
    team.refused(made, subject, "change_not_allowed", may_not(subject))
    added = dumped(binding("more", DEVELOPER, "viewer", {"project": "acme/lab"}))
    on_top = team.send(ADMIN, {ROLES: team.text(ROLES) + "---\n" + added}, "One more")
    assert team.accepted().refused[subject].revision == made
    assert team.accepted().revision == on_top
    team.unchanged(subject)


def test_what_nobody_may_is_told_of_a_whole_file_of_changes(team: RedTeam) -> None:
    """Each object by itself: what he may is done, what he may not is told."""
    files = team.edited(ENVIRONMENT_FILE, "gpu.example", "evil.example") | more_memory(team)
    files |= {MACHINES: changed_identity(team.text(MACHINES), FORGE, disabled=True)}
    made = team.commit(DEVELOPER, files)
    team.push()
    team.refused(made, "Identity/forge", "change_not_allowed", may_not("Identity/forge"))
    assert set(team.accepted().refused) == {"Environment/eval", "Identity/forge"}
    assert team.done_by(made) == {("user/dora", INSTANCE)}
