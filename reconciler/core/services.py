"""What a node says of the services of one instance: whether it serves, and what is missing. Pure.

Rules:
- An instance is what its vital services are. Without another one it is degraded, and runs all the
  same: that is no failure, and nothing waits for it.
- Only a node that tells its services apart can say so. Of any other, degraded means that it does
  not serve.
"""

from __future__ import annotations

from collections.abc import Sequence

from node_agent.wire import Phase, ServicePhase, Workload, WorkloadReport

_UP = ("ready", "completed")
_NAMES_MAX = 5
_DETAIL_LENGTH_MAX = 200


def serves(report: WorkloadReport) -> bool:
    """Whether it is ready, or only services that are not vital are missing."""
    if report.phase is Phase.READY:
        return True
    if report.phase is not Phase.DEGRADED or not report.services:
        return False
    # Degraded with all of them up is something else, such as one that was changed by hand.
    missing = missing_of(report.services)
    return bool(missing) and not any(one.vital for one in missing)


def missing_of(services: Sequence[ServicePhase]) -> tuple[ServicePhase, ...]:
    """Those that are neither ready nor through with what they had to do."""
    return tuple(one for one in services if one.phase not in _UP)


def services_words(services: Sequence[ServicePhase]) -> str:
    """`2/3 services ready: metrics is failed (exit code 1)`; vital ones first."""
    missing = sorted(missing_of(services), key=lambda one: (not one.vital, one.name))
    count = f"{len(services) - len(missing)}/{len(services)} services ready"
    if not missing:
        return count
    more = f" and {len(missing) - _NAMES_MAX} more" if len(missing) > _NAMES_MAX else ""
    return f"{count}: {', '.join(map(_words, missing[:_NAMES_MAX]))}{more}"


def reason_words(report: WorkloadReport) -> str:
    """Why it does not get on, with the code to look up first: `exited: api: exit code 3`. Empty
    where its node gives no reason.
    """
    if report.reason is None:
        return ""
    detail = report.message.removeprefix(report.reason.value).lstrip(": ")
    return f"{report.reason.value}: {detail}" if detail else report.reason.value


def further_images(workload: Workload) -> tuple[str, ...]:
    """`repository@digest` of what its services run beside its own image, sorted."""
    if workload.topology is None:
        return ()
    found = {f"{one.repository}@{one.digest}" for one in workload.images}
    return tuple(sorted(found - {f"{workload.image.repository}@{workload.image.digest}"}))


def _words(one: ServicePhase) -> str:
    code = f"exit code {one.exit_code}" if one.exit_code is not None else ""
    known = code in one.detail or f"exited with {one.exit_code}" in one.detail
    said = [part for part in (one.detail, "" if known else code) if part]
    why = ", ".join(said)[:_DETAIL_LENGTH_MAX]
    return f"{one.name} is {one.phase}" + (f" ({why})" if why else "")
