"""Two registries for an export, each with a credential of its own or with none."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from reconciler.adapters.clock import SystemClock
from reconciler.adapters.registry_export import Moved, RegistryExporter
from reconciler.adapters.registry_http import open_client
from reconciler.adapters.registry_login import login_bearer
from reconciler.adapters.registry_oci import OciRegistry
from reconciler.artifact_ports import Exporter, RegistryEndpoint
from reconciler.settings import Settings
from reconciler.wiring.signing import Credential

Side = tuple[RegistryEndpoint, Credential | None]


def now_ms() -> int:
    """As signatures are judged by."""
    return SystemClock().now_ms()


@contextmanager
def exporter(settings: Settings, source: Side, target: Side, moved: Moved) -> Iterator[Exporter]:
    with ExitStack() as stack:
        opened = [_registry(settings, side, stack) for side in (source, target)]
        yield RegistryExporter(opened[0], opened[1], moved)


def _registry(settings: Settings, side: Side, stack: ExitStack) -> OciRegistry:
    endpoint, credential = side
    bearer = None
    if credential is not None:
        client = open_client(settings)
        stack.callback(client.close)
        bearer = login_bearer(client, endpoint, credential.user, credential.password)
    registry = OciRegistry(settings, bearer)
    stack.callback(registry.close)
    return registry
