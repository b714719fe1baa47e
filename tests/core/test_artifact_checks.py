"""What may be registered from where, and what is offered in which channel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconciler.core.checks.artifacts import is_allowed
from reconciler.core.names import ObjectRef
from reconciler.core.problems import Problem
from reconciler.core.resolve import Resolution, resolve
from tests.core import builders as b

Bend = Callable[[b.Documents], None]
OURS = "gpuaas/apps/acme/research/hello"
THEIRS = "gpuaas/apps/platform/catalog/hello"
DIGEST = b.IMAGE.partition("@")[2]
TRUST_FILE = "platform/trust/all.yaml"
BLOB_FILE = f"{b.PROJECT}/artifacts/hello/1.0.0/weights.yaml"
STORE = "artifact_store://projects/acme/research/artifacts/hello/1.0.0"
ALLOWED = "https://weights.example/models/"


def resolved(*bends: Bend) -> Resolution:
    documents = b.world()
    for bend in bends:
        bend(documents)
    return resolve(b.objects(documents), b.ENVIRONMENT, b.REVISION)


def found(*bends: Bend) -> list[Problem]:
    return [*resolved(*bends).problems]


def said(*bends: Bend) -> list[str]:
    return [f"{one.object}: {one.code}: {one.message} ({one.hint})" for one in found(*bends)]


# --- places in the registry ----------------------------------------------------------------------


def at(repository: str) -> Bend:
    """The image of the only version, and its registration, are there."""

    def bend(documents: b.Documents) -> None:
        documents[b.ARTIFACT_FILE]["spec"]["repository"] = repository
        documents[b.VERSION_FILE]["spec"]["artifact_ref"] = f"{repository}@{DIGEST}"

    return bend


def offered(visibility: str, tenant: str = "platform", project: str = "catalog") -> Bend:
    def bend(documents: b.Documents) -> None:
        folder = b.add_project(documents, tenant, project)
        spec = {**documents[b.ARTIFACT_FILE]["spec"], "visibility": visibility}
        b.add(documents, f"{folder}/artifacts/hello/1.0.0/image.yaml", spec)

    return bend


@pytest.mark.parametrize("repository", [OURS, "other/place", "gpuaas/apps/x", "gpuaas/apps/a/b"])
def test_what_is_ours_or_nobodys_may_be_registered(repository: str) -> None:
    assert found(at(repository)) == []


def test_what_belongs_to_another_project_may_not() -> None:
    assert said(at(THEIRS))[-1] == (
        "Artifact/acme/research/hello/1.0.0/image: foreign_repository: "
        f"{THEIRS} belongs to project platform/catalog, which does not offer it to acme/research "
        "(an Artifact of platform/catalog may offer it by its visibility; or publish it to"
        f" {OURS})"
    )


def test_and_nothing_runs_it() -> None:
    assert "acme/research/one" in resolved(at(THEIRS)).blocked


@pytest.mark.parametrize(
    ("visibility", "tenant", "fine"),
    [
        ("platform", "platform", True),
        ("tenant", "platform", False),
        ("project", "platform", False),
        ("tenant", "acme", True),
        ("project", "acme", False),
    ],
)
def test_unless_it_is_offered(visibility: str, tenant: str, fine: bool) -> None:
    place = f"gpuaas/apps/{tenant}/catalog/hello"
    codes = {one.code for one in found(at(place), offered(visibility, tenant))}
    assert ("foreign_repository" not in codes) == fine


def test_a_repository_whose_name_begins_alike_is_another() -> None:
    codes = {one.code for one in found(at("gpuaas/apps/acme/research-two/hello"))}
    assert "foreign_repository" in codes


@pytest.mark.parametrize("place", ["gpuaas/intents/t1", "gpuaas/intents"])
def test_what_is_on_its_way_is_no_place(place: str) -> None:
    assert said(at(place))[0] == (
        "Artifact/acme/research/hello/1.0.0/image: staging_repository: "
        f"{place} is where something was pushed to, and does not stay "
        "(complete the publish intent; it says what to register)"
    )


def test_a_neighbour_revokes_nothing_for_others() -> None:
    """Attempted: to stop everybody's image by registering and revoking it oneself."""

    def revoked(documents: b.Documents) -> None:
        folder = b.add_project(documents, "evil", "lab")
        spec = {**documents[b.ARTIFACT_FILE]["spec"], "state": "revoked"}
        b.add(documents, f"{folder}/artifacts/hello/1.0.0/image.yaml", spec)

    def own(documents: b.Documents) -> None:
        documents[b.ARTIFACT_FILE]["spec"]["state"] = "revoked"

    assert {one.code for one in found(at(OURS), revoked)} == {"foreign_repository"}
    assert {one.code for one in found(at("nobodys/place"), revoked)} == set()
    assert {one.code for one in found(at(OURS), own)} == {"artifact_revoked"}


