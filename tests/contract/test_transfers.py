"""Intents with the custodies and the artifact store there are: a local folder, and Vault with the
login and the policies that a control plane has.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from reconciler.adapters.blobs_folder import FolderBlobs
from reconciler.adapters.clock import SystemClock
from reconciler.adapters.secrets_local import LocalSecrets
from reconciler.core.names import Digest
from reconciler.core.transfers import PublishWish, PullWish
from reconciler.errors import Refused
from reconciler.ports import SecretStore
from reconciler.server.tokens import TOKEN_KEY
from reconciler.settings import Settings
from reconciler.use_cases.handover import Asker, take
from reconciler.use_cases.transfers import (
    Desk,
    Opened,
    close,
    complete,
    open_publish,
    open_pull,
    opened_by,
)
from tests.fakes.registry import FakeRegistry
from tests.fakes.store import MemoryStore
from tests.server.auth_world import accept
from tests.server.intents_world import artifact, world
from tests.services.vault_place import VaultPlace, runtime

ASKER = Asker("user/nils", "user")
CONTENT = b"weights"
DIGEST = Digest.of(CONTENT)
SOURCE = "artifact_store://projects/acme/lab/artifacts/notebook/1.0.0/weights"
WISH = PublishWish("acme/lab", "notebook", "1.0.0", "weights", "blob")


@pytest.fixture(params=["local", "vault"])
def custody(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[SecretStore]:
    if request.param == "local":
        yield LocalSecrets(tmp_path / "secrets")
        return
    place: VaultPlace = request.getfixturevalue("own_vault")
    made = runtime(place)
    yield made.secrets
    made.client.close()


@pytest.fixture
def desk(custody: SecretStore, tmp_path: Path) -> Desk:
    custody.ensure_signing_key(TOKEN_KEY)
    store = MemoryStore()
    accept(store, *world())
    settings = Settings(environment="dev")
    blobs = FolderBlobs(tmp_path / "blobs")
    return Desk(store, custody, SystemClock(), FakeRegistry(), settings, blobs)


def password(desk: Desk, found: Opened) -> str:
    assert found.handed is not None
    ports: Any = desk
    return take(ports, found.handed.token, ASKER).reveal()


def test_a_credential_outlives_its_place_in_custody_and_is_had_once(desk: Desk) -> None:
    found = open_publish(desk, replace(WISH, content="oci", name="image"), ASKER)
    assert desk.secrets.paths("transfers") == ()
    secret = password(desk, found)
    now_ms = desk.clock.now_ms()
    assert opened_by(desk.store, found.transfer.id, secret, now_ms) == {
        f"gpuaas/intents/{found.transfer.id}": ("pull", "push")
    }
    with pytest.raises(Refused, match="wrap_spent"):
        password(desk, found)


def test_a_blob_is_taken_once_its_bytes_are_its_digest(desk: Desk) -> None:
    assert desk.blobs is not None
    found = open_publish(desk, WISH, ASKER)
    assert (found.transfer.repository, found.transfer.place) == (SOURCE, SOURCE)
    secret = password(desk, found)
    assert opened_by(desk.store, found.transfer.id, secret, desk.clock.now_ms()) is None
    desk.blobs.append(found.transfer.id, 0, [CONTENT])
    assert not desk.blobs.claimed(SOURCE, DIGEST)
    done = complete(desk, found.transfer.id, str(DIGEST), ASKER).transfer
    assert desk.blobs.claimed(SOURCE, DIGEST)
    assert (done.state, done.size_bytes) == ("completed", len(CONTENT))
    assert complete(desk, found.transfer.id, str(DIGEST), ASKER).transfer == done


def test_other_bytes_than_it_names_are_no_blob(desk: Desk) -> None:
    assert desk.blobs is not None
    found = open_publish(desk, WISH, ASKER).transfer
    desk.blobs.append(found.id, 0, [b"other"])
    with pytest.raises(Refused, match="digest_mismatch"):
        complete(desk, found.id, str(DIGEST), ASKER)
    assert desk.blobs.size_bytes(DIGEST) is None
    stored = desk.store.transfer(found.id)
    assert stored is not None
    assert stored.state == "open"


def test_what_somebody_else_uploaded_is_not_mine(desk: Desk) -> None:
    assert desk.blobs is not None
    mine, other = (open_publish(desk, WISH, ASKER).transfer for _ in range(2))
    desk.blobs.append(other.id, 0, [CONTENT])
    complete(desk, other.id, str(DIGEST), ASKER)
    with pytest.raises(Refused):
        complete(desk, mine.id, str(DIGEST), ASKER)


def test_closing_drops_what_was_uploaded(desk: Desk) -> None:
    assert desk.blobs is not None
    found = open_publish(desk, WISH, ASKER).transfer
    desk.blobs.append(found.id, 0, [CONTENT])
    close(desk, found.id, ASKER)
    assert desk.blobs.part(found.id).bytes_done == 0


def test_a_blob_is_pulled_by_who_may_see_it(desk: Desk) -> None:
    found = open_publish(desk, WISH, ASKER).transfer
    assert desk.blobs is not None
    desk.blobs.append(found.id, 0, [CONTENT])
    complete(desk, found.id, str(DIGEST), ASKER)
    ref, document = artifact("acme/lab/notebook/1.0.0/weights", str(DIGEST))
    spec = {**document["spec"], "kind": "blob", "source": SOURCE}
    del spec["repository"]
    accept(desk.store, *world((ref, {**document, "spec": spec})))
    named = f"{SOURCE}@{DIGEST}"
    pulled = open_pull(desk, PullWish("acme/lab", named), ASKER).transfer
    assert (pulled.digest, pulled.size_bytes) == (str(DIGEST), len(CONTENT))
    with pytest.raises(Refused, match="no_such_artifact"):
        open_pull(desk, PullWish("globex/lab", named), ASKER)


def test_whoever_registers_anothers_digest_gets_no_bytes(desk: Desk) -> None:
    found = open_publish(desk, WISH, ASKER).transfer
    assert desk.blobs is not None
    desk.blobs.append(found.id, 0, [CONTENT])
    complete(desk, found.id, str(DIGEST), ASKER)
    ref, document = artifact("globex/lab/notebook/1.0.0/mine", str(DIGEST), state="published")
    mine = SOURCE.replace("acme", "globex").replace("weights", "mine")
    spec = {**document["spec"], "kind": "blob", "source": mine}
    del spec["repository"]
    accept(desk.store, *world((ref, {**document, "spec": spec})))
    for digest in (DIGEST, Digest.of(b"nobody has it")):
        accept(desk.store, *world((ref, {**document, "spec": {**spec, "digest": str(digest)}})))
        with pytest.raises(Refused) as refused:
            open_pull(desk, PullWish("globex/lab", f"{mine}@{digest}"), ASKER)
        assert (refused.value.code, refused.value.message, refused.value.hint) == (
            "no_such_blob",
            "this blob is not in the artifact store as what its source says",
            "publish it from the project that its source names: gpuaas intent publish --kind blob",
        )
    desk.blobs.claim(mine, DIGEST)
    accept(desk.store, *world((ref, {**document, "spec": spec})))
    assert open_pull(desk, PullWish("globex/lab", f"{mine}@{DIGEST}"), ASKER).transfer.size_bytes
