"""The console of every command."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from reconciler.core.printable import printable


class Terminal(Console):
    """A console for text that others wrote: with `markup=False` it is one line, shown as it is."""

    def print(self, *objects: Any, markup: bool | None = None, **options: Any) -> None:
        if markup is False:
            # Rich would make a picture of what stands between two colons.
            options.setdefault("emoji", False)
            objects = tuple(printable(o) if isinstance(o, str) else o for o in objects)
        super().print(*objects, markup=markup, **options)
