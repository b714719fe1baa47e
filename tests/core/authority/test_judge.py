"""Who may make which change: every kind by every role, and every way to give too much."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconciler.core.authority.facts import Actor
from reconciler.core.authority.grants import ROOT, Trust, rights_of
from reconciler.core.authority.judge import Refusal, judge, last_admin_left
from reconciler.core.authority.needs import same
from reconciler.core.authority.roles import ROLES
from reconciler.core.kinds import KINDS
from tests.core.authority.changes import ODD, Change, changes, ref_of
from tests.core.authority.trust_builders import (
    ADA,
    AT_MS,
    DEPLOYER,
    GRACE,
    LATER,
    MACHINE,
    NILS,
    PAST,
    SOON,
    Written,
    account,
    binding,
    custom,
    ed25519,
    identity,
    people,
    ssh,
    stand_in,
    trust,
    written,
)

BOB = Actor("user", "bob")

# Letters as in changes.py. Roles are held where they are meant to be: platform-admin, break-glass
# and viewer on the platform, tenant-admin in the tenant, the others in the project. The machine
# has the roles app-operator and artifact-publisher.
ALLOWED = """
kind            platform tenant  project operator publisher glass viewer machine
Environment     cudab    .       .       .        .         b     .      .
TrustPolicy     cud      .       .       .        .         .     .      .
Identity        cud      .       .       .        .         .     .      .
RoleBinding     cud      .       .       .        .         .     .      .
FleetPolicy     cud      .       .       .        .         .     .      .
Node            cud      .       .       .        .         .     .      .
PlatformRelease cud      .       .       .        .         .     .      .
App             cud      .       .       .        .         .     .      .
AppVersion      cud      .       .       .        .         .     .      .
Promotion       cudpxt   .       .       .        .         .     .      .
Tenant          cud      .       .       .        .         .     .      .
Project         cud      cud     .       .        .         .     .      .
Entitlement     cud      cud     cud     .        .         .     .      .
ServiceAccount  cud      cud     cud     .        .         .     .      .
Allocation      cud      .       .       .        .         .     .      .
Artifact        cudpxtr  cudpxtr cudpxtr .        cup       .     .      cup
AppInstance     cudsem   cudsem  cudsem  cudsem   .         .     .      cudsem
"""
HEAD, *LINES = ALLOWED.strip().splitlines()
COLUMNS = ("platform-admin", "tenant-admin", "project-admin", "app-operator",
           "artifact-publisher", "break-glass", "viewer", "machine")  # fmt: skip
TABLE = {line.split()[0]: dict(zip(COLUMNS, line.split()[1:], strict=True)) for line in LINES}
HELD_AT = {"platform-admin": "", "break-glass": "", "viewer": "", "tenant-admin": "acme"}


def ask(objects: Trust, actor: Actor, change: Change) -> Refusal | None:
    return judge(actor, rights_of(objects, AT_MS), objects, *change)


def holder(role: str) -> tuple[Trust, Actor]:
    if role == "machine":
        return trust(account(DEPLOYER, "app-operator", "artifact-publisher")), MACHINE
    where = HELD_AT.get(role, "acme/lab")
    return trust(identity("bob"), binding("b", role, where, "bob")), BOB


def test_the_table_is_of_all_kinds_and_roles() -> None:
    assert set(TABLE) == set(KINDS)
    assert set(COLUMNS) == {*ROLES, "machine"}
    assert all(name in role for name, role in zip(HEAD.split()[1:], COLUMNS, strict=True))


@pytest.mark.parametrize("role", COLUMNS)
@pytest.mark.parametrize("kind", TABLE)
def test_who_may_change_what(kind: str, role: str) -> None:
    objects, actor = holder(role)
    asked = changes(kind)
    allowed = [letter for letter in asked if ask(objects, actor, asked[letter]) is None]
    assert ("".join(allowed) or ".") == TABLE[kind][role]


@pytest.mark.parametrize("role", ["project-admin", "app-operator", "artifact-publisher", "machine"])
@pytest.mark.parametrize("kind", TABLE)
def test_nobody_of_one_project_changes_another(kind: str, role: str) -> None:
    objects, actor = holder(role)
    for project in ("acme/other", "borealis/lab"):
        for change in changes(kind, *project.split("/")).values():
            assert ask(objects, actor, change) is not None


@pytest.mark.parametrize("kind", TABLE)
def test_a_tenant_admin_changes_no_other_tenant(kind: str) -> None:
    objects, actor = holder("tenant-admin")
    for change in changes(kind, "borealis").values():
        assert ask(objects, actor, change) is not None


@pytest.mark.parametrize("kind", TABLE)
def test_a_machine_bound_to_everything_still_does_no_more_than_machines_may(kind: str) -> None:
    objects = trust(account(), binding("b", "platform-admin", "", DEPLOYER))
    asked = changes(kind)
    allowed = {letter for letter in asked if ask(objects, MACHINE, asked[letter]) is None}
    assert allowed == set(TABLE[kind]["machine"].strip("."))


@pytest.mark.parametrize("kind", TABLE)
def test_the_operators_key_may_do_everything_and_nobody_nothing(kind: str) -> None:
    for change in changes(kind).values():
        assert ask({}, ROOT, change) is None
        for nobody in (BOB, MACHINE, Actor("forge", "forge"), Actor("forge", "")):
            assert ask({}, nobody, change) is not None


# --- what people read ----------------------------------------------------------------------------

MESSAGES: dict[str, tuple[Actor, Change, Refusal]] = {
    "missing here": (
        NILS,
        changes("Allocation")["u"],
        Refusal(
            "change_not_allowed",
            "user/nils may not change Allocation/acme/lab/zoe:"
            " tenants.allocation.edit is missing in acme/lab",
            "roles with tenants.allocation.edit: platform-admin",
        ),
    ),
    "missing on the platform": (
        GRACE,
        changes("Environment")["b"],
        Refusal(
            "change_not_allowed",
            "user/grace may not break the glass of Environment/zoe:"
            " platform.sync.break_glass is missing on the platform",
            "roles with platform.sync.break_glass: break-glass, platform-admin",
        ),
    ),
    "for humans": (
        MACHINE,
        changes("Entitlement")["u"],
        Refusal(
            "needs_human",
            "service_account/acme/lab/deployer may not change Entitlement/acme/lab/zoe:"
            " tenants.entitlement.edit is for humans",
            "roles with tenants.entitlement.edit: project-admin, tenant-admin, platform-admin",
        ),
    ),
    "another project": (
        MACHINE,
        changes("AppInstance", "acme", "other")["c"],
        Refusal(
            "outside_own_project",
            "service_account/acme/lab/deployer may not create AppInstance/acme/other/zoe:"
            " it acts in acme/lab only",
            "a human has to make this change",
        ),
    ),
}


@pytest.mark.parametrize("case", MESSAGES)
def test_a_refusal_says_who_lacks_what_where_and_who_has_it(case: str) -> None:
    actor, change, expected = MESSAGES[case]
    assert ask(people(), actor, change) == expected


# --- nobody gives what he does not hold ----------------------------------------------------------

IAM = "platform.iam.edit"
OPERATE = ["apps.instance.create", "apps.instance.update"]
KNOWN: tuple[Written, ...] = (
    identity("bob"),
    identity("carol", emails=["carol@acme.example"]),
    identity("dora", disabled=True),
    identity("emil", disabled=True),
    identity("forge", "forge"),
    stand_in("robot", DEPLOYER, keys=[]),
    binding("dora-admin", "platform-admin", "", "dora"),
    binding("ghost-admin", "platform-admin", "", "ghost"),
    binding("carol-grace", "tenant-admin", "acme", "carol"),
    custom("bob-iam", "", [IAM], "bob"),
    custom("bob-operates", "acme/lab", OPERATE, "bob"),
    custom("bob-soon", "acme/lab", ["apps.instance.suspend"], "bob", until=SOON),
    account("acme/lab/idle", disabled=True),
    account("acme/other/bot"),
    custom("bot-publishes", "acme/lab", ["apps.artifact.register"], DEPLOYER),
)
TRUST = people(*KNOWN)

GIVEN: dict[str, tuple[Actor, Written, str]] = {
    # Bindings, by bob, who may edit them and operates acme/lab.
    "what he holds": (BOB, custom("x", "acme/lab", OPERATE, "carol"), ""),
    "what he holds, to somebody not there yet": (BOB, custom("x", "acme/lab", OPERATE, "eve"), ""),
    "more than he holds": (BOB, binding("x", "app-operator", "acme/lab", "bob"), "more"),
    "the same more widely": (BOB, custom("x", "acme", OPERATE, "bob"), "more"),
    "everything": (BOB, binding("x", "platform-admin", "", "bob"), "more"),
    "everything to a machine": (BOB, binding("x", "platform-admin", "", "robot"), "more"),
    "what the other has anyway": (BOB, binding("x", "tenant-admin", "acme", "carol"), ""),
    "part of what the other has": (BOB, binding("x", "viewer", "acme/lab", "carol"), ""),
    "what the other would have if enabled": (BOB, binding("x", "viewer", "", "dora"), ""),
    "more to who is disabled": (BOB, binding("x", "tenant-admin", "acme", "emil"), "more"),
    "more to who is not there": (BOB, binding("x", "tenant-admin", "acme", "eve"), "more"),
    "a role where it gives nothing": (BOB, binding("x", "platform-admin", "acme", "bob"), ""),
    "what has ended": (BOB, binding("x", "platform-admin", "", "bob", until=PAST), ""),
    "for as long as he has it": (
        BOB, custom("x", "acme/lab", ["apps.instance.suspend"], "carol", until=SOON), "",
    ),
    "for longer than he has it": (
        BOB, custom("x", "acme/lab", ["apps.instance.suspend"], "bob", until=LATER), "more",
    ),
    "his own binding, for longer": (
        BOB, custom("bob-soon", "acme/lab", ["apps.instance.suspend"], "bob"), "more",
    ),
    "his own binding, more widely": (BOB, custom("bob-operates", "acme", OPERATE, "bob"), "more"),
    "a binding, narrower": (BOB, binding("acme", "tenant-admin", "acme", "carol"), ""),
    "a binding, for one project": (BOB, custom("acme", "acme/lab", OPERATE, "grace"), ""),
    "somebody put into a binding": (BOB, binding("acme", "tenant-admin", "acme", "bob"), "more"),
    "a machine what machines do": (BOB, custom("x", "acme/lab", OPERATE, DEPLOYER), ""),
    "what a machine could not use": (BOB, custom("x", "", OPERATE[:1], "robot"), "more"),
    "an admin's machine": (ADA, binding("x", "platform-admin", "", DEPLOYER), ""),
    # Identities.
    "a new person": (BOB, identity("eve"), ""),
    "a new person by a name with rights": (BOB, identity("ghost"), "more"),
    "such a person without any key": (BOB, identity("ghost", keys=[]), "more"),
    "such a person, disabled": (BOB, identity("ghost", disabled=True), ""),
    "a key to himself": (BOB, identity("bob", keys=[ssh("bob"), ssh("new")]), ""),
    "a key to an admin": (BOB, identity("ada", keys=[ssh("ada"), ssh("new")]), "more"),
    "another name for the key of an admin": (BOB, identity("ada", keys=[ssh("ada", id="x")]), ""),
    "no more keys to an admin": (BOB, identity("ada", keys=[]), ""),
    "an admin's key for some time": (
        BOB, identity("ada", keys=[ssh("ada", valid_until=SOON)]), "",
    ),
    "an address to an admin": (BOB, identity("ada", emails=["bob@acme.example"]), "more"),
    "the same address in capitals": (BOB, identity("carol", emails=["CAROL@acme.example"]), ""),
    "an admin disabled": (BOB, identity("ada", disabled=True), ""),
    "an admin enabled": (BOB, identity("dora"), "more"),
    "a person turned into a machine": (BOB, stand_in("carol", DEPLOYER), "more"),
    "who had a machine's rights turned into a person": (BOB, identity("robot"), ""),
    "another forge": (BOB, identity("web", "forge"), "more"),
    "a forge's own key": (BOB, identity("forge", "forge", keys=[ssh("bob")]), "more"),
    "a forge that vouches": (BOB, identity("forge", "forge", vouches_for_author=True), "more"),
    "a forge without keys": (BOB, identity("forge", "forge", keys=[]), ""),
    "a forge disabled": (BOB, identity("forge", "forge", disabled=True), ""),
    "who stands for a machine of more": (BOB, stand_in("x", DEPLOYER), "more"),
    "who stands for a machine nobody has": (BOB, stand_in("x", "acme/lab/none"), ""),
    # Service accounts, by nils, who holds all that machines of acme/lab can.
    "a machine": (NILS, account("acme/lab/new", public_keys=[ed25519("new")]), ""),
    "a machine's key": (NILS, account(public_keys=[ed25519("new")]), ""),
    "a machine enabled": (NILS, account("acme/lab/idle"), ""),
    "a machine's roles": (NILS, account(DEPLOYER, "app-operator", "artifact-publisher"), ""),
}  # fmt: skip


@pytest.mark.parametrize("case", GIVEN)
def test_nobody_gives_what_he_does_not_hold(case: str) -> None:
    actor, (ref, after), expected = GIVEN[case]
    refusal = ask(TRUST, actor, Change(ref, written(TRUST, ref), after))
    assert (refusal.code if refusal else "") == (expected and "more_than_own_rights"), refusal


def given_by(actor: Actor, *known: Written, to: Written) -> Refusal | None:
    objects = people(*known)
    return ask(objects, actor, Change(to[0], written(objects, to[0]), to[1]))


def test_the_refusal_says_what_is_missing_and_how_much_more() -> None:
    assert given_by(BOB, *KNOWN, to=binding("x", "tenant-admin", "acme", "bob")) == Refusal(
        "more_than_own_rights",
        "user/bob may not give apps.artifact.deprecate in acme to Identity/bob:"
        " user/bob holds it not there, nor 13 more",
        "somebody who holds all of it has to make this change; roles with"
        " apps.artifact.deprecate: project-admin, tenant-admin, platform-admin",
    )
    longer = custom("bob-soon", "acme/lab", ["apps.instance.suspend"], "bob", until=LATER)
    refusal = given_by(BOB, *KNOWN, to=longer)
    assert refusal is not None
    assert refusal.message.endswith("user/bob holds it only until 2026-07-01T00:00:00Z there")
    refusal = given_by(BOB, *KNOWN, to=identity("web", "forge"))
    assert refusal is not None
    assert "on the platform to a forge, which speaks for everybody" in refusal.message


EDITOR = custom("edits", "acme/lab", ["tenants.service_account.edit", *OPERATE], "bob")


def test_who_edits_accounts_gives_no_more_than_he_holds_in_the_project() -> None:
    def code(to: Written, *known: Written) -> str:
        refusal = given_by(BOB, identity("bob"), EDITOR, *known, to=to)
        return refusal.code if refusal else ""

    small = custom("small", "acme/lab", OPERATE, "acme/lab/new")
    wide = binding("wide", "artifact-publisher", "acme/lab", "acme/lab/new")
    robot = stand_in("robot2", "acme/lab/new", disabled=True)
    linked = binding("linked", "artifact-publisher", "acme/lab", "robot2")
    assert code(account("acme/lab/new", "app-operator")) == "more_than_own_rights"
    assert code(account("acme/lab/new", "viewer")) == "more_than_own_rights"
    assert code(account(DEPLOYER, public_keys=[ed25519("k")])) == "more_than_own_rights"
    asleep = stand_in("asleep", DEPLOYER, disabled=True)
    waits = binding("waits", "artifact-publisher", "acme/lab", "asleep")
    both = account(DEPLOYER, "app-operator", "artifact-publisher")
    assert code(both, asleep, waits) == "more_than_own_rights"
    assert code(account(DEPLOYER, disabled=True)) == ""
    assert code(account(DEPLOYER, display_name="Deploys")) == ""
    reader = custom("reads", "acme/lab", ["apps.instance.read"], "bob")
    assert code(account("acme/lab/new", "viewer"), reader) == ""
    assert code(account("acme/lab/new", "viewer"), reader, small) == ""
    assert code(account("acme/lab/new", "viewer"), reader, wide) == "more_than_own_rights"
    assert code(account("acme/lab/new", "viewer"), reader, robot, linked) == "more_than_own_rights"


KEY = ssh("new")
REVOKED = {"at": PAST, "reason": "lost"}


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ([{**KEY, "revoked": REVOKED}], [KEY]),
        ([KEY, {**KEY, "id": "again", "revoked": REVOKED}], [KEY]),
        ([{**KEY, "valid_until": SOON}], [{**KEY, "valid_until": LATER}]),
        ([{**KEY, "valid_until": PAST}], [KEY]),
        ([{**KEY, "valid_from": SOON}], [KEY]),
        ([], [KEY]),
        ([], [KEY, {**KEY, "id": "again", "revoked": REVOKED}]),
    ],
)
def test_a_key_that_counts_again_or_for_longer_is_a_new_key(before: Any, after: Any) -> None:
    known = identity("eve", keys=before), binding("eve", "tenant-admin", "acme", "eve")
    bob = identity("bob"), custom("bob-iam", "", [IAM], "bob")
    refusal = given_by(BOB, *known, *bob, to=identity("eve", keys=after))
    assert refusal is not None
    assert refusal.code == "more_than_own_rights"
    assert given_by(ADA, *known, *bob, to=identity("eve", keys=after)) is None
    known = identity("eve", keys=after), known[1]
    if before:
        assert given_by(BOB, *known, *bob, to=identity("eve", keys=before)) is None


def test_rights_and_trust_of_two_moments_are_not_mixed() -> None:
    """The rights are the actor's; what a change gives is found in the trust that comes with it."""
    rights = rights_of(people(identity("bob"), custom("bob-iam", "", [IAM], "bob")), AT_MS)
    later = people(binding("ghost", "platform-admin", "", "ghost"))
    refusal = judge(BOB, rights, later, *Change(identity("ghost")[0], None, identity("ghost")[1]))
    assert refusal is not None


