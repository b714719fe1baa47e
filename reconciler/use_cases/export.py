"""One digest from one environment into another, with its signatures, verified on arrival.

Rules:
- Nothing is moved that the other environment would not take: it is looked at first where it is.
- What counts is what arrived: signatures are looked at again there, by that environment's channel.
- An export promotes nothing by itself. It ends where the target's publish intent pushes to, and the
  manifest that registers it goes through review there as any other.
"""

from __future__ import annotations

from dataclasses import dataclass

from reconciler.artifact_ports import Carried, Exporter, Registry, RegistryEndpoint
from reconciler.artifacts.verifying import look
from reconciler.core.names import ArtifactKey
from reconciler.core.observed import ArtifactSeen
from reconciler.core.transfers import TAG_RESERVED, is_for_signatures
from reconciler.core.trust.evidence import Evidence, Verdict
from reconciler.core.trust.judge import judge
from reconciler.core.trust.rules import TrustRules
from reconciler.errors import Refused


@dataclass(frozen=True)
class Demand:
    """What the target asks: `channel` empty where it asks nothing of signatures."""

    rules: TrustRules
    channel: str


@dataclass(frozen=True)
class Exported:
    """`key` is the artifact where it arrived, `seen` and `evidence` what was found there."""

    key: ArtifactKey
    seen: ArtifactSeen
    evidence: Evidence
    verdict: Verdict
    carried: Carried


def export(
    exporter: Exporter,
    source: RegistryEndpoint,
    key: ArtifactKey,
    target: RegistryEndpoint,
    to: str,
    demand: Demand,
    now_ms: int,
    tag: str = "",
) -> Exported:
    """Raises Refused with the verdict's code where the target would not take it, tag_reserved, and
    what a Registry raises. What broke off goes on when it is asked for again.
    """
    if is_for_signatures(tag):
        raise Refused("tag_reserved", TAG_RESERVED, where=f"{target.endpoint}/{to}:{tag}")
    _good(exporter.source, source, key, demand, now_ms)
    carried = exporter.carry(source, key, target, to, tag)
    arrived = ArtifactKey(to, key.digest)
    seen, evidence, verdict = _good(exporter.target, target, arrived, demand, now_ms)
    return Exported(arrived, seen, evidence, verdict, carried)


def _good(
    registry: Registry, endpoint: RegistryEndpoint, key: ArtifactKey, demand: Demand, now_ms: int
) -> tuple[ArtifactSeen, Evidence, Verdict]:
    where = f"{endpoint.endpoint}/{key}"
    seen = registry.look_up(endpoint, key)
    if not seen.exists:
        hint = "check the digest, and which environment has it"
        raise Refused("artifact_missing", "the registry does not have it", where=where, hint=hint)
    evidence = look(registry, endpoint, key, demand.rules, None, now_ms)
    verdict = judge(demand.rules, demand.channel, evidence, now_ms)
    if not verdict.good:
        raise Refused(verdict.code, verdict.message, where=where, hint=verdict.hint)
    return seen, evidence, verdict
