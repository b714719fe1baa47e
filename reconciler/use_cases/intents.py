"""Publish and pull intents as documents: what the API answers and the command line shows."""

from __future__ import annotations

from dataclasses import dataclass

from reconciler.core.transfers import PublishWish, PullWish
from reconciler.use_cases import transfers
from reconciler.use_cases.handover import Asker
from reconciler.views.transfers import (
    Document,
    completed_document,
    opened_document,
    transfer_document,
)


@dataclass(frozen=True)
class Intents:
    """Of this control plane, for `asker`, whose permissions were looked at before."""

    desk: transfers.Desk
    asker: Asker

    def publish(self, wish: PublishWish) -> Document:
        return self._opened(transfers.open_publish(self.desk, wish, self.asker))

    def pull(self, wish: PullWish) -> Document:
        return self._opened(transfers.open_pull(self.desk, wish, self.asker))

    def complete(self, transfer_id: str, digest: str) -> Document:
        done = transfers.complete(self.desk, transfer_id, digest, self.asker)
        return completed_document(
            done.transfer, done.environment, done.media_type, done.verdict, self._now_ms
        )

    def show(self, transfer_id: str) -> Document:
        return transfer_document(transfers.known(self.desk.store, transfer_id), self._now_ms)

    def listed(self, project: str) -> Document:
        found = self.desk.store.transfers(project)
        return {"intents": [transfer_document(one, self._now_ms) for one in found]}

    def close(self, transfer_id: str) -> Document:
        return transfer_document(transfers.close(self.desk, transfer_id, self.asker), self._now_ms)

    @property
    def _now_ms(self) -> int:
        return self.desk.clock.now_ms()

    def _opened(self, found: transfers.Opened) -> Document:
        handed, settings = found.handed, self.desk.settings
        return opened_document(
            found.transfer,
            found.environment,
            found.needs,
            handed.token.reveal() if handed is not None else None,
            handed.expires_at_ms if handed is not None else None,
            settings.public_address.rstrip("/") or f"http://{settings.listen}",
            self._now_ms,
        )
