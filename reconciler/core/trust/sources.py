"""Where a signed provenance says that it was built from, compared with the prefixes of a policy.

Rules: a source counts only in its plain form. Whatever two readers could take for two places (dots,
escapes, a user in the address, another scheme) is within no prefix.
"""

from __future__ import annotations

import re
from collections.abc import Collection

SOURCE_LENGTH_MAX = 2000

_PLAIN = re.compile(r"(?:git\+)?(https://[^/?#@\\%\s]+(?:/[^/?#@\\%\s]+)+/?)(?:@[-._/0-9A-Za-z]+)?")


def within(sources: Collection[str], prefixes: Collection[str]) -> bool:
    """Whether all of them, and at least one, are below one of the prefixes; no prefix: anything."""
    if not prefixes:
        return True
    return bool(sources) and all(_is_within(source, prefixes) for source in sources)


def _is_within(source: str, prefixes: Collection[str]) -> bool:
    match = _PLAIN.fullmatch(source) if len(source) <= SOURCE_LENGTH_MAX else None
    if match is None or not source.isascii():
        return False
    place = match[1]
    segments = place.split("/")[3:]
    if {".", ".."} & set(segments) or ".." in source:
        return False
    # A prefix ends in a slash: what is below it begins with it, and is longer.
    return any(place.startswith(prefix) and place != prefix for prefix in prefixes)
