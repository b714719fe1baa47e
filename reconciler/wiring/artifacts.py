"""The registry and the artifact store, for commands that look at what is to be registered."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from reconciler.ports import Registry, RegistryEndpoint
from reconciler.settings import Settings
from reconciler.wiring.blobs import open_blob_store
from reconciler.wiring.ports import open_ports


@contextmanager
def registry_for(endpoint: RegistryEndpoint, settings: Settings) -> Iterator[Registry]:
    """One that asks for tokens needs the control plane's keys, and so its host."""
    if endpoint.token_auth:
        with open_ports(settings, make=False) as ports:
            yield ports.registry
        return
    from reconciler.adapters.registry_oci import OciRegistry  # noqa: PLC0415 - for this alone

    registry = OciRegistry(settings)
    try:
        yield registry
    finally:
        registry.close()


__all__ = ["open_blob_store", "registry_for"]
