"""What an operator's tools read: heartbeats, the exposition for Prometheus, an instance's life."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest
from prometheus_client.parser import text_string_to_metric_families

from node_agent.wire import FailureReason
from reconciler.core.convergence import Arrival
from reconciler.core.health import Health
from reconciler.core.names import InstanceKey, Revision
from reconciler.core.records import Condition, Event, PassSummary, State
from reconciler.loop import Beat
from reconciler.ports import Changes
from reconciler.server.metrics import PassNews, Process, StateCollector
from tests.fakes.store import MemoryStore
from tests.server.harness import NOW_MS, Plane, refusal, running
from tests.server.test_read_api import HELLO, RECORD, REVISION, SUMMARY

ROOT_NAME = re.compile(r"gpuaas_[a-z_]+")


@dataclass
class Heart:
    """A loop's sign of life, as old as it is told to be."""

    age_s: float = 0.4
    leading: bool = True
    custody_up: bool = True

    def __call__(self) -> Beat:
        return Beat(self.age_s, self.leading, self.custody_up)


@pytest.fixture
def heart() -> Heart:
    return Heart()


@pytest.fixture
def plane(heart: Heart) -> Iterator[Plane]:
    with running(MemoryStore(), heart) as plane:
        yield plane


def test_live_as_long_as_the_loop_goes_round(plane: Plane, heart: Heart) -> None:
    assert plane.client.get("/healthz").json() == {"status": "live", "heartbeat_age_s": 0.4}
    heart.age_s = 180.5
    assert refusal(plane.client.get("/healthz")) == (
        503, "loop_silent", "the loop last gave a sign of life 180 s ago",
    )  # fmt: skip


@pytest.mark.parametrize(("leading", "role"), [(True, "leading"), (False, "standing_by")])
def test_ready_says_which_part_it_plays(
    plane: Plane, heart: Heart, leading: bool, role: str
) -> None:
    heart.leading = leading
    plane.store.commit(Changes(summary=replace(SUMMARY, result="stalled")))
    ready = plane.client.get("/readyz").json()
    assert ready == {
        "status": "ready", "last_pass_age_s": 2.0, "role": role, "last_pass_result": "stalled",
    }  # fmt: skip
    assert f"gpuaas_leader {float(leading)}" in plane.client.get("/metrics").text


@pytest.mark.parametrize("up", [True, False])
def test_metrics_say_whether_custody_answers(plane: Plane, heart: Heart, up: bool) -> None:
    heart.custody_up = up
    assert f"gpuaas_custody_up {float(up)}" in plane.client.get("/metrics").text


# --- metrics -------------------------------------------------------------------------------------


