"""A digest from one real registry into another with its signatures, and what must not get there."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import httpx
import pytest

from reconciler.adapters.registry_export import RegistryExporter
from reconciler.adapters.registry_oci import OciRegistry
from reconciler.adapters.secrets_local import LocalSecrets
from reconciler.artifacts.signing import FORMS, sign_artifact
from reconciler.cli.artifact_export import export as export_command
from reconciler.core.names import ArtifactKey, Digest
from reconciler.core.trust.rules import ChannelNeeds, TrustedKey, TrustRules
from reconciler.devkit import services
from reconciler.devkit.images import INDEX_TYPE, OciImage, push
from reconciler.devkit.services import RegistryServer
from reconciler.errors import Refused
from reconciler.ports import ARTIFACT_KEY, RegistryEndpoint
from reconciler.settings import Settings
from reconciler.use_cases.export import Demand, Exported, export
from tests.cli.state_repo import run
from tests.services.oci import index_of, small_image

REPOSITORY, INTO = "gpuaas/apps/acme/lab/site", "gpuaas/intents/0123"
NOW_MS = 1_764_000_000_000


@dataclass
class World:
    """Two registries; what is signed is signed with the key of `secrets`."""

    source: RegistryServer
    target: RegistryServer
    secrets: LocalSecrets
    between: RegistryExporter
    sent: list[Digest]

    @property
    def places(self) -> tuple[RegistryEndpoint, RegistryEndpoint]:
        return (
            RegistryEndpoint(self.source.endpoint, plain_http=True),
            RegistryEndpoint(self.target.endpoint, plain_http=True),
        )

    @property
    def demand(self) -> Demand:
        public = self.secrets.ensure_signing_key(ARTIFACT_KEY, "ecdsa-p256")
        key = TrustedKey("release", "ecdsa-p256", public.pem)
        nothing: frozenset[str] = frozenset()
        needs = ChannelNeeds(
            "artifacts", True, "ecdsa-p256", nothing, False, nothing, nothing, "release"
        )
        return Demand(TrustRules({"release": key}, {}, {"stable": (needs,)}), "stable")

    def push(self, image: OciImage, signed: bool = True) -> ArtifactKey:
        digest = push(image, self.source.endpoint, REPOSITORY, "label")
        return self.sign(digest) if signed else ArtifactKey(REPOSITORY, digest)

    def sign(self, digest: Digest) -> ArtifactKey:
        key = ArtifactKey(REPOSITORY, digest)
        sign_artifact(self.between.source, self.places[0], key, self.secrets, FORMS)
        return key

    def export(self, key: ArtifactKey, demand: Demand | None = None) -> Exported:
        source, target = self.places
        wanted = demand or self.demand
        return export(self.between, source, key, target, INTO, wanted, NOW_MS, "1.0.0")

    def blob_file(self, digest: Digest, server: RegistryServer | None = None) -> Path:
        hexa = digest.value.removeprefix("sha256:")
        root = (server or self.source).data / "docker/registry/v2/blobs/sha256"
        return root / hexa[:2] / hexa / "data"

    def has_manifest(self, digest: Digest) -> bool:
        url = f"http://{self.target.endpoint}/v2/{INTO}/manifests/{digest}"
        accept = {"Accept": "application/vnd.oci.image.manifest.v1+json"}
        return httpx.get(url, headers=accept, trust_env=False).status_code == 200


@pytest.fixture
def world(service_root: Path, tmp_path: Path) -> Iterator[World]:
    sent: list[Digest] = []
    settings = Settings()
    with (
        services.start_registry(tmp_path / "from") as source,
        services.start_registry(tmp_path / "to") as target,
    ):
        one, other = OciRegistry(settings), OciRegistry(settings)
        between = RegistryExporter(one, other, lambda digest, size_bytes: sent.append(digest))
        yield World(source, target, LocalSecrets(tmp_path / "secrets"), between, sent)
        one.close()
        other.close()


def test_what_is_signed_arrives_with_its_signatures_and_its_tag(world: World) -> None:
    key = world.push(small_image("one"))
    done = world.export(key)
    assert done.key == ArtifactKey(INTO, key.digest)
    assert done.verdict.good
    assert {proof.form for proof in done.evidence.proofs} == {"classic", "bundle"}
    tagged = httpx.head(
        f"http://{world.target.endpoint}/v2/{INTO}/manifests/1.0.0",
        headers={"Accept": "application/vnd.oci.image.manifest.v1+json"},
        trust_env=False,
    )
    assert tagged.headers["Docker-Content-Digest"] == str(key.digest)


def test_an_index_arrives_with_every_platform(world: World) -> None:
    images = {f"linux/{one}": small_image(one, one) for one in ("amd64", "arm64")}
    for image in images.values():
        push(image, world.source.endpoint, REPOSITORY, "child")
    index = index_of(images)
    answer = httpx.put(
        f"http://{world.source.endpoint}/v2/{REPOSITORY}/manifests/all",
        content=index.manifest,
        headers={"Content-Type": INDEX_TYPE},
        trust_env=False,
    )
    assert answer.status_code == 201
    done = world.export(world.sign(index.manifest_digest))
    assert done.seen.platforms == ("linux/amd64", "linux/arm64")


def test_what_is_there_is_not_sent_again(world: World) -> None:
    key = world.push(small_image("again"))
    first = world.export(key)
    assert first.carried.blobs == len(world.sent) > 0
    assert world.export(key).carried.blobs == 0


def test_what_broke_off_goes_on(world: World) -> None:
    image = small_image("halves")
    key = world.push(image)
    blob = sorted(digest for digest in image.blobs if digest != key.digest)[0]
    kept = world.blob_file(blob)
    away = kept.rename(kept.with_name("away"))
    with pytest.raises(Refused):
        world.export(key)
    away.rename(kept)
    assert world.export(key).verdict.good


def test_what_the_target_would_not_take_is_not_moved(world: World) -> None:
    key = world.push(small_image("unsigned"), signed=False)
    with pytest.raises(Refused) as refused:
        world.export(key)
    assert refused.value.code == "unsigned"
    assert "stable needs a signature, and there is none" in refused.value.message
    assert world.sent == []
    assert not world.has_manifest(key.digest)


def test_a_key_that_the_target_revoked_moves_nothing(world: World) -> None:
    key, demand = world.push(small_image("revoked")), world.demand
    bad = {"release": replace(demand.rules.keys["release"], revoked="stolen")}
    with pytest.raises(Refused, match="revoked: stolen"):
        world.export(key, Demand(replace(demand.rules, keys=bad), "stable"))
    assert world.sent == []


def test_where_nothing_is_asked_unsigned_goes(world: World) -> None:
    key = world.push(small_image("plain"), signed=False)
    assert world.export(key, Demand(TrustRules(), "")).evidence.proofs == ()


@pytest.mark.parametrize(
    "spoil",
    [
        lambda content: content[:-1] + b"!",
        lambda content: content + b"more",
        lambda content: content[:-3],
    ],
    ids=["other bytes", "longer", "shorter"],
)
def test_a_layer_that_is_not_what_it_is_called_never_arrives(
    world: World, spoil: Callable[[bytes], bytes]
) -> None:
    image = small_image("spoilt")
    key = world.push(image)
    layer = next(digest for digest, content in image.blobs.items() if content.startswith(b"layer"))
    file = world.blob_file(layer)
    file.write_bytes(spoil(file.read_bytes()))
    with pytest.raises(Refused) as refused:
        world.export(key)
    assert refused.value.code in ("digest_mismatch", "size_mismatch")
    assert not world.blob_file(layer, world.target).exists()
    assert not world.has_manifest(key.digest)


def test_what_is_not_in_the_source_is_told(world: World) -> None:
    missing = ArtifactKey(REPOSITORY, Digest.of(b"nothing"))
    with pytest.raises(Refused, match="the registry does not have it"):
        world.export(missing)


# --- the command ---------------------------------------------------------------------------------


def tree(folder: Path, world: World, channel: str) -> Path:
    def file(path: str, text: str) -> None:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)

    for name, place in zip(("staging", "prod"), world.places, strict=True):
        file(
            f"environments/{name}.yaml",
            "apiVersion: gpuaas.dev/v1\nkind: Environment\n"
            f"metadata: {{name: {name}}}\nspec:\n  domain: {name}.example\n"
            f"  registry: {{endpoint: '{place.endpoint}', plain_http: true}}\n"
            f"  trust: {{channel: {channel}}}\n",
        )
    pem = world.demand.rules.keys["release"].public_key
    block = "".join(f"        {line}\n" for line in pem.splitlines())
    file(
        "platform/trust/artifacts.yaml",
        "apiVersion: gpuaas.dev/v1\nkind: TrustPolicy\nmetadata: {name: artifacts}\nspec:\n"
        "  signing_keys:\n    - id: release\n      scheme: ecdsa-p256\n"
        f"      public_key: |\n{block}"
        "  builders: [{id: 'https://ci.example/builder'}]\n"
        "  channels:\n    stable: {signing_key: release, provenance_required: false}\n"
        "    strict: {signing_key: release, provenance_required: true}\n",
    )
    return folder


def asked(key: ArtifactKey, state: Path, to: str = "prod") -> list[str | Path]:
    return [str(key), "--from", "staging", "--to", to, "--into", INTO, "--tree", state]


def test_the_command_says_what_arrived(world: World, tmp_path: Path) -> None:
    key = world.push(small_image("told"))
    state = tree(tmp_path / "state", world, "stable")
    document = json.loads(run(export_command, *asked(key, state), "--format", "json").output)
    assert document["artifact"] == f"{INTO}@{key.digest}"
    assert document["signed_by"] == ["release"]
    assert document["channel"] == "stable"
    again = run(export_command, *asked(key, state))
    assert "is in prod" in again.output
    assert "sent 0 blobs" in again.output


def test_the_command_refuses_with_what_to_do(world: World, tmp_path: Path) -> None:
    key = world.push(small_image("not built"))
    state = tree(tmp_path / "state", world, "strict")
    with pytest.raises(Refused, match=r"no_provenance: .*gpuaas sign --provenance FILE"):
        run(export_command, *asked(key, state))
    tag = f"sha256-{'a' * 64}.sig"
    with pytest.raises(Refused, match="tag_reserved: signatures are kept at tags like this one"):
        run(export_command, *asked(key, state), "--tag", tag)
    with pytest.raises(Refused, match="did you mean 'prod'"):
        run(export_command, *asked(key, state, "prd"))
