"""Which jobs of a topology are done, although their containers may be gone. Pure.

Rules:
- A container that ended with 0 says so, and is written down: whoever makes room on a host clears
  away what ended.
- What is written down holds for that form of the job and for the volumes that were there then: of
  another form it is another job, and with a volume goes what was done to it.
- It is forgotten before the job is started again: what is cut off is never taken for done.
"""

from __future__ import annotations

from collections.abc import Sequence

from node_agent.steps import JobDone
from node_agent.units import ServiceSeen, Unit

_NEVER_RAN = frozenset({"missing", "created"})
"""Its container is gone, or was made anew with those of others and left alone."""


def is_done(seen: ServiceSeen, unit: Unit, jobs: Sequence[JobDone]) -> bool:
    """Whether a job is, by what was written down alone."""
    return seen.status in _NEVER_RAN and _holding(seen, unit, jobs) is not None


def done_jobs(
    seen: Sequence[ServiceSeen], unit: Unit, jobs: Sequence[JobDone]
) -> tuple[JobDone, ...]:
    """What is to be written down of jobs that are `seen`, where `jobs` is."""
    found = (_done(one, unit, jobs) for one in sorted(seen, key=lambda one: one.name))
    return tuple(one for one in found if one is not None)


def _done(seen: ServiceSeen, unit: Unit, jobs: Sequence[JobDone]) -> JobDone | None:
    known = _holding(seen, unit, jobs)
    if seen.status in _NEVER_RAN:
        return known
    if seen.status != "exited" or seen.exit_code != 0:
        return None
    if known is not None or seen.altered or not seen.form or unit.volumes is None:
        return known
    return JobDone(seen.name, seen.form, unit.volumes)


def _holding(seen: ServiceSeen, unit: Unit, jobs: Sequence[JobDone]) -> JobDone | None:
    known = next((one for one in jobs if one.name == seen.name), None)
    if known is None or known.form != seen.form or unit.volumes is None:
        return None
    now = dict(unit.volumes)
    same = all(now.get(name, made) == made for name, made in known.volumes)
    return known if same else None
