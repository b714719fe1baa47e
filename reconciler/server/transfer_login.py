"""Who comes with the credential of an intent: what the registry's clients and blobs are let in by.

Rules:
- Whoever has no good credential learns nothing, and who tries often has to wait. A try counts
  before its outcome is known, so that tries in parallel count as well; those that were good don't.
- Who names no intent that there is counts by his address, who names one by that as well: so he
  keeps out nobody who comes from the same address, say a proxy, with another.
- What was withdrawn since a pull intent was opened is given by it no more.
"""

from __future__ import annotations

import base64
import binascii

from reconciler.core.transfers import Transfer, admits
from reconciler.ports import Secret
from reconciler.server.deps import ServerDeps
from reconciler.server.errors import ApiError
from reconciler.server.rate_limit import Buckets, take_turn
from reconciler.use_cases.transfers import is_withdrawn

_REFUSALS_AT_ONCE, _REFUSAL_EVERY_S = 30, 2.0
_ADDRESSES_MAX = 10_000


class TransferLogin:
    """Looks transfers up in the store, and counts who is refused."""

    def __init__(self, deps: ServerDeps) -> None:
        self._deps = deps
        self._by_address = Buckets(_REFUSALS_AT_ONCE, _REFUSAL_EVERY_S, _ADDRESSES_MAX)
        self._by_intent = Buckets(_REFUSALS_AT_ONCE, _REFUSAL_EVERY_S, _ADDRESSES_MAX)

    def opened(self, name: str, password: Secret, peer: str, now_ms: int) -> Transfer:
        """The open transfer of this credential. ApiError 401 for none, 429 for too many tries."""
        transfer = self._deps.store.transfer(name)
        buckets = self._by_address if transfer is None else self._by_intent
        counted = peer if transfer is None else f"{transfer.id} {peer}"
        take_turn(buckets, counted, now_ms, "too many refused tries from this address")
        if transfer is None or not admits(transfer, password.reveal(), now_ms):
            raise credential_refused()
        buckets.give_back(counted, now_ms)
        if transfer.kind == "pull" and is_withdrawn(self._deps.store.accepted(), transfer):
            raise credential_refused()
        return transfer


def basic(header: str) -> tuple[str, Secret]:
    """Name and password. ApiError 401 for what is no Basic authorization."""
    scheme, _, word = header.strip().partition(" ")
    try:
        decoded = base64.b64decode(word.strip(), validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        decoded = ""
    name, colon, password = decoded.partition(":")
    if scheme.lower() != "basic" or not colon:
        raise credential_refused()
    return name, Secret(password)


def credential_refused() -> ApiError:
    headers = {"WWW-Authenticate": 'Basic realm="gpuaas"'}
    message = (
        "no open intent has this credential: log in with the id of a publish or pull intent and "
        "what its hand-over token unwraps to (gpuaas intent publish|pull)"
    )
    return ApiError(401, "credential_refused", message, headers)
