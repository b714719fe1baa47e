"""Every way in which a task is not to be believed, with the words the agent has for it."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node_agent.link import AgentKey
from node_agent.tasks import Accepted, Duplicate, Refusal, Trust, acknowledgement, admit
from node_agent.wire import POLL_TYPE, TASK_TYPE
from tests.agent.cases import (
    INSTANCE,
    NODE,
    NOW_MS,
    control,
    launch,
    remove,
    sealed,
    verifier,
    workload,
)
from tests.agent.topology_world import service, topology_workload

TOPOLOGY = topology_workload(service("api"))
OURS, RETIRED, STRANGER = AgentKey.generate(), AgentKey.generate(), AgentKey.generate()
TRUST = Trust(
    node=NODE,
    verifiers=(verifier(OURS, 2), verifier(RETIRED, 1)),
    min_version=2,
    engines=frozenset({"process", "compose"}),
    last_seq=4,
    not_before_ms=0,
    was_executed=lambda task_id: task_id == "task-3",
    present=lambda instance: instance == INSTANCE,
)


def _forged() -> bytes:
    document = json.loads(sealed(launch(5), OURS))
    other = json.loads(sealed(launch(6), STRANGER))
    return json.dumps({**document, "payload": other["payload"]}).encode()


REFUSED: dict[str, tuple[bytes, str, str]] = {
    "forged": (_forged(), "bad_signature", "the signature does not match the payload"),
    "stranger": (
        sealed(launch(5), STRANGER), "unknown_key", "signed by no key that is trusted here",
    ),
    "lower key version": (
        sealed(launch(5), RETIRED), "key_retired",
        "signed with key version 1, at least 2 is wanted",
    ),
    "another kind of message": (
        sealed(launch(5), OURS, POLL_TYPE), "wrong_type", f"expected {TASK_TYPE}",
    ),
    "no envelope": (b"[1]", "malformed", "not a DSSE envelope (ValueError)"),
    "signed, but no task": (
        OURS.seal(b'{"kind":"format.disk"}', TASK_TYPE), "malformed",
        "signed, but not a task (1 problems)",
    ),
    "foreign": (
        sealed(launch(5, node="n2"), OURS), "wrong_node", "for node n2, this is n1",
    ),
    "expired": (
        sealed(launch(5, expires_at_ms=NOW_MS - 7), OURS), "expired", "expired 7 ms ago",
    ),
    "future": (
        sealed(launch(5, now_ms=NOW_MS + 90_000), OURS), "issued_in_future",
        "issued 90 s ahead of our clock",
    ),
    "replayed": (
        sealed(launch(4), OURS), "replayed", "number 4 is not above 4, the last one accepted",
    ),
    "two instances": (
        sealed(launch(5, instance="a/b/c"), OURS), "instance_mismatch",
        "workload is for acme/research/web, the task for a/b/c",
    ),
    "compose task, docker workload": (
        sealed(launch(5, workload(engine="docker"), kind="compose.launch"), OURS),
        "engine_mismatch",
        "compose.launch does not launch what the docker engine runs",
    ),
    "plain task, compose workload": (
        sealed(launch(5, TOPOLOGY), OURS), "engine_mismatch",
        "oci.launch does not launch what the compose engine runs",
    ),
    "nothing to control": (
        sealed(control(5, True, instance="a/b/c"), OURS), "nothing_to_control",
        "nothing was launched for a/b/c",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", sorted(REFUSED))
def test_refusals(case: str) -> None:
    raw, code, message = REFUSED[case]
    verdict = admit(raw, TRUST, NOW_MS)
    assert isinstance(verdict, Refusal)
    assert (verdict.code, verdict.message) == (code, message)


def test_an_engine_that_is_not_offered() -> None:
    verdict = admit(sealed(launch(5), OURS), replace(TRUST, engines=frozenset()), NOW_MS)
    assert isinstance(verdict, Refusal)
    assert verdict.message == (
        "this agent does not offer the process engine: start it with --engine process"
    )


def test_a_task_from_before_the_memory_was_lost() -> None:
    verdict = admit(sealed(launch(5), OURS), replace(TRUST, not_before_ms=NOW_MS + 1), NOW_MS)
    assert isinstance(verdict, Refusal)
    assert (verdict.code, "may be a replay" in verdict.message) == ("replayed", True)


@pytest.mark.parametrize(
    "task",
    [
        launch(5), control(6, False), remove(7), launch(8, TOPOLOGY, kind="compose.launch"),
        control(9, True, kind="compose.control"), remove(10, kind="compose.remove"),
    ],
    ids=lambda t: t.kind,
)  # fmt: skip
def test_a_genuine_task_is_accepted(task: Any) -> None:
    assert admit(sealed(task, OURS), TRUST, NOW_MS) == Accepted(task)


def test_a_task_accepted_before_is_acknowledged_again_even_late() -> None:
    verdict = admit(sealed(launch(3), OURS), TRUST, NOW_MS + 3_600_000)
    assert isinstance(verdict, Duplicate)
    ack = acknowledgement(verdict)
    assert ack is not None
    assert ack.accepted


def test_a_task_whose_signature_does_not_hold_is_not_answered() -> None:
    assert acknowledgement(admit(REFUSED["forged"][0], TRUST, NOW_MS)) is None


def test_a_refusal_goes_back_with_its_reason() -> None:
    ack = acknowledgement(admit(REFUSED["replayed"][0], TRUST, NOW_MS))
    assert ack is not None
    assert (ack.task_id, ack.accepted, ack.code) == ("task-4", False, "replayed")


@given(st.binary(max_size=200))
def test_noise_never_raises(raw: bytes) -> None:
    assert isinstance(admit(raw, TRUST, NOW_MS), Refusal)


@given(st.integers(0, 10_000), st.integers(0, 255))
def test_no_flipped_byte_gets_in(position: int, value: int) -> None:
    task = launch(5)
    raw = bytearray(sealed(task, OURS))
    raw[position % len(raw)] = value
    verdict = admit(bytes(raw), TRUST, NOW_MS)
    assert isinstance(verdict, Refusal) or verdict == Accepted(task)
