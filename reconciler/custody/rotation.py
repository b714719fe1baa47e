"""Carries out what a plan says of signing keys: makes versions, retires versions.

Rules:
- Only who holds the reconciler's lease does so, and looks once more right before: which versions
  there are, what agents know, what is queued. A crash in between costs nothing; the next pass finds
  what was done.
- It is told before and after, so that no version comes or goes without a line in the audit trail.
- What custody refuses keeps no task from being signed: it is a finding, and tried again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import structlog

from reconciler.core.actions import KeyAction, key_action_id
from reconciler.core.audit import BEGUN, SYSTEM
from reconciler.core.desired import Desired
from reconciler.core.names import content_hash
from reconciler.core.plan import Finding
from reconciler.core.plan.keys import wanted_of_keys
from reconciler.core.records import AuditEntry
from reconciler.errors import GpuaasError, Transient
from reconciler.observe import see_nodes, with_keys
from reconciler.ports import KEY_KINDS, RECONCILER_LEASE, Ports
from reconciler.settings import Settings

_TOLD_FOR_MS = 90 * 24 * 3600 * 1000

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Rotated:
    """What was done, and what custody would not do."""

    done: tuple[KeyAction, ...] = ()
    findings: tuple[Finding, ...] = ()


def rotate_keys(
    actions: Sequence[KeyAction], desired: Desired, ports: Ports, settings: Settings, holder: str
) -> Rotated:
    """`actions` are those that nothing holds. Raises as a Store does, lease_lost too."""
    done: list[KeyAction] = []
    for action in actions:
        _still_leading(ports, settings, holder)
        try:
            newest = ports.secrets.ensure_signing_key(action.key, KEY_KINDS[action.key]).version
            if not _still_wanted(action, desired, ports, settings):
                continue
            _tell(action, ports, settings, desired, BEGUN)
            _carry_out(action, newest, ports)
        except GpuaasError as error:
            return Rotated(tuple(done), (_failure(action, error),))
        _tell(action, ports, settings, desired, "done")
        done.append(action)
    return Rotated(tuple(done))


def _carry_out(action: KeyAction, newest: int, ports: Ports) -> None:
    if action.kind == "retire":
        ports.secrets.retire(action.key, action.version)
        return
    while newest < action.version:
        newest = ports.secrets.rotate(action.key).version


def _still_leading(ports: Ports, settings: Settings, holder: str) -> None:
    if not holder:
        return
    now_ms, ttl_ms = ports.clock.now_ms(), int(settings.lease_ttl_s * 1000)
    if not ports.store.renew(RECONCILER_LEASE, holder, now_ms, ttl_ms):
        raise Transient("lease_lost", "another reconciler leads by now")


def _still_wanted(action: KeyAction, desired: Desired, ports: Ports, settings: Settings) -> bool:
    """Whether the same comes of what is there at this very moment: a node may have joined, and a
    process that stood still may have led until just now.
    """
    now_ms = ports.clock.now_ms()
    seen = with_keys(ports.secrets, desired, see_nodes(ports, settings, now_ms))
    wanted = wanted_of_keys(desired.keys, seen, ports.store.open_intents(now_ms))
    same = (one for one in wanted if key_action_id(one) == key_action_id(action))
    made = action.kind == "rotate" and action.version_from == 0
    return made or any(one.held is None for one in same)


def _tell(
    action: KeyAction, ports: Ports, settings: Settings, desired: Desired, result: str
) -> None:
    """That it is begun, once, however often it is tried; and each time that it is done."""
    now_ms, name = ports.clock.now_ms(), f"key/{key_action_id(action)}"
    if result == BEGUN and not ports.store.use_once(name, now_ms + _TOLD_FOR_MS, now_ms):
        return
    written = ports.store.accepted().objects.get(f"Environment/{settings.environment}")
    actor = (written.by if written is not None else "") or SYSTEM
    entry = AuditEntry(
        at_ms=now_ms,
        actor=actor,
        requester_type=actor.partition("/")[0],
        action="keys.key.rotated" if action.kind == "rotate" else "keys.key.retired",
        object=f"SigningKey/{action.key}",
        before=f"version {action.version_from}" if action.version_from else "",
        after=f"version {action.version}",
        reason=action.reason,
        revision=desired.revision,
        correlation_id=content_hash(desired.revision, key_action_id(action)),
        result=result,
    )
    ports.store.append_audit([entry])
    if result == "done":
        said = "key_rotated" if action.kind == "rotate" else "key_retired"
        log.info(said, key=action.key, version=action.version, before=action.version_from)


def _failure(action: KeyAction, error: GpuaasError) -> Finding:
    """What custody refuses needs a person; what it does not answer is tried again."""
    level: Literal["info", "stalled"] = "info" if isinstance(error, Transient) else "stalled"
    log.warning("key_not_changed", key=action.key, kind=action.kind, code=error.code)
    message = f"could not {action.kind} to version {action.version}: {error.message}"
    return Finding(level, error.code, f"SigningKey/{action.key}", message, error.hint)
