"""A bare repository that tests push to: commits are built in memory, no work tree is involved."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pygit2
from pygit2.enums import FileMode

from reconciler.core.names import Revision


@dataclass(frozen=True)
class Symlink:
    target: str


@dataclass(frozen=True)
class Submodule:
    commit: str = "1" * 40


Content = bytes | Symlink | Submodule
Files = Mapping[str, Content]


class GitUpstream:
    """A remote seen from the side of those who push to it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._repository = pygit2.init_repository(str(path), bare=True, initial_head="main")

    def push(self, files: Files, subject: str = "change", branch: str = "main") -> Revision:
        """Commits exactly `files` on top of the branch."""
        reference = self._repository.references.get(f"refs/heads/{branch}")
        return self._commit(files, subject, branch, [] if reference is None else [reference.target])

    def force_push(self, files: Files, subject: str = "rewritten") -> Revision:
        """Replaces the branch by one commit without a parent."""
        self.delete_branch("main")
        return self._commit(files, subject, "main", [])

    def delete_branch(self, branch: str) -> None:
        self._repository.references.delete(f"refs/heads/{branch}")

    def _commit(
        self, files: Files, subject: str, branch: str, parents: list[pygit2.Oid | str]
    ) -> Revision:
        index = pygit2.Index()
        for path, content in files.items():
            index.add(self._entry(path, content))
        author = pygit2.Signature("Ada", "ada@example.com", 1_700_000_000, 0)
        commit = self._repository.create_commit(
            f"refs/heads/{branch}",
            author,
            author,
            f"{subject}\n\nbody\n",
            index.write_tree(self._repository),
            parents,
        )
        return Revision(str(commit))

    def _entry(self, path: str, content: Content) -> pygit2.IndexEntry:
        if isinstance(content, Submodule):
            return pygit2.IndexEntry(path, pygit2.Oid(hex=content.commit), FileMode.COMMIT)
        if isinstance(content, Symlink):
            blob = self._repository.create_blob(content.target.encode())
            return pygit2.IndexEntry(path, blob, FileMode.LINK)
        return pygit2.IndexEntry(path, self._repository.create_blob(content), FileMode.BLOB)
