"""What people and programs read of the control plane: records in, JSON-ready dicts out.

Rules: pure. The read API and the command line show the same documents. Nothing here is a secret.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from pydantic import ValidationError

from node_agent.wire import Report
from reconciler.core.health import told_health
from reconciler.core.names import InstanceKey, instance_of, member_name
from reconciler.core.records import (
    EnrolledNode,
    InstanceRecord,
    NumberedEvent,
    PassSummary,
    State,
)
from reconciler.views.access import instructions

Document = dict[str, Any]
OFFLINE_AFTER_MS = 45_000


def status_document(
    records: Mapping[InstanceKey, InstanceRecord],
    nodes: Sequence[EnrolledNode],
    last_pass: PassSummary | None,
    now_ms: int,
    offline_after_ms: int = OFFLINE_AFTER_MS,
) -> Document:
    """Everything on one page: {generated_at_ms, summary, last_pass, instances, nodes}."""
    return {
        "generated_at_ms": now_ms,
        "summary": {"instances": len(records), "by_state": instances_by_state(records.values())},
        "last_pass": pass_document(last_pass, now_ms),
        "instances": [instance_document(record) for record in in_order(records)],
        "nodes": [node_document(node, now_ms, offline_after_ms) for node in nodes],
    }


def in_order(records: Mapping[InstanceKey, InstanceRecord]) -> list[InstanceRecord]:
    """By name, the further members of an instance right after it."""
    return [records[key] for key in sorted(records, key=lambda key: key.partition("."))]


def instances_by_state(records: Iterable[InstanceRecord]) -> dict[str, int]:
    """How many instances stand in each state; every state is named, also at 0."""
    found = Counter(record.state for record in records)
    return {state.value: found[state] for state in State}


def instance_document(record: InstanceRecord) -> Document:
    """A record, flat; `instance` is its key and tenant, project and name are the parts of that.

    `member` and `member_of` say what a further member of an instance is called, and of which.
    """
    tenant, project, name = [*str(record.key).split("/"), "", ""][:3]
    fields = asdict(record)
    del fields["key"]
    member = member_name(record.key)
    seen = told_health(record)
    living = record.state is not State.DECOMMISSIONED
    return {
        **fields,
        "member": member,
        "member_of": str(instance_of(record.key)) if member else "",
        "instance": str(record.key),
        "tenant": tenant,
        "project": project,
        "name": name,
        "state": record.state.value,
        "health": seen.health.value if living else "",
        "health_since_ms": seen.since_ms if living else 0,
        "access": instructions(record),
        "endpoints": [endpoint.model_dump(mode="json") for endpoint in record.endpoints],
        "services": [service.model_dump(mode="json") for service in record.services],
        "conditions": [asdict(condition) for condition in record.conditions],
    }


def instance_with_members(
    records: Mapping[InstanceKey, InstanceRecord], key: InstanceKey
) -> Document:
    """One record and, in short, the further members of that instance, if any are not gone yet."""
    members = [
        {
            "instance": str(other),
            "member": member_name(other),
            "role": record.role,
            "node": record.node,
            "state": record.state.value,
            "ready": next((c.status for c in record.conditions if c.type == "Ready"), "Unknown"),
        }
        for other, record in sorted(records.items())
        if other != key and instance_of(other) == key and record.state is not State.DECOMMISSIONED
    ]
    found = instance_document(records[key])
    return {**found, "members": members} if members else found


def node_document(
    node: EnrolledNode, now_ms: int, offline_after_ms: int = OFFLINE_AFTER_MS
) -> Document:
    """A node by its last report. `state`: online, offline, never_reported, unreadable_report or
    revoked.
    """
    report = _report(node)
    age_ms = None if node.reported_at_ms is None else max(0, now_ms - node.reported_at_ms)
    inventory = report.inventory if report is not None else None
    return {
        "name": node.name,
        "state": _node_state(node, report, age_ms, offline_after_ms),
        "joined_at_ms": node.joined_at_ms,
        "reported_at_ms": node.reported_at_ms,
        "report_age_ms": age_ms,
        "agent_version": report.agent_version if report else None,
        "complete": report.complete if report else None,
        "engines": list(inventory.engines) if inventory else [],
        "engine_errors": dict(inventory.engine_errors) if inventory else {},
        "gpus": [gpu.model_dump(mode="json") for gpu in inventory.gpus] if inventory else [],
        "cpu_count": inventory.cpu_count if inventory else None,
        "memory_mib": inventory.memory_mib if inventory else None,
        "disk_free_mib": inventory.disk_free_mib if inventory else None,
        "workloads": [_workload(w.instance, w.phase, w.reason) for w in report.workloads]
        if report
        else [],
        "strays": [stray.model_dump(mode="json") for stray in report.strays] if report else [],
        "blobs": [blob.model_dump(mode="json") for blob in report.blobs] if report else [],
    }


def nodes_document(
    nodes: Sequence[EnrolledNode], now_ms: int, offline_after_ms: int = OFFLINE_AFTER_MS
) -> Document:
    return {"nodes": [node_document(node, now_ms, offline_after_ms) for node in nodes]}


def pass_document(last_pass: PassSummary | None, now_ms: int) -> Document | None:
    """The last pass and how long ago it ended."""
    if last_pass is None:
        return None
    return {
        **asdict(last_pass),
        "findings": [dict(finding) for finding in last_pass.findings],
        "age_ms": pass_age_ms(last_pass, now_ms),
    }


def pass_age_ms(last_pass: PassSummary, now_ms: int) -> int:
    """Milliseconds since the pass ended."""
    return max(0, now_ms - last_pass.started_at_ms - last_pass.duration_ms)


def event_document(numbered: NumberedEvent) -> Document:
    """One event with its cursor, flat."""
    event = numbered.event
    return {"cursor": numbered.cursor, **asdict(event), "data": dict(event.data)}


def events_document(events: Sequence[NumberedEvent], after: int = 0) -> Document:
    """A page of the stream; `next_after` is the cursor to ask with for the next page."""
    return {
        "events": [event_document(numbered) for numbered in events],
        "next_after": events[-1].cursor if events else after,
    }


def _report(node: EnrolledNode) -> Report | None:
    if node.report_json is None:
        return None
    try:
        return Report.model_validate_json(node.report_json)
    except ValidationError:
        # Written by another version; `unreadable_report` says so.
        return None


def _node_state(
    node: EnrolledNode, report: Report | None, age_ms: int | None, offline_after_ms: int
) -> str:
    if node.revoked_at_ms is not None:
        return "revoked"
    if node.report_json is None or age_ms is None:
        return "never_reported"
    if report is None:
        return "unreadable_report"
    return "online" if age_ms <= offline_after_ms else "offline"


def _workload(instance: str, phase: str, reason: str | None) -> Document:
    return {"instance": instance, "phase": str(phase), "reason": str(reason) if reason else None}
