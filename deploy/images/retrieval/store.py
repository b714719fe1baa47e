"""Collections of vectors in a folder, searched by cosine.

Rules: a change is on disk before it is answered, appended to its collection's file. A last line
that was cut off by a crash was not answered, and is dropped. One process at a time.
"""

from __future__ import annotations

import json
import math
import os
import re
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

PointId: TypeAlias = int | str
Payload: TypeAlias = Mapping[str, Any]


class Unfit(Exception):
    """What was asked does not fit the collection; says why."""


@dataclass(frozen=True)
class Hit:
    id: PointId
    score: float
    payload: Payload


@dataclass(frozen=True)
class _Point:
    vector: tuple[float, ...]
    length: float
    payload: Payload


class Collection:
    """Vectors of `size` numbers each, with something said of each."""

    def __init__(self, path: Path, size: int) -> None:
        self._path, self.size = path, size
        self._points: dict[PointId, _Point] = {}
        self._lock = threading.Lock()

    @classmethod
    def create(cls, path: Path, size: int) -> Collection:
        draft = path.with_suffix(".draft")
        _write(draft, "w", [{"size": size}])
        draft.replace(path)
        return cls(path, size)

    @classmethod
    def load(cls, path: Path) -> Collection:
        content = path.read_bytes()
        whole = content.rpartition(b"\n")[0]
        first, *lines = whole.splitlines()
        made = cls(path, json.loads(first)["size"])
        for line in lines:
            made._take(json.loads(line))
        if len(whole) + 1 < len(content):
            with path.open("r+b") as file:
                file.truncate(len(whole) + 1)
        return made

    def __len__(self) -> int:
        return len(self._points)

    def put(self, points: Sequence[Mapping[str, Any]]) -> None:
        """Each with id, vector and payload; one with a known id replaces it. All or none."""
        rows = [self._checked(point) for point in points]
        self._change(rows)

    def delete(self, ids: Sequence[PointId]) -> None:
        self._change([{"deleted": one} for one in ids if one in self._points])

    def search(self, vector: Sequence[float], limit: int) -> list[Hit]:
        """The nearest, best first; of two as near the one with the smaller id."""
        if len(vector) != self.size:
            raise Unfit(f"the vector has {len(vector)} numbers, this collection's have {self.size}")
        length = _length(vector)
        with self._lock:
            points = list(self._points.items())
        hits = [Hit(id_, _cosine(vector, length, one), one.payload) for id_, one in points]
        return sorted(hits, key=lambda hit: (-hit.score, str(hit.id)))[:limit]

    def _checked(self, point: Mapping[str, Any]) -> dict[str, Any]:
        id_, vector = point.get("id"), point.get("vector")
        if isinstance(id_, bool) or not isinstance(id_, int | str):
            raise Unfit("a point's id is a number or a string")
        if not isinstance(vector, list) or len(vector) != self.size:
            raise Unfit(f"the vector of {id_} has to have {self.size} numbers")
        if not all(isinstance(value, int | float) and math.isfinite(value) for value in vector):
            raise Unfit(f"the vector of {id_} has something in it that is no number")
        return {"id": id_, "vector": vector, "payload": dict(point.get("payload") or {})}

    def _change(self, rows: Sequence[Mapping[str, Any]]) -> None:
        with self._lock:
            _write(self._path, "a", rows)
            for row in rows:
                self._take(row)

    def _take(self, row: Mapping[str, Any]) -> None:
        if "deleted" in row:
            self._points.pop(row["deleted"], None)
            return
        vector = tuple(float(value) for value in row["vector"])
        self._points[row["id"]] = _Point(vector, _length(vector), row["payload"])


class Store:
    """All collections of a folder, read when it starts."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        found = sorted(folder.glob("*.jsonl"))
        self._collections = {path.stem: Collection.load(path) for path in found}
        self._lock = threading.Lock()

    def names(self) -> list[str]:
        return sorted(self._collections)

    def find(self, name: str) -> Collection | None:
        return self._collections.get(name)

    def ensure(self, name: str, size: int) -> Collection:
        """The collection, made if it is not there; Unfit where it has another size."""
        if not re.fullmatch(r"[a-z0-9][-_a-z0-9]{0,62}", name) or not 1 <= size <= 65_536:
            raise Unfit("a collection has a name of a-z, 0-9, - and _, and a size up to 65536")
        with self._lock:
            found = self._collections.get(name)
            if found is None:
                found = Collection.create(self._folder / f"{name}.jsonl", size)
                self._collections[name] = found
        if found.size != size:
            raise Unfit(f"{name} is there, with vectors of {found.size} numbers")
        return found


def _write(path: Path, mode: str, rows: Sequence[Mapping[str, Any]]) -> None:
    with path.open(mode, encoding="utf-8") as file:
        file.write("".join(json.dumps(row) + "\n" for row in rows))
        file.flush()
        os.fsync(file.fileno())


def _length(vector: Sequence[float]) -> float:
    return math.sqrt(sum(value * value for value in vector))


def _cosine(vector: Sequence[float], length: float, point: _Point) -> float:
    if not length or not point.length:
        return 0.0
    product = sum(mine * other for mine, other in zip(vector, point.vector, strict=True))
    return product / (length * point.length)
