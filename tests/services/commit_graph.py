"""A repository of commits in any shape, and any bytes, made without a work tree."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pygit2

from reconciler.adapters.git_chain import GitCommitLog
from reconciler.core.authority.facts import ChainStep, SideCommit
from reconciler.core.names import Revision
from reconciler.settings import Settings

AT = 1_700_000_000
COMMIT, TREE = 1, 2
Change = tuple[str, bytes | None, bytes | None]


def changes(step: ChainStep | SideCommit) -> list[Change]:
    """(path, content before, content after) of what it touched."""
    return [
        (
            file.path,
            None if file.before is None else file.before.content,
            None if file.after is None else file.after.content,
        )
        for file in step.touched
    ]


class Graph:
    """Commits by name, with any parents; each is of the time `at` and holds the files it names."""

    def __init__(self, folder: Path) -> None:
        self.repository = pygit2.init_repository(str(folder), bare=True)
        self.folder = folder
        self.ids: dict[str, Revision] = {}
        self.at = AT

    def add(self, name: str, parents: Sequence[str] = (), **files: str) -> Revision:
        index = pygit2.Index()
        for stem, content in files.items():
            blob = self.repository.create_blob(content.encode())
            path = f"{stem.replace('_', '/')}.yaml"
            index.add(pygit2.IndexEntry(path, blob, pygit2.enums.FileMode.BLOB))
        tree = index.write_tree(self.repository)
        who = pygit2.Signature("Ada", "ada@example.com", self.at, 0)
        those: list[pygit2.Oid | str] = [self.ids[one] for one in parents]
        made = self.repository.create_commit(None, who, who, name, tree, those)
        self.ids[name] = Revision(str(made))
        return self.ids[name]

    def write(self, kind: int, raw: bytes) -> Revision:
        return Revision(str(self.repository.write(kind, raw)))

    def log(self) -> GitCommitLog:
        return GitCommitLog(self.folder, Settings())

    def shape(self, since: str | None, head: str) -> list[tuple[str, str, str]]:
        """(commit, the one it is judged against, side commits) of each step."""
        names = {revision: name for name, revision in self.ids.items()}
        steps = self.log().chain(None if since is None else self.ids[since], self.ids[head])
        return [
            (
                names[step.facts.revision],
                "" if step.onto is None else names[step.onto],
                " ".join(names[one.facts.revision] for one in step.side),
            )
            for step in steps
        ]

    def raw_commit(self, message: bytes = b"message", **more: bytes) -> Revision:
        """One made of bytes: `tree` (by its id), `people`, further `header` lines."""
        tree = more.get("tree") or self.write(TREE, b"").encode()
        people = more.get("people", b"Ada <ada@example.com> 1700000000 +0000")
        lines = [b"tree " + tree, b"author " + people, b"committer " + people]
        head = b"\n".join(lines) + b"\n" + more.get("header", b"")
        return self.write(COMMIT, head + b"\n" + message)
