"""Which secrets instances refer to, where those are, and what holds a launch that needs them.

Rule: whether a secret is there is all that is asked. Its value never comes this way.
"""

from __future__ import annotations

from collections.abc import Mapping

from reconciler.core.actions import Held
from reconciler.core.custody.paths import Owner, referred_path
from reconciler.core.desired import Instance
from reconciler.core.names import InstanceKey
from reconciler.core.observed import Observed, Unknown


def owner_of(key: InstanceKey) -> Owner:
    tenant, project, _ = key.split("/")
    return tenant, project


def referred_by(instance: Instance) -> Mapping[str, str]:
    """Path → the reference that leads there, in the order of the secrets."""
    found = {}
    for secret in instance.secrets if instance.run != "decommissioned" else ():
        path = referred_path(secret.source, owner_of(instance.key))
        if path is not None:
            found[path] = secret.source
    return found


def name_of(path: str) -> str:
    """What `gpuaas secret` calls it: `tenant/project/name`, or `tenant/name` of a tenant's."""
    return path.partition("/")[2]


def secret_hold(instance: Instance, observed: Observed) -> Held | None:
    """Why it can't be launched: a secret that is not there, or that nobody could look for."""
    for path, reference in referred_by(instance).items():
        seen = observed.secret(path)
        if isinstance(seen, Unknown):
            message = f"{reference} ({name_of(path)}): {seen.code}: {seen.reason}"
            return Held("secret_unknown", message)
        if not seen.value:
            message = f"there is no {reference} yet: gpuaas secret set {name_of(path)}"
            return Held("secret_missing", message)
    return None
