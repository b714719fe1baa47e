"""Topologies on real Docker and Compose: what others do to them, what they do to nobody, and that
whatever ends an agent or a Compose, the next turns lead to the same end.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from node_agent.engines.base import EngineFailure, PullCredential
from node_agent.engines.docker import DockerEngine
from node_agent.wire import (
    ExecProbe,
    FailureReason,
    HttpProbe,
    Image,
    Limits,
    SecretFile,
    Workload,
)
from reconciler.devkit import images
from tests.contract.test_engine_drift import with_settings
from tests.contract.test_engines import eventually
from tests.contract.topology_place import (
    ALL,
    INSTANCE,
    NODE,
    NOTHING,
    PROJECT,
    Place,
    script,
)
from tests.services import python_image
from tests.services.token_registry import TokenRegistry

pytestmark = pytest.mark.real
MIB = 1024 * 1024
TOKEN = SecretFile(name="hf-token", source="secret://project/hf-token", env="HF_TOKEN")


# --- when Compose is called ----------------------------------------------------------------------


def test_compose_is_not_called_when_nothing_is_to_be_made(place: Place) -> None:
    workload = place.workload()
    place.run(workload)
    assert place.calls() == 1
    place.engine.units()
    place.engine.start(place.unit(workload))
    place.engine.stop(place.unit(workload), 0)
    place.engine.start(place.unit(workload))
    place.engine.start_services(place.unit(workload), ALL)
    assert place.calls() == 1


def test_compose_hears_of_no_surroundings(
    place: Place, compose_program: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("COMPOSE_FILE", "COMPOSE_PROJECT_NAME", "COMPOSE_PROFILES", "HF_TOKEN"):
        monkeypatch.setenv(name, "of-the-surroundings")
    (place.state / PROJECT).mkdir(parents=True, mode=0o700)
    (place.state / PROJECT / ".env").write_text("COMPOSE_FILE=elsewhere.yaml\n")
    (place.state / "compose.yaml").write_text("services: {evil: {image: evil, privileged: true}}")
    seen = place.folder / "environment"
    place.engine = place.another(
        script(place.folder / "asked", f'env > {seen}\nexec {compose_program} "$@"')
    )
    workload = place.workload(env={"PRICE": "$HF_TOKEN ${HF_TOKEN} $$"})
    place.run(workload)
    assert "of-the-surroundings" not in seen.read_text()
    found = place.api.inspect_container(place.container(workload, "api"))
    assert "PRICE=$HF_TOKEN ${HF_TOKEN} $$" in found["Config"]["Env"]


# --- what somebody changes -----------------------------------------------------------------------


def test_what_nobody_touched_is_as_asked_in_every_state(place: Place) -> None:
    workload = place.workload(
        limits=Limits(cpu_millis=1234, memory_mib=64), env={"A": "", "B": "1"}
    )
    place.engine.start(place.create(workload))
    assert place.altered(workload) == {}
    place.engine.start_services(place.unit(workload), ALL)
    assert place.altered(workload) == {}
    place.api.pause(place.container(workload, "db"))
    assert place.altered(workload) == {}
    assert place.unit(workload).services[1].status == "paused"
    place.engine.start_services(place.unit(workload), ["db"])
    place.api.rename(place.container(workload, "db"), f"renamed-{NODE}")
    place.engine.stop(place.unit(workload), 0)
    assert place.altered(workload) == {}
    assert {one.status for one in place.unit(workload).services} == {"exited"}


def test_a_changed_limit_is_seen_and_put_right(place: Place) -> None:
    workload = place.workload(limits=Limits(memory_mib=64))
    place.run(workload)
    place.api.update_container(
        place.container(workload, "api"), mem_limit=128 * MIB, memswap_limit=128 * MIB
    )
    assert place.altered(workload)["api"][0] == "memory limit changed from 64 MiB to 128 MiB"
    place.repaired(workload, "api")


def test_another_network_and_none_are_seen_and_put_right(place: Place) -> None:
    workload = place.workload()
    place.run(workload)
    extra = place.api.create_network(f"extra-{NODE}")["Id"]
    try:
        place.api.connect_container_to_network(place.container(workload, "db"), extra)
        place.api.disconnect_container_from_network(place.container(workload, "metrics"), PROJECT)
        assert place.altered(workload) == {
            "db": (f"networks changed: extra-{NODE} added",),
            "metrics": (f"networks changed: {PROJECT} removed",),
        }
        place.repaired(workload, "db", "metrics")
    finally:
        place.api.remove_network(extra)


def test_a_network_that_is_gone_is_made_anew(place: Place) -> None:
    workload = place.workload()
    place.engine.stop(place.run(workload), 0)
    place.api.remove_network(PROJECT)
    with pytest.raises(EngineFailure) as failed:
        place.engine.start_services(place.unit(workload), ALL)
    assert failed.value.transient
    place.engine.start(place.unit(workload))
    place.engine.start_services(place.unit(workload), ALL)
    assert {one.status for one in place.unit(workload).services} == {"running"}


def test_a_volume_outlives_what_uses_it_and_is_made_anew(place: Place) -> None:
    workload = place.workload()
    place.run(workload)
    volume = f"{PROJECT}_data"
    before = place.api.inspect_volume(volume)["CreatedAt"]
    place.repaired(workload, "db")
    assert place.api.inspect_volume(volume)["CreatedAt"] == before
    place.engine.remove_services(place.unit(workload), ["db"], 0)
    place.api.remove_volume(volume)
    place.repaired(workload, "db")
    assert place.api.inspect_volume(volume)["Labels"]["dev.gpuaas.instance"] == INSTANCE


def test_a_form_that_is_not_in_force_starts_nothing(place: Place) -> None:
    place.run(place.workload())
    waiting = place.create(place.workload(env={"LEVEL": "debug"}))
    with pytest.raises(EngineFailure) as refused:
        place.engine.start_services(waiting, ["api"])
    assert refused.value.transient


def test_the_whole_is_asked_where_it_is_published(place: Place) -> None:
    unit = place.run(place.workload())
    eventually(lambda: place.engine.probe(unit, HttpProbe(port=8080), 1_000).ready)
    command = ExecProbe(command=("/bin/busybox", "true"))
    assert not place.engine.probe(unit, command, 1_000).ready


def test_a_form_that_somebody_changed_is_as_good_as_lost(place: Place) -> None:
    workload = place.workload()
    place.run(workload)
    (form,) = (place.state / PROJECT).glob("????????????????.json")
    document = json.loads(form.read_text())
    document["file"]["services"]["api"]["privileged"] = True
    form.write_text(json.dumps(document))
    (left,) = place.engine.units()
    assert (left.spec_hash, left.status) == ("", "running")
    again = place.run(workload)
    assert place.engine.units() == (again,)
    assert list((place.state / PROJECT).glob("*.corrupt-*"))


def test_what_is_left_when_the_state_is_lost_is_taken_down(place: Place) -> None:
    before = place.run(place.workload())
    shutil.rmtree(place.state)
    (left,) = place.engine.units()
    assert (left.spec_hash, left.instance, left.status) == ("", INSTANCE, "running")
    assert left.endpoints == before.endpoints != ()
    place.engine.stop(left, 0)
    (left,) = place.engine.units()
    assert left.status == "exited"
    place.engine.remove(left)
    assert place.engine.units() == ()
    place.engine.sweep(INSTANCE)
    assert place.engine.residue(INSTANCE) == NOTHING


def test_on_a_full_disk_it_is_taken_down_all_the_same(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    workload = place.workload()
    unit = place.run(workload)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("node_agent.engines.compose_forms._replace", full)
    with pytest.raises(EngineFailure) as refused:
        place.create(workload)
    assert refused.value.reason is FailureReason.DISK_FULL
    place.engine.stop(unit, 0)
    (stopped,) = place.engine.units()
    assert stopped.status == "created"
    place.engine.remove(stopped)
    assert place.engine.units() == ()
    place.engine.sweep(INSTANCE)
    assert place.engine.residue(INSTANCE) == NOTHING


# --- others --------------------------------------------------------------------------------------


@pytest.fixture
def foreign(place: Place) -> Iterator[str]:
    """A container of somebody's Compose project that bears the name of ours, and runs."""
    place.engine.pull(place.image, threading.Event())
    labels = {"com.docker.compose.project": PROJECT, "com.docker.compose.service": "theirs",
              "com.docker.compose.oneoff": "False"}  # fmt: skip
    made = place.api.create_container(place.image.reference, labels=labels, name=f"x-{PROJECT}")
    place.api.start(made["Id"])
    yield made["Id"]
    place.api.remove_container(made["Id"], force=True)


