"""The canaries that went back, of the store in memory."""

from __future__ import annotations

from collections.abc import Mapping

from reconciler.core.records import StepBack
from reconciler.ports import Changes


class MemoryStepBacks:
    """What `MemoryStore` does under its lock."""

    def __init__(self) -> None:
        self._by_promotion: dict[str, StepBack] = {}

    def write(self, changes: Changes) -> None:
        for name in changes.steps_over:
            self._by_promotion.pop(name, None)
        for back in changes.step_backs:
            self._by_promotion.setdefault(back.promotion, back)

    def listed(self) -> Mapping[str, StepBack]:
        return dict(sorted(self._by_promotion.items()))
