"""Which keys are on which node, and which there are: tables of cases, and whole rotations."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node_agent.wire import ConfigSeen, Endpoint
from reconciler.core.authority.facts import RefusedChange
from reconciler.core.custody.paths import ssh_key_path
from reconciler.core.names import InstanceKey
from reconciler.core.observed import Known, NodeSeen, Seen, Unknown
from reconciler.core.problems import Problem
from reconciler.core.records import (
    Accepted,
    AcceptedObject,
    EnrolledNode,
    InstanceRecord,
    State,
)
from reconciler.core.ssh_access import (
    Doubt,
    Installed,
    KeyName,
    SshSteps,
    installed_on,
    key_steps,
    keys_by_node,
    keys_wanted,
    reported_by,
    rotating,
    ssh_id,
)
from tests.core.fleet import REVISION, node, running, target

LAB, WEB = ("acme", "lab"), ("acme", "web")
USERS = {"node-a": "tunnel", "node-b": "tunnel"}


def accepted(
    keys: Mapping[tuple[str, str], int],
    users: Mapping[str, str] = USERS,
    projects: Sequence[str] = ("lab", "web"),
) -> Accepted:
    others = ("Node/node-a", "Node/node-b", "Tenant/acme", "Tenant/other")
    specs: dict[str, dict[str, Any]] = {
        **{f"Project/acme/{name}": {} for name in projects},
        **{ref: {} for ref in others},
    }
    for owner, version in keys.items():
        specs["/".join(("Project", *owner))] = {"ssh_key": {"version": version}}
    for name, user in users.items():
        specs[f"Node/{name}"] = {"ssh_user": user}
    objects = {
        ref: AcceptedObject(ref, f"{ref}.yaml", 1, json.dumps({"spec": spec}), REVISION)
        for ref, spec in specs.items()
    }
    return Accepted(REVISION, objects)


def record(
    name: str, at: str, *ports: int, host_ip: str = "127.0.0.1", state: State = State.RUNNING
) -> InstanceRecord:
    endpoints = tuple(
        Endpoint(name=f"p{port}", container=80, host_ip=host_ip, host_port=port) for port in ports
    )
    made = running(target())
    return replace(made, key=InstanceKey(name), node=at, endpoints=endpoints, state=state)


def records(*made: InstanceRecord) -> dict[InstanceKey, InstanceRecord]:
    return {one.key: one for one in made}


def ids(*versions: int, owner: tuple[str, str] = LAB) -> frozenset[str]:
    return frozenset(ssh_id((owner, version)) for version in versions)


PLACED = records(record("acme/lab/a", "node-a", 9001), record("acme/lab/b", "node-b", 9002))
PUBLIC = {(owner, v): f"ssh-ed25519 {owner[1]}{v}" for owner in (LAB, WEB) for v in range(1, 9)}


def test_a_key_opens_what_its_project_publishes_on_that_node() -> None:
    there = records(
        record("acme/lab/z", "node-a", 9002, 9001),
        record("acme/lab/a", "node-a", 9003, host_ip="::1"),
        record("acme/lab/a.worker", "node-a", 9009, host_ip="10.0.0.7"),
        record("acme/lab/gone", "node-a", 9004, state=State.DECOMMISSIONED),
        record("acme/lab/far", "node-b"),
        record("acme/web/other", "node-a", 9005),
        record("acme/lab/c", "node-c", 9006),
    )
    found = keys_by_node(accepted({LAB: 1, WEB: 3}), there, {}, PUBLIC)
    shown = {
        at: [(key.id, key.user, key.permit_open) for key in keys] for at, keys in found.items()
    }
    opens = ("10.0.0.7:9009", "127.0.0.1:9001", "127.0.0.1:9002", "[::1]:9003")
    assert shown == {
        "node-a": [
            ("acme/lab/1", "tunnel", opens),
            ("acme/web/3", "tunnel", ("127.0.0.1:9005",)),
        ],
        "node-b": [("acme/lab/1", "tunnel", ())],
    }
    assert found["node-a"][0].public_key == "ssh-ed25519 lab1"


@pytest.mark.parametrize(
    ("manifests", "public"),
    [
        (accepted({}), PUBLIC),
        (accepted({LAB: 1}, users={}), PUBLIC),
        (accepted({LAB: 1}), {}),
        (Accepted(), PUBLIC),
    ],
)
def test_nobody_is_let_in(manifests: Accepted, public: Mapping[KeyName, str]) -> None:
    assert keys_by_node(manifests, PLACED, {}, public) == {}


@pytest.mark.parametrize(
    ("installed", "versions"),
    [
        ({"node-a": ids(), "node-b": ids()}, [2]),
        ({"node-a": ids(1), "node-b": ids(1)}, [1, 2]),
        ({"node-a": ids(1, 2), "node-b": ids(1)}, [1, 2]),
        ({"node-a": ids(1, 2), "node-b": None}, [1, 2]),
        ({"node-a": ids(1, 2), "node-b": ids(1, 2)}, [2]),
        ({"node-a": ids(2), "node-b": ids(1, 2)}, [2]),
        # Nobody has the older one any more: a node that comes later does not bring it back.
        ({"node-a": ids(2), "node-b": ids()}, [2]),
        ({"node-a": ids(2)}, [2]),
        # What a node makes up is of no consequence.
        ({"node-a": frozenset({"acme/lab/x", "acme/lab/9", "acme/lab/²"}), "node-b": ids()}, [2]),
    ],
)
def test_the_one_before_stays_until_all_have_the_newest(
    installed: Installed, versions: list[int]
) -> None:
    found = keys_wanted(accepted({LAB: 2}), PLACED, installed)
    assert found == [(LAB, version) for version in versions]


def test_whom_a_rotation_waits_for() -> None:
    manifests = accepted({LAB: 2, WEB: 1})
    assert rotating(manifests, PLACED, {"node-a": ids(1), "node-b": ids(1, 2)}) == {
        (LAB, 2): ("node-a",)
    }
    assert rotating(manifests, PLACED, {"node-a": ids(1, 2), "node-b": None}) == {
        (LAB, 2): ("node-b",)
    }
    assert rotating(manifests, PLACED, {"node-a": ids(), "node-b": ids()}) == {}


@pytest.mark.parametrize(
    ("wanted", "installed", "deleted"),
    [
        ({LAB: 2}, {"node-a": ids(2), "node-b": ids(2)}, [1, 3]),
        ({LAB: 2}, {"node-a": ids(1, 2), "node-b": ids(2)}, [3]),
        ({LAB: 2}, {"node-a": ids(2), "node-b": None}, []),
        # One that the project is not on any more.
        ({LAB: 2}, {"node-a": ids(2), "node-b": ids(2), "node-c": None}, []),
        ({}, {"node-a": ids(), "node-b": ids()}, [1, 2, 3]),
        ({}, {"node-a": ids(2), "node-b": ids()}, [1, 3]),
    ],
)
def test_what_no_node_has_is_deleted(
    wanted: Mapping[tuple[str, str], int], installed: Installed, deleted: list[int]
) -> None:
    paths = [ssh_key_path(*LAB, version) for version in (1, 2)]
    half = [ssh_key_path(*LAB, 3), "ssh/odd", "ssh/a/b/vx", "ssh/a/b/v01"]
    steps = key_steps(accepted(wanted), installed, paths, half)
    assert steps.delete == tuple((LAB, version) for version in deleted)
    assert steps.make == ()


GONE_LAB = accepted({WEB: 1}, projects=("web",))
LAB_FILE = "tenants/acme/projects/lab/project.yaml"


def problem(path: str, about: str = "") -> Problem:
    return Problem(path, 1, 1, "unknown_field", "what is wrong", object=about)


@pytest.mark.parametrize(
    ("doubt", "is_kept"),
    [
        (Doubt(), False),
        (Doubt((problem("catalog/app/app.yaml"), problem("platform/nodes/n.yaml"))), False),
        (Doubt((problem("tenants/other/projects/x/project.yaml"),)), False),
        (Doubt(unread=frozenset({"notebook"})), False),
        (Doubt((problem(LAB_FILE, "Project/acme/lab"),)), True),
        (Doubt((problem(LAB_FILE),)), True),
        (Doubt((problem("platform/x.yaml", "Project/acme/lab"),)), True),
        (Doubt((problem("platform/x.yaml", "Tenant/acme"),)), True),
        # A slip of its folder's name, of a tenant's, and of the one at the top.
        (Doubt((problem("tenants/acme/projects/labb/project.yaml"),)), True),
        (Doubt((problem("tenants/acmee/projects/lab/project.yaml"),)), True),
        (Doubt((problem("tenant/acme/projects/lab/project.yaml"),)), True),
        (Doubt((problem("."),)), True),
        (Doubt(unread=frozenset({"lab"})), True),
        (Doubt(unread=frozenset({"acme"})), True),
        (Doubt(whole=True), True),
    ],
)
def test_a_project_that_is_absent_need_not_be_gone(doubt: Doubt, is_kept: bool) -> None:
    """Nothing was accepted before, or is remembered of it: the store was lost."""
    expected = SshSteps(doubted=((LAB, 1),)) if is_kept else SshSteps(delete=((LAB, 1),))
    paths = [ssh_key_path(*LAB, 1), ssh_key_path(*WEB, 1)]
    assert key_steps(GONE_LAB, {}, paths, (), doubt) == expected


def test_before_anything_is_accepted_nothing_is_deleted() -> None:
    assert key_steps(Accepted(), {}, [ssh_key_path(*LAB, 1)]).doubted == ((LAB, 1),)


@pytest.mark.parametrize("wanted", [{}, {LAB: 2}])
@pytest.mark.parametrize(
    ("doubt", "is_kept"),
    [
        (Doubt((problem("tenants/acme/projects/web/project.yaml", "Project/acme/web"),)), False),
        (Doubt((problem("x.yaml", "Project/acme/lab"),)), True),
        (Doubt((problem("Project/acme/lab.yaml"),)), True),
    ],
)
def test_its_last_form_is_not_what_it_asks_for_now(
    wanted: Mapping[tuple[str, str], int], doubt: Doubt, is_kept: bool
) -> None:
    paths = [ssh_key_path(*LAB, version) for version in (1, 2)]
    steps = key_steps(accepted(wanted), {}, paths, (), doubt)
    surplus = ((LAB, 1),) if wanted else ((LAB, 1), (LAB, 2))
    assert (steps.doubted if is_kept else steps.delete) == surplus
    assert not (steps.delete if is_kept else steps.doubted)


def test_a_change_that_was_refused_is_no_removal() -> None:
    change = RefusedChange("Project/acme/lab", LAB_FILE, REVISION, "user/eve", "c", "m", "h", "{}")
    refused = replace(GONE_LAB, refused={change.subject: change})
    assert key_steps(refused, {}, [ssh_key_path(*LAB, 1)]).doubted == ((LAB, 1),)


OWNERS = st.sampled_from([LAB, WEB, ("other", "x")])
REPORTS = st.none() | st.frozensets(
    st.builds(ssh_id, st.tuples(OWNERS, st.integers(1, 3))), max_size=4
)


@given(
    wanted=st.dictionaries(st.sampled_from([LAB, WEB]), st.integers(1, 3)),
    projects=st.sets(st.sampled_from(["lab", "web"])),
    installed=st.dictionaries(st.sampled_from(["node-a", "node-b", "node-c"]), REPORTS),
    pairs=st.frozensets(st.tuples(OWNERS, st.integers(1, 3))),
    about=st.sets(st.sampled_from(["", "Project/acme/lab", "Project/acme/web", "Tenant/acme"])),
)
def test_what_is_deleted_is_surely_of_no_use(
    wanted: dict[tuple[str, str], int],
    projects: set[str],
    installed: dict[str, frozenset[str] | None],
    pairs: frozenset[KeyName],
    about: set[str],
) -> None:
    manifests = accepted(wanted, projects=tuple(projects | {owner[1] for owner in wanted}))
    doubt = Doubt(tuple(problem("tenants/acme/projects/x/y.yaml", one) for one in sorted(about)))
    steps = key_steps(manifests, installed, [ssh_key_path(*o, v) for o, v in pairs], (), doubt)
    assert not {*steps.delete} & {*steps.doubted}
    assert {*steps.delete, *steps.doubted} <= pairs - {*wanted.items()}
    for owner, version in steps.delete:
        assert None not in installed.values()
        assert not any(ssh_id((owner, version)) in (ids or ()) for ids in installed.values())
        assert "/".join(("Project", *owner)) not in about
        assert f"Tenant/{owner[0]}" not in about
        assert not about or owner[0] != "acme" or owner[1] in projects | {o[1] for o in wanted}
    if None not in installed.values() and not about:
        held = {one for ids in installed.values() for one in ids or ()}
        loose = {name for name in pairs - {*wanted.items()} if ssh_id(name) not in held}
        assert {*steps.delete} == loose


def test_what_is_wanted_and_not_whole_is_made() -> None:
    steps = key_steps(accepted({LAB: 2, WEB: 1}), {}, (), [ssh_key_path(*LAB, 2)])
    assert (steps.make, steps.delete) == (((LAB, 2), (WEB, 1)), ())


def test_what_nodes_report() -> None:
    seen = node()
    assert isinstance(seen, Known)
    config = ConfigSeen(ssh_keys=("acme/lab/1",))
    nodes: dict[str, Seen[NodeSeen]] = {
        "node-a": Known(replace(seen.value, config=config)),
        "node-b": seen,
        "node-c": Unknown("node_offline", "silent"),
        "node-d": Unknown("node_revoked", "lost"),
    }
    expected = {"node-a": ids(1), "node-b": ids(), "node-c": None, "node-d": ids()}
    assert installed_on(nodes) == expected


@pytest.mark.parametrize(
    ("report", "found"),
    [
        ('{"config": {"ssh_keys": ["acme/lab/1"]}}', ids(1)),
        ('{"config": null}', ids()),
        ("{}", ids()),
        (None, None),
        ("[]", None),
        ("{", None),
        ('{"config": {"ssh_keys": 1}}', None),
    ],
)
def test_what_a_node_said_last(report: str | None, found: frozenset[str] | None) -> None:
    joined = EnrolledNode("node-a", "0" * 64, 1, report_json=report)
    assert reported_by([joined]) == {"node-a": found}
    assert reported_by([replace(joined, revoked_at_ms=2)]) == {}


def test_a_second_rotation_brings_nothing_back() -> None:
    """The first had gone as far as one node, when another one began."""
    there = {"node-a": ids(2), "node-b": ids(1, 2)}
    found = keys_by_node(accepted({LAB: 3}), PLACED, there, PUBLIC)
    shown = {at: [key.id for key in keys] for at, keys in found.items()}
    assert shown == {
        "node-a": ["acme/lab/2", "acme/lab/3"],
        "node-b": ["acme/lab/1", "acme/lab/2", "acme/lab/3"],
    }


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("raise"), st.just("")),
            st.tuples(st.just("node"), st.sampled_from(["node-a", "node-b"])),
            st.tuples(st.just("pass"), st.just("")),
        ),
        max_size=30,
    )
)
def test_whatever_comes_when_somebody_can_always_get_in(steps: list[tuple[str, str]]) -> None:
    """Nodes take their keys late: no version comes back, none goes before the next is there."""
    version, there, existing = 1, dict.fromkeys(USERS, ids(1)), {1}
    dropped: dict[str, set[int]] = {name: set() for name in USERS}
    for step, name in steps:
        manifests = accepted({LAB: version})
        if step == "raise":
            version += 1
        elif step == "pass":
            paths = [ssh_key_path(*LAB, one) for one in existing]
            done = key_steps(manifests, there, paths)
            existing |= {made for _, made in done.make}
            existing -= {gone for _, gone in done.delete}
        else:
            public = {(LAB, one): f"key {one}" for one in existing}
            keys = keys_by_node(manifests, PLACED, there, public).get(name, ())
            now = frozenset(key.id for key in keys)
            before = {int(one.rpartition("/")[2]) for one in there[name]}
            after = {int(one.rpartition("/")[2]) for one in now}
            assert not after & dropped[name]
            if before - after:
                assert version in after or not after
                assert all(
                    ssh_id((LAB, version)) in (now if other == name else there[other])
                    for other in USERS
                )
            dropped[name] |= before - after
            there[name] = now
    for _ in range(2):
        done = key_steps(accepted({LAB: version}), there, [ssh_key_path(*LAB, v) for v in existing])
        existing = (existing | {made for _, made in done.make}) - {gone for _, gone in done.delete}
        public = {(LAB, one): f"key {one}" for one in existing}
        for name in USERS:
            keys = keys_by_node(accepted({LAB: version}), PLACED, there, public)[name]
            there[name] = frozenset(key.id for key in keys)
        for name in USERS:
            keys = keys_by_node(accepted({LAB: version}), PLACED, there, public)[name]
            there[name] = frozenset(key.id for key in keys)
    assert there == dict.fromkeys(USERS, ids(version))
    assert existing == {version}
