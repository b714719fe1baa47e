"""Where an agent gets blobs: from its control plane, or from where that sends it.

Rules:
- The request is signed. Its answer is bytes, which `blobs` believes once they hash right.
- The control plane may point elsewhere, to a service that keeps blobs: followed once, with nothing
  that says who asks but the address itself. No credentials, no certificate of ours go there.
"""

from __future__ import annotations

import contextlib
import re
import ssl
from collections.abc import Iterator

import httpx

from node_agent.artifact_wire import BlobRequest
from node_agent.blobs import BlobAnswer
from node_agent.clock import WallClock
from node_agent.link import Away, Link, pieces_of, refusal_of, streamed
from node_agent.state import StateStore

_LENGTH = re.compile(r"[0-9]{1,18}")
_RANGE = re.compile(r"bytes ([0-9]{1,18})-[0-9]{1,18}/([0-9]{1,18})")
_WHOLE = re.compile(r"bytes \*/([0-9]{1,18})")


class BlobLink:
    """A `blobs.BlobSource`. `link` is asked by several threads at once."""

    def __init__(self, link: Link, store: StateStore, clock: WallClock) -> None:
        self._link = link
        self._store = store
        self._clock = clock

    @contextlib.contextmanager
    def open(self, source: str, digest: str, offset: int) -> Iterator[BlobAnswer]:
        identity = self._store.identity
        if identity is None:
            raise Away("not_joined", "this node has not joined")
        request = BlobRequest(
            node=identity.node,
            sent_at_ms=self._clock.now_ms(),
            source=source,
            digest=digest,
            offset=offset,
        )
        with self._link.blob(request) as answer:
            if answer.status_code != 307:
                yield _answered(answer, offset)
                return
            elsewhere = answer.headers.get("Location", "")
        with _followed(elsewhere, offset) as answer:
            yield _answered(answer, offset)

    def close(self) -> None:
        self._link.close()


@contextlib.contextmanager
def _followed(address: str, offset: int) -> Iterator[httpx.Response]:
    if not address.startswith(("https://", "http://")):
        raise Away("answer_malformed", "sent elsewhere, to what is no address")
    trusted = ssl.create_default_context()
    with httpx.Client(verify=trusted, trust_env=False, follow_redirects=False) as client:
        headers = {"Range": f"bytes={offset}-"} if offset else {}
        with streamed(client, "GET", address, headers=headers, own=False) as answer:
            yield answer


def _answered(answer: httpx.Response, offset: int) -> BlobAnswer:
    if answer.status_code not in {200, 206}:
        raise refusal_of(answer)
    if answer.headers.get("Content-Encoding", "identity") != "identity":
        raise Away("answer_malformed", "a blob that is packed in some way")
    ranged = answer.headers.get("Content-Range", "")
    whole, part = _WHOLE.fullmatch(ranged), _RANGE.fullmatch(ranged)
    if answer.status_code == 200 and whole is not None:
        return BlobAnswer(int(whole[1]), ())  # There is nothing after the offset.
    if answer.status_code == 206:
        if part is None or int(part[1]) != offset:
            raise Away("answer_malformed", "another part of the blob than was asked for")
        return BlobAnswer(int(part[2]), pieces_of(answer))
    if offset:
        raise Away("wrong_offset", "what keeps the blob can't go on where it ended")
    length = answer.headers.get("Content-Length", "")
    if not _LENGTH.fullmatch(length):
        raise Away("answer_malformed", "a blob that does not say its size")
    return BlobAnswer(int(length), pieces_of(answer))
