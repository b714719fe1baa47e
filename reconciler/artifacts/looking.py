"""Evidence for what is to be launched: what is kept where that does, else by a look of now.

Rules:
- Nothing is raised for a registry that is away or serves nonsense, nor for a mistake of ours that
  what it serves was met by: that artifact is Unknown.
- What was looked at is kept by who may write (`keep`): a plan that only looks keeps nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import structlog

from reconciler.core.names import ArtifactKey
from reconciler.core.observed import Known, Seen, Unknown
from reconciler.core.trust.evidence import Evidence
from reconciler.core.trust.rules import TrustRules
from reconciler.core.trust.standing import Asked, entry_of, looked_for, must_look
from reconciler.errors import GpuaasError
from reconciler.ports import Registry, RegistryEndpoint, Store

Endpoints = Mapping[ArtifactKey, RegistryEndpoint]
Found = dict[ArtifactKey, Seen[Evidence]]
_AT_ONCE = 8

log = structlog.get_logger(__name__)


def evidence_of(
    store: Store,
    registry: Registry,
    rules: TrustRules,
    asked: Asked,
    to_launch: Endpoints,
    now_ms: int,
    recheck_ms: int,
) -> Found:
    """What is known of all that anything is `asked` of; of what is `to_launch`, as it is now.

    Raises only when our own store does not answer.
    """
    kept = store.evidence(asked.keys())
    stale = {
        key: to_launch[key]
        for key in sorted(asked.keys() & to_launch.keys())
        if must_look(rules, asked[key], kept.get(key), now_ms, recheck_ms)
    }
    found: Found = {key: Known(one) for key, one in kept.items()}
    found |= look_at(registry, stale, rules, asked, kept, now_ms)
    return dict(sorted(found.items()))


def look_at(
    registry: Registry,
    endpoints: Endpoints,
    rules: TrustRules,
    asked: Asked,
    kept: Mapping[ArtifactKey, Evidence],
    now_ms: int,
) -> Found:
    """Each artifact as it is signed now, several asked at once. Nothing is raised."""
    if not endpoints:
        return {}

    def one(key: ArtifactKey) -> Seen[Evidence]:
        try:
            return Known(looked(registry, endpoints[key], key, rules, kept.get(key), now_ms, asked))
        except GpuaasError as error:
            return Unknown(error.code, f"{endpoints[key].endpoint}: {error.message}")
        except Exception as error:
            return unexpected(key, error)

    with ThreadPoolExecutor(min(_AT_ONCE, len(endpoints))) as pool:
        return dict(zip(endpoints, pool.map(one, endpoints), strict=True))


def unexpected(key: ArtifactKey, error: Exception) -> Unknown:
    """Of one artifact, when a look at it met a mistake of ours, which the log tells of."""
    log.exception("artifact_look_crashed", artifact=str(key))
    return Unknown("internal", f"unexpected {type(error).__name__}, see the log")


def looked(
    registry: Registry,
    endpoint: RegistryEndpoint,
    key: ArtifactKey,
    rules: TrustRules,
    known: Evidence | None,
    now_ms: int,
    asked: Asked,
) -> Evidence:
    """One look of now, for what is asked. Raises as `verifying.look` does."""
    from reconciler.artifacts.verifying import look  # noqa: PLC0415 - loads cryptography

    return looked_for(look(registry, endpoint, key, rules, known, now_ms), asked[key])


def keep(store: Store, found: Sequence[Evidence]) -> bool:
    """Stores what was found, and tells what is not as it was; whether anything is."""
    if not found:
        return False
    found = [one.printable for one in found]
    kept = store.evidence([one.artifact for one in found])
    entries = [entry_of(kept.get(one.artifact), one) for one in found]
    told = [entry for entry in entries if entry is not None]
    store.save_evidence(found, told)
    return bool(told)


def look_anew(store: Store, key: ArtifactKey) -> None:
    """Has `key`, which was just signed, looked at by the next that needs it, whenever it last was.
    What held on it stays known, and since when.
    """
    store.save_evidence([replace(one, asked=()) for one in store.evidence([key]).values()])


def looked_now(found: Mapping[ArtifactKey, Seen[Evidence]], now_ms: int) -> tuple[Evidence, ...]:
    """Of all that is known, what a look of now found."""
    known = (seen.value for _, seen in sorted(found.items()) if isinstance(seen, Known))
    return tuple(one for one in known if one.checked_at_ms == now_ms)
