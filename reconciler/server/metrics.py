"""Prometheus metrics: counted as passes end, the rest read from the store at each scrape."""

from __future__ import annotations

from collections import Counter as Count
from collections.abc import Iterable, Sequence

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from reconciler.core.records import EnrolledNode, InstanceRecord, Intent, PassSummary
from reconciler.views.read_models import instances_by_state

_PASS_SECONDS = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Metrics:
    """Owns a registry of its own; `observe` is told of every pass."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._passes = Counter(
            "gpuaas_passes", "Passes, by how they ended.", ["result"], registry=self.registry
        )
        self._seconds = Histogram(
            "gpuaas_pass_duration_seconds",
            "How long passes take.",
            buckets=_PASS_SECONDS,
            registry=self.registry,
        )

    def observe(self, summary: PassSummary) -> None:
        self._passes.labels(summary.result).inc()
        self._seconds.observe(summary.duration_ms / 1000)

    def exposition(self, state: Collector) -> bytes:
        """Everything in the Prometheus text format; `state` is what the store says now."""
        now = CollectorRegistry()
        now.register(state)
        return generate_latest(self.registry) + generate_latest(now)


class StateCollector(Collector):
    """The store at one moment, as gauges. Holds for one scrape."""

    def __init__(
        self,
        records: Iterable[InstanceRecord],
        nodes: Sequence[EnrolledNode],
        intents: Sequence[Intent],
        last_pass: PassSummary | None,
        now_ms: int,
    ) -> None:
        self._by_state = instances_by_state(records)
        self._nodes = nodes
        self._intents = Count(intent.state for intent in intents)
        self._last_pass = last_pass
        found = last_pass.findings if last_pass is not None else ()
        self._findings = Count(str(finding.get("code")) for finding in found)
        self._now_ms = now_ms

    def collect(self) -> Iterable[Metric]:
        instances = GaugeMetricFamily("gpuaas_instances", "Instances by state.", labels=["state"])
        for state, count in self._by_state.items():
            instances.add_metric([state], count)
        yield instances
        ages = GaugeMetricFamily(
            "gpuaas_node_report_age_seconds", "Age of a node's last report.", labels=["node"]
        )
        for node in self._nodes:
            if node.reported_at_ms is not None:
                ages.add_metric([node.name], max(0, self._now_ms - node.reported_at_ms) / 1000)
        yield ages
        intents = GaugeMetricFamily(
            "gpuaas_intents_open", "Tasks asked for and not settled, by state.", labels=["state"]
        )
        for word in ("queued", "accepted", "refused"):
            intents.add_metric([word], self._intents[word])
        yield intents
        findings = GaugeMetricFamily(
            "gpuaas_findings", "What the last pass found, by code.", labels=["code"]
        )
        for code, count in sorted(self._findings.items()):
            findings.add_metric([code], count)
        yield findings
        if self._last_pass is not None:
            yield GaugeMetricFamily(
                "gpuaas_last_pass_timestamp_seconds",
                "When the last pass began, seconds since the epoch.",
                self._last_pass.started_at_ms / 1000,
            )
