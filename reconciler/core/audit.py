"""The audit trail: what was done or refused, by whom, in an order that nobody changes unseen. Pure.

Every row is hashed together with its number and the hash of the row before, so that the hash of the
last one stands for all of them. Who can write to the database can make a whole new chain: what
tells then is a hash of this one that was kept elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from reconciler.core.actions import Move
from reconciler.core.authority.facts import RefusedChange, SignedChange, Walked
from reconciler.core.names import (
    InstanceKey,
    content_hash,
    manifest_ref,
    member_name,
)
from reconciler.core.printable import printable
from reconciler.core.records import (
    Accepted,
    AuditEntry,
    AuditRow,
    InstanceRecord,
    Intent,
)

FIRST = (0, "")
"""Number and hash of what comes before the first row."""
SYSTEM = "system"
DONE = "done"
BEGUN = "begun"
"""Written before what can't be undone; DONE follows."""
ALARMS = ("wrap_spent", "wrap_foreign")
"""Results that say that somebody else may have a secret which was handed to a person."""
TEXT_LENGTH_MAX = 1000
"""Longer texts are cut."""
_NONE_REFUSED: Mapping[str, RefusedChange] = {}


# --- the chain -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Broken:
    """The first row that is not as it was written, or not where."""

    seq: int
    code: str
    message: str


def stated(entry: AuditEntry) -> dict[str, Any]:
    """What an entry says, as JSON. Empty fields are left out: one that is added later leaves the
    hashes of older rows as they are.
    """
    return {name: value for name, value in vars(entry).items() if value != ""}


def row_hash(seq: int, previous_hash: str, entry: AuditEntry) -> str:
    """SHA-256 hex of `[seq, previous_hash, {…}]` as JSON in ASCII, keys sorted, no spaces."""
    return content_hash(seq, previous_hash, stated(entry))


def chained(entries: Iterable[AuditEntry], seq: int, previous_hash: str) -> list[AuditRow]:
    """`entries` as the rows that follow the one with this number and hash.

    Their texts are made safe to show, and are cut where they are too long.
    """
    rows = []
    for number, given in enumerate(entries, seq + 1):
        entry = _kept(given)
        digest = row_hash(number, previous_hash, entry)
        rows.append(AuditRow(number, entry, previous_hash, digest))
        previous_hash = digest
    return rows


def _kept(entry: AuditEntry) -> AuditEntry:
    texts: dict[str, Any] = {
        name: (safe if len(safe) <= TEXT_LENGTH_MAX else safe[: TEXT_LENGTH_MAX - 1] + "…")
        for name, value in vars(entry).items()
        if isinstance(value, str) and (safe := printable(value[: TEXT_LENGTH_MAX + 1]))
    }
    return replace(entry, **texts)


def verify(rows: Sequence[AuditRow], seq: int, previous_hash: str) -> Broken | None:
    """What is wrong first with `rows`, which have to follow the row with this number and hash."""
    for row in rows:
        broken = _misplaced(row.seq, seq) or _altered(row, previous_hash)
        if broken is not None:
            return broken
        seq, previous_hash = row.seq, row.row_hash
    return None


def verify_end(last: tuple[int, str], head: tuple[int, str]) -> Broken | None:
    """Whether the rows end where the head beside them says, both given as number and hash."""
    (seq, digest), (head_seq, head_hash) = last, head
    if seq < head_seq:
        message = f"the last row is {seq}, but {head_seq} were written: the end was cut off"
        return Broken(seq + 1, "audit_cut_off", message)
    if seq > head_seq:
        message = f"there are more rows than the {head_seq} that were counted as they were written"
        return Broken(head_seq + 1, "audit_head_differs", message)
    if digest != head_hash:
        message = f"row {seq} does not have the hash that is kept for the last row: it was replaced"
        return Broken(seq, "audit_head_differs", message)
    return None


def _misplaced(found: int, before: int) -> Broken | None:
    wanted = before + 1
    if found == wanted:
        return None
    if found == before:
        return Broken(found, "audit_row_doubled", f"row {found} is there twice")
    if found < before:
        message = f"row {found} comes after row {before}: it was moved"
        return Broken(found, "audit_row_moved", message)
    if found == wanted + 1:
        message = f"row {wanted} is missing: row {found} comes next"
    else:
        message = f"rows {wanted} to {found - 1} are missing: row {found} comes next"
    return Broken(wanted, "audit_row_missing", message)


def _altered(row: AuditRow, previous_hash: str) -> Broken | None:
    if row_hash(row.seq, row.previous_hash, row.entry) != row.row_hash:
        message = f"row {row.seq} was changed: what it says does not have the hash it was given"
        return Broken(row.seq, "audit_row_changed", message)
    if row.previous_hash != previous_hash:
        before = f"row {row.seq - 1}" if row.seq > 1 else "nothing"
        message = f"row {row.seq} was not written after {before} as it is: one was replaced"
        return Broken(row.seq, "audit_chain_broken", message)
    return None


