"""Whatever valid version of several services: what is made of it holds what is promised."""

from __future__ import annotations

import json
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from node_agent.engines.compose_file import compose_text
from node_agent.wire import MACHINE_IDENTITY, Topology, Workload
from reconciler.core.desired import Instance
from reconciler.core.names import InstanceKey
from reconciler.core.resolve import resolve
from reconciler.core.topology import main_service, services_of
from renderers import render
from tests.compose_policy import violations
from tests.core import builders as b
from tests.renderers.topologies import ROOTS, SIZES, compose_of, example, manifest, rendered
from tests.renderers.topology_worlds import GPUS_MAX, placed, worlds
from tests.services.go_tools import program

ONE = InstanceKey("acme/research/one")
SLOW = (HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example)


def instance_in(documents: b.Documents) -> Instance:
    """As resolved from the files; what is not valid is a mistake of the strategy."""
    found = resolve(b.objects(documents), b.ENVIRONMENT, b.REVISION)
    assert found.problems == ()
    return found.instances[ONE]


def services_in(workload: Workload) -> Topology:
    assert workload.topology is not None
    return workload.topology


@given(worlds())
@settings(max_examples=60, deadline=None, suppress_health_check=SLOW)
def test_whatever_is_valid_is_rendered_within_its_bounds(documents: b.Documents) -> None:
    instance = instance_in(documents)
    workload = render(instance)
    assert isinstance(workload, Workload), workload
    check_gpus(instance, workload)
    check_limits(instance, workload)
    check_names(instance, workload)
    again = render(instance_in(documents))
    assert isinstance(again, Workload)
    assert again.canonical() == workload.canonical()
    assert again.spec_hash == workload.spec_hash
    assert violations(compose_text(compose_of(workload)), ROOTS) == []


@given(worlds(), st.data())
@settings(max_examples=40, deadline=None, suppress_health_check=SLOW)
def test_what_can_not_be_dealt_out_is_told_before(
    documents: b.Documents, data: st.DataObject
) -> None:
    """Shares drawn without a thought are either a problem of the manifests, or are rendered."""
    profile = documents[b.VERSION_FILE]["spec"]["runtime_profile"]
    asked = documents[b.INSTANCE_FILE]["spec"]["parameters"]
    asked["gpu_count"] = data.draw(st.integers(0, GPUS_MAX))
    asked["memory_gib"] = data.draw(st.sampled_from((0.125, 0.25, 1, 2, asked["memory_gib"])))
    asked["cpu_cores"] = data.draw(st.sampled_from((0.02, 0.5, 1.015, asked["cpu_cores"])))
    if "vllm" in profile:
        profile["vllm"]["pipeline_parallel"] = data.draw(st.integers(1, 3))
    for one in profile["topology"]["services"]:
        if one.get("sidecar_class") == "worker":
            one["gpus"] = data.draw(st.sampled_from((0, 1, 2, 3, "all", "rest")))
    found = resolve(b.objects(documents), b.ENVIRONMENT, b.REVISION)
    assert found.problems or isinstance(render(found.instances[ONE]), Workload)


def check_gpus(instance: Instance, workload: Workload) -> None:
    """No GPU goes to two services that count them, and none from outside to any."""
    assert instance.topology is not None
    services = services_of(instance.topology.profile)
    counting = {one.service.name for one in services if isinstance(one.service.gpus, int)}
    topology = services_in(workload)
    dealt = {one.name: one.limits.gpu_uuids for one in topology.services}
    counted = Counter(uuid for name in counting for uuid in dealt[name])
    assert set(counted.values()) <= {1}
    resting = [one.service.name for one in services if one.service.gpus == "rest"]
    assert not {uuid for name in resting for uuid in dealt[name]} & {*counted}
    assert {uuid for uuids in dealt.values() for uuid in uuids} <= {*instance.gpu_uuids}
    for service in topology.services:
        assert (service.limits.gpu_vendor is None) == (not service.limits.gpu_uuids)


def check_limits(instance: Instance, workload: Workload) -> None:
    limits = [one.limits for one in services_in(workload).services]
    assert instance.cpu_millis is not None
    assert instance.memory_mib is not None
    assert sum(one.cpu_millis or 0 for one in limits) <= instance.cpu_millis
    assert sum(one.memory_mib or 0 for one in limits) <= instance.memory_mib
    assert all(one.cpu_millis and one.memory_mib for one in limits)


