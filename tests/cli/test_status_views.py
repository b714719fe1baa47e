"""What `gpuaas status` prints, read from a console that only records."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console

from node_agent.wire import Endpoint, ServicePhase
from reconciler.cli.common import verdict
from reconciler.cli.status import about, print_instance, print_status, show_one
from reconciler.cli.terminal import Terminal
from reconciler.core.records import (
    Condition,
    EnrolledNode,
    Event,
    NumberedEvent,
    PassSummary,
    State,
)
from reconciler.errors import Refused
from reconciler.views.read_models import instance_document, status_document
from tests.core.fleet import NOW_MS, REVISION, inventory, running, target

REACHED = replace(
    running(target()),
    endpoints=(Endpoint(name="http", container=8080, host_ip="127.0.0.1", host_port=20001),),
    access="ssh -L 8080:127.0.0.1:{host_port} {node}",
    conditions=(
        Condition("Ready", "True", "Ready", "", REVISION, NOW_MS),
        Condition("Converged", "False", "Pulling", "[bold]pulling[/]", REVISION, NOW_MS),
    ),
)
INSTANCES = "tenants/acme/projects/research/instances"
DONE = PassSummary("done", REVISION, NOW_MS, 12)


def shown(document: dict[str, object]) -> str:
    console = Console(width=160, highlight=False)
    with console.capture() as captured:
        print_status(console, document)
    return captured.get()


def test_tables_and_last_pass() -> None:
    node = EnrolledNode("node-a", "a" * 64, NOW_MS)
    text = shown(status_document(inventory(REACHED), [node], DONE, NOW_MS))
    assert "acme/research/hello   running   ready    1.0.0" in text
    assert "http://127.0.0.1:20001" in text
    assert "[bold]pulling[/]" in text
    assert "never_reported" in text
    assert "Last pass: done at aaaaaaaaaaaa, 12 ms" in text


def test_findings_say_where_and_what_to_do() -> None:
    finding = {"code": "invalid", "where": "a.yaml:3:1", "message": "no", "hint": "mend it"}
    stalled = replace(DONE, result="stalled", findings=(finding,))
    text = shown(status_document({}, [], stalled, NOW_MS))
    assert "invalid: a.yaml:3:1: no" in text
    assert "mend it" in text


@pytest.mark.parametrize(
    ("age_s", "overdue"), [(0, False), (59, False), (61, True), (90_000, True)]
)
def test_a_control_plane_that_stopped_shows(age_s: int, overdue: bool) -> None:
    """A page that is old looks like any other: all is well on it."""
    text = shown(status_document({}, [], DONE, NOW_MS + 12 + age_s * 1000))
    assert f"12 ms, {age_s} s ago" in text
    assert ("Is `gpuaas run` running?" in text) == overdue


@pytest.mark.parametrize(
    ("ready", "converged", "note"),
    [
        (("True", "Ready", ""), ("True", "AsDesired", ""), ""),
        (("True", "Ready", ""), ("False", "RemovalBudget", "9 of 3"), "removal_budget: 9 of 3"),
        (("True", "Ready", ""), ("False", "Progressing", "starting"), "   starting"),
        (("Unknown", "NodeOffline", "67 s"), ("True", "AsDesired", ""), "node_offline: 67 s"),
        (("False", "Stopped", ""), ("True", "AsDesired", ""), "   stopped"),
    ],
)
def test_the_note_carries_the_code_to_look_up(
    ready: tuple[Any, str, str], converged: tuple[Any, str, str], note: str
) -> None:
    conditions = (
        Condition("Ready", *ready, REVISION, NOW_MS),
        Condition("Converged", *converged, REVISION, NOW_MS),
    )
    record = replace(REACHED, conditions=conditions)
    row = shown(status_document(inventory(record), [], DONE, NOW_MS)).splitlines()[2]
    assert row.rstrip().endswith(note)


def test_what_is_of_a_commit_is_in_no_file() -> None:
    message = "commit 1234567890ab (Fix) is not signed"
    finding = {"code": "commit_unsigned", "where": "", "message": message, "hint": "sign it"}
    text = shown(status_document({}, [], replace(DONE, findings=(finding,)), NOW_MS))
    assert f"  commit_unsigned: {message}\n      sign it\n" in text


def test_one_instance_shows_the_findings_about_it_its_file_and_its_node() -> None:
    findings = (
        {"code": "yaml_syntax", "where": "tenants/acme/projects/research/instances/hello.yaml:3:1"},
        {"code": "duplicate_key", "where": "tenants/acme/projects/research/instances/hello2.yaml"},
        {"code": "out_of_memory", "object": "AppInstance/acme/research/hello"},
        {"code": "node_offline", "object": "Node/node-a"},
        {"code": "engine_unavailable", "object": "Node/node-b"},
    )
    document = status_document(inventory(REACHED), [], replace(DONE, findings=findings), NOW_MS)
    found = about(document["instances"][0], document["last_pass"])
    assert found is not None
    codes = [finding["code"] for finding in found["findings"]]
    assert codes == ["yaml_syntax", "out_of_memory", "node_offline"]


@pytest.mark.parametrize(
    ("code", "place", "note"),
    [
        ("out_of_memory", {"object": "AppInstance/acme/research/hello"}, "of_memory, see below"),
        ("yaml_syntax", {"where": f"{INSTANCES}/hello.yaml:3:1"}, "yaml_syntax, see below"),
        ("yaml_syntax", {"where": f"{INSTANCES}/other.yaml:3:1"}, "20001"),
        ("node_offline", {"object": "Node/node-a"}, "20001"),
    ],
)
def test_the_note_points_to_what_is_said_below(code: str, place: dict[str, str], note: str) -> None:
    """Also for a newest form that does not count: what runs is as the last accepted one says."""
    conditions = (
        Condition("Ready", "True", "Ready", "", REVISION, NOW_MS),
        Condition("Converged", "True", "AsDesired", "", REVISION, NOW_MS),
    )
    if code == "out_of_memory":
        last = Condition("Converged", "False", "OutOfMemory", "killed", REVISION, NOW_MS)
        conditions = (conditions[0], last)
    record = replace(REACHED, conditions=conditions)
    found = replace(DONE, findings=({"code": code, "message": "killed", **place},))
    row = shown(status_document(inventory(record), [], found, NOW_MS)).splitlines()[2]
    assert row.rstrip().endswith(note)


def test_what_is_said_of_many_is_said_once() -> None:
    findings = tuple(
        {"code": "not_accepted", "where": f"w{n}.yaml:2:1", "message": "too much"} for n in range(9)
    )
    text = shown(status_document({}, [], replace(DONE, findings=findings), NOW_MS))
    assert "not_accepted: w0.yaml:2:1, w1.yaml:2:1, w2.yaml:2:1 and 6 more: too much" in text
    assert text.count("not_accepted") == 1


def test_what_needs_a_person_comes_before_what_is_good_to_know() -> None:
    info = {"code": "stray", "object": "Node/node-a", "message": "odd", "level": "info"}
    stalled = {"code": "exited", "object": "AppInstance/x", "message": "no", "level": "stalled"}
    problem = {"code": "yaml_syntax", "where": "a.yaml:1:1", "message": "tab"}
    text = shown(status_document({}, [], replace(DONE, findings=(info, stalled, problem)), NOW_MS))
    assert text.index("exited") < text.index("yaml_syntax") < text.index("stray")


@pytest.mark.parametrize(
    ("state", "wanted", "runs"),
    [
        (State.RUNNING, "version 1.0.0 sha256:", "version 1.0.0 sha256:"),
        (State.DECOMMISSIONING, "nothing, it is being removed", "version 1.0.0 sha256:"),
        (State.DECOMMISSIONED, "nothing", "nothing, was version 1.0.0 sha256:"),
    ],
)
def test_what_is_gone_neither_runs_nor_is_wanted(state: State, wanted: str, runs: str) -> None:
    console = Console(width=160, highlight=False)
    with console.capture() as captured:
        print_instance(console, instance_document(replace(REACHED, state=state)), [])
    lines = captured.get().splitlines()
    assert [line for line in lines if line.startswith(f"wanted:    {wanted}")]
    assert [line for line in lines if line.startswith(f"runs:      {runs}")]


def test_before_the_first_pass() -> None:
    assert "No pass yet: start `gpuaas run`" in shown(status_document({}, [], None, NOW_MS))


def test_one_instance_in_full() -> None:
    event = Event("e", "apps.instance.running", REACHED.key, "c", REVISION, NOW_MS, {})
    console = Console(width=160, highlight=False)
    with console.capture() as captured:
        print_instance(console, instance_document(REACHED), [NumberedEvent(7, event)])
    text = captured.get()
    assert "access:    ssh -L 8080:127.0.0.1:20001 node-a" in text
    assert "Converged: False Pulling  [bold]pulling[/]" in text
    assert "    7  " in text
    assert "apps.instance.running" in text


@pytest.mark.parametrize(
    ("last", "code"),
    [
        (None, None),
        (DONE, 0),
        (replace(DONE, result="stalled"), 1),
        (replace(DONE, result="waiting"), None),
        (replace(DONE, result="failed"), None),
        (replace(DONE, revision="b" * 40), None),
        (replace(DONE, revision="b" * 40, rejected=REVISION), 1),
        (replace(DONE, started_at_ms=NOW_MS - 1), None),
    ],
)
def test_verdict_counts_only_a_later_pass_on_that_revision(
    last: PassSummary | None, code: int | None
) -> None:
    assert verdict(last, REVISION, NOW_MS) == code


HOSTILE = "[/] \\[/] [red] \x1b]0;owned\x07\x9b2J\n::error:: \u202e"


def test_what_others_wrote_neither_breaks_the_page_nor_reaches_the_terminal() -> None:
    """Attempted: markup that crashes `status`, escape sequences, forged lines, by a node's words.

    Each of these stops `rich` with an error when it is taken for markup.
    """
    endpoint = Endpoint(name="http", container=1, host_ip=HOSTILE, host_port=1)
    condition = Condition("Converged", "False", "Failed", HOSTILE, REVISION, NOW_MS)
    record = replace(REACHED, endpoints=(endpoint,), access=HOSTILE, conditions=(condition,))
    finding = {"code": "stray", "object": HOSTILE, "message": HOSTILE, "hint": HOSTILE}
    summary = replace(DONE, message=HOSTILE, findings=(finding,))
    document = status_document(inventory(record), [], summary, NOW_MS)
    node = {"name": HOSTILE, "state": "online", "report_age_ms": 1, "agent_version": HOSTILE}
    rest = {"engines": [HOSTILE], "gpus": [], "cpu_count": 1, "memory_mib": 1}
    document["nodes"] = [{**node, **rest}]
    event = Event("e", "failed", record.key, "c", REVISION, NOW_MS, {"message": HOSTILE})
    console = Terminal(width=160, highlight=False)
    with console.capture() as captured:
        print_status(console, document)
        print_instance(console, instance_document(record), [NumberedEvent(7, event)])
    text = captured.get()
    assert [c for c in text if not c.isprintable() and c != "\n"] == []
    assert "[/] \\[/] [red] \\x1b]0;owned\\x07\\x9b2J" in text
    assert not any(line.startswith("::error::") for line in text.splitlines())


def test_what_was_stopped_is_not_shown_as_running() -> None:
    ready = Condition("Ready", "False", "Stopped", "", REVISION, NOW_MS)
    stopped = replace(REACHED, endpoints=(), conditions=(ready,))
    text = shown(status_document(inventory(stopped), [], DONE, NOW_MS))
    assert "acme/research/hello   stopped   stopped" in text


def test_what_is_stuck_shows_at_a_glance_and_says_below_what_to_do() -> None:
    why, hint = "deploying since 2027-01-15T07:00:00Z without an outcome", "look at node-a"
    conditions = tuple(
        Condition(name, "False", "Stuck", why, REVISION, NOW_MS) for name in ("Ready", "Converged")
    )
    found = {"code": "stuck", "object": f"AppInstance/{REACHED.key}", "message": why, "hint": hint}
    summary = replace(DONE, result="waiting", findings=(found,))
    stuck = replace(REACHED, state=State.DEPLOYING, conditions=conditions)
    text = shown(status_document(inventory(stuck), [], summary, NOW_MS))
    assert "acme/research/hello   deploying   stuck " in text
    assert "stuck, see below" in text
    assert text.count(why) == 1
    assert hint in text


def test_a_failure_is_said_in_words_with_its_page() -> None:
    failed = replace(REACHED, state=State.FAILED, reason="out_of_memory", message="killed")
    console = Console(width=160, highlight=False)
    with console.capture() as captured:
        print_instance(console, instance_document(failed), [])
    assert (
        "out_of_memory: it was killed at its memory limit. Do: give it more memory within its "
        "allocation, or make it need less\n  see docs/failures/out_of_memory.md\n"
    ) in captured.get()


def test_what_does_not_get_on_is_said_in_words_before_it_failed() -> None:
    """Its node asks again and again: the page on it helps now, not once it was given up."""
    why = "image_pull_failed: connection refused"
    conditions = (
        Condition("Ready", "False", "Starting", why, REVISION, NOW_MS),
        Condition("Converged", "False", "Progressing", why, REVISION, NOW_MS),
    )
    console = Console(width=160, highlight=False)
    with console.capture() as captured:
        print_instance(console, instance_document(replace(REACHED, conditions=conditions)), [])
    assert "image_pull_failed: the image could not be pulled" in captured.get()
    assert "  see docs/failures/image_pull_failed.md\n" in captured.get()


def test_services_of_a_node_that_is_away_are_not_shown_as_if_somebody_looked() -> None:
    away = Condition("Ready", "Unknown", "NodeOffline", "67 s", REVISION, NOW_MS)
    services = (ServicePhase(name="api", phase="ready"),)
    console = Console(width=160, highlight=False)
    with console.capture() as captured:
        one = replace(REACHED, conditions=(away,), services=services)
        print_instance(console, instance_document(one), [])
    assert "service:   api ready, when last heard of\n" in captured.get()


def test_one_that_was_never_accepted_is_not_said_to_be_unknown() -> None:
    found = {"code": "unknown_reference", "where": f"{INSTANCES}/new.yaml:5:3", "message": "no v2"}
    document = status_document({}, [], replace(DONE, findings=(found,)), NOW_MS)
    with pytest.raises(Refused) as caught:
        show_one("acme/research/new", document, (), "text")
    assert str(caught.value) == (
        f"{INSTANCES}/new.yaml:5:3: not_accepted: nothing runs as acme/research/new: its file was "
        "never accepted: unknown_reference: no v2 (gpuaas explain acme/research/new)"
    )
    with pytest.raises(Refused, match="no_such_instance"):
        show_one("acme/research/other", document, (), "text")


@pytest.mark.parametrize("width", [60, 80, 100, 130])
def test_nothing_that_says_how_it_is_is_cut_on_a_narrow_terminal(width: int) -> None:
    note = "exited with 137; tried again 1800 s after it failed, at 2027-01-15T08:30:00Z"
    condition = Condition("Converged", "False", "BackingOff", note, REVISION, NOW_MS)
    ready = Condition("Ready", "False", "Failed", "exited", REVISION, NOW_MS)
    failed = replace(REACHED, state=State.FAILED, conditions=(ready, condition))
    console = Terminal(width=width, highlight=False, soft_wrap=True)
    with console.capture() as captured:
        print_status(console, status_document(inventory(failed), [], DONE, NOW_MS))
    lines = captured.get().splitlines()
    row = next(line for line in lines if line.startswith("acme"))
    assert [word for word in row.split() if word in ("failed", "1.0.0")] == ["failed"] * 2 + [
        "1.0.0"
    ]
    assert f"  acme/research/hello: backing_off: {note}" in lines
    assert all(len(line.rstrip()) <= width for line in lines if "backing_off" not in line)


def test_what_failed_is_not_shown_as_running() -> None:
    ready = Condition("Ready", "False", "Failed", "exited", REVISION, NOW_MS)
    failed = replace(
        REACHED,
        state=State.FAILED,
        applied_version="1.0.0",
        applied_digest="sha256:1",
        conditions=(ready,),
    )
    console = Terminal(width=160, highlight=False)
    with console.capture() as captured:
        print_instance(console, instance_document(failed), [])
    assert "runs:      nothing that is ready, last was version 1.0.0 sha256:1" in captured.get()


def test_what_is_under_way_on_a_node_that_is_away_says_both() -> None:
    going = Condition("Converged", "False", "Progressing", "waiting for the node", REVISION, NOW_MS)
    ready = Condition("Ready", "Unknown", "NodeOffline", "60 s ago", REVISION, NOW_MS)
    record = replace(REACHED, state=State.DECOMMISSIONING, conditions=(going, ready))
    text = shown(status_document(inventory(record), [], DONE, NOW_MS))
    assert "waiting for the node; node_offline: 60 s ago" in text
