"""Whether Vault still holds what it has to, looked at now and then beside the passes.

Rules:
- No pass waits for it: a pass tells what the last look found.
- A Vault that does not answer has not drifted: what was known of it stays, with no finding more.
- Drift is put right where there is a login for that, by whoever leads; what needs a person is told.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import structlog

from reconciler.core.custody.diff import Change
from reconciler.core.custody.words import findings_of
from reconciler.core.plan import Finding
from reconciler.core.records import AuditEntry
from reconciler.errors import GpuaasError, Refused, Transient

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Mended:
    """What was put right, and what is left."""

    done: tuple[Change, ...]
    left: tuple[Change, ...]


class CustodyWatch:
    """`look` gives what differs. `mend`, where there is a login for it, puts right what it can.

    Both raise Transient and Refused. One thread looks, others read.
    """

    def __init__(
        self, look: Callable[[], Sequence[Change]], mend: Callable[[], Mended] | None = None
    ) -> None:
        self._look = look
        self._mend = mend
        self._findings: tuple[Finding, ...] = ()
        self._away = ""

    def findings(self) -> tuple[Finding, ...]:
        """What the last look that had an answer found."""
        return self._findings

    def check(self, leading: bool, now_ms: int) -> tuple[AuditEntry, ...]:
        """Looks, and mends if this process leads; returns what is to be told of that."""
        try:
            found, done = self._settled(leading)
        except Transient as error:
            if self._away != error.code:
                log.warning("vault_unseen", code=error.code, message=error.message)
            self._away = error.code
            return ()
        self._away = ""
        if found != self._findings:
            for finding in found:
                log.warning(finding.code, object=finding.object, message=finding.message)
        self._findings = found
        return tuple(_mended_entry(change, now_ms) for change in done)

    def _settled(self, leading: bool) -> tuple[tuple[Finding, ...], tuple[Change, ...]]:
        refused: Refused | None = None
        try:
            changes = tuple(self._look())
        except Refused as error:
            # Its right to look may be what was taken away: another login may see, and give it back.
            refused, changes = error, ()
        if self._mend is None or not leading or not (changes or refused):
            return _told(changes, refused), ()
        try:
            mended = self._mend()
        except GpuaasError as error:
            return (*_told(changes, refused), _finding(error)), ()
        for change in mended.done:
            log.warning("vault_mended", object=change.object, op=change.op)
        return _told(mended.left, None), mended.done


def _told(changes: Sequence[Change], refused: Refused | None) -> tuple[Finding, ...]:
    return (*findings_of(changes), *([_finding(refused)] if refused else []))


def _finding(error: GpuaasError) -> Finding:
    return Finding("info", error.code, "vault", error.message, error.hint)


def _mended_entry(change: Change, now_ms: int) -> AuditEntry:
    return AuditEntry(
        at_ms=now_ms,
        actor="system",
        requester_type="system",
        action="custody.vault.mended",
        object=change.object,
        reason=", ".join(drift.field for drift in change.fields) or "it was not there",
    )