def check_names(instance: Instance, workload: Workload) -> None:
    """Only what is there is named, and each published port and secret by who may."""
    assert instance.topology is not None
    topology = services_in(workload)
    names = [one.name for one in topology.services]
    assert names == sorted(names)
    assert {*names} == {*instance.topology.images}
    ports = [name for one in topology.services for name in one.ports]
    assert sorted(ports) == sorted(port.name for port in workload.ports)
    main = main_service(instance.topology.profile)
    secrets = {one.name for one in workload.secrets}
    for service in topology.services:
        assert {*service.secrets} <= secrets
        assert (MACHINE_IDENTITY in service.secrets) == (service.name == main)
        assert service.image.digest == str(instance.topology.images[service.name].digest)
        assert {one.service for one in service.depends_on} <= {*names} - {service.name}
        assert {one.volume for one in service.mounts} <= {one.name for one in topology.volumes}
    written = {one.service.name: one.service for one in services_of(instance.topology.profile)}
    for service in topology.services:
        assert {*service.secrets} - {MACHINE_IDENTITY} <= {*written[service.name].secrets}


@given(worlds())
@settings(max_examples=5, deadline=None, suppress_health_check=SLOW)
def test_whatever_is_valid_is_a_file_that_compose_takes(
    tmp_path_factory: pytest.TempPathFactory, documents: b.Documents
) -> None:
    found = compose_of(rendered(instance_in(documents)))
    assert taken_by_compose(tmp_path_factory.mktemp("file"), found) == ""


@pytest.mark.parametrize("name", SIZES)
def test_the_examples_are_valid_and_taken(name: str, tmp_path: Path) -> None:
    workload = rendered(instance_in(repo_of(name)))
    golden = services_in(rendered(example(name)))
    assert [one.command for one in services_in(workload).services] == [
        one.command for one in golden.services
    ]
    assert violations(compose_text(compose_of(workload)), ROOTS) == []
    assert taken_by_compose(tmp_path, compose_of(workload)) == ""


def repo_of(name: str) -> b.Documents:
    """A repo with the manifest as it stands, but that it is of another app and project."""
    spec, size = manifest(name)["spec"], SIZES[name]
    text = json.dumps({**spec, "slug": "hello"}).replace("platform/catalog", "acme/research")
    documents, moved = b.world(), text.replace(f"/{spec['slug']}/1.0.0/", "/hello/1.0.0/")
    documents[b.VERSION_FILE]["spec"] = spec = {**json.loads(moved), "artifact_ref": b.IMAGE}
    register(documents, spec["runtime_profile"])
    gpus = len(size["gpu_uuids"])
    assert gpus <= GPUS_MAX
    share = {"cpu_cores": size["cpu_millis"] / 1000, "memory_gib": size["memory_mib"] / 1024}
    return placed(documents, gpus, share)


def register(documents: b.Documents, profile: dict[str, Any]) -> None:
    """Every image and blob that is named, as artifacts that the project may use."""
    own = documents[b.ARTIFACT_FILE]["spec"]
    for one in profile["topology"]["services"]:
        if "image_ref" in one:
            repository, digest = one["image_ref"].split("@")
            path = b.ARTIFACT_FILE.replace("image.yaml", f"{one['name']}.yaml")
            b.add(documents, path, {**own, "repository": repository, "digest": digest})
    for blob in profile.get("blobs", ()):
        source, digest = blob["ref"].split("@")
        spec = {"kind": "blob", "source": source, "digest": digest}
        spec |= {key: own[key] for key in ("visibility", "state")}
        b.add(documents, b.ARTIFACT_FILE.replace("image.yaml", f"{blob['name']}.yaml"), spec)


def taken_by_compose(folder: Path, document: dict[str, Any]) -> str:
    """What the real program says against it; nothing where it takes it."""
    path = folder / "compose.json"
    path.write_text(compose_text(document))
    command = [str(program("docker-compose")), "-p", document["name"]]
    command += ["--project-directory", str(folder), "--env-file", "/dev/null", "-f", str(path)]
    done = subprocess.run(
        [*command, "config", "--quiet"],
        env={"PATH": "/usr/bin:/bin", "HOME": str(folder)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.stderr + done.stdout if done.returncode or done.stderr else ""
