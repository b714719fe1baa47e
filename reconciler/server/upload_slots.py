"""How many bodies of uploads this process takes at once. Each holds two batches in memory.

Rules: one of an upload, so that a credential is worth the memory of one body; and not so many of
one project that others find no place. Who finds none comes again: what was sent is kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from reconciler.server.errors import ApiError

SLOTS_MAX = 32
SLOTS_OF_ONE = 16
"""For one owner, `tenant/project`."""


class UploadSlots:
    """Used by the event loop alone."""

    def __init__(self) -> None:
        self._owners: dict[str, str] = {}

    @contextmanager
    def taken(self, upload: str, owner: str) -> Iterator[None]:
        """ApiError 409 upload_busy, 503 too_many_uploads."""
        if upload in self._owners:
            message = "another request is at this upload"
            raise ApiError(409, "upload_busy", message, {"Retry-After": "1"})
        of_one = sum(other == owner for other in self._owners.values())
        if len(self._owners) >= SLOTS_MAX or of_one >= SLOTS_OF_ONE:
            message = f"{len(self._owners)} uploads are under way: wait for one of them, then retry"
            raise ApiError(503, "too_many_uploads", message, {"Retry-After": "2"})
        self._owners[upload] = owner
        try:
            yield
        finally:
            del self._owners[upload]
