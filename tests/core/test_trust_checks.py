"""Channels of Environments: which one an instance is asked for, and those that nobody rules."""

from __future__ import annotations

from typing import Any

import pytest

from reconciler.core.accept import accept, parse_accepted, to_desired
from reconciler.core.names import InstanceKey
from reconciler.core.records import Accepted
from reconciler.core.resolve import ResolveMemo, resolve
from renderers import render
from tests.core.builders import (
    ARTIFACT_FILE,
    ENVIRONMENT,
    ENVIRONMENT_FILE,
    IMAGE,
    LATER,
    PROMOTION_FILE,
    Documents,
    add,
    candidate,
    objects,
    world,
)

ONE = InstanceKey("acme/research/one")
TRUST = {"channel": "stable", "canary_channel": "beta"}
KEY = {
    "id": "ci",
    "scheme": "ecdsa-p256",
    "public_key": "-----BEGIN PUBLIC KEY-----\n"
    "MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAElURZFyJQd3qT0eb5dYgdd090f9N7\n"
    "SSv2ybaaxm/xKlqoePS7xBdxxkdq9Fkz6Tq3FFqudIgjoJnhRJf+m6QJXQ==\n"
    "-----END PUBLIC KEY-----\n",
}
POLICY_FILE = "platform/trust/artifacts.yaml"


def trusting(trust: dict[str, Any] | None, *channels: str) -> Documents:
    documents = world()
    if trust is not None:
        documents[ENVIRONMENT_FILE]["spec"]["trust"] = trust
    rules = {name: {"provenance_required": False} for name in channels}
    add(documents, POLICY_FILE, {"signing_keys": [KEY], "channels": rules})
    return documents


def promoted(documents: Documents, state: str) -> Documents:
    spec = documents[PROMOTION_FILE]["spec"]
    spec["state"] = state
    if state == "canary":
        spec["canary"] = {"projects": ["acme/research"]}
    return documents


CHANNELS = [
    (None, "active", ""),
    (TRUST, "active", "stable"),
    (TRUST, "canary", "beta"),
    (TRUST, "deprecated", "stable"),
    ({"channel": "stable"}, "canary", "stable"),
]


@pytest.mark.parametrize(("trust", "state", "channel"), CHANNELS)
def test_the_channel_follows_the_environment_and_the_promotion(
    trust: dict[str, Any] | None, state: str, channel: str
) -> None:
    documents = promoted(trusting(trust, "stable", "beta"), state)
    found = resolve(objects(documents), ENVIRONMENT, LATER)
    assert found.problems == ()
    assert found.instances[ONE].channel == channel
    assert found.instances[ONE].promotion == (state if channel else "")
    assert sorted(found.trust.channels) == ["beta", "stable"]


@pytest.mark.parametrize(
    ("trust", "channels", "told"),
    [
        (TRUST, ("stable", "beta"), []),
        (None, (), []),
        ({"channel": "stabel"}, ("stable",), [
            ("/spec/trust/channel", "no TrustPolicy says what the channel stabel needs",
             "did you mean stable?")]),
        (TRUST, ("stable",), [
            ("/spec/trust/canary_channel", "no TrustPolicy says what the channel beta needs",
             "describe it under channels of a TrustPolicy")]),
    ],
)  # fmt: skip
def test_a_channel_that_nobody_rules_is_told_and_blocks_nothing_but_launches(
    trust: dict[str, Any] | None, channels: tuple[str, ...], told: list[tuple[str, str, str]]
) -> None:
    documents = trusting(trust, *channels)
    found = resolve(objects(documents), ENVIRONMENT, LATER)
    problems = [p for p in found.problems if p.code == "channel_unknown"]
    assert [(p.pointer, p.message, p.hint) for p in problems] == told
    assert ONE in found.instances
    state = accept(candidate(documents), Accepted(), parse_accepted, ENVIRONMENT)
    assert state.instances[ONE].channel == (trust or {}).get("channel", "")


def test_who_has_channels_and_names_none_is_told() -> None:
    for documents, unverified in (
        (trusting(None, "stable"), ENVIRONMENT),
        (trusting({"channel": "stable"}, "stable"), ""),
        (trusting(None), ""),
        (world(), ""),
    ):
        state = accept(candidate(documents), Accepted(), parse_accepted, ENVIRONMENT)
        assert to_desired(state, render).unverified == unverified


def test_revoked_artifacts_are_known_by_digest_also_from_one_revision_to_the_next() -> None:
    memo = ResolveMemo()
    documents = world()
    before = resolve(objects(documents), ENVIRONMENT, LATER, memo=memo)
    assert before.revoked == {}
    documents[ARTIFACT_FILE]["spec"]["state"] = "revoked"
    after = resolve(objects(documents), ENVIRONMENT, LATER, memo=memo)
    digest = IMAGE.partition("@")[2]
    revoker = "Artifact/acme/research/hello/1.0.0/image"
    assert set(after.revoked.values()) == {revoker}
    assert {(known, app) for known, app, _ in after.revoked} == {(digest, "hello")}
    assert "artifact_revoked" in after.blocked[ONE]
    documents[ARTIFACT_FILE]["spec"]["state"] = "promoted"
    assert resolve(objects(documents), ENVIRONMENT, LATER, memo=memo).revoked == {}


def test_a_key_revoked_in_git_is_known_with_the_next_revision() -> None:
    memo = ResolveMemo()
    documents = trusting(TRUST, "stable", "beta")
    before = resolve(objects(documents), ENVIRONMENT, LATER, memo=memo).trust
    documents[POLICY_FILE]["spec"]["signing_keys"][0] = {
        **KEY, "revoked": {"at": "2026-01-02T03:04:05Z", "reason": "lost"}
    }  # fmt: skip
    after = resolve(objects(documents), ENVIRONMENT, LATER, memo=memo).trust
    assert (before.keys["ci"].revoked, after.keys["ci"].revoked) == ("", "lost")
    assert before.keys_hash == after.keys_hash
