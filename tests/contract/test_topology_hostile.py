"""Attempted: what an image says for us or for Compose, and what somebody does to what is ours."""

from __future__ import annotations

import io
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from node_agent.compose_wire import Mount, Topology, Volume
from node_agent.engines.base import EngineFailure
from node_agent.engines.docker import DockerEngine
from node_agent.wire import LABEL_SERVICE, FailureReason, Image, SecretFile, Workload
from reconciler.devkit import images
from tests.contract.test_engine_drift import with_settings
from tests.contract.topology_place import ALL, INSTANCE, NODE, PROJECT, Place

pytestmark = pytest.mark.real

ONE = "mallory/lab/one"


def saying(endpoint: str, labels: dict[str, str]) -> Image:
    built = with_settings(images.build_site("1.0.0"), {"Labels": labels})
    digest = str(images.push(built, endpoint, "saying", "1"))
    return Image(registry=endpoint, plain_http=True, repository="saying", digest=digest)


@contextmanager
def single(place: Place, image: Image) -> Iterator[DockerEngine]:
    """Another tenant's container, on the same node."""
    engine = DockerEngine(NODE, place.host)
    engine.pull(image, threading.Event())
    engine.create(Workload(instance=ONE, engine="docker", image=image), {})
    try:
        yield engine
    finally:
        for unit in engine.units():
            engine.remove(unit)
        engine.sweep(ONE)
        engine.close()


def test_an_image_does_not_make_a_service_of_its_container(
    place: Place, registry_endpoint: str
) -> None:
    """Else nobody would stop it, and its teardown be proved while it runs."""
    with single(place, saying(registry_endpoint, {LABEL_SERVICE: "api"})) as engine:
        assert [unit.instance for unit in engine.units()] == [ONE]
        assert engine.residue(ONE).containers == 1
        assert place.engine.units() == ()
        assert place.engine.residue(ONE).containers == 0


def test_an_image_does_not_count_its_container_to_anothers_project(
    place: Place, registry_endpoint: str
) -> None:
    """Else no instance of the node could be upgraded, but by leave of every other tenant."""
    labels = {"com.docker.compose.project": PROJECT, "com.docker.compose.service": "api"}
    with single(place, saying(registry_endpoint, labels)) as engine:
        place.run(place.workload())
        place.tear_down()
        assert len(engine.units()) == 1


def test_an_image_says_nothing_of_services(place: Place, registry_endpoint: str) -> None:
    posing = dict.fromkeys(("dev.gpuaas.org", "com.docker.compose.project"), "theirs")
    workload = place.workload(image=saying(registry_endpoint, posing))
    place.run(workload)
    found = place.api.inspect_container(place.container(workload, "api"))["Config"]["Labels"]
    assert found["dev.gpuaas.org"] == ""
    assert found["com.docker.compose.project"] == PROJECT
    assert place.altered(workload) == {}


def test_an_image_says_nothing_of_where_a_shell_is_looked_for(
    place: Place, registry_endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A crash leaves it, and then it would stand in the way of another."""
    seen: list[dict[str, str]] = []

    def look(api: Any, container: str, _: str) -> bool:
        seen.append(api.inspect_container(container)["Config"]["Labels"])
        return True

    monkeypatch.setattr("node_agent.engines.compose_checks.has_file", look)
    labels = {"com.docker.compose.project": "anothers", "dev.gpuaas.service-hash": "sha256:a"}
    image = saying(registry_endpoint, labels)
    token = SecretFile(name="token", source="secret://project/token", env="TOKEN")
    place.create(place.workload(secrets=(token,), image=image))
    assert [one[name] for one in seen for name in labels] == ["", ""]


def test_one_that_is_paused_keeps_no_other_from_being_made(place: Place) -> None:
    workload = place.workload()
    place.run(workload)
    place.api.pause(place.container(workload, "db"))
    place.api.remove_container(place.container(workload, "api"), force=True)
    before = place.container(workload, "db")
    place.engine.start(place.unit(workload))
    place.engine.start_services(place.unit(workload), ALL)
    assert {one.status for one in place.unit(workload).services} == {"running"}
    assert place.container(workload, "db") == before


@pytest.mark.parametrize("kind", ["network", "volume"])
def test_who_still_uses_what_is_to_go_is_named(place: Place, kind: str) -> None:
    place.run(place.workload())
    binds = [f"{PROJECT}_data:/x"] if kind == "volume" else []
    debugging = place.api.create_container(
        place.image.reference, name=f"debug-{kind}",
        host_config=place.api.create_host_config(binds=binds),
    )["Id"]  # fmt: skip
    try:
        if kind == "network":
            place.api.connect_container_to_network(debugging, PROJECT)
        place.api.start(debugging)
        with pytest.raises(EngineFailure) as told:
            place.tear_down()
        remedy = "disconnect" if kind == "network" else "remove"
        name = PROJECT if kind == "network" else f"{PROJECT}_data"
        assert told.value.message == (
            f"the {kind} {name} is still used by debug-{kind}: {remedy} that, and it "
            "goes by itself"
        )
        assert told.value.reason is FailureReason.TEARDOWN_INCOMPLETE
        assert told.value.transient
        assert place.api.inspect_container(debugging)["State"]["Running"]
    finally:
        place.api.remove_container(debugging, force=True)
    place.engine.sweep(INSTANCE)


def test_who_may_only_read_a_volume_fills_none(place: Place) -> None:
    """Docker copies what an image has at a path into a new volume, also for who may only read."""
    reads = Mount(volume="data", path="/bin", read_only=True)
    services = [
        one.model_copy(update={"mounts": (reads,)}) if one.name == "metrics" else one
        for one in place.services()
        if one.name != "api"
    ]
    volumes = (Volume(name="data", size_mib=1),)
    workload = Workload(
        instance=INSTANCE, engine="compose", image=place.image,
        topology=Topology(services=tuple(services), volumes=volumes),
    )  # fmt: skip
    place.engine.start(place.create(workload))
    place.engine.start_services(place.unit(workload), ["db", "metrics"])
    content, _ = place.api.get_archive(place.container(workload, "db"), "/data/.")
    with tarfile.open(fileobj=io.BytesIO(b"".join(content))) as found:
        assert [one.name for one in found if one.isfile()] == []
    assert place.altered(workload) == {}
