"""Who holds what where: a table of cases, each one question to one small world."""

from __future__ import annotations

from typing import Any

import pytest

from reconciler.core.authority.facts import Actor
from reconciler.core.authority.grants import FOREVER_MS, ROOT, Trust, rights_of
from reconciler.core.authority.roles import ALL_PERMISSIONS
from reconciler.core.times import parse_time_ms
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
    identity,
    people,
    stand_in,
    trust,
)

CREATE, ENTITLE, IAM = "apps.instance.create", "tenants.entitlement.edit", "platform.iam.edit"
NODES = "fleet.node.read"
LAB, OTHER, ELSEWHERE = ("acme", "lab"), ("acme", "other"), ("borealis", "lab")
BOB = Actor("user", "bob")
FORGE = Actor("forge", "forge")

Question = tuple[Trust, Actor, str, tuple[str, ...], bool]


def bob(*more: Written, **spec: Any) -> Trust:
    return people(identity("bob", **spec), *more)


QUESTIONS: dict[str, Question] = {
    "an admin holds everything": (people(), ADA, IAM, (), True),
    "and everywhere below": (people(), ADA, ENTITLE, LAB, True),
    "a tenant admin in the tenant": (people(), GRACE, ENTITLE, LAB, True),
    "and not in another": (people(), GRACE, ENTITLE, ELSEWHERE, False),
    "and not on the platform": (people(), GRACE, ENTITLE, (), False),
    "and not what is the platform's": (people(), GRACE, "tenants.allocation.edit", LAB, False),
    "a project admin in the project": (people(), NILS, ENTITLE, LAB, True),
    "and not beside it": (people(), NILS, ENTITLE, OTHER, False),
    "and not in the tenant above": (people(), NILS, ENTITLE, ("acme",), False),
    "nobody knows him": (people(), BOB, CREATE, LAB, False),
    "known, and bound to nothing": (bob(), BOB, CREATE, LAB, False),
    "disabled": (
        bob(binding("b", "project-admin", "acme/lab", "bob"), disabled=True),
        BOB, CREATE, LAB, False,
    ),
    "bound, and not there": (people(binding("b", "viewer", "", "bob")), BOB, NODES, (), False),
    "until later": (
        bob(binding("b", "app-operator", "acme/lab", "bob", until=LATER)), BOB, CREATE, LAB, True,
    ),
    "until before": (
        bob(binding("b", "app-operator", "acme/lab", "bob", until=PAST)), BOB, CREATE, LAB, False,
    ),
    "until a day that is none": (
        bob(binding("b", "app-operator", "acme/lab", "bob", until="2026-09-31T00:00:00Z")),
        BOB, CREATE, LAB, False,
    ),
    "a platform admin of one tenant": (
        bob(binding("b", "platform-admin", "acme", "bob")), BOB, CREATE, LAB, False,
    ),
    "a tenant admin of one project": (
        bob(binding("b", "tenant-admin", "acme/lab", "bob")), BOB, CREATE, LAB, False,
    ),
    "custom permissions": (
        bob(custom("b", "acme", [CREATE], "bob")), BOB, CREATE, OTHER, True,
    ),
    "and no others": (bob(custom("b", "acme", [CREATE], "bob")), BOB, ENTITLE, OTHER, False),
    "a viewer of the platform sees nodes": (
        bob(binding("b", "viewer", "", "bob")), BOB, NODES, (), True,
    ),
    "a viewer of a tenant does not": (
        bob(binding("b", "viewer", "acme", "bob")), BOB, NODES, ("acme",), False,
    ),
    "a machine in its project": (people(), MACHINE, CREATE, LAB, True),
    "which is all it has": (people(), MACHINE, CREATE, OTHER, False),
    "disabled machine": (trust(account(disabled=True)), MACHINE, CREATE, LAB, False),
    "machine that is gone": (
        trust(binding("b", "app-operator", "acme/lab", DEPLOYER)), MACHINE, CREATE, LAB, False,
    ),
    "a machine bound to more": (
        people(custom("b", "acme/lab", ["apps.artifact.register"], DEPLOYER)),
        MACHINE, "apps.artifact.register", LAB, True,
    ),
    "a machine bound to what is for humans": (
        people(custom("b", "acme/lab", [ENTITLE], DEPLOYER)), MACHINE, ENTITLE, LAB, False,
    ),
    "a machine bound to the platform": (
        people(binding("b", "platform-admin", "", DEPLOYER)), MACHINE, CREATE, OTHER, False,
    ),
    "which holds for its own project": (
        people(binding("b", "platform-admin", "", DEPLOYER)),
        MACHINE, "apps.artifact.register", LAB, True,
    ),
    "a machine never promotes versions": (
        people(binding("b", "platform-admin", "", DEPLOYER)), MACHINE, "apps.version.promote", (),
        False,
    ),
    "by an identity that stands for it": (
        people(stand_in("robot", DEPLOYER), binding("b", "artifact-publisher", "acme", "robot")),
        MACHINE, "apps.artifact.promote", LAB, True,
    ),
    "which is disabled": (
        people(
            stand_in("robot", DEPLOYER, disabled=True),
            binding("b", "artifact-publisher", "acme", "robot"),
        ),
        MACHINE, "apps.artifact.promote", LAB, False,
    ),
    "that identity is no user": (
        people(stand_in("robot", DEPLOYER), binding("b", "platform-admin", "", "robot")),
        Actor("user", "robot"), IAM, (), False,
    ),
    "a forge itself holds nothing": (
        people(identity("forge", "forge"), binding("b", "platform-admin", "", "forge")),
        FORGE, IAM, (), False,
    ),
    "nor as a user": (
        people(identity("forge", "forge"), binding("b", "platform-admin", "", "forge")),
        Actor("user", "forge"), IAM, (), False,
    ),
    "the operator's key": (trust(), ROOT, IAM, (), True),
    "a machine without a name": (trust(), Actor("service_account", ""), CREATE, ("",), False),
}  # fmt: skip


