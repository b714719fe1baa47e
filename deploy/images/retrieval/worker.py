"""Indexes documents: each paragraph becomes a point of the vector database, and stays up to date.

`--check` ends with 0 when the last round went well and is not long ago: it is how the worker's
health is asked for, since it listens nowhere.
"""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from deploy.images.plain.http_app import say
from deploy.images.retrieval.client import Away, Vectors
from deploy.images.retrieval.setup import DOCUMENTS

INTERVAL_S = 1.0
ROUNDS_MISSED_MAX = 5
HEARTBEAT = Path(tempfile.gettempdir()) / "indexed"


@dataclass
class Worker:
    """`known`: what it put into the database, by id."""

    documents: Path
    vectors: Vectors
    known: set[str] = field(default_factory=set)

    def round(self) -> int:
        """Brings the database up to date; how many passages were put there. Away when it can't."""
        wanted = {id_: (id_, name, text) for id_, name, text in passages(self.documents)}
        count = self.vectors.count()
        if count is None:
            self.vectors.create()
        if count is None or count < len(self.known):
            self.known = set()
        new, gone = sorted(wanted.keys() - self.known), sorted(self.known - wanted.keys())
        if new:
            self.vectors.put([wanted[id_] for id_ in new])
        if gone:
            self.vectors.delete(gone)
        self.known = set(wanted)
        return len(new)


def passages(folder: Path) -> list[tuple[str, str, str]]:
    """Id, document and text of each paragraph. The id is made of both, so the same one stays it."""
    found = []
    for path in sorted(folder.glob("*.txt")):
        for paragraph in path.read_text().split("\n\n"):
            text = " ".join(paragraph.split())
            id_ = hashlib.sha256(f"{path.stem}\n{text}".encode()).hexdigest()[:32]
            found += [(id_, path.stem, text)] if text else []
    return found


def fresh(heartbeat: Path, now_s: float, interval_s: float) -> bool:
    try:
        return now_s - float(heartbeat.read_text()) < ROUNDS_MISSED_MAX * interval_s + 1
    except (OSError, ValueError):
        return False


def main() -> None:
    heartbeat = Path(os.environ.get("HEARTBEAT") or HEARTBEAT)
    interval_s = float(os.environ.get("INTERVAL_S") or INTERVAL_S)
    if "--check" in sys.argv[1:]:
        sys.exit(0 if fresh(heartbeat, time.time(), interval_s) else 1)
    folder = Path(os.environ.get("DOCUMENTS") or DOCUMENTS)
    worker = Worker(folder, Vectors.from_environment())
    said = ""
    while True:
        try:
            put = worker.round()
            heartbeat.write_text(str(time.time()))
            line = f"{put} passages indexed" if put else said
        except Away as error:
            line = str(error)
        if line != said:
            say(line)
        said = line
        time.sleep(interval_s)
