"""Topologies: what is refused, at which field, and what an instance of several services is."""

from __future__ import annotations

from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from reconciler.adapters.schema_files import load_schemas
from reconciler.core.checks.services import RESERVED_PATHS
from reconciler.core.kinds.topology import Dependency, Service, SidecarClass
from reconciler.core.parse import ParseLimits, parse_file
from reconciler.core.topology import (
    CLASSES,
    CONFINED,
    Capability,
    setups_before,
    vital_services,
)
from tests.core import builders as b
from tests.core.topology_cases import OF_VERSION
from tests.core.topology_world import (
    GENERIC,
    JUPYTER,
    ONE,
    VERSION,
    VLLM,
    Profile,
    S,
    endpoint,
    more,
    profile_of,
    run,
    service,
    world,
)
from tests.schemas.generate import bent, documents, field_names


def bent_as(name: str) -> b.Documents:
    profile, bend, _, code, _ = OF_VERSION[name]
    documents = world(profile)
    bend(profile_of(documents))
    version = documents[b.VERSION_FILE]["spec"]
    if code == "packages_not_carried":
        version["launch_parameters"]["properties"]["pip_packages"] = {"type": "array"}
    if code == "unknown_endpoint":
        version["access"] = {"instructions": "at {host_port:index} or {host_port}"}
    return documents


@pytest.mark.parametrize("name", OF_VERSION)
def test_what_is_wrong_with_a_topology_is_told_of_the_version_at_its_field(name: str) -> None:
    _, _, pointer, code, text = OF_VERSION[name]
    found = run(bent_as(name))
    told = {one.pointer: one for one in found.problems if one.code == code}
    assert pointer in told, found.problems
    assert text in str(told[pointer])
    assert told[pointer].object == VERSION
    assert ONE in found.blocked


@pytest.mark.parametrize("name", OF_VERSION)
def test_nothing_else_is_said_of_what_is_wrong_in_one_way(name: str) -> None:
    """But where one mistake makes another."""
    also = {
        "no main service": {"sidecar_not_allowed", "below_minimum"},
        "no service at all": {"nothing_reads_it"},
        "the name of the renderer's service": {"sidecar_not_allowed"},
        "variants of the main service's own": {"no_image_variant"},
        "a cache that is not there": {"nothing_reads_it"},
        "a place to work that is not there": {"nothing_reads_it"},
        "a setup that never ends": {"condition_never_holds"},
        "the rest for two": {"gpus_too_few"},
    }
    found = {one.code for one in run(bent_as(name)).problems}
    assert found - also.get(name, set()) == {OF_VERSION[name][3]}


@pytest.mark.parametrize("profile", [GENERIC, VLLM, JUPYTER], ids=["generic", "vllm", "jupyter"])
def test_what_nothing_is_wrong_with_is_taken(profile: Profile) -> None:
    found = run(world(profile))
    assert found.problems == ()
    instance = found.instances[ONE]
    assert instance.topology is not None
    assert instance.topology.renderer == profile["renderer"]
    assert instance.policy.runtime_backend == "docker_compose"


# --- what a sidecar may have ---------------------------------------------------------------------

ASKED: dict[Capability, tuple[dict[str, Any], str]] = {
    "blobs": ({"blobs": ["weights"]}, f"{S}/3/blobs"),
    "endpoints": ({}, f"{S}/3/sidecar_class"),
    "gpus": ({"gpus": 1}, f"{S}/3/gpus"),
    "read_volumes": (
        {"mounts": [{"volume": "data", "path": "/x", "read_only": True}]},
        f"{S}/3/mounts/0",
    ),
    "scratch": ({"scratch": [{"path": "/x", "size_mib": 1}]}, f"{S}/3/scratch"),
    "secrets": ({"secrets": ["token"]}, f"{S}/3/secrets"),
    "write_volumes": ({"mounts": [{"volume": "data", "path": "/x"}]}, f"{S}/3/mounts/0"),
}
WOULD_DO: dict[Capability, SidecarClass] = {
    "blobs": "setup",
    "endpoints": "metrics",
    "gpus": "worker",
    "read_volumes": "metrics",
    "scratch": "cache",
    "secrets": "logs",
    "write_volumes": "cache",
}


@pytest.mark.parametrize("what", ASKED)
@pytest.mark.parametrize("sort", CLASSES)
def test_a_sidecar_may_have_what_its_class_allows_and_nothing_else(
    what: Capability, sort: SidecarClass
) -> None:
    asked, pointer = ASKED[what]
    restart = "never" if sort == "setup" else "always"
    documents = world()
    profile = profile_of(documents)
    more(sidecar_class=sort, restart=restart, **asked)(profile)
    if what == "endpoints":
        endpoint(service="more")(profile)
    if what == "blobs":
        source = "artifact_store://projects/acme/research/artifacts/hello/1.0.0/weights"
        digest = "sha256:" + "d" * 64
        profile["blobs"] = [{"name": "weights", "ref": f"{source}@{digest}"}]
        fields = {"kind": "blob", "source": source, "digest": digest, "visibility": "tenant"}
        weights = b.ARTIFACT_FILE.replace("image", "weights")
        b.add(documents, weights, {**fields, "state": "promoted"})
    found = run(documents)
    if what in CLASSES[sort]:
        assert found.problems == ()
        return
    (problem,) = found.problems
    assert (problem.code, problem.pointer) == ("sidecar_not_allowed", pointer)
    assert f"more is a sidecar of class {sort}, which may not have" in problem.message
    # What ends and what does not are not exchanged for each other.
    if not (what == "blobs" and restart == "always"):
        assert problem.hint == f"class {WOULD_DO[what]} may"


