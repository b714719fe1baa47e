"""A Secret shows its value to `reveal`, and to nothing else."""

from __future__ import annotations

import copy
import json
import logging
import pickle
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass

import pytest

from reconciler.ports import Secret

VALUE = "hunter2-and-more"


@dataclass(frozen=True)
class Holder:
    name: str
    secret: Secret


def _traceback_with_locals(secret: Secret) -> str:
    held = secret
    try:
        raise ValueError(held)
    except ValueError as error:
        return "".join(
            traceback.TracebackException.from_exception(error, capture_locals=True).format()
        )


def _logged(secret: Secret) -> str:
    record = logging.LogRecord("x", 20, "f", 1, "got %s and %r", (secret, [secret]), None)
    return logging.Formatter().format(record)


@pytest.mark.parametrize(
    "show",
    [
        repr,
        str,
        ascii,
        lambda secret: f"{secret} {secret!r}",
        lambda secret: f"{secret}",
        lambda secret: "%s %r" % (secret, secret),  # noqa: UP031
        lambda secret: repr([secret, {"a": (secret,)}]),
        lambda secret: repr(Holder("a", secret)),
        lambda secret: repr(asdict(Holder("a", secret))),
        lambda secret: repr(copy.deepcopy(Holder("a", secret))),
        lambda secret: json.dumps({"a": secret}, default=str),
        _logged,
        _traceback_with_locals,
    ],
)
def test_it_does_not_print(show: Callable[[Secret], str]) -> None:
    shown = show(Secret(VALUE))
    assert VALUE not in shown
    assert "***" in shown


@pytest.mark.parametrize(
    "leak",
    [
        json.dumps,
        pickle.dumps,
        copy.copy,
        vars,
        lambda secret: f"{secret:>40}",
        lambda secret: [*secret],
        bytes,
    ],
)
def test_it_does_not_leave_in_other_ways(leak: Callable[[Secret], object]) -> None:
    with pytest.raises(TypeError) as caught:
        leak(Secret(VALUE))
    assert VALUE not in str(caught.value)


def test_it_reveals_and_compares() -> None:
    assert Secret(VALUE).reveal() == VALUE
    assert Secret(VALUE) == Secret(VALUE) != Secret("other")
    assert len({Secret(VALUE), Secret(VALUE)}) == 1
