"""The file beside another that its new content is gathered in.

Rules: its name is known before it is there, so that who may write in the folder could lead it
elsewhere: no link is followed. Nobody else reads it.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

from reconciler.errors import Refused

_FLAGS = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def open_part(place: Path, buffering: int = 0) -> BinaryIO:
    """At its beginning, with what is there already. Refused("not_written")."""
    try:
        handle = os.open(place, _FLAGS, 0o600)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise _no_file(place, "it is a symbolic link, which is not followed") from None
        raise Refused("not_written", f"{error.strerror}", where=str(place)) from None
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise _no_file(place, "it is no regular file")
    return os.fdopen(handle, "r+b", buffering)


def _no_file(place: Path, message: str) -> Refused:
    hint = "see who put it there, remove it, and try again"
    return Refused("not_written", message, where=str(place), hint=hint)
