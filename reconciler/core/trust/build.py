"""TrustPolicies as the state repo has them → TrustRules.

Rules: all policies add up, and what one of them says against a key counts for all. A key under two
ids is one key; an id with two keys is believed for neither.
"""

from __future__ import annotations

import base64
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace

from reconciler.core.kinds.keys import VerifierKey
from reconciler.core.kinds.trust_policy import ChannelRule, TrustPolicySpec
from reconciler.core.times import parse_time_ms
from reconciler.core.trust.rules import ChannelNeeds, TrustedKey, TrustRules

_ED25519_SPKI = bytes.fromhex("302a300506032b6570032100")
_AMBIGUOUS = "two different keys have this id"
_TIMES_UNREADABLE = "its times can't be read"


def rules_of(policies: Iterable[tuple[str, TrustPolicySpec]]) -> TrustRules:
    """`policies`: name and spec of each, in any order."""
    named = sorted(policies, key=lambda policy: policy[0])
    return TrustRules(
        _keys([spec for _, spec in named]),
        _builders([spec for _, spec in named]),
        _channels(named),
    )


def _keys(specs: Sequence[TrustPolicySpec]) -> dict[str, TrustedKey]:
    found: dict[str, TrustedKey] = {}
    for key in (_trusted(key) for spec in specs for key in spec.signing_keys):
        known = found.get(key.id, key)
        found[key.id] = key if known == key else replace(known, revoked=_AMBIGUOUS)
    revoked = {key.fingerprint: key.revoked for key in found.values() if key.revoked}
    return {
        id: replace(key, revoked=revoked.get(key.fingerprint, ""))
        for id, key in sorted(found.items())
    }


def _trusted(key: VerifierKey) -> TrustedKey:
    revoked = key.revoked.reason if key.revoked is not None else ""
    try:
        valid_from_ms = _time_ms(key.valid_from)
        valid_until_ms = _time_ms(key.valid_until)
    except ValueError:
        valid_from_ms = valid_until_ms = None
        revoked = revoked or _TIMES_UNREADABLE
    return TrustedKey(
        key.id, key.scheme, pem(key.public_key), valid_from_ms, valid_until_ms, revoked
    )


def _time_ms(text: str | None) -> int | None:
    return None if text is None else parse_time_ms(text)


def pem(text: str) -> str:
    """A key of a policy as PEM, one text a key: ed25519 keys may be there as hex."""
    if text.startswith("-----"):
        return text.rstrip("\n") + "\n"
    body = base64.b64encode(_ED25519_SPKI + bytes.fromhex(text)).decode()
    return f"-----BEGIN PUBLIC KEY-----\n{body}\n-----END PUBLIC KEY-----\n"


def _builders(specs: Sequence[TrustPolicySpec]) -> dict[str, frozenset[str]]:
    listed: defaultdict[str, list[tuple[str, ...]]] = defaultdict(list)
    for spec in specs:
        for builder in spec.builders:
            listed[builder.id].append(builder.source_prefixes)
    # No prefixes is any source, and policies add up.
    return {
        id: frozenset().union(*prefixes) if all(prefixes) else frozenset()
        for id, prefixes in sorted(listed.items())
    }


def _channels(
    named: Sequence[tuple[str, TrustPolicySpec]],
) -> dict[str, tuple[ChannelNeeds, ...]]:
    found: defaultdict[str, list[ChannelNeeds]] = defaultdict(list)
    for policy, spec in named:
        for channel, rule in spec.channels.items():
            found[channel].append(_needs(policy, rule))
    return {channel: tuple(needs) for channel, needs in sorted(found.items())}


def _needs(policy: str, rule: ChannelRule) -> ChannelNeeds:
    return ChannelNeeds(
        policy=policy,
        signature_required=rule.signature_required,
        scheme=rule.signature_scheme,
        accepted_keys=frozenset(rule.accepted_keys),
        provenance_required=rule.provenance_required,
        predicate_types=frozenset(rule.predicate_types),
        builders=frozenset(rule.builders),
        signing_key=rule.signing_key or "",
    )
