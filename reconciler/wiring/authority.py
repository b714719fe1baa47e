"""Who signed what in a local repository, by the identities that it has."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from reconciler.adapters.clock import SystemClock
from reconciler.adapters.git_chain import GitCommitLog
from reconciler.adapters.git_pygit2 import GitSource
from reconciler.core.authority.facts import Actor, ChainStep
from reconciler.core.authority.signers import resolve_signer
from reconciler.core.authority.walk import Start, WalkLimits, openpgp_keys
from reconciler.core.names import Revision
from reconciler.core.problems import Problem
from reconciler.errors import GpuaasError, Refused
from reconciler.settings import Settings
from reconciler.use_cases.authority_questions import Trust, trust_in
from reconciler.wiring.files import below, schema_set

_FOLDERS = ("platform/iam/", "tenants/")


def now_ms() -> int:
    return SystemClock().now_ms()


def local_commits(path: Path, settings: Settings) -> GitCommitLog:
    """The commits of the repository that `path` lies in."""
    return GitCommitLog(GitSource.local(path, settings).folder, settings)


class LocalTrust:
    """Who is who in a local repository, at one commit or another."""

    def __init__(self, path: Path, settings: Settings) -> None:
        self._log = local_commits(path, settings)
        self._prefix = self._log.prefix_of(path)
        self._settings = settings
        self._schemas = schema_set()
        self._known: dict[tuple[str, ...], Trust] = {}

    def resolve(self, ref: str) -> Revision:
        return self._log.resolve(ref)

    def at(self, revision: Revision) -> Trust:
        """What is the same in two commits is read once."""
        source = below(self._log.snapshot(revision), self._prefix)
        key = tuple(f"{f.path}:{f.blob_id}" for f in source.files if f.path.startswith(_FOLDERS))
        if key not in self._known:
            self._known[key] = trust_in(source, self._schemas, self._settings.parse_limits)
        return self._known[key]

    def signer(self, revision: Revision, trust: Trust | None = None) -> Actor | Problem:
        """Who signed a commit, by this trust, or by that of what it was built on."""
        step = self._step(revision)
        if trust is None:
            trust = self.at(step.onto) if step.onto is not None else self.at(revision)
        signature = self._log.signatures([revision], self._armored(trust))[revision]
        return resolve_signer(signature, step.facts, trust, step.facts.committed_at_ms)

    def signers(self, revisions: Iterable[Revision]) -> Mapping[Revision, Actor | Problem]:
        """The same of several, as far as it can be told here."""
        found: dict[Revision, Actor | Problem] = {}
        for revision in revisions:
            try:
                found[revision] = self.signer(revision)
            except GpuaasError:
                # A shallow clone, or no program that checks: then nothing is said of it.
                return found
        return found

    def _step(self, revision: Revision) -> ChainStep:
        try:
            onto = self._log.resolve(f"{revision}^1")
        except Refused:
            onto = None
        return self._log.chain(onto, revision)[-1]

    def _armored(self, trust: Trust) -> tuple[str, ...]:
        limits = WalkLimits(self._settings.parse_limits, 0)
        return openpgp_keys(Start.at(Revision(""), trust), (), limits)
