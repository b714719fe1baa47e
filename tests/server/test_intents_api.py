"""Publish intents over HTTP: who may, what he gets, and what can't be done with it."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from reconciler.core.names import ArtifactKey, Digest
from reconciler.errors import Transient
from reconciler.use_cases import transfers
from reconciler.use_cases.transfers import opened_by
from tests.fakes.registry import FakeRegistry
from tests.server.auth_world import accept, audit
from tests.server.harness import (
    NOW_MS,
    Plane,
    refusal,
)
from tests.server.intents_world import (
    BUILDER,
    DIGEST,
    IMAGE,
    REPOSITORY,
    WISH,
    a_plane,
    artifact,
    complete,
    opened,
    publish,
    pull,
    shows,
    unwrap,
    world,
)
from tests.services.oci import small_image


@pytest.fixture
def registry() -> FakeRegistry:
    return FakeRegistry()


@pytest.fixture(params=["memory", "sqlite"])
def plane(
    request: pytest.FixtureRequest, tmp_path: Path, registry: FakeRegistry
) -> Iterator[Plane]:
    with a_plane(request.param, tmp_path, registry) as plane:
        yield plane


class TestPublishing:
    def test_what_the_answer_says(self, plane: Plane) -> None:
        found = opened(publish(plane))
        place = f"gpuaas/intents/{found['id']}"
        told = {name: found[name] for name in ("kind", "state", "repository", "place", "tag")}
        assert told == {
            "kind": "publish",
            "state": "open",
            "repository": REPOSITORY,
            "place": place,
            "tag": "1.0.0",
        }
        assert found["registry"] == {"endpoint": "registry.example:443", "plain_http": False}
        assert found["signature"] == {
            "channel": "stable",
            "signature_required": True,
            "signature_scheme": "ecdsa-p256",
            "signing_key_id": "release-1",
            "accepted_key_ids": [],
            "provenance_required": True,
            "predicate_types": ["https://slsa.dev/provenance/v1"],
            "builders": ["https://ci.example/build"],
        }
        assert found["credential"]["username"] == found["id"]
        assert found["credential"]["unwrap_url"] == "https://gpuaas.example/v1/unwrap"
        assert found["expires_at_ms"] == NOW_MS + 3_600_000

    def test_its_credential_opens_its_place_and_nothing_else(self, plane: Plane) -> None:
        found, other = opened(publish(plane)), opened(publish(plane))
        password = unwrap(plane, found)
        allowed = {f"gpuaas/intents/{found['id']}": ("pull", "push")}
        assert opened_by(plane.store, found["id"], password, NOW_MS) == allowed
        assert opened_by(plane.store, other["id"], password, NOW_MS) is None
        assert opened_by(plane.store, found["id"], "", NOW_MS) is None
        assert opened_by(plane.store, "f" * 26, password, NOW_MS) is None

    @pytest.mark.parametrize("who", ["ada", "nils", BUILDER])
    def test_who_may(self, plane: Plane, who: str) -> None:
        assert publish(plane, who).status_code == 201

    @pytest.mark.parametrize("who", ["vera", "gus"])
    def test_who_may_not(self, plane: Plane, who: str) -> None:
        status, code, message = refusal(publish(plane, who))
        assert (status, code) == (403, "not_permitted")
        assert message == (
            f"user/{who} may not do this: it needs apps.artifact.register in the project"
        )

    def test_a_caller_on_this_host_has_to_show_a_token_too(self, plane: Plane) -> None:
        answer = plane.client.post("/v1/intents/publish", json=WISH)
        assert refusal(answer)[:2] == (401, "token_required")

    @pytest.mark.parametrize(
        ("more", "status", "code"),
        [
            ({"project": "acme/none"}, 404, "no_such_project"),
            ({"app": "none"}, 404, "no_such_app"),
            ({"project": "acme"}, 422, "wish_invalid"),
            ({"version": "../1"}, 422, "wish_invalid"),
            ({"name": "a/b"}, 422, "wish_invalid"),
            ({"tag": "-x"}, 422, "wish_invalid"),
            ({"tag": "a b"}, 422, "wish_invalid"),
            ({"tag": f"sha256-{'a' * 64}.sig"}, 422, "wish_invalid"),
            ({"version": f"sha256-{'a' * 50}"}, 422, "wish_invalid"),
            ({"ttl_s": 1}, 422, "wish_invalid"),
            ({"kind": "vm"}, 422, "wish_invalid"),
            ({"more": 1}, 422, "wish_invalid"),
            ({"channel": "none"}, 422, "channel_unknown"),
            ({"kind": "blob"}, 409, "no_blob_store"),
        ],
    )
    def test_what_is_no_wish(
        self, plane: Plane, more: dict[str, Any], status: int, code: str
    ) -> None:
        assert refusal(publish(plane, "ada", **more))[:2] == (status, code)

    def test_a_channel_that_asks_for_nothing(self, plane: Plane) -> None:
        signature = opened(publish(plane, channel="canary"))["signature"]
        assert not signature["signature_required"]
        assert not signature["provenance_required"]

    def test_where_the_registry_asks_for_nothing_there_is_no_credential(self, plane: Plane) -> None:
        accept(plane.store, *world(auth="none"))
        found = opened(publish(plane))
        assert found["credential"] is None
        assert "unwrap" not in found["commands"]
        assert not any("login" in line for lines in found["commands"].values() for line in lines)
        assert opened_by(plane.store, found["id"], "", NOW_MS) is None

    def test_a_folder_takes_nothing(self, plane: Plane) -> None:
        accept(plane.store, *world(auth="none", layout_path="/srv/layout"))
        assert refusal(publish(plane))[:2] == (409, "registry_is_folder")

    def test_nobody_opens_intents_without_end(
        self, plane: Plane, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(transfers, "OPEN_MAX", 2)
        first = opened(publish(plane))
        assert publish(plane).status_code == 201
        assert refusal(publish(plane))[:2] == (429, "too_many_transfers")
        plane.client.delete(f"/v1/intents/{first['id']}", headers=shows(plane))
        assert publish(plane).status_code == 201

    def test_it_is_never_open_longer_than_the_settings_say(self, plane: Plane) -> None:
        assert opened(publish(plane, ttl_s=10**9))["expires_at_ms"] == NOW_MS + 3_600_000

    def test_a_version_with_a_plus_gets_a_tag_without(self, plane: Plane) -> None:
        assert opened(publish(plane, version="1.0.0+cu12"))["tag"] == "1.0.0_cu12"


class TestTheCredential:
    def test_it_is_unwrapped_once(self, plane: Plane) -> None:
        found = opened(publish(plane))
        unwrap(plane, found)
        again = plane.client.post("/v1/unwrap", json={"token": found["credential"]["hand_over"]})
        assert refusal(again)[:2] == (410, "wrap_spent")
        assert [one.result for one in audit(plane.store, "secrets.wrap.unwrap")] == [
            "done",
            "wrap_spent",
        ]

    def test_it_is_nowhere_but_in_its_wrapping(
        self, plane: Plane, caplog: pytest.LogCaptureFixture
    ) -> None:
        with caplog.at_level(logging.DEBUG):
            found = opened(publish(plane))
            password = unwrap(plane, found)
        assert plane.keys.paths("transfers") == ()
        kept = plane.store.transfer(found["id"])
        told = [*audit(plane.store), kept, caplog.text]
        assert password not in repr(told)
        assert found["credential"]["hand_over"] not in repr(told)
        shown = plane.client.get(f"/v1/intents/{found['id']}", headers=shows(plane))
        assert password not in shown.text
        assert kept is not None
        assert kept.credential_hash not in shown.text

    def test_nothing_is_left_of_one_that_could_not_be_handed_over(
        self, plane: Plane, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fails(*_: object) -> None:
            raise Transient("custody_sealed", "sealed")

        monkeypatch.setattr(plane.keys, "wrap", fails)
        assert refusal(publish(plane))[:2] == (503, "custody_sealed")
        assert list(plane.store.transfers()) == []
        assert plane.keys.paths("transfers") == ()


class TestCompleting:
    def push(self, registry: FakeRegistry, found: dict[str, Any]) -> None:
        registry.publish(found["place"], IMAGE)

    def test_it_is_copied_by_digest_and_what_to_commit_is_said(
        self, plane: Plane, registry: FakeRegistry
    ) -> None:
        found = opened(publish(plane))
        self.push(registry, found)
        answer = complete(plane, found)
        assert answer.status_code == 200, answer.text
        done = answer.json()
        place = ArtifactKey(found["place"], Digest.parse(DIGEST))
        assert registry.copied == [(place, REPOSITORY, "1.0.0")]
        assert (done["state"], done["digest"]) == ("completed", DIGEST)
        assert not done["verdict"]["good"]
        assert done["verdict"]["code"] == "unsigned"
        assert done["manifest"]["path"] == (
            "tenants/acme/projects/lab/artifacts/notebook/1.0.0/image.yaml"
        )
        assert f'digest: "{DIGEST}"' in done["manifest"]["content"]
        told = audit(plane.store, "artifacts.transfer.completed")
        assert [(one.actor, one.after) for one in told] == [("user/nils", f"{REPOSITORY}@{DIGEST}")]

    def test_the_manifest_is_one(self, plane: Plane, registry: FakeRegistry) -> None:
        from yaml import safe_load

        from reconciler.core.kinds import KINDS

        found = opened(publish(plane))
        self.push(registry, found)
        content = safe_load(complete(plane, found).json()["manifest"]["content"])
        model = KINDS["Artifact"].model.model_validate(content)
        assert model.model_dump(mode="json")["spec"]["repository"] == REPOSITORY

    def test_again_is_harmless_and_told_once(self, plane: Plane, registry: FakeRegistry) -> None:
        found = opened(publish(plane))
        self.push(registry, found)
        first, again = complete(plane, found), complete(plane, found)
        assert first.json() == again.json()
        assert len(audit(plane.store, "artifacts.transfer.completed")) == 1

    def test_its_credential_opens_nothing_any_more(
        self, plane: Plane, registry: FakeRegistry
    ) -> None:
        found = opened(publish(plane))
        password = unwrap(plane, found)
        self.push(registry, found)
        complete(plane, found)
        assert opened_by(plane.store, found["id"], password, NOW_MS) is None

    def test_another_digest_needs_another_intent(
        self, plane: Plane, registry: FakeRegistry
    ) -> None:
        found, other = opened(publish(plane)), small_image("moved in later")
        self.push(registry, found)
        complete(plane, found)
        registry.publish(found["place"], other)
        answer = complete(plane, found, str(other.manifest_digest))
        assert refusal(answer)[:2] == (409, "transfer_completed")
        assert [key.digest for key, _, _ in registry.copied] == [IMAGE.manifest_digest]

    def test_what_was_pushed_elsewhere_was_not_pushed(
        self, plane: Plane, registry: FakeRegistry
    ) -> None:
        found, other = opened(publish(plane)), opened(publish(plane))
        self.push(registry, other)
        registry.publish(REPOSITORY, IMAGE)
        assert refusal(complete(plane, found))[:2] == (409, "not_pushed")

    def test_bytes_that_are_not_the_digest_are_refused(
        self, plane: Plane, registry: FakeRegistry
    ) -> None:
        found = opened(publish(plane))
        self.push(registry, found)
        registry.corrupt(ArtifactKey(found["place"], IMAGE.manifest_digest), b"{}")
        assert refusal(complete(plane, found))[:2] == (409, "digest_mismatch")
        assert registry.copied == []

    def test_after_its_end(self, plane: Plane, registry: FakeRegistry) -> None:
        found = opened(publish(plane, ttl_s=60))
        password = unwrap(plane, found)
        self.push(registry, found)
        headers = shows(plane)
        plane.clock.ms += 60_000
        assert opened_by(plane.store, found["id"], password, plane.clock.ms) is None
        path = f"/v1/intents/{found['id']}"
        answer = plane.client.post(f"{path}/complete", json={"digest": DIGEST}, headers=headers)
        assert refusal(answer)[:2] == (410, "transfer_expired")
        assert plane.client.get(path, headers=headers).json()["state"] == "expired"

    def test_after_it_was_closed(self, plane: Plane, registry: FakeRegistry) -> None:
        found = opened(publish(plane))
        password = unwrap(plane, found)
        self.push(registry, found)
        closed = plane.client.delete(f"/v1/intents/{found['id']}", headers=shows(plane))
        assert closed.json()["state"] == "closed"
        assert opened_by(plane.store, found["id"], password, NOW_MS) is None
        assert refusal(complete(plane, found))[:2] == (409, "transfer_closed")
        again = plane.client.delete(f"/v1/intents/{found['id']}", headers=shows(plane))
        assert again.status_code == 200
        assert len(audit(plane.store, "artifacts.transfer.closed")) == 1

    @pytest.mark.parametrize("digest", ["latest", "", f"{DIGEST}0", DIGEST.upper()])
    def test_what_is_no_digest(self, plane: Plane, digest: str) -> None:
        assert refusal(complete(plane, opened(publish(plane)), digest))[:2] == (
            422,
            "digest_invalid",
        )

    def test_somebody_elses_can_not_be_told_from_none(
        self, plane: Plane, registry: FakeRegistry
    ) -> None:
        found = opened(publish(plane))
        self.push(registry, found)
        none = complete(plane, {"id": "0" * 26}, who="gus")
        assert refusal(complete(plane, found, who="gus"))[:2] == (404, "no_such_transfer")
        assert refusal(none)[:2] == (404, "no_such_transfer")
        closed = plane.client.delete(f"/v1/intents/{found['id']}", headers=shows(plane, "gus"))
        assert refusal(closed)[:2] == (404, "no_such_transfer")
        assert refusal(complete(plane, found, who="vera"))[:2] == (403, "not_permitted")

    def test_two_at_once_into_one_repository_wait(
        self, plane: Plane, registry: FakeRegistry
    ) -> None:
        found = opened(publish(plane))
        self.push(registry, found)
        plane.store.lease(f"transfer/{REPOSITORY}", "another", NOW_MS, 60_000)
        assert refusal(complete(plane, found))[:2] == (503, "transfer_busy")


def test_a_list_has_what_its_reader_may_see(plane: Plane) -> None:
    own = opened(publish(plane))
    other = opened(publish(plane, "ada", project="globex/lab"))

    def seen(who: str, **query: Any) -> list[str]:
        answer = plane.client.get("/v1/intents", params=query, headers=shows(plane, who))
        return [one["id"] for one in answer.json()["intents"]]

    assert {*seen("ada")} == {own["id"], other["id"]}
    assert seen("vera") == [own["id"]]
    assert seen("vera", project="globex/lab") == []
    assert seen("ada", project="globex/lab") == [other["id"]]
    assert seen("ada", last=0) == []


def test_every_answer_is_as_the_document_says(plane: Plane, registry: FakeRegistry) -> None:
    from jsonschema import Draft202012Validator

    from reconciler.server.openapi import openapi_document

    components = openapi_document()["components"]
    registry.publish(REPOSITORY, IMAGE)
    accept(plane.store, *world(artifact("acme/lab/notebook/1.0.0/image")))
    published = opened(publish(plane))
    registry.publish(published["place"], IMAGE)
    for name, document in {
        "OpenedIntent": published,
        "CompletedIntent": complete(plane, published).json(),
        "Intent": plane.client.get(f"/v1/intents/{published['id']}", headers=shows(plane)).json(),
    }.items():
        schema = {"$ref": f"#/components/schemas/{name}", "components": components}
        Draft202012Validator(schema).validate(json.loads(json.dumps(document)))
    pulled = opened(pull(plane, "acme/lab"))
    schema = {"$ref": "#/components/schemas/OpenedIntent", "components": components}
    Draft202012Validator(schema).validate(pulled)
