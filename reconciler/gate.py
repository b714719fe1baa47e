"""Whether a revision may count, by the signed commits that lead to it from the last accepted one.

Rule: asks Git for the commits and their signatures, and leaves every decision to `core.authority`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from reconciler.core.authority.facts import ChainStep, CommitFacts, Signature, Walked
from reconciler.core.authority.signers import Signers
from reconciler.core.authority.walk import Start, WalkLimits, openpgp_keys, walk
from reconciler.core.names import Revision
from reconciler.core.problems import Problem
from reconciler.core.records import Accepted
from reconciler.core.schema import SchemaSet
from reconciler.core.validate import validate
from reconciler.errors import Refused
from reconciler.ports import Clock, CommitLog, StateSource
from reconciler.settings import Settings

REWRITTEN = "history_rewritten"
_NOWHERE = Start({}, {}, (), 0)


class Gate:
    """Walks from what was accepted last to a new head. Holds nothing but its services."""

    def __init__(
        self,
        source: StateSource,
        log: CommitLog,
        clock: Clock,
        settings: Settings,
        schemas: SchemaSet,
    ) -> None:
        self._source = source
        self._log = log
        self._clock = clock
        self._settings = settings
        self._schemas = schemas
        self._limits = WalkLimits(
            parse=settings.parse_limits, ahead_max_ms=int(settings.commit_ahead_max_s * 1000)
        )

    def walk(self, head: Revision, last: Accepted) -> Walked:
        """What the commits up to `head` come to. A history that was rewritten is a rejection.

        Refused when there is nothing yet to begin from: no accepted revision and no admin key.
        """
        since, start = self._start(last)
        try:
            commits = self._log.commits(since, head)
        except Refused as error:
            if error.code != REWRITTEN:
                raise
            since, start = self._named_root(since)
            if since is None:
                return Walked(head, rejection=_rewritten(error, head), at_ms=last.at_ms)
            try:
                commits = self._log.commits(since, head)
            except Refused as again:
                return Walked(head, rejection=_rewritten(again, head), at_ms=last.at_ms)
        now_ms = self._clock.now_ms()
        return walk_line(self._log, commits, since, head, start, now_ms, self._limits)

    def _start(self, last: Accepted) -> tuple[Revision | None, Start]:
        keys = self._settings.admin_keys
        if last.revision is not None:
            return last.revision, Start(last.objects, last.refused, keys, last.at_ms)
        if self._settings.trust_root:
            return self._from_root()
        if not keys:
            raise Refused(
                "no_trust_root",
                "nobody is named who may sign the first commit",
                where="admin_keys",
                hint='gpuaas init --admin-key FILE makes both; signatures = "off" is for trying',
            )
        return None, Start({}, {}, keys, 0)

    def _named_root(self, last: Revision | None) -> tuple[Revision | None, Start]:
        """The trust root again, if it was named anew: one that the last accepted revision was built
        on is the old one, and whoever rewinds the branch to there is not to be believed.
        """
        root = self._settings.trust_root
        if not root or last is None or self._older(root, last):
            return None, _NOWHERE
        return self._from_root()

    def _older(self, root: str, last: Revision) -> bool:
        try:
            return self._source.is_ancestor(Revision(root), last)
        except Refused:
            return True  # Nobody can tell any more.

    def _from_root(self) -> tuple[Revision, Start]:
        """The tree of the revision that the operator named counts on his word."""
        snapshot = self._source.snapshot(Revision(self._settings.trust_root))
        found = validate(snapshot, self._schemas, self._settings.parse_limits).objects
        root, keys = snapshot.revision, self._settings.admin_keys
        return root, Start.at(root, found, snapshot.committed_at_ms, keys)


def walk_line(
    log: CommitLog,
    commits: Sequence[CommitFacts],
    since: Revision | None,
    head: Revision,
    start: Start,
    now_ms: int,
    limits: WalkLimits,
    seen: Callable[[ChainStep], ChainStep] = lambda step: step,
) -> Walked:
    """What the line of `commits` from `since` to `head` comes to; `seen` is what counts of a step.

    What a commit touches is read only once somebody signed every one of them.
    """
    signatures = dict(log.signatures([one.revision for one in commits], ()))
    rejection = _nobodys(commits, signatures)
    if rejection is not None:
        return Walked(head, rejection=rejection, commits=len(commits), at_ms=start.at_ms)
    steps = [seen(step) for step in log.chain(since, head)]
    unknown = [one for one, said in signatures.items() if said.state == "no_key"]
    if unknown:
        signatures |= log.signatures(unknown, openpgp_keys(start, steps, limits))
    return walk(steps, signatures, start, now_ms, limits, head)


def _nobodys(
    commits: Sequence[CommitFacts], signatures: Mapping[Revision, Signature]
) -> Problem | None:
    """What is wrong with the first commit that nobody signed, whoever may sign. Who pushes such
    ones has nothing of them read.
    """
    nobody = Signers({})
    for facts in commits:
        signature = signatures[facts.revision]
        if signature.state in ("good", "no_key"):
            continue
        found = nobody.resolve(signature, facts, facts.committed_at_ms, ())
        if isinstance(found, Problem):
            return found
    return None


def _rewritten(error: Refused, head: Revision) -> Problem:
    message = f"{error.message} (the head is {head[:12]})"
    return Problem("", 0, 0, error.code, message, "", error.hint)
