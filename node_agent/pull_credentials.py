"""What an agent shows a registry to pull an image: asked of the control plane, one pull at a time.

Rules:
- Asked for when an image is not there, and only then. It is in memory for as long as the pull
  takes, and in no log, state or message.
- A control plane that is away or says no does not stop a pull: many registries ask for nothing. If
  the pull fails then, why there was no credential is said with it.
"""

from __future__ import annotations

from node_agent.artifact_wire import PullTokenRequest
from node_agent.clock import WallClock
from node_agent.engines.base import PullCredential
from node_agent.link import Away, Link
from node_agent.state import StateStore
from node_agent.wire import LAYOUT_PREFIX, Image, Workload


class PullCredentials:
    """Asks for registry tokens. Several threads may."""

    def __init__(self, link: Link, store: StateStore, clock: WallClock) -> None:
        self._link = link
        self._store = store
        self._clock = clock

    def of(self, workload: Workload, image: Image) -> PullCredential:
        """That for one of a workload's images. Raises nothing."""
        identity = self._store.identity
        if identity is None or image.registry.startswith(LAYOUT_PREFIX):
            return PullCredential()
        request = PullTokenRequest(
            node=identity.node,
            sent_at_ms=self._clock.now_ms(),
            instance=workload.instance,
            repository=image.repository,
            digest=image.digest,
        )
        try:
            return PullCredential(self._link.pull_token(request).token)
        except Away as away:
            return PullCredential(missing=str(away))
