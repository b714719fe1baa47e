"""`gpuaas sign` and `gpuaas artifact verify`: from one registry to a verdict, and every refusal."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from reconciler.adapters import registry_attached
from reconciler.cli.artifact_export import export
from reconciler.cli.artifact_verify import verify
from reconciler.cli.sign import sign
from reconciler.core.names import ArtifactKey, Digest
from reconciler.core.trust.evidence import Evidence
from reconciler.devkit import images
from reconciler.errors import Refused
from reconciler.ports import ARTIFACT_KEY
from reconciler.settings import Settings
from reconciler.wiring.ports import open_ports
from tests.cli.state_repo import run
from tests.core.builders import world
from tests.services.attested import BUILDER, PREFIX, slsa_v1
from tests.services.oci import small_image

REPOSITORY = "gpuaas/apps/research/cli"
KEY = ArtifactKey(REPOSITORY, Digest.of(b"never pushed"))


@dataclass(frozen=True)
class Host:
    """A control plane's state, a working tree whose policies trust its key, and a registry."""

    folder: Path
    endpoint: str

    def key(self, word: str) -> ArtifactKey:
        return ArtifactKey(
            REPOSITORY, images.push(small_image(word), self.endpoint, REPOSITORY, "latest")
        )

    @property
    def at(self) -> tuple[str, ...]:
        return ("--registry", self.endpoint, "--plain-http", *self.state)

    @property
    def state(self) -> tuple[str, ...]:
        return ("--state-dir", str(self.folder / "state"))

    @property
    def tree(self) -> tuple[str, ...]:
        return ("--tree", str(self.folder / "tree"), "--environment", "eval")

    def write(self, path: str, document: Mapping[str, Any]) -> None:
        place = self.folder / "tree" / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(yaml.safe_dump(document))


def policy(public_key: str) -> dict[str, Any]:
    return {
        "apiVersion": "gpuaas.dev/v1",
        "kind": "TrustPolicy",
        "metadata": {"name": "artifacts"},
        "spec": {
            "signing_keys": [{"id": "release", "scheme": "ecdsa-p256", "public_key": public_key}],
            "builders": [{"id": BUILDER, "source_prefixes": [PREFIX]}],
            "channels": {"stable": {}, "canary": {"provenance_required": False}},
        },
    }


