"""Which commits changed an object or a file, read with pygit2.

Rules: as `git log -- PATH` simplifies it: where a merge has what one of its parents has, only that
parent is followed. Only the one folder is looked into that can hold the object, and nothing in it
is read twice: what two commits share is compared by its id. None of pygit2's types leaves.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import pygit2

from reconciler.adapters.git_pygit2 import GitReader
from reconciler.adapters.tree_limits import Budget
from reconciler.core.changes import field_changes
from reconciler.core.history import Commit, Form, History, Step, document_in, folder_of
from reconciler.core.kinds import KINDS
from reconciler.core.names import ObjectRef, Revision
from reconciler.errors import GpuaasError, Refused
from reconciler.settings import Settings

_TEXT_LENGTH_MAX = 200
_TREE = 0o040000
_BLOBS = (0o100644, 0o100755, 0o100664)
_SIGNATURES = (b"\ngpgsig ", b"\ngpgsig-sha256 ")


class GitHistory(GitReader):
    """The history of a repository, from its head or any commit of it."""

    @staticmethod
    def local(path: Path, settings: Settings) -> GitHistory:
        """That of the repository `path` lies in, from its HEAD."""
        try:
            folder = pygit2.discover_repository(str(path))
        except (KeyError, ValueError, OSError, pygit2.GitError):
            folder = None
        if folder is None:
            raise Refused("not_a_repository", "there is no Git repository", where=str(path))
        return GitHistory(Path(folder), "HEAD", settings)

    def log(
        self,
        target: ObjectRef | str,
        start: Revision,
        limit: int,
        until: Callable[[Step], bool] = lambda _: False,
    ) -> History:
        """Commits that changed an object, or the file at that path, newest first.

        At most `limit`, and none after the one of which `until` is true.
        """
        with self._reading() as repository:
            commit = self._commit(repository, start)
            walk = _Walk(repository, self._view(repository, target))
            steps: list[Step] = []
            for step in walk.steps(commit):
                if len(steps) == limit:
                    return History(tuple(steps), "limit")
                steps.append(step)
                if until(step):
                    return History(tuple(steps), "limit")
            if walk.shallow_end is not None:
                return History(tuple(steps), "shallow", walk.shallow_end)
            return History(tuple(steps), "root")

    def form(self, ref: ObjectRef, revision: Revision) -> Form | None:
        """The object as a commit has it; None when it is not there."""
        with self._reading() as repository:
            view = _Objects(repository, ref, self._settings)
            return view.form(self._commit(repository, revision))

    def commit(self, revision: Revision) -> Commit:
        """What a commit says of itself; Refused when it is not here."""
        with self._reading() as repository:
            return _described(self._commit(repository, revision))

    def content(self, revision: Revision, path: str) -> bytes | None:
        """A file of a commit, as it is stored; None when there is no file at that path."""
        with self._reading() as repository:
            tree_id = self._commit(repository, revision).tree_id
            found = _Trees(repository).find(tree_id, tuple(path.split("/")))
            blob = repository.get(found[0]) if found and found[1] in _BLOBS else None
            return bytes(blob.data) if isinstance(blob, pygit2.Blob) else None

    def paths(self, revision: Revision) -> tuple[str, ...]:
        """Every file of a commit, sorted; Refused beyond the limits of a state repo."""
        with self._reading() as repository:
            tree = self._commit(repository, revision).tree
            return tuple(sorted(_paths(tree, "", 0, Budget(self._settings, revision))))

    def _view(self, repository: Any, target: ObjectRef | str) -> _Files | _Objects:
        if isinstance(target, str):
            return _Files(repository, target)
        return _Objects(repository, target, self._settings)

    def __init__(self, folder: Path, ref: str, settings: Settings) -> None:
        super().__init__(folder, ref, settings)
        self._settings = settings

    def _damaged(self, said: str) -> GpuaasError:
        if "object format" not in said:
            return super()._damaged(said)
        return Refused(
            "git_object_format",
            "the repository names its objects by SHA-256, which cannot be read yet",
            where=str(self._folder),
            hint="use a repository of Git's default object format, SHA-1",
        )


class _Walk:
    """One walk back through history. `shallow_end` is where a shallow clone cut it off."""

    def __init__(self, repository: Any, view: _Files | _Objects) -> None:
        self._repository = repository
        self._view = view
        self._is_shallow = repository.is_shallow
        self.shallow_end: Revision | None = None

    def steps(self, start: Any) -> Iterator[Step]:
        """Newest first by the time of the commit, as `git log` has it."""
        queue: list[tuple[int, int, Any]] = [(-start.commit_time, 0, start)]
        seen = {start.id}
        while queue:
            _, _, commit = heapq.heappop(queue)
            follow = list(commit.parents)
            step = self._step(commit, follow)
            if isinstance(step, Step):
                yield step
            elif step is not None:
                follow = [step]
            for parent in follow:
                if parent.id not in seen:
                    seen.add(parent.id)
                    heapq.heappush(queue, (-parent.commit_time, len(seen), parent))

    def _step(self, commit: Any, parents: list[Any]) -> Step | Any | None:
        """What the commit did; else the parent that has the same; None at an end."""
        after = self._view.form(commit)
        if not parents and self._cut_off(commit):
            self.shallow_end = self.shallow_end or Revision(str(commit.id))
            return None
        first: Form | None = None
        for number, parent in enumerate(parents):
            before = self._view.form(parent)
            if _same(before, after):
                return parent
            first = first if number else before
        if after is None and not parents:
            return None
        whose = Revision(str(parents[0].id)) if parents else None
        return Step(_described(commit), first, after, self._view.ref, whose)

    def _cut_off(self, commit: Any) -> bool:
        return self._is_shallow and b"\nparent " in commit.read_raw().partition(b"\n\n")[0]


class _Trees:
    """Looks names up in trees. What a tree holds never changes, so each question is asked once.

    Only ids are kept: a folder of thousands of files is some hundred kilobytes in each commit.
    """

    def __init__(self, repository: Any) -> None:
        self._repository = repository
        self._known: dict[tuple[Any, str], tuple[Any, int] | None] = {}

    def find(self, tree_id: Any, names: tuple[str, ...]) -> tuple[Any, int] | None:
        """(id, file mode) of what stands at that place; None when nothing does."""
        found: tuple[Any, int] | None = (tree_id, _TREE)
        for name in names:
            if found is None or found[1] != _TREE:
                return None
            key = (found[0], name)
            if key not in self._known:
                self._known[key] = self._child(*key)
            found = self._known[key]
        return found

    def _child(self, tree_id: Any, name: str) -> tuple[Any, int] | None:
        tree = self._repository[tree_id]
        if name not in tree:
            return None
        entry = tree[name]
        return entry.id, entry.filemode


class _Files:
    """The form of a file: its content, unread."""

    ref: ObjectRef | None = None

    def __init__(self, repository: Any, path: str) -> None:
        self._path = path
        self._names = tuple(path.split("/"))
        self._trees = _Trees(repository)

    def form(self, commit: Any) -> Form | None:
        found = self._trees.find(commit.tree_id, self._names)
        return None if found is None else Form(self._path, str(found[0]), None)


class _Objects:
    """The form of an object: its document, in whichever file of its folder it stands."""

    def __init__(self, repository: Any, ref: ObjectRef, settings: Settings) -> None:
        self.ref: ObjectRef | None = ref
        self._object = ref
        self._repository = repository
        self._settings = settings
        self._folder = folder_of(ref)
        self._names = tuple(self._folder.split("/"))
        self._pattern = KINDS[ref.kind].pattern
        self._file = KINDS[ref.kind].path_of(ref.path).rpartition("/")[2]
        self._last = self._file
        self._trees = _Trees(repository)
        self._forms: dict[Any, Form | None] = {}
        self._read: dict[tuple[Any, str], Form | None] = {}
        self._without: Any = None

    def form(self, commit: Any) -> Form | None:
        found = self._trees.find(commit.tree_id, self._names)
        if found is None or found[1] != _TREE:
            return None
        if found[0] not in self._forms:
            self._forms[found[0]] = self._found(self._repository[found[0]])
        return self._forms[found[0]]

    def _found(self, folder: Any) -> Form | None:
        """Looked for where it was last, then by its name, then everywhere."""
        unreadable: Form | None = None
        likely = (name for name in dict.fromkeys((self._last, self._file)) if name in folder)
        for name, entry in chain(((name, folder[name]) for name in likely), self._others(folder)):
            form = self._in(entry, name)
            if form is not None and form.document is not None:
                self._last = name
                return form
            unreadable = unreadable or form
        if unreadable is None:
            self._without = folder
        return unreadable

    def _others(self, folder: Any) -> Iterator[tuple[str, Any]]:
        """Files it may be in: all, or those that differ from a folder known to be without it."""
        if self._without is None:
            yield from ((_name(entry.raw_name), entry) for entry in folder)
            return
        for delta in self._without.diff_to_tree(folder).deltas:
            name = _name(delta.new_file.raw_path)
            if "/" not in name and name in folder:
                yield name, folder[name]

    def _in(self, entry: Any, name: str) -> Form | None:
        path = f"{self._folder}/{name}"
        if entry.filemode not in _BLOBS or not self._pattern.fullmatch(path):
            return None
        key = (entry.id, name)
        if key not in self._read:
            self._read[key] = self._parsed(entry, path)
        return self._read[key]

    def _parsed(self, entry: Any, path: str) -> Form | None:
        if entry.size > self._settings.file_bytes_max:
            return Form(path, str(entry.id), None)
        limits = self._settings.parse_limits
        found = document_in(self._object, path, bytes(entry.data), limits)
        if found is False:
            return None
        return Form(path, str(entry.id), None if found is True else found)


def _same(one: Form | None, other: Form | None) -> bool:
    if one is None or other is None:
        return one is other
    if one.content_id == other.content_id:
        return True
    if one.document is None or other.document is None:
        return False
    return not field_changes(one.document, other.document)


def _described(commit: Any) -> Commit:
    header = commit.read_raw().partition(b"\n\n")[0]
    author = commit.author
    return Commit(
        revision=Revision(str(commit.id)),
        parents=tuple(Revision(str(one)) for one in commit.parent_ids),
        author=f"{_text(author.raw_name)} <{_text(author.raw_email)}>",
        committed_at_ms=commit.commit_time * 1000,
        subject=_text(commit.raw_message.lstrip(b"\n").partition(b"\n")[0]),
        signed=any(mark in header for mark in _SIGNATURES),
    )


def _text(raw: bytes) -> str:
    """Text from a commit, without control characters that would play tricks on a terminal."""
    text = raw.decode("utf-8", "replace").strip()
    return "".join(c if c.isprintable() else " " for c in text)[:_TEXT_LENGTH_MAX]


def _name(raw: bytes) -> str:
    return raw.decode("utf-8", "backslashreplace")


def _paths(tree: Any, prefix: str, depth: int, budget: Budget) -> Iterator[str]:
    budget.descend(depth)
    for entry in tree:
        name = _name(entry.raw_name)
        if isinstance(entry, pygit2.Tree):
            yield from _paths(entry, f"{prefix}{name}/", depth + 1, budget)
        else:
            budget.take(1, 0)
            yield prefix + name
