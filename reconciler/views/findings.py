"""Findings as people read them: what is said of many is said once. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from reconciler.views.plan_words import listed

_PLACES_MAX = 3


def said_once(
    findings: Iterable[Mapping[str, Any]], *, everything: bool = False
) -> list[tuple[Mapping[str, Any], str]]:
    """(finding, where) in their order; those with the same words are one, with all their places.

    Of many places the first few are named, or `everything`.
    """
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for finding in findings:
        words = (finding["code"], finding.get("message"), finding.get("hint"))
        groups.setdefault(words, []).append(finding)
    return [
        (those[0], listed([*map(place_of, those)], len(those) if everything else _PLACES_MAX))
        for those in groups.values()
    ]


def place_of(finding: Mapping[str, Any]) -> str:
    """The place in a file, else the object it is about."""
    return str(finding.get("where") or finding.get("object") or "")