@pytest.fixture
def host(tmp_path: Path, registry_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Host:
    monkeypatch.chdir(tmp_path)
    found = Host(tmp_path, registry_endpoint)
    with open_ports(Settings(state_dir=tmp_path / "state", repo=str(tmp_path))) as ports:
        public_key = ports.secrets.ensure_signing_key(ARTIFACT_KEY, "ecdsa-p256").pem
    documents = world()
    for path, document in documents.items():
        found.write(path, document)
    environment = documents["environments/eval.yaml"]
    environment["spec"]["registry"] = {"endpoint": registry_endpoint, "plain_http": True}
    found.write("environments/eval.yaml", environment)
    found.write("platform/trust/artifacts.yaml", policy(public_key))
    return found


def refused(command: click.Command, *args: str) -> str:
    with pytest.raises(Refused) as error:
        run(command, *args)
    return str(error.value)


def code_of(command: click.Command, *arguments: str) -> str:
    with pytest.raises(Refused) as refused:
        run(command, *arguments)
    return f"{refused.value.code}: {refused.value.message}"


def test_signed_here_and_verified_by_the_policies_of_a_tree(host: Host, tmp_path: Path) -> None:
    key = host.key("signed")
    bad = run(verify, str(key), "--channel", "canary", *host.tree)
    assert bad.code == 1
    assert (
        "not good for canary: unsigned: canary needs a signature, and there is none" in bad.output
    )
    said = run(sign, str(key), *host.at)
    assert said.output.startswith("signature (bundle) attached as sha256:")
    good = run(verify, str(key), "--channel", "canary", *host.tree)
    assert good.code == 0
    assert "good for canary" in good.output
    stable = run(verify, str(key), "--channel", "stable", *host.tree)
    assert "no_provenance: stable needs provenance, and there is none" in stable.output
    built = tmp_path / "slsa.json"
    built.write_text(json.dumps(slsa_v1()))
    run(sign, str(key), "--form", "both", "--provenance", str(built), *host.tree, *host.state)
    found = run(verify, str(key), "--channel", "stable", *host.tree)
    assert found.code == 0
    assert f"built by {BUILDER} from git+{PREFIX}site@refs/heads/main" in found.output


def test_what_others_hide_is_not_called_signed(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    key = host.key("hidden")
    monkeypatch.setattr(registry_attached, "MANIFESTS_MAX", 0)
    assert code_of(sign, str(key), *host.at).startswith(
        "signature_hidden: the signature (bundle) was attached, and is not among what is read"
    )
    run(sign, str(key), *host.at, "--form", "classic")


def test_as_json(host: Host) -> None:
    key = host.key("signed as json")
    signed = json.loads(run(sign, str(key), *host.at, "--format", "json").output)
    assert (signed["format"], signed["artifact"]) == ("gpuaas.dev/signed/v1", str(key))
    (attached,) = signed["attached"]
    assert (attached["what"], attached["form"]) == ("signature", "bundle")
    found = json.loads(
        run(verify, str(key), "--channel", "canary", *host.tree, "--format", "json").output
    )
    assert found["verdict"] == {"good": True, "code": "", "message": "", "hint": ""}
    (proof,) = found["proofs"]
    assert (proof["key_id"], proof["document"]) == ("release", attached["digest"])


def test_what_is_signed_here_is_looked_at_at_once(host: Host) -> None:
    key = host.key("looked at")
    with open_ports(Settings(state_dir=host.folder / "state", repo=str(host.folder))) as ports:
        ports.store.save_evidence([Evidence(key, "k", 1, asked=("stable/active",))])
        run(sign, str(key), *host.at)
        assert ports.store.evidence([key])[key].asked == ()
        assert list(ports.store.take_requests()) == ["signed"]


def test_what_is_signed_is_in_the_audit_trail(host: Host) -> None:
    key = host.key("audited")
    run(sign, str(key), *host.at)
    with open_ports(Settings(state_dir=host.folder / "state", repo=str(host.folder))) as ports:
        row = ports.store.audit()[-1].entry
    assert (row.action, row.object) == ("artifacts.signature.made", str(key))
    assert row.actor.startswith("local/")
    assert row.after.startswith("sha256:")


def test_a_tag_is_not_signed(host: Host) -> None:
    assert code_of(sign, f"{REPOSITORY}:latest", *host.at).startswith("bad_artifact: expected ")


def test_what_is_not_there(host: Host) -> None:
    gone = "artifact_missing: it is not in the registry"
    assert code_of(sign, str(KEY), *host.at) == gone
    assert code_of(verify, str(KEY), "--channel", "canary", *host.tree) == gone


def test_a_channel_that_nobody_describes(host: Host) -> None:
    said = code_of(verify, str(KEY), "--channel", "stabel", *host.tree)
    assert said == "no_such_channel: no TrustPolicy says what the channel 'stabel' needs"


def test_policies_that_can_not_all_be_read_are_none(host: Host) -> None:
    """What is left of them could be laxer than what was written."""
    host.write("platform/trust/strict.yaml", {"kind": "TrustPolicy", "spec": {"channels": 7}})
    said = code_of(verify, str(KEY), "--channel", "canary", *host.tree)
    assert said.startswith("policies_invalid: ")


def test_no_such_environment(host: Host) -> None:
    tree = (*host.tree[:2], "--environment", "prdo")
    said = refused(verify, str(KEY), "--channel", "canary", *tree)
    assert said == "no_such_environment: there is no Environment 'prdo' (there are eval)"


def test_an_export_asks_for_the_environments_it_names(host: Host, tmp_path: Path) -> None:
    """Whichever one this host works on, and whether or not that one is there."""
    sides = ("--from", "evl", "--to", "prod", "--into", "gpuaas/intents/1")
    args = (str(KEY), *sides, *host.state, "--environment", "dev", "--tree")
    said = refused(export, *args, str(host.folder / "tree"))
    assert said == "no_such_environment: there is no Environment 'evl' (did you mean 'eval'?)"
    (tmp_path / "elsewhere").mkdir()
    assert refused(export, *args, str(tmp_path / "elsewhere")) == (
        "no_such_environment: there is no Environment 'evl' (none is there at all: is that a "
        "checkout of the state repo? See --tree)"
    )


def test_a_login_without_a_vault(host: Host, tmp_path: Path) -> None:
    said = code_of(sign, str(host.key("vault")), *host.at, "--login", str(tmp_path))
    assert said == "vault_not_configured: a login is for a Vault, and none is named"


def test_a_credential_for_a_registry_that_asks_for_none(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    user = ("--user", "ci")
    assert code_of(sign, str(KEY), *host.at, *user) == "no_password: there is no password for 'ci'"
    monkeypatch.setenv("GPUAAS_REGISTRY_PASSWORD", "a-password")
    said = code_of(sign, str(KEY), *host.at, *user)
    assert said.startswith("registry_asks_no_token: ")
    assert "a-password" not in said


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--plain-http",), "--plain-http needs --registry; an Environment says it itself"),
        (("--password-file", __file__), "--password-file needs --user"),
    ],
)
def test_options_that_need_another(host: Host, options: tuple[str, ...], message: str) -> None:
    with pytest.raises(click.UsageError) as refused:
        run(sign, str(KEY), *host.state, *options)
    assert refused.value.message == message


def test_without_a_registry_or_an_environment(host: Host) -> None:
    assert code_of(sign, str(KEY), *host.state) == "no_environment: which registry is it in?"
