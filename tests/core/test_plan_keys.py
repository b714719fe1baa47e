"""Rotation of signing keys: what is planned, row by row."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import pytest

from node_agent.wire import ConfigSeen
from reconciler.core.desired import Desired, Guards, KeyWish, Term, Window
from reconciler.core.names import InstanceKey
from reconciler.core.observed import Known, NodeSeen, NodeUnknown, Observed, Seen, Unknown
from reconciler.core.plan import Plan, plan_id_of
from reconciler.core.plan.compute import compute_plan
from reconciler.core.plan.keys import (
    GONE_AFTER_MS,
    known_versions,
    signed_with,
    signing_version,
    unbelievable,
)
from reconciler.core.records import Intent
from reconciler.record import result_of
from tests.core.fleet import NOW_MS, REVISION, desired, intent, node, target

LONG_MS = GONE_AFTER_MS + 1
AWAY = NodeUnknown("node_offline", "last reported 90 s ago", 90_000)
GONE = NodeUnknown("node_offline", "last reported 600 s ago", LONG_MS)
NEVER = NodeUnknown("node_never_reported", "joined but has not reported yet", LONG_MS)
JOINED = replace(NEVER, silent_ms=1_000)
ENGINE = NodeUnknown("engine_unavailable", "docker: no answer", 1_000)
UNHEARD = Unknown("node_offline", "it was silent when the snapshot was taken")
REVOKED = Unknown("node_revoked", "revoked: stolen")
SEALED = Unknown("custody_sealed", "Vault is sealed")
UNTIL = Term("ann", "audit", NOW_MS + 3_600_000)


def knows(version: int | None, heard_for_ms: int = LONG_MS) -> Seen[NodeSeen]:
    """A node whose agent reported that; None: one that reports no configuration at all."""
    seen = node()
    assert isinstance(seen, Known)
    config = None if version is None else ConfigSeen(digest="d", newest_version=version)
    return Known(replace(seen.value, config=config, heard_for_ms=heard_for_ms))


def once_knew(version: int, silent: NodeUnknown = GONE) -> NodeUnknown:
    return replace(silent, config=ConfigSeen(digest="d", newest_version=version))


def signed(version: int, name: str = "hello", state: str = "queued") -> Intent:
    envelope = {"payload": "", "signatures": [{"keyid": f"key-{version}", "sig": ""}]}
    return intent(target(name), envelope=json.dumps(envelope), state=state)


def see(
    versions: tuple[int, ...] | Unknown, nodes: Mapping[str, Seen[NodeSeen]] | None = None
) -> Observed:
    known = versions if isinstance(versions, Unknown) else Known(versions)
    ids = {} if isinstance(versions, Unknown) else {f"key-{one}": one for one in versions}
    return Observed(nodes=nodes or {}, keys={"tasks": known}, key_ids=ids)


def want(version: int, min_version: int = 1, **rest: Any) -> Desired:
    return desired(keys={"tasks": KeyWish(version, min_version)}, **rest)


def plan(wanted: Desired, seen: Observed, *intents: Intent, approved: str = "") -> Plan:
    return compute_plan(wanted, seen, {}, intents, NOW_MS, frozenset({approved} - {""}))


def said(planned: Plan) -> list[str]:
    """`rotate 2`, or `retire 2: nodes_unaware` for one that is held; findings after it."""
    words = [
        f"{one.kind} {one.version}" + (f": {one.held.code}" if one.held else "")
        for one in planned.keys
    ]
    found = (f for f in planned.findings if f.code != "node_never_joined")
    return [*words, *(f"{f.level} {f.code}" for f in found)]


@dataclass(frozen=True)
class Case:
    name: str
    want: Desired
    see: Observed
    expect: list[str]
    intents: tuple[Intent, ...] = ()


ALL_KNOW = {"a": knows(2), "b": knows(2)}
ONE_KNOWS = {"a": knows(2), "b": knows(1)}
MANUAL = Guards(manual=True)
NEVER_OPEN = Window("never", "allow", frozenset({0}), 0, 1, "UTC")
SHUT = Guards(windows=(NEVER_OPEN,))

CASES = [
    Case("nobody says anything of keys", desired(), see((1, 2), ALL_KNOW), []),
    Case("as wanted", want(1), see((1,), {"a": knows(1)}), []),
    Case("none there yet", want(1), see(()), ["rotate 1"]),
    Case("a new version", want(2), see((1,), ONE_KNOWS), ["rotate 2", "retire 2: key_not_rotated"]),
    Case("two at once", want(3), see((1,)), ["rotate 3", "retire 3: key_not_rotated"]),
    Case("all know it", want(2), see((1, 2), ALL_KNOW), ["retire 2"]),
    Case("one does not", want(2), see((1, 2), ONE_KNOWS), ["retire 2: nodes_unaware"]),
    Case("one is away", want(2), see((1, 2), {"a": AWAY}), ["retire 2: nodes_unaware"]),
    Case("one never reported", want(2), see((1, 2), {"a": NEVER}), ["retire 2: nodes_unaware"]),
    Case("one says nothing of it", want(2), see((1, 2), {"a": knows(None)}),
         ["retire 2: nodes_unaware"]),
    Case("one joined just now", want(2), see((1, 2), {"a": knows(0)}), ["retire 2: nodes_unaware"]),
    Case("a revoked one", want(2), see((1, 2), {"a": knows(2), "b": REVOKED}), ["retire 2"]),
    Case("no node at all", want(2), see((1, 2)), ["retire 2"]),
    Case("a task in flight", want(2), see((1, 2), ALL_KNOW), ["retire 2: tasks_in_flight"],
         (signed(2, "other"), signed(1))),
    Case("a task that was taken over", want(2), see((1, 2), ALL_KNOW), ["retire 2"],
         (signed(1, state="accepted"), signed(2))),
    Case("a task of unknown key", want(2), see((1, 2), ALL_KNOW), ["retire 2: tasks_in_flight"],
         (replace(signed(1), envelope=""),)),
    Case("done", want(2), see((2,), ALL_KNOW), []),
    Case("done, and one left behind", want(2), see((2,), ONE_KNOWS),
         ["stalled node_keys_outdated"]),
    Case("further than wanted", want(1), see((1, 2), ALL_KNOW), ["stalled key_version_below"]),
    Case("further, and the older ones go all the same", want(2), see((1, 2, 3), {"a": knows(3)}),
         ["retire 2", "stalled key_version_below"]),
    Case("nobody knows", want(2), see(SEALED), ["info keys_unknown"]),
    # An explicit min_version: the key leaked.
    Case("at once", want(2, 2), see((1, 2), ALL_KNOW), ["retire 2"], (signed(1),)),
    Case("whoever is gone", want(2, 2), see((1, 2), {"a": knows(2), "b": GONE, "c": NEVER}),
         ["retire 2"]),
    Case("silent for a moment", want(2, 2), see((1, 2), {"a": knows(2), "b": AWAY}),
         ["retire 2: nodes_unaware"]),
    Case("joined a moment ago", want(2, 2), see((1, 2), {"a": knows(2), "b": JOINED}),
         ["retire 2: nodes_unaware"]),
    Case("all are silent", want(2, 2), see((1, 2), {"a": GONE, "b": GONE}),
         ["retire 2: nodes_unaware"]),
    Case("the first one is back", want(2, 2), see((1, 2), {"a": knows(2, 5_000), "b": GONE}),
         ["retire 2: nodes_unaware"]),
    Case("those who are back know nothing yet", want(2, 2),
         see((1, 2), {"a": knows(1), "b": GONE}), ["retire 2: nodes_unaware"]),
    Case("nobody knows for how long", want(2, 2), see((1, 2), {"a": knows(2), "b": UNHEARD}),
         ["retire 2: nodes_unaware"]),
    Case("silent, and they knew it", want(2, 2),
         see((1, 2), {"a": once_knew(2), "b": once_knew(2, ENGINE)}), ["retire 2"]),
    Case("its engine is silent, it is not", want(2, 2),
         see((1, 2), {"a": knows(2), "b": once_knew(1, ENGINE)}), ["retire 2: nodes_unaware"]),
    Case("no node, at once", want(2, 2), see((1, 2)), ["retire 2"]),
    Case("revoked ones, at once", want(2, 2), see((1, 2), {"a": REVOKED}), ["retire 2"]),
    Case("who is there hears of it first", want(2, 2), see((1, 2), ONE_KNOWS),
         ["retire 2: nodes_unaware"]),
    Case("both in one commit", want(2, 2), see((1,), {"a": knows(1)}),
         ["rotate 2", "retire 2: key_not_rotated"]),
    Case("below what is wanted", want(3, 2), see((1, 2), ALL_KNOW), ["rotate 3", "retire 2"]),
    # What the Environment holds back.
    Case("by hand", want(2, guards=MANUAL), see((1,)),
         ["rotate 2: awaiting_apply", "retire 2: key_not_rotated", "stalled awaiting_apply"]),
    Case("the end of a rotation needs no hand", want(2, guards=MANUAL), see((1, 2), ALL_KNOW),
         ["retire 2"]),
    Case("by hand, at once", want(2, 2, guards=MANUAL), see((1, 2), ALL_KNOW),
         ["retire 2: awaiting_apply", "stalled awaiting_apply"]),
    Case("window shut", want(2, guards=SHUT), see((1,)),
         ["rotate 2: outside_sync_window", "retire 2: key_not_rotated"]),
    Case("the end of a rotation needs no window", want(2, guards=SHUT), see((1, 2), ALL_KNOW),
         ["retire 2"]),
    Case("broken glass", want(2, guards=replace(SHUT, break_glass=UNTIL)), see((1,)),
         ["rotate 2", "retire 2: key_not_rotated"]),
    Case("suspended", want(2, guards=Guards(suspend=UNTIL)), see((1, 2), ALL_KNOW),
         ["retire 2: suspended"]),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_plan(case: Case) -> None:
    assert said(plan(case.want, case.see, *case.intents)) == case.expect


ARTIFACT_CASES = [
    ("no key yet", KeyWish(1), (), ["rotate 1"]),
    ("a new version", KeyWish(2), (1,), ["rotate 2"]),
    ("never retired by itself", KeyWish(2), (1, 2), []),
    ("retired when asked for", KeyWish(2, 2), (1, 2), ["retire 2"]),
    ("both in one commit", KeyWish(2, 2), (1,), ["rotate 2", "retire 2: key_not_rotated"]),
    ("below", KeyWish(1), (1, 2), ["stalled key_version_below"]),
]


@pytest.mark.parametrize(
    ("wish", "versions", "expect"), [row[1:] for row in ARTIFACT_CASES],
    ids=[row[0] for row in ARTIFACT_CASES],
)  # fmt: skip
def test_artifact_key(wish: KeyWish, versions: tuple[int, ...], expect: list[str]) -> None:
    """No agent verifies with it, so that none is waited for."""
    seen = Observed(nodes={"a": AWAY}, keys={"artifacts": Known(versions)})
    assert said(plan(desired(keys={"artifacts": wish}), seen)) == expect


def test_who_is_waited_for_is_named() -> None:
    nodes = {f"node-{number}": knows(1) for number in range(7)}
    held = plan(want(2), see((1, 2), nodes)).keys[0].held
    assert held is not None
    assert held.message == (
        "waits for agents that do not know version 2 yet: "
        "node-0, node-1, node-2, node-3, node-4 and 2 more"
    )


def test_id_covers_keys_and_stays_as_it_was_without() -> None:
    with_keys = plan(want(2), see((1,)))
    without = plan(desired(), see((1,)))
    assert with_keys.plan_id != without.plan_id
    assert without.plan_id == plan_id_of(REVISION, without.base, ())
    assert not with_keys.empty
    held = plan(want(2, guards=MANUAL), see((1,)))
    assert held.plan_id == with_keys.plan_id
    applied = plan(want(2, guards=MANUAL), see((1,)), approved=held.plan_id)
    assert [one.held is None for one in applied.keys] == [True, False]


def test_result_of_a_pass() -> None:
    def result(wanted: Desired, seen: Observed) -> str:
        return result_of(plan(wanted, seen), (), None)

    assert result(want(2), see((1,))) == "waiting"
    assert result(want(2), see((1, 2), ONE_KNOWS)) == "waiting"
    assert result(want(2, guards=MANUAL), see((1, 2), {"a": knows(2)})) == "waiting"
    assert result(want(2, guards=MANUAL), see((1,))) == "stalled"
    assert result(want(1), see((1, 2), ALL_KNOW)) == "stalled"
    assert result(want(2), see((2,), ALL_KNOW)) == "done"


SIGNING = [
    ((1,), {}, 1),
    ((1, 2), {}, 2),
    ((1, 2), ALL_KNOW, 2),
    ((1, 2), ONE_KNOWS, 1),
    ((1, 2), {"a": knows(2), "b": AWAY}, 1),
    ((1, 2), {"a": knows(2), "b": REVOKED}, 2),
    ((1, 2, 3), {"a": knows(3), "b": knows(2)}, 2),
    ((2, 3), {"a": knows(3), "b": knows(1)}, 3),
    ((2, 3), {"a": knows(3), "b": AWAY}, 2),
    ((2, 3), {"a": knows(5)}, 3),
]


@pytest.mark.parametrize(("versions", "nodes", "expect"), SIGNING)
def test_signing_version(
    versions: tuple[int, ...], nodes: dict[str, Seen[NodeSeen]], expect: int
) -> None:
    assert signing_version(versions, nodes) == expect


def test_what_a_retired_version_signed_is_handed_out_anew() -> None:
    intents = (signed(1, "a"), signed(2, "b"), signed(1, "c", "accepted"))
    assert unbelievable(see((2,)), intents) == (InstanceKey("acme/research/a"),)
    assert unbelievable(see((1, 2)), intents) == ()
    assert unbelievable(see(SEALED), intents) == ()
    assert unbelievable(see((2,)), (replace(intents[0], envelope=""),)) == ()


def test_helpers_say_what_is_not_known() -> None:
    nodes = {"a": knows(3), "b": AWAY, "c": REVOKED, "d": knows(None)}
    assert dict(known_versions(nodes, 2)) == {"a": 3, "b": 2, "d": 2}
    assert signed_with(signed(2), {"key-2": 2}) == 2
    assert signed_with(signed(1), {"key-2": 2}) == 0
    assert signed_with(replace(signed(1), envelope="{}"), {"key-2": 2}) is None
