"""Who may have a bearer token, by the documents that are accepted now.

Rules:
- A token says who somebody is, never what he may: that, and whether he still is somebody, is asked
  anew whenever it is shown.
- What can't be made out (a day that is none, a key id that stands twice) proves nothing.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from reconciler.core.authority.facts import Actor
from reconciler.core.authority.grants import FOREVER_MS, Scope, Trust, end_ms
from reconciler.core.desired import StateObject
from reconciler.core.kinds.identity import Identity
from reconciler.core.kinds.keys import SignerKey, VerifierKey
from reconciler.core.kinds.role_binding import RoleBinding
from reconciler.core.kinds.service_account import ServiceAccount
from reconciler.core.names import NAME, ObjectRef
from reconciler.core.times import parse_time_ms

AccountType = Literal["service_account", "user", "instance"]
Algorithm = Literal["EdDSA", "ES256", "RS256"]

TOKEN_PATH = "/v1/auth/token"  # noqa: S105 - where one is asked for
TOKEN_TTL_S = 900
"""How long a token of a person or an instance lasts."""
INSTANCE_PERMISSIONS = frozenset(("apps.instance.read",))
"""What an instance may, in its own project and nowhere else."""

_PREFIXES: Mapping[str, AccountType] = {"identity": "user", "instance": "instance"}
_SHAPES: Mapping[AccountType, re.Pattern[str]] = {
    "service_account": re.compile(rf"{NAME}/{NAME}/{NAME}"),
    "user": re.compile(NAME),
    "instance": re.compile(rf"{NAME}/{NAME}/{NAME}(?:\.{NAME})?"),
}
_ALGORITHMS: Mapping[str, Algorithm] = {
    "ed25519": "EdDSA",
    "ssh-ed25519": "EdDSA",
    "ecdsa-p256": "ES256",
    "ecdsa-sha2-nistp256": "ES256",
    "ssh-rsa": "RS256",
}


def audience(environment: str) -> str:
    """Whom assertions and tokens are for: one control plane, by the Environment it works on."""
    return f"gpuaas/{environment}" if environment else "gpuaas"


@dataclass(frozen=True)
class Subject:
    """Who a token is for: `tenant/project/name`, `identity:ada` or `instance:tenant/project/name`.

    `name` is without the prefix.
    """

    type: AccountType
    name: str

    @classmethod
    def parse(cls, text: str) -> Subject | None:
        prefix, colon, rest = text.partition(":")
        type_ = _PREFIXES.get(prefix) if colon else "service_account"
        name = rest if colon else text
        if type_ is None or not _SHAPES[type_].fullmatch(name):
            return None
        return cls(type_, name)

    @property
    def home(self) -> Scope:
        """(tenant, project); nothing for a person."""
        return () if self.type == "user" else tuple(self.name.split("/")[:2])

    def __str__(self) -> str:
        prefix = next((word for word, type_ in _PREFIXES.items() if type_ == self.type), "")
        return f"{prefix}:{self.name}" if prefix else self.name


@dataclass(frozen=True)
class AccountKey:
    """A key that somebody proves himself with; `public_key` as its manifest writes it."""

    id: str
    algorithm: Algorithm
    public_key: str
    valid_from_ms: int = 0
    valid_until_ms: int = FOREVER_MS
    revoked: bool = False


@dataclass(frozen=True)
class Account:
    """Somebody who may have a token."""

    subject: Subject
    keys: Mapping[str, AccountKey] = field(default_factory=dict)
    disabled: bool = False
    token_ttl_s: int = TOKEN_TTL_S

    def actor(self, key_id: str = "") -> Actor:
        return Actor(self.subject.type, self.subject.name, key_id)


def account_of(subject: Subject, trust: Trust) -> Account | None:
    """A person or a service account by its document; None when nobody of that name is accepted.

    Instances have no document: `Account` is made of their machine identity.
    """
    if subject.type == "service_account":
        found = trust.get(ObjectRef("ServiceAccount", tuple(subject.name.split("/"))))
        return _service_account(subject, found) if found is not None else None
    found = trust.get(ObjectRef("Identity", (subject.name,)))
    return _person(subject, found) if found is not None and subject.type == "user" else None


def _service_account(subject: Subject, found: StateObject) -> Account | None:
    if not isinstance(found.manifest, ServiceAccount):
        return None
    spec = found.manifest.spec
    keys = _by_id(_account_key(key, key.scheme) for key in spec.public_keys)
    return Account(subject, keys, spec.disabled, spec.token_ttl_s)


def _person(subject: Subject, found: StateObject) -> Account | None:
    if not isinstance(found.manifest, Identity) or found.manifest.spec.type != "user":
        return None
    spec = found.manifest.spec
    ssh = [key for key in spec.keys if key.type == "ssh"]
    return Account(
        subject, _by_id(_account_key(key, key.public_key.split()[0]) for key in ssh), spec.disabled
    )


def _account_key(key: SignerKey | VerifierKey, scheme: str) -> AccountKey | None:
    """None for a key of a kind that signs no assertion, as one on a hardware token."""
    algorithm = _ALGORITHMS.get(scheme)
    if algorithm is None:
        return None
    return AccountKey(
        key.id,
        algorithm,
        key.public_key,
        _begin_ms(key.valid_from),
        end_ms(key.valid_until),
        key.revoked is not None,
    )


def _by_id(keys: Iterable[AccountKey | None]) -> Mapping[str, AccountKey]:
    there = [key for key in keys if key is not None]
    times = Counter(key.id for key in there)
    return {key.id: key for key in there if times[key.id] == 1}


def _begin_ms(text: str | None) -> int:
    try:
        return parse_time_ms(text) if text is not None else 0
    except (ValueError, OverflowError):
        return FOREVER_MS


@dataclass(frozen=True)
class Standing:
    """Why an account may not act with a key now; `code` is stable."""

    code: str
    message: str


def standing(account: Account, key_id: str, at_ms: int) -> Standing | None:
    """None when it may."""
    key = account.keys.get(key_id)
    who = f"{account.subject} "
    if account.disabled:
        return Standing("account_disabled", f"{who}is disabled")
    if key is None:
        return Standing("key_unknown", f"{who}has this key no more")
    if key.revoked:
        return Standing("key_revoked", f"key {key_id} of {who}is revoked")
    if at_ms < key.valid_from_ms:
        return Standing("key_not_yet_valid", f"key {key_id} of {who}is not valid yet")
    if at_ms >= key.valid_until_ms:
        return Standing("key_expired", f"key {key_id} of {who}is not valid any more")
    return None


def next_change_ms(trust: Trust, at_ms: int) -> int:
    """Until when nobody's rights change by the mere passing of time."""
    ends = (
        end_ms(found.manifest.spec.until)
        for found in trust.values()
        if isinstance(found.manifest, RoleBinding)
    )
    return min((end for end in ends if end > at_ms), default=FOREVER_MS)
