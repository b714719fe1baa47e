"""`gpuaas timeline`: an instance's life on one page, and the page itself."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from node_agent.wire import FailureReason, Phase
from reconciler.cli.main import gpuaas
from reconciler.core.actions import Launch, Move, Precondition, Remove, Replace
from reconciler.core.lifecycle import begin, move, settle
from reconciler.core.names import InstanceKey, Revision
from reconciler.core.observed import Known
from reconciler.core.records import (
    Change,
    Condition,
    Event,
    InstanceRecord,
    NumberedEvent,
)
from reconciler.errors import Refused
from reconciler.ports import Changes
from reconciler.settings import Settings
from reconciler.use_cases.timeline import events_of
from reconciler.views.timeline import timeline_document, timeline_lines, took
from reconciler.wiring.ports import open_ports
from tests.core.fleet import CLEAN, NOW_MS, REVISION, removed, report, target
from tests.fakes.store import MemoryStore

OLD, NEW = target(version="1.0.0"), target(version="1.1.0")
SECOND, THIRD = Revision("b" * 40), Revision("c" * 40)
HOUR_MS = 3_600_000
COMMITS: dict[str, dict[str, object]] = {
    REVISION: {
        "author": "Ada Admin <ada@acme.example>",
        "subject": "Add hello",
        "committed_at_ms": NOW_MS - 20_000,
    }
}


def life() -> tuple[InstanceRecord, list[NumberedEvent]]:
    """Launched, upgraded in vain, and put back by its node."""
    events: list[Event] = []
    launch = Launch(OLD.instance.key, "node-a", OLD.workload, "1.0.0", 1, "new instance",
                    Precondition(None))  # fmt: skip
    record, told = begin(launch, OLD, None, REVISION, NOW_MS + 700)
    events += told
    record = replace(record, change=Change(REVISION, NOW_MS, "x"))
    record, told = settle(record, Known(report(OLD)), NOW_MS + 4_200)
    events += told
    upgrade = Replace(record.key, "node-a", NEW.workload, "1.1.0", "1.0.0", "upgrade", 2,
                      "version 1.0.0 → 1.1.0", Precondition(None))  # fmt: skip
    record, told = begin(upgrade, NEW, replace(record, change=None), SECOND, NOW_MS + HOUR_MS)
    events += told
    record = replace(record, change=Change(SECOND, NOW_MS + HOUR_MS - 300, "y"))
    back = report(
        NEW, Phase.FAILED, runs=OLD, reason=FailureReason.NOT_READY_IN_TIME, retained=True
    )
    back = back.model_copy(update={"message": "not ready within 60000 ms: HTTP 503"})
    record, told = settle(record, Known(back), NOW_MS + HOUR_MS + 63_000)
    events += told
    ready = Condition("Ready", "True", "Ready", "", SECOND, NOW_MS + 4_200)
    return replace(record, conditions=(ready,), restarts=2), numbered(events)


def numbered(events: Sequence[Event]) -> list[NumberedEvent]:
    return [NumberedEvent(cursor, event) for cursor, event in enumerate(events, 1)]


def text_of(document: dict[str, object]) -> list[str]:
    return [line.text for line in timeline_lines(document)]


def test_the_page() -> None:
    record, events = life()
    document = timeline_document(record.key, record, events, NOW_MS + 2 * HOUR_MS, None, COMMITS)
    assert text_of(document) == [
        "acme/research/hello: running, ready since 2027-01-15T08:00:04Z",
        "  commit bbbbbbbbbbbb has not come true yet, seen 1 h 0 min ago",
        "  on record: 1 running, 1 rolled_back, 1 failed, 2 restarts of what runs",
        "",
        "commit aaaaaaaaaaaa  Add hello, Ada Admin <ada@acme.example>, 2027-01-15T07:59:40Z",
        "  2027-01-15T08:00:00.700Z  requested            1.0.0 (92521fc3cbd9)"
        "                      new instance",
        "  2027-01-15T08:00:00.700Z  deploying            1.0.0 (92521fc3cbd9)"
        "                      new instance",
        "  2027-01-15T08:00:04.200Z  running              1.0.0 (92521fc3cbd9)"
        "         +3.5 s       4.2 s since its commit was seen",
        "",
        "commit bbbbbbbbbbbb",
        "  2027-01-15T09:00:00.000Z  upgrade_requested    1.0.0 → 1.1.0 (7fbd210ebec1)"
        "              version 1.0.0 → 1.1.0",
        "  2027-01-15T09:01:03.000Z  failed               1.0.0 → 1.1.0 (7fbd210ebec1)"
        " +1 min 3 s   1 min 3 s since its commit was seen "
        " not_ready_in_time: not ready within 60000 ms: HTTP 503",
        "      not_ready_in_time: its readiness probe did not pass in time. Do: check port and path"
        " of the probe; give slow starts a larger start_budget_s",
        "      see docs/failures/not_ready_in_time.md",
        "  2027-01-15T09:01:03.000Z  rollback_requested   1.1.0 → 1.0.0 (92521fc3cbd9)"
        "              put back by the node",
        "  2027-01-15T09:01:03.000Z  rolled_back          1.1.0 → 1.0.0 (92521fc3cbd9)"
        "              1 min 3 s since its commit was seen  put back by the node",
    ]


def test_the_document() -> None:
    record, events = life()
    document = timeline_document(record.key, record, events, NOW_MS + 2 * HOUR_MS)
    assert json.loads(json.dumps(document)) == document
    assert document["totals"]["failures_by_reason"] == {"not_ready_in_time": 1}
    assert document["now"]["page"] == "docs/failures/not_ready_in_time.md"
    assert document["now"]["awaits"]["waited_ms"] == HOUR_MS + 300
    failed = next(entry for entry in document["entries"] if entry["what"] == "failed")
    assert (failed["version_from"], failed["version"]) == ("1.0.0", "1.1.0")
    assert (failed["step_ms"], failed["operation_ms"]) == (63_000, 63_300)
    assert failed["revision"] == SECOND


@pytest.mark.parametrize("last", range(1, 8))
def test_the_newest_only(last: int) -> None:
    record, events = life()
    whole = timeline_document(record.key, record, events, NOW_MS)
    part = timeline_document(record.key, record, events, NOW_MS, last)
    assert part["entries"] == whole["entries"][-last:]
    assert (part["left_out"], part["totals"]) == (7 - last, whole["totals"])
    assert (f"({7 - last} older entries left out)" in text_of(part)) == (last < 7)


def test_an_instance_that_is_gone() -> None:
    record, _ = life()
    action = Remove(
        record.key, "node-a", "1.0.0", 3, "its manifest was removed", Precondition(None)
    )
    record, told = begin(action, None, record, THIRD, NOW_MS)
    record, proved = settle(record, Known(removed(OLD, CLEAN)), NOW_MS + 1_500)
    events = numbered((*told, *proved))
    text = text_of(timeline_document(record.key, record, events, NOW_MS))
    assert text[0] == "acme/research/hello: decommissioned since 2027-01-15T08:00:01Z"
    assert text[-1].endswith("+1.5 s       1.5 s in all  teardown proved")
    forgotten = text_of(timeline_document(record.key, None, events, NOW_MS))
    assert forgotten[0] == "acme/research/hello: gone from the inventory"
    assert text_of(timeline_document(record.key, record, [], NOW_MS))[-1] == (
        "no events are on record"
    )


def test_what_others_wrote_does_nothing_to_the_page() -> None:
    record, _ = life()
    event = Event("e", "apps.instance.failed", record.key, "c", REVISION, NOW_MS,
                  {"message": "\x1b]0;owned\x07\n::error::", "version": "\x9b2J"})  # fmt: skip
    lines = text_of(timeline_document(record.key, None, numbered([event]), NOW_MS))
    assert all(line.isprintable() for line in lines)


@pytest.mark.parametrize(
    ("length_ms", "text"),
    [
        (0, "0 ms"),
        (999, "999 ms"),
        (1_000, "1.0 s"),
        (59_940, "59.9 s"),
        (60_000, "1 min 0 s"),
        (3_599_999, "59 min 59 s"),
        (3_600_000, "1 h 0 min"),
        (90_000_000, "1 d 1 h"),
    ],
)
def test_lengths_of_time(length_ms: int, text: str) -> None:
    assert took(length_ms) == text


def test_it_is_followed_under_its_former_names() -> None:
    record, events = life()
    store = MemoryStore()
    store.commit(Changes(events=[one.event for one in events]))
    for number, name in enumerate(("hi", "hey"), 3):
        key = InstanceKey(f"acme/research/{name}")
        action = Move(key, record.key, "node-a", number, "renamed", Precondition(None))
        record, told = move(action, record, THIRD, NOW_MS + number)
        store.commit(Changes(events=told))
    found = events_of(store, record.key)
    assert [one.cursor for one in found] == list(range(1, 10))
    assert [one.event.type for one in found][-2:] == ["apps.instance.moved"] * 2


def test_the_command(tmp_path: Path) -> None:
    record, events = life()
    settings = Settings(state_dir=tmp_path, repo=str(tmp_path / "repo.git"))
    with open_ports(settings) as ports:
        told = [one.event for one in events]
        ports.store.commit(Changes(records=[record], events=told))
    options = ["--state-dir", str(tmp_path), "--repo", str(tmp_path / "repo.git")]

    def run(*given: str) -> str:
        done = CliRunner().invoke(gpuaas, ["timeline", *options, *given], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done.output

    assert "rolled_back          1.1.0 → 1.0.0" in run(record.key)
    document = json.loads(run(record.key, "--format", "json", "--last", "2"))
    assert [entry["what"] for entry in document["entries"]] == ["rollback_requested", "rolled_back"]
    with pytest.raises(Refused) as refused:
        run("acme/research/hallo")
    assert str(refused.value) == (
        "no_such_instance: no instance acme/research/hallo (did you mean acme/research/hello?)"
    )


def test_a_long_word_moves_the_others_along() -> None:
    record, events = life()
    last = events[-1]
    asked = replace(last.event, type="apps.instance.decommission_requested")
    lines = text_of(
        timeline_document(record.key, record, [*events, replace(last, event=asked)], NOW_MS)
    )
    words = ("requested            ", "decommission_requested")
    places = {
        line.index(" 1.", 28) for line in lines if any(f"Z  {word} " in line for word in words)
    }
    assert places == {len("  2027-01-15T08:00:00.700Z  decommission_requested")}
