"""Ways out of a container that Compose files are known for: none can be said, and none is let by.

Each is held against three things that know nothing of each other: the types on the wire, the node's
writer, which has no key for it, and the policy that the tests hold against every written file.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest
import yaml
from pydantic import BaseModel, ValidationError

from node_agent.compose_wire import Mount, Scratch, Volume
from node_agent.engines.base import EngineFailure
from node_agent.engines.compose_file import compose_file, compose_text
from node_agent.engines.compose_parts import service_words
from node_agent.wire import (
    BlobFile,
    Image,
    Limits,
    Port,
    SecretFile,
    Service,
    Topology,
    Workload,
)
from tests.compose_policy import violations, violations_in
from tests.topologies import DIGEST, IMAGE, INSTANCE, placement_of, service, workload_of

ROOTS = ("/run/gpuaas/n1", "/var/lib/gpuaas/blobs")
OF_A_SERVICE: dict[str, Any] = {
    "privileged": True,
    "cap_add": ["SYS_ADMIN"],
    "cap_drop": [],
    "pid": "container:other",
    "ipc": "host",
    "uts": "host",
    "userns_mode": "host",
    "cgroup": "host",
    "cgroup_parent": "/",
    "network_mode": "host",
    "networks": {"other": None},
    "links": ["other"],
    "external_links": ["other"],
    "extra_hosts": ["registry:10.0.0.1"],
    "dns": ["10.0.0.1"],
    "build": {"context": "."},
    "extends": {"file": "/etc/compose.yaml", "service": "x"},
    "env_file": ["/etc/passwd"],
    "label_file": ["/etc/passwd"],
    "volumes": ["/:/host"],
    "volumes_from": ["container:other"],
    "configs": [{"source": "shadow", "target": "/shadow"}],
    "devices": ["/dev/sda:/dev/sda:rwm"],
    "device_cgroup_rules": ["a *:* rwm"],
    "security_opt": ["seccomp=unconfined", "apparmor=unconfined"],
    "sysctls": {"kernel.core_pattern": "|/x"},
    "runtime": "other",
    "ulimits": {"nproc": -1},
    "oom_score_adj": -1000,
    "oom_kill_disable": True,
    "user": "0:0",
    "group_add": ["docker"],
    "restart": "always",
    "healthcheck": {"test": ["CMD", "true"]},
    "post_start": [{"command": "id", "privileged": True}],
    "pre_stop": [{"command": "id", "privileged": True}],
    "provider": {"type": "program-of-the-host"},
    "develop": {"watch": []},
    "credential_spec": {"file": "x"},
    "use_api_socket": True,
    "logging": {"driver": "syslog", "options": {"syslog-address": "tcp://10.0.0.1"}},
    "deploy": {"mode": "global"},
    "gpus": "all",
    "container_name": "other",
    "hostname": "other",
    "profiles": ["x"],
    "scale": 100,
    "pull_policy": "always",
    "platform": "linux/arm64",
    "tmpfs": ["/x:suid,dev"],
    "x-anything": {},
    "<<": {"privileged": True},
}
OF_THE_FILE: dict[str, Any] = {
    "include": ["oci://registry.example/evil:latest"],
    "version": "3",
    "secrets": {"shadow": {"file": "/etc/shadow"}},
    "configs": {"shadow": {"file": "/etc/shadow"}},
    "models": {"m": {"model": "x"}},
    "x-anything": {"privileged": True},
    "<<": {"include": ["x"]},
    "name": "somebody-elses",
}


def good() -> dict[str, Any]:
    what = workload_of(
        service(
            mounts=(Mount(volume="index", path="/index"),), secrets=("token",), ports=("http",)
        ),
        volumes=(Volume(name="index", size_mib=1),),
        secrets=(SecretFile(name="token"),),
        ports=(Port(name="http", container=80),),
    )
    return compose_file(what, placement_of(what))


WIRE: dict[type[BaseModel], dict[str, Any]] = {
    Service: service().model_dump(),
    Topology: {"services": (service(),)},
    Workload: {"instance": INSTANCE, "engine": "docker", "image": IMAGE},
    Mount: {"volume": "index", "path": "/index"},
    Scratch: {"path": "/scratch", "size_mib": 1},
    Volume: {"name": "index", "size_mib": 1},
    Limits: {},
    Port: {"name": "http", "container": 80},
    BlobFile: {"name": "w", "source": "artifact_store://x", "digest": DIGEST},
}
SAID_OTHERWISE = {"name", "restart"}
"""Of the wire, too: a name of its own, and what the agent does when a service ends."""


@pytest.mark.parametrize("key", sorted({*OF_A_SERVICE, *OF_THE_FILE} - SAID_OTHERWISE))
def test_it_can_not_be_said_on_the_wire(key: str) -> None:
    for model, fields in WIRE.items():
        model.model_validate(fields)
        with pytest.raises(ValidationError):
            model.model_validate({**fields, key: {**OF_THE_FILE, **OF_A_SERVICE}[key]})


@pytest.mark.parametrize("key", OF_A_SERVICE)
def test_the_policy_tells_it_of_a_service(key: str) -> None:
    document = good()
    assert violations_in(document, ROOTS) == []
    document["services"]["api"][key] = OF_A_SERVICE[key]
    assert violations_in(document, ROOTS)


@pytest.mark.parametrize("key", OF_THE_FILE)
def test_the_policy_tells_it_of_a_file(key: str) -> None:
    document = good()
    document[key] = OF_THE_FILE[key]
    assert violations_in(document, ROOTS)


ASKED_OF_DOCKER = (
    "Privileged", "PidMode", "IpcMode", "UTSMode", "UsernsMode", "CgroupnsMode", "CgroupParent",
    "Binds", "VolumesFrom", "VolumeDriver", "ExtraHosts", "Dns", "Links", "Sysctls", "Runtime",
    "Ulimits", "OomScoreAdj", "OomKillDisable", "DeviceCgroupRules", "MaskedPaths",
    "ReadonlyPaths", "StorageOpt", "Isolation", "PublishAllPorts", "AutoRemove", "NanoCpus",
)  # fmt: skip


@pytest.mark.parametrize("part", ASKED_OF_DOCKER)
def test_the_writer_has_no_word_for_it(part: str) -> None:
    with pytest.raises(EngineFailure, match=f"there is no way to ask Compose for {part}"):
        service_words({"Image": IMAGE.reference, "HostConfig": {part: True}})


# --- what has a place in a file, with another value ----------------------------------------------

Spoil = Callable[[dict[str, Any]], object]


def _bind(document: dict[str, Any]) -> dict[str, Any]:
    mounts: list[dict[str, Any]] = document["services"]["api"]["volumes"]
    return next(one for one in mounts if one["type"] == "bind")


def _volume(document: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = next(iter(document["volumes"].values()))
    return found


def _api(document: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = document["services"]["api"]
    return found


SPOILED: dict[str, Spoil] = {
    "a mutable tag": lambda d: _api(d).update(image="registry.example/rag:latest"),
    "a tag and a digest of nothing": lambda d: _api(d).update(image="r/rag@sha256:12"),
    "a mount of the host's": lambda d: _bind(d).update(source="/etc"),
    "a mount of all of the host's": lambda d: _bind(d).update(source="/"),
    "a mount that climbs": lambda d: _bind(d).update(source="/run/gpuaas/n1/../../docker.sock"),
    "a mount that is relative": lambda d: _bind(d).update(source="./x"),
    "a mount that can be written": lambda d: _bind(d).update(read_only=False),
    "a mount somewhere else": lambda d: _bind(d).update(target="/etc"),
    "a mount that makes its source": lambda d: _bind(d).update(bind={"create_host_path": True}),
    "a mount that spreads": lambda d: _bind(d).update(bind={"propagation": "shared"}),
    "a mount without a type": lambda d: _bind(d).pop("type"),
    "a mount of a pipe": lambda d: _bind(d).update(type="npipe"),
    "a mount of an image": lambda d: _bind(d).update(type="image"),
    "a short mount": lambda d: _api(d)["volumes"].append("index:/index"),
    "a volume that is a folder of the host": lambda d: _volume(d).update(
        driver_opts={"type": "none", "o": "bind", "device": "/"}
    ),
    "a volume of somebody else": lambda d: _volume(d).update(external=True),
    "a volume with another's name": lambda d: _volume(d).update(name="gpuaas-other_data"),
    "a volume by another driver": lambda d: _volume(d).update(driver="sshfs"),
    "the host's network": lambda d: d["networks"]["default"].update(name="host"),
    "another instance's network": lambda d: d["networks"]["default"].update(name="gpuaas-other"),
    "a network of somebody else": lambda d: d["networks"]["default"].update(external=True),
    "a network on the host's interface": lambda d: d["networks"]["default"].update(
        driver="macvlan"
    ),
    "one more network": lambda d: d["networks"].update(more={"external": True}),
    "a port on every address": lambda d: _api(d)["ports"][0].update(host_ip="0.0.0.0"),
    "a port on all addresses": lambda d: _api(d)["ports"][0].pop("host_ip"),
    "a port by name": lambda d: _api(d)["ports"][0].update(published="8080-9090"),
    "a short port": lambda d: _api(d).update(ports=["80:80"]),
    "no process limit": lambda d: _api(d).update(pids_limit=-1),
    "no capability dropped": lambda d: _api(d).pop("cap_drop") and _api(d).update(cap_drop=[]),
    "NET_RAW": lambda d: _api(d)["cap_add"].append("NET_RAW"),
    "swap": lambda d: _api(d).update(mem_limit=64 << 20, memswap_limit=-1),
    "every GPU": lambda d: _api(d).update(
        deploy={"resources": {"reservations": {"devices": [
            {"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}
        ]}}}
    ),
    "every GPU by its image": lambda d: _api(d)["environment"].pop("NVIDIA_VISIBLE_DEVICES"),
    "every GPU by CDI": lambda d: _api(d).update(devices=["nvidia.com/gpu=all"]),
    "a variable of the agent's": lambda d: _api(d)["environment"].update(TOKEN=None),
    "a label of Compose's": lambda d: _api(d)["labels"].update({"com.docker.compose.project": "x"}),
    "a confined service that may something": lambda d: _api(d).update(read_only=True),
    "a start with Docker": lambda d: _api(d).update(restart="unless-stopped"),
    "waiting in Docker": lambda d: _api(d).update(
        depends_on={"db": {"condition": "service_healthy"}}
    ),
}  # fmt: skip


@pytest.mark.parametrize("spoil", SPOILED.values(), ids=SPOILED.keys())
def test_the_policy_tells_other_values(spoil: Spoil) -> None:
    document = copy.deepcopy(good())
    spoil(document)
    assert violations_in(document, ROOTS)


TEXTS = {
    "interpolation": '{"name": "${X}"}',
    "interpolation with a default": '{"name": "${X:-y}"}',
    "a merge": "a: &a {privileged: true}\nservices: {x: {<<: *a}}",
    "a name twice": '{"name": "gpuaas-a", "name": "gpuaas-b"}',
    "a tag": "name: !!python/name:os.system x",
    "a reset": "services: !reset {}",
    "two documents": "{}\n---\n{}",
    "an alias": "a: &a [1]\nb: *a",
}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS.keys())
def test_the_policy_tells_other_texts(text: str) -> None:
    assert violations(text, ROOTS)


# --- what the types refuse -----------------------------------------------------------------------

BAD_VALUES: dict[str, Callable[[], object]] = {
    "a tag for a digest": lambda: Image(registry="r", repository="a", digest="latest"),
    "a mount of a path of the host": lambda: Mount(volume="/etc", path="/etc"),
    "a mount of a docker socket": lambda: Mount(volume="index", path="/a:/var/run/docker.sock"),
    "a mount that climbs": lambda: Mount(volume="index", path="/a/../../etc"),
    "a mount of all": lambda: Mount(volume="index", path="/"),
    "a mount that is filled in": lambda: Mount(volume="index", path="/${X}"),
    "scratch with options": lambda: Scratch(path="/a:suid", size_mib=1),
    "scratch without a size": lambda: Scratch(path="/a", size_mib=0),
    "a volume of no name": lambda: Volume(name="", size_mib=1),
    "a volume with a path": lambda: Volume(name="../x", size_mib=1),
    "a service with a path": lambda: service("../x"),
    "a service that merges": lambda: service("<<"),
    "a service of two lines": lambda: service("a\nb"),
    "a port of none": lambda: Port(name="x", container=0),
    "no process limit": lambda: Limits(pids=-1),
    "no memory limit": lambda: Limits(memory_mib=-1),
    "a secret with a path": lambda: SecretFile(name="../shadow"),
    "a blob with a path": lambda: BlobFile(name="../x", source="s", digest=DIGEST),
    "a condition of Docker's": lambda: Service.model_validate(
        {**service().model_dump(), "depends_on": ({"service": "x", "condition": "on"},)}
    ),
    "a text for a list": lambda: service(command="sh -c id"),
    "a variable without a value": lambda: service(env={"TOKEN": None}),
    "a volume that is not there": lambda: workload_of(
        service(mounts=(Mount(volume="elsewhere", path="/a"),))
    ),
    "a secret that is not there": lambda: workload_of(service(secrets=("elsewhere",))),
    "a port that is not there": lambda: workload_of(service(ports=("elsewhere",))),
}  # fmt: skip


@pytest.mark.parametrize("make", BAD_VALUES.values(), ids=BAD_VALUES.keys())
def test_the_types_refuse(make: Callable[[], object]) -> None:
    with pytest.raises(ValidationError):
        make()


def test_what_a_manifest_says_is_never_more_than_a_value() -> None:
    """A whole file as one value of it is one value still."""
    evil = yaml.safe_dump({"services": {"x": {"privileged": True}}, "include": ["oci://x"]})
    one = service(command=(evil,), env={"A": evil, "B": json.dumps({"<<": {"privileged": True}})})
    what = workload_of(one, labels={"dev.gpuaas.app": evil, evil: "x"})
    document = compose_file(what, placement_of(what))
    assert violations(compose_text(document), ROOTS) == []
    assert (
        document["services"]["api"].keys()
        == (
            compose_file(workload_of(service(command=("x",))), placement_of(what))["services"][
                "api"
            ]
        ).keys()
    )
