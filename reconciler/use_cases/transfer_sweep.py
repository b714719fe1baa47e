"""What nobody ended: intents whose time is up, with what is left of them.

Rules:
- A credential opens nothing once its time is up, whether anybody sweeps or not: this only tidies.
- Nothing here fails its caller. What can't be done now is done by a later sweep; what was done is
  done again without harm, also by another control plane at the same time.
- While the artifact store or custody is away it is asked once a sweep, not once for each intent.
"""

from __future__ import annotations

from dataclasses import replace

import structlog

from reconciler.core.audit import SYSTEM
from reconciler.core.custody.paths import transfer_secret
from reconciler.core.transfers import Transfer
from reconciler.errors import GpuaasError, Transient
from reconciler.use_cases.handover import Asker
from reconciler.use_cases.transfers import CLOSED, Desk, alone, discard_parts, entry_of, named

EVERY_MS = 60_000
CLOSED_MAX = 20
"""In one sweep, so that no pass waits long."""
_LOOK_AT = 1_000
_BUSY = ("transfer_busy", "upload_busy")
"""Somebody is at this one: that says nothing of others."""
STRAY_MS = 600_000
"""A credential is in custody while it is wrapped, which takes seconds. What is older was left."""
_BY = Asker(SYSTEM, SYSTEM, "", "")

log = structlog.get_logger(__name__)


class TransferSweep:
    """Call it as often as you like: it sweeps once in `EVERY_MS`."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._next_ms = 0

    def run(self) -> None:
        now_ms = self._desk.clock.now_ms()
        # A clock that was set back is no reason to wait for long.
        if now_ms < self._next_ms <= now_ms + EVERY_MS:
            return
        self._next_ms = now_ms + EVERY_MS
        try:
            _close_expired(self._desk, now_ms)
            _delete_strays(self._desk, now_ms)
        except GpuaasError as error:
            log.warning("transfers_not_swept", code=error.code)


def _close_expired(desk: Desk, now_ms: int) -> None:
    """The oldest first. Those with something in a store that is away wait for it."""
    closed, away = 0, False
    for transfer in desk.store.expired_transfers(now_ms, _LOOK_AT):
        if closed >= CLOSED_MAX:
            return
        if away and transfer.content == "blob":
            continue
        try:
            with alone(desk, transfer) as found:
                _close(desk, found)
            closed += 1
        except GpuaasError as error:
            away = away or (isinstance(error, Transient) and error.code not in _BUSY)
            log.warning("transfer_not_closed", transfer=transfer.id, code=error.code)


def _close(desk: Desk, transfer: Transfer) -> None:
    if transfer.state != "open":
        return
    discard_parts(desk, transfer)
    closed = replace(transfer, state="closed")
    reason = f"expired: {named(closed)}"
    desk.store.save_transfer(closed, [entry_of(desk, CLOSED, closed, _BY, reason)])


def _delete_strays(desk: Desk, now_ms: int) -> None:
    """Credentials that stayed in custody when whoever made them was stopped half-way."""
    for path in desk.secrets.paths(transfer_secret("").rstrip("/"))[:CLOSED_MAX]:
        seen = desk.secrets.seen(path)
        if seen is not None and seen.changed_at_ms + STRAY_MS <= now_ms:
            desk.secrets.delete(path)
            log.info("credential_deleted", path=path)
