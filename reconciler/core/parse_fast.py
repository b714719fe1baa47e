"""The fast way to read what people and formatters commonly write; everything else is declined.

Rules: a file is read here only if every line of it has a form whose meaning is beyond doubt: block
mappings and lists, scalars and flow collections of one line, literal and folded blocks. At the
first line that is anything else, or wrong, the answer is None, and `core.parse` reads the file by
libyaml's events. So this module knows no problem, and what it returns is what that one returns;
tests hold the two together. Nothing here recurses deeper than a hundred characters nest.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

Resolve = Callable[[str], Any]

_TEXT: Final = bytes((0x0A, *range(0x20, 0x7F)))
# What `core.parse` does not take for text; tabs, carriage returns and the byte order mark.
_NOT_TEXT: Final = re.compile("[\0-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff]")
_WORD: Final = "[A-Za-z0-9_.][-A-Za-z0-9_./]*"
_QUOTED: Final = r"""(?:'[^']*'|"[^"\\]*")"""
_HEAD: Final = re.compile(rf"( *)(?:-( +))?({_WORD}|{_QUOTED})")
_ITEM: Final = re.compile(r"( *)- +([^ ].*)")
_SKIPPED: Final = re.compile(" *(?:#.*)?")
_AFTER: Final = re.compile("(?: +(?:#.*)?)?")
_SIMPLE: Final = re.compile("[A-Za-z][-A-Za-z0-9_./@+]*")
_PLAIN_START: Final = re.compile(r"[A-Za-z0-9_./~+(<=$^;\\]|-[-A-Za-z0-9.]|[^\0-\xa0]")
_QUOTED_VALUE: Final = re.compile(rf"({_QUOTED})")
_BLOCK: Final = re.compile("([|>])(-?)(?: +(?:#.*)?)?")
_FLOW_START: Final = r"(?:[A-Za-z0-9_./~+($^]|-[-A-Za-z0-9.]|[^\0-\xa0])"
_FLOW_REST: Final = r"""[^][{},:?#'"`\0-\x1f\x7f-\xa0]*"""
_FLOW_PLAIN: Final = rf"{_FLOW_START}{_FLOW_REST}(?::(?=[A-Za-z0-9/]){_FLOW_REST})*"
_FLOW: Final = re.compile(rf" *(?:([][{{}},])|({_QUOTED}|{_FLOW_PLAIN})(:(?= ))?)")
_KEY_LENGTH_MAX: Final = 256
"""libyaml wants the colon within 1,024 characters."""
_MEMO_MAX: Final = 20_000
_MEMO_LENGTH_MAX: Final = 40
_FLOW_LENGTH_MAX: Final = 100
_BLOCK_STARTS: Final = frozenset("|>")
_FLOW_STARTS: Final = frozenset("[{")
_NOWHERE: Final[tuple[int, Any]] = (-1, None)
_EMPTY: Final = object()
_UNKNOWN: Final = object()


Read = tuple[dict[str, Any], int, int]
"""A document that is not empty: its value, its index (empty ones count), its first key's line."""


class _Declined(Exception):
    """Internal to this module: the file is for the other reader."""


Head = tuple[int, int, str]
"""What stands before a value: the column of its dash (-1: none), of its key, and the key."""
Member = tuple[int, int, str, Any]
"""A head and its value."""


@dataclass
class FastReader:
    """Reads one file after the other, and remembers words: manifests repeat themselves.

    `resolve` gives a plain scalar its value, ValueError where it has none. A file beyond one of the
    limits is declined.
    """

    resolve: Resolve
    depth_max: int
    key_length_max: int
    documents_max: int
    heads: dict[str, Head] = field(default_factory=dict)
    known: dict[str, Member] = field(default_factory=dict)
    flows: dict[str, tuple[int, Any]] = field(default_factory=dict)
    """By the text, how many levels deep it is, and its value."""

    def read(self, content: bytes) -> list[Read] | None:
        """All documents of a file; None: declined."""
        try:
            return _File(self, _text(content)).read()
        except _Declined:
            return None

    def head(self, text: str) -> Head | None:
        """The part of a line before the colon; None when it is something else."""
        found = _HEAD.fullmatch(text)
        if found is None:
            return None
        indent, gap, key = found.groups()
        key = self.key(key[1:-1] if key[0] in "'\"" else self.resolved(key))
        dash = len(indent) if gap else -1
        head = (dash, len(indent) + (1 + len(gap) if gap else 0), key)
        if len(self.heads) < _MEMO_MAX and len(text) <= _MEMO_LENGTH_MAX:
            self.heads[text] = head
        return head

    def scalar(self, text: str) -> Any:
        """A value of one line, which may have a comment after it; _EMPTY when nothing stands."""
        if not text or text[0] == "#":
            return _EMPTY
        if text[0] in "'\"":
            found = _QUOTED_VALUE.match(text)
            if found is None or not _AFTER.fullmatch(text, found.end()):
                raise _Declined
            return found[1][1:-1]
        if not _SIMPLE.fullmatch(text):
            text = text.partition(" #")[0].rstrip(" ")
            if ": " in text or text[-1] == ":" or not _PLAIN_START.match(text):
                raise _Declined
        return self.resolved(text)

    def flow(self, text: str, depth: int) -> Any:
        """A flow collection of one line, which may have a comment after it; `depth` counts the
        collections around it."""
        if depth >= self.depth_max:
            raise _Declined
        known = self.flows.get(text)
        if known is not None and depth + known[0] <= self.depth_max:
            return _copy(known[1])
        flow = _Flow(self, depth)
        position = 0
        while flow.is_open:
            found = _FLOW.match(text, position)
            if found is None:
                raise _Declined
            flow.take(found[1], found[2], found[3])
            position = found.end()
        if not _AFTER.fullmatch(text, position):
            raise _Declined
        value = flow.root[0]
        if len(text) <= _FLOW_LENGTH_MAX and len(self.flows) < _MEMO_MAX:
            self.flows[text] = (flow.levels, _copy(value))
        return value

    def key(self, key: object) -> str:
        if not isinstance(key, str) or len(key) > min(self.key_length_max, _KEY_LENGTH_MAX):
            raise _Declined
        return key

    def resolved(self, text: str) -> Any:
        try:
            return self.resolve(text)
        except ValueError:
            raise _Declined from None


