"""An Instance in, a Workload out: byte for byte the same, every time."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node_agent.wire import MACHINE_IDENTITY, SecretFile, Workload
from reconciler.core.desired import Instance, Policy
from reconciler.core.names import ArtifactKey, InstanceKey, ObjectRef
from renderers import CannotRender, render

HEALTH = {
    "readiness": {"http": {"port": 8080, "path": "/ready"}},
    "interval_s": 0.5,
    "timeout_s": 2.0,
    "start_budget_s": 300.0,
    "failures_max": 5,
}
INSTANCE = Instance(
    key=InstanceKey("acme/research/one"),
    ref=ObjectRef("AppInstance", ("acme", "research", "one")),
    org_id="org-1",
    project_id="prj-1",
    app="hello",
    version="1.0.0",
    artifact=ArtifactKey.parse("gpuaas/apps/research/hello@sha256:" + "a" * 64),
    node="gpu-1",
    run="running",
    policy=Policy("tenant_dedicated", "project", "launchable_oci", "project_isolated"),
    registry_endpoint="registry.example:5000",
    registry_plain_http=True,
    command=("serve", "--port", "8080"),
    env={"B": "2", "A": "1"},
    ports=(("metrics", 9090, None), ("http", 8080, 9000)),
    readiness=HEALTH,
    stop_grace_s=30,
    cpu_millis=2500,
    memory_mib=4096,
    shm_mib=1024,
    gpu_vendor="nvidia",
    gpu_uuids=("GPU-1", "GPU-0"),
)
GOLDEN = (
    '{"command":["serve","--port","8080"],"engine":"docker","env":{"A":"1","B":"2"},'
    '"image":{"digest":"sha256:' + "a" * 64 + '","plain_http":true,'
    '"registry":"registry.example:5000","repository":"gpuaas/apps/research/hello"},'
    '"instance":"acme/research/one","labels":{"dev.gpuaas.app":"hello",'
    '"dev.gpuaas.org-id":"org-1","dev.gpuaas.project-id":"prj-1","dev.gpuaas.version":"1.0.0"},'
    '"limits":{"cpu_millis":2500,"gpu_uuids":["GPU-0","GPU-1"],"gpu_vendor":"nvidia",'
    '"memory_mib":4096,"pids":4096,"shm_mib":1024},'
    '"ports":[{"address":null,"container":8080,"host":9000,"name":"http"},'
    '{"address":null,"container":9090,"host":null,"name":"metrics"}],'
    '"readiness":{"failures_max":5,"interval_ms":500,"probe":{"kind":"http","path":"/ready",'
    '"port":8080},"start_budget_ms":300000,"timeout_ms":2000},'
    '"secrets":[{"env":"","name":"machine-identity","source":""}],"stop_grace_ms":30000}'
)

HASHES = (
    "sha256:a62758e32547c2e275992d9c6661dd2c2bec2b8ad03feb090c2245455010b07e",
    "sha256:261faabaf5a1055b8038858a44e7429ff7772653aead2f2e52fe8e67f9adfe25",
)
"""Of INSTANCE as first launched, and with a generated secret `token`."""


def backend(instance: Instance, kind: str) -> Instance:
    return replace(instance, policy=replace(instance.policy, runtime_backend=kind))


def rendered(instance: Instance) -> Workload:
    found = render(instance)
    assert isinstance(found, Workload), found
    return found


def test_launchable_oci_golden() -> None:
    assert rendered(INSTANCE).canonical().decode() == GOLDEN


def test_bare_metal_differs_in_its_engine_only() -> None:
    golden = GOLDEN.replace('"engine":"docker"', '"engine":"process"')
    assert rendered(backend(INSTANCE, "bare_metal")).canonical().decode() == golden


@pytest.mark.parametrize(
    ("readiness", "probe"),
    [
        ({"tcp": {"port": 8080}}, {"kind": "tcp", "port": 8080}),
        ({"exec": {"command": ["check"]}}, {"kind": "exec", "command": ["check"]}),
        (None, None),
    ],
)
def test_every_probe_crosses_over(
    readiness: dict[str, Any] | None, probe: dict[str, Any] | None
) -> None:
    health = {key: value for key, value in HEALTH.items() if key != "readiness"}
    if readiness is not None:
        health["readiness"] = readiness
    found = rendered(replace(INSTANCE, readiness=health)).model_dump(mode="json")
    assert found["readiness"]["probe"] == probe


def test_a_kind_without_a_renderer_is_refused_by_name() -> None:
    assert render(backend(INSTANCE, "slurm")) == CannotRender(
        "runtime_not_offered",
        "no renderer for slurm; offered: bare_metal, docker_compose, launchable_oci",
    )


def test_what_the_wire_does_not_take_is_refused_with_the_field() -> None:
    found = render(replace(INSTANCE, memory_mib=1))
    assert found == CannotRender(
        "invalid_workload", "memory_mib: Input should be greater than or equal to 6"
    )


ALONE = ("bare_metal", "launchable_oci")
"""Runtime kinds that run one thing of one image."""
WORDS = st.text("abc", min_size=1, max_size=3)
INSTANCES = st.builds(
    replace,
    st.sampled_from([backend(INSTANCE, kind) for kind in ALONE]),
    env=st.dictionaries(WORDS, WORDS),
    ports=st.lists(
        st.tuples(WORDS, st.integers(1, 65_535), st.none() | st.integers(1, 65_535)),
        unique_by=lambda port: port[0],
    ).map(tuple),
    gpu_uuids=st.lists(WORDS, unique=True).map(tuple),
    command=st.lists(WORDS).map(tuple),
)


@given(INSTANCES, st.randoms(use_true_random=False))
def test_order_in_makes_no_difference_out(instance: Instance, random: Any) -> None:
    env, ports, gpus = list(instance.env.items()), list(instance.ports), list(instance.gpu_uuids)
    for shuffled in (env, ports, gpus):
        random.shuffle(shuffled)
    other = replace(instance, env=dict(env), ports=tuple(ports), gpu_uuids=tuple(gpus))
    assert rendered(other).spec_hash == rendered(instance).spec_hash


@given(INSTANCES)
def test_nothing_is_invented_and_nothing_lost(instance: Instance) -> None:
    found = rendered(instance)
    assert found.env == instance.env
    assert list(found.env) == sorted(instance.env)
    assert {(p.name, p.container, p.host) for p in found.ports} == {*instance.ports}
    assert found.command == instance.command
    assert {*found.limits.gpu_uuids} == {*instance.gpu_uuids}
    assert Workload.model_validate_json(found.canonical()) == found


def test_secrets_are_named_in_order_and_their_order_changes_nothing() -> None:
    a, b = SecretFile(name="a", env="A"), SecretFile(name="b", source="secret://project/b")
    found = [render(replace(INSTANCE, secrets=names)) for names in ((b, a), (a, b))]
    assert isinstance(found[0], Workload)
    assert [secret.name for secret in found[0].secrets] == ["a", "b", MACHINE_IDENTITY]
    assert found[0].secrets[:2] == (a, b)
    assert found[0] == found[1]


def test_every_workload_brings_its_own_identity_along() -> None:
    for kind in ALONE:
        found = rendered(backend(INSTANCE, kind))
        assert [secret.name for secret in found.secrets] == [MACHINE_IDENTITY]


def test_other_secrets_are_another_workload() -> None:
    project, tenant = "secret://project/a", "secret://tenant/a"
    secrets = [
        SecretFile(name="a"),
        SecretFile(name="b"),
        SecretFile(name="a", env="A"),
        SecretFile(name="a", source=project),
        SecretFile(name="a", source=tenant),
        SecretFile(name="a", source=project, env="A"),
    ]
    found = [rendered(replace(INSTANCE, secrets=(one,))) for one in secrets]
    assert len({one.spec_hash for one in (*found, rendered(INSTANCE))}) == 7


def test_what_ran_before_there_were_references_keeps_its_hash() -> None:
    """Else every fleet would be launched anew."""
    assert rendered(INSTANCE).spec_hash == HASHES[0]
    assert rendered(replace(INSTANCE, secrets=(SecretFile(name="token"),))).spec_hash == HASHES[1]