def samples(text: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def event(what: str, **data: str) -> Event:
    return Event(what, f"apps.instance.{what}", HELLO, "c", REVISION, NOW_MS, data)


def test_the_exposition_parses_and_every_metric_says_what_it_is(plane: Plane) -> None:
    plane.enrol()
    text = plane.client.get("/metrics").text
    families = list(text_string_to_metric_families(text))
    assert len(families) > 15
    assert all(family.documentation.endswith(".") for family in families)
    assert {f.name for f in families if not ROOT_NAME.fullmatch(f.name)} == set()
    assert {f.name for f in families if f.type == "unknown"} == set()


def test_a_pass_is_counted(plane: Plane) -> None:
    news = PassNews(
        events=(event("failed", reason="exited"), event("failed"), event("running")),
        arrivals=(Arrival(REVISION, 4_000), Arrival(Revision("b" * 40), 70_000)),
        restarts=3,
        seconds={"fetch": 0.5, "plan": 0.02},
    )
    plane.metrics.observe(SUMMARY, news)
    plane.metrics.observe(replace(SUMMARY, result="failed"))
    found = samples(plane.client.get("/metrics").text)
    for name, labels, value in (
        ("gpuaas_passes_total", {"result": "done"}, 1),
        ("gpuaas_passes_total", {"result": "failed"}, 1),
        ("gpuaas_passes_total", {"result": "stalled"}, 0),
        ("gpuaas_pass_phase_duration_seconds_sum", {"phase": "fetch"}, 0.5),
        ("gpuaas_pass_phase_duration_seconds_count", {"phase": "plan"}, 1),
        ("gpuaas_commit_to_converged_seconds_count", {}, 2),
        ("gpuaas_commit_to_converged_seconds_bucket", {"le": "5.0"}, 1),
        ("gpuaas_instance_restarts_total", {}, 3),
        ("gpuaas_instance_failures_total", {"reason": "exited"}, 1),
        ("gpuaas_instance_failures_total", {"reason": "unknown"}, 1),
        ("gpuaas_instance_events_total", {"event": "failed"}, 2),
        ("gpuaas_last_successful_pass_timestamp_seconds", {}, (NOW_MS - 2_000) / 1000),
        ("gpuaas_loop_heartbeat_age_seconds", {}, 0.4),
    ):
        assert found[name, tuple(sorted(labels.items()))] == value, name


def test_what_may_fail_is_there_before_it_does(plane: Plane) -> None:
    """A counter that appears with its first failure shows no increase to an alert."""
    found = samples(plane.client.get("/metrics").text)
    for reason in FailureReason:
        assert found["gpuaas_instance_failures_total", (("reason", reason.value),)] == 0
    for health in Health:
        assert found["gpuaas_instance_health", (("health", health.value),)] == 0


def test_how_the_fleet_is(plane: Plane) -> None:
    ready = Condition("Ready", "True", "Ready", "", REVISION, 5)
    late = Condition("Converged", "False", "Pulling", "", REVISION, NOW_MS - 90_000)
    stuck = replace(ready, status="False", reason="Stuck")
    gone = replace(RECORD, key=InstanceKey("a/b/gone"), state=State.DECOMMISSIONED)
    plane.store.commit(
        Changes(
            records=[
                replace(RECORD, conditions=(ready,)),
                replace(RECORD, key=InstanceKey("a/b/c"), conditions=(stuck, late)),
                replace(RECORD, key=InstanceKey("a/b/d"), conditions=()),
                replace(gone, conditions=(replace(late, last_transition_ms=5),)),
            ],
            summary=replace(SUMMARY, blocked={"backing_off": 2, "pulling": 1}),
        )
    )
    found = samples(plane.client.get("/metrics").text)
    health = {
        labels[0][1]: value for (name, labels), value in found.items()
        if name == "gpuaas_instance_health" and value
    }  # fmt: skip
    assert health == {"ready": 1, "stuck": 1, "unknown": 1}
    assert found["gpuaas_oldest_unconverged_seconds", ()] == 90
    assert found["gpuaas_blocked", (("code", "backing_off"),)] == 2
    assert found["gpuaas_blocked", (("code", "pulling"),)] == 1


def test_a_process_that_only_failed_since_it_began_says_when_another_last_did_well() -> None:
    failed = PassSummary("failed", REVISION, NOW_MS, 5)

    def good(last: PassSummary | None, process: Process) -> list[float]:
        collector = StateCollector((), (), (), last, NOW_MS, process)
        name = "gpuaas_last_successful_pass_timestamp_seconds"
        return [m.samples[0].value for m in collector.collect() if m.name == name]

    assert good(failed, Process()) == []
    assert good(failed, Process(last_good_s=7)) == [7]
    assert good(SUMMARY, Process(last_good_s=7)) == [(NOW_MS - 2_000) / 1000]


def test_no_label_holds_a_name_of_ours(plane: Plane) -> None:
    plane.store.commit(Changes(records=[RECORD], summary=SUMMARY))
    plane.metrics.observe(SUMMARY, PassNews(events=(event("failed", reason="exited"),)))
    text = plane.client.get("/metrics").text
    for name in (*HELLO.split("/"), REVISION, RECORD.target_version):
        assert f'="{name}"' not in text


# --- timeline ------------------------------------------------------------------------------------


def test_an_instances_life_over_http(plane: Plane) -> None:
    former = InstanceKey("acme/research/was")
    events = [
        Event("e-1", "apps.instance.deploying", former, "c-1", REVISION, NOW_MS, {}),
        Event("e-2", "apps.instance.running", former, "c-1", REVISION, NOW_MS + 40, {}),
        Event(
            "e-3", "apps.instance.moved", HELLO, "c-2", REVISION, NOW_MS + 90,
            {"from": former, "to": HELLO},
        ),
    ]  # fmt: skip
    plane.store.commit(Changes(records=[RECORD], events=events))
    page = plane.client.get(f"/v1/instances/{HELLO}/timeline").json()
    assert page["format"] == "gpuaas.dev/timeline/v1"
    assert [(one["what"], one["step_ms"]) for one in page["entries"]] == [
        ("deploying", None), ("running", 40), ("moved", None),
    ]  # fmt: skip
    assert page["now"]["state"] == "running"
    newest = plane.client.get(f"/v1/instances/{HELLO}/timeline?last=1").json()
    assert ([one["what"] for one in newest["entries"]], newest["left_out"]) == (["moved"], 2)


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("none/timeline", (404, "no_such_instance", "there is no instance of that name")),
        (
            "none/timeline?last=x",
            (422, "invalid_parameter", "last: expected a number from 0 to 1000"),
        ),
    ],
)
def test_a_life_that_nobody_had(plane: Plane, path: str, said: tuple[int, str, str]) -> None:
    assert refusal(plane.client.get(f"/v1/instances/acme/research/{path}")) == said
