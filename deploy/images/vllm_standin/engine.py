"""What stands in for the model: a sentence that says so, token by token.

A token is a word here.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Generator
from dataclasses import dataclass

from deploy.images.vllm_standin.metrics import Metrics

ECHO_TOKENS_MAX = 32


@dataclass(frozen=True)
class Settings:
    """`token_s`: how long each token takes."""

    model: str
    names: tuple[str, ...]
    max_model_len: int
    max_num_seqs: int
    token_s: float = 0.0


def tokens_of(text: str) -> list[str]:
    """The words of a text, each with the space before it."""
    return re.findall(r"\s*\S+", text)


def reply_to(prompt: str) -> list[str]:
    asked = "".join(tokens_of(prompt)[-ECHO_TOKENS_MAX:]).strip()
    return tokens_of(f"This is vllm-standin, no model ran. It was asked: {asked}")


class Engine:
    """At most `max_num_seqs` requests generate at once; the others wait for their turn."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self.settings, self.metrics = settings, metrics
        self._turn = threading.Semaphore(settings.max_num_seqs)
        self._lock = threading.Lock()
        self._running = self._waiting = 0

    def generate(self, prompt: str, tokens_max: int) -> Generator[str, None, None]:
        """Token by token; what ends early counts as aborted."""
        begun = time.monotonic()
        self._count(waiting=1)
        self._turn.acquire()
        self._count(waiting=-1, running=1)
        queued_s = time.monotonic() - begun
        times_s: list[float] = []
        reason = "abort"
        try:
            wanted = reply_to(prompt)
            for token in wanted[:tokens_max]:
                time.sleep(self.settings.token_s)
                times_s.append(time.monotonic() - begun)
                yield token
            reason = "stop" if len(wanted) <= tokens_max else "length"
        finally:
            self._turn.release()
            self._count(running=-1)
            self.metrics.answered(len(tokens_of(prompt)), times_s, queued_s, reason)

    def _count(self, running: int = 0, waiting: int = 0) -> None:
        with self._lock:
            self._running += running
            self._waiting += waiting
            self.metrics.load(self._running, self._waiting, self.settings.max_num_seqs)
