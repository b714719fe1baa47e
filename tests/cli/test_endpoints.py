"""How every published endpoint is reached: `gpuaas access`, `gpuaas status` and instructions."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from node_agent.wire import Endpoint, ServicePhase
from reconciler.adapters.store_sql import SqlStore
from reconciler.cli.access import access
from reconciler.cli.status import status
from reconciler.core.access_template import access_template, with_host_ports
from reconciler.core.endpoints import Forms, forms_of
from reconciler.core.names import ArtifactKey, ObjectRef
from reconciler.core.records import Condition, InstanceRecord
from reconciler.ports import Changes
from reconciler.views.access import instructions, tunnels
from tests.core import builders as b
from tests.core import topology_world as t
from tests.core.fleet import REVISION, running, target


def at(name: str, container: int, port: int, ip: str = "127.0.0.1") -> Endpoint:
    return Endpoint(name=name, container=container, host_ip=ip, host_port=port)


def documents(profile: dict[str, Any] | None = None) -> b.Documents:
    found = t.world(profile)
    if profile is None:
        ends = t.profile_of(found)["topology"]["endpoints"]
        ends[0].update(expose="private")
        ends[2].update(path="/lab")
    return found


RECORD = replace(
    running(target("one")),
    node="gpu-1",
    endpoints=(at("api", 8080, 20001), at("index", 6333, 20002), at("ui", 8080, 20003)),
    conditions=(Condition("Ready", "True", "Ready", "", REVISION, 1),),
    access="{host_port:ui} {host_port:api} {host_port} {host_port:none}",
    services=(
        ServicePhase(name="api", phase="ready"),
        ServicePhase(name="index", phase="failed", vital=False, detail="exit code 1"),
    ),
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    store = SqlStore.open(f"sqlite:///{tmp_path / 'store.db'}")
    store.commit(Changes(records=(RECORD,)))
    store.save_accepted(b.accepted(documents()))
    store.close()
    return tmp_path


def shown(command: Any, folder: Path, *args: str) -> str:
    asked = [*args, "--state-dir", str(folder)]
    return CliRunner().invoke(command, asked, standalone_mode=False, catch_exceptions=False).stdout


def forms(record: InstanceRecord = RECORD, found: b.Documents | None = None) -> Forms:
    return forms_of(b.accepted(found or documents()), record)


# --- access --------------------------------------------------------------------------------------


def test_a_tunnel_for_each_and_what_is_behind_it(folder: Path) -> None:
    assert shown(access, folder, t.ONE) == (
        "acme/research/one on gpu-1 is ready.\n"
        "\n"
        "20003 20001 20001 {host_port:none}\n"
        "\n"
        "Port api, while this runs at http://127.0.0.1:8080/:\n"
        "  ssh -N -L 8080:127.0.0.1:20001 gpu-1\n"
        "\n"
        "Port index, while this runs at grpc://127.0.0.1:6333:\n"
        "  ssh -N -L 6333:127.0.0.1:20002 gpu-1\n"
        "\n"
        "Port ui, while this runs at http://127.0.0.1:20003/lab:\n"
        "  ssh -N -L 20003:127.0.0.1:20003 gpu-1\n"
    )


def test_tunnels_as_json(folder: Path) -> None:
    found = json.loads(shown(access, folder, t.ONE, "--format", "json"))["endpoints"]
    assert found[1] == {
        "name": "index",
        "service": "index",
        "protocol": "grpc",
        "tunnel": "ssh -N -L 6333:127.0.0.1:20002 gpu-1",
        "local": "127.0.0.1:6333",
        "url": "grpc://127.0.0.1:6333",
    }


def test_all_tunnels_can_be_open_at_once() -> None:
    """Services have ports of their own, so two of them may well have the same."""
    ports = [at("a", 80, 20001), at("b", 8080, 20002), at("c", 8080, 20003), at("d", 80, 20004)]
    ends = [one["local"] for one in tunnels(ports, "gpu-1")]
    assert len({*ends}) == len(ends)
    assert ends == [f"127.0.0.1:{port}" for port in (20001, 8080, 20003, 20004)]


def test_what_no_version_knows_is_reached_all_the_same() -> None:
    (found,) = tunnels([at("x", 8080, 20001)], "gpu-1", "tunnel", {})
    assert (found["url"], found["local"]) == ("", "127.0.0.1:8080")
    assert found["tunnel"] == "ssh -N -L 8080:127.0.0.1:20001 tunnel@gpu-1"


# --- status --------------------------------------------------------------------------------------


def test_status_shows_each_endpoint_by_its_name(folder: Path) -> None:
    text = shown(status, folder)
    ends = "api=http://127.0.0.1:20001 index=grpc://127.0.0.1:20002 ui=http://127.0.0.1:20003"
    assert ends in text


def test_status_of_one_shows_services_and_tunnels(folder: Path) -> None:
    text = shown(status, folder, t.ONE)
    assert "service:   api ready\n" in text
    assert "service:   index failed, not vital: exit code 1\n" in text
    assert (
        "endpoint:  ui at http://127.0.0.1:20003/lab while this runs\n"
        "             ssh -N -L 20003:127.0.0.1:20003 gpu-1\n"
    ) in text
    found = json.loads(shown(status, folder, t.ONE, "--format", "json"))
    assert [one["url"] for one in found["tunnels"]] == [
        "http://127.0.0.1:8080/",
        "grpc://127.0.0.1:6333",
        "http://127.0.0.1:20003/lab",
    ]


# --- instructions --------------------------------------------------------------------------------


def test_the_entrance_is_the_first_published_one_of_the_main_service() -> None:
    found = documents()
    found[b.VERSION_FILE]["spec"]["access"] = {"instructions": "{host_port} {host_port:index}"}
    spec = b.objects(found)[ObjectRef("AppVersion", ("hello", "1.0.0"))].manifest.spec
    assert access_template(spec) == "{host_port:api} {host_port:index}"  # type: ignore[arg-type]
    plain = b.world()
    plain[b.VERSION_FILE]["spec"]["access"] = {"instructions": "{host_port}"}
    spec = b.objects(plain)[ObjectRef("AppVersion", ("hello", "1.0.0"))].manifest.spec
    assert access_template(spec) == "{host_port}"  # type: ignore[arg-type]


def test_an_accepted_topology_names_its_entrance() -> None:
    found = documents()
    found[b.VERSION_FILE]["spec"]["access"] = {"instructions": "{host_port}"}
    instance = t.run(found).instances[t.ONE]
    assert instance.artifact == ArtifactKey.parse(b.IMAGE)
    record = replace(RECORD, endpoints=RECORD.endpoints[::-1], access=instance.access)
    assert instructions(record) == "20001"


def test_what_names_no_endpoint_stays_as_it_is_written() -> None:
    text = "{host_port:a} {host_port:b} {host_port:} {host_port}"
    assert with_host_ports(text, 1, {"a": 2}) == "2 {host_port:b} {host_port:} 1"


@pytest.mark.parametrize(
    ("profile", "name", "url"), [(t.VLLM, "api", "/"), (t.JUPYTER, "notebook", "/lab/")]
)
def test_what_a_renderer_makes_has_its_path(profile: dict[str, Any], name: str, url: str) -> None:
    found = forms(found=documents(profile))
    assert (found[name].protocol, found[name].path) == ("http", url)
