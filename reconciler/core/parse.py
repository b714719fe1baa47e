"""Bytes of one file → documents and problems.

Rules: YAML 1.2 core schema, read from libyaml's event stream without recursion, so that neither
depth nor size can take the process down; files of the common forms take a faster way to the same
result (`core.parse_fast`). No anchors, aliases, merge keys or tags: what a reviewer
sees is what there is. Nothing a user wrote raises. Lines and columns count from 1.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml
from yaml._yaml import CParser

from reconciler.core.parse_fast import FastReader
from reconciler.core.problems import Problem

_BOM = b"\xef\xbb\xbf"
# What YAML 1.2 does not call printable, and the line breaks of YAML 1.1 (U+0085, U+2028, U+2029),
# which libyaml would fold.
_UNPRINTABLE = re.compile(
    "[\0-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\ufffe\uffff]"
)
_TAG_DIRECTIVE = re.compile(rb"^%TAG\b", re.MULTILINE)
_CONFLICT = (b"<<<<<<< ", b">>>>>>> ")
_NULL = frozenset(("", "~", "null", "Null", "NULL"))
_BOOL = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_INT = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)")
_NUMBER_START = frozenset("-+.0123456789")
_NUMBER_LENGTH_MAX = 400
_CREDENTIALS = re.compile(r"://[^/@\s]+@")
_INTEGER_MAX = 2**63 - 1


@dataclass(frozen=True)
class ParseLimits:
    """Bounds on one file. `problems_max` bounds how many of its findings are reported."""

    file_bytes_max: int = 1024 * 1024
    documents_per_file_max: int = 2_000
    yaml_depth_max: int = 40
    key_length_max: int = 256
    problems_max: int = 200


@dataclass(frozen=True)
class Document:
    """One YAML document. `index` counts all of the file from 0, empty ones too."""

    value: dict[str, Any]
    index: int
    line: int


Parsed = tuple[tuple[Document, ...], tuple[Problem, ...]]
"""Every readable document of a file, and every problem found."""


class _GiveUp(Exception):
    """Internal to this module: the rest of the file is not read."""


@dataclass
class _Frame:
    """A mapping or list being filled. `key` is where the next value goes; None: it is dropped."""

    value: dict[str, Any] | list[Any]
    key: str | None = None
    wants_key: bool = False

    @classmethod
    def open(cls, is_map: bool) -> _Frame:
        return cls({}, wants_key=True) if is_map else cls([])


@dataclass
class _Reader:
    """Turns events into documents. `stack` holds the open collections of the current document."""

    path: str
    limits: ParseLimits
    documents: list[Document] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    stack: list[_Frame] = field(default_factory=list)
    index: int = -1
    root: Any = None
    root_event: yaml.Event | None = None
    problems_before: int = 0

    def problem(self, event: yaml.Event, code: str, message: str, hint: str = "") -> None:
        place = position(event)
        self.problems.append(Problem(self.path, *place, code, message, hint=hint))
        if len(self.problems) >= self.limits.problems_max:
            message = f"more than {self.limits.problems_max} problems: the rest was not read"
            self.problems.append(Problem(self.path, *place, "too_many_problems", message))
            raise _GiveUp

    def start_document(self, event: yaml.DocumentStartEvent) -> None:
        self.index += 1
        if self.index >= self.limits.documents_per_file_max:
            self.problem(
                event,
                "too_many_documents",
                f"more than {self.limits.documents_per_file_max} documents in one file",
                "split the file",
            )
            raise _GiveUp
        self.root, self.root_event = None, None
        self.problems_before = len(self.problems)

    def end_document(self, event: yaml.DocumentEndEvent) -> None:
        first = self.root_event or event
        if self.root is None:
            return
        if not isinstance(self.root, dict):
            self.problem(first, "not_a_mapping", f"expected a manifest, got {words_for(self.root)}")
        elif len(self.problems) == self.problems_before:
            self.documents.append(Document(self.root, self.index, position(first)[0]))

    def start_collection(self, event: yaml.CollectionStartEvent) -> None:
        self.check_node(event)
        if len(self.stack) >= self.limits.yaml_depth_max:
            self.problem(
                event,
                "too_deep",
                f"nested deeper than {self.limits.yaml_depth_max} levels",
            )
            raise _GiveUp
        opened = _Frame.open(isinstance(event, yaml.MappingStartEvent))
        if self.stack and self.stack[-1].wants_key:
            self.bad_key(event, opened.value)
        else:
            self.place(opened.value, event)
        self.stack.append(opened)

    def scalar(self, event: yaml.ScalarEvent) -> None:
        self.check_node(event)
        if "\0" in event.value:
            self.problem(event, "control_character", "a string holds a NUL")
        value = self.resolve(event)
        if self.stack and self.stack[-1].wants_key:
            self.key(event, value)
        else:
            self.place(value, event)

    def resolve(self, event: yaml.ScalarEvent) -> Any:
        if event.style or not event.implicit[0]:
            return event.value
        try:
            return resolve_scalar(event.value)
        except ValueError as error:
            hint = "put it in quotes if it is text"
            self.problem(event, "bad_number", str(error), hint)
            return 0

    def key(self, event: yaml.ScalarEvent, key: Any) -> None:
        frame = self.stack[-1]
        if not isinstance(key, str):
            self.bad_key(event, key)
            return
        if len(key) > self.limits.key_length_max:
            length_max = self.limits.key_length_max
            message = f"a field's name of {len(key)} characters, at most {length_max} are taken"
            self.problem(event, "key_too_long", message)
        if key == "<<" and not event.style:
            hint = "write the fields out"
            self.problem(event, "merge_key", "merge keys are not taken", hint)
        if key in frame.value:
            self.problem(
                event,
                "duplicate_key",
                f"{short(key)} stands here twice",
                "keep one of the two",
            )
        frame.key, frame.wants_key = key, False

    def bad_key(self, event: yaml.Event, value: object) -> None:
        self.problem(
            event,
            "key_not_string",
            f"a field's name must be a string, got {words_for(value)}",
            "put it in quotes",
        )
        self.stack[-1].key, self.stack[-1].wants_key = None, False

    def place(self, value: Any, event: yaml.Event) -> None:
        """Puts a finished or just opened value where it belongs."""
        if not self.stack:
            self.root, self.root_event = value, event
            return
        frame = self.stack[-1]
        if isinstance(frame.value, list):
            frame.value.append(value)
            return
        if frame.key is not None:
            frame.value[frame.key] = value
        frame.key, frame.wants_key = None, True

    def check_node(self, event: yaml.NodeEvent) -> None:
        if event.anchor is not None:
            self.problem(
                event,
                "anchor",
                f"anchor {short(str(event.anchor))} is not taken",
                "write the value out where it is needed",
            )
        tag = getattr(event, "tag", None)
        if tag is not None:
            self.problem(event, "tag", f"tag {short(tag)} is not taken", "leave the tag out")

    def alias(self, event: yaml.AliasEvent) -> None:
        self.problem(
            event,
            "alias",
            f"alias {short(str(event.anchor))} is not taken",
            "write the value out",
        )
        if self.stack and self.stack[-1].wants_key:
            self.stack[-1].key, self.stack[-1].wants_key = None, False
        else:
            self.place("", event)


def fast_reader(limits: ParseLimits) -> FastReader:
    """Remembers what it reads: for as many files as there are, but of one caller at a time."""
    return FastReader(
        resolve_scalar,
        depth_max=limits.yaml_depth_max,
        key_length_max=limits.key_length_max,
        documents_max=limits.documents_per_file_max,
    )


def parse_file(
    path: str, content: bytes, limits: ParseLimits, fast: FastReader | None = None
) -> Parsed:
    """Every readable document of a file, and every problem found. Empty documents are left out.

    `fast` (made for the same limits) reads most files several times as fast, to the same result.
    """
    if fast is not None and len(content) <= limits.file_bytes_max:
        read = fast.read(content)
        if read is not None:
            return tuple(Document(*one) for one in read), ()
    return parse_by_events(path, content, limits)


def parse_by_events(path: str, content: bytes, limits: ParseLimits) -> Parsed:
    """What `parse_file` does for any file at all; the reference for the fast way."""
    refused = _refuse_bytes(path, content, limits)
    if refused is not None:
        return (), (refused,)
    reader = _Reader(path, limits)
    try:
        for event in events(content):
            _take(reader, event)
    except _GiveUp:
        pass
    except yaml.YAMLError as error:
        reader.problems.append(_syntax_problem(path, content, error))
    return tuple(reader.documents), tuple(reader.problems)


def resolve_scalar(text: str) -> Any:
    """A plain scalar by the core schema: None, bool, int, float, str. ValueError: not finite."""
    if text in _NULL:
        return None
    if text in _BOOL:
        return _BOOL[text]
    if text[0] not in _NUMBER_START:
        return text
    if _INT.fullmatch(text):
        return _integer(text)
    if _FLOAT.fullmatch(text):
        value = float(text) if len(text) <= _NUMBER_LENGTH_MAX else float("inf")
        if abs(value) == float("inf"):
            raise ValueError(f"the number {short(text)} is too large")
        return value
    if _NOT_FINITE.fullmatch(text):
        raise ValueError(f"{text} is not a finite number")
    return text


def words_for(value: object) -> str:
    """What a value is, in the words a YAML author knows."""
    if value is None:
        return "nothing (null)"
    if isinstance(value, bool):
        return f"the boolean {str(value).lower()}"
    if isinstance(value, int | float):
        return f"the number {value}"
    if isinstance(value, str):
        return f"the text {short(value)}"
    return "a list" if isinstance(value, list | tuple) else "a mapping"


def short(text: str, length_max: int = 60) -> str:
    """Quoted, and cut when long, so that no message carries a megabyte; no user and password."""
    text = _CREDENTIALS.sub("://…@", text)
    return repr(text if len(text) <= length_max else text[: length_max - 1] + "…")


def _integer(text: str) -> int:
    value = (
        int(text, 0 if text[:2] in ("0x", "0o") else 10)
        if len(text) <= _NUMBER_LENGTH_MAX
        else None
    )
    if value is None or abs(value) > _INTEGER_MAX:
        raise ValueError(f"the number {short(text)} is too large")
    return value


def _refuse_bytes(path: str, content: bytes, limits: ParseLimits) -> Problem | None:
    if len(content) > limits.file_bytes_max:
        message = f"{len(content)} bytes, more than the {limits.file_bytes_max} that are read"
        return Problem(path, 0, 0, "file_too_large", message, hint="split the file")
    try:
        text = content.removeprefix(_BOM).decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        return Problem(path, line, 1, "not_utf8", "not UTF-8", hint="save the file as UTF-8")
    # libyaml compares each directive with all before it, which takes seconds for a file of them.
    directive = _TAG_DIRECTIVE.search(content)
    if directive:
        line = content.count(b"\n", 0, directive.start()) + 1
        return Problem(path, line, 1, "tag", "tag directives are not taken", hint="leave them out")
    found = _UNPRINTABLE.search(text)
    if found is None:
        return None
    line = text.count("\n", 0, found.start()) + 1
    column = found.start() - text.rfind("\n", 0, found.start())
    message = f"character U+{ord(found[0]):04X} does not belong in a text file"
    return Problem(path, line, column, "control_character", message)


def events(content: bytes) -> Iterator[yaml.Event]:
    parser = CParser(content.removeprefix(_BOM))
    try:
        while True:
            event = parser.get_event()
            if event is None:
                return
            yield event
    finally:
        parser.dispose()


def _take(reader: _Reader, event: yaml.Event) -> None:
    if isinstance(event, yaml.ScalarEvent):
        reader.scalar(event)
    elif isinstance(event, yaml.CollectionStartEvent):
        reader.start_collection(event)
    elif isinstance(event, yaml.CollectionEndEvent):
        reader.stack.pop()
    elif isinstance(event, yaml.AliasEvent):
        reader.alias(event)
    elif isinstance(event, yaml.DocumentStartEvent):
        reader.start_document(event)
    elif isinstance(event, yaml.DocumentEndEvent):
        reader.end_document(event)


def position(event: yaml.Event) -> tuple[int, int]:
    mark = event.start_mark
    return (mark.line + 1, mark.column + 1) if mark else (0, 0)


def _syntax_problem(path: str, content: bytes, error: yaml.YAMLError) -> Problem:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    parts = (getattr(error, "context", None), getattr(error, "problem", None))
    message = " ".join(part for part in parts if part) or "not readable as YAML"
    line, column = (mark.line + 1, mark.column + 1) if mark else (0, 0)
    if line > content.count(b"\n") + content.count(b"\r") + 1:
        # libyaml ends the last line itself, and then places the error on the line after it.
        line, column = line - 1, len(content.rpartition(b"\n")[2].decode()) + 1
    return Problem(path, line, column, "yaml_syntax", message, hint=_syntax_hint(content, line))


def _syntax_hint(content: bytes, line: int) -> str:
    """What most often is behind it, by the line itself."""
    lines = content.splitlines()
    written = lines[line - 1] if 0 < line <= len(lines) else b""
    if any(one.startswith(_CONFLICT) for one in lines):
        return "a merge conflict was left in this file"
    if b"\t" in written[: len(written) - len(written.lstrip())]:
        return "indent with spaces: YAML takes no tabs there"
    if not written.strip():
        return "look for a quote or bracket above that is not closed"
    return "look at the indentation, quotes and brackets here and in the lines above"


def escape(key: str) -> str:
    """A key as one segment of a JSON pointer."""
    return key.replace("~", "~0").replace("/", "~1")
