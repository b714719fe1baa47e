"""Versions of several services: what becomes of them, to the byte, and what can't be rendered."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest

from node_agent.wire import MACHINE_IDENTITY, Service, Workload
from reconciler.core.names import ArtifactKey
from renderers import TOPOLOGIES, CannotRender, render
from tests.renderers.topologies import (
    GOLDEN,
    GPUS,
    SIZES,
    compose_of,
    example,
    golden_texts,
    instance_of,
    manifest,
    rendered,
    version_of,
)

Document = dict[str, Any]


@pytest.mark.parametrize("name", SIZES)
def test_golden(name: str) -> None:
    """`python tests/renderers/rewrite_golden.py` writes them anew."""
    for path, text in golden_texts(name).items():
        assert text == path.read_text(), path.name


def test_there_is_a_golden_file_of_every_renderer_and_no_other() -> None:
    renderers = {manifest(name)["spec"]["runtime_profile"]["renderer"] for name in SIZES}
    assert renderers == {*TOPOLOGIES}
    texts = {path.name for name in SIZES for path in golden_texts(name)}
    assert {path.name for path in GOLDEN.iterdir()} == texts


# --- what one service gets -----------------------------------------------------------------------


def profile_of(document: Document) -> Document:
    found: Document = document["spec"]["runtime_profile"]
    return found


def bent(name: str, bend: Callable[[Document], object], **size: Any) -> Workload | CannotRender:
    """What is made of a manifest after `bend` changed its profile."""
    document = copy.deepcopy(manifest(name))
    bend(profile_of(document))
    return render(instance_of(version_of(document), **{**SIZES[name], **size}))


def service(workload: Workload | CannotRender, name: str) -> Service:
    assert isinstance(workload, Workload), workload
    assert workload.topology is not None
    found = workload.topology.service(name)
    assert found is not None, name
    return found


def sidecar(profile: Document, index: int = 0) -> Document:
    found: Document = profile["topology"]["services"][index]
    return found


def flags_of(found: Service) -> Mapping[str, str]:
    words = [*found.command]
    return {word: words[at + 1] for at, word in enumerate(words[:-1]) if word.startswith("--")}


@pytest.mark.parametrize("name", SIZES)
def test_the_machine_identity_is_the_main_services_alone(name: str) -> None:
    workload = rendered(example(name))
    assert workload.topology is not None
    have = [one.name for one in workload.topology.services if MACHINE_IDENTITY in one.secrets]
    main = [one.name for one in workload.topology.services if one.image == workload.image]
    assert have == main


@pytest.mark.parametrize("name", SIZES)
def test_limits_add_up_to_the_instance_at_most(name: str) -> None:
    workload = rendered(example(name))
    assert workload.topology is not None
    for limit in ("cpu_millis", "memory_mib"):
        total = sum(getattr(one.limits, limit) for one in workload.topology.services)
        assert total == getattr(workload.limits, limit) <= SIZES[name][limit]


def test_the_main_service_gets_what_the_others_leave_to_the_millicore() -> None:
    found = rendered(example("vllm", cpu_millis=1001, memory_mib=1024))
    assert service(found, "exporter").limits.cpu_millis == 100
    assert service(found, "vllm").limits.cpu_millis == 901
    assert service(found, "vllm").limits.memory_mib == 896


@pytest.mark.parametrize(("vcpu", "millis"), [(0.29, 290), (0.57, 570), (0.0199, 19)])
def test_a_fraction_of_a_core_is_rounded_down_as_it_is_written(vcpu: float, millis: int) -> None:
    found = bent("vllm", lambda p: sidecar(p)["limits"].update(vcpu=vcpu))
    assert service(found, "exporter").limits.cpu_millis == millis


def test_without_a_limit_of_the_instance_the_main_service_has_none() -> None:
    """As where a version is shown without any instance of it."""
    found = rendered(example("vllm", cpu_millis=None, memory_mib=None))
    main = service(found, "vllm").limits
    assert (main.cpu_millis, main.memory_mib) == (None, None)
    assert (found.limits.cpu_millis, found.limits.memory_mib) == (None, None)
    assert service(found, "exporter").limits.memory_mib == 128


SHARES: tuple[tuple[dict[str, Any], tuple[str, ...], tuple[str, ...]], ...] = (
    ({}, GPUS[:2], ()),
    ({"api": "all", "embed": "all"}, GPUS[:2], GPUS[:2]),
    ({"api": 1, "embed": "rest"}, GPUS[:1], GPUS[1:2]),
    ({"embed": 1}, GPUS[1:2], GPUS[:1]),
    ({"api": 1, "embed": 1}, GPUS[:1], GPUS[1:2]),
    ({"api": 2, "embed": "rest"}, GPUS[:2], ()),
    ({"api": 0, "embed": 2}, (), GPUS[:2]),
)


@pytest.mark.parametrize(("asked", "main", "other"), SHARES)
def test_gpus_are_dealt_as_asked(
    asked: dict[str, Any], main: tuple[str, ...], other: tuple[str, ...]
) -> None:
    def bend(profile: Document) -> None:
        for one in profile["topology"]["services"]:
            one.pop("gpus", None)
            if one["name"] in asked:
                one["gpus"] = asked[one["name"]]

    found = bent("retrieval", bend)
    assert service(found, "api").limits.gpu_uuids == main
    assert service(found, "embed").limits.gpu_uuids == other
    assert service(found, "metrics").limits.gpu_vendor is None


def test_all_wait_as_long_as_the_longest_path_takes() -> None:
    """vectors 90 s, then load 600 s, then api 30 s; what is only started is not waited for."""
    assert rendered(example("retrieval")).readiness.start_budget_ms == 720_000
    found = bent("retrieval", lambda p: sidecar(p, 2)["depends_on"][0].pop("condition"))
    assert isinstance(found, Workload)
    assert found.readiness.start_budget_ms == 630_000


def test_what_a_vital_service_waits_for_is_vital() -> None:
    found = rendered(example("retrieval"))
    assert found.topology is not None
    vital = [one.name for one in found.topology.services if one.vital]
    assert vital == ["api", "load", "vectors"]


def test_classes_that_only_look_on_are_confined() -> None:
    found = rendered(example("retrieval"))
    assert found.topology is not None
    assert [one.name for one in found.topology.services if one.confined] == ["metrics"]


def test_another_sort_of_probe_is_another_workload() -> None:
    """Both name a port, and nothing else that is not as usual."""

    def probed(kind: str) -> Workload | CannotRender:
        health = {"readiness": {kind: {"port": 1}}}
        return bent("lab", lambda p: sidecar(p, 1).update(health=health))

    http, tcp = probed("http"), probed("tcp")
    assert isinstance(http, Workload)
    assert isinstance(tcp, Workload)
    assert http.spec_hash != tcp.spec_hash


def test_images_are_those_that_were_found_for_the_node() -> None:
    instance = example("lab")
    assert instance.topology is not None
    other = ArtifactKey.parse("gpuaas/apps/platform/catalog/other@sha256:" + "f" * 64)
    images = {**instance.topology.images, "database": other}
    found = rendered(replace(instance, topology=replace(instance.topology, images=images)))
    image = service(found, "database").image
    assert image.reference == f"registry.example:5000/{other}"
    assert found.image == service(found, "notebook").image


def test_a_dollar_stays_one_in_the_container() -> None:
    found = compose_of(rendered(example("retrieval")))
    assert found["services"]["api"]["environment"]["PRICE"] == "$${PATH} costs $5"


# --- vLLM ----------------------------------------------------------------------------------------

PARALLEL: tuple[tuple[Document, int, str, str, int], ...] = (
    ({}, 4, "4", "1", 4),
    ({}, 0, "1", "1", 0),
    ({"pipeline_parallel": 2}, 4, "2", "2", 4),
    ({"tensor_parallel": 2}, 4, "2", "1", 2),
    ({"tensor_parallel": 2, "pipeline_parallel": 2}, 4, "2", "2", 4),
    ({"tensor_parallel": 1}, 0, "1", "1", 0),
)


@pytest.mark.parametrize(("asked", "there", "tensor", "pipeline", "seen"), PARALLEL)
def test_vllm_is_as_parallel_as_it_has_gpus(
    asked: Document, there: int, tensor: str, pipeline: str, seen: int
) -> None:
    found = service(bent("vllm", lambda p: p["vllm"].update(asked), gpu_uuids=GPUS[:there]), "vllm")
    flags = flags_of(found)
    assert flags["--tensor-parallel-size"] == tensor
    assert flags["--pipeline-parallel-size"] == pipeline
    assert len(found.limits.gpu_uuids) == seen


def test_vllm_is_asked_for_its_health_and_has_the_time_to_load_a_model() -> None:
    found = service(rendered(example("vllm")), "vllm").readiness.model_dump()
    assert found["probe"] == {"kind": "http", "port": 8000, "path": "/health"}
    assert (found["start_budget_ms"], found["timeout_ms"]) == (1_200_000, 5_000)


def test_what_the_manifest_says_of_health_counts() -> None:
    asked = {"readiness": {"tcp": {"port": 8000}}, "start_budget_s": 90, "timeout_s": 2}
    found = service(bent("vllm", lambda p: p.update(health=asked)), "vllm").readiness.model_dump()
    assert found["probe"] == {"kind": "tcp", "port": 8000}
    assert (found["start_budget_ms"], found["timeout_ms"]) == (90_000, 2_000)


def test_the_api_key_is_in_no_word_of_the_workload_but_by_name() -> None:
    found = rendered(example("vllm"))
    (key,) = (one for one in found.secrets if one.name == "api-key")
    assert (key.env, key.source) == ("VLLM_API_KEY", "")
    assert "VLLM_API_KEY" not in service(found, "vllm").env
    assert "--api-key" not in service(found, "vllm").command


def test_further_flags_stand_before_those_of_the_platform_which_win() -> None:
    asked = ["vllm", "serve", "--port", "1", "--swap-space", "4"]
    command = service(bent("vllm", lambda p: p.update(command=asked)), "vllm").command
    assert command[:3] == ("vllm", "serve", "meta-llama/Llama-3.3-70B-Instruct")
    assert command[3:7] == ("--port", "1", "--swap-space", "4")
    assert [at for at, word in enumerate(command) if word == "--port"][-1] > 3


@pytest.mark.parametrize("program", [[], ["vllm", "serve"]], ids=["flags alone", "whole"])
def test_flags_alone_are_for_the_program_of_the_renderer(program: list[str]) -> None:
    asked = [*program, "--swap-space", "4"]
    command = service(bent("vllm", lambda p: p.update(command=asked)), "vllm").command
    model = "meta-llama/Llama-3.3-70B-Instruct"
    assert command[:5] == ("vllm", "serve", model, "--swap-space", "4")


def test_a_module_is_a_program() -> None:
    asked = ["python3", "-m", "vllm.entrypoints.cli.main", "serve", "--swap-space", "4"]
    command = service(bent("vllm", lambda p: p.update(command=asked)), "vllm").command
    assert command[:4] == tuple(asked[:4])
    assert command[4:6] == ("meta-llama/Llama-3.3-70B-Instruct", "--swap-space")


def test_flags_of_the_renderer_stand_before_what_ends_them() -> None:
    asked = ["start-notebook.py", "--debug", "--", "more"]
    command = service(bent("lab", lambda p: p.update(command=asked)), "notebook").command
    assert command[:2] == ("start-notebook.py", "--debug")
    assert command[-2:] == ("--", "more")
    assert "--ServerApp.ip=0.0.0.0" in command[2:-2]


def test_what_is_said_counts_even_where_it_is_the_usual() -> None:
    asked = {"start_budget_s": 60}
    found = service(bent("vllm", lambda p: p.update(health=asked)), "vllm").readiness
    assert (found.start_budget_ms, found.timeout_ms) == (60_000, 5_000)


def test_another_program_is_called_with_the_same_flags() -> None:
    asked = ["python3", "/srv/standin"]
    command = service(bent("vllm", lambda p: p.update(command=asked)), "vllm").command
    own = service(rendered(example("vllm")), "vllm").command
    assert command == ("python3", "/srv/standin", *own[2:])


def test_a_model_on_the_node_is_looked_for_nowhere_else() -> None:
    assert service(rendered(example("vllm_shared")), "vllm").env["HF_HUB_OFFLINE"] == "1"
    assert "HF_HUB_OFFLINE" not in service(rendered(example("vllm")), "vllm").env


def test_a_setup_is_waited_for_unless_it_waits_itself() -> None:
    def setup(profile: Document, **more: Any) -> None:
        del sidecar(profile)["health"], sidecar(profile)["depends_on"]
        sidecar(profile).update(sidecar_class="setup", restart="on_failure", **more)
        del profile["topology"]["endpoints"]

    waits = service(bent("vllm", setup), "vllm").depends_on
    assert [(one.service, one.condition) for one in waits] == [("exporter", "completed")]
    after = [{"service": "vllm", "condition": "healthy"}]
    found = bent("vllm", lambda p: setup(p, depends_on=after))
    assert service(found, "vllm").depends_on == ()


# --- Jupyter -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "base"), [("/", "/"), ("/lab", "/lab/"), ("/lab/ada/", "/lab/ada/")]
)
def test_jupyter_is_asked_below_its_base_path(given: str, base: str) -> None:
    found = service(bent("lab", lambda p: p["jupyter"].update(base_path=given)), "notebook")
    assert f"--ServerApp.base_url={base}" in found.command
    assert found.readiness.model_dump()["probe"]["path"] == f"{base}api"


def test_the_token_is_read_from_its_file_and_is_in_no_variable() -> None:
    """Kernels have all variables of the server that starts them."""
    found = rendered(example("lab"))
    assert service(found, "notebook").env["JUPYTER_TOKEN_FILE"] == "/run/gpuaas/secrets/token"
    assert {one.env for one in found.secrets} == {""}


# --- refusals ------------------------------------------------------------------------------------


def _unlimited(profile: Document) -> None:
    del sidecar(profile)["limits"]["memory_mib"]


REFUSED: tuple[tuple[str, Callable[[Document], object], dict[str, Any], str, str], ...] = (
    (
        "vllm",
        lambda p: p["vllm"].update(tensor_parallel=4, pipeline_parallel=2),
        {},
        "gpus_too_few",
        "tensor_parallel x pipeline_parallel needs 8 GPUs; the instance has 4, of which other "
        "services count 0",
    ),
    (
        "vllm",
        lambda p: p["vllm"].update(pipeline_parallel=3),
        {},
        "tensor_parallel_uneven",
        "4 GPUs can't be split over 3 pipeline stages alike: give tensor_parallel, or another "
        "number of GPUs",
    ),
    (
        "vllm_shared",
        lambda p: p["vllm"].pop("tensor_parallel"),
        {"gpu_uuids": GPUS[:1]},
        "gpus_too_few",
        "tensor_parallel x pipeline_parallel needs 1 GPUs; the instance has 1, of which other "
        "services count 1",
    ),
    (
        "retrieval",
        lambda p: sidecar(p, 3).update(gpus=3),
        {},
        "gpus_too_few",
        "embed counts 3 GPUs; of the instance's 2 2 are left",
    ),
    (
        "vllm",
        _unlimited,
        {},
        "limits_missing",
        "exporter does not say how much it may use of the instance's 262144 MiB of memory",
    ),
    (
        "vllm",
        lambda p: None,
        {"memory_mib": 130},
        "limits_too_small",
        "of the instance's 130 MiB of memory the other services take 128; vllm needs at least 6",
    ),
    (
        "retrieval",
        lambda p: None,
        {"cpu_millis": 7000},
        "limits_too_small",
        "of the instance's 7000 millicores of CPU the other services take 5790; api needs 1500",
    ),
    (
        "lab",
        lambda p: p["secrets"].clear(),
        {},
        "secret_missing",
        "the secret token is not there, and without it everybody would be let in",
    ),
    (
        "retrieval",
        lambda p: sidecar(p, 1).update(role="main"),
        {},
        "main_service",
        "exactly one service has the role main, and here 2 have: api, vectors",
    ),
    (
        "retrieval",
        lambda p: p.pop("topology"),
        {},
        "main_service",
        "exactly one service has the role main, and here 0 have",
    ),
    (
        "vllm",
        lambda p: p["topology"]["endpoints"][0].update(service="nobody"),
        {},
        "unknown_service",
        "an endpoint is of nobody, which is no service",
    ),
    (
        "vllm",
        lambda p: sidecar(p)["depends_on"][0].update(service="nobody"),
        {},
        "invalid_workload",
        "Value error, exporter depends on a service that is not there",
    ),
    (
        "retrieval",
        lambda p: sidecar(p, 1).update(depends_on=[{"service": "load"}]),
        {},
        "invalid_workload",
        "Value error, services depend on each other in a circle",
    ),
    (
        "vllm",
        lambda p: p.pop("vllm"),
        {},
        "renderer_part_missing",
        "vllm_openai serves what runtime_profile.vllm says",
    ),
    (
        "lab",
        lambda p: p.pop("jupyter"),
        {},
        "renderer_part_missing",
        "jupyter_with_sidecar serves what runtime_profile.jupyter says",
    ),
)


@pytest.mark.parametrize(("name", "bend", "size", "code", "message"), REFUSED)
def test_refusals_say_what_does_not_fit(
    name: str, bend: Callable[[Document], object], size: dict[str, Any], code: str, message: str
) -> None:
    assert bent(name, bend, **size) == CannotRender(code, message)


def test_what_is_to_go_needs_no_secret() -> None:
    instance = example("lab", secrets=())
    assert isinstance(render(instance), CannotRender)
    assert isinstance(render(replace(instance, run="decommissioned")), Workload)


def test_a_service_without_an_image_is_refused() -> None:
    instance = example("lab")
    assert instance.topology is not None
    images = {k: v for k, v in instance.topology.images.items() if k != "database"}
    found = render(replace(instance, topology=replace(instance.topology, images=images)))
    assert found == CannotRender("image_missing", "no image was found for database")


def test_a_renderer_that_is_none_is_refused_by_name() -> None:
    offered = "offered: generic_services, jupyter_with_sidecar, vllm_openai"
    instance = example("lab")
    assert instance.topology is not None
    assert render(replace(instance, topology=None)) == CannotRender(
        "renderer_not_offered", f"no renderer makes services of nothing; {offered}"
    )
    other = replace(instance.topology, renderer="helm")
    assert render(replace(instance, topology=other)) == CannotRender(
        "renderer_not_offered", f"no renderer makes services of helm; {offered}"
    )


def test_a_workload_survives_the_wire() -> None:
    for name in SIZES:
        workload = rendered(example(name))
        again = Workload.model_validate_json(workload.canonical())
        assert again == workload
        assert again.spec_hash == workload.spec_hash
        assert json.loads(workload.canonical())["engine"] == "compose"
