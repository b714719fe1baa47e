"""An instance's life as people read it: what happened when, how long that took, and why. Pure.

Rules:
- Events say what happened, the record says how it stands now. Nothing is made up between them.
- A step's time runs from the event before it in the same operation; an operation's from when its
  commit was first seen here, where that is known, else from its first event.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from reconciler.core.health import told_health
from reconciler.core.lifecycle import EVENT
from reconciler.core.printable import printable
from reconciler.core.records import InstanceRecord, NumberedEvent, State
from reconciler.core.times import time_text
from reconciler.views.changes import Line
from reconciler.views.failure_words import page_of, words_of
from reconciler.views.plan_words import short

FORMAT = "gpuaas.dev/timeline/v1"
Document = dict[str, Any]

_ENDS = frozenset({"running", "upgraded", "rolled_back", "decommissioned", "failed", "moved"})
_WORD_COLUMNS_MIN = 20
_COUNTED = ("running", "upgraded", "rolled_back", "failed", "decommissioned")


def timeline_document(
    instance: str,
    record: InstanceRecord | None,
    events: Sequence[NumberedEvent],
    now_ms: int,
    last: int | None = None,
    commits: Mapping[str, Mapping[str, Any]] | None = None,
) -> Document:
    """{format, instance, now, totals, entries}; `last` keeps the newest entries only.

    `commits` is what is known of revisions: {author, subject, committed_at_ms} each.
    """
    entries = [*_entries(events, commits or {})]
    return {
        "format": FORMAT,
        "instance": instance,
        "generated_at_ms": now_ms,
        "now": None if record is None else _now(record, now_ms),
        "totals": _totals(entries, record),
        "entries": entries if last is None else entries[max(0, len(entries) - last) :],
        "left_out": 0 if last is None else max(0, len(entries) - last),
    }


def _entries(
    events: Iterable[NumberedEvent], commits: Mapping[str, Mapping[str, Any]]
) -> Iterator[Document]:
    first: dict[str, int] = {}
    before: dict[str, int] = {}
    for numbered in events:
        event = numbered.event
        what = event.type.removeprefix(EVENT)
        data, operation = event.data, event.correlation_id
        seen = data.get("revision_seen_ms")
        began_ms = int(seen) if seen else first.get(operation)
        first.setdefault(operation, event.at_ms)
        step_ms = event.at_ms - before[operation] if operation in before else None
        before[operation] = event.at_ms
        whole_ms = event.at_ms - began_ms if what in _ENDS and began_ms is not None else None
        commit = commits.get(event.revision)
        yield {
            "cursor": numbered.cursor,
            "event_id": event.event_id,
            "at_ms": event.at_ms,
            "what": what,
            "version_from": data.get("version_from", ""),
            "version": data.get("version", ""),
            "digest_from": data.get("digest_from", ""),
            "digest": data.get("digest", ""),
            "node": data.get("node", ""),
            "step_ms": step_ms,
            "operation_ms": whole_ms,
            "since_commit_seen": bool(seen) and whole_ms is not None,
            "reason": data.get("reason", ""),
            "message": data.get("message", ""),
            "operation": operation,
            "revision": event.revision,
            "commit": dict(commit) if commit is not None else None,
        }


def _now(record: InstanceRecord, now_ms: int) -> Document:
    seen, change = told_health(record), record.change
    reason = record.reason if words_of(record.reason) is not None else ""
    return {
        "state": record.state.value,
        "since_ms": record.since_ms,
        "health": "" if record.state is State.DECOMMISSIONED else seen.health.value,
        "health_since_ms": seen.since_ms,
        "why": seen.why,
        "version": record.applied_version,
        "digest": record.applied_digest,
        "target_version": record.target_version,
        "restarts": record.restarts,
        "reason": record.reason,
        "message": record.message,
        "page": page_of(reason) if reason else "",
        "awaits": None
        if change is None
        else {
            "revision": change.revision,
            "seen_at_ms": change.seen_at_ms,
            "waited_ms": max(0, now_ms - change.seen_at_ms),
        },
    }


def _totals(entries: Sequence[Document], record: InstanceRecord | None) -> Document:
    counts = {what: sum(entry["what"] == what for entry in entries) for what in _COUNTED}
    reasons: dict[str, int] = {}
    for entry in entries:
        if entry["what"] == "failed" and entry["reason"]:
            reasons[entry["reason"]] = reasons.get(entry["reason"], 0) + 1
    return {
        **counts,
        "failures_by_reason": dict(sorted(reasons.items())),
        "restarts": record.restarts if record is not None else 0,
    }


# --- for people ----------------------------------------------------------------------------------

_STYLES = {
    "failed": "removed",
    "running": "added",
    "upgraded": "added",
    "rolled_back": "changed",
    "decommissioned": "dim",
}


def timeline_lines(document: Document) -> Iterator[Line]:
    """How it stands, then what happened, operation by operation, oldest first."""
    yield from _head(document)
    operation = None
    if document["left_out"]:
        yield Line(f"({document['left_out']} older entries left out)", "dim")
    width = max((len(_versions(entry)) for entry in document["entries"]), default=0)
    word = max([_WORD_COLUMNS_MIN, *(len(entry["what"]) for entry in document["entries"])])
    for entry in document["entries"]:
        if entry["operation"] != operation:
            operation = entry["operation"]
            yield Line("")
            yield Line(_commit_line(entry), "title")
        yield Line(_entry_line(entry, word, width), _STYLES.get(entry["what"], "plain"))
        words = words_of(entry["reason"]) if entry["what"] == "failed" else None
        if words is not None:
            yield Line(f"      {entry['reason']}: {words.means}. Do: {words.do}", "dim")
            yield Line(f"      see {page_of(entry['reason'])}", "dim")
    if not document["entries"]:
        yield Line("no events are on record", "dim")


def _head(document: Document) -> Iterator[Line]:
    now, totals = document["now"], document["totals"]
    if now is None:
        yield Line(f"{printable(document['instance'])}: gone from the inventory", "title")
        return
    state = now["state"]
    since_ms = now["since_ms"]
    if now["health"] and now["health"] != state:
        state += f", {now['health']}"
        since_ms = now["health_since_ms"] or since_ms
    yield Line(f"{printable(document['instance'])}: {state} since {time_text(since_ms)}", "title")
    if now["why"]:
        yield Line(f"  {printable(now['why'])}")
    awaits = now["awaits"]
    if awaits is not None:
        text = f"commit {awaits['revision'][:12]} has not come true yet, seen "
        yield Line(f"  {text}{took(awaits['waited_ms'])} ago", "changed")
    counts = [f"{totals[what]} {what}" for what in _COUNTED if totals[what]]
    counts += [f"{now['restarts']} restarts of what runs"] if now["restarts"] else []
    if counts:
        yield Line(f"  on record: {', '.join(counts)}", "dim")


def _commit_line(entry: Document) -> str:
    commit, revision = entry["commit"], entry["revision"][:12]
    if commit is None:
        return f"commit {revision}"
    at = time_text(commit["committed_at_ms"])
    return f"commit {revision}  {printable(commit['subject'])}, {printable(commit['author'])}, {at}"


def _entry_line(entry: Document, word: int, width: int) -> str:
    step = f"+{took(entry['step_ms'])}" if entry["step_ms"] else ""
    parts = [
        f"  {_moment(entry['at_ms'])}  {entry['what']:<{word}}",
        f"{_versions(entry):<{width}}",
        f"{step:<12}",
    ]
    if entry["operation_ms"]:
        of = "since its commit was seen" if entry["since_commit_seen"] else "in all"
        parts.append(f"{took(entry['operation_ms'])} {of} ")
    if entry["what"] == "failed":
        parts.append(printable(": ".join(filter(None, (entry["reason"], entry["message"])))))
    elif entry["message"]:
        parts.append(printable(entry["message"]))
    return " ".join(parts).rstrip()


def _versions(entry: Document) -> str:
    """`1.0.0 (92521fc3cbd9)`, or both sides of a change, with the digest of where it leads."""
    old, new, digest = entry["version_from"], entry["version"], short(entry["digest"])
    to = f"{new} ({digest})" if digest else new
    return printable(to if old == new or not old else f"{old} → {to or 'nothing'}")


def _moment(at_ms: int) -> str:
    return f"{time_text(at_ms)[:-1]}.{at_ms % 1000:03}Z"


def took(length_ms: int) -> str:
    """`250 ms`, `3.2 s`, `2 min 5 s`, `3 h 12 min`, `2 d 4 h`."""
    if length_ms < 1_000:
        return f"{length_ms} ms"
    if length_ms < 60_000:
        return f"{length_ms / 1000:.1f} s"
    seconds = length_ms // 1000
    days, hours, minutes = seconds // 86_400, seconds // 3600 % 24, seconds // 60 % 60
    if days:
        return f"{days} d {hours} h"
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds % 60} s"
