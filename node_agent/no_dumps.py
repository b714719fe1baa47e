"""Keeps what is in memory out of crash dumps, for the programs that hold keys and secrets."""

from __future__ import annotations

import ctypes
import sys

_PR_SET_DUMPABLE = 4


def keep_out_of_dumps() -> bool:
    """From now on the kernel writes no core of this process, whatever killed it, and lets no other
    process of its user read its memory. What it starts is as dumpable as ever. False where the
    system can't do that.
    """
    if not sys.platform.startswith("linux"):
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    return int(libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)) == 0
