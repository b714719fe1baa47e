"""What the store keeps of signatures: one suite for the fake and the real one."""

from __future__ import annotations

from dataclasses import replace

import pytest

from reconciler.artifacts.looking import keep
from reconciler.core.names import ArtifactKey, Digest
from reconciler.core.records import AuditEntry
from reconciler.core.trust.evidence import AHEAD_MS, Evidence, Proof, Rejected
from reconciler.ports import Store

HELLO = ArtifactKey("gpuaas/apps/catalog/hello", Digest.of(b"hello"))
OTHER = ArtifactKey("gpuaas/apps/catalog/hello", Digest.of(b"other"))
NEVER = ArtifactKey("gpuaas/apps/catalog/never", Digest.of(b"hello"))
PROOF = Proof(
    kind="provenance",
    form="bundle",
    key_id="ci-2026",
    scheme="ecdsa-p256",
    document=str(Digest.of(b"bundle")),
    first_seen_ms=5,
    predicate_type="https://slsa.dev/provenance/v1",
    builder="https://builds.example/runner",
    sources=("https://git.example/acme/hello", "é\u2028"),
    key_hash=str(Digest.of(b"key")),
)
SEEN = Evidence(
    HELLO, "k" * 64, 10, (PROOF,), (Rejected("sha256:0", "not_over_it", "of another"),), ("beta",)
)


def test_what_was_never_looked_at_is_left_out(store: Store) -> None:
    store.save_evidence([SEEN])
    assert store.evidence([HELLO, NEVER]) == {HELLO: SEEN}
    assert store.evidence([]) == {}
    assert store.evidence([NEVER]) == {}


def test_a_later_look_takes_the_place_of_an_earlier_one_and_never_the_other_way(
    store: Store,
) -> None:
    later = replace(SEEN, checked_at_ms=20, proofs=())
    store.save_evidence([SEEN, replace(SEEN, artifact=OTHER)])
    store.save_evidence([later])
    store.save_evidence([SEEN])
    assert store.evidence([HELLO, OTHER]) == {HELLO: later, OTHER: replace(SEEN, artifact=OTHER)}


def test_of_two_looks_at_one_time_the_last_counts(store: Store) -> None:
    store.save_evidence([SEEN])
    again = replace(SEEN, proofs=())
    store.save_evidence([again])
    assert store.evidence([HELLO]) == {HELLO: again}


@pytest.mark.parametrize(("ahead_ms", "goes"), [(AHEAD_MS, False), (AHEAD_MS + 1, True)])
def test_what_a_clock_that_was_ahead_wrote_gives_way(
    store: Store, ahead_ms: int, goes: bool
) -> None:
    ahead = replace(SEEN, checked_at_ms=SEEN.checked_at_ms + ahead_ms, proofs=())
    store.save_evidence([ahead])
    store.save_evidence([SEEN])
    assert store.evidence([HELLO]) == {HELLO: SEEN if goes else ahead}


def test_whatever_somebody_wrote_can_be_kept(store: Store) -> None:
    odd = "\ud800\x1b[2J\x00"
    proof = replace(PROOF, builder=odd, sources=(odd,), predicate_type=odd)
    found = Evidence(HELLO, "k", 10, (proof,), (Rejected(odd, "attached_elsewhere", odd),))
    assert keep(store, [found])
    assert store.evidence([HELLO]) == {HELLO: found.printable}
    assert found.printable.proofs[0].builder == r"\ud800\x1b[2J\x00"


def test_what_was_kept_without_the_key_is_read(store: Store) -> None:
    old = replace(SEEN, proofs=(replace(PROOF, key_hash=""),))
    store.save_evidence([old])
    assert store.evidence([HELLO]) == {HELLO: old}


def test_more_than_one_statement_takes(store: Store) -> None:
    many = [replace(SEEN, artifact=_numbered(number)) for number in range(1_234)]
    store.save_evidence(many)
    wanted = [one.artifact for one in reversed(many)]
    assert store.evidence(wanted) == {one.artifact: one for one in many}


def _numbered(number: int) -> ArtifactKey:
    return ArtifactKey("gpuaas/apps/catalog/hello", Digest.of(str(number).encode()))


def test_what_is_to_be_told_is_told_with_it(store: Store) -> None:
    entry = AuditEntry(10, "system", "system", "artifacts.evidence.changed", str(HELLO))
    store.save_evidence([SEEN], [entry])
    assert [row.entry for row in store.audit()] == [entry]
    store.save_evidence([])
    assert len(store.audit()) == 1
