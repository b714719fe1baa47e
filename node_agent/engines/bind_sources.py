"""Whether what is to be mounted from the host is what the agent put there, and no way elsewhere.

Rules:
- Asked right before each start: Docker mounts what a link points to, whatever that is by then.
- What it is and the folder it is in are the agent's own, and nobody else can write to that folder.
  So between the look and the mount nobody but root can put another thing in its place.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from node_agent.engines.base import EngineFailure
from node_agent.wire import SECRETS_PATH, FailureReason


def check_bind_sources(document: Mapping[str, Any]) -> None:
    """Of a `compose_file`. Raises EngineFailure SECRET_UNAVAILABLE or BLOB_UNAVAILABLE."""
    for source, target in _binds(document):
        secrets = target == SECRETS_PATH
        wrong = _wrong(Path(source), stat.S_ISDIR if secrets else stat.S_ISREG)
        if wrong:
            of_blob, of_secret = FailureReason.BLOB_UNAVAILABLE, FailureReason.SECRET_UNAVAILABLE
            raise EngineFailure(of_secret if secrets else of_blob, wrong, transient=True)


def _binds(document: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for _, service in sorted(document["services"].items()):
        for mount in service.get("volumes", ()):
            if mount["type"] == "bind":
                yield mount["source"], mount["target"]


def _wrong(path: Path, is_kind: Callable[[int], bool]) -> str:
    """Empty when nothing is."""
    try:
        there, above = path.lstat(), path.parent.lstat()
    except OSError as error:
        return f"{path} can't be mounted ({error.strerror})"
    if stat.S_ISLNK(there.st_mode) or stat.S_ISLNK(above.st_mode):
        return f"{path} can't be mounted: it is a link, or in a folder that is one"
    if not is_kind(there.st_mode) or there.st_uid != os.geteuid():
        return f"{path} can't be mounted: it is not as this agent made it"
    if above.st_uid != os.geteuid() or above.st_mode & 0o022:
        return f"{path} can't be mounted: others can write to the folder it is in"
    return ""
