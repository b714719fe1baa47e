"""The audit trail as people and programs read it: rows, exports, and what a check found. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from reconciler.core.audit import ALARMS, BEGUN, DONE, Broken, stated
from reconciler.core.printable import printable
from reconciler.core.records import AuditEntry, AuditRow
from reconciler.core.times import time_text
from reconciler.views.changes import Line

Document = dict[str, Any]

VERIFICATION_FORMAT = "gpuaas.dev/audit-verification/v1"


def row_document(row: AuditRow) -> Document:
    """A row with every field of its entry, whether or not there is anything in it."""
    return {
        "seq": row.seq,
        "at": time_text(row.entry.at_ms),
        **vars(row.entry),
        "previous_hash": row.previous_hash,
        "row_hash": row.row_hash,
    }


def row_line(row: AuditRow) -> Line:
    """One row on one line: number, time, who, what, on what, why or why not."""
    entry = row.entry
    actor = f"{entry.actor} via {entry.via}" if entry.via else entry.actor
    parts = [f"{row.seq:>6}", time_text(entry.at_ms), f"{actor:<24}", f"{entry.action:<28}"]
    revision = f"({entry.revision[:12]})" if entry.revision not in ("", entry.object) else ""
    word = "ALARM: " if entry.result in ALARMS else "" if entry.result == BEGUN else "refused: "
    refused = "" if entry.result == DONE else f"{word}{entry.result}"
    parts += [part for part in (entry.object, refused, revision, entry.reason) if part]
    style = "plain" if entry.result in (DONE, BEGUN) else "problem"
    return Line(printable("  ".join(parts).rstrip()), style)


# --- exports -------------------------------------------------------------------------------------


def compact(document: Document) -> str:
    """JSON on one line in ASCII, keys sorted: the same text for the same content."""
    return json.dumps(document, sort_keys=True, separators=(",", ":"))


def export_line(row: AuditRow) -> str:
    """`row_hash` is the SHA-256 of `[seq, previous_hash, entry]`, written as this line is."""
    return compact(
        {
            "seq": row.seq,
            "previous_hash": row.previous_hash,
            "entry": stated(row.entry),
            "row_hash": row.row_hash,
        }
    )


def exported_row(line: str) -> AuditRow:
    """What `export_line` wrote; ValueError for any other text."""
    try:
        found = json.loads(line)
        entry = AuditEntry(**found["entry"])
        row = AuditRow(found["seq"], entry, found["previous_hash"], found["row_hash"])
        if not isinstance(row.seq, int) or export_line(row) != line:
            raise ValueError("not as it was written")
    except (KeyError, TypeError, RecursionError) as error:
        raise ValueError("no audit row") from error
    return row


# --- what a check found --------------------------------------------------------------------------

_SIGNATURES = {
    "good": "its checkpoint is signed by a key that is trusted here",
    "unchecked": "its checkpoint's signature was not checked: pass --key",
}


def verification_document(
    first: int, last: tuple[int, str], broken: Broken | None, signature: str, checkpoint: bool
) -> Document:
    """`rows` counts those that are whole. `signature` is good, unchecked or empty (no export)."""
    return {
        "format": VERIFICATION_FORMAT,
        "whole": broken is None,
        "rows": last[0] - first + 1,
        "first": first,
        "last": last[0],
        "hash": last[1],
        "checkpoint": checkpoint,
        "signature": signature,
        "broken": None if broken is None else dict(vars(broken)),
    }


def verification_lines(document: Document) -> Iterator[Line]:
    rows, broken = document["rows"], document["broken"]
    if broken is not None:
        text = f"broken at row {broken['seq']}: {broken['message']} ({broken['code']})"
        yield Line(text, "removed")
        yield Line(f"{rows} rows before it are whole" if rows else "nothing before it", "dim")
        return
    if not rows:
        yield Line("whole: no rows", "good")
    else:
        span = f"rows {document['first']} to {document['last']}"
        yield Line(f"whole: {span}, the last is {document['hash']}", "good")
    if document["checkpoint"]:
        yield Line("  it goes on from the checkpoint that was given")
    if document["signature"]:
        yield Line(f"  {_SIGNATURES[document['signature']]}")