def test_a_sidecar_that_wants_what_no_class_may_is_two() -> None:
    documents = world()
    more(sidecar_class="metrics", gpus=1)(profile_of(documents))
    endpoint(service="more")(profile_of(documents))
    (problem,) = run(documents).problems
    assert problem.message == "more is a sidecar of class metrics, which may not have GPUs"
    assert problem.hint == "no class may all of what it asks for: make two services of it"


def test_what_may_not_write_to_its_own_files_writes_to_no_volume() -> None:
    assert not any({"write_volumes", "scratch", "gpus"} & {*CLASSES[one]} for one in CONFINED)


# --- what YAML itself might bring in -------------------------------------------------------------

MANIFEST = """apiVersion: gpuaas.dev/v1
kind: AppVersion
metadata: {{name: "1.0.0"}}
spec:
  runtime_profile:
    kind: docker_compose
    topology:
      services:
        - name: api
{}
"""


@pytest.mark.parametrize(
    ("lines", "codes"),
    [
        ("          <<: {privileged: true}", {"merge_key"}),
        ("          <<: [{cap_add: [ALL]}, {pid: host}]", {"merge_key"}),
        ("          health: &probe {}\n          <<: *probe", {"anchor", "merge_key", "alias"}),
        ("          mounts: !reset []", {"tag"}),
        ("          restart: !override always", {"tag"}),
        ("          extends: !include other.yaml", {"tag"}),
        ("          role: main\n          role: sidecar", {"duplicate_key"}),
    ],
)
def test_nothing_comes_into_a_service_by_another_way(lines: str, codes: set[str]) -> None:
    raw = MANIFEST.format(lines).encode()
    documents, problems = parse_file(b.VERSION_FILE, raw, ParseLimits())
    assert {one.code for one in problems} == codes
    assert all(one.line > 9 for one in problems)
    assert documents == ()


# --- shared questions ----------------------------------------------------------------------------

NAMES = ["a", "b", "c", "d", "main"]
CONDITIONS: tuple[Literal["started", "healthy", "completed"], ...] = (
    "started",
    "healthy",
    "completed",
)


@st.composite
def topologies(draw: st.DrawFn) -> list[Service]:
    found = []
    for name in NAMES:
        needs = draw(st.lists(st.sampled_from([*NAMES, "nobody"]), max_size=3, unique=True))
        vital: dict[str, Any] = draw(st.sampled_from([{}, {"vital": True}, {"vital": False}]))
        found.append(
            Service(
                name=name,
                role="main" if name == "main" else "sidecar",
                sidecar_class=draw(st.sampled_from(["setup", "data"])),
                depends_on=tuple(
                    Dependency(service=one, condition=draw(st.sampled_from(CONDITIONS)))
                    for one in needs
                ),
                **vital,
            )
        )
    return found


@given(topologies())
def test_whatever_a_vital_service_waits_for_is_vital(services: list[Service]) -> None:
    vital = vital_services(services)
    assert "main" in vital
    by_name = {one.name: one for one in services}
    for name in vital:
        for needed in by_name[name].depends_on:
            there = by_name.get(needed.service)
            if there is not None and needed.condition != "started" and there.vital is not False:
                assert needed.service in vital
    for one in services:
        assert one.name in vital or not one.vital


@given(topologies())
def test_a_made_main_service_waits_for_no_setup_that_waits_for_it(services: list[Service]) -> None:
    found = setups_before(services, "main")
    by_name = {one.name: one for one in services}
    for name in found:
        seen, waiting = set[str](), [name]
        while waiting:
            for needed in by_name[waiting.pop()].depends_on:
                if needed.service in by_name and needed.service not in seen:
                    seen.add(needed.service)
                    waiting.append(needed.service)
        assert "main" not in seen


@given(st.sampled_from(RESERVED_PATHS), st.sampled_from(["", "/x", "/x/y"]))
def test_no_path_below_a_reserved_one_is_taken(reserved: str, below: str) -> None:
    documents = world()
    service(2, mounts=[{"volume": "data", "path": reserved + below}])(profile_of(documents))
    assert {one.code for one in run(documents).problems} == {"path_reserved"}


PROFILE_SCHEMA = load_schemas()["AppVersion"]["properties"]["spec"]["properties"]["runtime_profile"]
FIELDS = sorted({*field_names(PROFILE_SCHEMA), "api", "index", "vllm", "data", "work", "key"})


@settings(max_examples=150, deadline=None)
@given(documents(PROFILE_SCHEMA) | bent([GENERIC, VLLM, JUPYTER], FIELDS))
def test_whatever_a_version_says_nothing_raises(profile: Any) -> None:
    if not isinstance(profile, dict):
        return
    documents = world({**profile, "kind": "docker_compose"})
    try:
        b.objects(documents)
    except ValidationError:
        return
    found = run(documents)
    assert (ONE in found.instances) != (ONE in found.blocked)
    assert (ONE in found.instances) or found.problems
