"""What is replaced is for our hash to say: not for a Compose of another release, which hashes
services, networks and volumes in its own way.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from node_agent.compose_wire import Dependency
from node_agent.engines.base import ownership_labels
from node_agent.wire import HttpProbe, Workload
from tests.contract.test_engines import eventually
from tests.contract.topology_place import ALL, INSTANCE, NODE, PROJECT, Place
from tests.services import go_tools

pytestmark = pytest.mark.real
HASH = "com.docker.compose.config-hash"
VOLUME = f"{PROJECT}_data"


@pytest.fixture
def oldest() -> Path:
    """The oldest release that is taken."""
    return go_tools.program("docker-compose-oldest")


def workload_of(place: Place, *changed: str) -> Workload:
    """Its `api` waits for its `db`; those that are named are others."""
    plain = place.workload()
    assert plain.topology is not None
    services = [
        one.model_copy(
            update={
                "depends_on": (Dependency(service="db"),) if one.name == "api" else (),
                "env": {"LEVEL": "debug"} if one.name in changed else {},
            }
        )
        for one in plain.topology.services
    ]
    topology = plain.topology.model_copy(update={"services": tuple(services)})
    return plain.model_copy(update={"topology": topology})


def lives(place: Place, workload: Workload) -> dict[str, tuple[str, str]]:
    """By service its container, and when that was started."""
    inspected = {
        one.name: place.api.inspect_container(one.unit_id) for one in place.unit(workload).services
    }
    return {name: (one["Id"], one["State"]["StartedAt"]) for name, one in inspected.items()}


def hash_of(place: Place, workload: Workload, name: str) -> str:
    """By whichever Compose made its container."""
    inspected = place.api.inspect_container(place.container(workload, name))
    return str(inspected["Config"]["Labels"][HASH])


def ground(place: Place) -> tuple[str, str]:
    """Which network and which volume it is on."""
    (network,) = place.api.networks(names=[PROJECT])
    return network["Id"], place.api.inspect_volume(VOLUME)["CreatedAt"]


def upgraded(place: Place, before: Workload, after: Workload, name: str) -> None:
    """With that service alone replaced."""
    was, stood = lives(place, before), ground(place)
    unit = place.run(after)
    now = lives(place, after)
    assert {one for one in ALL if now[one] != was[one]} == {name}
    assert ground(place) == stood
    assert {one.status for one in unit.services} == {"running"}
    assert place.altered(after) == {}
    eventually(lambda: place.engine.probe(unit, HttpProbe(port=8080), 1_000).ready)


@pytest.mark.parametrize("first", ["the oldest", "this one"])
def test_made_by_one_release_and_changed_by_another(
    place: Place, oldest: Path, first: str
) -> None:
    programs = [oldest, place.program]
    one, other = programs if first == "the oldest" else reversed(programs)
    one_engine, other_engine = place.another(one), place.another(other)
    workload = workload_of(place)
    place.engine.close()
    place.engine = one_engine
    place.run(workload)
    hashed, was, stood = hash_of(place, workload, "metrics"), lives(place, workload), ground(place)
    place.engine = other_engine
    place.repaired(workload, "metrics")
    assert hash_of(place, workload, "metrics") != hashed
    now = lives(place, workload)
    assert (now["api"], now["db"], ground(place)) == (was["api"], was["db"], stood)
    upgraded(place, workload, workload_of(place, "db"), "db")
    place.engine = one_engine
    upgraded(place, workload_of(place, "db"), workload_of(place, "api", "db"), "api")
    other_engine.close()


def of_another_release(place: Place, workload: Workload) -> None:
    """All that somebody's Compose made, who hashes otherwise; it runs, and is as was asked."""
    for one in place.unit(workload).services:
        made = place.api.inspect_container(one.unit_id)
        place.api.remove_container(one.unit_id, force=True)
        again = place.api.create_container_from_config(
            {
                **made["Config"],
                "Hostname": "",
                "Labels": {**made["Config"]["Labels"], HASH: "0" * 64},
                "HostConfig": made["HostConfig"],
                "NetworkingConfig": {"EndpointsConfig": {PROJECT: {"Aliases": [one.name]}}},
            },
            made["Name"].lstrip("/"),
        )
        place.api.start(again["Id"])
    assert place.altered(workload) == {}


def labels(kind: str, name: str) -> Mapping[str, str]:
    """As Compose puts them on what it makes."""
    return {
        **ownership_labels(NODE, INSTANCE),
        "com.docker.compose.project": PROJECT,
        f"com.docker.compose.{kind}": name,
        HASH: "0" * 64,
    }


def test_other_hashes_of_compose_replace_nothing(place: Place) -> None:
    place.api.create_network(PROJECT, driver="bridge", labels=labels("network", "default"))
    place.api.create_volume(VOLUME, labels=labels("volume", VOLUME))
    stood = ground(place)
    workload = workload_of(place)
    place.run(workload)
    of_another_release(place, workload)
    upgraded(place, workload, workload_of(place, "db"), "db")
    assert hash_of(place, workload_of(place, "db"), "api") == "0" * 64
    upgraded(place, workload_of(place, "db"), workload_of(place, "api", "db"), "api")
    assert ground(place) == stood
