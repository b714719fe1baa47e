"""What vLLM tells Prometheus of itself, under the same names and labels."""

from __future__ import annotations

from collections.abc import Sequence

from deploy.images.plain.exposition import Metric, render

_FIRST_TOKEN_S = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5,
                  10, 20, 40, 80, 160, 640, 2560)  # fmt: skip
_NEXT_TOKEN_S = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 7.5, 10,
                 20, 40, 80)  # fmt: skip
_REQUEST_S = (0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960,
              1920, 7680)  # fmt: skip
FINISHED = ("stop", "length", "abort")


class Metrics:
    """One engine's; `model_name` is the first name that it is served under."""

    def __init__(self, model_name: str) -> None:
        self._labels = {"model_name": model_name, "engine": "0"}
        self.running = Metric("gauge", "vllm:num_requests_running", "Requests being answered.")
        self.waiting = Metric("gauge", "vllm:num_requests_waiting", "Requests that wait.")
        self.cache = Metric("gauge", "vllm:kv_cache_usage_perc", "KV cache in use; 1 is all of it.")
        self.old_cache = Metric("gauge", "vllm:gpu_cache_usage_perc", "Before vLLM 0.9 called so.")
        self.prompt = Metric("counter", "vllm:prompt_tokens_total", "Tokens of prompts.")
        self.generated = Metric("counter", "vllm:generation_tokens_total", "Tokens generated.")
        self.success = Metric("counter", "vllm:request_success_total", "Requests answered.")
        self.first = _seconds("vllm:time_to_first_token_seconds", "to the first", _FIRST_TOKEN_S)
        self.each = _seconds("vllm:inter_token_latency_seconds", "between tokens", _NEXT_TOKEN_S)
        self.queue = _seconds("vllm:request_queue_time_seconds", "waiting", _REQUEST_S)
        self.whole = _seconds("vllm:e2e_request_latency_seconds", "of requests", _REQUEST_S)
        for gauge in (self.running, self.waiting, self.cache, self.old_cache):
            gauge.set(0, **self._labels)
        for counter in (self.prompt, self.generated):
            counter.add(0, **self._labels)
        for reason in FINISHED:
            self.success.add(0, **self._labels, finished_reason=reason)

    def load(self, running: int, waiting: int, seqs_max: int) -> None:
        self.running.set(running, **self._labels)
        self.waiting.set(waiting, **self._labels)
        for cache in (self.cache, self.old_cache):
            cache.set(running / seqs_max, **self._labels)

    def answered(
        self, prompt_tokens: int, token_times_s: Sequence[float], queued_s: float, reason: str
    ) -> None:
        """`token_times_s`: when each token was there, counted from the request's beginning."""
        self.prompt.add(prompt_tokens, **self._labels)
        self.generated.add(len(token_times_s), **self._labels)
        self.success.add(1, **self._labels, finished_reason=reason)
        self.queue.observe(queued_s, **self._labels)
        for before, after in zip((0.0, *token_times_s), token_times_s, strict=False):
            (self.each if before else self.first).observe(after - before, **self._labels)
        self.whole.observe(token_times_s[-1] if token_times_s else queued_s, **self._labels)

    def page(self) -> bytes:
        return render([value for value in vars(self).values() if isinstance(value, Metric)])


def _seconds(name: str, help_text: str, buckets: Sequence[float]) -> Metric:
    return Metric("histogram", name, f"Seconds {help_text}.", buckets)
