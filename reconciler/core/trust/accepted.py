"""What the TrustPolicies that were accepted last come to."""

from __future__ import annotations

from reconciler.core.desired import StateObject
from reconciler.core.forms import parse_accepted
from reconciler.core.kinds.trust_policy import TrustPolicy
from reconciler.core.records import Accepted
from reconciler.core.trust.build import rules_of
from reconciler.core.trust.rules import TrustRules


def rules_accepted(accepted: Accepted) -> TrustRules:
    """One whose stored form can't be read any more says nothing, and vouches for nobody."""
    found = []
    for ref, stored in accepted.objects.items():
        if ref.startswith("TrustPolicy/"):
            parsed = parse_accepted(stored)
            if isinstance(parsed, StateObject) and isinstance(parsed.manifest, TrustPolicy):
                found.append((parsed.ref.name, parsed.manifest.spec))
    return rules_of(found)
