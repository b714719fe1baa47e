"""Prometheus metrics: counted as passes end, the rest read from the store at each scrape.

Rules:
- No label holds a name of an instance, project or commit: there may be any number of those. Nodes
  are named, since a fleet has few and they are what gets repaired.
- What is counted begins at 0 with the process, as Prometheus expects; what is read from the store
  is the same for every process that shares it.
- Every label's values are there from the start, at 0, so that the first failure is an increase.
"""

from __future__ import annotations

from collections import Counter as Count
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import get_args

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from node_agent.wire import FailureReason
from reconciler.core.convergence import Arrival
from reconciler.core.health import Health, told_health
from reconciler.core.lifecycle import EVENT
from reconciler.core.records import (
    EnrolledNode,
    Event,
    InstanceRecord,
    Intent,
    PassResult,
    PassSummary,
    State,
)
from reconciler.views.read_models import instances_by_state

_PASS_SECONDS = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_CONVERGE_SECONDS = (1, 2.5, 5, 10, 20, 30, 60, 120, 300, 600, 1_800, 3_600, 14_400, 86_400)
_UNKNOWN_REASON = "unknown"
WRAP_ALARMS = ("wrap_spent", "wrap_foreign")


@dataclass(frozen=True)
class PassNews:
    """What one pass has for the counters, beside how it ended. `seconds` is by phase."""

    events: Sequence[Event] = ()
    arrivals: Sequence[Arrival] = ()
    restarts: int = 0
    seconds: Mapping[str, float] = field(default_factory=dict)


class Metrics:
    """Owns a registry of its own; `observe` is told of every pass. `phases` are those of a pass."""

    def __init__(self, phases: Sequence[str] = ()) -> None:
        self.registry = registry = CollectorRegistry()
        self.last_good_s = 0.0
        """When this process last ended a pass that did not fail; 0 for never."""
        self._passes = Counter(
            "gpuaas_passes", "Passes, by how they ended.", ["result"], registry=registry
        )
        self._seconds = Histogram(
            "gpuaas_pass_duration_seconds",
            "How long passes take, without fetching and loading.",
            buckets=_PASS_SECONDS,
            registry=registry,
        )
        self._phase_seconds = Histogram(
            "gpuaas_pass_phase_duration_seconds",
            "How long the phases of a pass take, those that it goes through.",
            ["phase"],
            buckets=_PASS_SECONDS,
            registry=registry,
        )
        self._converged = Histogram(
            "gpuaas_commit_to_converged_seconds",
            "From when a commit was first seen until all instances it changed had converged.",
            buckets=_CONVERGE_SECONDS,
            registry=registry,
        )
        self._failures = Counter(
            "gpuaas_instance_failures", "Failed events, by reason.", ["reason"], registry=registry
        )
        self._restarts = Counter(
            "gpuaas_instance_restarts",
            "Restarts by nodes of what had ended by itself.",
            registry=registry,
        )
        self._events = Counter(
            "gpuaas_instance_events", "Events, by what happened.", ["event"], registry=registry
        )
        self._wrap_alarms = Counter(
            "gpuaas_wrap_alarms",
            "Handed over secrets that were asked for a second time or at another path.",
            ["reason"],
            registry=registry,
        )
        for reason in WRAP_ALARMS:
            self._wrap_alarms.labels(reason)
        for result in get_args(PassResult):
            self._passes.labels(result)
        for phase in phases:
            self._phase_seconds.labels(phase)
        for reason in (*FailureReason, _UNKNOWN_REASON):
            self._failures.labels(str(reason))

    def observe(self, summary: PassSummary, news: PassNews | None = None) -> None:
        news = news or PassNews()
        self._passes.labels(summary.result).inc()
        self._seconds.observe(summary.duration_ms / 1000)
        self.last_good_s = good_end_s(summary) or self.last_good_s
        for phase, seconds in news.seconds.items():
            self._phase_seconds.labels(phase).observe(seconds)
        for arrival in news.arrivals:
            self._converged.observe(arrival.took_ms / 1000)
        self._restarts.inc(news.restarts)
        for event in news.events:
            what = event.type.removeprefix(EVENT)
            self._events.labels(what).inc()
            if what == "failed":
                self._failures.labels(event.data.get("reason", _UNKNOWN_REASON)).inc()

    def wrap_alarm(self, reason: str) -> None:
        """Counts one of WRAP_ALARMS."""
        self._wrap_alarms.labels(reason).inc()

    def exposition(self, state: Collector) -> bytes:
        """Everything in the Prometheus text format; `state` is what the store says now."""
        now = CollectorRegistry()
        now.register(state)
        return generate_latest(self.registry) + generate_latest(now)


