"""Which commits have come true, and since when they were awaited."""

from __future__ import annotations

from dataclasses import replace

from reconciler.core.actions import Action, Held, Launch, Precondition, Remove, Replace
from reconciler.core.convergence import followed
from reconciler.core.desired import Desired, Target
from reconciler.core.names import InstanceKey, Revision
from reconciler.core.records import Condition, InstanceRecord, State
from tests.core.fleet import (
    NEXT_REVISION,
    NOW_MS,
    REVISION,
    deploying,
    desired,
    inventory,
    running,
    target,
)

A, B = target("a"), target("b")
NEWER = target("a", "1.1.0")


def launch(of: Target, cause: str = "change", held: Held | None = None) -> Launch:
    return Launch(
        of.instance.key, "node-a", of.workload, of.instance.version, 1, "why", Precondition(None),
        held=held, cause=cause,  # type: ignore[arg-type]
    )  # fmt: skip


def judged(record: InstanceRecord, converged: bool) -> InstanceRecord:
    status = "True" if converged else "False"
    one = Condition("Converged", status, "x", "", REVISION, 0)  # type: ignore[arg-type]
    return replace(record, conditions=(one,))


class Story:
    """One pass after the other, each 1 s later; revisions are seen half a second before."""

    def __init__(self) -> None:
        self.records: dict[InstanceKey, InstanceRecord] = {}
        self.now_ms = NOW_MS

    def step(
        self, want: Desired, *actions: Action, **states: tuple[InstanceRecord, bool]
    ) -> list[tuple[Revision, int]]:
        for record, converged in states.values():
            known = self.records.get(record.key)
            change = known.change if known else None
            self.records[record.key] = replace(judged(record, converged), change=change)
        records = inventory(*self.records.values())
        seen_ms = NOW_MS - 500 if want.revision == REVISION else NOW_MS + 1_500
        after, arrivals = followed(records, actions, want, seen_ms, self.now_ms)
        self.records = dict(after)
        self.now_ms += 1_000
        return [(arrival.revision, arrival.took_ms) for arrival in arrivals]

    def awaited(self) -> set[Revision]:
        return {r.change.revision for r in self.records.values() if r.change is not None}


def test_a_commit_has_come_true_once_all_it_changed_has() -> None:
    story, want = Story(), desired(A, B)
    assert (
        story.step(want, launch(A), launch(B), a=(deploying(A), False), b=(deploying(B), False))
        == []
    )
    assert story.step(want, a=(running(A), True)) == []
    assert story.awaited() == {REVISION}
    assert story.step(want, b=(running(B), True)) == [(REVISION, 2_500)]
    assert story.step(want) == []


def test_a_held_change_is_awaited_too() -> None:
    story, want = Story(), desired(A)
    requested = replace(deploying(A), state=State.REQUESTED)
    held = launch(A, held=Held("outside_sync_window", "not now"))
    assert story.step(want, held, a=(requested, False)) == []
    assert story.step(want, launch(A), a=(deploying(A), False)) == []
    assert story.step(want, a=(running(A), True)) == [(REVISION, 2_500)]


def test_what_a_later_commit_takes_over_is_told_of_the_later_one_only() -> None:
    story, want = Story(), desired(A)
    story.step(want, launch(A), a=(deploying(A), False))
    story.step(want, a=(deploying(A), False))
    change = Replace(
        A.instance.key, "node-a", NEWER.workload, "1.1.0", "1.0.0", "upgrade", 2, "why",
        Precondition(None),
    )  # fmt: skip
    later = desired(NEWER, revision=NEXT_REVISION)
    story.step(later, change, a=(deploying(NEWER), False))
    assert story.awaited() == {NEXT_REVISION}
    assert story.step(later, a=(running(NEWER), True)) == [(NEXT_REVISION, 1_500)]


def test_a_later_commit_that_changes_nothing_of_it_takes_nothing_over() -> None:
    story, want = Story(), desired(A)
    story.step(want, launch(A), a=(deploying(A), False))
    same = replace(want, revision=NEXT_REVISION)
    assert story.step(same, launch(A), a=(deploying(A), False)) == []
    assert story.step(same, a=(running(A), True)) == [(REVISION, 2_500)]


def test_a_revert_before_anything_happened_is_no_success_of_the_commit() -> None:
    story = Story()
    held = replace(launch(NEWER), held=Held("suspended", "not now"))
    story.step(desired(NEWER), held, a=(running(A), False))
    assert story.awaited() == {REVISION}
    assert story.step(desired(A, revision=NEXT_REVISION), a=(running(A), True)) == []
    assert story.awaited() == set()


def test_drift_and_retries_are_nobodys_commit() -> None:
    story = Story()
    story.step(desired(A), launch(A, "drift"), a=(deploying(A), False))
    story.step(desired(A), launch(A, "retry"), a=(deploying(A), False))
    assert story.awaited() == set()


def test_a_removal_comes_true_with_its_proof() -> None:
    story = Story()
    remove = Remove(A.instance.key, "node-a", "1.0.0", 2, "gone", Precondition(None))
    going = replace(running(A), state=State.DECOMMISSIONING)
    story.step(desired(), remove, a=(going, False))
    gone = replace(going, state=State.DECOMMISSIONED)
    assert story.step(desired(), a=(gone, True)) == [(REVISION, 1_500)]


def test_nothing_to_follow_costs_no_copy() -> None:
    records = inventory(judged(running(A), True), judged(running(B), True))
    after, arrivals = followed(records, (), desired(A, B), NOW_MS, NOW_MS)
    assert after is records
    assert arrivals == ()
