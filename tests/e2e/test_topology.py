"""An app of five services, by the example's own manifests: launched, hurt, upgraded, taken away."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from node_agent.secret_files import SecretFiles
from reconciler.devkit.state_repo import Published
from tests.e2e import topologies
from tests.e2e.platform import AGENT, Platform
from tests.e2e.topologies import RETRIEVAL, SERVICES, VLLM, App, Calls, Running, service

OLD, NEW = topologies.SHIPPED[RETRIEVAL], "2.1.0"
NEVER_READY, VECTORS_DIE, METRICS_DIE, ASKED_AMISS = "2.2.0", "2.3.0", "2.4.0", "2.5.0"
QUESTION = {"question": "Who carries the phone when on call?"}
MIB = 1024 * 1024
NEVER = "0001-01-01T00:00:00Z"


@pytest.fixture(scope="module")
def images(registry_endpoint: str) -> dict[str, str]:
    return topologies.push_images(registry_endpoint)


@pytest.fixture(scope="module")
def calls(tmp_path_factory: pytest.TempPathFactory) -> Calls:
    return Calls.at(tmp_path_factory.mktemp("compose"))


@pytest.fixture(scope="module")
def platform(
    tmp_path_factory: pytest.TempPathFactory,
    docker_host: str,
    published: Published,
    calls: Calls,
    images: dict[str, str],
) -> Iterator[Platform]:
    """Both apps in its catalog, with all versions that the tests go through, and nothing runs."""
    root = tmp_path_factory.mktemp("topology")
    made = topologies.platform_with_compose(root, published, docker_host, calls.program)
    handbook = handbook_of(made, images)
    handbook.publish()
    handbook.add(NEW, topologies.no_change, {"worker": images["retrieval-worker+"]})
    handbook.add(NEVER_READY, _never_ready)
    handbook.add(ASKED_AMISS, _asked_amiss)
    handbook.add(VECTORS_DIE, lambda spec: _dies(spec, "vectors"))
    handbook.add(METRICS_DIE, lambda spec: _dies(spec, "metrics"))
    chat_of(made, images).publish()
    made.repo.begin_with()
    try:
        made.start()
        yield made
    finally:
        made.stop()


def handbook_of(platform: Platform, images: dict[str, str]) -> App:
    digests = {
        name.removeprefix("retrieval-"): digest
        for name, digest in images.items()
        if name.startswith("retrieval-") and not name.endswith("+")
    }
    parameters = {"cpu_cores": 2, "memory_gib": 1}
    return App(platform, RETRIEVAL, "handbook", digests, parameters, topologies.fast)


def chat_of(platform: Platform, images: dict[str, str]) -> App:
    digests = {"image": images["vllm-standin"]}
    parameters = {"gpu_count": 0, "cpu_cores": 1, "memory_gib": 0.5}
    return App(platform, VLLM, "chat", digests, parameters, topologies.without_gpus)


def _never_ready(spec: dict[str, Any]) -> None:
    api = service(spec, "api")
    api["env"]["API_PORT"] = "8081"
    api["health"]["start_budget_s"] = 3


def _asked_amiss(spec: dict[str, Any]) -> None:
    """Another probe alone, so that no container differs."""
    health = service(spec, "api")["health"]
    health["readiness"]["http"]["path"] = "/no-such-page"
    health["start_budget_s"] = 3


def _dies(spec: dict[str, Any], name: str) -> None:
    service(spec, name)["command"] = ["/bin/sh", "-c", "exit 3"]


@pytest.fixture
def handbook(platform: Platform, images: dict[str, str]) -> App:
    platform.name = f"{topologies.PROJECT}/handbook"
    return handbook_of(platform, images)


@pytest.fixture
def chat(platform: Platform, images: dict[str, str]) -> App:
    platform.name = f"{topologies.PROJECT}/chat"
    return chat_of(platform, images)


@pytest.fixture
def neighbour(
    platform: Platform, calls: Calls, images: dict[str, str], tmp_path: Path
) -> Iterator[Any]:
    """A Compose project of somebody else on the same Docker; gives how to look at it."""
    image = f"{platform.published.endpoint}/{RETRIEVAL}@{images['retrieval-api']}"
    image = image.replace(f"/{RETRIEVAL}@", f"/gpuaas/apps/platform/catalog/{RETRIEVAL}@")
    web = {"image": image, "command": ["sleep", "600"], "entrypoint": [], "volumes": ["data:/data"]}
    file = tmp_path / "compose.yaml"
    file.write_text(json.dumps({"services": {"web": web}, "volumes": {"data": {}}}))
    name = f"somebody-{platform.node}"

    def compose(*words: str) -> None:
        argv = [str(calls.program), "-p", name, "--project-directory", str(tmp_path), *words]
        environment = {"PATH": "/usr/bin:/bin", "DOCKER_HOST": str(platform.docker_host)}
        done = subprocess.run(argv, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr

    def look() -> list[Any]:
        api, filters = platform.docker.api, {"label": f"com.docker.compose.project={name}"}
        (found,) = api.containers(all=True, filters=filters)
        container = api.inspect_container(found["Id"])
        networks = [one["Id"] for one in api.networks(filters=filters)]
        volumes = [one["CreatedAt"] for one in api.volumes(filters=filters)["Volumes"]]
        return [container["Id"], container["State"], networks, volumes]

    compose("up", "-d")
    try:
        yield look
    finally:
        compose("down", "--volumes", "-t", "0")


def test_five_services_from_launch_to_removal(
    platform: Platform, handbook: App, calls: Calls, neighbour: Any
) -> None:
    theirs = neighbour()
    handbook.launch(OLD)
    started_in_order(handbook.running)
    answers(handbook)
    shown_by_service(platform)
    no_pass_without_need_calls_compose(platform, calls)
    each_that_is_hurt_comes_back(platform, handbook)
    a_job_that_is_cleared_away_stays_done(platform, handbook)

    goes_back_by_itself(handbook, NEVER_READY, "api", {"api"})
    goes_back_by_itself(handbook, VECTORS_DIE, "vectors", {"vectors"})
    goes_back_by_itself(handbook, ASKED_AMISS, "api", set())
    one_that_keeps_dying_degrades(platform, handbook)
    upgraded_and_reverted(platform, handbook)
    stopped_and_started(platform, handbook)
    gone_with_proof(platform, handbook)
    assert neighbour() == theirs
    assert platform.event_names()[:3] == ["requested", "deploying", "running"]


def started_in_order(running: Running) -> None:
    """Each after what it depends on was what it waits for."""
    state = {name: one["State"] for name, one in running.services().items()}
    assert set(state) == set(SERVICES)
    assert (state["setup"]["Status"], state["setup"]["ExitCode"]) == ("exited", 0)
    started = {name: one["StartedAt"] for name, one in state.items()}
    assert started["vectors"] < started["worker"] < started["api"] < started["metrics"]
    assert state["setup"]["FinishedAt"] < started["worker"]


def answers(handbook: App) -> None:
    page = httpx.post(f"{handbook.url('api')}/v1/answer", json=QUESTION, trust_env=False).json()
    assert page["answer"].startswith("Who is on call carries the phone for one week")
    metrics = httpx.get(f"{handbook.url('metrics')}/metrics", trust_env=False).text
    assert 'up{service="api"} 1' in metrics
    assert 'up{service="vectors"} 1' in metrics
    assert 'vectors_points{service="vectors",collection="handbook"} 8.0' in metrics


def serves(handbook: App) -> bool:
    try:
        answer = httpx.post(f"{handbook.url('api')}/v1/answer", json=QUESTION, trust_env=False)
        return answer.is_success
    except httpx.TransportError:
        return False


def reported_at_ms(platform: Platform) -> int:
    (node,) = platform.status()["nodes"]
    return int(node["reported_at_ms"])


def shown_by_service(platform: Platform) -> None:
    phases = {one["name"]: one["phase"] for one in platform.instance()["services"]}
    assert phases == {**dict.fromkeys(SERVICES, "ready"), "setup": "completed"}
    shown = platform.gpuaas("topology", platform.name)
    assert shown.returncode == 0, shown.stderr
    assert all(name in shown.stdout for name in SERVICES), shown.stdout


def no_pass_without_need_calls_compose(platform: Platform, calls: Calls) -> None:
    """Neither a pass of the control plane nor one of an agent that was started anew."""
    before = calls.lines()
    assert len(before) == 1
    platform.repo.git("commit", "--quiet", "--allow-empty", "--message", "nothing")
    platform.webhook()
    platform.wait_settled("running")
    platform.kill(AGENT)
    heard = reported_at_ms(platform)
    platform.start_agent()
    platform.wait(lambda: reported_at_ms(platform) > heard)
    assert calls.lines() == before


def each_that_is_hurt_comes_back(platform: Platform, handbook: App) -> None:
    """By itself, where nobody else is touched."""
    api = platform.docker.api
    hurt_and_back(platform, handbook, "worker", api.kill)
    hurt_and_back(platform, handbook, "metrics", lambda one: api.stop(one, timeout=1))
    hurt_and_back(platform, handbook, "api", api.kill)
    hurt_and_back(platform, handbook, "vectors", lambda one: api.remove_container(one, force=True))
    less = 64 * MIB
    hurt_and_back(
        platform, handbook, "worker",
        lambda one: api.update_container(one, mem_limit=less, memswap_limit=less),
    )  # fmt: skip
    assert handbook.running.services()["worker"]["HostConfig"]["Memory"] == 128 * MIB


def a_job_that_is_cleared_away_stays_done(platform: Platform, handbook: App) -> None:
    """Also when it gets a container along with another one, which is then left alone."""
    api, before = platform.docker.api, handbook.running.starts()
    api.remove_container(handbook.running.id("setup"))
    api.remove_container(handbook.running.id("worker"), force=True)
    platform.wait(lambda: is_back(handbook.running, "worker", before))
    platform.wait(lambda: serves(handbook))
    handbook.wait_all_ready()
    setup = handbook.running.services()["setup"]["State"]
    assert (setup["Status"], setup["StartedAt"]) == ("created", NEVER)
    after = handbook.running.starts()
    assert {one for one in after if after[one] != before[one]} == {"setup", "worker"}


def hurt_and_back(
    platform: Platform, handbook: App, name: str, hurt: Callable[[str], object]
) -> None:
    before = handbook.running.starts()
    hurt(handbook.running.id(name))
    platform.wait(lambda: is_back(handbook.running, name, before))
    # The control plane may not have heard of it yet: what it says is not enough.
    platform.wait(lambda: serves(handbook))
    handbook.wait_all_ready()
    after = handbook.running.starts()
    assert {one for one in after if after[one] != before[one]} == {name}


def is_back(running: Running, name: str, before: dict[str, tuple[str, str]]) -> bool:
    found = running.services().get(name)
    if found is None or (found["Id"], found["State"]["StartedAt"]) == before[name]:
        return False
    return bool(found["State"]["Running"])


def upgraded_and_reverted(platform: Platform, handbook: App) -> None:
    """Of five services one has another image."""
    before = handbook.running.starts()
    handbook.launch(NEW)
    after = handbook.running.starts()
    assert {name for name in after if after[name] != before[name]} == {"worker"}
    answers(handbook)
    platform.revert()
    handbook.wait_all_ready()
    assert platform.instance()["applied_version"] == OLD
    back = handbook.running.starts()
    assert {name for name in after if after[name] != back[name]} == {"worker"}


def goes_back_by_itself(handbook: App, version: str, vital: str, replaced: set[str]) -> None:
    """A vital service that never gets ready, or ends, takes the whole upgrade back."""
    platform = handbook.platform
    before, cursor = handbook.running.starts(), platform.last_cursor()
    handbook.want(version)
    platform.commit(f"One where {vital} is never ready")
    platform.wait(lambda: "rolled_back" in platform.event_names(cursor))
    platform.wait(lambda: serves(handbook))
    after = handbook.running.starts()
    assert {name for name in after if after[name] != before[name]} == replaced
    assert vital in platform.instance()["message"]
    platform.revert()
    platform.wait_settled("running")
    assert handbook.running.starts() == after


def one_that_keeps_dying_degrades(platform: Platform, handbook: App) -> None:
    before = handbook.running.starts()
    handbook.want(METRICS_DIE)
    platform.commit("Metrics that end at once")
    platform.wait(lambda: handbook.condition("Ready")["reason"] == "Degraded")
    assert handbook.condition("Ready")["status"] == "True", "it serves"
    assert "4/5 services ready: metrics" in handbook.condition("ServicesReady")["message"]
    assert serves(handbook)
    after = handbook.running.starts()
    assert {name for name in after if after[name] != before[name]} <= {"metrics"}
    platform.revert()
    handbook.wait_all_ready()


def stopped_and_started(platform: Platform, handbook: App) -> None:
    before = handbook.running.ids()
    handbook.want(OLD, desired="stopped")
    platform.commit("Stopped")
    platform.wait(lambda: handbook.condition("Ready")["reason"] == "Stopped")
    assert {one["State"]["Running"] for one in handbook.running.services().values()} == {False}
    handbook.launch(OLD)
    assert handbook.running.ids() == before
    answers(handbook)


def gone_with_proof(platform: Platform, handbook: App) -> None:
    handbook.forget()
    platform.commit("No handbook any more")
    platform.wait_settled("decommissioned")
    assert platform.instance()["message"] == "teardown proved"
    assert platform.docker.left() == (0, 0, 0)
    assert list((platform.root / AGENT / "compose").glob("[!.]*")) == []
    secrets = SecretFiles.for_node(platform.node).candidates
    assert [path for folder in secrets for path in folder.glob("*handbook*")] == []


def test_a_language_model_behind_its_key(platform: Platform, chat: App) -> None:
    chat.launch(topologies.SHIPPED[VLLM])
    url = chat.url("api")
    refused = httpx.get(f"{url}/v1/models", trust_env=False)
    assert (refused.status_code, refused.json()["error"]["message"]) == (401, "Unauthorized")

    said = platform.gpuaas("access", chat.instance, "--show-secrets", "--format", "json")
    (secret,) = json.loads(said.stdout)["secrets"]
    key = {"Authorization": f"Bearer {secret['value']}"}
    with httpx.Client(base_url=url, headers=key, trust_env=False) as client:
        (model,) = client.get("/v1/models").json()["data"]
        assert (model["id"], model["owned_by"]) == ("qwen3-32b", "vllm-standin")
        assert (model["root"], model["max_model_len"]) == ("Qwen/Qwen3-32B", 32768)
        message = {"role": "user", "content": "Good morning"}
        asked = {"model": "qwen3-32b", "messages": [message]}
        page = client.post("/v1/chat/completions", json=asked).json()
        assert "Good morning" in page["choices"][0]["message"]["content"]
        streamed = client.post("/v1/chat/completions", json={**asked, "stream": True}).text
        assert streamed.endswith("data: [DONE]\n\n")
        assert 'vllm:request_success_total{engine="0",finished_reason="stop"' in (
            httpx.get(f"{url}/metrics", trust_env=False).text
        )
    shown = json.dumps([chat.running.services(), platform.events(), platform.status()])
    assert secret["value"] not in shown

    chat.forget()
    platform.commit("No model any more")
    platform.wait_settled("decommissioned")
    assert platform.docker.left() == (0, 0, 0)
