"""A topology as a Compose file: the same each time, within the policy, and no more than asked."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from node_agent.compose_wire import Dependency, Mount, Scratch, Volume
from node_agent.engines.base import EngineFailure
from node_agent.engines.compose_file import (
    LABEL_SERVICE_HASH,
    compose_file,
    compose_text,
    needs_shell,
    network_name,
    project_name,
    service_hashes,
    service_workload,
    volume_names,
)
from node_agent.engines.compose_parts import service_words
from node_agent.engines.gpus import GpuGrant
from node_agent.wire import (
    FailureReason,
    Limits,
    Port,
    SecretFile,
    Service,
    Topology,
    Workload,
)
from tests.compose_policy import PROJECT, violations
from tests.topologies import (
    HOSTILE,
    INSTANCE,
    NODE,
    placement_of,
    placements,
    service,
    workload_of,
    workloads,
)

_SHA_OF_DATA = hashlib.sha256(b"/data").hexdigest()[:8]
ROOTS = ("/run/gpuaas/n1", "/var/lib/gpuaas/blobs")
VOLUMES = (Volume(name="index", size_mib=1), Volume(name="more", size_mib=1))
TOKEN = SecretFile(name="token", env="TOKEN")
PORTS = (Port(name="http", container=8080), Port(name="grpc", container=9000, address="10.0.0.7"))


def words_of(name: str = "api", **changes: Any) -> dict[str, Any]:
    words: dict[str, Any] = document_of(service(name, **changes))["services"][name]
    return words


def document_of(*services: Service, images: Any = None, **changes: Any) -> dict[str, Any]:
    what = workload_of(
        *services, **{"volumes": VOLUMES, "secrets": (TOKEN,), "ports": PORTS, **changes}
    )
    return compose_file(what, placement_of(what, images))


def declaring(*paths: str, name: str = "api") -> dict[str, Any]:
    return {name: {"Config": {"Volumes": {path: {} for path in paths}, "Cmd": ["serve"]}}}


# --- whatever the topology -----------------------------------------------------------------------


@given(st.data())
def test_any_topologys_file_is_within_the_policy(data: st.DataObject) -> None:
    what = data.draw(workloads())
    at = data.draw(placements(what))
    document = compose_file(what, at)
    text = compose_text(document)
    assert violations(text, ROOTS) == []
    assert compose_text(compose_file(what, at)) == text
    assert json.loads(text) == yaml.safe_load(text)
    assert all(ord(c) == 10 or 32 <= ord(c) < 127 or ord(c) > 0xFFFF for c in text)


@given(st.data())
def test_what_a_service_asks_for_is_in_its_words_as_it_is(data: st.DataObject) -> None:
    what = data.draw(workloads())
    document = compose_file(what, data.draw(placements(what)))
    assert what.topology is not None
    for one in what.topology.services:
        words = document["services"][one.name]
        assert words["image"] == one.image.reference
        assert one.env.items() - words["environment"].items() <= {
            (name, value) for name, value in one.env.items() if "VISIBLE" in name
        }
        if one.command:
            assert tuple(words["entrypoint"][-len(one.command) :]) == one.command
        assert {*words.get("depends_on", {})} == {other.service for other in one.depends_on}
        assert len(words.get("ports", ())) == len(one.ports)


@given(st.data())
def test_a_service_stays_the_same_in_another_version(data: st.DataObject) -> None:
    """Whatever else changes, the words of a service that does not change stay."""
    before = data.draw(workloads())
    at = data.draw(placements(before))
    assert before.topology is not None
    labels = {**before.labels, "dev.gpuaas.version": "2.0.0"}
    after = before.model_copy(update={"labels": labels, "stop_grace_ms": 77})
    assert after.spec_hash != before.spec_hash
    assert compose_text(compose_file(after, at)) == compose_text(compose_file(before, at))


@given(st.text(min_size=1, max_size=200), st.text(max_size=80))
def test_a_projects_name_is_one(instance: str, node: str) -> None:
    name = project_name(node, instance)
    assert PROJECT.fullmatch(name)
    assert len(name) <= 63
    assert project_name(f"{node}x", instance) != name
    assert project_name(node, f"{instance}x") != name


def test_names_can_be_read() -> None:
    document = document_of(
        service(mounts=(Mount(volume="index", path="/index"),)), images=declaring("/data")
    )
    project = network_name(document)
    assert project.rpartition("-")[0] == "gpuaas-acme-research-rag"
    assert volume_names(document) == (f"{project}_api_{_SHA_OF_DATA}", f"{project}_index")
    assert project_name(NODE, "a-b/c/d") != project_name(NODE, "a/b-c/d")


# --- one thing at a time -------------------------------------------------------------------------


def test_the_least_that_a_service_is() -> None:
    words = words_of()
    asked = words["labels"].pop("dev.gpuaas.asked")
    assert json.loads(asked)["CapDrop"] == {"ALL": True}
    assert words.pop("labels").keys() == {
        "dev.gpuaas.managed", "dev.gpuaas.node", "dev.gpuaas.instance", "dev.gpuaas.service",
        "dev.gpuaas.service-hash", "dev.gpuaas.ports", "dev.gpuaas.gpus",
        "dev.gpuaas.image-digest",
    }  # fmt: skip
    assert words == {
        "image": service().image.reference,
        "pull_policy": "never",
        "environment": {"NVIDIA_VISIBLE_DEVICES": "void", "AMD_VISIBLE_DEVICES": "none"},
        "init": True,
        "restart": "no",
        "security_opt": ["no-new-privileges"],
        "cap_drop": ["ALL"],
        "cap_add": ["CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "NET_BIND_SERVICE",
                    "SETGID", "SETUID"],
        "logging": {"driver": "json-file", "options": {"max-size": "10m", "max-file": "3"}},
        "pids_limit": 4096,
        "shm_size": 64 * 1024 * 1024,
        "healthcheck": {"disable": True},
        "stop_grace_period": "10s",
    }  # fmt: skip


WORDS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "limits": (
        {"limits": Limits(cpu_millis=1234, memory_mib=64, pids=9, shm_mib=2)},
        {"cpu_period": 100_000, "cpu_quota": 123_400, "mem_limit": 64 << 20,
         "memswap_limit": 64 << 20, "pids_limit": 9, "shm_size": 2 << 20},
    ),
    "ports": (
        {"ports": ("http", "grpc")},
        {"ports": [
            {"target": 8080, "published": "20000", "host_ip": "127.0.0.1", "protocol": "tcp"},
            {"target": 9000, "published": "20001", "host_ip": "10.0.0.7", "protocol": "tcp"},
        ]},
    ),
    "a port that is not its own": ({"ports": ()}, {}),
    "a command": ({"command": ("a", "$X")}, {"entrypoint": ["a", "$X"]}),
    "a grace": ({"stop_grace_ms": 1_001}, {"stop_grace_period": "2s"}),
    "scratch": (
        {"scratch": (Scratch(path="/s", size_mib=2),)},
        {"tmpfs": ["/s:rw,exec,nosuid,nodev,mode=1777,size=2097152"]},
    ),
    "confined": ({"confined": True}, {"read_only": True, "cap_add": []}),
    "secrets": (
        {"secrets": ("token",), "command": ("serve",)},
        {"volumes": [
            {"type": "bind", "source": "/run/gpuaas/n1/s-api", "target": "/run/gpuaas/secrets",
             "read_only": True, "bind": {"create_host_path": False}},
        ]},
    ),
}  # fmt: skip


@pytest.mark.parametrize(("asked", "expected"), WORDS.values(), ids=WORDS.keys())
def test_words(asked: dict[str, Any], expected: dict[str, Any]) -> None:
    words = words_of(**asked)
    assert {name: words[name] for name in expected} == expected
    assert words.keys() - words_of().keys() <= expected.keys() | {"entrypoint"}


def test_a_mount_takes_the_place_of_what_the_image_declares() -> None:
    one = service(
        mounts=(Mount(volume="index", path="/data", read_only=True),),
        scratch=(Scratch(path="/cache", size_mib=1),),
    )
    document = document_of(one, images=declaring("/data/", "/cache", "/own"))
    mounted = {m["target"]: m for m in document["services"]["api"]["volumes"]}
    project = document["name"]
    assert mounted.keys() == {"/data", "/own"}
    assert (mounted["/data"]["source"], mounted["/data"]["read_only"]) == (f"{project}_index", True)
    assert document["volumes"].keys() == {m["source"] for m in mounted.values()}


def test_waiting_is_for_the_agent_to_see_to_and_changes_no_container() -> None:
    api, db = service("api"), service("db")
    waits = service("api", depends_on=(Dependency(service="db", condition="healthy"),))
    document = document_of(waits, db)
    assert document["services"]["api"]["depends_on"] == {"db": {"condition": "service_started"}}
    assert service_hashes(document) == service_hashes(document_of(api, db))


def test_a_services_hash_is_of_all_its_words() -> None:
    hashes = {service_hashes(document_of(service(**asked)))["api"] for asked, _ in WORDS.values()}
    # Two of them ask for nothing: that port, and a port of another service.
    assert len(hashes) == len(WORDS)
    document = document_of(service())
    assert (
        document["services"]["api"]["labels"][LABEL_SERVICE_HASH] == service_hashes(document)["api"]
    )


def test_a_service_has_its_own_and_nothing_else() -> None:
    what = workload_of(
        service("api", ports=("http",), secrets=("token",)),
        service("db", ports=("grpc",)),
        ports=PORTS,
        secrets=(TOKEN, SecretFile(name="other", env="OTHER")),
        env={"SHARED": "no"},
        labels={"dev.gpuaas.app": "a", "com.docker.compose.project": "other", "x-a": "b"},
    )
    assert what.topology is not None
    api, db = (service_workload(what, one) for one in what.topology.services)
    assert [one.name for one in api.secrets] == ["token"]
    assert (db.secrets, [one.name for one in db.ports]) == ((), ["grpc"])
    assert api.labels == {"dev.gpuaas.app": "a"}
    assert [needs_shell(what, one) for one in what.topology.services] == [True, False]
    written = compose_text(compose_file(what, placement_of(what, _with_command("api", "db"))))
    assert "other" not in written
    assert "SHARED" not in written


def _with_command(*names: str) -> dict[str, Any]:
    return {name: {"Config": {"Cmd": ["serve"]}} for name in names}


def test_labels_of_a_manifest_are_never_ours() -> None:
    """Whatever it says: whose a container is, and of which service, the node says."""
    claimed = {
        "dev.gpuaas.managed": "false", "dev.gpuaas.node": "n2", "dev.gpuaas.instance": "a/b/c",
        "dev.gpuaas.service": "db", "dev.gpuaas.service-hash": "sha256:0",
        "dev.gpuaas.asked": "{}", "dev.gpuaas.gpus": "nvidia=GPU-1",
    }  # fmt: skip
    claiming = document_of(service(), labels=claimed)
    assert claiming == document_of(service())
    labels = claiming["services"]["api"]["labels"]
    assert (labels["dev.gpuaas.instance"], labels["dev.gpuaas.node"]) == (INSTANCE, NODE)


# --- refused -------------------------------------------------------------------------------------

REFUSED: dict[str, tuple[dict[str, Any], tuple[str, ...], str]] = {
    "a path twice": (
        {"mounts": (Mount(volume="index", path="/a"),),
         "scratch": (Scratch(path="/a", size_mib=1),)},
        (), "api: two things are to be mounted at /a",
    ),
    "inside of a shared volume": (
        {"mounts": (Mount(volume="index", path="/a"), Mount(volume="more", path="/a/b"))},
        (), "api: /a/b is inside of what is mounted at /a",
    ),
    "what the image declares inside of a shared volume": (
        {"mounts": (Mount(volume="index", path="/a"),)},
        ("/a/b",), "api: /a/b is inside of what is mounted at /a",
    ),
    "secrets inside of a shared volume": (
        {"mounts": (Mount(volume="index", path="/run"),), "secrets": ("token",)},
        (), "api: /run/gpuaas/secrets is inside of what is mounted at /run",
    ),
    "over the secrets": (
        {"mounts": (Mount(volume="index", path="/run/gpuaas/secrets"),)},
        (), "api: /run/gpuaas/secrets is the platform's own",
    ),
    "among the secrets": (
        {"scratch": (Scratch(path="/run/gpuaas/secrets/x", size_mib=1),), "secrets": ("token",)},
        (), "api: /run/gpuaas/secrets/x is inside of what is mounted at /run/gpuaas/secrets",
    ),
    "an image's path that climbs": (
        {}, ("/a/../../etc",), "the image declares '/a/../../etc' as a volume: no plain path",
    ),
    "an image's path that says more": (
        {}, ("/a:/b:rw",), "the image declares '/a:/b:rw' as a volume: no plain path",
    ),
    "the kernel's settings": (
        {"scratch": (Scratch(path="/proc/sys", size_mib=1),)}, (),
        "api: nothing is mounted at /proc/sys, which is the system's",
    ),
    "the host's devices": (
        {"mounts": (Mount(volume="index", path="/dev"),)}, (),
        "api: nothing is mounted at /dev, which is the system's",
    ),
    "all of an image": ({}, ("/",), "the image declares '/' as a volume: no plain path"),
    "a variable's name": ({"env": {"A=B": "c"}}, (), "api: 'A=B' is no name for a variable"),
    "a name that merges": ({"env": {"<<": "c"}}, (), "api: '<<' is no name for a variable"),
    "too many volumes": (
        {}, tuple(f"/v{n}" for n in range(65)), "the image declares 65 volumes, at most 64",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("asked", "declared", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_refused(asked: dict[str, Any], declared: tuple[str, ...], message: str) -> None:
    with pytest.raises(EngineFailure) as caught:
        document_of(service(**asked), images=declaring(*declared))
    assert (caught.value.reason, caught.value.message) == (FailureReason.CREATE_REFUSED, message)


def test_a_port_is_of_one_service() -> None:
    both = (service("api", ports=("http",)), service("db", ports=("http",)))
    with pytest.raises(EngineFailure, match="the port http is of api and of db"):
        document_of(*both)


def test_one_container_is_no_topology() -> None:
    what = Workload(instance=INSTANCE, engine="docker", image=service().image)
    with pytest.raises(EngineFailure, match="the workload is no topology"):
        compose_file(what, placement_of(what))


def test_secrets_in_variables_need_a_command() -> None:
    with pytest.raises(EngineFailure) as caught:
        document_of(service(secrets=("token",)))
    assert caught.value.reason is FailureReason.COMMAND_NOT_FOUND


@pytest.mark.parametrize("part", ["Privileged", "PidMode", "Binds", "VolumesFrom", "Runtime"])
def test_what_has_no_word_is_not_left_out(part: str) -> None:
    """Should a request ever ask for it, so that nothing is asked for in half."""
    with pytest.raises(EngineFailure, match=f"there is no way to ask Compose for {part}"):
        service_words({"Image": "x", "HostConfig": {part: True}})
    with pytest.raises(EngineFailure, match="there is no way to ask Compose for User"):
        service_words({"Image": "x", "User": "0", "HostConfig": {}})
    what = workload_of(service())
    grants = {"api": GpuGrant({part: []})}
    with pytest.raises(EngineFailure, match=part):
        compose_file(what, placement_of(what, gpus=grants))


def test_what_is_granted_stays_as_it_is() -> None:
    """One grant may be for several services."""
    request = {"Driver": "cdi", "DeviceIDs": ["nvidia.com/gpu=GPU-1"]}
    given_to_it = GpuGrant({"DeviceRequests": [request]})
    what = workload_of(service())
    compose_file(what, placement_of(what, gpus={"api": given_to_it}))
    assert request == {"Driver": "cdi", "DeviceIDs": ["nvidia.com/gpu=GPU-1"]}


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_texts_are_texts(text: str) -> None:
    document = document_of(service(command=(text,), env={"A": text}))
    read = yaml.safe_load(compose_text(document))["services"]["api"]
    meant = text.replace("$", "$$")
    assert (read["entrypoint"], read["environment"]["A"]) == ([meant], meant)


def test_a_topology_of_nothing_is_none() -> None:
    with pytest.raises(ValueError, match="at least 1 item"):
        Topology(services=())
