"""Signed assertions (RFC 7523): somebody proves with a key of his that it is he who asks.

Rules:
- The header says where to look for a key, and nothing else: which keys and algorithms count is for
  the account's own document to say. Any field in it beside alg, kid and typ is refused.
- Of an unknown account, an unknown key and a wrong signature a caller learns that one of them it
  was; the log says which. Each costs one verification.
- What only the holder of the key may know (that it is revoked, say) is said once it is proved.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn, cast

from reconciler.core.authority.accounts import Account, Algorithm, Subject, standing
from reconciler.core.authority.facts import Actor
from reconciler.server.accounts import Accounts
from reconciler.server.errors import ApiError
from reconciler.server.jws import loaded, nobodys_key, parts_of, verified_payload

KEY_ID_LENGTH_MAX = 128
JTI_LENGTH_MAX = 200
_ALGORITHMS = ("EdDSA", "ES256", "RS256")
_HEADER_FIELDS = frozenset(("alg", "kid", "typ"))


class Denied(ApiError):
    """No token. `why` is for the log and the audit trail; `account` and `key_id` are what was
    claimed, `actor` who it was, where that is proved.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        why: str = "",
        account: str = "",
        key_id: str = "",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(status, code, message, headers)
        self.why = why or code
        self.account = account
        self.key_id = key_id
        self.actor: Actor | None = None

    def of(self, account: Account, key_id: str) -> Denied:
        """The same of somebody who proved who he is."""
        self.account, self.key_id = str(account.subject), key_id
        self.actor = account.actor(key_id)
        return self


@dataclass(frozen=True)
class AssertionLimits:
    """`ahead_max_s`: how far an assertion's end may be ahead of us. `skew_max_s`: how far the clock
    of who made it may be.
    """

    bytes_max: int
    ahead_max_s: int
    skew_max_s: int


@dataclass(frozen=True)
class Asserted:
    """Who proved to be who. `jti` is what makes the assertion good for one use."""

    account: Account
    key_id: str
    jti: str
    expires_at_ms: int

    @property
    def actor(self) -> Actor:
        return self.account.actor(self.key_id)


@dataclass(frozen=True)
class _Claimed:
    """What an assertion says, none of it verified."""

    token: str
    algorithm: Algorithm
    key_id: str
    subject: Subject


class Assertions:
    """Checks assertions for one audience."""

    def __init__(self, accounts: Accounts, audience: str, limits: AssertionLimits) -> None:
        self._accounts = accounts
        self._audience = audience
        self._limits = limits

    def verified(self, assertion: str, now_ms: int) -> Asserted:
        """Raises Denied. Whether it was used before is for the caller to look up."""
        claimed = _claimed(assertion, self._limits.bytes_max)
        account = self._accounts.claimed(claimed.subject, claimed.key_id, now_ms)
        claims = _signed_claims(claimed, account)
        assert account is not None
        try:
            jti, expires_at_ms = self._checked(claims, now_ms)
        except Denied as denied:
            raise denied.of(account, claimed.key_id) from None
        problem = standing(account, claimed.key_id, now_ms)
        if problem is not None:
            raise Denied(403, problem.code, problem.message).of(account, claimed.key_id)
        return Asserted(account, claimed.key_id, jti, expires_at_ms)

    def _checked(self, claims: Mapping[str, Any], now_ms: int) -> tuple[str, int]:
        """The jti, and when the assertion ends. Its issuer and subject are known to be right."""
        if claims.get("aud") not in (self._audience, [self._audience]):
            _invalid(f"aud: expected {self._audience}, and nobody else")
        skew_ms, ahead_ms = self._limits.skew_max_s * 1000, self._limits.ahead_max_s * 1000
        ends_ms = _time_ms(claims, "exp")
        if ends_ms is None:
            _invalid("exp: missing, or not seconds since 1970")
        if ends_ms <= now_ms:
            raise Denied(401, "assertion_expired", "the assertion has ended: make a new one")
        if ends_ms > now_ms + ahead_ms:
            _invalid(f"exp: more than {self._limits.ahead_max_s} s ahead")
        for name in ("iat", "nbf"):
            at_ms = _time_ms(claims, name)
            if at_ms is None and name in claims:
                _invalid(f"{name}: not seconds since 1970")
            if at_ms is not None and at_ms > now_ms + skew_ms:
                _invalid(f"{name}: more than {self._limits.skew_max_s} s ahead: check the clocks")
        issued_ms = _time_ms(claims, "iat")
        if issued_ms is not None and issued_ms < now_ms - ahead_ms - skew_ms:
            _invalid("iat: too long ago")
        jti = claims.get("jti")
        if not isinstance(jti, str) or not 0 < len(jti) <= JTI_LENGTH_MAX:
            _invalid(f"jti: expected a text of up to {JTI_LENGTH_MAX} characters, new each time")
        return jti, ends_ms


def _invalid(message: str) -> NoReturn:
    raise Denied(400, "assertion_invalid", message)


# --- what it claims ------------------------------------------------------------------------------


def _claimed(assertion: str, bytes_max: int) -> _Claimed:
    if len(assertion) > bytes_max:
        _invalid(f"the assertion is larger than {bytes_max} bytes")
    try:
        header, payload = parts_of(assertion)
    except ValueError:
        _invalid("not a signed JWT in compact form")
    extra = sorted(header.keys() - _HEADER_FIELDS)
    if extra:
        _invalid(f"header: {extra[0][:40]!r} is not taken, only alg, kid and typ are")
    algorithm, key_id = header.get("alg"), header.get("kid")
    if algorithm not in _ALGORITHMS:
        _invalid(f"alg: expected one of {', '.join(_ALGORITHMS)}")
    if str(header.get("typ", "JWT")).upper() != "JWT":
        _invalid("typ: expected JWT")
    if not isinstance(key_id, str) or not 0 < len(key_id) <= KEY_ID_LENGTH_MAX:
        _invalid("kid: expected the id of the key in the account's manifest")
    subject = payload.get("sub")
    parsed = Subject.parse(subject) if isinstance(subject, str) else None
    if parsed is None or payload.get("iss") != subject:
        _invalid(
            "iss and sub: expected both to be tenant/project/name, identity:NAME or "
            "instance:tenant/project/name"
        )
    return _Claimed(assertion, cast(Algorithm, algorithm), key_id, parsed)


def _time_ms(claims: Mapping[str, Any], name: str) -> int | None:
    value = claims.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return int(value * 1000) if math.isfinite(value) and 0 <= value < 2**40 else None


# --- who signed it -------------------------------------------------------------------------------


def _signed_claims(claimed: _Claimed, account: Account | None) -> Mapping[str, Any]:
    """The payload; Denied unless a key of the account signed it, with its own algorithm."""
    key = account.keys.get(claimed.key_id) if account is not None else None
    public = loaded(key) if key is not None and key.algorithm == claimed.algorithm else None
    claims = verified_payload(
        claimed.token, public or nobodys_key(claimed.algorithm), claimed.algorithm
    )
    if public is not None and claims is not None:
        return claims
    why = "bad_signature"
    if account is None:
        why = "account_unknown"
    elif key is None:
        why = "key_unknown"
    elif public is None:
        why = "key_does_not_fit"
    message = "no such account with such a key signed this"
    raise Denied(401, "assertion_refused", message, why, str(claimed.subject), claimed.key_id)