def is_up(place: Place, container: str) -> bool:
    return bool(place.api.inspect_container(container)["State"]["Running"])


def test_a_foreign_project_of_the_same_name_is_neither_used_nor_removed(
    place: Place, foreign: str
) -> None:
    with pytest.raises(EngineFailure) as refused:
        place.create(place.workload())
    assert refused.value.reason is FailureReason.CREATE_REFUSED
    assert f"x-{PROJECT}" in refused.value.message
    assert "not ours" in refused.value.message
    assert place.calls() == 0
    assert is_up(place, foreign)


def test_one_that_comes_later_is_not_removed_with_ours(
    place: Place, request: pytest.FixtureRequest
) -> None:
    workload = place.workload()
    unit = place.run(workload)
    foreign = request.getfixturevalue("foreign")
    place.engine.remove_services(unit, ["api"], 0)
    with pytest.raises(EngineFailure):
        place.engine.start(unit)
    place.engine.stop(place.unit(workload), 0)
    place.engine.remove(place.unit(workload))
    place.engine.sweep(INSTANCE)
    assert place.engine.residue(INSTANCE) == NOTHING
    assert is_up(place, foreign)


@pytest.mark.parametrize("kind", ["network", "volume"])
def test_what_has_a_name_of_ours_is_not_taken_over(place: Place, kind: str) -> None:
    name = PROJECT if kind == "network" else f"{PROJECT}_data"
    if kind == "network":
        place.api.create_network(name)
    else:
        place.api.create_volume(name)
    try:
        with pytest.raises(EngineFailure) as refused:
            place.create(place.workload())
        assert name in refused.value.message
        assert "not ours" in refused.value.message
    finally:
        place.api.remove_network(name) if kind == "network" else place.api.remove_volume(name)


