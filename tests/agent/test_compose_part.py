"""What Compose is shown of a topology: what is to be made, and of that all, by our hash alone."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from node_agent.compose_wire import Dependency, Mount, Volume
from node_agent.engines.compose_file import (
    LABEL_SERVICE_HASH,
    compose_file,
    network_name,
    part_of,
    project_name,
    service_hashes,
    volume_names,
)
from node_agent.engines.compose_forms import Form
from node_agent.engines.compose_seen import to_make
from node_agent.wire import LABEL_SERVICE
from tests.topologies import (
    INSTANCE,
    NODE,
    placement_of,
    placements,
    service,
    workload_of,
    workloads,
)

PROJECT = project_name(NODE, INSTANCE)
DATA, LOG = f"{PROJECT}_data", f"{PROJECT}_log"
WAITS = (Dependency(service="db", condition="healthy"), Dependency(service="job"))
SERVICES = (
    service("api", depends_on=WAITS, mounts=(Mount(volume="data", path="/data"),)),
    service("db", mounts=(Mount(volume="data", path="/data"), Mount(volume="log", path="/log"))),
    service("job"),
)
VOLUMES = (Volume(name="data", size_mib=1), Volume(name="log", size_mib=1))


def document() -> dict[str, Any]:
    workload = workload_of(*SERVICES, volumes=VOLUMES)
    return compose_file(workload, placement_of(workload))


def form() -> Form:
    return Form(INSTANCE, "sha256:1", "sha256:2", document())


def container(name: str, service_hash: str = "", **more: str) -> dict[str, Any]:
    """As Docker lists it; `more`: labels that say nothing to us."""
    labels = {LABEL_SERVICE: name, LABEL_SERVICE_HASH: service_hash or hashes()[name], **more}
    return {"Id": name, "State": "running", "Created": 1, "Labels": labels}


def hashes() -> dict[str, str]:
    return service_hashes(document())


def everything() -> set[str]:
    return {network_name(document()), *volume_names(document())}


def test_on_a_first_launch_it_is_all_of_it() -> None:
    assert part_of(document(), ["api", "db", "job"], ()) == document()


@settings(max_examples=30)
@given(data=st.data())
def test_of_any_topology_what_is_to_be_made_is_as_it_stands(data: st.DataObject) -> None:
    workload = data.draw(workloads())
    whole = compose_file(workload, data.draw(placements(workload)))
    assert part_of(whole, whole["services"], ()) == whole
    names = data.draw(st.sets(st.sampled_from(sorted(whole["services"])), min_size=1))
    part = part_of(whole, names, {network_name(whole), *volume_names(whole)})
    assert part["services"].keys() == names
    for name, words in part["services"].items():
        said = {**whole["services"][name], "depends_on": None}
        assert {**words, "depends_on": None} == said
        assert {*words.get("depends_on", {})} <= names
    for one in (*part["networks"].values(), *part["volumes"].values()):
        assert one == {"name": one["name"], "external": True}


def test_what_is_there_is_for_compose_to_use_and_not_to_compare() -> None:
    part = part_of(document(), ["api"], {PROJECT, DATA})
    assert part["networks"] == {"default": {"name": PROJECT, "external": True}}
    assert part["volumes"] == {DATA: {"name": DATA, "external": True}}
    assert "depends_on" not in part["services"]["api"]
    part = part_of(document(), ["api", "db"], {PROJECT, DATA})
    assert part["services"]["api"]["depends_on"].keys() == {"db"}
    assert part["volumes"][LOG] == document()["volumes"][LOG]


def test_what_is_made_is_what_is_missing_or_has_another_hash_of_ours() -> None:
    there = [container(name) for name in ("api", "db", "job")]
    assert to_make(form(), there, everything()) == []
    assert to_make(form(), [], everything()) == ["api", "db", "job"]
    assert to_make(form(), [*there[:2], container("job", "sha256:0")], everything()) == ["job"]
    assert to_make(form(), [*there, container("gone", "sha256:0")], everything()) == []
    others = {"com.docker.compose.config-hash": "of-another-release"}
    theirs = [container(name, **others) for name in ("api", "db", "job")]
    assert to_make(form(), theirs, everything()) == []


def test_who_can_not_be_started_again_is_made_anew() -> None:
    there = [container(name) for name in ("api", "db", "job")]
    assert to_make(form(), there, {*volume_names(document())}) == ["api", "db", "job"]
    assert to_make(form(), there, everything() - {LOG}) == ["db"]
