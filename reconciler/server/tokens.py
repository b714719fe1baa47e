"""Bearer tokens: issued for who proved who he is, and checked whenever one is shown.

Rules:
- A token is a JWT (RFC 9068) that the secret store signed; the key never leaves it.
- It says who its holder is, and which permissions he asked for: an upper bound, no right. What he
  may is asked of what is accepted when it is shown, and so is whether he and his key still count.
- A token is in an answer, in a caller's hands and in a local variable; in no log, error or store.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
import uuid
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NoReturn

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from reconciler.core.authority.accounts import Account, Subject, audience, standing
from reconciler.core.authority.facts import Actor, ActorType
from reconciler.core.authority.grants import Grant, Scope
from reconciler.custody.signing import newest_verifier
from reconciler.ports import Clock, SecretStore, Store
from reconciler.server.accounts import Accounts
from reconciler.server.errors import ApiError
from reconciler.server.jws import parts_of, verified_payload
from reconciler.settings import Settings

TOKEN_KEY = "tokens"  # noqa: S105 - the name of a key
_TYPE = "at+jwt"
_HEADER_FIELDS = frozenset(("alg", "kid", "typ"))
_TOKEN_BYTES_MAX = 8 * 1024
_ASKED_AGAIN_MS = 1_000
_GOOD_MAX = 10_000


@dataclass(frozen=True)
class TokenLimits:
    """What an account, an address and the audit trail have to bear: so many at once (`burst`), and
    one more every so many seconds. Each process counts for itself.
    """

    account_burst: int = 10
    account_refill_s: float = 6.0
    """Tokens for one account."""
    address_burst: int = 30
    address_refill_s: float = 2.0
    """Refusals by one address."""
    told_burst: int = 20
    told_refill_s: float = 30.0
    """Refusals that the audit trail tells of: of one account that proved who it is, or of all that
    did not.
    """
    names_max: int = 10_000
    """Accounts and addresses that are counted for at once."""
    body_bytes_max: int = 16 * 1024
    assertion_bytes_max: int = 8 * 1024
    assertion_ahead_max_s: int = 300
    """How far the end of an assertion may be ahead."""
    clock_skew_max_s: int = 60
    """How far the clock of who made an assertion, or of another server, may be ahead of ours."""
    keys_kept_s: float = 60.0
    """How long a key that tokens are signed with counts as good without being asked for."""


@dataclass(frozen=True)
class Issued:
    """`scope`: the permissions that the token is good for, as far as its holder has them."""

    access_token: str = field(repr=False)
    token_id: str
    expires_in_s: int
    scope: tuple[str, ...]


@dataclass(frozen=True)
class Bearer:
    """Who a good token stands for, with the rights that he has now and asked for."""

    actor: Actor
    expires_at_ms: int
    grants: tuple[Grant, ...]

    @property
    def type(self) -> ActorType:
        return self.actor.type

    def holds(self, permission: str, scope: Scope) -> bool:
        """At this scope or a wider one. Quick: lists are filtered by it, row by row."""
        scopes = self._scopes.get(permission, ())
        return any(scope[:length] in scopes for length in range(len(scope) + 1))

    @cached_property
    def _scopes(self) -> Mapping[str, set[Scope]]:
        found: dict[str, set[Scope]] = {}
        for grant in self.grants:
            found.setdefault(grant.permission, set()).add(grant.scope)
        return found


class Tokens:
    """Safe to use from several threads; one instance a process, since it remembers."""

    def __init__(
        self,
        store: Store,
        secrets: SecretStore,
        clock: Clock,
        settings: Settings,
        limits: TokenLimits | None = None,
    ) -> None:
        self.limits = limits or TokenLimits()
        self.audience = audience(settings.environment)
        self.accounts = Accounts(store, secrets)
        self._secrets = secrets
        self._clock = clock
        self._verifiers = _Verifiers(secrets, self.limits)
        self._good = _Good()

    def issue(self, account: Account, key_id: str, asked: Iterable[str] | None) -> Issued:
        """A token for what the account holds of `asked`, or for all that it holds."""
        now_ms = self._clock.now_ms()
        held = {grant.permission for grant in self.accounts.grants(account, now_ms)}
        scope = tuple(sorted(held if asked is None else held.intersection(asked)))
        token_id, issued_s = uuid.uuid4().hex, now_ms // 1000
        claims = {
            "iss": self.audience,
            "aud": self.audience,
            "sub": str(account.subject),
            "kind": account.subject.type,
            "kid": key_id,
            "jti": token_id,
            "iat": issued_s,
            "nbf": issued_s,
            "exp": issued_s + account.token_ttl_s,
            "scope": " ".join(scope),
        }
        if account.subject.home:
            claims["project"] = "/".join(account.subject.home)
        return Issued(self._signed(claims), token_id, account.token_ttl_s, scope)

    def _signed(self, claims: Mapping[str, Any]) -> str:
        """A compact JWS by the key that its header names, whatever becomes the newest meanwhile."""
        key = newest_verifier(self._secrets, TOKEN_KEY)
        header = {"alg": "EdDSA", "kid": key.key_id, "typ": _TYPE}
        message = f"{_segment(header)}.{_segment(claims)}"
        signed = self._secrets.sign(TOKEN_KEY, message.encode(), key.version)
        return f"{message}.{_base64url(signed.signature)}"

    def check(self, header: str, now_ms: int) -> Bearer:
        """Who an Authorization header stands for. ApiError 401 when that is nobody (any more)."""
        claims = self._claims(_token_in(header), now_ms)
        subject = Subject.parse(claims["sub"])
        found = self.accounts.holder(subject, now_ms) if subject is not None else None
        if found is None:
            raise _unauthorized("account_gone", f"{claims['sub']} is not there any more")
        account, grants = found
        problem = standing(account, claims["kid"], now_ms)
        if problem is not None:
            raise _unauthorized(problem.code, problem.message)
        asked = frozenset(claims["scope"].split())
        kept = tuple(grant for grant in grants if grant.permission in asked)
        return Bearer(account.actor(claims["kid"]), claims["exp"] * 1000, kept)

    def _claims(self, token: str, now_ms: int) -> Mapping[str, Any]:
        """Those of a token that we issued for here and now."""
        try:
            header, _ = parts_of(token)
        except ValueError:
            _malformed()
        key_id = header.get("kid")
        if (
            header.keys() != _HEADER_FIELDS
            or (header["alg"], header["typ"]) != ("EdDSA", _TYPE)
            or not isinstance(key_id, str)
        ):
            _malformed()
        public = self._verifiers.find(key_id, now_ms)
        claims = self._good.payload(token, public) if public is not None else None
        # What is not ours may say anything; what is ours has every claim, with its type.
        if claims is None or (claims["iss"], claims["aud"]) != (self.audience, self.audience):
            raise _unauthorized("token_invalid", "this control plane did not issue this token")
        if claims["exp"] * 1000 <= now_ms:
            raise _unauthorized("token_expired", "the token has ended: get a new one")
        if claims["nbf"] * 1000 > now_ms + self.limits.clock_skew_max_s * 1000:
            raise _unauthorized("token_invalid", "the token is not valid yet: check the clocks")
        return claims


class _Verifiers:
    """The public keys that tokens are signed with, by id. Asked for again now and then."""

    def __init__(self, secrets: SecretStore, limits: TokenLimits) -> None:
        self._secrets = secrets
        self._kept_ms = int(limits.keys_kept_s * 1000)
        self._lock = threading.Lock()
        self._keys: Mapping[str, Ed25519PublicKey] = {}
        self._asked_ms: int | None = None

    def find(self, key_id: str, now_ms: int) -> Ed25519PublicKey | None:
        with self._lock:
            known = self._keys.get(key_id)
            # A key that nobody has is asked for once a second, however many tokens name it.
            kept_ms = _ASKED_AGAIN_MS if known is None else self._kept_ms
            if self._asked_ms is None or not 0 <= now_ms - self._asked_ms < kept_ms:
                self._keys = {
                    key.key_id: Ed25519PublicKey.from_public_bytes(bytes.fromhex(key.public_key))
                    for key in self._secrets.verifier_keys(TOKEN_KEY)
                }
                self._asked_ms = now_ms
            return self._keys.get(key_id)


class _Good:
    """Knows by their hash the tokens whose signature held: that does not change. Who is refused
    takes no place in here.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._payloads: OrderedDict[bytes, Mapping[str, Any]] = OrderedDict()

    def payload(self, token: str, public: Ed25519PublicKey) -> Mapping[str, Any] | None:
        """None when the signature does not hold."""
        digest = hashlib.sha256(public.public_bytes_raw() + token.encode()).digest()
        with self._lock:
            known = self._payloads.get(digest)
            if known is not None:
                self._payloads.move_to_end(digest)
                return known
        payload = verified_payload(token, public, "EdDSA")
        if payload is not None:
            with self._lock:
                self._payloads[digest] = payload
                if len(self._payloads) > _GOOD_MAX:
                    self._payloads.popitem(last=False)
        return payload


def _token_in(header: str) -> str:
    scheme, _, token = header.strip().partition(" ")
    if scheme.lower() != "bearer":
        message = "send the header Authorization: Bearer TOKEN"
        raise ApiError(401, "token_missing", message, {"WWW-Authenticate": "Bearer"})
    if len(token) > _TOKEN_BYTES_MAX or not token.isascii():
        _malformed()
    return token.strip()


def _malformed() -> NoReturn:
    raise _unauthorized("token_invalid", "this is no token of this control plane") from None


def _unauthorized(code: str, message: str) -> ApiError:
    return ApiError(401, code, message, {"WWW-Authenticate": 'Bearer error="invalid_token"'})


def _segment(document: Mapping[str, Any]) -> str:
    return _base64url(json.dumps(document, separators=(",", ":"), sort_keys=True).encode())


def _base64url(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()
