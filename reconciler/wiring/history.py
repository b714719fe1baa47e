"""The commits of the state repo as a process finds them, and the way to add one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from reconciler.adapters.git_branch import commit_on_branch, remotes
from reconciler.adapters.git_history import GitHistory
from reconciler.ports import Ports
from reconciler.settings import Settings
from reconciler.wiring.ports import open_ports


def local_history(path: Path, settings: Settings) -> GitHistory:
    """The commits of the repository that `path` lies in."""
    return GitHistory.local(path, settings)


def mirrored_history(settings: Settings) -> GitHistory:
    """The commits that the control plane fetched."""
    folder = settings.state_dir / "mirror.git"
    return GitHistory(folder, f"refs/heads/{settings.branch}", settings)


@contextmanager
def ports_if_any(settings: Settings, *, wanted: bool) -> Iterator[Ports | None]:
    """The services of the control plane that keeps its state here; None when none does, or
    another user's does.

    `wanted`: refused instead.
    """
    # Who merely reads history may well not be the user that the control plane runs as.
    if not wanted and not os.access(settings.state_dir / "store.db", os.R_OK | os.W_OK):
        yield None
        return
    with open_ports(settings, make=False) as ports:
        yield ports


__all__ = ["commit_on_branch", "local_history", "mirrored_history", "ports_if_any", "remotes"]
