"""A finding for each instance that goes on by itself no more.

Rule: it stands beside the plan. It makes, holds and changes no action.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from reconciler.core.desired import Desired
from reconciler.core.health import Health, HealthSeen
from reconciler.core.names import InstanceKey
from reconciler.core.plan import Finding, Plan
from reconciler.core.plan.terms import sort_out


def with_stuck(
    plan: Plan, healths: Mapping[InstanceKey, HealthSeen], desired: Desired, now_ms: int
) -> Plan:
    """The plan with what is stuck, where no finding speaks of that instance already."""
    stuck = sorted(key for key, seen in healths.items() if seen.health is Health.STUCK)
    if not stuck:
        return plan
    told = {finding.object for finding in plan.findings}
    found = [
        Finding("stalled", "stuck", f"AppInstance/{key}", healths[key].why, healths[key].hint)
        for key in stuck
        if f"AppInstance/{key}" not in told
    ]
    shown, ignored = sort_out(found, desired.guards, now_ms)
    return replace(plan, findings=(*plan.findings, *shown), ignored=(*plan.ignored, *ignored))