# --- blobs ---------------------------------------------------------------------------------------


def blob(source: str = f"{STORE}/weights", **spec: Any) -> Bend:
    known = {"kind": "blob", "source": source, "digest": DIGEST, "state": "published"}
    return lambda documents: b.add(documents, BLOB_FILE, {**known, **spec}, "weights")


def from_url(url: str) -> Bend:
    return blob(source_metadata={"repository_url": url})


def allowing(*prefixes: str) -> Bend:
    return lambda documents: b.add(documents, TRUST_FILE, {"blob_sources": [*prefixes]}, "all")


@pytest.mark.parametrize("name", ["weights", "llama-3.3.safetensors", "a..b", "0_x"])
def test_a_blob_is_where_its_project_put_it(name: str) -> None:
    assert found(blob(f"{STORE}/{name}")) == []


@pytest.mark.parametrize(
    "source",
    [
        "artifact_store://projects/acme/other/artifacts/hello/1.0.0/weights",
        "artifact_store://projects/research/artifacts/hello/1.0.0/weights",
        "artifact_store://platform/releases/1/x",
        STORE.replace("1.0.0", "1.1.0") + "/weights",
        f"{STORE}/../../../../../other/artifacts/hello/1.0.0/weights",
        f"{STORE}/..",
        f"{STORE}/a/b",
        f"{STORE}//weights",
        f"{STORE}/",
        STORE,
        f"{STORE}x/weights",
    ],
)
def test_and_nowhere_else(source: str) -> None:
    assert said(blob(source)) == [
        "Artifact/acme/research/hello/1.0.0/weights: foreign_source: "
        f"{source} is not where blobs of project acme/research for hello 1.0.0 are "
        f"(write it as {STORE}/weights)"
    ]


def test_without_a_list_a_blob_may_come_from_anywhere() -> None:
    assert found(blob()) == found(from_url("ftp://x/y")) == found(blob(), allowing()) == []


def test_with_one_it_comes_from_there() -> None:
    assert found(from_url(f"{ALLOWED}llama"), allowing("https://x.example/", ALLOWED)) == []
    assert said(from_url("https://evil.example/models/llama"), allowing(ALLOWED)) == [
        "Artifact/acme/research/hello/1.0.0/weights: blob_source_not_allowed: "
        "https://evil.example/models/llama is no source that a TrustPolicy allows for blobs "
        f"(allowed: {ALLOWED})"
    ]


def test_and_says_so() -> None:
    assert said(blob(), allowing(ALLOWED)) == [
        "Artifact/acme/research/hello/1.0.0/weights: blob_source_not_allowed: "
        "it does not say its source, which is one that a TrustPolicy allows for blobs "
        f"(allowed: {ALLOWED})"
    ]


@pytest.mark.parametrize(
    "url",
    [
        "https://weights.example/models/llama",
        "https://WEIGHTS.example/models/llama",
        "https://weights.example:443/models/llama",
        "https://weights.example./models/llama",
        "https://weights.example/models/a/b/c",
        "https://weights.example/models/llama?revision=2",
        "https://weights.example/models/",
    ],
)
def test_one_address_in_several_spellings(url: str) -> None:
    assert is_allowed(url, [ALLOWED])


@pytest.mark.parametrize(
    "url",
    [
        "https://weights.example/models/../private/llama",
        "https://weights.example/models/./llama",
        "https://weights.example/models/%2e%2e/private/llama",
        "https://weights.example/models/%2E./private/llama",
        "https://weights.example/models/..%2fprivate/llama",
        "https://weights.example/models%2f..%2fprivate",
        "https://weights.example/models/%252e%252e/private",
        "https://weights.example/models/..%5cprivate",
        "https://weights.example/models/..\\private",
        "https://weights.example/models//evil",
        "https://weights.example/models/..",
        "https://weights.example/modelsx/llama",
        "https://weights.example/models",
        "https://weights.example@evil.example/models/llama",
        "https://evil.example/models/llama@weights.example",
        "https://user:pass@weights.example/models/llama",
        "https://weights.example.evil.example/models/llama",
        "https://weights.example:8443/models/llama",
        "https://weights.example:x/models/llama",
        "http://weights.example/models/llama",
        "https:///models/llama",
        "https://weights.example#/models/llama",
        "https://weights.example?/models/llama",
        "https://evil.example/?https://weights.example/models/",
        "https://[::1/models/llama",
    ],
)
def test_no_spelling_leads_out(url: str) -> None:
    assert not is_allowed(url, [ALLOWED])


