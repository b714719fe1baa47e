"""What `tests.fakes.store.MemoryStore` keeps of the signatures of artifacts."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from reconciler.core.names import ArtifactKey
from reconciler.core.trust.evidence import AHEAD_MS, Evidence


class MemoryEvidence:
    def __init__(self) -> None:
        self._kept: dict[ArtifactKey, Evidence] = {}

    def get(self, keys: Collection[ArtifactKey]) -> Mapping[ArtifactKey, Evidence]:
        return {key: self._kept[key] for key in sorted(keys) if key in self._kept}

    def save(self, found: Sequence[Evidence]) -> None:
        for one in found:
            known = self._kept.get(one.artifact)
            ahead_ms = known.checked_at_ms - one.checked_at_ms if known is not None else 0
            if not 0 < ahead_ms <= AHEAD_MS:
                self._kept[one.artifact] = one
