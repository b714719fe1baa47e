"""Whatever somebody changes, he never ends up with more than he had.

Mallory has keys and an address, and may edit who may do what, or the accounts of a project, but is
no admin. He makes commits of a few changes each, as anybody he can act as; all that is allowed
counts. What he can do is found here from the documents alone: everybody whose keys he has.
"""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from reconciler.core.authority.facts import Actor
from reconciler.core.authority.grants import (
    EVERYTHING,
    FOREVER_MS,
    Held,
    Rights,
    Trust,
    held_until,
    rights_of,
)
from reconciler.core.authority.judge import judge
from reconciler.core.authority.roles import MACHINE_PERMISSIONS
from reconciler.core.kinds import KINDS
from reconciler.core.kinds.identity import Identity
from reconciler.core.kinds.service_account import ServiceAccount
from tests.core.authority.changes import changes
from tests.core.authority.trust_builders import (
    AT_MS,
    DEPLOYER,
    LATER,
    MACHINE,
    PAST,
    SOON,
    Document,
    Written,
    account,
    binding,
    custom,
    ed25519,
    identity,
    ssh,
    stand_in,
    trust,
    written,
)

DAY_MS = 86_400_000
MINE = ("mallory", "mallory-2")
"""Keys of which Mallory has the private half."""
ADDRESS = "mallory@acme.example"
NAMES = ("mallory", "bob", "carol", "ghost", "robot", "web")
ACCOUNTS = (DEPLOYER, "acme/lab/idle", "acme/other/bot")
PERMISSIONS = (
    "apps.app.edit",
    "apps.artifact.register",
    "apps.instance.create",
    "platform.iam.edit",
    "tenants.service_account.edit",
)


def chosen(*values: Any) -> st.SearchStrategy[Any]:
    return st.sampled_from(values)


ENDS = chosen(None, None, PAST, SOON, LATER)


def given_fields(**fields: Any) -> Document:
    return {name: value for name, value in fields.items() if value is not None}


@st.composite
def a_key(draw: st.DrawFn, make: Any) -> Document:
    name = draw(chosen(*MINE, "bob", "carol"))
    revoked = draw(chosen(None, None, None, {"at": PAST, "reason": "lost"}))
    found: Document = make(name, **given_fields(revoked=revoked, valid_until=draw(ENDS)))
    return found


@st.composite
def an_identity(draw: st.DrawFn) -> Written:
    name, type_ = draw(chosen(*NAMES)), draw(chosen("user", "user", "service_account", "forge"))
    fields = given_fields(
        keys=draw(st.lists(a_key(ssh), max_size=2)),
        emails=draw(chosen([], [ADDRESS], ["bob@acme.example"])),
        disabled=draw(chosen(False, False, True)),
        service_account=draw(chosen(*ACCOUNTS)) if type_ == "service_account" else None,
        vouches_for_author=draw(chosen(None, True)) if type_ == "forge" else None,
    )
    return identity(name, type_, **fields)


@st.composite
def a_binding(draw: st.DrawFn) -> Written:
    name, until = draw(chosen("one", "two", "three", "iam")), given_fields(until=draw(ENDS))
    subjects = draw(st.lists(chosen(*NAMES, *ACCOUNTS), min_size=1, max_size=2))
    where = draw(chosen("", "acme", "acme/lab", "acme/other"))
    if draw(st.booleans()):
        permissions = draw(st.lists(chosen(*PERMISSIONS), min_size=1, max_size=2, unique=True))
        return custom(name, where, permissions, *subjects, **until)
    role = draw(chosen("platform-admin", "tenant-admin", "app-operator", "viewer", "break-glass"))
    return binding(name, role, where, *subjects, **until)


@st.composite
def an_account(draw: st.DrawFn) -> Written:
    roles = ["app-operator", "artifact-publisher", "viewer"]
    found = draw(st.lists(chosen(*roles), min_size=1, max_size=2, unique=True))
    keys = draw(st.lists(a_key(ed25519), max_size=2))
    disabled = draw(chosen(False, False, True))
    return account(draw(chosen(*ACCOUNTS)), *found, public_keys=keys, disabled=disabled)


OBJECTS = st.one_of(an_identity(), a_binding(), an_account())
EDITS = custom(
    "iam", "", ["platform.iam.edit", "tenants.service_account.edit", PERMISSIONS[2]], "mallory"
)
SOME_PROJECT = custom("iam", "acme/lab", ["tenants.service_account.edit", *PERMISSIONS[1:3]], "bob")


@st.composite
def a_start(draw: st.DrawFn) -> Trust:
    """Anything at all, in which Mallory is known; and mostly may edit something, for some time."""
    objects = dict(draw(st.lists(OBJECTS, max_size=6)))
    objects.update([identity("mallory", emails=[ADDRESS])])
    ref, document = draw(chosen(EDITS, EDITS, SOME_PROJECT))
    until = given_fields(until=draw(chosen(None, None, LATER)))
    objects[ref] = {**document, "spec": {**document["spec"], **until}}
    return trust(*objects.items())