# --- what is told --------------------------------------------------------------------------------


def entries_of(
    walked: Walked, now_ms: int, before: Mapping[str, RefusedChange] = _NONE_REFUSED
) -> tuple[AuditEntry, ...]:
    """What the commits up to a head came to: each change, what could not be read, and the head
    itself. `before` is what was refused at the revision they begin from.

    Of a head that is rejected nothing counts, so that this is all there is to tell.
    """
    if walked.rejection is not None:
        problem = walked.rejection
        return (_of_head(walked, "rejected", problem.code, problem.message, now_ms),)
    if not walked.commits:
        return ()
    refused = sum(1 for change in walked.changes if change.refusal)
    words = f"{walked.commits} commits, {len(walked.changes)} changes, {refused} refused"
    changes = (_of_change(change, now_ms) for change in walked.changes)
    unread = (_of_unread(one, now_ms) for one in _newly_unread(walked, before))
    return (*changes, *unread, _of_head(walked, "accepted", DONE, words, now_ms))


def _newly_unread(walked: Walked, before: Mapping[str, RefusedChange]) -> Iterator[RefusedChange]:
    """What was refused before it came to a change that could be judged."""
    told = {(str(change.ref), change.revision) for change in walked.changes}
    for subject, one in sorted(walked.refused.items()):
        known = before.get(subject)
        old = known is not None and (known.revision, known.code) == (one.revision, one.code)
        if not old and (subject, one.revision) not in told:
            yield one


def _of_unread(refused: RefusedChange, now_ms: int) -> AuditEntry:
    kind = "file" if refused.is_file else refused.subject.partition("/")[0].lower()
    return AuditEntry(
        at_ms=now_ms,
        actor=refused.actor,
        requester_type=refused.actor.partition("/")[0],
        action=f"state.{kind}.changed",
        object=refused.subject,
        reason=refused.message,
        revision=refused.revision,
        correlation_id=content_hash(refused.revision, refused.subject),
        result=refused.code,
    )


def _of_head(walked: Walked, verb: str, result: str, reason: str, now_ms: int) -> AuditEntry:
    return AuditEntry(
        at_ms=now_ms,
        actor=SYSTEM,
        requester_type=SYSTEM,
        action=f"state.revision.{verb}",
        object=walked.head,
        reason=reason,
        revision=walked.head,
        correlation_id=content_hash(walked.head, walked.head),
        result=result,
    )


def _of_change(change: SignedChange, now_ms: int) -> AuditEntry:
    verb = "created" if not change.before else "changed" if change.after else "deleted"
    return AuditEntry(
        at_ms=now_ms,
        actor=str(change.actor),
        requester_type=change.actor.type,
        action=f"state.{change.ref.kind.lower()}.{verb}",
        object=str(change.ref),
        before=change.before,
        after=change.after,
        reason=change.reason,
        revision=change.revision,
        correlation_id=content_hash(change.revision, str(change.ref)),
        result=change.refusal or DONE,
        key_id=change.actor.key_id,
        via=change.actor.via,
    )


def instance_entries(
    intents: Sequence[Intent],
    records: Mapping[InstanceKey, InstanceRecord],
    accepted: Accepted,
    now_ms: int,
    moves: Sequence[Move] = (),
) -> tuple[AuditEntry, ...]:
    """What is handed to nodes, and the renames that no node hears of.

    `records` are as they are once that is begun. Who wrote the instance's manifest is who acts.
    """
    handed = [(it.kind, it.instance, it.target_hash, f"on {it.node}") for it in intents]
    handed += [("move", it.instance, "", f"was {it.moved_from}, on {it.node}") for it in moves]
    return tuple(
        _of_instance(records[key], accepted, now_ms, kind, target_hash, reason)
        for kind, key, target_hash, reason in handed
        if key in records
    )


def _of_instance(
    record: InstanceRecord,
    accepted: Accepted,
    now_ms: int,
    kind: str,
    target_hash: str,
    reason: str,
) -> AuditEntry:
    ref, applied = str(manifest_ref(record.key)), record.applied_hash
    written = accepted.objects.get(ref)
    actor = (written.by if written is not None else "") or SYSTEM
    member = member_name(record.key)
    return AuditEntry(
        at_ms=now_ms,
        actor=actor,
        requester_type=actor.partition("/")[0],
        action=f"apps.instance.{kind}",
        object=ref,
        before=applied,
        after={"remove": "", "control": applied, "move": applied}.get(kind, target_hash),
        reason=f"member {member}, {reason}" if member else reason,
        revision=record.revision,
        correlation_id=record.correlation_id,
    )
