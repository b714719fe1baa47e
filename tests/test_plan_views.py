"""What people and machines see of a plan, to the letter."""

from __future__ import annotations

import json

from node_agent.wire import FailureReason, Phase
from reconciler.core.desired import Guards
from reconciler.core.observed import Observed
from reconciler.core.plan import Plan
from reconciler.core.plan.compute import compute_plan
from reconciler.core.problems import Problem
from reconciler.plan_views import plan_document, plan_lines, plan_markdown
from tests.core.fleet import (
    NOW_MS,
    deploying,
    desired,
    intent,
    inventory,
    observed,
    report,
    running,
    target,
)

OLD, NEW = target(version="1.0.0"), target(version="1.1.0")


def a_full_plan() -> Plan:
    """One of each: launch, upgrade, rollback, removal, held, under way, found."""
    up, back = target("up", "1.1.0"), target("back", "1.0.0")
    gone, slow = target("gone"), target("slow")
    bad = target("bad", "1.1.0")
    see = observed(
        report(target("up")),
        report(target("back", "1.1.0")),
        report(gone),
        report(slow, Phase.STARTING),
        report(bad, Phase.FAILED, runs=OLD, reason=FailureReason.EXITED, retained=True),
        versions=("1.0.0", "1.1.0"),
    )
    records = [
        running(target("up")),
        running(target("back", "1.1.0"), previous="1.0.0"),
        running(gone),
        deploying(slow),
        running(bad),
    ]
    held = target("held", node="node-b")
    want = desired(target("new"), up, back, slow, bad, held, guards=Guards(9, 100))
    intents = [intent(slow, state="accepted")]
    return compute_plan(want, see, inventory(*records), intents, NOW_MS)


def test_text() -> None:
    lines = [line.text for line in plan_lines(a_full_plan())]
    old, new = (t.workload.image.digest[7:19] for t in (OLD, NEW))
    assert lines[0].startswith("Plan ")
    assert lines[0].endswith(" for revision aaaaaaaaaaaa")
    assert lines[2:] == [
        "  - remove    acme/research/gone on node-a: version 1.0.0",
        "      its manifest was removed",
        f"  ↩ rollback  acme/research/back on node-a: version 1.1.0 → 1.0.0 ({old})",
        f"  ~ upgrade   acme/research/up on node-a: version 1.0.0 → 1.1.0 ({new})",
        f"  + launch    acme/research/new on node-a: version 1.0.0 ({old})",
        "      new instance",
        f"  + launch    acme/research/held on node-b: version 1.0.0 ({old})",
        "      new instance",
        "      held, node_never_joined: node node-b never joined",
        "  … starting  acme/research/slow on node-a: starting",
        "  i node_never_joined Node/node-b: node node-b never joined",
        "      join it: gpuaas node join node-b",
        "  ! exited AppInstance/acme/research/bad: version 1.1.0 was given up: exited; "
        "what ran before runs on",
        "      fix it or revert it with a new commit",
        "",
        "1 to start, 2 to change, 1 to remove, 1 held, 1 under way, 0 unchanged.",
    ]


def test_markdown() -> None:
    text = plan_markdown(a_full_plan(), [Problem("a.yaml", 3, 5, "invalid", "no | good")])
    assert "**1 to start, 2 to change, 1 to remove, 1 held, 1 under way, 0 unchanged.**" in text
    assert "| `-` | remove | `acme/research/gone` | `node-a` | version 1.0.0 |" in text
    assert "<br>**held** (node\\_never\\_joined)" not in text
    assert "<br>**held** (node_never_joined): node node-b never joined" in text
    assert "- **invalid** `a.yaml:3:5`: no \\| good" in text


def test_nothing_to_do() -> None:
    plan = compute_plan(desired(OLD), observed(report(OLD)), inventory(running(OLD)), (), NOW_MS)
    assert [line.text for line in plan_lines(plan)] == [
        "Nothing to do at revision aaaaaaaaaaaa: "
        "0 to start, 0 to change, 0 to remove, 0 held, 0 under way, 1 unchanged."
    ]
    assert "Nothing to do." in plan_markdown(plan)
    assert plan_document(plan)["empty"] is True


def test_json_is_complete_and_stable() -> None:
    document = plan_document(a_full_plan())
    assert json.dumps(document) == json.dumps(plan_document(a_full_plan()))
    assert document["format"] == "gpuaas.dev/plan/v1"
    actions = {a["instance"]: a for a in document["actions"]}
    assert [a["action"] for a in document["actions"]] == [
        "remove", "rollback", "upgrade", "launch", "launch",
    ]  # fmt: skip
    assert actions["acme/research/held"]["held"]["code"] == "node_never_joined"
    assert actions["acme/research/up"]["version_from"] == "1.0.0"
    assert actions["acme/research/up"]["digest"] == NEW.workload.image.digest
    assert document["waiting"][0]["code"] == "starting"


def test_names_cannot_break_out_of_a_markdown_cell() -> None:
    problem = Problem("a`|b.yaml", 1, 1, "invalid", "x | y\n<script>[a](b)`c`")
    plan = compute_plan(desired(), Observed(), {}, (), NOW_MS)
    lines = plan_markdown(plan, [problem]).splitlines()
    assert "- **invalid** `a'|b.yaml:1:1`: x \\| y \\<script\\>\\[a\\](b)\\`c\\`" in lines


def test_a_nodes_words_cannot_break_out_of_a_code_span() -> None:
    """Attempted: a heading and a link in a pull request, by the name of a reported workload."""
    named = report(OLD).model_copy(update={"instance": "x`\n# [approved](http://evil)\x1b[2J"})
    text = plan_markdown(compute_plan(desired(), observed(named), {}, (), NOW_MS))
    assert "`AppInstance/x' # [approved](http://evil)\\x1b[2J`" in text
