"""The audit trail: looked up, checked, and taken elsewhere with a signed end.

Rules:
- Page by page: a million rows take no more memory than a thousand.
- An export ends with a checkpoint: number and hash of its last row, signed. One without is not
  whole. Nothing is signed that was not checked on the way.
- What a file holds was written by anybody: it is found broken, never believed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from node_agent.envelope import EnvelopeRefused, unseal
from node_agent.wire import VerifierKey, key_id
from reconciler.core.audit import FIRST, Broken, verify, verify_end
from reconciler.core.records import AuditRow
from reconciler.core.times import time_text
from reconciler.custody.signing import sealed
from reconciler.errors import Refused
from reconciler.ports import SecretStore, Store
from reconciler.views.audit import compact, export_line, exported_row

AUDIT_KEY = "audit"
"""The signing key of checkpoints, by its name in the SecretStore."""
CHECKPOINT_TYPE = "application/vnd.gpuaas.audit-checkpoint.v1+json"
LINE_LENGTH_MAX = 256 * 1024
_PAGE = 1000
_HASH = re.compile(r"[0-9a-f]{64}")
_RESTORE = "compare with an export from before, and find out who wrote to the store"

Progress = Callable[[int], None]
"""Hears the number of the last row that was looked at."""


def _silent(_: int) -> None:
    pass


# --- looking up ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Wanted:
    """Which rows. `object` also names all below it, as `AppInstance/acme` does; `actor` is
    `user/ada` or `ada` alone.
    """

    object: str = ""
    actor: str = ""
    since_ms: int | None = None
    last: int | None = None

    def has(self, row: AuditRow) -> bool:
        entry = row.entry
        if self.object and not f"{entry.object}/".startswith(f"{self.object}/"):
            return False
        if self.actor and self.actor not in (entry.actor, entry.actor.partition("/")[2]):
            return False
        return self.since_ms is None or entry.at_ms >= self.since_ms


def found(store: Store, wanted: Wanted) -> list[AuditRow]:
    """Oldest first; read from the newest backwards, as far as is needed."""
    newest_first: list[AuditRow] = []
    end = store.audit_head()[0]
    while end > 0 and (wanted.last is None or len(newest_first) < wanted.last):
        begin = max(0, end - _PAGE)
        page = [row for row in store.audit(begin, _PAGE) if row.seq <= end]
        newest_first += [row for row in reversed(page) if wanted.has(row)]
        # Clocks of several processes differ a little, and by far less than a page takes.
        if wanted.since_ms is not None and all(r.entry.at_ms < wanted.since_ms for r in page):
            break
        end = begin
    return newest_first[: wanted.last][::-1]


# --- checking ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Checkpoint:
    """A place in the chain that is known from elsewhere; `seq` None: wherever that hash is."""

    seq: int | None
    row_hash: str


Signature = Literal["", "good", "unchecked"]


@dataclass(frozen=True)
class Verified:
    """`last` is number and hash of the last row that is whole, `first` the number it began with."""

    first: int
    last: tuple[int, str]
    broken: Broken | None = None
    signature: Signature = ""


class _Follow:
    """Follows a chain row by row, and looks out for a checkpoint on the way."""

    def __init__(self, start: tuple[int, str], checkpoint: Checkpoint | None) -> None:
        self.first = start[0] + 1
        self.last = start
        self.broken: Broken | None = None
        self._wanted = checkpoint
        self._met = checkpoint is None
        if checkpoint is not None and checkpoint.seq is not None and checkpoint.seq < start[0]:
            raise Refused(
                "audit_checkpoint_outside",
                f"the checkpoint is of row {checkpoint.seq}, these rows begin after {start[0]}",
                hint="give the export that comes before, or one that begins earlier",
            )
        self._meet(*start)

    def rows(self, page: Sequence[AuditRow]) -> bool:
        """False once something is broken."""
        for row in page:
            self.broken = verify([row], *self.last) or self._meet(row.seq, row.row_hash)
            if self.broken is not None:
                return False
            self.last = (row.seq, row.row_hash)
        return True

    def _meet(self, seq: int, row_hash: str) -> Broken | None:
        wanted = self._wanted
        if self._met or wanted is None:
            return None
        if wanted.row_hash == row_hash and wanted.seq in (None, seq):
            self._met = True
            return None
        if wanted.seq != seq:
            return None
        message = (
            f"row {seq} had another hash when the checkpoint was taken: it was rewritten since"
        )
        return Broken(seq, "audit_checkpoint_differs", message)

    def end(self, head: tuple[int, str]) -> None:
        """Whether this is where it ends, and all was met that had to be."""
        self.broken = self.broken or verify_end(self.last, head) or self._unmet()

    def _unmet(self) -> Broken | None:
        wanted, seq = self._wanted, self.last[0]
        if self._met or wanted is None:
            return None
        if wanted.seq is None:
            message = "no row has the hash of the checkpoint: the rows were rewritten since"
            return Broken(self.first, "audit_checkpoint_differs", message)
        message = f"the last row is {seq}, but {wanted.seq} was there when the checkpoint was taken"
        return Broken(seq + 1, "audit_cut_off", message)

    def verified(self, signature: Signature = "") -> Verified:
        return Verified(self.first, self.last, self.broken, signature)


def verify_store(
    store: Store, checkpoint: Checkpoint | None = None, progress: Progress = _silent
) -> Verified:
    """Every row of the store, up to the newest while others go on writing."""
    follow = _Follow(FIRST, checkpoint)
    for page in _pages(store, 0):
        if not follow.rows(page):
            return follow.verified()
        progress(follow.last[0])
    head = store.audit_head()
    while follow.last[0] < head[0]:
        # What was written since the last page, or what is gone from the end.
        more = store.audit(follow.last[0], _PAGE)
        if not more or not follow.rows(more):
            break
        head = store.audit_head()
    follow.end(head)
    return follow.verified()


def _pages(store: Store, after: int) -> Iterator[Sequence[AuditRow]]:
    while page := store.audit(after, _PAGE):
        yield page
        after = page[-1].seq


# --- taking it elsewhere -------------------------------------------------------------------------


def export(
    store: Store, secrets: SecretStore, after: int, now_ms: int, progress: Progress = _silent
) -> Iterator[str]:
    """Lines of JSON: the rows above `after`, checked on the way, then a signed checkpoint.

    Refused (no_such_row, audit_…) at the first row that is not as it was written.
    """
    head = store.audit_head()
    follow = _Follow(_start(store, after, head[0]), None)
    while follow.last[0] < head[0]:
        page = [r for r in store.audit(follow.last[0], _PAGE) if r.seq <= head[0]]
        if not page or not follow.rows(page):
            break
        yield from (export_line(row) for row in page)
        progress(follow.last[0])
    follow.end(head)
    beyond = store.audit(head[0], 1)
    if beyond and store.audit_head() == head:
        follow.broken = follow.broken or verify_end((beyond[0].seq, ""), head)
    if follow.broken is not None:
        raise Refused(follow.broken.code, follow.broken.message, hint=_RESTORE)
    yield _checkpoint_line(secrets, after, follow.last, now_ms)


def _start(store: Store, after: int, newest: int) -> tuple[int, str]:
    if after > newest:
        message = f"there is no row {after}: the newest is {newest}"
        raise Refused("no_such_row", message, where="--after")
    if after == 0:
        return FIRST
    rows = store.audit(after - 1, 1)
    if not rows or rows[0].seq != after:
        raise Refused("audit_row_missing", f"row {after} is missing", hint=_RESTORE)
    return after, rows[0].row_hash


def _checkpoint_line(secrets: SecretStore, after: int, last: tuple[int, str], now_ms: int) -> str:
    stands = {"after": after, "seq": last[0], "hash": last[1], "at": time_text(now_ms)}
    signature = sealed(secrets, AUDIT_KEY, compact(stands).encode(), CHECKPOINT_TYPE)
    return compact({"checkpoint": {**stands, "signature": signature}})


# --- checking what was taken ---------------------------------------------------------------------


@dataclass(frozen=True)
class _Mark:
    """The checkpoint at the end of an export: it has the rows from `after` to `seq`."""

    after: int
    seq: int
    row_hash: str
    stands: bytes
    envelope: bytes

    def signed(self, keys: Sequence[VerifierKey]) -> str:
        """Why its signature is not to be believed; empty when it is."""
        try:
            payload, _ = unseal(self.envelope, CHECKPOINT_TYPE, keys)
        except EnvelopeRefused as refused:
            return refused.message
        return "" if payload == self.stands else "it is signed for something else"


def verify_export(
    lines: Iterable[str],
    keys: Sequence[VerifierKey],
    checkpoint: Checkpoint | None = None,
    progress: Progress = _silent,
) -> Verified:
    """An export by itself; with `keys`, its checkpoint has to be signed by one of them.

    One that begins later is taken to go on from where it says, unless `checkpoint` tells.
    """
    follow: _Follow | None = None
    reading = enumerate(lines, 1)
    for number, line in reading:
        read = _read(line)
        if read is None:
            broken = _unreadable(follow, f"line {number} is no audit row as it was exported")
            return _ended(follow, broken)
        if follow is None:
            follow = _Follow(_begin(read), checkpoint)
        if isinstance(read, _Mark):
            rest = next(reading, None)
            if rest is not None:
                broken = _unreadable(follow, f"line {rest[0]} comes after the checkpoint")
                return _ended(follow, broken)
            return _at_mark(follow, read, keys)
        if not follow.rows([read]):
            return follow.verified()
        if number % _PAGE == 0:
            progress(read.seq)
    message = "the file ends without a checkpoint: its end was cut off"
    return _ended(follow, Broken(_next(follow), "audit_cut_off", message))


def _at_mark(follow: _Follow, mark: _Mark, keys: Sequence[VerifierKey]) -> Verified:
    begun = follow.first - 1
    follow.end((mark.seq, mark.row_hash))
    if follow.broken is None and begun != mark.after:
        message = f"the export began after row {mark.after}, this begins after row {begun}"
        follow.broken = Broken(mark.after + 1, "audit_row_missing", message)
    if not keys:
        return follow.verified("unchecked")
    refused = mark.signed(keys)
    if follow.broken is None and refused:
        message = f"the checkpoint after row {mark.seq} is not to be believed: {refused}"
        follow.broken = Broken(mark.seq, "audit_checkpoint_not_trusted", message)
    return follow.verified("unchecked" if refused else "good")


def _read(line: str) -> AuditRow | _Mark | None:
    if not line.startswith('{"checkpoint":'):
        try:
            return exported_row(line)
        except ValueError:
            return None
    try:
        found = json.loads(line)["checkpoint"]
        envelope = found.pop("signature")
        after, seq, row_hash = found["after"], found["seq"], found["hash"]
        if compact({"checkpoint": {**found, "signature": envelope}}) != line:
            return None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    if not (isinstance(after, int) and isinstance(seq, int) and isinstance(row_hash, str)):
        return None
    return _Mark(after, seq, row_hash, compact(found).encode(), compact(envelope).encode())


def _begin(read: AuditRow | _Mark) -> tuple[int, str]:
    """What comes before the first line, as it says itself."""
    if isinstance(read, _Mark):
        return read.seq, read.row_hash
    return FIRST if read.seq <= 1 else (read.seq - 1, read.previous_hash)


def _next(follow: _Follow | None) -> int:
    return 1 if follow is None else follow.last[0] + 1


def _unreadable(follow: _Follow | None, message: str) -> Broken:
    return Broken(_next(follow), "audit_unreadable", message)


def _ended(follow: _Follow | None, broken: Broken) -> Verified:
    if follow is None:
        return Verified(1, FIRST, broken)
    follow.broken = broken
    return follow.verified()


def checkpoint_in(lines: Iterable[str], keys: Sequence[VerifierKey]) -> Checkpoint:
    """Where an export ends, by its last line. Refused unless one of `keys` signed it, if any."""
    last = ""
    for line in lines:
        last = line
    mark = _read(last)
    if not isinstance(mark, _Mark):
        raise Refused(
            "audit_checkpoint_unreadable",
            "its last line is no checkpoint",
            hint="give an export, its last line alone, or the hash of a row",
        )
    refused = mark.signed(keys) if keys else ""
    if refused:
        raise Refused("audit_checkpoint_not_trusted", f"not to be believed: {refused}")
    return Checkpoint(mark.seq, mark.row_hash)


def is_hash(text: str) -> bool:
    return _HASH.fullmatch(text) is not None


def verifier(public_key: str) -> VerifierKey:
    """A public key as `gpuaas audit export --key` prints it; Refused for anything else."""
    if not is_hash(public_key):
        message = f"{public_key[:80]!r} is no public key of 64 hex digits"
        raise Refused("bad_key", message, hint="`gpuaas audit export --key` prints it")
    return VerifierKey(key_id=key_id(public_key), version=1, public_key=public_key)
