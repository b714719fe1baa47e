"""Can the secrets that a version names be brought to it, and are those meant that it has?"""

from __future__ import annotations

import re
from collections.abc import Iterator

from node_agent.wire import MACHINE_IDENTITY
from reconciler.core.kinds.app_version import AppVersionSpec
from reconciler.core.names import nearest
from reconciler.core.world import Findings, World, finding

CARRY_SECRETS = frozenset(("bare_metal", "launchable_oci"))
"""The runtime kinds whose engines put files in memory in place before a start."""
PLACEHOLDER = re.compile(r"\{secret:([^{}]*)\}")
"""In access instructions: the value of the secret of that name."""


def check_secrets(world: World) -> Findings:
    for entry in world.versions.values():
        kind = entry.spec.runtime_profile.kind
        if entry.spec.runtime_profile.secrets and kind not in CARRY_SECRETS:
            yield finding(
                entry,
                "secrets_not_carried",
                f"runtime kind {kind} brings no secrets to a workload",
                "/spec/runtime_profile/secrets",
                f"it is done by: {', '.join(sorted(CARRY_SECRETS))}",
            )
        for index, secret in enumerate(entry.spec.runtime_profile.secrets):
            if secret.name == MACHINE_IDENTITY:
                yield finding(
                    entry,
                    "secret_name_reserved",
                    f"every instance has a secret {MACHINE_IDENTITY} without asking",
                    f"/spec/runtime_profile/secrets/{index}/name",
                    "leave it out, or call yours something else",
                )
        for name, hint in _unknown(entry.spec):
            message = f"the instructions show secret {name!r}, which this version does not have"
            yield finding(entry, "unknown_secret", message, "/spec/access/instructions", hint)


def _unknown(spec: AppVersionSpec) -> Iterator[tuple[str, str]]:
    known = [secret.name for secret in spec.runtime_profile.secrets]
    shown = PLACEHOLDER.findall(spec.access.instructions if spec.access else "")
    for name in sorted({*shown} - {*known}):
        near = nearest(name, known)
        add = "name it in runtime_profile.secrets"
        yield name[:80], f"did you mean {near}?" if near else add
