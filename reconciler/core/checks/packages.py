"""Can versions and Python packages be read as what they say they are?

Rules: read by `packaging`, never by looking at the text. A package is named by project and version,
and may say its hashes: what else pip takes (options, addresses, paths) reaches past the index that
the platform chose, and is refused. All packages have hashes, or none.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from packaging.version import InvalidVersion, Version

from reconciler.core.kinds.base import Part
from reconciler.core.parse import short
from reconciler.core.world import Entry, Findings, Path, World, finding

if TYPE_CHECKING:
    from packaging.requirements import Requirement
    from packaging.specifiers import SpecifierSet

PIP_PACKAGES = "pip_packages"
SPECS_MAX = 200
SPEC_LENGTH_MAX = 300
SAME_MAX = 16
"""Specs of one package, such as for several Pythons."""
TEXT_LENGTH_MAX = 100_000
"""Of all packages with their hashes: they travel in one variable, which may have 128 KiB."""
OFFERS_MAX = 5
_NAME_ALONE = "name the package and its version alone, for example numpy==2.1.0"
_READABLE = "write it as 1.2.0, 1.2.0rc1 or 1.2.0+build.5"
_PINNED = "pin it with ==, for example numpy==2.1.0 --hash=sha256:…"
_IN_ONE = "say it in one: numpy>=2,<3"
_CONTINUED = re.compile(r"\\[ \t]*\r?\n")
_HASH = re.compile(r"--hash=sha256:[0-9a-f]{64}")
_REACHES_OUT: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"\s--hash"), "a hash is --hash=sha256: and 64 hexadecimal digits, at the end"),
    (re.compile(r"^-|\s-"), "pip options are not taken"),
    (re.compile(r"\$|%[A-Za-z_]+%"), "environment variables are not filled in"),
    (re.compile(r"^\w+\+|://|\s@|@\s"), "addresses and repositories are not taken"),
    (re.compile(r"^[.~/\\]|^[^;\[]*[/\\]|\.(?:whl|zip|tar\.\w+)$"), "paths are not taken"),
    (re.compile(r"^#|\s#"), "comments are not taken"),
    (re.compile(r"==="), "=== compares letter by letter: use =="),
    # With \n or \x22 a marker's text would become what pip reads as a line or an option.
    (re.compile(r"[^ -~]|\\"), "a package is plain text on one line"),
)


class Refused(NamedTuple):
    """`number`: which of the specs, from 0; the second of two that contradict each other."""

    number: int
    message: str
    hint: str
    code: str = "pip_spec_refused"


class Spec(NamedTuple):
    """A package as it was asked for. `hashes` as pip takes them, sorted."""

    requirement: Requirement
    hashes: tuple[str, ...] = ()

    @property
    def pinned(self) -> bool:
        (*named,) = self.requirement.specifier
        return len(named) == 1 and named[0].operator == "==" and not named[0].version.endswith("*")

    def __str__(self) -> str:
        return " ".join((str(self.requirement), *self.hashes))


def check_versions(world: World) -> Findings:
    """Versions are ordered by a parser: each must be readable, and none the same as another."""
    for table in (world.versions, world.releases):
        yield from _versions(table)


def newest(versions: Iterable[str], count_max: int = OFFERS_MAX) -> tuple[str, ...]:
    """The newest versions, newest first; what no parser reads comes last."""
    return tuple(sorted(versions, key=_order, reverse=True)[:count_max])


def spec_texts(value: object) -> tuple[str, ...] | None:
    """The specs of a list, or of a text with one a line; None for anything else."""
    if isinstance(value, str):
        lines = _CONTINUED.sub(" ", value).splitlines()
        return tuple(line for line in lines if line.strip())
    if isinstance(value, list | tuple) and all(isinstance(one, str) for one in value):
        return tuple(value)
    return None


def requirement_lines(specs: Iterable[str]) -> tuple[str, ...]:
    """pip's requirement lines, in one spelling and order: same packages, same lines.

    What `refused_specs` refuses is left out.
    """
    read = (_read(spec) for spec in specs)
    return tuple(sorted({str(found) for found in read if isinstance(found, Spec)}))


def refused_specs(specs: Sequence[str]) -> Iterator[Refused]:
    """What may not be asked of pip, and what contradicts an earlier spec."""
    from packaging.utils import canonicalize_name  # noqa: PLC0415 - few versions name packages

    if len(specs) > SPECS_MAX:
        message = f"{len(specs)} packages, at most {SPECS_MAX} are taken"
        yield Refused(SPECS_MAX, message, "put them into the image")
        return
    length = sum(map(len, specs))
    if length > TEXT_LENGTH_MAX:
        message = f"{length} characters of packages and hashes, at most {TEXT_LENGTH_MAX} are taken"
        yield Refused(0, message, "leave out the hashes of other platforms, or use the image")
        return
    read: dict[str, list[tuple[str, Spec]]] = defaultdict(list)
    hashed: dict[bool, list[int]] = defaultdict(list)
    for index, spec in enumerate(specs):
        found = _read(spec)
        if not isinstance(found, Spec):
            yield Refused(index, *found)
            continue
        hashed[bool(found.hashes)].append(index)
        earlier = read[canonicalize_name(found.requirement.name)]
        if len(earlier) >= SAME_MAX:
            if len(earlier) == SAME_MAX:
                message, hint = f"more than {SAME_MAX} of {short(spec)}", _IN_ONE
                yield Refused(index, message, hint)
                earlier.append((spec, found))
            continue
        clash = next((text for text, other in earlier if _contradict(found, other)), None)
        if clash is not None:
            message = f"{short(spec)} and {short(clash)} can't both hold"
            yield Refused(index, message, "keep one of the two")
        earlier.append((spec, found))
    if hashed[True] and hashed[False]:
        bare = hashed[False][0]
        message = f"{len(hashed[True])} of {len(specs)} packages have a hash, {short(specs[bare])}"
        hint = "give each its hashes, also those that they need in turn, or none any"
        yield Refused(bare, f"{message} has none", hint, "pip_hashes_partial")


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


def _read(spec: str) -> Spec | tuple[str, str]:
    """A package, or (what is wrong, what to do)."""
    from packaging.requirements import InvalidRequirement, Requirement  # noqa: PLC0415

    text, hashes = _without_hashes(spec.strip())
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
    read = Spec(found, tuple(sorted(set(hashes))))
    if read.hashes and not read.pinned:
        return f"a hash holds for one version, and {short(text)} names none", _PINNED
    return read


def _without_hashes(text: str) -> tuple[str, list[str]]:
    """The text before its hashes, and these; all of it and none, where they are not in order."""
    named, gap, _ = text.partition("--hash=")
    hashes = text[len(named) :].split()
    if gap and named[-1:].isspace() and all(map(_HASH.fullmatch, hashes)):
        return named.rstrip(), hashes
    return text, []


def _contradict(one: Spec, other: Spec) -> bool:
    """Whether no version satisfies both. Where markers differ, both may hold in turn."""
    if one.requirement.marker != other.requirement.marker:
        return False
    both = one.requirement.specifier & other.requirement.specifier
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