# --- manifests that make no sense ----------------------------------------------------------------

LIMITED = people(identity("bob"), custom("bob-iam", "", [IAM], "bob"))


@pytest.mark.parametrize("kind", ["Identity", "RoleBinding"])
@pytest.mark.parametrize("spec", [None, [], {}, {"role": "viewer"}, {"type": "user", "keys": 7}])
def test_what_is_not_understood_gives_everything(kind: str, spec: Any) -> None:
    change = Change(ref_of(kind), None, {"kind": kind, "spec": spec})
    refusal = ask(LIMITED, BOB, change)
    assert refusal is not None
    assert refusal.code == "more_than_own_rights"
    assert "to whoever this invalid manifest may mean" in refusal.message
    assert ask(LIMITED, ADA, change) is None


ACTORS = [ADA, BOB, GRACE, NILS, MACHINE, ROOT, Actor("forge", "forge")]


@given(
    actor=st.sampled_from(ACTORS),
    kind=st.sampled_from([*sorted(KINDS), "Unicorn"]),
    before=st.none() | ODD,
    after=st.none() | ODD,
)
def test_no_document_raises(actor: Actor, kind: str, before: Any, after: Any) -> None:
    ref = ref_of(kind if kind in KINDS else "App")._replace(kind=kind)
    refusal = ask(LIMITED, actor, Change(ref, before, after))
    if actor in (ADA, ROOT):
        assert refusal is None
    elif actor.type == "forge":
        assert (refusal is None) is same(before, after)


