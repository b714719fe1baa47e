"""Takes single documents out of a YAML file and puts them back, byte for byte.

Rules: the rest of the file is not touched, comments included. What stands before a document in its
file, up to the next one's `---`, belongs to it. Only files that `parse_file` can read are cut.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise

import yaml

_BOM = b"\xef\xbb\xbf"
_LINE_BREAK = re.compile(rb"\r\n|\r|\n")
_BARE_MARKER = re.compile(rb"---[ \t]*(?:#[^\r\n]*)?")


@dataclass(frozen=True)
class Span:
    """Where a document stands: its `---` line, if any, from `start`, its text from `body`."""

    start: int
    body: int
    end: int


def spans(content: bytes) -> tuple[Span, ...]:
    """One a document, empty ones included, in order. ValueError when it can't be read."""
    skipped = len(_BOM) if content.startswith(_BOM) else 0
    lines = [skipped, *(found.end() for found in _LINE_BREAK.finditer(content)), len(content)]
    try:
        begun = [
            (event.start_mark.line if event.start_mark else 0, bool(event.explicit))
            for event in yaml.parse(content[skipped:], Loader=yaml.CBaseLoader)
            if isinstance(event, yaml.DocumentStartEvent)
        ]
    except yaml.YAMLError as error:
        raise ValueError(f"not readable as YAML ({type(error).__name__})") from None
    starts = [0, *(lines[line] for line, _ in begun[1:]), len(content)]
    bodies = [
        _body(content, start if number else skipped, lines, line, explicit)
        for number, (start, (line, explicit)) in enumerate(zip(starts, begun, strict=False))
    ]
    return tuple(
        Span(start, body, end) for (start, end), body in zip(pairwise(starts), bodies, strict=False)
    )


def _body(content: bytes, start: int, lines: list[int], line: int, explicit: bool) -> int:
    """After a `---` that stands alone on its line; else the document's very start."""
    marker = content[lines[line] : lines[line + 1]].rstrip(b"\r\n")
    return lines[line + 1] if explicit and _BARE_MARKER.fullmatch(marker) else start


def text_of(content: bytes, index: int) -> bytes:
    """The text of one document, without its `---` line."""
    span = spans(content)[index]
    return content[span.body : span.end]


def replaced(content: bytes, index: int, text: bytes) -> bytes:
    """The file with another text for one document."""
    span = spans(content)[index]
    more = span.end < len(content)
    return content[: span.body] + (_ended(text) if more else text) + content[span.end :]


def removed(content: bytes, index: int) -> bytes | None:
    """The file without one document; None when nothing is left to keep the file for."""
    found = spans(content)
    if len(found) == 1:
        return None
    start = len(_BOM) if index == 0 and content.startswith(_BOM) else found[index].start
    return content[:start] + content[found[index].end :]


def appended(content: bytes, text: bytes) -> bytes:
    """The file with one more document at its end."""
    marker = b"" if text.startswith(b"---") else b"---\n"
    return _ended(content) + marker + text


def _ended(text: bytes) -> bytes:
    return text if not text or text.endswith((b"\n", b"\r")) else text + b"\n"
