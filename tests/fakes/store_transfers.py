"""The transfers of the store in memory."""

from __future__ import annotations

from collections.abc import Sequence

from reconciler.core.transfers import Transfer


class MemoryTransfers:
    """What `MemoryStore` does under its lock."""

    def __init__(self) -> None:
        self._by_id: dict[str, Transfer] = {}

    def save(self, transfer: Transfer) -> None:
        self._by_id[transfer.id] = transfer

    def get(self, transfer_id: str) -> Transfer | None:
        return self._by_id.get(transfer_id)

    def listed(self, owner: str) -> Sequence[Transfer]:
        found = [one for one in self._by_id.values() if owner in ("", one.owner)]
        return sorted(found, key=lambda one: (-one.created_at_ms, one.id))

    def expired(self, now_ms: int, limit: int) -> Sequence[Transfer]:
        found = [
            one
            for one in self._by_id.values()
            if one.state == "open" and one.expires_at_ms <= now_ms
        ]
        return sorted(found, key=lambda one: (one.expires_at_ms, one.id))[:limit]
