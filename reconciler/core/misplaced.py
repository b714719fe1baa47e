"""Files that may hold what looks deleted: in a wrong folder, with a wrong ending, or unreadable.

Rule: a guess made here only ever keeps something (see `core.doubt`), so it may be a generous one.
"""

from __future__ import annotations

import re

from reconciler.core.kind_places import places_for_path
from reconciler.core.names import NAME, nearest
from reconciler.core.source import SourceFile

API_GROUP = b"gpuaas.dev/"
_NAMES_MAX = 2_000
_PLAIN_NAME = re.compile(NAME)
_SAID_NAME = re.compile(rb"^[ \t]*name:[ \t]*[\"']?([-.0-9A-Za-z]{1,64})", re.MULTILINE)
_READ_AS_YAML = ("json", "yaml", "yml")


def names_borne(file: SourceFile) -> frozenset[str]:
    """The names of objects that this file seems to be about, by its own name and by its content."""
    name = file.path.rpartition("/")[2]
    if not _meant_as_manifest(name):
        return frozenset()
    said = _SAID_NAME.findall(file.content)[:_NAMES_MAX] if API_GROUP in file.content else []
    return frozenset((stem(name), *(one.decode() for one in said)))


def misnamed(path: str) -> bool:
    """Whether it would be a manifest but for its ending: `x.yaml.bak`, `x.yam`, `x.json`, `x`."""
    folder, _, name = path.rpartition("/")
    return _meant_as_manifest(name) and bool(places_for_path(f"{folder}/{stem(name)}.yaml"))


def _meant_as_manifest(name: str) -> bool:
    stem, *endings = name.split(".")
    plain = stem.lower().strip("-")
    if not _PLAIN_NAME.fullmatch(plain) or (not endings and stem != stem.lower()):
        return False
    return not endings or any(nearest(one.lower(), _READ_AS_YAML) for one in endings)


def stem(path: str) -> str:
    """A file's own name, without its folder and whatever endings it has."""
    return path.rpartition("/")[2].partition(".")[0]
