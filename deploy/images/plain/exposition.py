"""Counters, gauges and histograms in Prometheus' text format, without its client library."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Literal

Labels = tuple[tuple[str, str], ...]
Kind = Literal["counter", "gauge", "histogram"]


class Metric:
    """One family. `labels` come in the order of their names."""

    def __init__(
        self, kind: Kind, name: str, help_text: str, buckets: Sequence[float] = ()
    ) -> None:
        self.kind, self.name, self.help_text = kind, name, help_text
        self._buckets = tuple(sorted(buckets))
        self._values: dict[Labels, float] = {}
        self._counts: dict[Labels, list[int]] = {}
        self._lock = threading.Lock()

    def add(self, value: float = 1, **labels: str) -> None:
        """Of a counter or gauge."""
        with self._lock:
            key = tuple(sorted(labels.items()))
            self._values[key] = self._values.get(key, 0) + value

    def set(self, value: float, **labels: str) -> None:
        """Of a gauge."""
        with self._lock:
            self._values[tuple(sorted(labels.items()))] = value

    def observe(self, value: float, **labels: str) -> None:
        """Of a histogram."""
        with self._lock:
            key = tuple(sorted(labels.items()))
            counts = self._counts.setdefault(key, [0] * (len(self._buckets) + 1))
            place = next((i for i, top in enumerate(self._buckets) if value <= top), -1)
            counts[place] += 1
            self._values[key] = self._values.get(key, 0) + value

    def lines(self) -> list[str]:
        with self._lock:
            told = [f"# HELP {self.name} {self.help_text}", f"# TYPE {self.name} {self.kind}"]
            for labels, value in sorted(self._values.items()):
                if self.kind == "histogram":
                    told += self._histogram(labels, value)
                else:
                    told.append(_sample(self.name, labels, value))
            return told

    def _histogram(self, labels: Labels, total: float) -> list[str]:
        told, below = [], 0
        tops = [*(repr(float(top)) for top in self._buckets), "+Inf"]
        for top, count in zip(tops, self._counts[labels], strict=True):
            below += count
            told.append(_sample(f"{self.name}_bucket", (*labels, ("le", top)), below))
        told.append(_sample(f"{self.name}_count", labels, below))
        told.append(_sample(f"{self.name}_sum", labels, total))
        return told


def render(metrics: Sequence[Metric]) -> bytes:
    """The whole page."""
    return "".join(f"{line}\n" for metric in metrics for line in metric.lines()).encode()


def _sample(name: str, labels: Labels, value: float) -> str:
    inside = ",".join(f'{label}="{_escaped(text)}"' for label, text in labels)
    return f"{name}{{{inside}}} {float(value)}" if inside else f"{name} {float(value)}"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
