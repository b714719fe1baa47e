"""What a real registry lets a token do, and everything that it does not."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from reconciler.adapters.clock import SystemClock
from reconciler.adapters.registry_oci import OciRegistry
from reconciler.adapters.secrets_local import LocalSecrets
from reconciler.artifacts.registry_tokens import RegistryTokens, Scopes, bundle
from reconciler.core.names import ArtifactKey, Digest
from reconciler.devkit import images
from reconciler.devkit.services import TokenAuth, start_registry
from reconciler.errors import Refused
from reconciler.ports import REGISTRY_KEY
from reconciler.settings import Settings
from tests.fakes.clock import FakeClock
from tests.services import go_tools
from tests.services.token_registry import TokenRegistry, open_token_registry
from tests.services.vault_place import VaultPlace, runtime

OURS, THEIRS = "gpuaas/intents/ours", "gpuaas/apps/acme/research/theirs"
PULL: tuple[str, ...] = ("pull",)
PUSH = ("pull", "push")
MINUTE_S = 60
LEEWAY_S = 60
"""What distribution allows clocks to differ by."""


@dataclass(frozen=True)
class Place:
    """The registry with an image in both repositories."""

    registry: TokenRegistry
    digest: Digest
    config: Digest
    manifest: bytes

    def ask(self, token: str | None, method: str, path: str, **more: Any) -> httpx.Response:
        headers = {"Authorization": f"Bearer {token}"} if token is not None else {}
        headers |= more.pop("headers", {"Accept": images.MANIFEST_TYPE})
        url = f"http://{self.registry.endpoint}/v2/{path}"
        return httpx.request(method, url, headers=headers, trust_env=False, **more)

    def tokens(self, now_s: float | None = None, **settings: Any) -> RegistryTokens:
        """Made as they are not to be made."""
        clock = SystemClock() if now_s is None else FakeClock(int(now_s * 1000))
        changed = self.registry.settings.model_copy(update=settings)
        return RegistryTokens(self.registry.secrets, clock, changed)


@pytest.fixture(scope="module", params=["distribution 2", "distribution 3"])
def place(request: pytest.FixtureRequest, service_root: Path) -> Iterator[Place]:
    if request.param == "distribution 2":
        yield filled(request.getfixturevalue("token_registry"))
        return
    program = str(go_tools.program("distribution"))
    with open_token_registry(service_root / "distribution-3", program=program) as registry:
        yield filled(registry)


def filled(registry: TokenRegistry) -> Place:
    built = images.build_site("1.0.0")
    for repository in (OURS, THEIRS):
        token = registry.push_token(repository)
        images.push(built, registry.endpoint, repository, "1", token)
    config = Digest.parse(json.loads(built.manifest)["config"]["digest"])
    return Place(registry, built.manifest_digest, config, built.manifest)


@pytest.fixture
def registry(place: Place) -> Iterator[OciRegistry]:
    opened = OciRegistry(Settings(), place.registry.tokens.bearer)
    yield opened
    opened.close()


MANIFEST = {"Content-Type": images.MANIFEST_TYPE}


def requests_of(place: Place, repository: str) -> dict[str, tuple[str, str, dict[str, Any]]]:
    manifest = {"content": place.manifest, "headers": MANIFEST}
    return {
        "read a manifest": ("GET", f"{repository}/manifests/{place.digest}", {}),
        "ask for a manifest": ("HEAD", f"{repository}/manifests/{place.digest}", {}),
        "read a tag": ("GET", f"{repository}/manifests/1", {}),
        "list tags": ("GET", f"{repository}/tags/list", {}),
        "read a blob": ("GET", f"{repository}/blobs/{place.config}", {}),
        "begin an upload": ("POST", f"{repository}/blobs/uploads/", {}),
        "put a manifest": ("PUT", f"{repository}/manifests/{place.digest}", manifest),
        "move a tag": ("PUT", f"{repository}/manifests/1", manifest),
        "delete a manifest": ("DELETE", f"{repository}/manifests/{place.digest}", {}),
        "delete a blob": ("DELETE", f"{repository}/blobs/{place.config}", {}),
    }


READS = ("read a manifest", "ask for a manifest", "read a tag", "list tags", "read a blob")
WRITES = ("begin an upload", "put a manifest", "move a tag")
DELETES = ("delete a manifest", "delete a blob")


# --- what is let in ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("actions", "what"),
    [*((PULL, what) for what in READS), *((PUSH, what) for what in (*READS, *WRITES))],
)
def test_a_token_opens_what_it_says(place: Place, actions: tuple[str, ...], what: str) -> None:
    method, path, more = requests_of(place, OURS)[what]
    answer = place.ask(place.registry.mint({OURS: actions}), method, path, **more)
    assert answer.status_code in (200, 201, 202), answer.text


def test_two_repositories_are_opened_for_a_copy_that_passes_no_bytes(place: Place) -> None:
    token = place.registry.mint({THEIRS: PULL, "gpuaas/apps/acme/research/copied": PUSH})
    path = "gpuaas/apps/acme/research/copied/blobs/uploads/"
    asked = {"mount": str(place.config), "from": THEIRS}
    assert place.ask(token, "POST", path, params=asked).status_code == 201


def test_the_control_plane_reads_with_tokens_of_its_own(
    place: Place, registry: OciRegistry
) -> None:
    for repository in (OURS, THEIRS):
        seen = registry.look_up(place.registry.address, ArtifactKey(repository, place.digest))
        assert seen.exists
    missing = ArtifactKey(OURS, Digest.of(b"nothing"))
    assert not registry.look_up(place.registry.address, missing).exists


def test_without_tokens_it_is_told_what_to_set(place: Place, registry: OciRegistry) -> None:
    endpoint = replace(place.registry.address, token_auth=False)
    with pytest.raises(Refused, match=r"registry_denied: .*401.*registry\.auth"):
        registry.look_up(endpoint, ArtifactKey(OURS, place.digest))


# --- what is not ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scopes", "repository", "what"),
    [
        *(({OURS: PULL}, OURS, what) for what in (*WRITES, *DELETES)),
        *(({OURS: PUSH}, OURS, what) for what in DELETES),
        *(({OURS: PUSH}, THEIRS, what) for what in (*READS, *WRITES, *DELETES)),
        *(({OURS: ("push",)}, OURS, what) for what in READS),
        *(({}, OURS, what) for what in (*READS, *WRITES, *DELETES)),
        # What begins like ours, and what ours begins with, is another's.
        *(({OURS: PUSH}, f"{OURS}/below", what) for what in WRITES),
        *(({OURS: PUSH}, "gpuaas/intents", what) for what in WRITES),
    ],
)
def test_it_opens_nothing_else(place: Place, scopes: Scopes, repository: str, what: str) -> None:
    method, path, more = requests_of(place, repository)[what]
    answer = place.ask(place.registry.mint(scopes), method, path, **more)
    assert answer.status_code == 401, answer.text
    assert "insufficient_scope" in answer.headers["WWW-Authenticate"]


def test_a_blob_of_another_repository_is_not_mounted(place: Place) -> None:
    asked = {"mount": str(place.config), "from": THEIRS}
    token = place.registry.mint({OURS: PUSH})
    answer = place.ask(token, "POST", f"{OURS}/blobs/uploads/", params=asked)
    assert answer.status_code == 401


@pytest.mark.parametrize("scopes", [{}, {OURS: PUSH}, {"catalog": ("*",)}, {"*": ("*",)}])
def test_nobody_lists_the_repositories(place: Place, scopes: Scopes) -> None:
    answer = place.ask(place.registry.mint(scopes), "GET", "_catalog")
    assert answer.status_code == 401


@pytest.mark.parametrize("name", ["*", "gpuaas/intents/*", "gpuaas/intents", "OURS", ""])
def test_there_is_no_pattern_in_a_scope(place: Place, name: str) -> None:
    method, path, _ = requests_of(place, OURS)["read a manifest"]
    assert place.ask(place.registry.mint({name: PUSH}), method, path).status_code == 401


def read(place: Place, token: str | None) -> httpx.Response:
    method, path, _ = requests_of(place, OURS)["read a manifest"]
    return place.ask(token, method, path)


def made(tokens: RegistryTokens, ttl_s: float = 300) -> str:
    return tokens.issue({OURS: PULL}, "test", ttl_s).token.reveal()


def test_who_has_no_token_is_told_where_to_get_one(place: Place) -> None:
    answer = read(place, None)
    assert answer.status_code == 401
    challenge = answer.headers["WWW-Authenticate"]
    assert f'realm="http://{place.registry.realm_listen}/v1/registry/token"' in challenge
    assert 'service="registry"' in challenge
    assert f'scope="repository:{OURS}:pull"' in challenge


def test_a_token_ends(place: Place) -> None:
    now_s = SystemClock().now_ms() / 1000
    # The registry adds its leeway to the end, so that tokens may be as short as they should be.
    long_over = place.tokens(now_s - 300 - LEEWAY_S - 5)
    assert read(place, made(long_over, 300)).status_code == 401
    assert read(place, made(place.tokens(now_s - 300 + 5), 300)).status_code == 200


def test_a_token_of_the_future_is_none(place: Place) -> None:
    later = place.tokens(SystemClock().now_ms() / 1000 + LEEWAY_S + 60)
    assert read(place, made(later)).status_code == 401


@pytest.mark.parametrize(
    "settings",
    [
        {"registry_token_service": "another-registry"},
        {"registry_token_issuer": "another-control-plane"},
    ],
)
def test_a_token_for_another_is_none(place: Place, settings: dict[str, Any]) -> None:
    assert read(place, made(place.tokens(**settings))).status_code == 401


def test_a_key_has_the_name_that_this_registry_gives_it(place: Place) -> None:
    """Each of the two releases believes its own form alone; the setting says which."""
    names = {"libtrust", "thumbprint"} - {place.registry.settings.registry_token_key_id}
    (other,) = names
    assert read(place, made(place.tokens(registry_token_key_id=other))).status_code == 401


def test_a_token_of_another_key_is_none(place: Place, tmp_path: Path) -> None:
    others = RegistryTokens(LocalSecrets(tmp_path), SystemClock(), place.registry.settings)
    token = made(others)
    assert read(place, token).status_code == 401
    # Nor by bearing the name of a key that is believed.
    _, payload, signature = token.split(".")
    header = made(place.tokens()).split(".")[0]
    assert read(place, f"{header}.{payload}.{signature}").status_code == 401


def altered(token: str, **claims: object) -> str:
    header, payload, signature = token.split(".")
    document = json.loads(base64.urlsafe_b64decode(payload + "=="))
    return f"{header}.{segment(document | claims)}.{signature}"


def segment(document: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(document).encode()).rstrip(b"=").decode()


def test_an_altered_token_is_none(place: Place) -> None:
    token = made(place.tokens())
    access = [{"type": "repository", "name": OURS, "actions": ["pull", "push", "delete"]}]
    assert read(place, altered(token, access=access)).status_code == 401
    assert read(place, altered(token, exp=2**33)).status_code == 401
    header, payload, signature = token.split(".")
    unsigned = segment({"alg": "none", "typ": "JWT"})
    assert read(place, f"{unsigned}.{payload}.").status_code == 401
    keyed = segment({"alg": "HS256", "typ": "JWT", "kid": "x"})
    assert read(place, f"{keyed}.{payload}.{signature}").status_code == 401
    assert read(place, f"{header}.{payload}").status_code == 401


# --- keys ----------------------------------------------------------------------------------------


def test_a_vault_signs_what_a_registry_believes(own_vault: VaultPlace, service_root: Path) -> None:
    """With the rights that a control plane has there; the key never leaves it."""
    plane = runtime(own_vault)
    keys = TokenAuth("http://127.0.0.1:1/v1/registry/token", bundle(plane.secrets))
    token = made(RegistryTokens(plane.secrets, SystemClock(), Settings()))
    with start_registry(service_root / "vault-registry", token=keys) as registry:
        url = f"http://{registry.endpoint}/v2/{OURS}/tags/list"
        headers = {"Authorization": f"Bearer {token}"}
        assert httpx.get(url, headers=headers, trust_env=False).status_code == 404
        assert httpx.get(url, trust_env=False).status_code == 401
    plane.client.close()


def test_a_new_key_signs_once_the_one_before_is_retired(tmp_path: Path) -> None:
    """A registry that was not told of the new version goes on as if nothing had happened."""
    secrets = LocalSecrets(tmp_path)
    tokens = RegistryTokens(secrets, FakeClock(), Settings())
    first = made(tokens).split(".")[0]
    secrets.rotate(REGISTRY_KEY)
    assert made(tokens).split(".")[0] == first
    secrets.retire(REGISTRY_KEY, 2)
    assert made(tokens).split(".")[0] != first
