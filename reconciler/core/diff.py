"""Keyed difference of two collections."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

K = TypeVar("K", bound=str)
V = TypeVar("V")
W = TypeVar("W")


@dataclass(frozen=True)
class Diff(Generic[K, V, W]):
    """Keys sorted. `both` holds what stands on both sides, to be compared by whoever knows how."""

    add: tuple[tuple[K, V], ...]
    remove: tuple[tuple[K, W], ...]
    both: tuple[tuple[K, V, W], ...]


def diff(desired: Mapping[K, V], owned: Mapping[K, W]) -> Diff[K, V, W]:
    return Diff(
        add=tuple((k, desired[k]) for k in sorted(desired.keys() - owned.keys())),
        remove=tuple((k, owned[k]) for k in sorted(owned.keys() - desired.keys())),
        both=tuple((k, desired[k], owned[k]) for k in sorted(desired.keys() & owned.keys())),
    )
