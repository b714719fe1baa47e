"""What trust holds back, and what is to be told of what runs on."""

from __future__ import annotations

from collections.abc import Mapping

from reconciler.core.actions import Held
from reconciler.core.desired import Desired, Instance
from reconciler.core.names import InstanceKey
from reconciler.core.observed import Observed, Unknown
from reconciler.core.plan import Finding
from reconciler.core.records import InstanceRecord
from reconciler.core.trust.rules import TrustRules
from reconciler.core.trust.standing import standings, verdict_of


def trust_hold(
    instance: Instance, rules: TrustRules, observed: Observed, now_ms: int
) -> Held | None:
    """Why it can't be launched: one of its artifacts is not good for its channel, or unknown."""
    if not instance.channel:
        return None
    for key in instance.artifacts:
        seen = observed.evidence(key)
        if isinstance(seen, Unknown):
            return Held(seen.code, f"{key}: {seen.reason}")
    return _bad(instance, rules, observed, now_ms)


def start_hold(
    instance: Instance, rules: TrustRules, observed: Observed, now_ms: int
) -> Held | None:
    """The same for what is there and only has to start: what is not known to be bad may."""
    return _bad(instance, rules, observed, now_ms) if instance.channel else None


def _bad(instance: Instance, rules: TrustRules, observed: Observed, now_ms: int) -> Held | None:
    for key in instance.artifacts:
        verdict = verdict_of(instance, rules, observed.trust.get(key), now_ms)
        if verdict is not None and not verdict.good:
            hint = f"; {verdict.hint}" if verdict.hint else ""
            message = f"{key} is not good for {instance.channel}: {verdict.message}{hint}"
            return Held(verdict.code, message)
    return None


def trust_findings(
    desired: Desired,
    observed: Observed,
    records: Mapping[InstanceKey, InstanceRecord],
    now_ms: int,
) -> list[Finding]:
    """What runs although its artifact is good no more, and that nothing is asked for at all."""
    found = [
        Finding(
            "info",
            "no_longer_trusted",
            f"AppInstance/{key}",
            f"what runs is trusted no more ({verdict.code}): {verdict.message}",
            f"it runs on; {verdict.hint}" if verdict.hint else "it runs on",
        )
        for key, verdict in standings(desired, observed, records, now_ms).items()
        if verdict is not None and not verdict.good
    ]
    if desired.unverified:
        message = "nobody asks for signatures: there are channels, and it names none"
        hint = "set trust.channel in its spec"
        where = f"Environment/{desired.unverified}"
        found.append(Finding("info", "trust_not_asked", where, message, hint))
    return found
