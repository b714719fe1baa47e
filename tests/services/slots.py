"""A folder for the services of one test session, which finds what a killed session left in it.

Sessions that run side by side each lock a slot of their own; the lock goes with the process, so the
next session takes over the slot of one that was killed, and ends its services first.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from reconciler.devkit.services import stop_leftovers

SLOTS_MAX = 16


@contextmanager
def service_slot() -> Iterator[Path]:
    """Yields an empty folder with a short path; ends what still runs in it, before and after."""
    base = _own_folder(Path(tempfile.gettempdir()) / f"gpuaas-tests-{os.getuid()}")
    for number in range(SLOTS_MAX):
        lock = os.open(base / f"{number}.lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            continue
        try:
            yield _emptied(base / str(number))
        finally:
            _emptied(base / str(number)).rmdir()
            os.close(lock)
        return
    raise RuntimeError(f"{SLOTS_MAX} test sessions are running already, see {base}")


def _own_folder(path: Path) -> Path:
    path.mkdir(mode=0o700, exist_ok=True)
    if path.lstat().st_uid != os.getuid() or path.is_symlink():
        raise RuntimeError(f"{path} belongs to somebody else")
    return path


def _emptied(slot: Path) -> Path:
    if slot.exists():
        for root in sorted(slot.iterdir()):
            stop_leftovers(root)
        shutil.rmtree(slot)
    slot.mkdir(mode=0o700)
    return slot
