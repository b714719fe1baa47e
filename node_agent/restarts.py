"""When what ended is started again, and what an exit says. Pure."""

from __future__ import annotations

from node_agent.flaps import STABLE_MS
from node_agent.steps import Fault
from node_agent.wire import FailureReason

STARTS_MAX = 3
"""How often a workload on trial may be started before its exits count as failure."""
COMMAND_CODES = frozenset({126, 127})
"""How shells and Docker's init say that there was nothing to run."""
RESTART_DELAY_MAX_MS = 60_000


def trial_delay_ms(starts: int) -> int:
    return 0 if starts == 0 else int(250 * 2 ** (min(starts, 16) - 1))


def restart_delay_ms(starts: int, started_at_ms: int, now_ms: int) -> int:
    """None for what ran well, then 1 s, 4 s, 16 s … for what keeps dying."""
    if starts <= 1 or now_ms - started_at_ms >= STABLE_MS:
        return 0
    return int(min(1_000 * 4 ** min(starts - 2, 16), RESTART_DELAY_MAX_MS))


def exit_words(exit_code: int | None, *, out_of_memory: bool) -> str:
    if out_of_memory:
        return "killed for using more memory than its limit"
    return f"exited with {exit_code}"


def exit_verdict(exit_code: int | None, starts: int, *, out_of_memory: bool) -> Fault | None:
    """Why it makes no sense to start again on trial what ended so; None when it does."""
    if out_of_memory:
        message = exit_words(exit_code, out_of_memory=True)
        return Fault(FailureReason.OUT_OF_MEMORY, message, exit_code, final=True)
    if exit_code in COMMAND_CODES:
        message = f"exited with {exit_code}: the command is not there or can't be run"
        return Fault(FailureReason.COMMAND_NOT_FOUND, message, exit_code, final=True)
    if starts >= STARTS_MAX:
        message = f"exited {starts} times before it was ready"
        return Fault(FailureReason.EXITED, message, exit_code, final=True)
    return None
