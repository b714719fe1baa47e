"""What a check of files needs, and nothing that takes long to import.

Rules: the Git library is loaded by the first look into a repository.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from reconciler.adapters.schema_files import load_schemas
from reconciler.adapters.working_tree import snapshot_of, snapshot_of_directory
from reconciler.core.names import Revision
from reconciler.core.promotion_steps import COMMITS_MAX
from reconciler.core.schema import SchemaSet
from reconciler.core.source import Snapshot, SourceFile
from reconciler.errors import GpuaasError

if TYPE_CHECKING:
    from reconciler.adapters.git_pygit2 import GitReader
    from reconciler.settings import Settings


def schema_set() -> SchemaSet:
    """The published schemas, compiled."""
    return SchemaSet.build(load_schemas())


def read_local(path: Path, ref: str | None, settings: Settings) -> Snapshot:
    """A folder as it is, or as it is in a commit of the repository there."""
    if ref is None:
        return snapshot_of_directory(path, settings)
    reader = _repository(path, settings)
    return below(reader.snapshot(reader.resolve(ref)), reader.prefix_of(path))


def uncommitted(files: Iterable[SourceFile]) -> Snapshot:
    """Files of a folder, sorted by path, as `read_local` would hand them on."""
    return snapshot_of(files)


def read_base(path: Path, ref: str | None, base: str, settings: Settings) -> Snapshot:
    """The folder as it is where `ref` (None: HEAD) and `base` parted."""
    reader = _repository(path, settings)
    return below(reader.snapshot(reader.merge_base(ref or "HEAD", base)), reader.prefix_of(path))


def commits_since(path: Path, base: str, tip: str, settings: Settings) -> int:
    """How many commits `tip` has that `base` has not, as far as it matters."""
    reader = _repository(path, settings)
    return reader.commits_since(Revision(base), reader.resolve(tip), COMMITS_MAX)


def prefix_in_repository(path: Path, settings: Settings) -> str:
    """What a path below the folder begins with for whoever looks at the whole repository."""
    try:
        return _repository(path, settings).prefix_of(path)
    except GpuaasError:
        return ""


def _repository(path: Path, settings: Settings) -> GitReader:
    from reconciler.adapters.git_pygit2 import GitSource  # noqa: PLC0415

    return GitSource.local(path, settings)


def below(snapshot: Snapshot, prefix: str) -> Snapshot:
    """The files below a folder (`folder/`), as if it were the root."""
    if not prefix:
        return snapshot
    files = (
        replace(file, path=file.path.removeprefix(prefix))
        for file in snapshot.files
        if file.path.startswith(prefix)
    )
    return replace(snapshot, files=tuple(files))