COMMITS = st.lists(
    st.lists(st.tuples(OBJECTS, st.booleans()), min_size=1, max_size=3), min_size=1, max_size=6
)


def is_mine(public_key: str) -> bool:
    return any(
        made(name)["public_key"].split()[:2] == public_key.split()[:2]
        for name in MINE
        for made in (ssh, ed25519)
    )


def reachable(objects: Trust) -> set[Actor]:
    """Whom Mallory can act as: those with a key of his, or with his address."""
    found = set()
    for ref, one in objects.items():
        if isinstance(one.manifest, ServiceAccount):
            spec = one.manifest.spec
            if any(is_mine(k.public_key) and not k.revoked for k in spec.public_keys):
                found.add(Actor("service_account", "/".join(ref.path)))
        if isinstance(one.manifest, Identity) and not one.manifest.spec.disabled:
            who = one.manifest.spec
            key = any(is_mine(k.public_key) and not k.revoked for k in who.keys)
            if key or ADDRESS in who.emails:
                name = who.service_account or ref.name
                if who.type != "forge" or key:
                    found.add(Actor(who.type, name))
    return found


def authority(objects: Trust, at_ms: int) -> Held:
    """All that he can do; everything, if he can sign as a forge does."""
    rights, held = rights_of(objects, at_ms), dict[Any, int]()
    for actor in reachable(objects):
        if actor.type == "forge":
            return EVERYTHING
        for grant in rights.of(actor):
            key = grant.permission, grant.scope
            held[key] = max(held.get(key, 0), grant.until_ms)
    return held


def committed(objects: Trust, actor: Actor, rights: Rights, made: list[Any]) -> Trust:
    """What is there after a commit: each change judged by what was there before it."""
    after = dict(objects)
    for (ref, document), deleted in made:
        wanted = None if deleted else document
        if judge(actor, rights, objects, ref, written(objects, ref), wanted) is not None:
            continue
        after.pop(ref, None)
        if wanted is not None:
            after.update(trust((ref, wanted)))
    return after


@settings(max_examples=300)
@given(start=a_start(), commits=COMMITS, data=st.data())
def test_nobody_ends_with_more_than_he_had(start: Trust, commits: Any, data: st.DataObject) -> None:
    objects, at_ms = start, AT_MS
    for made in commits:
        able = sorted(reachable(objects), key=str)
        if not able:
            break
        actor = data.draw(st.sampled_from(able))
        objects = committed(objects, actor, rights_of(objects, at_ms), made)
        at_ms += data.draw(chosen(0, DAY_MS, 60 * DAY_MS))
        had, has = authority(start, at_ms), authority(objects, at_ms)
        more = {key: until_ms for key, until_ms in has.items() if held_until(had, *key) < until_ms}
        assert not more, more


def test_mallory_could_do_something_to_begin_with() -> None:
    """The property above would hold of who can't do anything."""
    objects = trust(identity("mallory"), EDITS)
    had = authority(objects, AT_MS)
    assert had["platform.iam.edit", ()] == FOREVER_MS
    mallory = Actor("user", "mallory")
    made = [(identity("bob"), False), (custom("one", "", [PERMISSIONS[2]], "bob"), False)]
    after = committed(objects, mallory, rights_of(objects, AT_MS), made)
    assert len(after) == len(objects) + 2


MACHINES = st.lists(
    st.one_of(
        a_binding(),
        st.just(stand_in("robot", DEPLOYER)),
        st.just(binding("two", "platform-admin", "", "robot", DEPLOYER)),
    ),
    max_size=4,
)


@given(
    known=MACHINES,
    kind=st.sampled_from(sorted(KINDS)),
    home=chosen(("acme", "lab"), ("acme", "other"), ("borealis", "lab")),
)
def test_a_machine_never_changes_what_is_for_humans(
    known: list[Written], kind: str, home: tuple[str, str]
) -> None:
    objects = trust(account(DEPLOYER, "app-operator", "artifact-publisher"), *known)
    rights = rights_of(objects, AT_MS)
    assert {grant.scope for grant in rights.of(MACHINE)} == {("acme", "lab")}
    assert {grant.permission for grant in rights.of(MACHINE)} <= MACHINE_PERMISSIONS
    for letter, change in changes(kind, *home).items():
        if judge(MACHINE, rights, objects, *change) is None:
            assert kind in ("AppInstance", "Artifact")
            assert change.ref.path[:2] == ("acme", "lab")
            assert (kind, letter) not in {("Artifact", one) for one in "dxtr"}
