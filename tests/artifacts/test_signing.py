"""What we sign holds by our own rules; what can't be signed is refused before anything is."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from reconciler.adapters.secrets_local import LocalSecrets
from reconciler.artifact_ports import Attached
from reconciler.artifacts.signing import FORMS, Form, Made, find_again, sign_artifact
from reconciler.artifacts.verifying import look
from reconciler.core.names import ArtifactKey, Digest
from reconciler.core.trust.judge import judge
from reconciler.core.trust.rules import TrustedKey
from reconciler.core.trust.statements import SLSA_V02
from reconciler.errors import Refused
from reconciler.ports import ARTIFACT_KEY, RegistryEndpoint, Signed
from tests.fakes.registry import FakeRegistry
from tests.services.attested import rules, slsa_v02, slsa_v1, statement

BUNDLE: tuple[Form, ...] = ("bundle",)
ENDPOINT = RegistryEndpoint("registry.invalid")
KEY = ArtifactKey("acme/site", Digest.of(b"site"))


@pytest.fixture
def secrets(tmp_path: Path) -> LocalSecrets:
    return LocalSecrets(tmp_path / "secrets")


@pytest.fixture
def registry() -> FakeRegistry:
    found = FakeRegistry()
    found.say(KEY)
    return found


def trusted(secrets: LocalSecrets) -> TrustedKey:
    return TrustedKey("ours", "ecdsa-p256", secrets.public_keys(ARTIFACT_KEY)[-1].pem)


@pytest.mark.parametrize("form", FORMS)
def test_what_is_signed_is_good(registry: FakeRegistry, secrets: LocalSecrets, form: Form) -> None:
    content = json.dumps(slsa_v1()).encode()
    made = sign_artifact(registry, ENDPOINT, KEY, secrets, (form,), content)
    assert [(one.what, one.form) for one in made] == [("signature", form), ("provenance", form)]
    wanted = rules(trusted(secrets))
    found = look(registry, ENDPOINT, KEY, wanted, None, 1)
    assert judge(wanted, "stable", found, 1).good
    assert {proof.document for proof in found.proofs} == {one.digest for one in made}


def test_a_new_version_of_the_key_signs_from_then_on(
    registry: FakeRegistry, secrets: LocalSecrets
) -> None:
    sign_artifact(registry, ENDPOINT, KEY, secrets, BUNDLE)
    secrets.rotate(ARTIFACT_KEY)
    newest = rules(trusted(secrets), provenance_required=False)
    found = look(registry, ENDPOINT, KEY, newest, None, 1)
    assert judge(newest, "stable", found, 1).code == "signature_not_trusted"
    sign_artifact(registry, ENDPOINT, KEY, secrets, BUNDLE)
    assert judge(newest, "stable", look(registry, ENDPOINT, KEY, newest, None, 1), 1).good


@pytest.mark.parametrize(
    "content",
    [
        json.dumps(slsa_v02()).encode(),
        statement(KEY.digest, SLSA_V02, slsa_v02()),
        statement(KEY.digest),
    ],
    ids=["predicate v0.2", "statement around v0.2", "statement around v1"],
)
def test_a_provenance_may_come_in_several_forms(
    registry: FakeRegistry, secrets: LocalSecrets, content: bytes
) -> None:
    made = sign_artifact(registry, ENDPOINT, KEY, secrets, BUNDLE, content)
    assert [one.what for one in made] == ["signature", "provenance"]


NOT_TAKEN: Mapping[str, tuple[bytes, str, str]] = {
    "no JSON": (b"{", "provenance_malformed", "it is not JSON"),
    "neither": (
        b'{"builder": "me"}',
        "provenance_malformed",
        "it is neither a statement nor a predicate of SLSA",
    ),
    "of another artifact": (
        statement(Digest.of(b"other")),
        "provenance_other_subject",
        "the provenance is of another artifact",
    ),
    "another predicate": (
        statement(KEY.digest, "https://spdx.dev/Document", {}),
        "provenance_malformed",
        "https://spdx.dev/Document is no provenance",
    ),
    "no builder": (
        json.dumps({"runDetails": {}, "buildDefinition": {}}).encode(),
        "provenance_malformed",
        "it names no builder",
    ),
    "a name twice": (
        b'{"runDetails": {}, "runDetails": {}}',
        "provenance_malformed",
        "a name is given twice in one object",
    ),
}


@pytest.mark.parametrize("name", NOT_TAKEN)
def test_a_provenance_that_is_none_is_refused_and_nothing_is_signed(
    registry: FakeRegistry, secrets: LocalSecrets, name: str
) -> None:
    content, code, message = NOT_TAKEN[name]
    with pytest.raises(Refused) as refused:
        sign_artifact(registry, ENDPOINT, KEY, secrets, BUNDLE, content)
    assert (refused.value.code, refused.value.message) == (code, message)
    assert registry.attached(ENDPOINT, KEY).documents == ()


class Crowded(FakeRegistry):
    """So much is attached that what is attached now is not read."""

    def attached(self, endpoint: RegistryEndpoint, key: ArtifactKey) -> Attached:
        found = super().attached(endpoint, key)
        return replace(found, documents=found.documents[:1])


def test_what_nobody_will_find_is_not_called_signed(secrets: LocalSecrets) -> None:
    registry = Crowded()
    registry.say(KEY)
    made = sign_artifact(registry, ENDPOINT, KEY, secrets, FORMS)
    with pytest.raises(Refused) as refused:
        find_again(registry, ENDPOINT, KEY, made)
    assert str(refused.value) == (
        f"{KEY}: signature_hidden: the signature (bundle) was attached, and is not among what is "
        "read there: others attached too much (delete from the registry what nobody needs of what "
        "is attached to it (`gpuaas artifact verify` lists it), or sign with the other --form)"
    )
    find_again(registry, ENDPOINT, KEY, made[:1])


def test_what_is_not_there_is_not_signed(registry: FakeRegistry, secrets: LocalSecrets) -> None:
    other = ArtifactKey("acme/site", Digest.of(b"other"))
    with pytest.raises(Refused) as refused:
        sign_artifact(registry, ENDPOINT, other, secrets, BUNDLE)
    assert refused.value.code == "artifact_missing"
    assert secrets.public_keys(ARTIFACT_KEY) == (), "no key was made for it"


class Wrong(LocalSecrets):
    """A custody that signs something else."""

    def sign(self, name: str, message: bytes, version: int | None = None) -> Signed:
        return super().sign(name, message + b"!", version)


def test_a_signature_that_does_not_hold_never_leaves(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    with pytest.raises(Refused) as refused:
        sign_artifact(registry, ENDPOINT, KEY, Wrong(tmp_path / "secrets"), FORMS[:1])
    assert refused.value.code == "signature_wrong"
    assert registry.attached(ENDPOINT, KEY).documents == ()


def test_the_forms_are_attached_in_a_fixed_order(
    registry: FakeRegistry, secrets: LocalSecrets
) -> None:
    made: tuple[Made, ...] = sign_artifact(registry, ENDPOINT, KEY, secrets, ("bundle", "classic"))
    assert [one.form for one in made] == ["classic", "bundle"]
