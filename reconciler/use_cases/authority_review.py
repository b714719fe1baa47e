"""What the commits of a pull request come to, as the control plane would judge them once merged.

Rules:
- Trust is that of the base: what a request says of its own author counts for nothing in it.
- All that the base has counts as accepted; what of it is refused is known to the control plane
  alone.
- Where a forge squashes and signs at the merge, no commit here is the one that counts: then the
  whole difference is judged as if the one who merges had committed it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace

from reconciler.core.authority.facts import ChainStep, RefusedChange, TouchedFile, Walked
from reconciler.core.authority.judge import Refusal
from reconciler.core.authority.walk import Start, WalkLimits
from reconciler.core.desired import Candidate
from reconciler.core.kinds import KINDS
from reconciler.core.names import ObjectRef, Revision
from reconciler.core.problems import Problem
from reconciler.errors import Refused
from reconciler.gate import walk_line
from reconciler.ports import CommitLog
from reconciler.settings import Settings
from reconciler.use_cases.authority_questions import Questions, named_actor, trust_of
from reconciler.use_cases.validation import Checked

_COMMIT = re.compile(r"commit ([0-9a-f]{12})\b")


def has_identities(base: Checked) -> bool:
    """Whether the base says who may sign at all."""
    return any(ref.kind == "Identity" for ref in base.candidate.objects)


def refuse_unknown(base: Checked) -> None:
    """For who requires authority where nobody is known."""
    if not has_identities(base):
        raise Refused(
            "no_identities",
            "the base has no Identity, so that nobody's signature could count",
            where=base.revision[:12],
            hint="gpuaas init --existing adds the first one; or --authority auto",
        )


def commit_problems(
    log: CommitLog,
    base: Checked,
    head: Candidate,
    tip: Revision,
    settings: Settings,
    now_ms: int,
    prefix: str = "",
) -> tuple[Problem, ...]:
    """What is wrong with the commits from the base to `tip`; `head` is what they lead to.

    `prefix` is the folder of the repository that the state is in. Refused as `CommitLog` says.
    """
    since = Revision(base.revision)
    start = Start.at(since, base.candidate.objects, base.snapshot.committed_at_ms)
    limits = WalkLimits(settings.parse_limits, int(settings.commit_ahead_max_s * 1000))
    found = walk_line(
        log,
        log.commits(since, tip),
        since,
        tip,
        start,
        now_ms,
        limits,
        lambda step: _below(step, prefix),
    )
    return tuple(sorted(_told(found, head)))


def problems_as(name: str, base: Checked, head: Candidate, now_ms: int) -> tuple[Problem, ...]:
    """What of the whole difference an identity of the base may not do; Refused for none of it."""
    trust = trust_of(base.candidate.objects)
    questions = Questions(trust, now_ms)
    answers = questions.difference(named_actor(name, trust), base.candidate, head)
    found = [
        _problem(one.refusal, one.ref, head, base.candidate)
        for one in answers
        if one.refusal is not None and one.ref is not None
    ]
    if not questions.leaves_an_admin(trust_of(head.objects)):
        message = "nobody would be left who may say who may do what, and can sign"
        hint = "keep one user with platform.iam.edit on the platform, enabled, with a valid key"
        found.append(Problem("platform/iam", 0, 0, "last_admin", message, hint=hint))
    return tuple(sorted(found))


def _below(step: ChainStep, prefix: str) -> ChainStep:
    if not prefix:
        return step
    side = tuple(replace(one, touched=_within(one.touched, prefix)) for one in step.side)
    return replace(step, touched=_within(step.touched, prefix), side=side)


def _within(touched: Sequence[TouchedFile], prefix: str) -> tuple[TouchedFile, ...]:
    return tuple(
        replace(file, path=file.path.removeprefix(prefix))
        for file in touched
        if file.path.startswith(prefix)
    )


def _told(found: Walked, head: Candidate) -> Iterator[Problem]:
    rejection = found.rejection
    if rejection is not None:
        commit = _COMMIT.search(rejection.message)
        where = f"commit {commit[1]}" if commit else f"commit {found.head[:12]}"
        yield replace(rejection, path=where, line=0, column=0)
    yield from (_refused(one, head) for one in found.refused.values())


def _refused(change: RefusedChange, head: Candidate) -> Problem:
    """Where the object stands at the head, else in the file that it was changed in."""
    message = f"{change.message} (commit {change.revision[:12]})"
    named = change.subject.partition("/")[0] in KINDS
    ref = ObjectRef.parse(change.subject) if named else None
    stands = head.objects.get(ref) if ref is not None else None
    path, line = (stands.path, stands.line) if stands is not None else (change.path, 0)
    told = change.subject if named else ""
    return Problem(path, line, min(line, 1), change.code, message, "", change.hint, told)


def _problem(refusal: Refusal, ref: ObjectRef, head: Candidate, base: Candidate) -> Problem:
    stands = head.objects.get(ref)
    was = base.objects.get(ref)
    path = stands.path if stands else was.path if was else str(ref)
    line = stands.line if stands else 0
    code, message, hint = refusal.code, refusal.message, refusal.hint
    return Problem(path, line, min(line, 1), code, message, "", hint, str(ref))
