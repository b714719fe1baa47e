"""0, 1 and 2 never mean two things."""

from __future__ import annotations

from dataclasses import replace

import pytest

from reconciler.cli.planned import exit_code
from reconciler.core.actions import KeyAction
from reconciler.core.plan import Finding, Plan
from reconciler.core.plan.compute import compute_plan
from reconciler.core.problems import Problem
from tests.core.fleet import NOW_MS, REVISION, deploying, desired, intent, inventory, observed
from tests.core.fleet import target as make_target

HELLO = make_target()
EMPTY = Plan(REVISION, "base")
CHANGES = compute_plan(desired(HELLO), observed(), {}, (), NOW_MS)
HELD = compute_plan(desired(make_target(node="node-b")), observed(), {}, (), NOW_MS)
UNDER_WAY = compute_plan(
    desired(HELLO), observed(), inventory(deploying(HELLO)), (intent(HELLO),), NOW_MS
)
ROTATES = replace(EMPTY, keys=(KeyAction("rotate", "tasks", 2, 1, "version 2 is wanted"),))
GIVEN_UP = replace(EMPTY, findings=(Finding("stalled", "exited", "AppInstance/a/b/c", "no"),))
BROKEN = (Problem("a.yaml", 1, 1, "invalid", "no"),)


@pytest.mark.parametrize(
    ("plan", "problems", "code"),
    [
        (EMPTY, (), 0),
        (CHANGES, (), 2),
        (HELD, (), 2),
        (UNDER_WAY, (), 2),
        (GIVEN_UP, (), 2),
        (ROTATES, (), 2),
        (replace(EMPTY, findings=(Finding("info", "stray", "Node/a", "odd"),)), (), 0),
        (EMPTY, BROKEN, 1),
        (CHANGES, BROKEN, 1),
    ],
)
def test_exit_code(plan: Plan, problems: tuple[Problem, ...], code: int) -> None:
    assert exit_code(plan, problems) == code


def test_held_is_all_there_is() -> None:
    assert HELD.ready == ()
    assert len(HELD.held) == 1