def good_end_s(summary: PassSummary | None) -> float:
    """When a pass that did not fail ended, seconds since the epoch; 0 for any other."""
    if summary is None or summary.result == "failed":
        return 0.0
    return (summary.started_at_ms + summary.duration_ms) / 1000


@dataclass(frozen=True)
class Process:
    """What this process says of itself at a scrape, beside the store."""

    leading: bool = False
    beat_age_s: float = 0.0
    last_good_s: float = 0.0
    custody_up: bool = True


class StateCollector(Collector):
    """The store at one moment, as gauges. Holds for one scrape."""

    def __init__(
        self,
        records: Iterable[InstanceRecord],
        nodes: Sequence[EnrolledNode],
        intents: Sequence[Intent],
        last_pass: PassSummary | None,
        now_ms: int,
        process: Process | None = None,
    ) -> None:
        self._records = tuple(records)
        self._nodes = nodes
        self._intents = Count(intent.state for intent in intents)
        self._last_pass = last_pass
        found = last_pass.findings if last_pass is not None else ()
        self._findings = Count(str(finding.get("code")) for finding in found)
        self._now_ms = now_ms
        self._process = process or Process()

    def collect(self) -> Iterable[Metric]:
        yield from self._of_instances()
        yield from self._of_nodes()
        yield from self._of_the_last_pass()
        yield GaugeMetricFamily(
            "gpuaas_leader",
            "1 where this process makes the passes, 0 where it stands by.",
            float(self._process.leading),
        )
        yield GaugeMetricFamily(
            "gpuaas_loop_heartbeat_age_seconds",
            "Since this process's loop last went round; it grows during a pass.",
            self._process.beat_age_s,
        )
        yield GaugeMetricFamily(
            "gpuaas_custody_up",
            "1 where the keys and secrets answered when they were last asked for, else 0.",
            float(self._process.custody_up),
        )

    def _of_instances(self) -> Iterable[Metric]:
        yield _by(
            "gpuaas_instances", "Instances by state.", "state", instances_by_state(self._records)
        )
        living = [one for one in self._records if one.state is not State.DECOMMISSIONED]
        found = Count(told_health(record).health for record in living)
        health = {word.value: found[word] for word in Health}
        yield _by(
            "gpuaas_instance_health", "Instances that are not gone, by health.", "health", health
        )
        yield GaugeMetricFamily(
            "gpuaas_oldest_unconverged_seconds",
            "Since when the instance is not as desired that is so for longest; 0 when all are.",
            max(0, self._now_ms - min(_unconverged(living), default=self._now_ms)) / 1000,
        )

    def _of_nodes(self) -> Iterable[Metric]:
        ages = GaugeMetricFamily(
            "gpuaas_node_report_age_seconds", "Age of a node's last report.", labels=["node"]
        )
        for node in self._nodes:
            if node.reported_at_ms is not None:
                ages.add_metric([node.name], max(0, self._now_ms - node.reported_at_ms) / 1000)
        yield ages
        intents = {word: self._intents[word] for word in ("queued", "accepted", "refused")}
        yield _by(
            "gpuaas_intents_open", "Tasks asked for and not settled, by state.", "state", intents
        )

    def _of_the_last_pass(self) -> Iterable[Metric]:
        yield _by("gpuaas_findings", "What the last pass found, by code.", "code", self._findings)
        last = self._last_pass
        yield _by(
            "gpuaas_blocked",
            "Actions held and instances on their way, by code, in the last pass.",
            "code",
            last.blocked if last is not None else {},
        )
        if last is not None:
            yield GaugeMetricFamily(
                "gpuaas_last_pass_timestamp_seconds",
                "When the last pass began, seconds since the epoch.",
                last.started_at_ms / 1000,
            )
        good_s = max(good_end_s(last), self._process.last_good_s)
        if good_s:
            yield GaugeMetricFamily(
                "gpuaas_last_successful_pass_timestamp_seconds",
                "When the last pass that did not fail ended, seconds since the epoch.",
                good_s,
            )


def _by(name: str, text: str, label: str, counts: Mapping[str, int]) -> Metric:
    family = GaugeMetricFamily(name, text, labels=[label])
    for word, count in sorted(counts.items()):
        family.add_metric([word], count)
    return family


def _unconverged(records: Iterable[InstanceRecord]) -> Iterable[int]:
    """Since when each instance is not as desired, of those that are not."""
    for record in records:
        for one in record.conditions:
            if one.type == "Converged" and one.status != "True":
                yield one.last_transition_ms
