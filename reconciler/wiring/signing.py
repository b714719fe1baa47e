"""The registry, the policies and the custody of whoever signs or verifies an artifact.

That may be the control plane's host, where all of them are at hand, or a CI job with a login and a
credential of its own. Rule: a credential that was given is used, and no other beside it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from reconciler.adapters.clock import SystemClock
from reconciler.core.custody.layout import VaultLayout
from reconciler.errors import Refused
from reconciler.ports import Ports, Registry, RegistryEndpoint, Secret, SecretStore
from reconciler.settings import Settings
from reconciler.use_cases.artifact_trust import Policies, policies_accepted, policies_of_tree
from reconciler.wiring.ports import open_ports


@dataclass(frozen=True)
class Credential:
    """What a registry's token server is asked with: of a publish intent, or a robot account."""

    user: str
    password: Secret


@dataclass(frozen=True)
class Place:
    """Where to look: a registry by its address, the Environment of a working tree, or (with
    neither) the Environment that was accepted here.
    """

    registry: str | None = None
    plain_http: bool = False
    tree: Path | None = None


class Desk:
    """What is needed is opened when it is asked for; `close` closes it."""

    def __init__(
        self, settings: Settings, place: Place, credential: Credential | None, logins: Path | None
    ) -> None:
        """`logins`: a folder that `gpuaas vault bootstrap --issue ci` wrote; None: the custody of
        the control plane on this host.
        """
        self._settings = settings
        self._place = place
        self._credential = credential
        self._logins = logins
        self._stack = ExitStack()
        self.clock = SystemClock()

    def close(self) -> None:
        self._stack.close()

    @cached_property
    def here(self) -> Ports:
        """Refused("no_state") where no control plane has kept its state."""
        return self._stack.enter_context(open_ports(self._settings, make=False))

    @property
    def is_here(self) -> bool:
        """Whether the control plane of this host took part."""
        return "here" in self.__dict__

    @cached_property
    def policies(self) -> Policies:
        environment = "" if self._place.registry else self._settings.environment
        if self._place.tree is not None:
            return policies_of_tree(self._place.tree, environment, self._settings)
        return policies_accepted(self.here.store.accepted(), environment)

    @cached_property
    def endpoint(self) -> RegistryEndpoint:
        asks = self._credential is not None
        if self._place.registry is not None:
            return RegistryEndpoint(self._place.registry, self._place.plain_http, token_auth=asks)
        found = self.policies.endpoint
        if found is None:
            hint = "pass --environment NAME, or --registry HOST:PORT"
            raise Refused("no_environment", "which registry is it in?", hint=hint)
        return found

    @cached_property
    def registry(self) -> Registry:
        """With the credential; without one with the tokens of the control plane, if it is here."""
        if self._credential is None and self._place.registry is None and self._place.tree is None:
            return self.here.registry
        return self._stack.enter_context(_registry(self._settings, self.endpoint, self._credential))

    @cached_property
    def secrets(self) -> SecretStore:
        if self._logins is None:
            return self.here.secrets
        return self._stack.enter_context(_ci_custody(self._settings, self._logins))


@contextmanager
def desk(
    settings: Settings,
    place: Place,
    credential: Credential | None = None,
    logins: Path | None = None,
) -> Iterator[Desk]:
    opened = Desk(settings, place, credential, logins)
    try:
        yield opened
    finally:
        opened.close()


@contextmanager
def _registry(
    settings: Settings, endpoint: RegistryEndpoint, credential: Credential | None
) -> Iterator[Registry]:
    # HTTP takes longer to load than a tree whose policies are wrong takes to check.
    from reconciler.adapters.registry_http import open_client  # noqa: PLC0415
    from reconciler.adapters.registry_login import login_bearer  # noqa: PLC0415
    from reconciler.adapters.registry_oci import OciRegistry  # noqa: PLC0415

    client = open_client(settings)
    bearer = None
    if credential is not None:
        bearer = login_bearer(client, endpoint, credential.user, credential.password)
    registry = OciRegistry(settings, bearer)
    try:
        yield registry
    finally:
        registry.close()
        client.close()


@contextmanager
def _ci_custody(settings: Settings, logins: Path) -> Iterator[SecretStore]:
    from reconciler.adapters.secrets_vault import VaultSecrets  # noqa: PLC0415
    from reconciler.adapters.vault_client import class_client  # noqa: PLC0415

    if not settings.vault_address:
        raise Refused(
            "vault_not_configured",
            "a login is for a Vault, and none is named",
            hint="set GPUAAS_VAULT_ADDRESS, or sign where the control plane is, without --login",
        )
    client = class_client(settings, "ci", logins / "ci-role-id", logins / "ci-secret-id")
    try:
        yield VaultSecrets(client, VaultLayout(settings.vault_prefix))
    finally:
        client.close()
