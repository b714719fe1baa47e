"""Unwraps for whoever asks over HTTP, and counts the alarms."""

from __future__ import annotations

from reconciler.core.audit import ALARMS
from reconciler.custody.wrap_mac import Given
from reconciler.errors import Refused
from reconciler.ports import Secret
from reconciler.server.deps import ServerDeps
from reconciler.server.rate_limit import Buckets
from reconciler.use_cases.handover import Asker, unwrap_told

__all__ = ["Asker", "told_unwrap", "tries_by_token"]

_TRIES_AT_ONCE, _TRY_EVERY_S, _TOKENS_MAX = 10, 60.0, 10_000


def tries_by_token() -> Buckets:
    """Refused tries of one token that was given out here, by its MAC. Each one is told of in the
    audit trail, and what becomes of one token is no matter of those who hold another.
    """
    return Buckets(_TRIES_AT_ONCE, _TRY_EVERY_S, _TOKENS_MAX)


def told_unwrap(deps: ServerDeps, given: Given, asker: Asker) -> Secret:
    """The value, once. Raises what `SecretStore.unwrap` does, after the alarm where it is one.
    Only for a token that was given out here.
    """
    try:
        return unwrap_told(deps.store, deps.secrets, deps.clock, given, asker)
    except Refused as refused:
        if refused.code in ALARMS:
            deps.metrics.wrap_alarm(refused.code)
        raise
