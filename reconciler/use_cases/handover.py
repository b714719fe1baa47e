"""Secrets on their way to people: wrapped, handed over, unwrapped once.

Rules:
- Whatever is handed to a person goes through here, and so does what comes back: the audit trail
  has both ends. Neither it nor the log hears a token or a value.
- What a person holds is a hand-over token: a wrapping token, the secret that it is for and its end,
  under a MAC. What was changed on the way, or made up, is found out before anything is spent.
- A token of ours that is spent when its holder comes was read by somebody, or expired: that is an
  alarm. One that is not of ours is none, or anybody could raise alarms for any secret.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from dataclasses import dataclass
from typing import Protocol

from reconciler.core.audit import ALARMS
from reconciler.core.custody.paths import class_of
from reconciler.core.records import AuditEntry, AuditRow
from reconciler.core.times import time_text
from reconciler.custody.wrap_mac import Given, WrapMac
from reconciler.errors import Refused
from reconciler.ports import Clock, Ports, Secret, SecretStore, Store, Wrapped

PREFIX = "gpuaas-h1."
"""What a hand-over token begins with, and its version."""
TOKEN_BYTES_MAX = 4096
ALARM_LASTS_MS = 24 * 3_600_000
"""How long an alarm is shown; it stays in the audit trail."""
WRAPPED, UNWRAPPED, SHOWN = "secrets.wrap.create", "secrets.wrap.unwrap", "secrets.value.shown"
"""Actions in the audit trail."""

_PAGE, _PAGES_MAX = 1000, 20
_TOKEN = re.compile(rf"{re.escape(PREFIX)}([-_0-9A-Za-z]+)")
_MAC = re.compile(r"[0-9a-f]{64}")
_NOT_FOR_PEOPLE = ("joins", "pki", "handover")
"""What an agent unwraps by joining, and what nobody does."""


@dataclass(frozen=True)
class Asker:
    """Who hands over or unwraps: as in the audit trail, the address it comes from if any, and the
    request's name.
    """

    actor: str
    requester_type: str
    peer: str = ""
    correlation_id: str = ""


@dataclass(frozen=True)
class HandedOver:
    """`token` is for one person, and good once, until then."""

    token: Secret
    path: str
    expires_at_ms: int


class Custody(Protocol):
    """What handing over takes: Ports have it."""

    @property
    def store(self) -> Store: ...

    @property
    def secrets(self) -> SecretStore: ...

    @property
    def clock(self) -> Clock: ...


def hand_over(ports: Custody, path: str, asker: Asker, ttl_s: float, to: str = "") -> HandedOver:
    """The secret at `path`, to be unwrapped once. `to` is whom it is for, for the audit trail.

    Refused("no_secret") for none, and what a SecretStore raises.
    """
    macs = WrapMac(ports.secrets, ports.clock)
    wrapped = ports.secrets.wrap(path, ttl_s)
    token = token_for(macs, path, wrapped)
    words = [f"until {time_text(wrapped.expires_at_ms)}"]
    reason = ", ".join([f"for {to}", *words] if to else words)
    ports.store.append_audit([_entry(ports.clock.now_ms(), WRAPPED, path, asker, reason)])
    return HandedOver(token, path, wrapped.expires_at_ms)


def take(ports: Ports, token: Secret, asker: Asker) -> Secret:
    """What a hand-over token stands for. Refused wrap_spent or wrap_foreign after the alarm."""
    given = checked_token(WrapMac(ports.secrets, ports.clock), token)
    return unwrap_told(ports.store, ports.secrets, ports.clock, given, asker)


def told_shown(ports: Ports, path: str, asker: Asker) -> None:
    """To be called before a value is printed: it is in the audit trail whatever happens then."""
    ports.store.append_audit([_entry(ports.clock.now_ms(), SHOWN, path, asker, "")])


def unwrap_told(
    store: Store, secrets: SecretStore, clock: Clock, given: Given, asker: Asker
) -> Secret:
    """The value that a wrapping token holds, once, told in the audit trail before it is given out.
    Only for one that was given out here (`WrapMac.holds`).

    Raises what `SecretStore.unwrap` does; where that is an alarm, it was raised.
    """
    path, came = given.path, f"from {asker.peer}" if asker.peer else ""
    try:
        value = secrets.unwrap(given.token, path)
    except Refused as refused:
        if refused.code in ALARMS:
            _alarm(refused, path, asker)
            # Who looks into it learns whether it can have been too late.
            good = f"it was good until {time_text(given.expires_at_ms)}"
            reason = ", ".join(filter(None, (refused.message, good, came)))
            entry = _entry(clock.now_ms(), UNWRAPPED, path, asker, reason, refused.code)
            store.append_audit([entry])
        raise
    store.append_audit([_entry(clock.now_ms(), UNWRAPPED, path, asker, came)])
    return value


def _alarm(refused: Refused, path: str, asker: Asker) -> None:
    # Most who look here raise none, and to load it takes time.
    import structlog  # noqa: PLC0415

    structlog.get_logger(__name__).error(
        "wrap_alarm",
        code=refused.code,
        path=path,
        asker=asker.actor,
        peer=asker.peer,
        correlation_id=asker.correlation_id,
    )


def _entry(
    now_ms: int, action: str, path: str, asker: Asker, reason: str, result: str = "done"
) -> AuditEntry:
    return AuditEntry(
        at_ms=now_ms,
        actor=asker.actor,
        requester_type=asker.requester_type,
        action=action,
        object=path,
        reason=reason,
        correlation_id=asker.correlation_id,
        result=result,
    )


def alarms(store: Store, now_ms: int) -> list[AuditRow]:
    """The alarms of the last day, oldest first, among the newest rows of the audit trail."""
    found: list[AuditRow] = []
    since_ms, end = now_ms - ALARM_LASTS_MS, store.audit_head()[0]
    for _ in range(_PAGES_MAX):
        begin = max(0, end - _PAGE)
        page = [row for row in store.audit(begin, _PAGE) if row.seq <= end]
        found += [r for r in page if r.entry.result in ALARMS and r.entry.at_ms >= since_ms]
        # Clocks of several processes differ a little, and by far less than a page takes.
        if begin == 0 or all(row.entry.at_ms < since_ms for row in page):
            break
        end = begin
    return sorted(found, key=lambda row: row.seq)


# --- the token -----------------------------------------------------------------------------------


def token_for(macs: WrapMac, path: str, wrapped: Wrapped) -> Secret:
    """The hand-over token of a wrapping token."""
    given = macs.given(path, wrapped)
    words = [given.path, given.token.reveal(), given.expires_at_ms, given.mac]
    said = json.dumps(words, separators=(",", ":")).encode()
    return Secret(PREFIX + base64.urlsafe_b64encode(said).rstrip(b"=").decode())


def checked_token(macs: WrapMac, token: Secret) -> Given:
    """What is in a hand-over token that was given out here.

    Refused("handover_malformed") for any other, and what a SecretStore raises.
    """
    given = read_token(token)
    if not macs.holds(given):
        message = "it was not handed out by this control plane, or was changed on the way"
        hint = "give all of it, as it was printed; if that is what you did, ask for a new one"
        raise Refused("handover_malformed", message, hint=hint)
    return given


def read_token(token: Secret) -> Given:
    """What a hand-over token says it is: anybody can make one up.

    Refused("handover_malformed") for what is none; it is not quoted.
    """
    text = token.reveal().strip()
    match = _TOKEN.fullmatch(text) if len(text) <= TOKEN_BYTES_MAX else None
    try:
        if match is None:
            raise ValueError
        padded = match[1] + "=" * (-len(match[1]) % 4)
        path, wrapping, ends_ms, mac = json.loads(base64.b64decode(padded, b"-_", validate=True))
        if not (_is_word(path) and _is_word(wrapping) and type(ends_ms) is int):
            raise ValueError
        if not (isinstance(mac, str) and _MAC.fullmatch(mac)):
            raise ValueError
    except (ValueError, TypeError, binascii.Error, RecursionError):
        hint = f"give all of it, as it was printed: {PREFIX}…"
        raise Refused("handover_malformed", "this is no hand-over token", hint=hint) from None
    if class_of(path) is None or path.partition("/")[0] in _NOT_FOR_PEOPLE:
        message = "it is for something that is not handed to people"
        raise Refused("handover_malformed", message)
    return Given(path, Secret(wrapping), ends_ms, mac)


def _is_word(text: object) -> bool:
    """Printable ASCII: neither a path nor a wrapping token has anything else."""
    return isinstance(text, str) and bool(text) and text.isascii() and text.isprintable()
