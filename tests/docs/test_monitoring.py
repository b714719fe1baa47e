"""Alerts and their page speak of metrics and headings that are there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from node_agent.wire import FailureReason
from reconciler.core.health import Health
from reconciler.core.records import EnrolledNode, PassSummary
from reconciler.server.metrics import Metrics, StateCollector
from reconciler.watch import PHASES

ROOT = Path(__file__).resolve().parents[2]
ALERTS = ROOT / "deploy" / "monitoring" / "alerts.yml"
PAGE = ROOT / "docs" / "how-to" / "monitor.md"
NAME = re.compile(r"gpuaas_[a-z_]*[a-z]")
SELECTOR = re.compile(r"gpuaas_[a-z_]+\{([^}]*)\}")
DURATION = re.compile(r"\d+[smhd]")


def exposition() -> str:
    node = EnrolledNode("gpu-1", "k", 1, "{}", 1)
    summary = PassSummary("done", "r", 1, 1, findings=({"code": "x"},), blocked={"y": 1})
    return Metrics(PHASES).exposition(StateCollector([], [node], [], summary, 2)).decode()


FAMILIES = {family.name: family for family in text_string_to_metric_families(exposition())}
SAMPLES = {sample.name for family in FAMILIES.values() for sample in family.samples}
SAMPLES |= {f"{name}_total" for name, family in FAMILIES.items() if family.type == "counter"}
LABELS = {
    "health": {health.value for health in Health},
    "reason": {reason.value for reason in FailureReason},
}


def rules() -> list[dict[str, Any]]:
    document = yaml.safe_load(ALERTS.read_text())
    assert list(document) == ["groups"]
    for group in document["groups"]:
        assert set(group) == {"name", "rules"}
    names = [group["name"] for group in document["groups"]]
    assert len(set(names)) == len(names)
    return [rule for group in document["groups"] for rule in group["rules"]]


RULES = {rule["alert"]: rule for rule in rules()}


def test_alerts_have_names_of_their_own() -> None:
    assert len(RULES) == len(rules()) > 10


@pytest.mark.parametrize("name", RULES)
def test_an_alert_is_well_formed(name: str) -> None:
    """As `promtool check rules` would have it, as far as that goes without its parser."""
    rule = RULES[name]
    assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}
    assert {"alert", "expr", "labels", "annotations"} <= set(rule)
    assert re.fullmatch(r"Gpuaas[A-Z][A-Za-z]+", name)
    assert DURATION.fullmatch(rule.get("for", "1m"))
    assert rule["labels"]["severity"] in ("page", "ticket")
    assert all(isinstance(text, str) for text in rule["annotations"].values())
    expr = rule["expr"]
    for opening, closing in ("()", "{}", "[]"):
        assert expr.count(opening) == expr.count(closing)
    assert re.search(r"[<>=]", expr)
    assert all(DURATION.fullmatch(one) for one in re.findall(r"\[([^\]]*)\]", expr))


@pytest.mark.parametrize("name", RULES)
def test_an_alert_asks_for_metrics_and_labels_that_exist(name: str) -> None:
    expr = RULES[name]["expr"]
    assert set(NAME.findall(expr)) <= SAMPLES
    for selector in SELECTOR.findall(expr):
        for label, value in re.findall(r'(\w+)="([^"]*)"', selector):
            assert value in LABELS.get(label, {value})
    if name != "GpuaasDown":
        assert NAME.search(expr)


@pytest.mark.parametrize("name", RULES)
def test_an_alert_says_what_it_means_and_what_to_do(name: str) -> None:
    page = PAGE.read_text()
    section = page.partition(f"### {name}\n")[2].partition("\n### ")[0]
    severity = RULES[name]["labels"]["severity"].capitalize()
    assert section.startswith(f"*{severity}.* ")
    assert len(section) > 120
    assert RULES[name]["annotations"]["runbook"] == f"docs/how-to/monitor.md#{name.lower()}"


def test_no_section_is_left_of_an_alert_that_is_gone() -> None:
    assert set(re.findall(r"^### (Gpuaas\w+)$", PAGE.read_text(), re.MULTILINE)) == set(RULES)


def test_every_metric_is_on_the_page_and_no_other() -> None:
    told = set(re.findall(r"^\| `(gpuaas_[a-z_]+)", PAGE.read_text(), re.MULTILINE))
    there = {
        f"{name}_total" if family.type == "counter" else name
        for name, family in FAMILIES.items()
        if not name.endswith("_created")  # The format's own: when a counter began.
    }
    assert told == there
    assert set(NAME.findall(PAGE.read_text())) <= there


def test_every_health_is_on_the_page() -> None:
    told = re.findall(r"^\| `([a-z]+)` \|", PAGE.read_text(), re.MULTILINE)
    assert sorted(told) == sorted(health.value for health in Health)
