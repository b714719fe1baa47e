"""Intents for the command line: of a control plane over HTTP, or of the one on this host."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

from reconciler.adapters.intent_request import RemoteIntents
from reconciler.core.transfers import PublishWish, PullWish
from reconciler.ports import Secret
from reconciler.settings import Settings
from reconciler.use_cases import transfers
from reconciler.use_cases.handover import Asker
from reconciler.use_cases.intents import Intents
from reconciler.wiring.blobs import open_blob_store
from reconciler.wiring.ports import open_ports

Document = Mapping[str, Any]


class AnyIntents(Protocol):
    """Documents as `GET /v1/intents` has them, wherever they come from."""

    def publish(self, wish: PublishWish) -> Document: ...

    def pull(self, wish: PullWish) -> Document: ...

    def complete(self, transfer_id: str, digest: str) -> Document: ...

    def show(self, transfer_id: str) -> Document: ...

    def listed(self, project: str) -> Document: ...

    def close(self, transfer_id: str) -> Document: ...


@contextmanager
def intents_of(
    server: str | None, token: Secret | None, settings: Settings, actor: str
) -> Iterator[AnyIntents]:
    """Those of the control plane at `server`, else of the one on this host, as `actor`."""
    if server is not None:
        yield RemoteIntents(server, token, settings.fetch_timeout_s)
        return
    with open_ports(settings, make=False) as ports:
        blobs = open_blob_store(settings)
        desk = transfers.Desk(
            ports.store, ports.secrets, ports.clock, ports.registry, settings, blobs
        )
        yield Intents(desk, Asker(actor, "local"))
