"""Which versions of the signing keys there are, which one signs, and who does not know it yet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from reconciler.core.observed import NodeSeen, Seen
from reconciler.core.plan.keys import known_versions, signing_version
from reconciler.errors import GpuaasError, Refused
from reconciler.observe import see_nodes
from reconciler.ports import (
    KEY_KINDS,
    REGISTRY_KEY,
    TASK_KEY,
    KeyKind,
    Ports,
    PublicKey,
    SecretStore,
)
from reconciler.settings import Settings

NAMES = tuple(sorted(KEY_KINDS))


@dataclass(frozen=True)
class KeyState:
    """`versions` are those not retired, oldest first; `unaware` the nodes whose agents do not know
    the newest. `unknown` is why nobody can say, while custody is away.
    """

    name: str
    kind: KeyKind
    versions: tuple[int, ...] = ()
    signs_with: int | None = None
    unaware: tuple[str, ...] = ()
    unknown: str = ""

    @property
    def min_version(self) -> int | None:
        """The oldest that is still believed."""
        return self.versions[0] if self.versions else None


def keys_now(ports: Ports, settings: Settings) -> tuple[KeyState, ...]:
    """Raises only when our own store does not answer."""
    nodes = see_nodes(ports, settings, ports.clock.now_ms()).nodes
    return tuple(_state(name, ports.secrets, nodes) for name in NAMES)


def _state(name: str, secrets: SecretStore, nodes: Mapping[str, Seen[NodeSeen]]) -> KeyState:
    try:
        versions = tuple(key.version for key in secrets.public_keys(name))
    except GpuaasError as error:
        return KeyState(name, KEY_KINDS[name], unknown=str(error))
    if not versions:
        return KeyState(name, KEY_KINDS[name])
    if name == REGISTRY_KEY:
        return KeyState(name, KEY_KINDS[name], versions, versions[0])
    if name != TASK_KEY:
        return KeyState(name, KEY_KINDS[name], versions, versions[-1])
    known = known_versions(nodes, versions[0])
    unaware = tuple(node for node, version in known if version < versions[-1])
    return KeyState(name, KEY_KINDS[name], versions, signing_version(versions, nodes), unaware)


def public_key(secrets: SecretStore, name: str, version: int | None = None) -> PublicKey:
    """The newest version, or a certain one. Refused: no_signing_key, key_version_unknown."""
    keys = secrets.public_keys(name)
    if not keys:
        raise Refused(
            "no_signing_key",
            f"there is no signing key {name!r} yet",
            hint="it is made when the control plane first starts, or by signing_keys of the "
            "Environment",
        )
    for key in keys:
        if version in (key.version, None) and (version is not None or key is keys[-1]):
            return key
    there = ", ".join(str(key.version) for key in keys)
    raise Refused(
        "key_version_unknown",
        f"there is no version {version} of {name!r}, or no more",
        hint=f"there is: {there}",
    )
