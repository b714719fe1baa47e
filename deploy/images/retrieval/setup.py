"""Puts the handbook's documents where the worker reads them, and ends.

Run again it writes the same files, and takes away those that the handbook has no more.
"""

from __future__ import annotations

import os
from pathlib import Path

from deploy.images.plain.http_app import say

DOCUMENTS = "/srv/documents"
HANDBOOK = Path(__file__).with_name("handbook")


def fill(folder: Path, source: Path = HANDBOOK) -> list[str]:
    """The names of the documents that are there now."""
    wanted = {path.name: path.read_bytes() for path in sorted(source.glob("*.txt"))}
    for name, content in wanted.items():
        draft = folder / f".{name}.draft"
        draft.write_bytes(content)
        draft.replace(folder / name)
    for path in folder.glob("*.txt"):
        if path.name not in wanted:
            path.unlink()
    return sorted(wanted)


def main() -> None:
    folder = Path(os.environ.get("DOCUMENTS") or DOCUMENTS)
    say(f"{len(fill(folder))} documents in {folder}")
