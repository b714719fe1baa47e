"""Which images a node may pull, and the registry token that lets it.

Rules:
- A node gets a token for an image that an instance placed on it should run, or went back to, as a
  task of ours named it, for any of its services; to pull, from that one repository, for as long as
  one pull takes.
- Where the registry asks for no tokens there is none. It is never for another registry than the
  Environment's: whoever it is shown to could use it.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Iterator

import structlog

from node_agent.wire import Image, LaunchTask, PullToken, PullTokenRequest, parse_task
from reconciler.artifacts.registry_tokens import RegistryTokens
from reconciler.core.lifecycle import LIVE
from reconciler.core.records import InstanceRecord, Intent, digests_of, node_name
from reconciler.ports import Store
from reconciler.server.errors import ApiError
from reconciler.settings import Settings

log = structlog.get_logger(__name__)


class PullTokens:
    """Answers signed requests of agents. Raises ApiError, and what custody does."""

    def __init__(self, store: Store, tokens: RegistryTokens, settings: Settings) -> None:
        self._store = store
        self._tokens = tokens
        self._environment = settings.environment
        self._ttl_s = settings.pull_token_ttl_s

    def answer(self, request: PullTokenRequest) -> PullToken:
        registry = self._token_registry()
        if not registry:
            return PullToken()
        image = self._image(request)
        if image.registry != registry:
            return PullToken()
        scopes = {image.repository: ("pull",)}
        made = self._tokens.issue(scopes, f"node/{request.node}", self._ttl_s)
        log.info("pull_token_issued", node=request.node, instance=request.instance,
                 repository=image.repository, digest=image.digest)  # fmt: skip
        ends_at_ms = made.issued_at_ms + made.expires_in_s * 1000
        return PullToken(token=made.token.reveal(), expires_at_ms=ends_at_ms)

    def _token_registry(self) -> str:
        """host:port of the Environment's registry if it asks for tokens, else nothing."""
        found = self._store.accepted().objects.get(f"Environment/{self._environment}")
        registry = json.loads(found.document_json)["spec"]["registry"] if found else {}
        return str(registry["endpoint"]) if registry.get("auth") == "token" else ""

    def _image(self, request: PullTokenRequest) -> Image:
        record = self._placed(request)
        names = dict.fromkeys((record.key, node_name(record)))
        told = [intent for name in names for intent in self._store.intents(name)]
        for image in _told_to_run(told, request.node):
            wanted = (image.repository, image.digest) == (request.repository, request.digest)
            if wanted and image.digest in digests_of(record):
                return image
        message = f"{request.instance} was never told to run that image here"
        raise ApiError(403, "not_its_image", message)

    def _placed(self, request: PullTokenRequest) -> InstanceRecord:
        for record in self._store.records().values():
            there = record.node == request.node and record.state in LIVE
            if there and node_name(record) == request.instance:
                return record
        raise ApiError(403, "not_placed", "no such instance is placed on this node")


def _told_to_run(intents: Iterable[Intent], node: str) -> Iterator[Image]:
    """What tasks for this node said, in any state: the one that launched it is long done."""
    for intent in intents:
        if intent.node != node or not intent.envelope:
            continue
        try:
            task = parse_task(base64.b64decode(json.loads(intent.envelope)["payload"]))
        except ValueError:
            continue  # Of an older or newer release, and no word of an image that we know.
        if isinstance(task, LaunchTask):
            yield from task.workload.images
