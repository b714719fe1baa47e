"""One look at the signatures of an artifact: collect, check, remember.

Rules: what a registry serves is material, never an instruction. A document that can't be used is
Rejected with why; only an artifact whose documents could all be asked for gives Evidence.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from reconciler.artifact_ports import Registry, RegistryEndpoint
from reconciler.artifacts.signatures import check_document, verifiers
from reconciler.core.names import ArtifactKey
from reconciler.core.trust.evidence import Evidence, Proof, Rejected
from reconciler.core.trust.judge import was_valid
from reconciler.core.trust.rules import TrustRules

REJECTED_MAX = 32
"""So many of them are kept: anybody who may push can attach any number."""


def look(
    registry: Registry,
    endpoint: RegistryEndpoint,
    key: ArtifactKey,
    rules: TrustRules,
    known: Evidence | None,
    now_ms: int,
) -> Evidence:
    """All that is attached to `key` now, checked with the keys of `rules`.

    What held in `known` keeps its first_seen_ms. Raises Transient and Refused as
    `Registry.attached` does: what could not be asked for is unknown, and no Evidence.
    """
    found = registry.attached(endpoint, key)
    keys = verifiers(rules)
    proofs: set[Proof] = set()
    rejected = {Rejected(one.digest, one.code, one.message) for one in found.unusable}
    for document in found.documents:
        checked = check_document(document, key.digest, keys)
        if isinstance(checked, Rejected):
            rejected.add(checked)
        else:
            proofs.update(checked)
    kept = tuple(sorted(rejected, key=_rejected_order)[:REJECTED_MAX])
    seen = Evidence(key, rules.keys_hash, now_ms, tuple(proofs), kept).printable
    before = _first_seen(known)
    dated = (_dated(proof, before, rules, now_ms) for proof in seen.proofs)
    return replace(seen, proofs=tuple(sorted(dated, key=_order)))


def _claim(proof: Proof) -> tuple[object, ...]:
    """What a proof says, however it is kept: a registry's manifest changes when another signs."""
    return (
        proof.kind,
        proof.key_id,
        proof.key_hash,
        proof.scheme,
        proof.predicate_type,
        proof.builder,
        proof.sources,
    )


def _first_seen(known: Evidence | None) -> Mapping[tuple[object, ...], int]:
    """By claim, when it first held."""
    if known is None:
        return {}
    newest_first = sorted(known.proofs, key=lambda proof: -proof.first_seen_ms)
    return {_claim(proof): proof.first_seen_ms for proof in newest_first}


def _dated(
    proof: Proof, before: Mapping[tuple[object, ...], int], rules: TrustRules, now_ms: int
) -> Proof:
    """A time at which the key was not valid proves nothing: it may have become so since. One that
    is still to come was by a clock that was wrong.
    """
    at_ms = min(before.get(_claim(proof), now_ms), now_ms)
    kept = at_ms if was_valid(rules.keys[proof.key_id], at_ms) else now_ms
    return replace(proof, first_seen_ms=kept)


def _order(proof: Proof) -> tuple[str, ...]:
    return (proof.kind, proof.key_id, proof.form, proof.document, proof.predicate_type)


def _rejected_order(entry: Rejected) -> tuple[str, ...]:
    return (entry.code, entry.document, entry.message)
