"""Whether what is known of an artifact's signatures suffices for a channel.

Rules:
- What counts is a Proof by a key of the policies, and nothing that an artifact says of itself. What
  was rejected never makes a verdict better or worse: it only helps to say what is wrong.
- A key counts for what first held here while it was valid, and for nothing once it is revoked.
- Every policy that describes the channel has to be satisfied; the first that is not is told.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence

from reconciler.core.kinds.keys import KeyScheme
from reconciler.core.names import content_hash
from reconciler.core.trust.evidence import NOT_ASKED, Evidence, Proof, Verdict
from reconciler.core.trust.rules import ChannelNeeds, TrustedKey, TrustRules
from reconciler.core.trust.sources import within

NOT_TRUSTED = "signature_not_trusted"
UNSIGNED_PROVENANCE = "provenance_unsigned"

LOOK_AGAIN_MS = 30_000
"""About how long what was looked at, and is not good, is left alone: who signs without telling us
waits that long.
"""
_SHOWN_MAX = 3


def judge(rules: TrustRules, channel: str, evidence: Evidence | None, now_ms: int) -> Verdict:
    """`channel` empty: nothing is asked. No evidence is no proof: who has yet to look says that."""
    if not channel:
        return NOT_ASKED
    needs = rules.channels.get(channel)
    if not needs:
        return Verdict(
            False,
            "channel_unknown",
            f"no TrustPolicy says what the channel {channel} needs",
            "describe it under channels of a TrustPolicy",
        )
    for need in needs:
        verdict = _judge_need(rules, channel, need, evidence, now_ms)
        if not verdict.good:
            return verdict
    return Verdict(True)


def is_due(
    rules: TrustRules,
    channels: Collection[str],
    known: Evidence | None,
    now_ms: int,
    recheck_ms: int,
) -> bool:
    """Whether to look again: other keys, too old, or not good for one of `channels` yet. By what is
    bad, and stays so, no pass is kept busy.
    """
    if known is None or known.keys_hash != rules.keys_hash:
        return True
    if not known.checked_at_ms <= now_ms < known.checked_at_ms + recheck_ms:
        return True
    if all(judge(rules, channel, known, now_ms).good for channel in channels):
        return False
    return now_ms >= due_at_ms(known, LOOK_AGAIN_MS)


def due_at_ms(evidence: Evidence, after_ms: int) -> int:
    """When it is looked at again, at most `after_ms` after the last time. What was looked at
    together has its turn at different times, by its name.
    """
    share = int(content_hash("recheck", str(evidence.artifact))[:8], 16) / 0xFFFF_FFFF
    return evidence.checked_at_ms + int(after_ms * (0.75 + share / 4))


def _judge_need(
    rules: TrustRules, channel: str, need: ChannelNeeds, evidence: Evidence | None, now_ms: int
) -> Verdict:
    proofs = evidence.proofs if evidence is not None else ()
    if need.signature_required:
        signatures = [proof for proof in proofs if proof.kind == "signature"]
        verdict = _best(signatures, lambda proof: _by_key(rules, need, proof, now_ms))
        if verdict is None:
            return _no_signature(channel, evidence)
        if not verdict.good:
            return verdict
    if need.provenance_required:
        built = [proof for proof in proofs if proof.kind == "provenance"]
        verdict = _best(built, lambda proof: _by_build(rules, need, proof, now_ms))
        if verdict is None:
            return _no_provenance(channel, evidence)
        return verdict
    return Verdict(True)


def _best(proofs: Sequence[Proof], check: Callable[[Proof], tuple[int, Verdict]]) -> Verdict | None:
    """The verdict of the proof that gets furthest, None when there is none."""
    found = [
        check(proof) for proof in sorted(proofs, key=lambda proof: (proof.key_id, proof.document))
    ]
    return max(found, key=lambda one: one[0])[1] if found else None


# How far a proof got: the further, the closer to what would be good.
_UNKNOWN_KEY, _REVOKED, _EXPIRED, _PREDICATE, _BUILDER, _SOURCE, _GOOD = range(7)


def _by_key(
    rules: TrustRules, need: ChannelNeeds, proof: Proof, now_ms: int
) -> tuple[int, Verdict]:
    key = rules.keys.get(proof.key_id)
    what = "provenance" if proof.kind == "provenance" else "signature"
    code = UNSIGNED_PROVENANCE if proof.kind == "provenance" else NOT_TRUSTED
    if key is not None and proof.key_hash != key.fingerprint:
        message = f"the {what} is by another key than the one that is now called {key.id}"
        return _UNKNOWN_KEY, Verdict(False, code, message, "sign it with a key that is accepted")
    if key is None or not _may_sign(need, key, proof.scheme):
        wanted = ", ".join(sorted(need.accepted_keys)) or f"a key of scheme {need.scheme}"
        message = f"the {what} is by {proof.key_id}; {need.policy} takes {wanted}"
        return _UNKNOWN_KEY, Verdict(False, code, message, "sign it with a key that is accepted")
    if key.revoked:
        message = f"its {what} is by {key.id}, which is revoked: {key.revoked}"
        return _REVOKED, Verdict(False, "key_revoked", message, "build it anew and sign that")
    # A first look still to come was by a clock that was wrong: then this is the first.
    if not was_valid(key, min(proof.first_seen_ms, now_ms)):
        message = f"its {what} is by {key.id}, which was not valid when it was first seen here"
        return _EXPIRED, Verdict(False, "key_expired", message, "sign it with a key that is valid")
    return _GOOD, Verdict(True)


def _may_sign(need: ChannelNeeds, key: TrustedKey, scheme: KeyScheme) -> bool:
    accepted = not need.accepted_keys or key.id in need.accepted_keys
    return accepted and key.scheme == scheme == need.scheme


def was_valid(key: TrustedKey, at_ms: int) -> bool:
    from_ms, until_ms = key.valid_from_ms, key.valid_until_ms
    return (from_ms is None or from_ms <= at_ms) and (until_ms is None or at_ms < until_ms)


def _by_build(
    rules: TrustRules, need: ChannelNeeds, proof: Proof, now_ms: int
) -> tuple[int, Verdict]:
    progress, verdict = _by_key(rules, need, proof, now_ms)
    if not verdict.good:
        return progress, verdict
    if proof.predicate_type not in need.predicate_types:
        message = (
            f"its provenance is of type {proof.predicate_type}; {need.policy} does not take it"
        )
        hint = "name that type under predicate_types of the channel, or build with a newer tool"
        return _PREDICATE, Verdict(False, "predicate_not_accepted", message, hint)
    prefixes = rules.builders.get(proof.builder)
    if prefixes is None or (need.builders and proof.builder not in need.builders):
        message = (
            f"it was built by {proof.builder or 'nobody named'}; {need.policy} does not trust that"
        )
        hint = "build it with a builder of the policy"
        return _BUILDER, Verdict(False, "builder_not_trusted", message, hint)
    if not within(proof.sources, prefixes):
        source = _some(proof.sources) or "nothing named"
        message = f"it was built from {source}, outside of what {proof.builder} may build from"
        hint = "see source_prefixes of that builder"
        return _SOURCE, Verdict(False, "source_not_trusted", message, hint)
    return _GOOD, Verdict(True)


def _no_signature(channel: str, evidence: Evidence | None) -> Verdict:
    why = _rejected(evidence, NOT_TRUSTED)
    if why:
        hint = "sign it with a key of the TrustPolicies"
        return Verdict(False, NOT_TRUSTED, f"no key of the policies signed it: {why}", hint)
    message = f"{channel} needs a signature, and there is none"
    return Verdict(False, "unsigned", message, "sign it: gpuaas sign REPOSITORY@DIGEST")


def _no_provenance(channel: str, evidence: Evidence | None) -> Verdict:
    attested = [p for p in evidence.proofs if p.kind == "attestation"] if evidence else []
    if evidence is not None and _rejected(evidence, UNSIGNED_PROVENANCE):
        why = _rejected(evidence, UNSIGNED_PROVENANCE)
        hint = "attest it with a key of the policies; what is inside an index is anybody's word"
        return Verdict(
            False, UNSIGNED_PROVENANCE, f"nobody trusted signed its provenance: {why}", hint
        )
    hint = "attest it: gpuaas sign --provenance FILE, or cosign attest"
    if attested:
        types = _some(sorted({proof.predicate_type for proof in attested}))
        message = f"{channel} needs provenance; attested is {types}"
        return Verdict(False, "no_provenance", message, hint)
    return Verdict(False, "no_provenance", f"{channel} needs provenance, and there is none", hint)


def _rejected(evidence: Evidence | None, code: str) -> str:
    found = [entry.message for entry in evidence.rejected if entry.code == code] if evidence else []
    return _some(found)


def _some(texts: Iterable[str]) -> str:
    listed = list(texts)
    more = len(listed) - _SHOWN_MAX
    return ", ".join(listed[:_SHOWN_MAX]) + (f" and {more} more" if more > 0 else "")
