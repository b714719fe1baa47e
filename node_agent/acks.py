"""Acknowledgements of tasks, owed until a report that carries them was taken."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from node_agent.tasks import Accepted, Verdict, acknowledgement
from node_agent.wire import PullBlobTask, TaskAck


@dataclass(frozen=True)
class _Owed:
    ack: TaskAck
    instance: str = ""
    seq: int = 0


class Acks:
    """Safe to use from several threads. True while there are any.

    An acknowledgement is withheld until the report that carries it speaks of that task too. Else
    the control plane would read: taken over, and yet not there.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._owed: dict[str, _Owed] = {}
        self._none = threading.Event()

    def __bool__(self) -> bool:
        return bool(self._owed)

    def owe(self, verdict: Verdict) -> bool:
        """False when there is nobody to tell."""
        ack = acknowledgement(verdict)
        if ack is None:
            return False
        owed = _Owed(ack)
        if isinstance(verdict, Accepted) and not isinstance(verdict.task, PullBlobTask):
            owed = _Owed(ack, verdict.task.instance, verdict.task.seq)
        with self._lock:
            self._owed[ack.task_id] = owed
            self._none.clear()
        return True

    def ready(self, reached: Mapping[str, int]) -> tuple[TaskAck, ...]:
        """Those that may be told. `reached`: by instance, which task a report speaks of."""
        with self._lock:
            return tuple(
                owed.ack
                for _, owed in sorted(self._owed.items())
                if owed.seq <= reached.get(owed.instance, 0)
            )

    def forget(self, told: Sequence[TaskAck]) -> None:
        with self._lock:
            for ack in told:
                owed = self._owed.get(ack.task_id)
                if owed is not None and owed.ack == ack:
                    del self._owed[ack.task_id]
            if not self._owed:
                self._none.set()

    def wait(self, timeout_s: float) -> None:
        """Until all are told, or `release` was called."""
        self._none.wait(timeout_s)

    def release(self) -> None:
        self._none.set()
