"""What can't happen in the life of an instance, and why: the pairs that TRANSITIONS lacks.

Rule: a test finds every pair of a state and a trigger in one of the two tables, and in one only.
"""

from __future__ import annotations

from reconciler.core.lifecycle import LIVE, Trigger
from reconciler.core.records import State

_UNBEGUN = (None, State.REQUESTED, State.DECOMMISSIONED)
_LEAVING = (*_UNBEGUN, State.DECOMMISSIONING)
_NEWS = (Trigger.READY, Trigger.FAILED, Trigger.FELL_BACK, Trigger.STAYED, Trigger.REMOVED)

IMPOSSIBLE: tuple[tuple[tuple[State | None, ...], tuple[Trigger, ...], str], ...] = (
    (LIVE, (Trigger.REQUEST,), "its launch is no longer held: it was handed to a node"),
    ((State.REQUESTED,), (Trigger.REQUEST,), "it is noted once; another pass adds nothing"),
    (
        _UNBEGUN,
        (Trigger.UPGRADE, Trigger.ROLL_BACK),
        "nothing of it was ever handed to a node, so there is nothing to change: it is deployed",
    ),
    (
        (State.REQUESTED,),
        _NEWS,
        "no node has a task for it; what runs as desired all the same is adopted as deployed",
    ),
    ((None, State.DECOMMISSIONED), _NEWS, "its node has nothing of it that is ours"),
    (
        (None, State.DECOMMISSIONED),
        (Trigger.DECOMMISSION, Trigger.WITHDRAWN),
        "there is nothing to end",
    ),
    (
        (*LIVE, State.DECOMMISSIONING),
        (Trigger.WITHDRAWN,),
        "it was handed to a node: only a teardown ends it",
    ),
    (
        tuple(state for state in (None, *State) if state is not State.DEPLOYING),
        (Trigger.RECALLED,),
        "only a launch that no node took over is called back",
    ),
    (_LEAVING, (Trigger.MOVE,), "it is not there, or is going: nobody takes over its life"),
    (
        (State.DECOMMISSIONING,),
        (Trigger.REQUEST, Trigger.DEPLOY, Trigger.UPGRADE, Trigger.ROLL_BACK),
        "wanted again, it waits for the proof that the old one is gone, and starts anew",
    ),
    (
        (State.DECOMMISSIONING,),
        (Trigger.READY, Trigger.FELL_BACK, Trigger.STAYED),
        "only a proof moves it on, whatever still runs",
    ),
    (LIVE, (Trigger.REMOVED,), "nobody asked for a teardown: what is missing is drift"),
    ((State.RUNNING,), (Trigger.READY,), "it is ready already"),
    ((State.RUNNING,), (Trigger.FELL_BACK,), "what runs is what worked last"),
    (
        (State.DEPLOYING, State.RUNNING, State.UPGRADING, State.ROLLING_BACK),
        (Trigger.STAYED,),
        "only told of a failure that was heard of before",
    ),
    ((State.FAILED,), (Trigger.FAILED,), "it is told once, until it is tried again"),
)
"""(states, triggers, why)"""
