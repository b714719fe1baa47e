"""A state repo in memory: a remote that takes commits, and a StateSource that fetches from it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

from reconciler.core.names import Revision
from reconciler.core.source import FileKind, Snapshot, SourceFile
from reconciler.errors import GpuaasError, Refused, Transient

Entry = bytes | tuple[FileKind, str]
"""The content of a file, or ("symlink", target) or ("submodule", commit)."""


@dataclass(frozen=True)
class _Commit:
    snapshot: Snapshot
    parent: Revision | None


@dataclass
class FakeRemote:
    """Where commits are pushed to. `failure`, when set, is what every fetch raises."""

    file_bytes_max: int = 1024 * 1024
    files_max: int = 200_000
    commits: dict[Revision, _Commit] = field(default_factory=dict)
    branches: dict[str, Revision] = field(default_factory=dict)
    failure: GpuaasError | None = None

    def push(
        self, files: Mapping[str, Entry], subject: str = "change", branch: str = "main"
    ) -> Revision:
        """Commits exactly `files` on top of the branch."""
        return self._commit(files, subject, branch, self.branches.get(branch))

    def force_push(self, files: Mapping[str, Entry], subject: str = "rewritten") -> Revision:
        """Replaces the branch by one commit without a parent."""
        return self._commit(files, subject, "main", None)

    def delete_branch(self, branch: str) -> None:
        del self.branches[branch]

    def _commit(
        self, files: Mapping[str, Entry], subject: str, branch: str, parent: Revision | None
    ) -> Revision:
        listed = tuple(self._file(path, files[path]) for path in sorted(files))
        text = repr((parent, subject, [(file.path, file.kind, file.blob_id) for file in listed]))
        revision = Revision(hashlib.sha1(text.encode()).hexdigest())
        author = "Ada <ada@example.com>"
        snapshot = Snapshot(revision, listed, author, subject, 1_700_000_000_000)
        self.commits[revision] = _Commit(snapshot, parent)
        self.branches[branch] = revision
        return revision

    def _file(self, path: str, entry: Entry) -> SourceFile:
        if isinstance(entry, tuple):
            kind, target = entry
            blob_id = target if kind == "submodule" else _blob_id(target.encode())
            return SourceFile(path, blob_id, b"", kind)
        if not path.endswith((".yaml", ".yml")):
            return SourceFile(path, _blob_id(entry), b"")
        if len(entry) > self.file_bytes_max:
            return SourceFile(path, _blob_id(entry), b"", "too_large")
        return SourceFile(path, _blob_id(entry), entry)


class FakeStateSource:
    """Fetches a branch of a FakeRemote; what was fetched once stays readable."""

    def __init__(self, remote: FakeRemote, branch: str = "main") -> None:
        self._remote = remote
        self._branch = branch
        self._head: Revision | None = None
        self._held: dict[Revision, _Commit] = {}

    def fetch(self) -> Revision:
        if self._remote.failure is not None:
            raise self._remote.failure
        if self._branch not in self._remote.branches:
            raise Refused(
                "git_branch_missing", "the repository has no such branch", where="fake"
            )
        self._head = self._remote.branches[self._branch]
        self._hold(self._head)
        return self._head

    def _hold(self, head: Revision) -> None:
        step: Revision | None = head
        while step is not None:
            self._held[step] = self._remote.commits[step]
            step = self._held[step].parent

    def head(self) -> Revision:
        if self._head is None:
            raise Transient("git_not_fetched", "nothing was fetched yet", where="fake")
        return self._head

    def find(self, ref: str) -> Revision:
        if self._remote.failure is not None:
            raise self._remote.failure
        found = self._remote.branches.get(ref.removeprefix("origin/"))
        if found is None:
            return self.resolve(ref)
        self._hold(found)
        return found

    def resolve(self, ref: str) -> Revision:
        if ref in ("HEAD", self._branch):
            return self.head()
        found = [revision for revision in self._held if len(ref) > 3 and revision.startswith(ref)]
        if len(found) != 1:
            raise Refused("unknown_revision", f"no such commit here: {ref[:80]!r}")
        return found[0]

    def snapshot(self, revision: Revision) -> Snapshot:
        snapshot = self._commit(revision).snapshot
        if len(snapshot.files) > self._remote.files_max:
            raise Refused("too_many_files", f"more than {self._remote.files_max} files")
        return snapshot

    def is_ancestor(self, ancestor: Revision, descendant: Revision) -> bool:
        self._commit(descendant)
        step: Revision | None = descendant
        while step is not None and step != ancestor:
            step = self._held[step].parent
        return step is not None

    def commits_since(self, since: Revision, head: Revision, most: int) -> int:
        self._commit(head)
        known = self._line(since)
        newer = self._line(head) - known
        return min(len(newer), most) if known else most

    def _line(self, revision: Revision) -> set[Revision]:
        found: set[Revision] = set()
        step: Revision | None = revision
        while step in self._held:
            found.add(step)
            step = self._held[step].parent
        return found

    def _commit(self, revision: Revision) -> _Commit:
        if revision not in self._held:
            raise Refused("unknown_revision", f"no such commit here: {revision[:80]!r}")
        return self._held[revision]


def _blob_id(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
