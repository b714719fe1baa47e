"""What people and machines see of a plan, to the letter."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from node_agent.wire import FailureReason, Limits, Phase
from reconciler.core.actions import Held, Launch, Move, Precondition, action_id
from reconciler.core.desired import Guards, Term
from reconciler.core.names import InstanceKey, Revision
from reconciler.core.observed import Observed
from reconciler.core.plan import Finding, Plan
from reconciler.core.plan.compute import compute_plan
from reconciler.core.problems import Problem
from reconciler.views.plan import plan_document, plan_lines
from reconciler.views.plan_markdown import cell, plan_markdown
from reconciler.views.plan_words import Comparison, Offline, Shown, workload_changes
from tests.core.fleet import (
    NOW_MS,
    REVISION,
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
COMMENT_CHARS_MAX = 60_000


def a_full_plan() -> Shown:
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
    records = inventory(
        running(target("up")),
        running(target("back", "1.1.0"), previous="1.0.0"),
        running(gone),
        deploying(slow),
        running(bad),
    )
    held = target("held", node="node-b")
    want = desired(target("new"), up, back, slow, bad, held, guards=Guards(9, 100))
    intents = [intent(slow, state="accepted")]
    plan = compute_plan(want, see, records, intents, NOW_MS)
    return Shown(plan, records, now_ms=NOW_MS, environment="prod")


def text_of(shown: Shown, **rest: Any) -> list[str]:
    return [line.text for line in plan_lines(shown, **rest)]


def test_text() -> None:
    lines = text_of(a_full_plan())
    old, new = (t.workload.image.digest[7:19] for t in (OLD, NEW))
    more = "      more may change: what runs is on record by version and digest only"
    assert lines[0].startswith("Plan ")
    assert lines[0].endswith(" for revision aaaaaaaaaaaa, environment prod")
    assert lines[1:] == [
        "",
        "Blast radius: 2 changes, 1 removal, 1 start: 60 % of 5 instances disturbed",
        "  tenants: acme",
        "  projects: acme/research",
        "  nodes: node-a",
        "  removes acme/research/gone on node-a",
        "  AppInstance/acme/research/new: looks like acme/research/gone under another name, which "
        "would be torn down for it; to keep what runs, add moved_from: gone to its spec",
        "",
        "Removals (1)",
        "  - remove    acme/research/gone on node-a: version 1.0.0",
        "      its manifest was removed",
        "",
        "Replacements (2)",
        f"  ↩ rollback  acme/research/back on node-a: version 1.1.0 → 1.0.0 ({old})",
        f"      digest {new} → {old}",
        more,
        f"  ~ upgrade   acme/research/up on node-a: version 1.0.0 → 1.1.0 ({new})",
        f"      digest {old} → {new}",
        more,
        "",
        "Launches (1)",
        f"  + launch    acme/research/new on node-a: version 1.0.0 ({old})",
        "      new instance",
        "",
        "Held, node_never_joined (1): node node-b never joined",
        "  join it: gpuaas node join node-b",
        f"  + launch    acme/research/held on node-b: version 1.0.0 ({old})",
        "      new instance",
        "",
        "  … starting  acme/research/slow on node-a: starting",
        "  ! exited AppInstance/acme/research/bad: version 1.1.0 was given up: exited; "
        "what ran before runs on",
        "      fix it with a new commit, or go back with one: "
        "gpuaas rollback AppInstance/acme/research/bad",
        "",
        "1 to start, 2 to change, 1 to remove, 1 held, 1 under way, 0 unchanged.",
    ]


def test_markdown() -> None:
    shown = replace(a_full_plan(), problems=[Problem("a.yaml", 3, 5, "invalid", "no | good")])
    text = plan_markdown(shown)
    lines = text.splitlines()
    assert lines[0] == "<!-- gpuaas-plan:prod -->"
    assert lines[1] == "### Plan for `prod` at `aaaaaaaaaaaa`"
    assert "**1 to start, 2 to change, 1 to remove, 1 held, 1 under way, 0 unchanged.**" in lines
    assert "> **Removes 1 instance:** `acme/research/gone`" in lines
    at = lines.index("> **Removes 1 instance:** `acme/research/gone`")
    assert lines[at + 2].startswith("> `AppInstance/acme/research/new` looks like acme/research/go")
    assert (
        "| `-` remove | `acme/research/gone` | `node-a` | version 1.0.0 "
        "| its manifest was removed |" in lines
    )
    assert "#### Held: `node_never_joined`" in lines
    assert "Why: node node-b never joined; join it: gpuaas node join node-b" in lines
    assert "- `invalid` `a.yaml:3:5`: no \\| good" in lines
    order = [text.index(part) for part in ("Removes 1", "Problems", "**Removals", "**Replace")]
    assert order == sorted(order)


def test_nothing_to_do() -> None:
    plan = compute_plan(desired(OLD), observed(report(OLD)), inventory(running(OLD)), (), NOW_MS)
    shown = Shown(plan)
    assert text_of(shown) == [
        "Nothing to do at revision aaaaaaaaaaaa: "
        "0 to start, 0 to change, 0 to remove, 0 held, 0 under way, 1 unchanged."
    ]
    assert "Nothing to do." in plan_markdown(shown)
    assert plan_document(shown)["empty"] is True


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
    assert actions["acme/research/up"]["cause"] == "change"
    assert document["waiting"][0]["code"] == "starting"
    assert document["radius"]["removed"] == ("acme/research/gone",)
    assert document["environment"] == "prod"


# --- details -------------------------------------------------------------------------------------


def test_a_replacement_is_told_field_by_field_when_what_runs_is_known() -> None:
    shown = a_full_plan()
    (up,) = (a for a in shown.plan.actions if a.instance == "acme/research/up")
    before = target("up").workload
    after = before.model_copy(
        update={
            "env": {"MODEL": "b", "NEW": "1"},
            "command": ("serve", "--fast"),
            "limits": Limits(cpu_millis=2000, memory_mib=512),
        }
    )
    before = before.model_copy(update={"env": {"MODEL": "a", "OLD": "1"}})
    changes = workload_changes(before, after)
    assert [str(change) for change in changes] == [
        "command (none) → serve --fast",
        "env.MODEL a → b",
        "env.NEW (none) → 1",
        "env.OLD 1 → (none)",
        "limits.cpu_millis (none) → 2000",
        "limits.memory_mib (none) → 512",
    ]
    lines = text_of(replace(shown, changes={action_id(up): changes}))
    assert "      env.MODEL a → b" in lines
    document = plan_document(replace(shown, changes={action_id(up): changes}))
    told = {a["instance"]: a.get("changes") for a in document["actions"]}
    assert told["acme/research/up"][1] == {"field": "env.MODEL", "before": "a", "after": "b"}
    assert told["acme/research/back"] is None, "not known is not the same as nothing"


def test_a_move_says_that_nothing_is_restarted() -> None:
    move = Move(
        InstanceKey("acme/research/new"),
        InstanceKey("acme/research/old"),
        "node-a",
        1,
        "it has another name",
        Precondition(None),
    )
    lines = text_of(Shown(Plan(REVISION, "base", (move,))))
    assert "Moves (1)" in lines
    assert (
        "  → move      acme/research/new on node-a: was acme/research/old, nothing is restarted"
        in lines
    )
    assert plan_document(Shown(Plan(REVISION, "base", (move,))))["actions"][0]["moved_from"] == (
        "acme/research/old"
    )


def test_held_says_when_it_opens_and_how_to_agree() -> None:
    gone = [target(f"gone-{number}") for number in range(3)]
    records = inventory(*(running(one) for one in gone))
    plan = compute_plan(
        desired(guards=Guards(1, 100)), observed(*map(report, gone)), records, (), NOW_MS
    )
    shown = Shown(plan, records, now_ms=NOW_MS, environment="prod")
    lines = text_of(shown)
    assert f'        - removals: "{plan.removals_id}"' in lines
    assert "  removes acme/research/gone-0 on node-a (held, removal_budget)" in lines
    assert [line for line in lines if line.startswith("Held, removal_budget (3): 3 removals")]
    text = plan_markdown(shown)
    assert "> **Removes 3 instances, all held:** `acme/research/gone-0`, " in text
    assert f'      - removals: "{plan.removals_id}"' in text
    until = NOW_MS + 11_520_000
    held = tuple(
        replace(a, held=Held("window_closed", "window nights is closed", until))
        for a in plan.actions
    )
    lines = text_of(replace(shown, plan=replace(plan, actions=held)))
    assert "Held, window_closed (3): window nights is closed" in lines
    assert "  opens in 3 h 12 min, at 2027-01-15T11:12:00Z" in lines


def test_break_glass_is_a_banner() -> None:
    term = Term("ops@acme.example", "fire in row 7", NOW_MS)
    shown = Shown(replace(a_full_plan().plan, break_glass=term))
    said = "break glass until 2027-01-15T08:00:00Z, by ops@acme.example: fire in row 7"
    assert said in text_of(shown)
    banner = "> break glass until 2027-01-15T08:00:00Z, by ops@<!-- -->acme.example: fire in row 7"
    assert banner in plan_markdown(shown)


def test_order_is_told_when_something_waits_for_something() -> None:
    shown = a_full_plan()
    (gone,) = (a for a in shown.plan.actions if a.kind == "remove")
    later = [
        replace(a, depends_on=(action_id(gone),)) if a.instance.endswith("new") else a
        for a in shown.plan.actions
    ]
    lines = text_of(replace(shown, plan=replace(shown.plan, actions=tuple(later))))
    at = lines.index("In this order")
    assert lines[at + 1 : at + 3] == [
        "  1. remove acme/research/gone",
        "  2. launch acme/research/new",
    ]


def test_what_the_change_causes_is_told_apart_from_what_is_pending() -> None:
    shown = a_full_plan()
    (gone,) = (a for a in shown.plan.actions if a.kind == "remove")
    comparison = Comparison(Revision("f" * 40), frozenset({action_id(gone)}), (gone,))
    lines = text_of(replace(shown, comparison=comparison))
    mine, rest = lines.index("This change: 1"), lines.index("Pending without this change: 3")
    assert mine < lines.index("Removals (1)") < rest < lines.index("Replacements (2)")
    assert "Pending now, and no more with this change: 1" in lines
    document = plan_document(replace(shown, comparison=comparison))
    assert [a["by_this_change"] for a in document["actions"]] == [True, False, False, False, False]
    assert "#### This change (1)" in plan_markdown(replace(shown, comparison=comparison))


def test_an_offline_plan_says_how_old_it_is() -> None:
    shown = replace(a_full_plan(), offline=Offline(NOW_MS - 100_000_000))
    said = "planned offline from a snapshot taken 1 d 3 h ago, at 2027-01-14T04:13:20Z"
    assert text_of(shown)[1] == said
    assert plan_markdown(shown).splitlines()[3] == f"> {said}"


def test_a_quiet_offline_plan_says_its_age_too() -> None:
    shown = Shown(Plan(REVISION, "base"), now_ms=NOW_MS, offline=Offline(NOW_MS))
    assert text_of(shown)[0].startswith("planned offline from a snapshot taken 0 s ago")


# --- large plans ---------------------------------------------------------------------------------


def a_large_plan(launches: int, removals: int, long: str = "") -> Shown:
    gone = [target(f"gone-{number:05}") for number in range(removals)]
    records = inventory(*(running(one) for one in gone))
    want = desired(
        *(target(f"new-{number:05}{long}") for number in range(launches)), guards=Guards(9**6, 100)
    )
    plan = compute_plan(want, observed(*map(report, gone)), records, (), NOW_MS)
    return Shown(plan, records, now_ms=NOW_MS, environment="prod")


def test_a_large_plan_is_summed_up_by_project_but_for_removals() -> None:
    shown = a_large_plan(200, 100)
    lines = text_of(shown)
    assert "  acme/research: 200 launch" in lines
    assert "  --all shows each of them" in lines
    assert sum(line.startswith("  - remove") for line in lines) == 100
    whole = text_of(shown, everything=True)
    assert sum(line.startswith("  + launch") for line in whole) == 200
    text = plan_markdown(shown)
    assert "- `acme/research`: 200 launch" in text
    assert sum(line.startswith("| `-` remove") for line in text.splitlines()) == 100


def test_held_removals_are_named_too_however_many() -> None:
    shown = a_large_plan(0, 200)
    held = tuple(replace(a, held=Held("removal_budget", "too many")) for a in shown.plan.actions)
    shown = replace(shown, plan=replace(shown.plan, actions=held))
    text = plan_markdown(shown)
    assert "> **Removes 200 instances, all held:** `acme/research/gone-00000`, " in text
    assert " and 180 more\n" in text
    assert sum(line.startswith("| `-` remove") for line in text.splitlines()) == 200
    removed = [line for line in text_of(shown) if line.startswith("  removes ")]
    assert len(removed) == 200


def test_markdown_fits_into_a_comment_and_says_what_is_cut() -> None:
    for shown in (a_large_plan(3000, 2000), a_large_plan(3000, 0)):
        text = plan_markdown(shown, everything=True)
        assert len(text) < COMMENT_CHARS_MAX
        assert "more lines do not fit here: run_ `gpuaas plan --all`" in text
        assert text.count("<details>") == text.count("</details>")
    findings = tuple(
        Finding("stalled", "stray", f"Node/n-{number}", "x" * 900) for number in range(500)
    )
    shown = replace(a_large_plan(3, 3), problems=[Problem("a", 1, 1, "c", "y" * 900)] * 500)
    text = plan_markdown(replace(shown, plan=replace(shown.plan, findings=findings)))
    assert len(text) < COMMENT_CHARS_MAX
    assert "| `-` remove | `acme/research/gone-00000` |" in text, "problems do not crowd it out"


def test_long_tables_are_folded_and_removals_never() -> None:
    text = plan_markdown(a_large_plan(30, 30))
    assert "<details><summary>Launches (30)</summary>" in text
    assert "**Removals (30)**" in text


# --- what others write ---------------------------------------------------------------------------


def test_names_cannot_break_out_of_a_markdown_cell() -> None:
    problem = Problem("a`|b.yaml", 1, 1, "invalid", "x | y\n<script>[a](b)`c`")
    plan = compute_plan(desired(), Observed(), {}, (), NOW_MS)
    lines = plan_markdown(Shown(plan, problems=[problem])).splitlines()
    assert "- `invalid` `a'|b.yaml:1:1`: x \\| y \\<script\\>\\[a\\](b)\\`c\\`" in lines


def test_a_nodes_words_cannot_break_out_of_a_code_span() -> None:
    """Attempted: a heading and a link in a pull request, by the name of a reported workload."""
    named = report(OLD).model_copy(update={"instance": "x`\n# [approved](http://evil)\x1b[2J"})
    text = plan_markdown(Shown(compute_plan(desired(), observed(named), {}, (), NOW_MS)))
    assert "`AppInstance/x' # [approved](http://evil)\\x1b[2J`" in text


def test_messages_call_on_nobody_and_link_nowhere() -> None:
    text = cell("ping @platform/admins, see #12 and !7 at https://evil.example or www.evil.example")
    assert text == (
        "ping @<!-- -->platform/admins, see #<!-- -->12 and !<!-- -->7 at "
        "https:<!-- -->//evil.example or www<!-- -->.evil.example"
    )
    assert cell("GH-7 irc://evil") == "GH-<!-- -->7 irc:<!-- -->//evil"
    assert cell("a &lt;b&gt; $x$ ~c~ \\") == "a &amp;lt;b&amp;gt; \\$x\\$ \\~c\\~ \\\\"


def test_a_bar_in_a_code_span_of_a_table_is_escaped() -> None:
    odd = replace(OLD.instance, node="a|b`c")
    launch = Launch(
        OLD.instance.key, odd.node, OLD.workload, "1.0.0", 1, "new instance", Precondition(None)
    )
    text = plan_markdown(Shown(Plan(REVISION, "base", (launch,))))
    assert "| `a\\|b'c` |" in text


def test_an_environment_cannot_end_the_marker() -> None:
    text = plan_markdown(Shown(Plan(REVISION, "base"), environment="a --> b"))
    assert text.splitlines()[0] == "<!-- gpuaas-plan:a--b -->"


@given(st.text(max_size=300))
def test_no_text_ends_its_cell(text: str) -> None:
    made = cell(text)
    assert "\n" not in made
    bare = made.replace("\\\\", "").replace("<!-- -->", "")
    for mark in "|<>`[]*_":
        assert bare.count(mark) == bare.count("\\" + mark)


def test_an_empty_name_opens_no_code_span() -> None:
    plan = compute_plan(desired(), Observed(), {}, (), NOW_MS)
    text = plan_markdown(Shown(plan, problems=[Problem("", 0, 0, "fetch_failed", "no answer")]))
    assert "- `fetch_failed` `-`: no answer" in text.splitlines()


def test_why_it_is_held_begins_no_line() -> None:
    """Attempted: a node's word that a forge takes for a command, or for a heading."""
    for said in ("/approve", "# Approved", "::stop-commands::x", "- [x] reviewed"):
        held = Held("backing_off", said)
        launch = Launch(
            OLD.instance.key, "node-a", OLD.workload, "1.0.0", 1, "x", Precondition(None), held=held
        )
        lines = plan_markdown(Shown(Plan(REVISION, "", (launch,)))).splitlines()
        assert [line for line in lines if cell(said) in line] == [f"Why: {cell(said)}"]