class _Flow:
    """A flow collection being read, one mark or word after the other.

    An entry is wanted at the start and after a comma; only at the start may it be missing.
    """

    def __init__(self, reader: FastReader, depth: int) -> None:
        self._reader = reader
        self._depth = depth
        self._key: str | None = None
        self._wanted = True
        self.root: list[Any] = []
        self.stack: list[Any] = [self.root]
        self.levels = 0

    @property
    def is_open(self) -> bool:
        return len(self.stack) > 1 or not self.root

    def take(self, mark: str, word: str, colon: str) -> None:
        if mark == ",":
            if self._wanted or self._key is not None:
                raise _Declined
            self._wanted = True
        elif mark in ("]", "}"):
            self._close(mark)
        elif not self._wanted:
            raise _Declined
        elif colon:
            self._take_key(word)
        elif word:
            self._place(self._scalar(word))
            self._wanted = False
        else:
            self._open([] if mark == "[" else {})

    def _open(self, collection: Any) -> None:
        self._place(collection)
        self.stack.append(collection)
        self.levels = max(self.levels, len(self.stack) - 1)
        if self._depth + self.levels > self._reader.depth_max:
            raise _Declined

    def _close(self, mark: str) -> None:
        top = self.stack.pop()
        if self._key is not None or (self._wanted and top):
            raise _Declined
        if isinstance(top, list) != (mark == "]"):
            raise _Declined
        self._wanted = False

    def _take_key(self, word: str) -> None:
        top = self.stack[-1]
        if self._key is not None or isinstance(top, list):
            raise _Declined
        self._key = self._reader.key(self._scalar(word))
        if self._key in top:
            raise _Declined

    def _place(self, value: Any) -> None:
        top = self.stack[-1]
        if isinstance(top, list):
            top.append(value)
        elif self._key is None:
            raise _Declined
        else:
            top[self._key] = value
            self._key = None

    def _scalar(self, word: str) -> Any:
        if word[0] in "'\"":
            return word[1:-1]
        return self._reader.resolved(word.rstrip(" "))


