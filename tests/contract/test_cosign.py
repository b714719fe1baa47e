"""The real cosign and we understand each other: it verifies what we sign, we what it signs, in both
forms, in a registry that lists referrers and in one that does not.

And what an attacker with a push credential and the real cosign can't do.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from reconciler.adapters.registry_oci import OciRegistry
from reconciler.adapters.secrets_local import LocalSecrets
from reconciler.adapters.secrets_vault import VaultSecrets
from reconciler.adapters.vault_client import class_client
from reconciler.artifacts.signing import FORMS, Form, sign_artifact
from reconciler.artifacts.verifying import look
from reconciler.core.names import ArtifactKey
from reconciler.core.trust.evidence import Verdict
from reconciler.core.trust.judge import judge
from reconciler.core.trust.rules import TrustedKey, TrustRules
from reconciler.core.trust.statements import SLSA_V02, SLSA_V1
from reconciler.devkit import images
from reconciler.devkit.images import MANIFEST_TYPE
from reconciler.ports import ARTIFACT_KEY, RegistryEndpoint, SecretStore
from reconciler.settings import Settings
from tests.services.attested import rules, slsa_v02, slsa_v1
from tests.services.cosign import Cosign, CosignFailed
from tests.services.oci import small_image
from tests.services.referrers_registry import referrers_registry
from tests.services.vault_place import VaultPlace

pytestmark = [pytest.mark.real, pytest.mark.xdist_group("real")]

REPOSITORY = "gpuaas/apps/research/signed"
PROVENANCE = json.dumps(slsa_v1()).encode()
NOW = 1_000
NOBODYS_KEY = (
    "-----BEGIN PUBLIC KEY-----\n"
    "MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAElURZFyJQd3qT0eb5dYgdd090f9N7\n"
    "SSv2ybaaxm/xKlqoePS7xBdxxkdq9Fkz6Tq3FFqudIgjoJnhRJf+m6QJXQ==\n"
    "-----END PUBLIC KEY-----\n"
)


@pytest.fixture(scope="module")
def cosign(tmp_path_factory: pytest.TempPathFactory) -> Cosign:
    return Cosign.set_up(tmp_path_factory.mktemp("cosign"))


@pytest.fixture(scope="module")
def thief(tmp_path_factory: pytest.TempPathFactory) -> Cosign:
    """Has a key of its own, and may push."""
    return Cosign.set_up(tmp_path_factory.mktemp("thief"))


@pytest.fixture(scope="module")
def listing(service_root: Path) -> Iterator[str]:
    with referrers_registry(service_root / "referrers-cosign") as endpoint:
        yield endpoint


@pytest.fixture
def adapter() -> Iterator[OciRegistry]:
    registry = OciRegistry(Settings())
    yield registry
    registry.close()


@dataclass(frozen=True)
class Place:
    """A registry, and artifacts in it."""

    registry: OciRegistry
    endpoint: RegistryEndpoint

    def push(self, word: str, tag: str = "latest") -> ArtifactKey:
        digest = images.push(small_image(word), self.endpoint.endpoint, REPOSITORY, tag)
        return ArtifactKey(REPOSITORY, digest)

    def reference(self, key: ArtifactKey) -> str:
        return f"{self.endpoint.endpoint}/{key}"

    def verdict(self, key: ArtifactKey, wanted: TrustRules) -> Verdict:
        found = look(self.registry, self.endpoint, key, wanted, None, NOW)
        return judge(wanted, "stable", found, NOW)


@pytest.fixture(params=["docker-registry", "referrers"])
def place(
    request: pytest.FixtureRequest, adapter: OciRegistry, registry_endpoint: str, listing: str
) -> Place:
    endpoint = registry_endpoint if request.param == "docker-registry" else listing
    return Place(adapter, RegistryEndpoint(endpoint, plain_http=True))


@pytest.fixture
def distribution(adapter: OciRegistry, registry_endpoint: str) -> Place:
    return Place(adapter, RegistryEndpoint(registry_endpoint, plain_http=True))


@pytest.fixture(params=["local", "vault"])
def secrets(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[SecretStore]:
    """The custody of who signs: in Vault with the login of the ci class, which may no more."""
    if request.param == "local":
        yield LocalSecrets(tmp_path / "custody")
        return
    place: VaultPlace = request.getfixturevalue("own_vault")
    yield from _as_ci(place, tmp_path)


def _as_ci(place: VaultPlace, folder: Path) -> Iterator[SecretStore]:
    role, secret = folder / "ci-role-id", folder / "ci-secret-id"
    role.write_text(place.admin.role_id("ci"))
    secret.touch(mode=0o600)
    secret.write_text(place.secret_id("ci"))
    client = class_client(place.settings, "ci", role, secret)
    try:
        yield VaultSecrets(client, place.layout)
    finally:
        client.close()


def trusting(public_key: str, **needs: Any) -> TrustRules:
    return rules(TrustedKey("release", "ecdsa-p256", public_key), **needs)


@pytest.mark.parametrize("form", FORMS)
def test_cosign_verifies_what_we_sign(
    place: Place, secrets: SecretStore, cosign: Cosign, form: Form
) -> None:
    key = place.push(f"ours {form} {type(secrets).__name__}")
    sign_artifact(place.registry, place.endpoint, key, secrets, (form,), PROVENANCE)
    public, reference = secrets.public_keys(ARTIFACT_KEY)[-1].pem, place.reference(key)
    cosign.verify(reference, form, public)
    cosign.verify_attestation(reference, form, public, "slsaprovenance1")
    assert place.verdict(key, trusting(public)).good
    with pytest.raises(CosignFailed):
        cosign.verify(reference, form, cosign.public_key)


@pytest.mark.parametrize("form", FORMS)
def test_we_verify_what_cosign_signs(place: Place, cosign: Cosign, form: Form) -> None:
    key = place.push(f"theirs {form}")
    wanted = trusting(cosign.public_key)
    assert place.verdict(key, wanted).code == "unsigned"
    cosign.sign(place.reference(key), form)
    assert place.verdict(key, wanted).code == "no_provenance"
    cosign.attest(place.reference(key), form, slsa_v1(), "slsaprovenance1")
    assert place.verdict(key, wanted).good


def test_provenance_v02_counts_where_a_channel_takes_it(
    distribution: Place, cosign: Cosign
) -> None:
    key = distribution.push("old provenance")
    cosign.sign(distribution.reference(key), "bundle")
    cosign.attest(distribution.reference(key), "bundle", slsa_v02(), "slsaprovenance02")
    wanted = trusting(cosign.public_key)
    assert distribution.verdict(key, wanted).code == "predicate_not_accepted"
    both = trusting(cosign.public_key, predicate_types=frozenset({SLSA_V1, SLSA_V02}))
    assert distribution.verdict(key, both).good


def test_both_who_sign_the_same_stay(place: Place, cosign: Cosign, tmp_path: Path) -> None:
    key = place.push("signed by both")
    ours = LocalSecrets(tmp_path / "custody")
    cosign.sign(place.reference(key), "classic")
    sign_artifact(place.registry, place.endpoint, key, ours, FORMS, PROVENANCE)
    cosign.sign(place.reference(key), "bundle")
    public = ours.public_keys(ARTIFACT_KEY)[-1].pem
    for form in FORMS:
        for signer in (public, cosign.public_key):
            cosign.verify(place.reference(key), form, signer)
    assert place.verdict(key, trusting(public)).good


# --- attacks --------------------------------------------------------------------------------------


def _copied(place: Place, source: ArtifactKey, target: ArtifactKey, tail: str) -> None:
    """The manifest at a tag of `source`, under the tag of `target`."""
    base = f"http://{place.endpoint.endpoint}/v2/{REPOSITORY}/manifests"
    tags = [f"{str(one.digest).replace(':', '-')}{tail}" for one in (source, target)]
    kinds = f"{MANIFEST_TYPE}, application/vnd.oci.image.index.v1+json"
    found = httpx.get(f"{base}/{tags[0]}", headers={"Accept": kinds}, trust_env=False)
    found.raise_for_status()
    headers = {"Content-Type": found.headers["Content-Type"]}
    done = httpx.put(f"{base}/{tags[1]}", content=found.content, headers=headers, trust_env=False)
    done.raise_for_status()


@pytest.mark.parametrize("tail", [".sig", ".att", ""], ids=["classic", "attestation", "bundle"])
def test_a_signature_of_another_artifact_helps_none(
    distribution: Place, cosign: Cosign, tail: str
) -> None:
    signed, other = distribution.push(f"signed{tail}"), distribution.push(f"swapped{tail}")
    form: Form = "bundle" if tail == "" else "classic"
    cosign.sign(distribution.reference(signed), form)
    cosign.attest(distribution.reference(signed), form, slsa_v1(), "slsaprovenance1")
    _copied(distribution, signed, other, tail)
    wanted = trusting(cosign.public_key)
    verdict = distribution.verdict(other, wanted)
    assert verdict.code == "unsigned"
    assert distribution.verdict(signed, wanted).good
    codes = {
        one.code
        for one in look(
            distribution.registry, distribution.endpoint, other, wanted, None, NOW
        ).rejected
    }
    assert codes == {"attached_elsewhere" if tail == "" else "signature_other_subject"}


def test_a_tag_that_moved_moves_nothing(distribution: Place, cosign: Cosign, thief: Cosign) -> None:
    registered = distribution.push("registered", "stable")
    cosign.sign(distribution.reference(registered), "bundle")
    cosign.attest(distribution.reference(registered), "bundle", slsa_v1(), "slsaprovenance1")
    evil = distribution.push("evil", "stable")
    thief.sign(distribution.reference(evil), "bundle")
    wanted = trusting(cosign.public_key)
    assert distribution.verdict(registered, wanted).good
    assert distribution.verdict(evil, wanted).code == "signature_not_trusted"


def test_a_thief_s_signatures_hide_none_and_replace_none(
    place: Place, cosign: Cosign, thief: Cosign
) -> None:
    key = place.push("crowded")
    for form in FORMS:
        thief.sign(place.reference(key), form)
        thief.attest(place.reference(key), form, slsa_v1(), "slsaprovenance1")
    wanted = trusting(cosign.public_key)
    assert place.verdict(key, wanted).code == "signature_not_trusted"
    cosign.sign(place.reference(key), "bundle")
    assert place.verdict(key, wanted).code == "provenance_unsigned"
    cosign.attest(place.reference(key), "bundle", slsa_v1(), "slsaprovenance1")
    assert place.verdict(key, wanted).good


def test_an_artifact_switches_no_policy_off(distribution: Place, thief: Cosign) -> None:
    """Annotations, labels, an attestation that says so: nobody asks the artifact what it needs."""
    image = small_image(
        "trust me",
        annotations={
            "gpuaas.dev/trust": "off",
            "gpuaas.dev/channel": "stable",
            "dev.cosignproject.cosign/signature": "AAAA",
        },
    )
    digest = images.push(image, distribution.endpoint.endpoint, REPOSITORY, "trust-me")
    key = ArtifactKey(REPOSITORY, digest)
    thief.attest(
        distribution.reference(key), "bundle", {"verified": True}, "https://gpuaas.dev/verdict"
    )
    wanted = trusting(NOBODYS_KEY)
    verdict = distribution.verdict(key, wanted)
    assert (verdict.good, verdict.code) == (False, "signature_not_trusted")


def test_a_revoked_key_s_signature_counts_no_more(distribution: Place, cosign: Cosign) -> None:
    key = distribution.push("revoked")
    cosign.sign(distribution.reference(key), "bundle")
    cosign.attest(distribution.reference(key), "bundle", slsa_v1(), "slsaprovenance1")
    stolen = TrustedKey("release", "ecdsa-p256", cosign.public_key, revoked="stolen")
    verdict = distribution.verdict(key, rules(stolen))
    assert verdict.code == "key_revoked"
    assert verdict.message == "its signature is by release, which is revoked: stolen"
