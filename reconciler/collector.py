"""Keeps Python's cyclic garbage collector from walking what a load makes, again and again.

Reading a revision makes a great many objects that stay and hardly a cycle; the collector looks at
all of them each time their number has grown by some share, which takes up to half of the time.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_collector() -> Iterator[None]:
    """Also a decorator. Reference counting goes on; cycles wait until the end, and a while longer:
    what is there then counts as old, so that the collector does not begin with walking it all.
    """
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            # Freezing and unfreezing moves everything to the oldest generation, unlooked at.
            gc.freeze()
            gc.unfreeze()
            gc.enable()
