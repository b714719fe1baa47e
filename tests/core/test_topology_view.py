"""What is shown of a topology: as its version and workload have it, and as its node finds it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from node_agent.wire import (
    MACHINE_IDENTITY,
    Endpoint,
    FailureReason,
    Phase,
    ServicePhase,
    Workload,
    WorkloadReport,
)
from reconciler.core.endpoints import EndpointForm, endpoint_forms, forms_of, url
from reconciler.core.kinds.app_version import AppVersionSpec
from reconciler.core.names import ObjectRef
from reconciler.core.observed import Known, Seen, Unknown
from reconciler.core.topology_view import (
    EndpointView,
    MountView,
    NeedView,
    ScratchView,
    SecretView,
    TopologyView,
    topology_view,
)
from renderers import render
from tests.core import builders as b
from tests.core import topology_world as t
from tests.core.fleet import running, target
from tests.core.spread import spread
from tests.core.test_members import W1

Said = Seen[WorkloadReport | None] | None


def spec_of(documents: b.Documents) -> AppVersionSpec:
    spec = b.objects(documents)[ObjectRef("AppVersion", ("hello", "1.0.0"))].manifest.spec
    assert isinstance(spec, AppVersionSpec)
    return spec


def made(documents: b.Documents, key: Any = t.ONE, seen: Said = None) -> TopologyView:
    instance = t.run(documents).instances[key]
    workload = render(instance)
    assert isinstance(workload, Workload), workload
    return topology_view(instance, workload, spec_of(documents), None, seen)


def report(documents: b.Documents, **fields: Any) -> Said:
    workload = render(t.run(documents).instances[t.ONE])
    assert isinstance(workload, Workload), workload
    given = {
        "instance": t.ONE,
        "target_hash": workload.spec_hash,
        "running_hash": workload.spec_hash,
        "phase": Phase.READY,
        **fields,
    }
    return Known(WorkloadReport(**given))


def phase(name: str, what: str, **fields: Any) -> ServicePhase:
    return ServicePhase.model_validate({"name": name, "phase": what, **fields})


# --- what is asked -------------------------------------------------------------------------------


def test_what_each_service_is_asked_to_be() -> None:
    view = made(t.world(host_port=9000))
    assert (view.instance, view.renderer, view.node) == (t.ONE, "generic_services", "gpu-1")
    assert (view.runs, view.state, view.message) == ("", "", "")
    api, fill, index = view.services
    assert [(one.name, one.role, one.sidecar_class, one.vital) for one in view.services] == [
        ("api", "main", "", True),
        ("fill", "sidecar", "setup", True),
        ("index", "sidecar", "data", True),
    ]
    assert view.starts == ("fill", "index", "api")
    assert api.needs == (NeedView("fill", "completed"), NeedView("index", "healthy"))
    assert (api.image, index.image) == (b.IMAGE, t.INDEX_IMAGE)
    assert (api.probe, index.probe, fill.probe) == ("http :8080/", "tcp :6333", "runs")
    assert (fill.restart, fill.health) == ("on_failure", "")
    assert index.mounts == (MountView("data", "/data", read_only=False),)
    assert index.scratch == (ScratchView("/tmp", 64),)
    assert (index.share.cpu_millis, index.share.memory_mib) == (500, 512)
    assert (api.share.gpu_uuids, index.share.gpu_uuids) == (("GPU-0",), ())


def test_endpoints_say_where_they_are_reached_from() -> None:
    view = made(t.world(host_port=9000))
    api, _, index = view.services
    assert index.endpoints == (EndpointView("index", "grpc", "internal", "/", 6333, "index:6333"),)
    assert api.endpoints == (
        EndpointView("api", "http", "private", "/", 8080, "api:8080", "127.0.0.1", 9000),
        EndpointView("ui", "http", "embedded_ui_gateway", "/", 8081, "api:8081", "127.0.0.1"),
    )


def test_secrets_are_named_and_the_machine_identity_is_not() -> None:
    api = made(t.world()).services[0]
    assert api.secrets == (SecretView("token", "", "TOKEN"),)
    assert MACHINE_IDENTITY not in repr(made(t.world()))


@pytest.mark.parametrize(
    ("profile", "name", "endpoint"),
    [(t.VLLM, "vllm", ("api", "vllm:8000", "/")),
     (t.JUPYTER, "notebook", ("notebook", "notebook:8888", "/lab/"))],
    ids=["vllm", "jupyter"],
)  # fmt: skip
def test_what_a_renderer_makes_is_the_main_service(
    profile: dict[str, Any], name: str, endpoint: tuple[str, str, str]
) -> None:
    main = made(t.world(profile)).service(name)
    assert main is not None
    assert main.role == "main"
    first = main.endpoints[0]
    assert (first.name, first.inside, first.path) == endpoint


def test_one_container_is_one_service() -> None:
    (only,) = made(b.world()).services
    assert (only.name, only.role, only.vital, only.restart) == ("main", "main", True, "always")
    assert only.endpoints == (
        EndpointView("http", "http", "private", "/", 8080, "8080", "127.0.0.1", None),
    )
    assert only.probe == "http :8080/ready"


def test_a_further_member_has_what_its_role_says() -> None:
    (only,) = made(spread(), W1).services
    assert only.endpoints == ()
    assert only.probe == "runs"


def test_gpus_that_several_services_use_are_shared() -> None:
    documents = t.world(gpu_count=2)
    topology = t.profile_of(documents)["topology"]
    topology["services"][1]["sidecar_class"] = "worker"
    topology["endpoints"] = topology["endpoints"][1:]
    for service in topology["services"][:2]:
        service["gpus"] = "all"
    api, fill, index = (one.share for one in made(documents).services)
    assert api.gpu_uuids == index.gpu_uuids == ("GPU-0", "GPU-1")
    assert (api.gpus_shared, index.gpus_shared, fill.gpus_shared) == (True, True, False)


# --- what is seen --------------------------------------------------------------------------------


def test_each_service_has_its_own_word() -> None:
    documents = t.world(host_port=9000)
    services = (
        phase("api", "ready", image_digest="sha256:" + "a" * 64),
        phase("fill", "completed", exit_code=0),
        phase("index", "degraded", detail="the probe fails", restarts=2),
    )
    published = Endpoint(name="ui", container=8081, host_ip="127.0.0.1", host_port=32001)
    seen = report(
        documents,
        phase=Phase.DEGRADED,
        message="index: the probe fails",
        services=services,
        endpoints=(published,),
    )
    view = made(documents, seen=seen)
    assert (view.runs, view.message) == ("this", "index: the probe fails")
    assert [(one.name, one.health, one.detail, one.restarts) for one in view.services] == [
        ("api", "ready", "", 0),
        ("fill", "completed", "", 0),
        ("index", "degraded", "the probe fails", 2),
    ]
    api = view.services[0]
    assert api.image_runs == "sha256:" + "a" * 64
    assert [(one.name, one.host_port) for one in api.endpoints] == [("api", 9000), ("ui", 32001)]


WHOLE = [
    (Phase.PENDING, "waiting"),
    (Phase.PULLING, "starting"),
    (Phase.STARTING, "starting"),
    (Phase.READY, "ready"),
    (Phase.DEGRADED, "degraded"),
    (Phase.FAILED, "failed"),
    (Phase.STOPPED, "stopped"),
    (Phase.REMOVING, "stopped"),
    (Phase.REMOVED, "absent"),
]


@pytest.mark.parametrize(("told", "health"), WHOLE)
@pytest.mark.parametrize("documents", [b.world(), t.world()], ids=["one", "several"])
def test_a_report_of_the_whole_is_said_of_each(
    documents: b.Documents, told: Phase, health: str
) -> None:
    """A node tells services apart only once it has some."""
    view = made(documents, seen=report(documents, phase=told))
    assert {one.health for one in view.services} == {health}


def test_every_phase_is_known() -> None:
    assert {told for told, _ in WHOLE} == {*Phase}


def test_what_is_in_the_way_is_said() -> None:
    documents = b.world()
    seen = report(documents, phase=Phase.FAILED, reason=FailureReason.EXITED, message="code 3",
                  exit_code=3, running_hash=None)  # fmt: skip
    view = made(documents, seen=seen)
    assert (view.runs, view.message) == ("nothing", "exited: code 3")
    assert (view.services[0].detail, view.services[0].exit_code) == ("exited: code 3", 3)


def test_a_service_that_its_node_does_not_name_is_absent() -> None:
    documents = t.world()
    seen = report(documents, services=(phase("api", "ready"),))
    healths = [one.health for one in made(documents, seen=seen).services]
    assert healths == ["ready", "absent", "absent"]


@pytest.mark.parametrize(
    ("seen", "runs", "health"),
    [
        (Unknown("node_offline", "silent for 90 s"), "unknown", "unknown"),
        (Known(None), "nothing", "absent"),
        (None, "", ""),
    ],
)
def test_what_nobody_saw_is_neither_well_nor_ill(seen: Said, runs: str, health: str) -> None:
    view = made(t.world(), seen=seen)
    assert view.runs == runs
    assert {one.health for one in view.services} == {health}


def test_another_form_that_still_runs_is_told_apart() -> None:
    documents = t.world()
    view = made(documents, seen=report(documents, running_hash="sha256:" + "0" * 64))
    assert view.runs == "another"


# --- endpoints by name ---------------------------------------------------------------------------


def test_a_plain_versions_ports_say_what_is_behind_them() -> None:
    documents = b.world()
    spec = documents[b.VERSION_FILE]["spec"]
    spec["ui"] = {"extension_kind": "notebook", "path": "/lab"}
    spec["runtime_profile"]["ports"] = [
        {"name": "ui", "container": 8888, "expose": "embedded_ui_gateway"},
        {"name": "db", "container": 5432},
        {"name": "gcs", "container": 6379, "expose": "members"},
    ]
    spec["runtime_profile"]["health"] = {"readiness": {"tcp": {"port": 5432}}}
    assert endpoint_forms(spec_of(documents)) == (
        EndpointForm("ui", "main", 8888, "http", "embedded_ui_gateway", "/lab"),
        EndpointForm("db", "main", 5432, "tcp"),
        EndpointForm("gcs", "main", 6379, "tcp", "members"),
    )


def test_forms_are_of_the_version_that_runs() -> None:
    record = replace(running(target()), applied_version="1.0.0", target_version="9.0.0")
    found = forms_of(b.accepted(t.world()), record)
    assert {*found} == {"api", "index", "ui"}
    assert found["index"].protocol == "grpc"
    gone = replace(record, applied_version="0.9.0")
    assert forms_of(b.accepted(t.world()), gone) == {}


@pytest.mark.parametrize(
    ("protocol", "path", "found"),
    [
        ("http", "/lab?token=1&a=b", "http://h:1/lab?token=1&a=b"),
        ("https", "/", "https://h:1/"),
        ("grpc", "/ignored", "grpc://h:1"),
        ("tcp", "/", "tcp://h:1"),
        ("http", "/`id`;$(id)'\"|<>", "http://h:1/%60id%60%3B%24%28id%29%27%22%7C%3C%3E"),
    ],
)
def test_a_url_is_nothing_that_a_shell_runs(protocol: str, path: str, found: str) -> None:
    assert url(protocol, path, "h:1") == found
