"""Whether a task is to be believed. Bytes in, a verdict out: no disk, no network, no clock.

Rules:
- Nothing in a task is read before its signature holds.
- A refusal never runs anything, and says why with a stable code: malformed, wrong_type,
  unknown_key, bad_signature, key_retired, wrong_node, expired, issued_in_future, replayed,
  instance_mismatch, engine_mismatch, engine_not_offered, nothing_to_control.
- A task that was accepted before is acknowledged again and not run again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pydantic import ValidationError

from node_agent.envelope import EnvelopeRefused, unseal
from node_agent.wire import (
    TASK_TYPE,
    AnyTask,
    ControlTask,
    LaunchTask,
    TaskAck,
    VerifierKey,
    parse_task,
)

ISSUED_AHEAD_MAX_MS = 60_000
"""How far the control plane's clock may be ahead of ours."""


@dataclass(frozen=True)
class Trust:
    """Whom this agent believes, and what it knows. `present`: is an instance to be there?"""

    node: str
    verifiers: tuple[VerifierKey, ...]
    min_version: int
    engines: frozenset[str]
    last_seq: int
    not_before_ms: int
    was_executed: Callable[[str], bool]
    present: Callable[[str], bool]


@dataclass(frozen=True)
class Accepted:
    task: AnyTask


@dataclass(frozen=True)
class Duplicate:
    """Accepted before: acknowledged again, not run again."""

    task: AnyTask


@dataclass(frozen=True)
class Refusal:
    """`task_id` is None when the signature did not hold: then not even the id is to be believed."""

    code: str
    message: str
    task_id: str | None = None


Verdict = Accepted | Duplicate | Refusal


def admit(raw: bytes, trust: Trust, now_ms: int) -> Verdict:
    """Judges one signed task envelope."""
    try:
        payload, key = unseal(raw, TASK_TYPE, trust.verifiers)
    except EnvelopeRefused as refused:
        return Refusal(refused.code, refused.message)
    if key.version < trust.min_version:
        message = f"signed with key version {key.version}, at least {trust.min_version} is wanted"
        return Refusal("key_retired", message)
    try:
        task = parse_task(payload)
    except ValidationError as error:
        return Refusal("malformed", f"signed, but not a task ({error.error_count()} problems)")
    refusal = _judge_binding(task, trust, now_ms)
    if refusal is not None:
        return refusal
    if trust.was_executed(task.task_id):
        return Duplicate(task)
    return _judge_freshness(task, trust, now_ms) or _judge_content(task, trust) or Accepted(task)


def acknowledgement(verdict: Verdict) -> TaskAck | None:
    """What to tell the control plane, or None when there is nobody to tell."""
    if isinstance(verdict, Accepted | Duplicate):
        return TaskAck(task_id=verdict.task.task_id, accepted=True)
    if verdict.task_id is None:
        return None
    return TaskAck(
        task_id=verdict.task_id, accepted=False, code=verdict.code, message=verdict.message
    )


def _judge_binding(task: AnyTask, trust: Trust, now_ms: int) -> Refusal | None:
    if task.node != trust.node:
        return Refusal("wrong_node", f"for node {task.node}, this is {trust.node}", task.task_id)
    if task.issued_at_ms > now_ms + ISSUED_AHEAD_MAX_MS:
        ahead_s = (task.issued_at_ms - now_ms) // 1_000
        return Refusal("issued_in_future", f"issued {ahead_s} s ahead of our clock", task.task_id)
    return None


def _judge_freshness(task: AnyTask, trust: Trust, now_ms: int) -> Refusal | None:
    if now_ms >= task.expires_at_ms:
        late_ms = now_ms - task.expires_at_ms
        return Refusal("expired", f"expired {late_ms} ms ago", task.task_id)
    if task.seq <= trust.last_seq:
        message = f"number {task.seq} is not above {trust.last_seq}, the last one accepted"
        return Refusal("replayed", message, task.task_id)
    if task.issued_at_ms < trust.not_before_ms:
        message = "issued before this agent lost part of its memory, so it may be a replay"
        return Refusal("replayed", message, task.task_id)
    return None


def _judge_content(task: AnyTask, trust: Trust) -> Refusal | None:
    if isinstance(task, LaunchTask):
        if task.workload.instance != task.instance:
            message = f"workload is for {task.workload.instance}, the task for {task.instance}"
            return Refusal("instance_mismatch", message, task.task_id)
        if (task.kind == "compose.launch") != (task.workload.engine == "compose"):
            message = f"{task.kind} does not launch what the {task.workload.engine} engine runs"
            return Refusal("engine_mismatch", message, task.task_id)
        if task.workload.engine not in trust.engines:
            engine = task.workload.engine
            message = (
                f"this agent does not offer the {engine} engine: start it with --engine {engine}"
            )
            return Refusal("engine_not_offered", message, task.task_id)
    if isinstance(task, ControlTask) and not trust.present(task.instance):
        message = f"nothing was launched for {task.instance}"
        return Refusal("nothing_to_control", message, task.task_id)
    return None
