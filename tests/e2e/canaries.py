"""Known secrets, and everywhere that one may have got to.

Rules:
- A canary is looked for as it is and as it may have been encoded on its way.
- What runs meanwhile is watched all the time: an argument or a variable is there for a moment only.
"""

from __future__ import annotations

import base64
import json
import os
import re
import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import quote

from tests.e2e.platform import files_below

LOOKS_EVERY_S = 0.03


def forms_of(value: str) -> tuple[bytes, ...]:
    """As it is, and in every dress it may travel in; a PEM by the words of its inside."""
    texts = [line for line in value.splitlines() if len(line) >= 16 and "-----" not in line]
    texts += re.findall(r"[\w-]{24,}", value.replace("-----", " "))
    found = set()
    for text in texts or [value]:
        raw = text.encode()
        found |= {
            raw,
            raw.hex().encode(),
            *_inside_base64(raw),
            quote(text, safe="").encode(),
            json.dumps(text)[1:-1].encode(),
        }
    return tuple(sorted(found))


def _inside_base64(raw: bytes) -> set[bytes]:
    """What of it stands in the base64 of any text that it is in the middle of."""
    found = set()
    for before in range(3):
        whole = base64.b64encode(bytes(before) + raw)
        # The outermost groups are made of neighbours, too.
        inside = whole[4 if before else 0 : -4]
        found |= {inside, inside.replace(b"+", b"-").replace(b"/", b"_")}
    return found


class Canaries:
    """Secrets by name; a lock, since they become known while others look for them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._forms: dict[str, tuple[bytes, ...]] = {}
        self.values: dict[str, str] = {}

    def add(self, name: str, value: str) -> str:
        assert len(value) >= 16, f"{name} is too short to be told from other text"
        with self._lock:
            self.values[name] = value
            self._forms[name] = forms_of(value)
        return value

    def within(self, content: bytes) -> list[str]:
        """Names of those that stand in there."""
        with self._lock:
            known = dict(self._forms)
        return [name for name, forms in known.items() if any(form in content for form in forms)]

    def in_texts(self, texts: Mapping[str, str]) -> list[str]:
        return [
            f"{name} in {where}"
            for where, text in texts.items()
            for name in self.within(text.encode())
        ]

    def in_files(self, roots: Iterable[Path], spared: Iterable[Path] = ()) -> list[str]:
        """In any file below, but for those that are there to hold it."""
        kept, found = {path.resolve() for path in spared}, []
        for root in roots:
            for path, content in files_below(root):
                if not path.is_symlink() and path.resolve() not in kept:
                    found += [f"{name} in {path}" for name in self.within(content)]
        return found


class ProcessWatch:
    """Looks at the arguments and variables of all processes of this host, again and again.

    `allowed`: words on the command line of the workload itself, whose variables may hold canaries.
    """

    def __init__(self, canaries: Canaries, allowed: Sequence[str]) -> None:
        self._canaries = canaries
        self._allowed = [word.encode() for word in allowed]
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look_again, daemon=True)
        self._known: dict[tuple[int, str], int] = {}
        self.found: set[str] = set()
        self.looks = 0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()

    def _look_again(self) -> None:
        while not self._stop.wait(LOOKS_EVERY_S):
            self._look()

    def _look(self) -> None:
        self.looks += 1
        for entry in Path("/proc").glob("[0-9]*"):
            if int(entry.name) == os.getpid():
                continue
            command = _read(entry / "cmdline")
            self._judge(entry, "cmdline", command)
            if not any(word in command for word in self._allowed):
                self._judge(entry, "environ", _read(entry / "environ"))

    def _judge(self, entry: Path, part: str, content: bytes) -> None:
        key, seen = (int(entry.name), part), hash((content, len(self._canaries.values)))
        if self._known.get(key) == seen:
            return
        self._known[key] = seen
        for name in self._canaries.within(content):
            words = _read(entry / "cmdline").replace(b"\0", b" ").decode(errors="replace")
            self.found.add(f"{name} in the {part} of {words[:80]}")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""
