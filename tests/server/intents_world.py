"""Projects, people and an artifact, for tests of publish and pull intents."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from reconciler.core.authority.accounts import Subject
from reconciler.core.names import ObjectRef
from reconciler.server.tokens import Tokens
from tests.core.authority.trust_builders import (
    Written,
    account,
    binding,
    ed25519,
    identity,
    manifest,
)
from tests.fakes.registry import FakeRegistry
from tests.server.auth_world import accept
from tests.server.harness import (
    NOW_MS,
    Keys,
    Plane,
    StillClock,
    a_store,
    running,
    settings_of,
)
from tests.services.oci import small_image

SETTINGS: dict[str, Any] = {"environment": "dev", "public_address": "https://gpuaas.example/"}
IMAGE = small_image("published")
DIGEST = str(IMAGE.manifest_digest)
REPOSITORY = "gpuaas/apps/acme/lab/notebook"
WISH = {"project": "acme/lab", "app": "notebook", "version": "1.0.0"}
BUILDER = "acme/lab/builder"
CHANNELS = {
    "stable": {
        "signature_scheme": "ecdsa-p256",
        "signing_key": "release-1",
        "builders": ["https://ci.example/build"],
    },
    "canary": {"signature_required": False, "provenance_required": False},
}


def artifact(path: str, digest: str = DIGEST, repository: str = REPOSITORY, **spec: Any) -> Written:
    known = {"kind": "oci", "repository": repository, "digest": digest, "state": "promoted"}
    ref = ObjectRef("Artifact", tuple(path.split("/")))
    return ref, manifest("Artifact", ref.name, {**known, **spec})


def environment(auth: str = "token", **registry: Any) -> Written:
    spec = {
        "domain": "dev.example",
        "registry": {"endpoint": "registry.example:443", "auth": auth, **registry},
        "trust": {"channel": "stable"},
    }
    return ObjectRef("Environment", ("dev",)), manifest("Environment", "dev", spec)


def world(*more: Written, auth: str = "token", **registry: Any) -> list[Written]:
    project = {"org_id": "org", "project_id": "p"}
    named = [
        (ObjectRef("Project", tuple(path.split("/"))), manifest("Project", path[-3:], project))
        for path in ("acme/lab", "acme/ops", "globex/lab")
    ]
    app = {"slug": "notebook", "display_name": "Notebook", "owner": "ada"}
    return [
        environment(auth, **registry),
        *named,
        (ObjectRef("App", ("notebook",)), manifest("App", "notebook", app)),
        (
            ObjectRef("TrustPolicy", ("main",)),
            manifest("TrustPolicy", "main", {"channels": CHANNELS}),
        ),
        *(identity(name) for name in ("ada", "nils", "vera", "gus")),
        binding("admins", "platform-admin", "", "ada"),
        binding("lab", "project-admin", "acme/lab", "nils"),
        binding("look", "viewer", "acme/lab", "vera"),
        binding("globex", "project-admin", "globex/lab", "gus"),
        account(BUILDER, "artifact-publisher", public_keys=[ed25519("b-1")]),
        *more,
    ]


@contextmanager
def a_plane(kind: str, folder: Path, registry: FakeRegistry) -> Iterator[Plane]:
    with (
        a_store(kind, folder) as store,
        running(store, registry=registry, **SETTINGS) as plane,
    ):
        accept(store, *world())
        yield plane


def shows(plane: Plane, who: str = "nils") -> dict[str, str]:
    """The header that a person sends, or a service account where the name has slashes."""
    tokens = Tokens(plane.store, Keys(), StillClock(), settings_of(**SETTINGS))
    subject = Subject.parse(who if "/" in who else f"identity:{who}")
    found = tokens.accounts.holder(subject or Subject("user", ""), NOW_MS)
    assert found is not None
    issued = tokens.issue(found[0], "b-1" if "/" in who else who, None)
    return {"Authorization": f"Bearer {issued.access_token}"}


def publish(plane: Plane, who: str = "nils", **more: Any) -> httpx.Response:
    wish = {**WISH, **more}
    return plane.client.post("/v1/intents/publish", json=wish, headers=shows(plane, who))


def pull(plane: Plane, project: str, artifact: str = "", who: str = "ada") -> httpx.Response:
    wish = {"project": project, "artifact": artifact or f"{REPOSITORY}@{DIGEST}"}
    return plane.client.post("/v1/intents/pull", json=wish, headers=shows(plane, who))


def complete(
    plane: Plane, found: dict[str, Any], digest: str = DIGEST, who: str = "nils"
) -> httpx.Response:
    path = f"/v1/intents/{found['id']}/complete"
    return plane.client.post(path, json={"digest": digest}, headers=shows(plane, who))


def opened(answer: httpx.Response) -> dict[str, Any]:
    assert answer.status_code == 201, answer.text
    document: dict[str, Any] = answer.json()
    return document


def unwrap(plane: Plane, found: dict[str, Any]) -> str:
    answer = plane.client.post("/v1/unwrap", json={"token": found["credential"]["hand_over"]})
    assert answer.status_code == 200, answer.text
    value: str = answer.json()["value"]
    return value
