"""Names that are parsed once and never passed about as bare strings."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, NamedTuple, NewType

Revision = NewType("Revision", str)
"""A full Git commit id, 40 or 64 hex digits."""

ActionId = NewType("ActionId", str)
"""Content hash of an action: the same action has the same id in every run."""

InstanceKey = NewType("InstanceKey", str)
"""`tenant/project/name` of an app instance: what the agent knows it by. A further member of it has
`tenant/project/name.member`; no name has a dot in it.
"""

NAME = r"[a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?"
VERSION = r"[0-9A-Za-z](?:[-+.0-9A-Za-z]{0,62}[0-9A-Za-z])?"
NEAREST_LENGTH_MAX = 100
"""Longer words are no misspelt names, and comparing them takes long."""
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


@dataclass(frozen=True, order=True)
class Digest:
    """A SHA-256 content digest, `sha256:<64 hex>`."""

    value: str

    @classmethod
    def parse(cls, text: str) -> Digest:
        """Raises ValueError when `text` is not a SHA-256 digest."""
        if not _DIGEST.fullmatch(text):
            raise ValueError(f"not a sha256 digest: {text[:80]!r}")
        return cls(text)

    @classmethod
    def of(cls, content: bytes) -> Digest:
        return cls("sha256:" + hashlib.sha256(content).hexdigest())

    @property
    def short(self) -> str:
        return self.value[7:19]

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True, order=True)
class ArtifactKey:
    """An artifact by content: repository (no host) and digest."""

    repository: str
    digest: Digest

    @classmethod
    def parse(cls, text: str) -> ArtifactKey:
        """Parses `repository@sha256:…`; raises ValueError for a tag or anything else."""
        repository, at, digest = text.partition("@")
        if not at or not repository:
            raise ValueError(f"expected repository@sha256:<64 hex>, got {text[:120]!r}")
        return cls(repository, Digest.parse(digest))

    def __str__(self) -> str:
        return f"{self.repository}@{self.digest}"


class ObjectRef(NamedTuple):
    """Names one object of the state repo: its kind and its scope path, ending in its own name.

    `ObjectRef("Project", ("acme", "research"))` prints as `Project/acme/research`. A tuple, since
    every table of a revision is looked up and sorted by it.
    """

    kind: str
    path: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> ObjectRef:
        kind, *path = text.split("/")
        if not kind or not path or not all(path):
            raise ValueError(f"expected Kind/scope/name, got {text[:120]!r}")
        return cls(kind, tuple(path))

    @property
    def name(self) -> str:
        return self.path[-1]

    def __str__(self) -> str:
        return "/".join((self.kind, *self.path))


def instance_key(ref: ObjectRef) -> InstanceKey:
    """The agent-side name of an AppInstance."""
    return InstanceKey("/".join(ref.path))


def secret_path(node: str, name: InstanceKey, secret: str) -> str:
    """Where a secret of an instance is kept; `name` is what its node calls it.

    A renamed instance keeps that, and another one may then bear its former name elsewhere: only
    node and name together are one instance's.
    """
    return f"instances/{node}/{name}/{secret}"


def member_key(instance: InstanceKey, member: str) -> InstanceKey:
    """The key of a further member."""
    return InstanceKey(f"{instance}.{member}")


def instance_of(key: InstanceKey) -> InstanceKey:
    """The instance that a key is of: itself, unless it is a further member's."""
    return InstanceKey(key.partition(".")[0])


def member_name(key: InstanceKey) -> str:
    """What a further member is called in its instance; empty for the instance itself."""
    return key.partition(".")[2]


def manifest_ref(key: InstanceKey) -> ObjectRef:
    """The AppInstance that declares it, as its first member or a further one."""
    return ObjectRef("AppInstance", tuple(instance_of(key).split("/")))


def content_hash(*parts: Any) -> str:
    """SHA-256 hex over the canonical JSON of `parts`: how every id in here is made."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word that `word` was most likely meant to be, if one is near."""
    if len(word) > NEAREST_LENGTH_MAX:
        return None
    near = sorted(name for name in known if len(name) <= NEAREST_LENGTH_MAX)
    found = get_close_matches(word, near, n=1, cutoff=0.6)
    return found[0] if found else None
