"""Looks again at the signatures of what is in use, in a thread of its own, a few at a time.

Rules:
- Whatever is old, was checked with other keys, or is asked for something new, has its turn; what
  was launched together has it at different times.
- A registry that is away, and an artifact that it has no more, changes nothing of what is known.
- What can't be looked at is left alone for a while, and comes after the others then.
- No pass waits for it. A pass hears of what changed, and decides.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import ceil

import structlog

from reconciler.artifacts.endpoints import endpoint_for
from reconciler.artifacts.looking import keep, looked, unexpected
from reconciler.core.accept import AcceptedState
from reconciler.core.names import ArtifactKey
from reconciler.core.trust.evidence import Evidence
from reconciler.core.trust.judge import due_at_ms
from reconciler.core.trust.rules import TrustRules
from reconciler.core.trust.standing import Asked, asked_of
from reconciler.errors import GpuaasError, Transient
from reconciler.ports import Ports, RegistryEndpoint
from reconciler.settings import Settings

AT_ONCE_MIN = 16
"""Looked at in one round, at least; more where their turns would not be enough."""
_REFUSED_PAUSE_MS = 10 * 60_000
_SILENT_PAUSE_MS = 60_000
_SILENT_MAX = 3
"""Of so many repositories in a row nothing was heard: then it is the registry that is away."""

log = structlog.get_logger(__name__)


@dataclass
class Recheck:
    """Of one process; `round` is called again and again, every `every_s` seconds."""

    ports: Ports
    settings: Settings
    _later: dict[ArtifactKey, tuple[int, int]] = field(default_factory=dict)
    """What could not be looked at: when, and until when it is left alone."""

    @property
    def every_s(self) -> float:
        return min(self.settings.resync_interval_s, self.settings.trust_recheck_s / 4)

    def round(self, state: AcceptedState, now_ms: int) -> bool:
        """Looks at those that are due; whether anything is not as it was.

        Raises only when our own store does not answer.
        """
        asked = asked_of(state.instances.values())
        if not asked:
            return False
        endpoints = {
            key: endpoint_for(one) for one in state.instances.values() for key in one.artifacts
        }
        kept = self.ports.store.evidence(asked.keys())
        self._later = {key: pause for key, pause in self._later.items() if key in asked}
        due = [key for key in asked if self._is_due(state, asked, key, kept.get(key), now_ms)]
        due.sort(key=lambda key: (self._tried_ms(key, kept.get(key)), key))
        fresh = []
        silent: set[str] = set()
        for key in due[: self._share(len(asked))]:
            pause_ms = _REFUSED_PAUSE_MS
            try:
                found = self._look(endpoints[key], key, state.trust, kept.get(key), now_ms, asked)
                silent.clear()
            except Transient as error:
                log.info("evidence_unchecked", artifact=str(key), code=error.code)
                found, pause_ms = None, _SILENT_PAUSE_MS
                silent.add(key.repository)
            except GpuaasError as error:
                log.warning("evidence_unchecked", artifact=str(key), code=error.code)
                found = None
                silent.clear()
            except Exception as error:
                found = None
                unexpected(key, error)
            if found is not None:
                fresh.append(found)
            else:
                self._later[key] = (now_ms, now_ms + pause_ms)
            if len(silent) == _SILENT_MAX:
                break  # Each of the others would wait for the same registry.
        return keep(self.ports.store, fresh)

    def _tried_ms(self, key: ArtifactKey, known: Evidence | None) -> int:
        """When somebody last tried to look at it; the longest ago has its turn first."""
        tried_ms, _ = self._later.get(key, (0, 0))
        return max(tried_ms, known.checked_at_ms if known is not None else 0)

    def _look(
        self,
        endpoint: RegistryEndpoint,
        key: ArtifactKey,
        rules: TrustRules,
        known: Evidence | None,
        now_ms: int,
        asked: Asked,
    ) -> Evidence | None:
        """None for what is not there any more: that says nothing of its signatures."""
        registry = self.ports.registry
        if not registry.look_up(endpoint, key).exists:
            return None
        return looked(registry, endpoint, key, rules, known, now_ms, asked)

    def _is_due(
        self,
        state: AcceptedState,
        asked: Asked,
        key: ArtifactKey,
        known: Evidence | None,
        now_ms: int,
    ) -> bool:
        tried_ms, until_ms = self._later.get(key, (0, 0))
        if tried_ms <= now_ms < until_ms:
            return False
        if known is None or known.keys_hash != state.trust.keys_hash:
            return True
        if known.checked_at_ms > now_ms:  # By a clock that was wrong.
            return True
        recheck_ms = int(self.settings.trust_recheck_s * 1000)
        return not asked[key] <= frozenset(known.asked) or now_ms >= due_at_ms(known, recheck_ms)

    def _share(self, count: int) -> int:
        """How many have their turn now, so that all have had it when the first is due again."""
        return max(AT_ONCE_MIN, ceil(2 * count * self.every_s / self.settings.trust_recheck_s))