@given(
    kind=st.sampled_from(["Identity", "RoleBinding", "ServiceAccount"]),
    after=ODD.filter(lambda found: found is not None),
)
def test_no_unreadable_trust_object_is_allowed_to_who_holds_less_than_all(
    kind: str, after: Any
) -> None:
    for actor in (BOB, GRACE, NILS, MACHINE):
        assert ask(LIMITED, actor, Change(ref_of(kind), None, after)) is not None


# --- the last admin ------------------------------------------------------------------------------

ADMIN = binding("admins", "platform-admin", "", "eve")
LEFT: dict[str, tuple[tuple[Written, ...], bool]] = {
    "an admin with a key": ((identity("eve"), ADMIN), True),
    "nobody": ((), False),
    "an admin without keys": ((identity("eve", keys=[]), ADMIN), False),
    "a disabled one": ((identity("eve", disabled=True), ADMIN), False),
    "a revoked key": ((identity("eve", keys=[ssh("eve", revoked=REVOKED)]), ADMIN), False),
    "an expired key": ((identity("eve", keys=[ssh("eve", valid_until=PAST)]), ADMIN), False),
    "a key for later": ((identity("eve", keys=[ssh("eve", valid_from=SOON)]), ADMIN), False),
    "a key that is also another's": (
        (identity("eve"), identity("bob", keys=[ssh("eve")]), ADMIN), False,
    ),
    "a key whose id is also that of another": (
        (identity("eve"), identity("bob", keys=[ssh("bob", id="eve")]), ADMIN), False,
    ),
    "a key that stands twice": (
        (identity("eve", keys=[ssh("eve"), ssh("eve", id="x")]), ADMIN), False,
    ),
    "a binding that ended": (
        (identity("eve"), binding("admins", "platform-admin", "", "eve", until=PAST)), False,
    ),
    "in one tenant": ((identity("eve"), custom("admins", "acme", [IAM], "eve")), False),
    "who may just edit them": ((identity("eve"), custom("admins", "", [IAM], "eve")), True),
    "a machine": ((account(), binding("admins", "platform-admin", "", DEPLOYER)), False),
    "a forge": ((identity("eve", "forge"), ADMIN), False),
}  # fmt: skip


@pytest.mark.parametrize("case", LEFT)
def test_somebody_is_left_who_can_let_others_in(case: str) -> None:
    there, expected = LEFT[case]
    assert last_admin_left(trust(*there), AT_MS) is expected