def test_a_prefix_with_tricks_allows_nothing() -> None:
    assert not is_allowed("https://x.example/a/b", ["https://x.example/a/../"])


@given(st.text("./%25efab\\@", max_size=12))
def test_what_is_allowed_stays_below(tail: str) -> None:
    url = f"{ALLOWED}{tail}"
    if is_allowed(url, [ALLOWED]):
        assert not {".", ".."} & {*tail.split("/")}
        assert not any(code in tail.lower() for code in ("%2e", "%2f", "%25", "%5c"))


# --- channels ------------------------------------------------------------------------------------


def channels(*names: str) -> Bend:
    def bend(documents: b.Documents) -> None:
        documents[b.ARTIFACT_FILE]["spec"]["channels"] = [*names]

    return bend


def taking(**trust: str) -> Bend:
    def bend(documents: b.Documents) -> None:
        documents[b.ENVIRONMENT_FILE]["spec"]["trust"] = trust
        names = {one: {"signature_required": False} for one in trust.values()}
        rules = {name: {**rule, "provenance_required": False} for name, rule in names.items()}
        b.add(documents, TRUST_FILE, {"channels": rules}, "all")

    return bend


def state(state: str) -> Bend:
    def bend(documents: b.Documents) -> None:
        spec = documents[b.PROMOTION_FILE]["spec"]
        spec |= {"state": state, "canary": {"projects": ["acme/research"]}}

    return bend


STABLE = taking(channel="stable")
BOTH = taking(channel="stable", canary_channel="canary")


@pytest.mark.parametrize(
    ("bends", "fine"),
    [
        ((channels("beta"),), True),
        ((STABLE,), True),
        ((STABLE, channels("stable")), True),
        ((STABLE, channels("beta", "stable")), True),
        ((STABLE, channels("beta")), False),
        ((STABLE, channels("beta"), state("canary")), False),
        ((BOTH, channels("canary"), state("canary")), True),
        ((BOTH, channels("canary"), state("active")), False),
        ((BOTH, channels("stable"), state("canary")), False),
        ((BOTH, channels("canary"), state("deprecated")), False),
    ],
)
def test_what_is_offered_is_promoted_for_its_channel(bends: tuple[Bend, ...], fine: bool) -> None:
    codes = {one.code for one in found(*bends)}
    assert codes == (set() if fine else {"artifact_not_in_channel"})


def test_what_is_said_of_it() -> None:
    assert said(STABLE, channels("beta"))[0] == (
        "Promotion/hello/1.0.0: artifact_not_in_channel: version is active, but "
        f"{b.IMAGE} (AppVersion/hello/1.0.0/spec/artifact_ref) is promoted for beta, and not for"
        " stable (add stable to /spec/channels of Artifact/acme/research/hello/1.0.0/image)"
    )


def test_a_staged_version_needs_no_channel() -> None:
    problems = found(STABLE, channels("beta"), state("staged"))
    assert not [one for one in problems if one.object == "Promotion/hello/1.0.0"]


def test_what_is_promoted_elsewhere_for_others_is_not_for_this_project() -> None:
    def hidden(documents: b.Documents) -> None:
        folder = b.add_project(documents, "far", "away")
        spec = {**documents[b.ARTIFACT_FILE]["spec"], "visibility": "project"}
        spec.pop("channels")
        b.add(documents, f"{folder}/artifacts/hello/1.0.0/image.yaml", spec)

    assert said(STABLE, channels("beta"), hidden) == [
        "AppInstance/acme/research/one: artifact_not_in_channel: "
        f"{b.IMAGE} is not promoted for stable where project acme/research can see it "
        "(add stable to /spec/channels of an Artifact that it sees)"
    ]


def test_a_channel_is_not_taken_away_from_what_is_offered() -> None:
    resolution = resolved(STABLE, channels("beta"))
    assert ObjectRef.parse("Artifact/acme/research/hello/1.0.0/image") in resolution.blamed
