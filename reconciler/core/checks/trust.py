"""Does a policy say what the channels need that the Environments name?

Rule: nothing is put back for it. What is to be launched is held until the channel is known, so that
a misspelt name lets nothing in.
"""

from __future__ import annotations

from dataclasses import replace

from reconciler.core.kinds.environment import EnvironmentSpec
from reconciler.core.names import nearest
from reconciler.core.world import Entry, Findings, World, finding

_DESCRIBE = "describe it under channels of a TrustPolicy"
READS = frozenset(("Environment", "TrustPolicy"))


def check_channels(world: World) -> Findings:
    ruled = {name for entry in world.trust_policies.values() for name in entry.spec.channels}
    for entry in world.environments.values():
        for field, channel in _named(entry):
            if channel in ruled:
                continue
            near = nearest(channel, sorted(ruled))
            hint = f"did you mean {near}?" if near else _DESCRIBE
            message = f"no TrustPolicy says what the channel {channel} needs"
            found = finding(entry, "channel_unknown", message, f"/spec/trust/{field}", hint)
            yield replace(found, involved=(), blocks=False)


def _named(entry: Entry[EnvironmentSpec]) -> tuple[tuple[str, str], ...]:
    trust = entry.spec.trust
    if trust is None:
        return ()
    named = (("channel", trust.channel), ("canary_channel", trust.canary_channel))
    return tuple((field, channel) for field, channel in named if channel is not None)
