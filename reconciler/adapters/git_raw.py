"""Commits and trees as the bytes that Git stores, read strictly. Pure.

Rules: a signature covers a commit's bytes, so what is believed of a commit is read from these:
no grafts, replacements, mailmaps or other encodings stand in between. What could be read in two
ways is not read at all.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from reconciler.core.authority.facts import CommitFacts, Signature
from reconciler.core.names import Revision

Armor = Literal["ssh", "openpgp"]
Entry = tuple[bytes, bytes, bytes]
"""Mode, name and binary id, as a tree has them."""
EntryKind = Literal["folder", "file", "symlink", "submodule", "odd"]

MESSAGE_BYTES_MAX = 8 * 1024
MESSAGE_END_BYTES = 4 * 1024
"""Of a longer message its first line is kept, and of its end the whole paragraphs in these."""

_NAME_LENGTH_MAX = 200
_EMAIL_LENGTH_MAX = 320
_LINE_BYTES_MAX = 1024
_CUT = b"\n\n[...]\n\n"

_START = re.compile(rb"tree ([0-9a-f]{40})\n((?:parent [0-9a-f]{40}\n)*)")
_PERSON = rb"([^<>\n\0]*)<([^<>\n\0]*)> ([0-9]{1,12}) [+-][0-9]{4}\n"
_PEOPLE = re.compile(rb"author " + _PERSON + rb"committer " + _PERSON)
_ONCE = frozenset({b"tree", b"parent", b"author", b"committer"})
_SIGNATURES = frozenset({b"gpgsig", b"gpgsig-sha256"})
_ARMORS: dict[bytes, Armor] = {b"SSH SIGNATURE": "ssh", b"PGP SIGNATURE": "openpgp"}
_X509 = b"-----BEGIN SIGNED MESSAGE-----"

_ENTRY = rb"([0-7]{1,7}) ([^\0/]+)\0(.{20})"
_ENTRIES = re.compile(_ENTRY, re.DOTALL)
_KINDS: Mapping[int, EntryKind] = {
    0o040000: "folder",
    0o100644: "file",
    0o100755: "file",
    0o100664: "file",
    0o120000: "symlink",
    0o160000: "submodule",
}
_TREE = re.compile(rb"(?>" + _ENTRY.replace(rb"(", rb"(?:") + rb")*+", re.DOTALL)


@dataclass(frozen=True)
class RawCommit:
    tree_id: str
    facts: CommitFacts


def parents_of(raw: bytes) -> tuple[Revision, ...]:
    """As Git counts them: those right after the tree. ValueError for what is no commit."""
    return _start(raw)[1]


def read_commit(revision: Revision, raw: bytes, *, is_large: bool = False) -> RawCommit:
    """What a commit says; of one that is too large, no more than how its message begins.

    An author or committer that Git would not have written is left out; `armor_of` tells of it.
    """
    tree_id, parents, end = _start(raw)
    found = _PEOPLE.match(raw, end)
    name, email, at = (found[1], found[2], int(found[6])) if found else (b"", b"", 0)
    message = raw.partition(b"\n\n")[2]
    facts = CommitFacts(
        revision=revision,
        parents=parents,
        author_name=_text(name.strip())[:_NAME_LENGTH_MAX],
        author_email=_text(email)[:_EMAIL_LENGTH_MAX],
        committed_at_ms=at * 1000,
        message=_text(_first_line(message) if is_large else _shortened(message)),
    )
    return RawCommit(tree_id, facts)


def armor_of(raw: bytes) -> Armor | Signature:
    """What program can tell of its signature; or what there is to say without asking any."""
    head = raw.partition(b"\n\n")[0].removesuffix(b"\n")
    fields = _fields(head)
    signatures = [(name, value) for name, value in fields if name in _SIGNATURES]
    if not signatures:
        return Signature("none")
    people = _PEOPLE.match(raw, _start(raw)[2])
    names = [name for name, _ in fields if name in _ONCE]
    if people is None or b"\0" in head or len(names) != 3 + len(parents_of(raw)):
        return _unsupported("its header is malformed")
    if len(signatures) > 1:
        return _unsupported("it has several signatures")
    name, value = signatures[0]
    if name != b"gpgsig":
        return _unsupported("it is for commits named by SHA-256")
    return _armor(value)


def tree_entries(raw: bytes) -> tuple[Entry, ...] | None:
    """What a tree holds; None for one that can be read in several ways."""
    entries: tuple[Entry, ...] = tuple(_ENTRIES.findall(raw))
    if not _TREE.fullmatch(raw) or len({name for _, name, _ in entries}) != len(entries):
        return None
    return entries


def entry_kind(mode: bytes) -> EntryKind:
    """By the modes that Git itself writes, and no others, so that no reader can see more in them.

    An odd one is what Git may fetch without what it names (160100), or with it (100640).
    """
    return _KINDS.get(int(mode, 8), "odd")


def path_name(raw: bytes) -> str:
    """A name in a tree as text, a different one for each: bytes that are not UTF-8 are escaped
    (`\\xff`), and so is a backslash (`\\\\`), which could pass for such an escape.
    """
    return raw.replace(b"\\", b"\\\\").decode("utf-8", "backslashreplace")


def _start(raw: bytes) -> tuple[str, tuple[Revision, ...], int]:
    found = _START.match(raw)
    if found is None:
        raise ValueError("not a commit")
    parents = found[2].decode("ascii").split("\n")[:-1]
    return (
        found[1].decode("ascii"),
        tuple(Revision(line.removeprefix("parent ")) for line in parents),
        found.end(),
    )


def _fields(head: bytes) -> list[tuple[bytes, bytes]]:
    """(name, value) of each header; a value's further lines begin with a space, left out here."""
    fields: list[tuple[bytes, list[bytes]]] = []
    for line in head.split(b"\n"):
        if line.startswith(b" ") and fields:
            fields[-1][1].append(line[1:])
        else:
            name, _, value = line.partition(b" ")
            fields.append((name, [value]))
    return [(name, b"\n".join(lines)) for name, lines in fields]


def _armor(text: bytes) -> Armor | Signature:
    if text.startswith(_X509):
        return _unsupported("X.509 signatures are not read")
    lines = text.rstrip().split(b"\n")
    for label, armor in _ARMORS.items():
        begin, end = b"-----BEGIN " + label + b"-----", b"-----END " + label + b"-----"
        marks = [line for line in lines if line.startswith(b"-----")]
        if lines[0] == begin and lines[-1] == end and marks == [begin, end]:
            return armor
    return _unsupported("it is neither an SSH nor an OpenPGP signature")


def _unsupported(detail: str) -> Signature:
    return Signature("unsupported", detail=detail)


def _shortened(message: bytes) -> bytes:
    """Up to its first NUL, where whoever looks at it with Git sees it end."""
    message = message.partition(b"\0")[0].replace(b"\r\n", b"\n").strip(b"\n")
    if len(message) <= MESSAGE_BYTES_MAX:
        return message
    # A part of a paragraph could pass for something that its author did not write.
    paragraphs = message[-MESSAGE_END_BYTES:].partition(b"\n\n")[2].lstrip(b"\n")
    return _first_line(message) + _CUT + paragraphs


def _first_line(message: bytes) -> bytes:
    return message.lstrip(b"\n").partition(b"\n")[0].partition(b"\0")[0][:_LINE_BYTES_MAX]


def _text(raw: bytes) -> str:
    text = raw.decode("utf-8", "replace")
    return "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text)
