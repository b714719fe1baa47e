"""Blobs that are to be on nodes ahead: what is planned, what is over, and who may have which."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest

from node_agent.wire import BlobSeen
from reconciler.core.actions import BlobAction, blob_action_id, blob_subject
from reconciler.core.desired import BlobWish, Desired, Guards, Term, Window
from reconciler.core.observed import Known, NodeUnknown, Observed, Seen
from reconciler.core.observed import NodeSeen as Node
from reconciler.core.plan import Plan
from reconciler.core.plan.blobs import FAILED_PAUSE_MS, UNSEEN_MS, digests_for, finished_pulls
from reconciler.core.plan.compute import compute_plan
from reconciler.core.records import Intent
from reconciler.record import result_of, summary_of
from reconciler.views.plan import plan_document, plan_lines
from reconciler.views.plan_markdown import plan_markdown
from reconciler.views.plan_words import Shown
from tests.core.fleet import NOW_MS, desired, intent, node, running, target

DIGEST = "sha256:" + "a" * 64
OTHER = "sha256:" + "b" * 64
SOURCE = "artifact_store://projects/acme/research/artifacts/hello/1.0.0/weights"
ARTIFACT = "Artifact/acme/research/hello/1.0.0/weights"
WISH = BlobWish("node-a", DIGEST, SOURCE, ARTIFACT)
SUBJECT = blob_subject("node-a", DIGEST)
AWAY = NodeUnknown("node_offline", "last reported 90 s ago", 90_000)
UNTIL = Term("ann", "audit", NOW_MS + 3_600_000)
SHUT = Guards(windows=(Window("never", "allow", frozenset({0}), 0, 1, "UTC"),))


def blob(state: str = "ready", digest: str = DIGEST, **rest: object) -> BlobSeen:
    return BlobSeen.model_validate({"digest": digest, "state": state, **rest})


def see(*blobs: BlobSeen, seen: Seen[Node] | None = None) -> Observed:
    if seen is None:
        reporting = node()
        assert isinstance(reporting, Known)
        seen = Known(replace(reporting.value, blobs=blobs))
    return Observed(nodes={"node-a": seen})


def pull(state: str = "queued", age_ms: int = 1_000, **rest: object) -> Intent:
    asked = intent(target(), kind="pull_blob", state=state, created_at_ms=NOW_MS - age_ms)
    fields = {"instance": SUBJECT, "target_hash": DIGEST, "node": "node-a", **rest}
    return replace(asked, **fields)  # type: ignore[arg-type]


def want(*wishes: BlobWish, **rest: object) -> Desired:
    return desired(prefetch=wishes or (WISH,), **rest)


def plan(wanted: Desired, seen: Observed, *intents: Intent) -> Plan:
    closed = finished_pulls(wanted.prefetch, seen, intents, NOW_MS)
    left = [one for one in intents if one.instance not in closed]
    return compute_plan(wanted, seen, {}, left, NOW_MS)


WANTED = want()


@dataclass(frozen=True)
class Case:
    name: str
    expect: list[str]
    see: Observed
    intents: tuple[Intent, ...] = ()
    want: Desired = WANTED


ALTERED = blob("failed", error="altered: its file was changed")
CASES = [
    Case("not there", ["pull"], see()),
    Case("another one is there", ["pull"], see(blob(digest=OTHER))),
    Case("there", [], see(blob())),
    Case("wanted by nobody", [], see(), want=desired()),
    Case("asked for", ["blob_pulling: its task waits for node node-a"], see(), (pull(),)),
    Case("taken over", ["blob_pulling: its node has taken the task over"], see(),
         (pull("accepted"),)),
    Case("on its way", ["blob_pulling: 3 of 10 bytes are there"],
         see(blob("pulling", bytes_done=3, size_bytes=10)), (pull("accepted"),)),
    Case("on its way, with trouble",
         ["blob_pulling: 3 bytes are there; tried again after unreachable: no"],
         see(blob("pulling", bytes_done=3, error="unreachable: no")), (pull("accepted"),)),
    Case("arrived", [], see(blob()), (pull("accepted"),)),
    Case("given up", ["blob_failed: no_such_blob: gone"],
         see(blob("failed", error="no_such_blob: gone")), (pull("accepted"),)),
    Case("given up long ago", ["pull"], see(blob("failed", error="no_such_blob: gone")),
         (pull("accepted", FAILED_PAUSE_MS),)),
    Case("refused", ["task_refused: node node-a refused its task: key_retired: too old"], see(),
         (pull("refused", detail="key_retired: too old"),)),
    Case("refused long ago", ["pull"], see(), (pull("refused", FAILED_PAUSE_MS),)),
    Case("lost sight of", ["pull"], see(), (pull("accepted", UNSEEN_MS),)),
    Case("changed on the disk there", ["pull"], see(ALTERED)),
    Case("its node is away", ["node_offline: last reported 90 s ago"], see(seen=AWAY)),
    Case("its node is away meanwhile", ["node_offline: last reported 90 s ago"], see(seen=AWAY),
         (pull("accepted", UNSEEN_MS),)),
    Case("its node never joined", ["node_never_joined: node node-a never joined"],
         Observed(nodes={})),
    Case("outside of every window", ["pull"], see(), want=want(guards=SHUT)),
    Case("suspended", ["suspended"], see(), want=want(guards=Guards(suspend=UNTIL))),
    Case("its project is suspended", ["suspended"], see(),
         want=want(suspended={"acme/research": UNTIL})),
    Case("another project is suspended", ["pull"], see(),
         want=want(suspended={"acme/other": UNTIL})),
    Case("applied by hand", ["awaiting_apply"], see(), want=want(guards=Guards(manual=True))),
]  # fmt: skip


def said(planned: Plan) -> list[str]:
    short = ("suspended", "awaiting_apply")
    return [
        "pull" if one.held is None
        else one.held.code if one.held.code in short
        else f"{one.held.code}: {one.held.message}"
        for one in planned.blobs
    ]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_what_is_planned(case: Case) -> None:
    assert said(plan(case.want, case.see, *case.intents)) == case.expect


@pytest.mark.parametrize(
    ("state", "seen", "age_ms", "over"),
    [
        ("queued", see(), 10**9, False),
        ("queued", see(blob()), 0, True),
        ("accepted", see(blob()), 0, True),
        ("accepted", see(), UNSEEN_MS - 1, False),
        ("accepted", see(), UNSEEN_MS, True),
        ("accepted", see(blob("pulling")), 10**9, False),
        ("accepted", see(blob("failed")), FAILED_PAUSE_MS - 1, False),
        ("accepted", see(blob("failed")), FAILED_PAUSE_MS, True),
        ("refused", see(), FAILED_PAUSE_MS, True),
        ("accepted", see(seen=AWAY), 10**9, False),
        ("queued", see(seen=AWAY), 10**9, False),
    ],
)
def test_what_is_over(state: str, seen: Observed, age_ms: int, over: bool) -> None:
    asked = pull(state, age_ms)
    assert (SUBJECT in finished_pulls([WISH], seen, [asked], NOW_MS)) is over


def test_what_nobody_wants_any_more_is_over() -> None:
    assert finished_pulls([], see(), [pull(), intent(target())], NOW_MS) == (SUBJECT,)


def test_an_intent_of_a_pull_is_of_no_instance() -> None:
    """Nothing that takes intents by their instance ever takes it for one."""
    wanted, ours = want(), target()
    seen = see()
    assert compute_plan(wanted, seen, {ours.instance.key: running(ours)}, [pull()], NOW_MS).actions
    assert SUBJECT.partition("/")[0] == "Blob"


def test_a_node_may_have_what_it_reads_and_what_it_is_asked_to_pull() -> None:
    reads = replace(running(target()), blobs=(OTHER,))
    elsewhere = replace(running(target(name="two", node="node-b")), blobs=("sha256:" + "c" * 64,))
    asked = [pull(), replace(pull(), node="node-b", target_hash="sha256:" + "d" * 64),
             intent(target())]  # fmt: skip
    assert digests_for("node-a", [reads, elsewhere], asked) == {DIGEST, OTHER}


def test_its_id_says_which_blob_on_which_node() -> None:
    actions = [
        BlobAction("node-a", DIGEST, SOURCE, ARTIFACT, "why"),
        BlobAction("node-b", DIGEST, SOURCE, ARTIFACT, "why"),
        BlobAction("node-a", OTHER, SOURCE, ARTIFACT, "why"),
    ]
    assert len({*map(blob_action_id, actions)}) == 3
    assert blob_action_id(replace(actions[0], reason="other")) == blob_action_id(actions[0])


def test_the_pass_is_not_done_until_it_is_there() -> None:
    begun, on_its_way, there = (
        plan(want(), see()), plan(want(), see(), pull()), plan(want(), see(blob()))
    )  # fmt: skip
    assert [result_of(one, (), None) for one in (begun, on_its_way, there)] == [
        "waiting", "waiting", "done",
    ]  # fmt: skip
    assert [one.empty for one in (begun, on_its_way, there)] == [False, False, True]
    summary = summary_of(on_its_way, (), None, 0, 1)
    assert (summary.actions, summary.held, summary.blocked) == (0, 1, {"blob_pulling": 1})
    assert begun.plan_id == on_its_way.plan_id != there.plan_id


def test_who_reads_the_plan_sees_it() -> None:
    nodes = {f"node-{letter}": node(name=f"node-{letter}") for letter in "abc"}
    wishes = [replace(WISH, node=name) for name in nodes]
    planned = plan(want(*wishes), Observed(nodes={**nodes, "node-c": AWAY}))
    shown = Shown(planned, now_ms=NOW_MS)
    lines = [line.text for line in plan_lines(shown)]
    at = lines.index("Blobs ahead (3)")
    assert lines[at + 1 : at + 4] == [
        f"  + {ARTIFACT} ({'a' * 12}) to node-a, node-b",
        f"  + {ARTIFACT} ({'a' * 12}) to node-c",
        "      held, node_offline: last reported 90 s ago",
    ]
    assert lines[-1].startswith("0 to start, 0 to change, 0 to remove, 2 blobs to pull, 1 held")
    markdown = plan_markdown(shown)
    assert "#### Blobs ahead (3)" in markdown
    assert "to node-c, held, `node_offline`: last reported 90 s ago" in markdown
    (first, *_) = plan_document(shown)["blobs"]
    assert {**first, "action_id": ""} == {
        "action_id": "",
        "action": "pull_blob",
        "instance": f"Blob/node-a/{DIGEST}",
        "node": "node-a",
        "artifact": ARTIFACT,
        "digest": DIGEST,
        "reason": f"{ARTIFACT} is to be there ahead",
        "held": None,
        "by_this_change": None,
    }


def test_what_failed_is_told() -> None:
    seen = see(blob("failed", error="over_quota: no room"))
    planned = plan(want(), seen, pull("accepted"))
    (found,) = [one for one in planned.findings if one.code == "blob_not_delivered"]
    assert (found.level, found.object) == ("info", ARTIFACT)
    assert found.message == "not on node node-a: over_quota: no room"
