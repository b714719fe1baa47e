"""What is asked of the artifacts in use, and whether they still come up to it.

Rules: nothing that runs is stopped by what is found here. An artifact that nobody could look at is
neither good nor bad: what was known of it goes on.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from reconciler.core.audit import DONE, SYSTEM
from reconciler.core.desired import Desired, Instance, Revoked
from reconciler.core.names import ArtifactKey, Digest, InstanceKey, content_hash
from reconciler.core.observed import Known, Observed, Seen, Unknown
from reconciler.core.records import AuditEntry, InstanceRecord, State
from reconciler.core.trust.evidence import NOT_ASKED, Evidence, Verdict
from reconciler.core.trust.judge import is_due, judge
from reconciler.core.trust.rules import TrustRules

REVOKED = "artifact_revoked"
CODES = frozenset(
    (
        "unsigned",
        "signature_not_trusted",
        "key_revoked",
        "key_expired",
        "no_provenance",
        "provenance_unsigned",
        "builder_not_trusted",
        "source_not_trusted",
        "predicate_not_accepted",
        "channel_unknown",
    )
)
"""Of a `Verdict` that is not good."""
CHANGED = "artifacts.evidence.changed"

Asked = Mapping[ArtifactKey, frozenset[str]]
"""What each artifact is asked for: `channel/state of the version`."""


def asked_of(instances: Iterable[Instance]) -> dict[ArtifactKey, frozenset[str]]:
    """By artifact, sorted; what no channel is asked for, and what is to go, is left out."""
    # Instances of a version share its key: most of a fleet is told apart without hashing any.
    alike = {
        (id(key), one.channel, one.promotion): key
        for one in instances
        if one.channel and one.run != "decommissioned"
        for key in ((one.artifact,) if one.topology is None else one.artifacts)
    }
    found: dict[ArtifactKey, set[str]] = {}
    for (_, channel, promotion), key in alike.items():
        found.setdefault(key, set()).add(f"{channel}/{promotion}")
    return {key: frozenset(found[key]) for key in sorted(found)}


def in_use(desired: Desired, records: Mapping[InstanceKey, InstanceRecord]) -> Asked:
    """The same of all that is wanted, and with nothing asked of it what runs in its place so far.

    A record knows the digest alone of what is not a service's; in another repository nobody looks
    for it.
    """
    asked = asked_of(target.instance for target in desired.targets.values())
    if not asked:
        return asked
    former: set[ArtifactKey] = set()
    for key, target in desired.targets.items():
        record, wanted = records.get(key), target.instance.artifact
        digest = _running(record) if record is not None else ""
        if digest and digest != wanted.digest.value:
            former.add(ArtifactKey(wanted.repository, Digest(digest)))
        if digest and record is not None and record.applied_images:
            former.update(map(ArtifactKey.parse, record.applied_images))
    return dict(sorted({**dict.fromkeys(former, frozenset[str]()), **asked}.items()))


def must_look(
    rules: TrustRules,
    asked: frozenset[str],
    known: Evidence | None,
    now_ms: int,
    recheck_ms: int,
) -> bool:
    """Whether what is known does for a launch: a version that was promoted since is asked anew."""
    if known is None or not asked <= frozenset(known.asked):
        return True
    return is_due(rules, _channels(asked), known, now_ms, recheck_ms)


def _channels(asked: frozenset[str]) -> list[str]:
    return sorted({one.partition("/")[0] for one in asked})


def looked_for(found: Evidence, asked: frozenset[str]) -> Evidence:
    return replace(found, asked=tuple(sorted(asked)))


def entry_of(known: Evidence | None, found: Evidence) -> AuditEntry | None:
    """What is to be told of a look; None when it found what the one before did."""
    before = known.gist if known is not None else []
    if known is not None and before == found.gist:
        return None
    return AuditEntry(
        at_ms=found.checked_at_ms,
        actor=SYSTEM,
        requester_type=SYSTEM,
        action=CHANGED,
        object=str(found.artifact),
        before=content_hash(before) if known is not None else "",
        after=content_hash(found.gist),
        reason=_found_words(found),
        result=DONE,
    )


def _found_words(found: Evidence) -> str:
    proofs = sorted({f"{proof.kind} by {proof.key_id}" for proof in found.proofs})
    rejected = sorted({one.code for one in found.rejected})
    told = ", ".join(proofs) or "no signature of a known key"
    return told + (f"; refused: {', '.join(rejected)}" if rejected else "")


# --- of instances --------------------------------------------------------------------------------


def verdict_of(
    instance: Instance, rules: TrustRules, seen: Seen[Evidence] | None, now_ms: int
) -> Verdict | None:
    """None while nobody could look."""
    if seen is None or isinstance(seen, Unknown):
        return None
    return judge(rules, instance.channel, seen.value, now_ms)


def standings(
    desired: Desired,
    observed: Observed,
    records: Mapping[InstanceKey, InstanceRecord],
    now_ms: int,
) -> dict[InstanceKey, Verdict | None]:
    """Of what runs, and of which anything is asked: whether what runs is good, or None for nobody
    knows. Revoked artifacts are told of whatever is asked.
    """
    # One Environment asks for something of all of them, or of none.
    first = next(iter(desired.targets.values()), None)
    if not desired.revoked and (first is None or not first.instance.channel):
        return {}
    judging = _Judging(desired, observed, now_ms)
    found: dict[InstanceKey, Verdict | None] = {}
    for key, record in records.items():
        digest = _running(record)
        if not digest:
            continue
        target = desired.targets.get(key)
        repository = target.instance.artifact.repository if target is not None else ""
        channel = target.instance.channel if target is not None else ""
        verdict = judging.verdict(record, repository, digest, channel)
        if record.applied_images:
            verdict = _of_all(
                {
                    f"{repository}@{digest}" if repository else digest: verdict,
                    **{
                        image: judging.verdict(record, *_parted(image), channel)
                        for image in record.applied_images
                    },
                }
            )
        if verdict is not NOT_ASKED:
            found[key] = verdict
    return found


@dataclass
class _Judging:
    """Records of the same artifact are judged once."""

    desired: Desired
    observed: Observed
    now_ms: int
    known: dict[tuple[str, str, str, str], Verdict | None] = field(default_factory=dict)

    def verdict(
        self, record: InstanceRecord, repository: str, digest: str, channel: str
    ) -> Verdict | None:
        """NOT_ASKED where nothing is; None while nobody could look."""
        revoked = _revoker(self.desired.revoked, record, digest)
        if not channel and not revoked:
            return NOT_ASKED
        asked = (repository, digest, channel, revoked)
        if asked not in self.known:
            # Only what was looked at where ours comes from tells of ours.
            seen = self.observed.trust.get(ArtifactKey(repository, Digest(digest)))
            self.known[asked] = _judged(self.desired, channel, revoked, seen, self.now_ms)
        return self.known[asked]


def _parted(image: str) -> tuple[str, str]:
    repository, _, digest = image.rpartition("@")
    return repository, digest


def _of_all(verdicts: Mapping[str, Verdict | None]) -> Verdict | None:
    """What several images come to, by the worst of them, which is named; its own comes first."""
    asked = {image: one for image, one in verdicts.items() if one is not NOT_ASKED}
    bad = {image: one for image, one in asked.items() if one is not None and not one.good}
    if bad:
        image, worst = min(bad.items(), key=lambda found: found[1].code != REVOKED)
        return replace(worst, message=f"{image}: {worst.message}")
    if not asked:
        return NOT_ASKED
    own = next(iter(asked.values()))
    if own is None or None in asked.values():
        return None
    further = len(asked) - 1
    more = f"; so {'is 1 more image' if further == 1 else f'are {further} more images'}"
    return replace(own, message=own.message + more)


def _revoker(revoked: Revoked, record: InstanceRecord, digest: str) -> str:
    """The Artifact by which it is revoked, for all or for its project; empty for none."""
    if not revoked:
        return ""
    project = "/".join(record.key.split("/")[:2])
    for bound in ("", project):
        if found := revoked.get((digest, record.app, bound)):
            return found
    return ""


def _running(record: InstanceRecord) -> str:
    if record.state in (State.REQUESTED, State.DECOMMISSIONED):
        return ""
    return record.applied_digest


def _judged(
    desired: Desired, channel: str, revoked: str, seen: Seen[Evidence] | None, now_ms: int
) -> Verdict | None:
    if revoked:
        message = f"{revoked} is revoked"
        return Verdict(False, REVOKED, message, "go to a version with another artifact")
    if not isinstance(seen, Known):
        return None
    verdict = judge(desired.trust, channel, seen.value, now_ms)
    if not verdict.good:
        return verdict
    keys = sorted({proof.key_id for proof in seen.value.proofs if proof.kind == "signature"})
    signed = f", signed by {', '.join(keys)}" if keys else ""
    return replace(verdict, message=f"good for {channel}{signed}")
