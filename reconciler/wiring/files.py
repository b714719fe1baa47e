"""What a check of files needs, and nothing that takes long to import."""

from __future__ import annotations

from pathlib import Path

from reconciler.adapters.git_pygit2 import GitSource
from reconciler.adapters.schema_files import load_schemas
from reconciler.adapters.working_tree import snapshot_of_directory
from reconciler.core.schema import SchemaSet
from reconciler.core.source import Snapshot
from reconciler.settings import Settings


def schema_set() -> SchemaSet:
    """The published schemas, compiled."""
    return SchemaSet.build(load_schemas())


def read_local(path: Path, ref: str | None, settings: Settings) -> Snapshot:
    """A folder as it is, or a commit of the repository there."""
    if ref is None:
        return snapshot_of_directory(path, settings)
    reader = GitSource.local(path, settings)
    return reader.snapshot(reader.resolve(ref))
