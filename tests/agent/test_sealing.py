"""Sealed values open for their asker, in their place, unaltered; and in no other way."""

from __future__ import annotations

import base64
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node_agent.sealing import OneTimeKey, SealRefused, seal_values
from node_agent.wire import Secrets, SecretsRequest

NODE, INSTANCE = "gpu-1", "acme/research/hello"
VALUES = {"token": "hunter2-hunter2", "other": "ä\n\0"}
NAMES = st.dictionaries(st.text(max_size=20), st.text(max_size=200), max_size=5)


def asked(key: OneTimeKey, **changes: object) -> SecretsRequest:
    fields = {
        "node": NODE, "sent_at_ms": 1, "instance": INSTANCE, "names": ("token",),
        "public_key": key.public_key, **changes,
    }  # fmt: skip
    return SecretsRequest.model_validate(fields)


@settings(max_examples=50, deadline=None)
@given(values=NAMES)
def test_the_asker_gets_the_values(values: dict[str, str]) -> None:
    key = OneTimeKey()
    sent = Secrets.model_validate_json(seal_values(asked(key), values).canonical())
    assert key.open(sent, NODE, INSTANCE) == values


@settings(max_examples=50, deadline=None)
@given(at=st.integers(min_value=0), bit=st.integers(0, 7))
def test_one_bit_altered_opens_nothing(at: int, bit: int) -> None:
    key = OneTimeKey()
    answer = seal_values(asked(key), VALUES)
    sealed = bytearray(base64.b64decode(answer.sealed))
    sealed[at % len(sealed)] ^= 1 << bit
    altered = answer.model_copy(update={"sealed": base64.b64encode(sealed).decode()})
    with pytest.raises(SealRefused, match="seal_broken: the answer was altered on its way"):
        key.open(altered, NODE, INSTANCE)


def test_nothing_of_a_value_is_seen_from_outside() -> None:
    key = OneTimeKey()
    answers = [seal_values(asked(key), VALUES) for _ in range(2)]
    for answer in answers:
        seen = answer.canonical() + base64.b64decode(answer.sealed) + repr(key).encode()
        assert b"hunter2" not in seen
    # The same values to the same asker are never the same bytes.
    assert answers[0].sealed != answers[1].sealed
    assert answers[0].public_key != answers[1].public_key


@pytest.mark.parametrize("field", ["node", "instance", "asked_with"])
def test_an_answer_to_another_question_is_refused(field: str) -> None:
    key, other = OneTimeKey(), OneTimeKey()
    changes = {"node": "gpu-2", "instance": "acme/research/x", "asked_with": other.public_key}
    answer = seal_values(asked(key), VALUES).model_copy(update={field: changes[field]})
    with pytest.raises(SealRefused, match="not_for_us: the answer is one to another question"):
        key.open(answer, NODE, INSTANCE)


@pytest.mark.parametrize(
    "changes", [{"node": "gpu-2"}, {"instance": "acme/research/x"}], ids=["node", "instance"]
)
def test_relabelled_it_does_not_open(changes: dict[str, str]) -> None:
    """What was sealed for one place, and is said to be for another, stays closed."""
    key = OneTimeKey()
    answer = seal_values(asked(key, **changes), VALUES)
    claimed = answer.model_copy(update={"node": NODE, "instance": INSTANCE})
    with pytest.raises(SealRefused, match="seal_broken"):
        key.open(claimed, NODE, INSTANCE)


def test_another_key_opens_nothing() -> None:
    key, other = OneTimeKey(), OneTimeKey()
    answer = seal_values(asked(key), VALUES)
    for changes in ({"asked_with": other.public_key}, {"public_key": other.public_key}):
        opener = other if "asked_with" in changes else key
        with pytest.raises(SealRefused, match="seal_broken"):
            opener.open(answer.model_copy(update=changes), NODE, INSTANCE)


@pytest.mark.parametrize("point", ["0" * 64, "01" + "0" * 62])
def test_a_key_that_makes_every_secret_the_same_is_refused(point: str) -> None:
    """Points of low order."""
    with pytest.raises(SealRefused, match="bad_key: not a usable X25519 key"):
        seal_values(asked(OneTimeKey(), public_key=point), VALUES)
    key = OneTimeKey()
    answer = seal_values(asked(key), VALUES).model_copy(update={"public_key": point})
    with pytest.raises(SealRefused, match="bad_key"):
        key.open(answer, NODE, INSTANCE)


def test_what_is_no_base64_is_refused() -> None:
    key = OneTimeKey()
    answer = seal_values(asked(key), VALUES).model_copy(update={"sealed": "***"})
    with pytest.raises(SealRefused, match="seal_broken"):
        key.open(answer, NODE, INSTANCE)
    assert json.loads(answer.canonical())["sealed"] == "***"
