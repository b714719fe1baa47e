"""The commits of a FakeRemote as a CommitLog: one line without merges, signed as a test says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from reconciler.core.authority.facts import (
    ChainStep,
    CommitFacts,
    FileForm,
    Signature,
    TouchedFile,
)
from reconciler.core.names import Revision
from reconciler.core.source import Snapshot, SourceFile
from reconciler.errors import Refused
from tests.fakes.state_source import FakeRemote

UNSIGNED = Signature("none")


class FakeCommitLog:
    """`signed` says what the signature of a commit is; who is not in it did not sign."""

    def __init__(self, remote: FakeRemote) -> None:
        self._remote = remote
        self.signed: dict[Revision, Signature] = {}
        self.messages: dict[Revision, str] = {}

    def chain(self, since: Revision | None, head: Revision) -> Sequence[ChainStep]:
        steps: list[ChainStep] = []
        at: Revision | None = self._known(head)
        while at is not None and at != since:
            parent = self._remote.commits[at].parent
            steps.append(self._step(at, parent))
            at = parent
        if at != since:
            raise Refused("history_rewritten", f"{since} is not what the head was built on")
        return tuple(reversed(steps))

    def commits(self, since: Revision | None, head: Revision) -> Sequence[CommitFacts]:
        return [step.facts for step in self.chain(since, head)]

    def signatures(
        self, revisions: Sequence[Revision], openpgp_keys: Sequence[str]
    ) -> Mapping[Revision, Signature]:
        return {one: self.signed.get(self._known(one), UNSIGNED) for one in revisions}

    def _known(self, revision: Revision) -> Revision:
        if revision not in self._remote.commits:
            raise Refused("unknown_revision", f"no such commit here: {revision[:80]!r}")
        return revision

    def _step(self, revision: Revision, parent: Revision | None) -> ChainStep:
        snapshot = self._remote.commits[revision].snapshot
        name, _, email = snapshot.author.partition(" <")
        facts = CommitFacts(
            revision=revision,
            parents=() if parent is None else (parent,),
            author_name=name,
            author_email=email.removesuffix(">"),
            committed_at_ms=snapshot.committed_at_ms,
            message=self.messages.get(revision, snapshot.subject),
        )
        before = {} if parent is None else _forms(self._remote.commits[parent].snapshot)
        after = _forms(snapshot)
        touched = (
            TouchedFile(path, before.get(path), after.get(path))
            for path in sorted(before.keys() | after.keys())
            if before.get(path) != after.get(path)
        )
        return ChainStep(facts, parent, tuple(touched))


def _forms(snapshot: Snapshot) -> dict[str, FileForm]:
    return {file.path: _form(file) for file in snapshot.files if _is_manifest(file)}


def _is_manifest(file: SourceFile) -> bool:
    return file.kind in ("file", "too_large") and file.path.endswith((".yaml", ".yml"))


def _form(file: SourceFile) -> FileForm:
    return FileForm(file.blob_id, None if file.kind == "too_large" else file.content)
