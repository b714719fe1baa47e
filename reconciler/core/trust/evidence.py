"""What was found on an artifact, kept so that it can be judged again without asking anybody.

Rules: a Proof is a signature that held, by a key of the policies, over this very digest. Whether it
suffices is judged each time, by the policies of that time (`core.trust.judge`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from reconciler.core.kinds.keys import KeyScheme
from reconciler.core.names import ArtifactKey
from reconciler.core.printable import printable

AHEAD_MS = 5 * 60_000
"""Of two looks at one time, none is later than the other by more: that was by a wrong clock."""

ProofForm = Literal["classic", "bundle"]
ProofKind = Literal["signature", "provenance", "attestation"]


@dataclass(frozen=True)
class Proof:
    """A signature over the artifact's digest that held when it was looked at.

    `document` is the digest of the manifest that carried it. `first_seen_ms`: when it first held
    here; a key's validity is judged by that time, since the signature itself proves none.
    `key_hash` is `TrustedKey.fingerprint` of the key: an id may be another key's since. One that
    was kept without it counts for nothing.
    `predicate_type`, `builder` and `sources` are what a signed statement says, empty otherwise.
    """

    kind: ProofKind
    form: ProofForm
    key_id: str
    scheme: KeyScheme
    document: str
    first_seen_ms: int
    predicate_type: str = ""
    builder: str = ""
    sources: tuple[str, ...] = ()
    key_hash: str = ""


@dataclass(frozen=True)
class Rejected:
    """Something that looked like a signature or statement and does not count, with why."""

    document: str
    code: str
    message: str


@dataclass(frozen=True)
class Evidence:
    """All that one look found. `keys_hash` is `TrustRules.keys_hash` at that time, `asked` what it
    was looked at for, as `trust.standing.asked_of` says it: for anything else it is looked at anew.
    """

    artifact: ArtifactKey
    keys_hash: str
    checked_at_ms: int
    proofs: tuple[Proof, ...] = ()
    rejected: tuple[Rejected, ...] = ()
    asked: tuple[str, ...] = ()

    @property
    def gist(self) -> Sequence[object]:
        """All that a verdict can depend on, apart from the time."""
        return sorted(
            [
                *(p.kind, p.form, p.key_id, p.key_hash, p.scheme),
                *(p.predicate_type, p.builder, sorted(p.sources)),
            ]
            for p in self.proofs
        )

    @property
    def printable(self) -> Evidence:
        """The same, with all that others wrote in a form that can be kept and shown anywhere."""
        return replace(
            self,
            proofs=tuple(_proof_printable(proof) for proof in self.proofs),
            rejected=tuple(
                Rejected(printable(one.document), one.code, printable(one.message))
                for one in self.rejected
            ),
        )


def _proof_printable(proof: Proof) -> Proof:
    return replace(
        proof,
        document=printable(proof.document),
        predicate_type=printable(proof.predicate_type),
        builder=printable(proof.builder),
        sources=tuple(map(printable, proof.sources)),
    )


@dataclass(frozen=True)
class Verdict:
    """Whether an artifact is good for a channel. `code` is stable and empty when it is."""

    good: bool
    code: str = ""
    message: str = ""
    hint: str = ""


NOT_ASKED = Verdict(True)
"""Where no channel is asked for."""
