"""`gpuaas registry`: what it prints for a registry, and what it finds out about one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from yaml import safe_load

from reconciler.artifacts.registry_keys import key_id_of
from reconciler.cli.registry import registry
from reconciler.core.names import Revision
from reconciler.core.records import Accepted, AcceptedObject
from reconciler.devkit.services import free_port
from reconciler.errors import Refused, Transient
from reconciler.ports import REGISTRY_KEY
from reconciler.settings import Settings
from reconciler.wiring.ports import open_ports
from tests.cli.state_repo import run
from tests.services.token_registry import TokenRegistry

ENVIRONMENT = "Environment/dev"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GPUAAS_ENVIRONMENT", "dev")
    return tmp_path / "state"


def trust(folder: Path, form: str) -> str:
    return run(registry, "trust", "--format", form, "--state-dir", folder).output


def test_a_certificate_for_each_version_of_the_key(folder: Path) -> None:
    first = trust(folder, "pem")
    with open_ports(Settings(state_dir=folder)) as ports:
        ports.secrets.rotate(REGISTRY_KEY)
        keys = ports.secrets.public_keys(REGISTRY_KEY)
    (before,) = x509.load_pem_x509_certificates(first.encode())
    found = x509.load_pem_x509_certificates(trust(folder, "pem").encode())
    public = [
        one.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
        for one in found
    ]
    assert public == [key.pem for key in keys]
    for one in found:
        one.verify_directly_issued_by(one)
        assert not one.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    # Its signature is all that is new of the one that was there.
    assert before.tbs_certificate_bytes == found[0].tbs_certificate_bytes


def test_a_key_set(folder: Path) -> None:
    (key,) = json.loads(trust(folder, "jwks"))["keys"]
    with open_ports(Settings(state_dir=folder)) as ports:
        (known,) = ports.secrets.public_keys(REGISTRY_KEY)
    assert key["kid"] == key_id_of(known.pem, "thumbprint")
    assert (key["kty"], key["crv"], key["alg"], "d" in key) == ("EC", "P-256", "ES256", False)


def test_key_ids_are_those_of_the_documents() -> None:
    """RFC 7638 has no example of an EC key: this one is RFC 7517's, its id worked out by openssl
    and sha256sum.
    """
    pem = (
        "-----BEGIN PUBLIC KEY-----\n"
        "MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEMKBCTNIcKUSDii11ySs3526iDZ8A\n"
        "iTo7Tu6KPAqv7D7gS2XpJFbZiItSs3m9+9Ue6GnvHw/GW2ZZaVtszggXIw==\n"
        "-----END PUBLIC KEY-----\n"
    )
    assert key_id_of(pem, "thumbprint") == "cn-I_WNMClehiVp51i_0VpOENW1upEerA8sEam5hn-s"
    assert key_id_of(pem, "libtrust") == (
        "KG4U:JTP2:KRGU:YMTT:VJV7:GUDC:LJ65:KO53:NJYX:EMTU:6U4L:DGRA"
    )


def test_the_configuration_names_what_tokens_say(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = safe_load(trust(folder, "config"))["auth"]["token"]
    assert token == {
        "realm": "http://127.0.0.1:8470/v1/registry/token",
        "service": "registry",
        "issuer": "gpuaas",
        "rootcertbundle": "/etc/docker/registry/gpuaas-tokens.pem",
    }
    monkeypatch.setenv("GPUAAS_PUBLIC_ADDRESS", "https://gpuaas.example/")
    monkeypatch.setenv("GPUAAS_REGISTRY_TOKEN_KEY_ID", "thumbprint")
    monkeypatch.setenv("GPUAAS_REGISTRY_TOKEN_SERVICE", "registry: one")
    token = safe_load(trust(folder, "config"))["auth"]["token"]
    assert token == {
        "realm": "https://gpuaas.example/v1/registry/token",
        "service": "registry: one",
        "issuer": "gpuaas",
        "jwks": "/etc/distribution/gpuaas-tokens.json",
    }


# --- whether it does -----------------------------------------------------------------------------


def accept(folder: Path, **fields: object) -> None:
    document = json.dumps({"kind": "Environment", "spec": {"registry": fields}})
    revision = Revision("1" * 40)
    found = AcceptedObject(ENVIRONMENT, "environments/dev.yaml", 1, document, revision)
    with open_ports(Settings(state_dir=folder)) as ports:
        ports.store.save_accepted(Accepted(revision, {ENVIRONMENT: found}))


def check(folder: Path) -> str:
    return run(registry, "check", "--state-dir", folder).output


@pytest.mark.parametrize("registry_fields", [{"auth": "none"}, {}])
def test_one_that_is_to_ask_for_none(folder: Path, registry_fields: dict[str, str]) -> None:
    accept(folder, endpoint="127.0.0.1:1", **registry_fields)
    with pytest.raises(Refused) as refused:
        check(folder)
    assert str(refused.value) == (
        "Environment/dev: registry_without_tokens: by what was accepted last, its registry asks "
        "for no tokens (set spec.registry.auth: token, and let the control plane make a pass)"
    )


def test_one_that_lets_in_anybody(folder: Path, registry_endpoint: str) -> None:
    accept(folder, endpoint=registry_endpoint, plain_http=True, auth="token")
    with pytest.raises(Refused) as refused:
        check(folder)
    assert str(refused.value) == (
        f"{registry_endpoint}: registry_open: it answers who has no token: anybody who reaches it "
        "may read and write (put what `gpuaas registry trust --format config` prints into its "
        "configuration)"
    )


def test_one_that_believes_another_key(folder: Path, token_registry: TokenRegistry) -> None:
    accept(folder, endpoint=token_registry.endpoint, plain_http=True, auth="token")
    with pytest.raises(Refused) as refused:
        check(folder)
    assert str(refused.value) == (
        f"{token_registry.endpoint}: registry_disbelieves: it refuses a token of this control "
        "plane (compare its auth.token with `gpuaas registry trust --format config` and its keys "
        "with `gpuaas registry trust`; distribution 3 wants registry_token_key_id thumbprint)"
    )


def test_one_that_believes_ours(
    folder: Path, token_registry: TokenRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = token_registry.settings.state_dir
    monkeypatch.setenv("GPUAAS_STATE_DIR", str(state))
    assert state is not None
    accept(state, endpoint=token_registry.endpoint, plain_http=True, auth="token")
    says = "lets in a token of this control plane, and nobody without one\n"
    assert check(state) == f"{token_registry.endpoint} {says}"


def test_one_that_does_not_answer(folder: Path) -> None:
    endpoint = f"127.0.0.1:{free_port()}"
    accept(folder, endpoint=endpoint, plain_http=True, auth="token")
    with pytest.raises(Transient, match="registry_unreachable"):
        check(folder)
