"""What the Environment says of signing keys: what it means, and what can't be meant."""

from __future__ import annotations

from typing import Any

import pytest

from reconciler.core.accept import accept, parse_accepted, to_desired
from reconciler.core.desired import KeyWish
from reconciler.core.guarding import key_wishes
from reconciler.core.kinds.environment import EnvironmentSpec
from reconciler.core.resolve import resolve
from renderers import render
from tests.core import builders as b

CASES: list[tuple[dict[str, Any], dict[str, KeyWish]]] = [
    ({}, {}),
    ({"tasks": {"version": 2}}, {"tasks": KeyWish(2, 1)}),
    ({"tasks": {"version": 3, "min_version": 2}}, {"tasks": KeyWish(3, 2)}),
    ({"artifacts": {"version": 2}}, {"artifacts": KeyWish(2, 1)}),
    (
        {"registry_tokens": {"version": 2, "min_version": 2}},
        {"registry-tokens": KeyWish(2, 2)},
    ),
    # It is a problem of the manifest, and does no harm before that is known.
    ({"tasks": {"version": 2, "min_version": 3}}, {"tasks": KeyWish(2, 2)}),
]


def spec(keys: dict[str, Any]) -> dict[str, Any]:
    return {**b.world()[b.ENVIRONMENT_FILE]["spec"], "signing_keys": keys}


@pytest.mark.parametrize(("said", "meant"), CASES)
def test_wishes(said: dict[str, Any], meant: dict[str, KeyWish]) -> None:
    assert key_wishes(EnvironmentSpec.model_validate(spec(said))) == meant


def test_wishes_of_what_is_accepted() -> None:
    documents = b.world()
    documents[b.ENVIRONMENT_FILE]["spec"] = spec({"tasks": {"version": 2}})
    candidate = b.candidate(documents)
    state = accept(candidate, b.accepted(documents), parse_accepted, b.ENVIRONMENT)
    assert to_desired(state, render).keys == {"tasks": KeyWish(2)}


def test_one_version_has_to_be_left() -> None:
    documents = b.world()
    documents[b.ENVIRONMENT_FILE]["spec"] = spec({"tasks": {"version": 2, "min_version": 3}})
    (problem,) = resolve(b.objects(documents), b.ENVIRONMENT, b.REVISION).problems
    assert (problem.code, problem.object) == (
        "min_version_above_version",
        f"Environment/{b.ENVIRONMENT}",
    )
    assert problem.message == (
        "min_version 3 of the tasks key would leave no version to sign with: the one wanted is 2"
    )
    assert problem.hint == "write at most 2, or raise version first"
