"""What the TrustPolicies of a state repo come to: keys, builders, and what each channel asks for.

Rules: all policies add up. A channel that two policies describe is asked for both. Nothing of an
artifact, its manifest or its signatures ever gets in here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from reconciler.core.kinds.keys import KeyScheme
from reconciler.core.names import Digest, content_hash


@dataclass(frozen=True)
class TrustedKey:
    """A verifier key. `public_key` is PEM (SubjectPublicKeyInfo), times are None without a bound.

    `revoked` is why; empty for one that is not.
    """

    id: str
    scheme: KeyScheme
    public_key: str
    valid_from_ms: int | None = None
    valid_until_ms: int | None = None
    revoked: str = ""

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the key itself, whatever its id, and however its PEM is wrapped."""
        return str(Digest.of("".join(self.public_key.split()).encode()))


@dataclass(frozen=True)
class ChannelNeeds:
    """What one policy asks of an artifact in a channel; see `kinds.trust_policy.ChannelRule`.

    Empty `accepted_keys`: every key of the scheme. Empty `builders`: every builder there is.
    """

    policy: str
    signature_required: bool
    scheme: KeyScheme
    accepted_keys: frozenset[str]
    provenance_required: bool
    predicate_types: frozenset[str]
    builders: frozenset[str]
    signing_key: str = ""


@dataclass(frozen=True)
class TrustRules:
    """`keys` by id, `builders` by id with the prefixes that they may build from (none: any),
    `channels` by name. A channel that is not in here can't be satisfied.
    """

    keys: Mapping[str, TrustedKey] = field(default_factory=dict)
    builders: Mapping[str, frozenset[str]] = field(default_factory=dict)
    channels: Mapping[str, tuple[ChannelNeeds, ...]] = field(default_factory=dict)

    @cached_property
    def keys_hash(self) -> str:
        """Of the keys that signatures are checked with: with others the same look finds others."""
        return content_hash("keys", sorted((k.id, k.fingerprint) for k in self.keys.values()))