@pytest.mark.parametrize("case", QUESTIONS)
def test_who_holds_what_where(case: str) -> None:
    objects, actor, permission, scope, expected = QUESTIONS[case]
    rights = rights_of(objects, AT_MS)
    assert rights.holds(actor, permission, scope) is expected
    assert rights.holds(actor, permission, scope) is expected, "remembered as it was found"


def test_the_longest_of_several_bindings_counts() -> None:
    objects = bob(
        custom("a", "acme/lab", [CREATE], "bob", until=SOON),
        custom("b", "acme", [CREATE], "bob", until=LATER),
    )
    rights = rights_of(objects, AT_MS)
    assert rights.until_ms(BOB, CREATE, LAB) == parse_time_ms(LATER)
    assert rights.until_ms(ADA, CREATE, LAB) == FOREVER_MS
    assert rights.until_ms(BOB, ENTITLE, LAB) == 0
    assert not rights_of(objects, parse_time_ms(LATER)).holds(BOB, CREATE, LAB)


def test_what_is_held_can_be_read() -> None:
    rights = rights_of(people(), AT_MS)
    found = {(grant.permission, grant.scope): grant.why for grant in rights.of(NILS)}
    assert found[ENTITLE, LAB] == "RoleBinding/lab (project-admin)"
    machine = {grant.why for grant in rights.of(MACHINE)}
    assert machine == {"ServiceAccount/acme/lab/deployer (app-operator)"}
    assert {grant.permission for grant in rights.of(ROOT)} == ALL_PERMISSIONS
    assert rights.of(BOB) == ()


def test_holding_everything_has_no_end_and_no_border() -> None:
    def everything(*more: Written, actor: Actor = BOB) -> bool:
        return rights_of(bob(*more), AT_MS).holds_everything(actor)

    assert everything(actor=ADA)
    assert everything(actor=ROOT)
    assert not everything(actor=GRACE)
    assert everything(binding("b", "platform-admin", "", "bob"))
    assert not everything(binding("b", "platform-admin", "", "bob", until=LATER))