def test_the_engine_of_single_containers_leaves_services_alone(place: Place) -> None:
    other = DockerEngine(NODE, place.host)
    workload = place.workload()
    place.run(workload)
    assert other.units() == ()
    assert other.residue(INSTANCE).containers == 0
    single = Workload(instance="acme/research/one", engine="docker", image=place.image)
    other.create(single, {})
    (unit,) = other.units()
    assert {one.instance for one in place.engine.units()} == {INSTANCE}
    other.remove(unit)
    assert place.api.networks(names=[other.network]) == []
    assert {one.status for one in place.unit(workload).services} == {"running"}
    other.close()


# --- what a launch needs -------------------------------------------------------------------------


def test_volumes_that_an_image_declares_are_named_and_go_with_the_instance(
    place: Place, registry_endpoint: str
) -> None:
    built = with_settings(images.build_site("1.0.0"), {"Volumes": {"/data": {}, "/cache": {}}})
    digest = str(images.push(built, registry_endpoint, "declaring", "1"))
    image = Image(registry=registry_endpoint, plain_http=True, repository="declaring",
                  digest=digest)  # fmt: skip
    before = {one["Name"] for one in place.api.volumes()["Volumes"] or ()}
    workload = place.workload(image=image)
    place.run(workload)
    made = {one["Name"] for one in place.api.volumes()["Volumes"]} - before
    assert len(made) == 3
    assert all(name.startswith(f"{PROJECT}_") for name in made)
    assert place.engine.residue(INSTANCE).volumes == 3
    place.tear_down()
    assert {one["Name"] for one in place.api.volumes()["Volumes"] or ()} == before


def test_no_room_for_its_volumes_is_said_before_anything_is_made(place: Place) -> None:
    with pytest.raises(EngineFailure) as refused:
        place.create(place.workload(size_mib=1 << 40))
    assert refused.value.reason is FailureReason.DISK_FULL
    assert refused.value.transient
    assert f"{1 << 40} MiB" in refused.value.message
    # What is there already is not asked room for.
    place.run(place.workload())
    place.create(place.workload(size_mib=1 << 40))


def test_a_shell_for_secrets_in_variables_is_missed_service_by_service(
    place: Place, registry_endpoint: str, tmp_path: Path
) -> None:
    with pytest.raises(EngineFailure) as refused:
        place.create(place.workload(secrets=(TOKEN,)))
    assert refused.value.reason is FailureReason.CREATE_REFUSED
    assert refused.value.message.startswith("api: ")
    assert "HF_TOKEN (hf-token)" in refused.value.message
    assert place.engine.units() == ()
    image = python_image.push(tmp_path, registry_endpoint, "shell-topology", python=False)
    workload = place.workload(secrets=(TOKEN,), image=image)
    folder = place.files.folder_of_service(workload, "api")
    folder.mkdir(parents=True)
    (folder / "hf-token").write_text("hunter2-hunter2")
    unit = place.run(workload)
    kept = "".join(one.read_text() for one in place.state.rglob("*") if one.is_file())
    said = repr((unit, place.api.inspect_container(place.container(workload, "api"))))
    assert "hunter2" not in kept + said


def test_an_image_is_pulled_with_the_token_of_the_node(
    place: Place, token_registry: TokenRegistry
) -> None:
    repository = "gpuaas/apps/acme/topology"
    token = token_registry.push_token(repository)
    digest = images.push(
        images.build_site("7.0.0"), token_registry.endpoint, repository, "1", token
    )
    image = Image(
        registry=token_registry.endpoint, plain_http=True, repository=repository,
        digest=str(digest),
    )  # fmt: skip
    never = threading.Event()
    with pytest.raises(EngineFailure) as refused:
        place.engine.pull(image, never, lambda: PullCredential(missing="nobody answers"))
    assert "nobody answers" in refused.value.message
    shown = token_registry.mint({repository: ("pull",)})
    place.engine.pull(image, never, lambda: PullCredential(shown))
    place.run(place.workload(image=image))