class _File:
    """One file being read. `stack` holds the open collections with their columns, `open` is the key
    of the innermost one that has no value yet: what stands deeper on the next lines is it."""

    def __init__(self, reader: FastReader, text: str) -> None:
        self._reader = reader
        self._lines = text.split("\n")
        self._found: list[Read] = []
        self._index = -1
        self._marked = False
        self._stack: list[tuple[int, Any]] = []
        self._open: str | None = None

    def read(self) -> list[Read]:
        known, lines, stack = self._reader.known, self._lines, self._stack
        number, count = 0, len(lines)
        while number < count:
            line = lines[number]
            number = at_line = number + 1
            member = known.get(line)
            if member is None:
                if not line:
                    continue
                member, number = self._member(line, number)
                if member is None:
                    self._without_key(line)
                    continue
            dash, column, key, value = member
            at, top = stack[-1] if stack else _NOWHERE
            if at != column or dash >= 0 or self._open is not None or type(top) is list:
                top = self._mapping(dash, column, at_line)
            if key in top:
                raise _Declined
            if value is _EMPTY:
                value, self._open = None, key
            top[key] = value
        return self._found

    def _member(self, line: str, number: int) -> tuple[Member | None, int]:
        """What a line says that no other one said; and the line after it."""
        reader = self._reader
        before, colon, text = line.partition(": ")
        if not colon:
            if not line.endswith(":"):
                return None, number
            before = line[:-1]
        head = reader.heads.get(before) or reader.head(before)
        if head is None:
            return None, number
        text = text.lstrip(" ")
        if text[:1] in _BLOCK_STARTS:
            value, after = self._block(text, number, head[1])
            return (*head, value), after
        if text[:1] in _FLOW_STARTS:
            return (*head, self._flow(text)), number
        member = (*head, reader.scalar(text))
        if len(line) <= _MEMO_LENGTH_MAX and len(reader.known) < _MEMO_MAX:
            reader.known[line] = member
        return member, number

    def _mapping(self, dash: int, column: int, number: int) -> dict[str, Any]:
        """The mapping that a key belongs to, opened where it is the first of it."""
        if dash >= 0:
            items = self._list(dash)
            fresh: dict[str, Any] = {}
            items.append(fresh)
            self._push(column, fresh)
            return fresh
        stack = self._stack
        if not stack:
            return self._root(column, number)
        at, top = stack[-1]
        if self._open is not None:
            key, self._open = self._open, None
            if column > at:
                top[key] = fresh = {}
                self._push(column, fresh)
                return fresh
        while at > column or (at == column and type(top) is list):
            stack.pop()
            if not stack:
                raise _Declined
            at, top = stack[-1]
        if at != column:
            raise _Declined
        return top  # type: ignore[no-any-return]

    def _root(self, column: int, number: int) -> dict[str, Any]:
        if column or (not self._marked and self._index >= 0):
            raise _Declined
        if not self._marked:
            self._next_document()
        self._marked = False
        root: dict[str, Any] = {}
        self._found.append((root, self._index, number))
        self._push(0, root)
        return root

    def _list(self, column: int) -> list[Any]:
        """The list that an item belongs to, opened where it is the first of it."""
        stack = self._stack
        if not stack:
            raise _Declined
        at, top = stack[-1]
        if self._open is not None:
            key, self._open = self._open, None
            if column >= at:
                fresh: list[Any] = []
                top[key] = fresh
                self._push(column, fresh)
                return fresh
        while at > column:
            stack.pop()
            at, top = stack[-1]
        if at != column or type(top) is not list:
            raise _Declined
        return top

    def _push(self, column: int, collection: Any) -> None:
        self._stack.append((column, collection))
        if len(self._stack) > self._reader.depth_max:
            raise _Declined

    def _without_key(self, line: str) -> None:
        """An item that is no mapping, a comment, an empty line, or the start of a document."""
        found = _ITEM.fullmatch(line)
        if found is not None:
            items = self._list(len(found[1]))
            flow = found[2][0] in _FLOW_STARTS
            value = self._flow(found[2]) if flow else self._reader.scalar(found[2])
            if value is _EMPTY:
                raise _Declined
            items.append(value)
        elif line == "---":
            self._next_document()
            self._marked = True
            self._stack.clear()
            self._open = None
        elif not _SKIPPED.fullmatch(line):
            raise _Declined

    def _next_document(self) -> None:
        self._index += 1
        if self._index >= self._reader.documents_max:
            raise _Declined

    def _flow(self, text: str) -> Any:
        """What is about to be opened around it may count for two more."""
        return self._reader.flow(text, len(self._stack) + 2)

    def _block(self, header: str, number: int, column: int) -> tuple[str, int]:
        """A literal or folded block whose text starts at line `number`; and the line after it."""
        found = _BLOCK.fullmatch(header)
        lines, first = self._lines, number
        head = lines[number] if number < len(lines) else ""
        indent = len(head) - len(head.lstrip(" "))
        if found is None or len(head) == indent or indent <= column:
            raise _Declined
        margin = " " * indent
        while number < len(lines) and (not lines[number] or lines[number].startswith(margin)):
            number += 1
        body = [line[indent:] for line in lines[first:number]]
        while body and not body[-1]:
            body.pop()
        if number == len(lines) and lines[-1]:
            raise _Declined  # The file ends in the block, without a line break.
        folds = found[1] == ">"
        if any(not line.strip(" ") if line else False for line in body) or (
            folds and any(line.startswith(" ") for line in body)
        ):
            raise _Declined
        text = _folded(body) if folds else "\n".join(body)
        return text + ("" if found[2] else "\n"), number


def _copy(value: Any) -> Any:
    """A flow collection again: no two documents share one."""
    if isinstance(value, list):
        return [_copy(item) for item in value]
    return {key: _copy(item) for key, item in value.items()} if isinstance(value, dict) else value


def _folded(lines: list[str]) -> str:
    """One line break becomes a space, each further one stays."""
    pieces, breaks = [lines[0]], 0
    for line in lines[1:]:
        if not line:
            breaks += 1
            continue
        pieces += ("\n" * breaks or " ", line)
        breaks = 0
    return "".join(pieces)


def _text(content: bytes) -> str:
    """Declined: anything but printable characters and line feeds."""
    if content.isascii():
        if content.translate(None, _TEXT):
            raise _Declined
        return content.decode("ascii")
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        raise _Declined from None
    if _NOT_TEXT.search(text):
        raise _Declined
    return text
