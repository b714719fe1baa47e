"""Whether what passed its gate is lost so often that it should not be brought back once more. Pure.

Rules:
- A loss is: it exited, was removed or paused, stopped being ready, or was altered. What the agent
  stops on purpose is none. One incident counts once.
- Having been ready for `STABLE_MS` without a break makes up for every loss before.
- Who gave up stays so until a newer task; the losses outlive the agent, so starting it anew makes
  no difference.
"""

from __future__ import annotations

from node_agent.steps import Fault, Progress
from node_agent.units import ServiceSeen, Unit
from node_agent.wire import FailureReason, Workload

FLAPS_MAX = 5
FLAP_WINDOW_MS = 600_000
STABLE_MS = 300_000
"""A workload that ran this long starts its restart backoff afresh. Well above the longest delay, so
that waiting is not taken for running."""


def flap_window_ms(workload: Workload) -> int:
    """What takes long to get ready can't be lost often, so its losses count for longer."""
    return max(FLAP_WINDOW_MS, 2 * FLAPS_MAX * workload.readiness.start_budget_ms)


def recent_losses(progress: Progress, workload: Workload, now_ms: int) -> tuple[int, ...]:
    """When it was lost, of what still counts."""
    if progress.ready_since_ms and now_ms - progress.ready_since_ms >= STABLE_MS:
        return ()
    window_ms = flap_window_ms(workload)
    # Those ahead of now too: the clock may have been set back while the agent was off.
    return tuple(at_ms for at_ms in progress.losses_ms if abs(now_ms - at_ms) < window_ms)


def with_loss(progress: Progress, workload: Workload, now_ms: int) -> tuple[int, ...]:
    return (*recent_losses(progress, workload, now_ms), now_ms)[-FLAPS_MAX:]


def already_counted(progress: Progress) -> bool:
    """Whether it stopped being ready before it went down, and was not ready since."""
    if not progress.losses_ms or not progress.started_at_ms or progress.ready_hash:
        return False
    return progress.losses_ms[-1] > progress.started_at_ms


def flapping(
    current: Unit | None, wanted: Workload, progress: Progress, now_ms: int
) -> Fault | None:
    """Why it should not be brought back again, or None when it should."""
    losses = len(recent_losses(progress, wanted, now_ms)) + _is_lost_anew(current, progress)
    exit_code = current.exit_code if current is not None else None
    return too_many(losses, wanted, _how(current, progress), exit_code)


def too_many(losses: int, wanted: Workload, how: str, exit_code: int | None) -> Fault | None:
    """The fault that so many losses are; `how` it was lost last."""
    if losses < FLAPS_MAX:
        return None
    minutes = flap_window_ms(wanted) // 60_000
    message = f"lost {losses} times within {minutes} minutes, last: {how}"
    return Fault(FailureReason.FLAPPING, message, exit_code, final=True)


def altered_words(unit: Unit | ServiceSeen) -> str:
    """All of it in one line."""
    more = f" and {len(unit.altered) - 2} more" if len(unit.altered) > 2 else ""
    return "; ".join(unit.altered[:2]) + more


def _is_lost_anew(current: Unit | None, progress: Progress) -> bool:
    if current is not None and current.altered:
        return True
    if current is not None and current.status == "running":
        return False
    return not progress.stopped_by_us and not already_counted(progress)


def _how(current: Unit | None, progress: Progress) -> str:
    if current is None:
        return "it was removed"
    if current.altered:
        return altered_words(current)
    if current.status == "running":
        return f"not ready: {progress.probe_detail}"
    if current.out_of_memory:
        return "killed for using more memory than its limit"
    return "it was paused" if current.status == "paused" else f"exited with {current.exit_code}"
