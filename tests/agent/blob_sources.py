"""Where blobs come from in tests: memory, with every fault that a test asks for.

Run as a program it fills a cache from a source that gives some, says so and waits to be killed.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from node_agent.blob_room import Needs
from node_agent.blobs import BlobAnswer, BlobCache
from node_agent.link import Away
from tests.agent.cases import SOURCE, digest_of

PIECE_BYTES = 64 * 1024


@dataclass
class MemorySource:
    """`contents` by digest, true or not; after `cut` bytes it breaks off. `before_piece` is called
    with how many bytes were given. `asked` are the offsets; `missing` is the code of
    what it lacks.
    """

    contents: dict[str, bytes] = field(default_factory=dict)
    cut: int | None = None
    ranges: bool = True
    says_size: int | None = None
    before_piece: Callable[[int], object] = lambda _: None
    missing: str = "no_such_blob"
    asked: list[tuple[str, int]] = field(default_factory=list)

    def holds(self, content: bytes) -> str:
        self.contents[digest_of(content)] = content
        return digest_of(content)

    @contextlib.contextmanager
    def open(self, source: str, digest: str, offset: int) -> Iterator[BlobAnswer]:
        self.asked.append((digest, offset))
        content = self.contents.get(digest)
        if content is None:
            raise Away(self.missing, "it is not to be had")
        if offset and not self.ranges:
            raise Away("wrong_offset", "it can't go on where it ended")
        size_bytes = len(content) if self.says_size is None else self.says_size
        yield BlobAnswer(size_bytes, self._pieces(content[offset:]))

    def _pieces(self, content: bytes) -> Iterator[bytes]:
        given = 0
        while given < len(content):
            if self.cut is not None and given >= self.cut:
                raise Away("unreachable", "the connection broke off")
            self.before_piece(given)
            piece = content[given : given + PIECE_BYTES]
            if self.cut is not None:
                piece = piece[: self.cut - given]
            yield piece
            given += len(piece)


def _fill(folder: Path, content: bytes, pieces: int) -> None:
    def wait(given: int) -> None:
        if given >= pieces * PIECE_BYTES:
            print("waiting", flush=True)
            threading.Event().wait()

    source = MemorySource(before_piece=wait)
    cache = BlobCache(folder, source, Needs)
    cache.bring(source.holds(content), SOURCE, threading.Event(), for_target=True)


if __name__ == "__main__":
    _fill(Path(sys.argv[1]), Path(sys.argv[2]).read_bytes(), int(sys.argv[3]))
