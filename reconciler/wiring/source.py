"""The state repo of one process, and a commit of it that a second process reads and parses.

Rules: loads Git and the settings, and nothing else that takes long; see `wiring.ahead`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reconciler.adapters.tree_limits import TreeLimits
from reconciler.core.names import Revision
from reconciler.core.source import Snapshot, SourceFile
from reconciler.errors import Refused
from reconciler.wiring.ahead import Ahead

if TYPE_CHECKING:
    from reconciler.adapters.git_pygit2 import GitSource
    from reconciler.settings import Settings

_MIRROR = "mirror.git"


@dataclass(frozen=True)
class Committed:
    """A revision to plan, and the head of its branch. Who has `ahead` reads and parses it."""

    source: GitSource
    head: Revision
    revision: Revision
    ahead: Ahead | None

    def snapshot(self) -> Snapshot:
        """As `StateSource.snapshot`."""
        files = self.ahead.files() if self.ahead is not None else None
        return self.source.snapshot(self.revision, files)


def commit_to_plan(settings: Settings, ref: str | None, ahead: Ahead | None) -> Committed:
    """Fetches; `ref` None: the head. Has the files of the revision parsed by `ahead`, which was
    begun with `committed_files`.
    """
    source = git_source(settings)
    head = source.fetch()
    revision = source.find(ref) if ref else head
    if ahead is not None:
        limits = astuple(TreeLimits.of(settings))
        ahead.ask(settings, (str(mirror_dir(settings)), str(revision), limits))
    return Committed(source, head, revision, ahead)


def committed_files(question: Any) -> Sequence[SourceFile]:
    """In the second process: the files of a commit, by the mirror's folder, its id and the limits.

    None is asked first, so that the library is loaded by the time there is a question.
    """
    from reconciler.adapters.git_pygit2 import GitReader  # noqa: PLC0415

    if question is None:
        return ()
    folder, revision, limits = question
    reader = GitReader(Path(folder), "HEAD", TreeLimits(*limits))
    return reader.snapshot(Revision(revision)).files


def git_source(settings: Settings) -> GitSource:
    """The branch that is the record, mirrored in the state directory, which is made if missing."""
    from reconciler.adapters.git_pygit2 import GitSource  # noqa: PLC0415 - see above

    state_dir(settings)
    return GitSource(settings.repo, settings.branch, mirror_dir(settings), settings)


def mirror_dir(settings: Settings) -> Path:
    return settings.state_dir / _MIRROR


def state_dir(settings: Settings) -> Path:
    """The folder of this process's state, made if missing; Refused where that can't be."""
    folder = settings.state_dir
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise Refused(
            "state_dir",
            f"cannot make the state directory: {error.strerror}",
            where=str(folder),
            hint="pass --state-dir with a folder you may write to",
        ) from None
    return folder
