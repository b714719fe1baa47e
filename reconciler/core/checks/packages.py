"""Can versions and Python packages be read as what they say they are?

Rules: read by `packaging`, never by looking at the text. A package is named by project and version
alone: what else pip takes (options, addresses, paths) reaches past the index that the platform
chose, and is refused.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from reconciler.core.kinds.base import Part
from reconciler.core.parse import short
from reconciler.core.world import Entry, Findings, Path, World, finding

PIP_PACKAGES = "pip_packages"
SPECS_MAX = 200
SPEC_LENGTH_MAX = 300
OFFERS_MAX = 5
_NAME_ALONE = "name the package and its version alone, for example numpy==2.1.0"
_READABLE = "write it as 1.2.0, 1.2.0rc1 or 1.2.0+build.5"
_REACHES_OUT: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"^-|\s--?[A-Za-z]"), "pip options are not taken"),
    (re.compile(r"\$|%[A-Za-z_]+%"), "environment variables are not filled in"),
    (re.compile(r"^\w+\+|://|\s@|@\s"), "addresses and repositories are not taken"),
    (re.compile(r"^[.~/\\]|^[^;\[]*[/\\]|\.(?:whl|zip|tar\.\w+)$"), "paths are not taken"),
    (re.compile(r"^#|\s#"), "comments are not taken"),
    (re.compile(r"==="), "=== compares letter by letter: use =="),
)


class Refused(NamedTuple):
    """`number`: which of the specs, from 0; the second of two that contradict each other."""

    number: int
    message: str
    hint: str


def check_versions(world: World) -> Findings:
    """Versions are ordered by a parser: each must be readable, and none the same as another."""
    for table in (world.versions, world.releases):
        yield from _versions(table)


def newest(versions: Iterable[str], count_max: int = OFFERS_MAX) -> tuple[str, ...]:
    """The newest versions, newest first; what no parser reads comes last."""
    return tuple(sorted(versions, key=_order, reverse=True)[:count_max])


def refused_specs(specs: Sequence[str]) -> Iterator[Refused]:
    """What may not be asked of pip, and what contradicts an earlier spec."""
    if len(specs) > SPECS_MAX:
        message = f"{len(specs)} packages, at most {SPECS_MAX} are taken"
        yield Refused(SPECS_MAX, message, "put them into the image")
        return
    read: dict[str, list[tuple[str, Requirement]]] = defaultdict(list)
    for index, spec in enumerate(specs):
        found = _read(spec)
        if isinstance(found, tuple):
            yield Refused(index, *found)
            continue
        earlier = read[canonicalize_name(found.name)]
        clash = next((text for text, other in earlier if _contradict(found, other)), None)
        if clash is not None:
            message = f"{short(spec)} and {short(clash)} can't both hold"
            yield Refused(index, message, "keep one of the two")
        earlier.append((spec, found))


def _versions(table: Mapping[Path, Entry[Part]]) -> Findings:
    alike: dict[tuple[Path, Version], Entry[Part]] = {}
    for path, entry in table.items():
        version = _parsed(entry.name)
        if version is None:
            message = f"{short(entry.name)} can't be read as a version"
            yield finding(entry, "version_unreadable", message, "/metadata/name", _READABLE)
            continue
        first = alike.setdefault((path[:-1], version), entry)
        if first is not entry:
            message = f"{entry.name} and {first.name} are the same version"
            hint, both = "keep one spelling", (first.ref,)
            yield finding(entry, "version_ambiguous", message, "/metadata/name", hint, both)


def _parsed(text: str) -> Version | None:
    try:
        return Version(text)
    except InvalidVersion:
        return None


def _order(text: str) -> tuple[bool, Version, str]:
    version = _parsed(text)
    return version is not None, version or Version("0"), text


def _read(spec: str) -> Requirement | tuple[str, str]:
    """A requirement, or (what is wrong, what to do)."""
    text = spec.strip()
    if len(text) > SPEC_LENGTH_MAX:
        return f"{len(text)} characters are no package: {short(text)}", _NAME_ALONE
    for pattern, why in _REACHES_OUT:
        if pattern.search(text):
            return f"{why}: {short(text)}", _NAME_ALONE
    try:
        found = Requirement(text)
    except InvalidRequirement as error:
        why = str(error).partition("\n")[0]
        return f"{short(text)} is no package requirement: {why}", _NAME_ALONE
    if found.url is not None:
        return f"addresses and repositories are not taken: {short(text)}", _NAME_ALONE
    return found


def _contradict(one: Requirement, other: Requirement) -> bool:
    """Whether no version satisfies both. Where markers differ, both may hold in turn."""
    if one.marker != other.marker:
        return False
    both = one.specifier & other.specifier
    return not any(both.contains(version, prereleases=True) for version in _candidates(both))


def _candidates(specifiers: SpecifierSet) -> Iterator[str]:
    """If any version satisfies these, one of these does: each that is named, and just beside it."""
    yield "0"
    for specifier in specifiers:
        named = Version(specifier.version.removesuffix(".*"))
        yield from (str(named), f"{named.base_version}.dev0", f"{named.base_version}.0.0.0.1")
        if named.pre is not None:
            letter, number = named.pre
            yield f"{named.base_version}{letter}{number + 1}"
