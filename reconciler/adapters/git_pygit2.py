"""The state repo as a StateSource: fetched by `git_fetch`, read with pygit2.

Rules: nothing is ever checked out; contents are bytes, bounded in number, size and depth. Only this
module and `git_tree` know pygit2, and none of its types or exceptions leaves them.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import pygit2

from reconciler.adapters.git_fetch import fetch_branch, fetch_ref, mark_suspect
from reconciler.adapters.git_remote import parse_remote
from reconciler.adapters.git_tree import TreeReader
from reconciler.adapters.tree_limits import TreeLimits
from reconciler.core.names import Revision
from reconciler.core.source import Snapshot, SourceFile
from reconciler.errors import GpuaasError, Refused, Transient

if TYPE_CHECKING:
    from reconciler.settings import Settings

_REF_LENGTH_MAX = 255
_TEXT_LENGTH_MAX = 200
_REVISION = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?")
_DEEPEN = (
    "the clone is shallow: git fetch --unshallow, or in CI fetch-depth: 0 (GitHub, Gitea, "
    'Forgejo) or GIT_DEPTH: "0" (GitLab)'
)
_COMMIT_ID = re.compile(r"[0-9a-f]{4,64}")
_HEAD = re.compile(r"(?:HEAD|@)(?=$|[~^])")
_REF_END = re.compile("[~^@:]")


class GitReader:
    """Reads the repository at `folder`, of which `ref` is the head. Safe to use from threads."""

    def __init__(self, folder: Path, ref: str, limits: Settings | TreeLimits) -> None:
        self._folder = folder.absolute()
        self._ref = ref
        self._reader = TreeReader(limits)
        self._opened: tuple[Path, pygit2.Repository] | None = None
        self._lock = threading.RLock()

    @property
    def folder(self) -> Path:
        """The repository itself, not its work tree."""
        return self._folder

    @property
    def blobs_read(self) -> int:
        """How many blobs were loaded so far: a measure of what the cache spares."""
        return self._reader.blobs_read

    def head(self) -> Revision:
        """The head as it is here; nothing is fetched."""
        with self._reading() as repository:
            reference = repository.references.get(self._ref)
            if reference is None or (self._ref == "HEAD" and repository.head_is_unborn):
                raise self._missing()
            return Revision(str(reference.peel(pygit2.Commit).id))

    def resolve(self, ref: str) -> Revision:
        """A branch, commit id (or its beginning) or `HEAD~2` as a revision.

        Refused if unknown, or if it may be several.
        """
        if not ref or ref.startswith("-") or len(ref) > _REF_LENGTH_MAX or not ref.isprintable():
            _refuse_revision(ref, "not a name of a commit")
        with self._reading() as repository:
            try:
                _refuse_ambiguous(repository, ref)
                found = repository.revparse_single(_HEAD.sub(self._ref, ref))
                return Revision(str(found.peel(pygit2.Commit).id))
            except (KeyError, ValueError, pygit2.GitError):
                _refuse_revision(ref, "no such commit here")

    def snapshot(
        self, revision: Revision, files: tuple[SourceFile, ...] | None = None
    ) -> Snapshot:
        """Every file of a revision. Refused when unknown or beyond the limits in `settings`.

        `files`: they were read already, by another reader of this repository.

        Only .yaml and .yml files have content, up to `file_bytes_max`; the rest are listed. A path
        that is not UTF-8 has its odd bytes escaped (`\\xff`).
        """
        with self._reading() as repository:
            commit = self._commit(repository, revision)
            if files is None:
                files = self._reader.files(repository, str(commit.tree_id), str(commit.id))
            return _snapshot(commit, files)

    def is_ancestor(self, ancestor: Revision, descendant: Revision) -> bool:
        """Whether `descendant` is `ancestor` or was built on it.

        An `ancestor` that is not here is none: the history of what is here is complete.
        """
        with self._reading() as repository:
            newer = self._commit(repository, descendant)
            if not _REVISION.fullmatch(ancestor) or ancestor not in repository:
                return False
            if str(newer.id) == ancestor:
                return True
            return bool(repository.descendant_of(newer.id, ancestor))

    def commits_since(self, since: Revision, head: Revision, most: int) -> int:
        """How many commits `head` has that `since` has not, counted up to `most`; that many also
        where `since` is not here.
        """
        with self._reading() as repository:
            newer = self._commit(repository, head)
            if not _REVISION.fullmatch(since) or since not in repository:
                return most
            walker = repository.walk(newer.id)
            walker.hide(repository[since].id)
            return sum(1 for _ in islice(walker, most))

    def merge_base(self, ref: str, other: str) -> Revision:
        """The commit where `ref` and `other` parted, as `git diff other...ref` takes it.

        Refused when one of them, or all they have in common, is not here.
        """
        with self._reading() as repository:
            deepen = _DEEPEN if repository.is_shallow else ""
            one, two = self._named(ref, deepen), self._named(other, deepen)
            found = repository.merge_base(one, two)
            if found is None:
                raise Refused(
                    "no_merge_base",
                    f"{ref} and {other} have no commit in common here",
                    where=str(self._folder),
                    hint=deepen or "name a branch that this one was made from",
                )
            return Revision(str(found))

    def prefix_of(self, path: Path) -> str:
        """Where in the repository a folder of its work tree is: `folder/`, or empty at its root."""
        with self._reading() as repository:
            root = repository.workdir and Path(repository.workdir).resolve()
            place = path.resolve()
            if not root or root == place or not place.is_relative_to(root):
                return ""
            return os.fsencode(place.relative_to(root)).decode("utf-8", "backslashreplace") + "/"

    def _named(self, ref: str, deepen: str) -> Revision:
        try:
            return self.resolve(ref)
        except Refused as error:
            hint = deepen or f"git fetch origin, or see git branch --all: is {ref[:80]!r} there?"
            raise Refused(error.code, error.message, hint=hint) from None

    def _commit(self, repository: pygit2.Repository, revision: Revision) -> Any:
        found = repository.get(revision) if _REVISION.fullmatch(revision) else None
        if not isinstance(found, pygit2.Commit):
            _refuse_revision(revision, "no such commit here")
        return found

    @contextmanager
    def _reading(self) -> Iterator[pygit2.Repository]:
        """The open repository; what pygit2 raises inside means that it is damaged."""
        with self._lock:
            try:
                yield self._repository()
            except (KeyError, ValueError, OSError, pygit2.GitError) as error:
                raise self._damaged(f"{type(error).__name__}: {str(error)[:120]}") from None

    def _repository(self) -> pygit2.Repository:
        # Another process may have replaced a damaged mirror since the last look.
        folder = self._folder.resolve()
        if not folder.is_dir():
            raise self._missing()
        if self._opened is None or self._opened[0] != folder:
            if self._opened is not None:
                self._opened[1].free()
            flags = pygit2.enums.RepositoryOpenFlag.NO_SEARCH
            self._opened = (folder, pygit2.Repository(str(folder), flags))
        return self._opened[1]

    def _missing(self) -> GpuaasError:
        return Refused("git_no_commit", f"there is no {self._ref} here", where=str(self._folder))

    def _damaged(self, said: str) -> GpuaasError:
        if "not owned by" in said:
            return Refused(
                "git_not_owned",
                "the repository belongs to another user",
                where=str(self._folder),
                hint="git config --global --add safe.directory PATH, as the user gpuaas runs as",
            )
        return Refused(
            "git_repo_damaged",
            f"the repository cannot be read ({said})",
            where=str(self._folder),
            hint="git fsck shows what is wrong",
        )


class GitSource(GitReader):
    """One branch of a Git repository, mirrored bare at `mirror_dir`: a StateSource.

    Refused at once for an address or branch name that Git must not see. Several threads and several
    processes may share one mirror.
    """

    def __init__(self, repo_url: str, branch: str, mirror_dir: Path, settings: Settings) -> None:
        self._remote = parse_remote(repo_url)
        self._branch = branch
        self._settings = settings
        super().__init__(mirror_dir, f"refs/heads/{branch}", settings)
        if branch.startswith("-") or not pygit2.reference_is_valid_name(self._ref):
            raise Refused("git_branch_refused", f"not a branch name: {branch[:80]!r}")

    @staticmethod
    def local(path: Path, settings: Settings) -> GitReader:
        """Reads the commits of the repository `path` lies in, in place, from its HEAD."""
        try:
            folder = pygit2.discover_repository(str(path))
        except (KeyError, ValueError, OSError, pygit2.GitError):
            folder = None
        if folder is None:
            raise Refused(
                "not_a_repository",
                "there is no Git repository",
                where=str(path),
                hint="name a folder of a repository; validate alone reads any folder",
            )
        return GitReader(Path(folder), "HEAD", settings)

    def fetch(self) -> Revision:
        """Brings the branch up to date and returns its head. Talks to the remote."""
        fetch_branch(self._remote, self._branch, self._folder, self._settings)
        return self.head()

    def find(self, ref: str) -> Revision:
        """As `resolve`, of a branch or tag as the remote has it now. Talks to the remote."""
        with suppress(Refused):
            if _COMMIT_ID.fullmatch(ref) or _HEAD.match(ref):
                return self.resolve(ref)
        name = ref.removeprefix("origin/")
        for full in (f"refs/heads/{name}", f"refs/tags/{name}"):
            if not name.startswith("-") and pygit2.reference_is_valid_name(full):
                try:
                    fetch_ref(self._remote, full, self._folder, self._settings)
                except Refused as error:
                    if error.code != "git_branch_missing":
                        raise
                else:
                    return self.resolve(full)
        return self.resolve(ref)

    def _missing(self) -> GpuaasError:
        return Transient(
            "git_not_fetched", f"{self._branch} was not fetched yet", where=self._remote.url
        )

    def _damaged(self, said: str) -> GpuaasError:
        mark_suspect(self._folder)
        return Transient(
            "git_mirror_damaged",
            f"the mirror cannot be read ({said})",
            where=str(self._folder),
            hint="the next fetch clones it again",
        )


def _snapshot(commit: Any, files: tuple[SourceFile, ...]) -> Snapshot:
    return Snapshot(
        revision=Revision(str(commit.id)),
        files=files,
        author=_author(commit.author),
        subject=_printable(commit.raw_message.lstrip(b"\n").partition(b"\n")[0]),
        committed_at_ms=commit.commit_time * 1000,
    )


def _refuse_ambiguous(repository: pygit2.Repository, ref: str) -> None:
    """Git would take the tag: whoever may push one could have it stand for a branch."""
    name = _REF_END.split(ref, maxsplit=1)[0]
    there: dict[str, str] = {}
    for full in (f"refs/{place}/{name}" for place in ("tags", "heads", "remotes")):
        if pygit2.reference_is_valid_name(full) and full in repository.references:
            there[full] = str(repository.references[full].peel().id)
    if len({*there.values()}) > 1:
        raise Refused(
            "ambiguous_revision",
            f"{ref[:80]!r} may be {' or '.join(sorted(there))}",
            hint="write out the one that is meant",
        )


def _refuse_revision(ref: str, why: str) -> NoReturn:
    raise Refused(
        "unknown_revision",
        f"{why}: {ref[:80]!r}",
        hint="name a commit, or a branch or tag that was pushed to the state repo",
    )


def _author(signature: Any) -> str:
    return f"{_printable(signature.raw_name)} <{_printable(signature.raw_email)}>"


def _printable(raw: bytes) -> str:
    """Text from a commit, without control characters that would play tricks on a terminal."""
    text = raw.decode("utf-8", "replace").strip()
    return "".join(c if c.isprintable() else " " for c in text)[:_TEXT_LENGTH_MAX]
