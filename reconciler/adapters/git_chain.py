"""The line of commits from one revision to another, and who signed them: a CommitLog.

Rules: what a commit says is read from its own bytes (`git_raw`), whether its signature holds is
what Git says (`git_signatures`). Steps are read when they are looked at, and kept up to a limit, so
that a long history needs little memory. None of pygit2's types leaves.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set, Sized
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, overload

from reconciler.adapters.git_fetch import mark_suspect
from reconciler.adapters.git_pygit2 import GitReader
from reconciler.adapters.git_raw import (
    Armor,
    Entry,
    RawCommit,
    armor_of,
    entry_kind,
    parents_of,
    path_name,
    read_commit,
)
from reconciler.adapters.git_signatures import SignatureMemory, verify
from reconciler.adapters.git_tree import read_blob, read_tree
from reconciler.adapters.tree_limits import DOCUMENT_SUFFIXES, Budget
from reconciler.core.authority.facts import (
    ChainStep,
    CommitFacts,
    FileForm,
    SideCommit,
    Signature,
    TouchedFile,
)
from reconciler.core.names import Revision
from reconciler.errors import GpuaasError, Refused, Transient
from reconciler.settings import Settings

COMMITS_MAX = 100_000
PARENTS_MAX = 16
TOUCHED_FILES_MAX = 2_000_000
TOUCHED_BYTES_MAX = 4 * 1024**3
_ENTRIES_READ_MAX = 2_000_000_000
_KEPT_BYTES_MAX = 64 * 1024 * 1024
_MEMORY = "signatures.v1.txt"
_REVISION = re.compile(r"[0-9a-f]{40}")
_COMMIT = 1
_LATER = "set trust_root to a later revision, which then counts as accepted"
_DEEPEN = 'git fetch --unshallow, or in CI fetch-depth: 0 (GitHub) or GIT_DEPTH: "0" (GitLab)'


class GitCommitLog(GitReader):
    """The commits of the mirror in the state folder, or of any repository here.

    Beside the mirror, and nowhere else, it keeps what is known of signatures.
    """

    def __init__(self, folder: Path, settings: Settings) -> None:
        super().__init__(folder, "HEAD", settings)
        self._settings = settings
        self._is_mirror = self._folder.parent == settings.state_dir.absolute()
        memory = self._folder.with_name(_MEMORY) if self._is_mirror else None
        self._memory = SignatureMemory(memory)

    def chain(self, since: Revision | None, head: Revision) -> Sequence[ChainStep]:
        """See `ports.CommitLog`. Each step is read when it is taken out, which may raise as well.

        Refused("history_incomplete") in a shallow clone, ("too_many_commits") beyond 100,000,
        ("history_too_large") where they touch more than can be looked at.
        """
        places = self._places(since, head)
        steps = _Steps(self._settings)

        def read(place: _Place) -> ChainStep:
            with self._reading() as repository:
                return steps.step(repository, place)

        return _Chain(places, read)

    def commits(self, since: Revision | None, head: Revision) -> Sequence[CommitFacts]:
        """See `ports.CommitLog`. Refused as `chain` is."""
        places = self._places(since, head)
        steps = _Steps(self._settings)
        with self._reading() as repository:
            return [
                steps.facts(repository, revision)
                for place in places
                for revision in (*place.side, place.revision)
            ]

    def _places(self, since: Revision | None, head: Revision) -> tuple[_Place, ...]:
        with self._reading() as repository:
            newest = Revision(str(self._commit(repository, head).id))
            if newest == since:
                return ()
            self._refuse_incomplete(repository)
            if since is not None and not _is_commit(repository, since):
                raise _rewritten(since, "is not in the repository any more")
            return _line(repository, since, newest)

    def signatures(
        self, revisions: Sequence[Revision], openpgp_keys: Sequence[str]
    ) -> Mapping[Revision, Signature]:
        """See `ports.CommitLog`.

        Refused("signature_program_missing") without ssh-keygen or gpg, where they are needed;
        ("too_many_openpgp_keys") where gpg can't be given them all.
        """
        found = self._memory.known(revisions)
        armors: dict[Revision, Armor] = {}
        with self._reading() as repository:
            folder = _common_folder(Path(repository.path)) / "objects"
            for revision in dict.fromkeys(revisions):
                if revision not in found:
                    sorted_out = self._sorted_out(repository, revision)
                    if isinstance(sorted_out, Signature):
                        found[revision] = sorted_out
                    else:
                        armors[revision] = sorted_out
        verified = verify(folder, armors, openpgp_keys)
        self._memory.remember({one: said for one, said in verified.items() if said.lasts})
        return found | {one: said.signature for one, said in verified.items()}

    def _sorted_out(self, repository: Any, revision: Revision) -> Armor | Signature:
        if not _is_commit(repository, revision):
            self._commit(repository, revision)
        size_bytes = repository.odb.read_header(revision)[1]
        if size_bytes > self._settings.commit_bytes_max:
            return Signature("too_large", detail=f"the commit has {size_bytes} bytes")
        return armor_of(repository.read(revision)[1])

    def _refuse_incomplete(self, repository: Any) -> None:
        """What stands in these files would have commits seem to have other parents."""
        folder = _common_folder(Path(repository.path))
        for name, why, hint in (
            ("shallow", "the clone is shallow", _DEEPEN),
            ("info/grafts", "the repository has grafts", f"remove {folder}/info/grafts"),
        ):
            if (folder / name).exists():
                raise Refused(
                    "history_incomplete",
                    f"{why}, so its commits can't all be looked at",
                    where=str(self._folder),
                    hint=hint,
                )

    def _damaged(self, said: str) -> GpuaasError:
        if not self._is_mirror:
            return super()._damaged(said)
        mark_suspect(self._folder)
        return Transient(
            "git_mirror_damaged",
            f"the mirror cannot be read ({said})",
            where=str(self._folder),
            hint="the next fetch clones it again",
        )


@dataclass(frozen=True)
class _Place:
    """A commit of the line, the one it is judged against, and what it brings in beside."""

    revision: Revision
    onto: Revision | None
    side: tuple[Revision, ...]


def _line(repository: Any, since: Revision | None, head: Revision) -> tuple[_Place, ...]:
    """Oldest first. Whatever `since` was built on was accepted with it, and is left out.

    No date is believed, nor a library that believes them: whoever makes a commit chooses its date.
    """
    parents = None if since is None else _straight(repository, since, head)
    if parents is None:
        accepted = set[Revision]() if since is None else _ancestry(repository, since)
        parents = _leading_to(repository, head, accepted)
    path = list(_path(parents, since, head))
    path.reverse()
    return tuple(_places(path, parents))


def _straight(
    repository: Any, since: Revision, head: Revision
) -> dict[Revision, tuple[Revision, ...]] | None:
    """As `_leading_to`, where no merge lies between: then nobody has to look behind `since`."""
    found: dict[Revision, tuple[Revision, ...]] = {}
    at = head
    while at != since:
        parents = _parents(repository, at)
        if len(parents) != 1:
            return None
        found[at] = parents
        _refuse_many(found, head)
        at = parents[0]
    return dict(reversed(found.items()))


def _ancestry(repository: Any, since: Revision) -> set[Revision]:
    """`since` and everything that it was built on."""
    found = {since}
    queue = [since]
    while queue:
        for parent in _parents(repository, queue.pop()):
            if parent not in found:
                found.add(parent)
                queue.append(parent)
    return found


def _leading_to(
    repository: Any, head: Revision, accepted: Set[Revision]
) -> dict[Revision, tuple[Revision, ...]]:
    """Commits that `head` was built on, and itself, with their parents; each after its parents."""
    read: dict[Revision, tuple[Revision, ...]] = {}
    found: dict[Revision, tuple[Revision, ...]] = {}
    stack = [] if head in accepted else [head]
    while stack:
        at = stack[-1]
        if at in read:
            found.setdefault(stack.pop(), read[at])
            continue
        read[at] = _parents(repository, at)
        _refuse_many(read, head)
        if len(read[at]) > PARENTS_MAX:
            raise _too_large(f"the merge {at[:12]} has more than {PARENTS_MAX} parents")
        # The first parent is on top, so that what it was built on comes before the others.
        stack += [one for one in reversed(read[at]) if one not in read and one not in accepted]
    return found


def _parents(repository: Any, revision: Revision) -> tuple[Revision, ...]:
    kind, raw = repository.read(revision)
    if kind != _COMMIT:
        raise ValueError(f"{revision} is not a commit")
    return parents_of(raw)


def _refuse_many(found: Sized, head: Revision) -> None:
    if len(found) > COMMITS_MAX:
        raise Refused(
            "too_many_commits", f"more than {COMMITS_MAX} commits lead to {head[:12]}", hint=_LATER
        )


def _path(
    parents: Mapping[Revision, tuple[Revision, ...]], since: Revision | None, head: Revision
) -> Iterator[tuple[Revision, Revision | None]]:
    """(commit, the parent it is judged against), newest first. `parents` has the oldest first."""
    built_on: set[Revision] = set(parents) if since is None else {since}
    if since is not None:
        for revision, those in parents.items():
            if not built_on.isdisjoint(those):
                built_on.add(revision)
    if head not in built_on:
        raise _rewritten(since, "is not among the commits that the head was built on")
    at: Revision | None = head
    while at is not None and at != since:
        onto = next((parent for parent in parents[at] if parent in built_on), None)
        yield at, onto
        at = onto


def _places(
    path: Iterable[tuple[Revision, Revision | None]],
    parents: Mapping[Revision, tuple[Revision, ...]],
) -> Iterator[_Place]:
    """Going up the path, what was met before is just what the commit judged against has."""
    order = {revision: number for number, revision in enumerate(parents)}
    met: set[Revision] = set()
    for revision, onto in path:
        met.add(revision)
        side: list[Revision] = []
        queue = [*parents[revision]]
        while queue:
            parent = queue.pop()
            if parent in order and parent not in met:
                met.add(parent)
                side.append(parent)
                queue.extend(parents[parent])
        yield _Place(revision, onto, tuple(sorted(side, key=order.__getitem__)))


class _Chain(Sequence[ChainStep]):
    """Steps, read when they are taken out. The first few are kept: they are looked at again."""

    def __init__(self, places: Sequence[_Place], read: Callable[[_Place], ChainStep]) -> None:
        self._places = places
        self._read = read
        self._kept: dict[_Place, ChainStep] = {}
        self._room_bytes = _KEPT_BYTES_MAX

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, index: int) -> ChainStep: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[ChainStep]: ...
    def __getitem__(self, index: int | slice) -> ChainStep | Sequence[ChainStep]:
        if isinstance(index, slice):
            return [self._step(place) for place in self._places[index]]
        return self._step(self._places[index])

    def _step(self, place: _Place) -> ChainStep:
        if place in self._kept:
            return self._kept[place]
        step = self._read(place)
        size_bytes = _size_bytes(step)
        if size_bytes <= self._room_bytes:
            self._room_bytes -= size_bytes
            self._kept[place] = step
        return step


class _Extent:
    """How much the steps of one chain touch. A commit that is read again counts once.

    A step is held in memory whole, so what a merge brings in is not to be more than two snapshots.
    """

    def __init__(self, settings: Settings) -> None:
        self._step_files_max = 2 * settings.files_max
        self._step_bytes_max = 2 * settings.snapshot_bytes_max
        self._counted: set[Revision] = set()
        self._files = self._size_bytes = self._entries = 0
        self._step_files = self._step_bytes = 0

    def begin_step(self) -> None:
        self._step_files = self._step_bytes = 0

    def is_new(self, revision: Revision) -> bool:
        is_new = revision not in self._counted
        self._counted.add(revision)
        return is_new

    def take(self, file: TouchedFile, *, is_new: bool) -> None:
        size_bytes = _content_bytes(file)
        self._step_files += 1
        self._step_bytes += size_bytes
        _refuse_more(self._step_files, self._step_files_max, "files in one step")
        _refuse_more(self._step_bytes, self._step_bytes_max, "bytes in one step")
        if is_new:
            self._files += 1
            self._size_bytes += size_bytes
            _refuse_more(self._files, TOUCHED_FILES_MAX, "files")
            _refuse_more(self._size_bytes, TOUCHED_BYTES_MAX, "bytes")

    def read_entries(self, number: int) -> None:
        self._entries += number
        _refuse_more(self._entries, _ENTRIES_READ_MAX, "entries of folders")


class _Steps:
    """Reads steps. Trees and commits are often those of the step before, and not read again."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._extent = _Extent(settings)
        self._repository: Any = None
        self._commit = lru_cache(maxsize=8)(self._read_commit)
        # The folders on the way to one object, in two commits.
        self._entries = lru_cache(maxsize=32)(self._read_entries)

    def step(self, repository: Any, place: _Place) -> ChainStep:
        self._repository = repository
        self._extent.begin_step()
        own = self._commit(place.revision)
        return ChainStep(
            facts=own.facts,
            onto=place.onto,
            touched=self._touched(place.onto, own),
            side=tuple(self._side(revision) for revision in place.side),
        )

    def facts(self, repository: Any, revision: Revision) -> CommitFacts:
        self._repository = repository
        return self._commit(revision).facts

    def _side(self, revision: Revision) -> SideCommit:
        own = self._commit(revision)
        first = own.facts.parents[0] if own.facts.parents else None
        return SideCommit(own.facts, self._touched(first, own))

    def _touched(self, onto: Revision | None, own: RawCommit) -> tuple[TouchedFile, ...]:
        before = None if onto is None else self._commit(onto).tree_id
        budget = Budget(self._settings, own.facts.revision)
        is_new = self._extent.is_new(own.facts.revision)
        found: list[TouchedFile] = []
        for path, old, new in self._differing("", before, own.tree_id, 0, budget):
            file = TouchedFile(path, self._form(old, budget), self._form(new, budget))
            self._extent.take(file, is_new=is_new)
            found.append(file)
        return tuple(sorted(found, key=lambda file: file.path))

    def _differing(
        self, prefix: str, before: str | None, after: str | None, depth: int, budget: Budget
    ) -> Iterator[tuple[str, str | None, str | None]]:
        """(path, blob before, blob after) of manifest files; what is the same is not entered."""
        budget.descend(depth)
        was, now = self._entries(before), self._entries(after)
        old, new = _by_name(was - now), _by_name(now - was)
        for is_folder, raw_name in sorted(old.keys() | new.keys()):
            ids = old.get((is_folder, raw_name)), new.get((is_folder, raw_name))
            path = prefix + path_name(raw_name)
            if is_folder:
                yield from self._differing(f"{path}/", *ids, depth + 1, budget)
            elif ids[0] != ids[1] and path.endswith(DOCUMENT_SUFFIXES):
                yield path, *ids

    def _form(self, blob_id: str | None, budget: Budget) -> FileForm | None:
        if blob_id is None:
            return None
        if self._repository.odb.read_header(blob_id)[1] > self._settings.file_bytes_max:
            budget.take(1, 0)
            return FileForm(blob_id, None)
        content = read_blob(self._repository, blob_id)
        budget.take(1, len(content))
        return FileForm(blob_id, content)

    def _read_commit(self, revision: Revision) -> RawCommit:
        size_bytes = self._repository.odb.read_header(revision)[1]
        raw = self._repository.read(revision)[1]
        is_large = size_bytes > self._settings.commit_bytes_max
        return read_commit(revision, raw, is_large=is_large)

    def _read_entries(self, tree_id: str | None) -> frozenset[Entry]:
        if tree_id is None:
            return frozenset()
        entries = frozenset(read_tree(self._repository, tree_id))
        Budget(self._settings, tree_id).take(len(entries), 0)
        self._extent.read_entries(len(entries))
        return entries


def _by_name(entries: Iterable[Entry]) -> dict[tuple[bool, bytes], str]:
    """Ids of files and folders; neither is the other, even where they have one name."""
    kinds = ((entry_kind(mode), name, raw_id) for mode, name, raw_id in entries)
    own = ("folder", "file")
    return {(kind == "folder", name): raw.hex() for kind, name, raw in kinds if kind in own}


def _size_bytes(step: ChainStep) -> int:
    """What a step takes in memory, more or less."""
    touched = [*step.touched, *(file for side in step.side for file in side.touched)]
    messages = [step.facts.message, *(side.facts.message for side in step.side)]
    contents = sum(map(_content_bytes, touched)) + sum(map(len, messages))
    return contents + 1000 * (len(touched) + len(messages))


def _content_bytes(file: TouchedFile) -> int:
    return sum(len(form.content or b"") for form in (file.before, file.after) if form)


def _common_folder(git_folder: Path) -> Path:
    """Where the objects are: a further work tree of a repository names its first one's."""
    pointer = git_folder / "commondir"
    return (git_folder / pointer.read_text().strip()) if pointer.is_file() else git_folder


def _is_commit(repository: Any, revision: Revision) -> bool:
    if not _REVISION.fullmatch(revision):
        return False
    try:
        return bool(repository.odb.read_header(revision)[0] == _COMMIT)
    except KeyError:
        return False


def _rewritten(since: Revision | None, why: str) -> Refused:
    return Refused(
        "history_rewritten",
        f"the last accepted revision, {str(since)[:12]}, {why}",
        hint="push the branch again as it was, with new commits on top",
    )


def _refuse_more(number: int, number_max: int, what: str) -> None:
    if number > number_max:
        raise _too_large(f"its commits touch more than {number_max} {what}")


def _too_large(message: str) -> Refused:
    return Refused("history_too_large", message, hint=_LATER)
