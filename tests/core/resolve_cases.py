"""What can be wrong between objects: how to bend the small world, and what must be said of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.core import builders as b

Bend = Callable[[b.Documents], object]


def spec(path: str, **changes: Any) -> Bend:
    """Sets fields of a spec; None takes one out."""

    def bend(documents: b.Documents) -> None:
        for field, value in changes.items():
            documents[path]["spec"][field] = value
            if value is None:
                del documents[path]["spec"][field]

    return bend


def parameters(**changes: Any) -> Bend:
    return lambda documents: documents[b.INSTANCE_FILE]["spec"]["parameters"].update(changes)


def without_parameter(name: str) -> Bend:
    return lambda documents: documents[b.INSTANCE_FILE]["spec"]["parameters"].pop(name)


def form(**properties: Any) -> Bend:
    def bend(documents: b.Documents) -> None:
        documents[b.VERSION_FILE]["spec"]["launch_parameters"]["properties"].update(properties)

    return bend


def profile(**changes: Any) -> Bend:
    return lambda documents: documents[b.VERSION_FILE]["spec"]["runtime_profile"].update(changes)


def without(path: str) -> Bend:
    return lambda documents: documents.pop(path)


def both(*bends: Bend) -> Bend:
    return lambda documents: [bend(documents) for bend in bends]


def second(**changes: Any) -> Bend:
    return lambda documents: b.add_instance(documents, "two", **changes)


def second_lease(**changes: Any) -> Bend:
    path = b.ALLOCATION_FILE.replace("lease", "other")
    base: dict[str, Any] = {"gpus": [], "cpu_cores": 1, "memory_mib": 1024}
    return lambda documents: b.add(
        documents, path, {**documents[b.ALLOCATION_FILE]["spec"], **base, **changes}
    )


def other_tenant_asks_port(documents: b.Documents) -> None:
    folder = b.add_project(documents, "umbra", "lab")
    documents[b.ARTIFACT_FILE]["spec"]["visibility"] = "platform"
    documents[b.INSTANCE_FILE]["spec"]["parameters"]["host_port"] = 9000
    b.add_instance(documents, "far", folder, gpu_count=0, host_port=9000)


ONE_REF, LEASE_REF = "AppInstance/acme/research/one", "Allocation/acme/research/lease"
OTHER_REF, FAR_REF = "Allocation/acme/research/other", "AppInstance/umbra/lab/far"
VERSION_REF, PROMOTION_REF = "AppVersion/hello/1.0.0", "Promotion/hello/1.0.0"
SHARED = {"operating_mode": "tenant_shared"}
WIDE = {"allowed_operating_modes": ["tenant_dedicated", "tenant_shared"]}

CASES: dict[str, tuple[Bend, str, str, str]] = {
    "no such app": (
        spec(b.INSTANCE_FILE, app="helo"),
        ONE_REF,
        "unknown_reference",
        "App/helo does not exist (did you mean hello?)",
    ),
    "no such version": (
        spec(b.INSTANCE_FILE, version="1.0.1"),
        ONE_REF,
        "unknown_reference",
        "AppVersion/hello/1.0.1 does not exist (did you mean 1.0.0?)",
    ),
    "no such allocation": (
        spec(b.INSTANCE_FILE, placement_intent={"allocation": "leese"}),
        ONE_REF,
        "unknown_reference",
        "Allocation/acme/research/leese does not exist (did you mean lease?)",
    ),
    "no such node": (
        spec(b.ALLOCATION_FILE, node="gpu-2"),
        LEASE_REF,
        "unknown_reference",
        "Node/gpu-2 does not exist (did you mean gpu-1?)",
    ),
    "no tenant": (
        without("tenants/acme/tenant.yaml"),
        "Project/acme/research",
        "unknown_reference",
        "Tenant/acme does not exist",
    ),
    "no project": (
        without(f"{b.PROJECT}/project.yaml"),
        ONE_REF,
        "unknown_reference",
        "Project/acme/research does not exist (add tenants/acme/projects/research/project.yaml)",
    ),
    "entitlement for no app": (
        lambda d: b.add(d, f"{b.PROJECT}/entitlements/hullo.yaml", {"enabled": True}),
        "Entitlement/acme/research/hullo",
        "unknown_reference",
        "App/hullo does not exist (did you mean hello?)",
    ),
    "version of no app": (
        without("catalog/hello/app.yaml"),
        VERSION_REF,
        "unknown_reference",
        "App/hello does not exist",
    ),
    "promotion of no version": (
        lambda d: b.add(
            d, "catalog/hello/promotions/9.0.0.yaml", {"state": "draft", "reason": "x"}
        ),
        "Promotion/hello/9.0.0",
        "unknown_reference",
        "AppVersion/hello/9.0.0 does not exist",
    ),
    "artifact of no version": (
        lambda d: b.add(
            d,
            f"{b.PROJECT}/artifacts/hello/9.0.0/image.yaml",
            {**d[b.ARTIFACT_FILE]["spec"], "digest": "sha256:" + "b" * 64},
        ),
        "Artifact/acme/research/hello/9.0.0/image",
        "unknown_reference",
        "AppVersion/hello/9.0.0 does not exist",
    ),
    "no entitlement": (
        without(b.ENTITLEMENT_FILE),
        ONE_REF,
        "not_entitled",
        "Entitlement/acme/research/hello does not exist "
        "(a project may use an app once an Entitlement of that name says so: "
        "add tenants/acme/projects/research/entitlements/hello.yaml)",
    ),
    "entitlement off": (
        spec(b.ENTITLEMENT_FILE, enabled=False),
        ONE_REF,
        "not_entitled",
        "Entitlement/acme/research/hello is not enabled (an admin may enable it)",
    ),
    "no promotion": (
        without(b.PROMOTION_FILE),
        ONE_REF,
        "not_promoted",
        "Promotion/hello/1.0.0 does not exist (a version is offered once a Promotion says so: "
        "add catalog/hello/promotions/1.0.0.yaml)",
    ),
    "draft": (
        spec(b.PROMOTION_FILE, state="draft"),
        ONE_REF,
        "version_not_offered",
        "AppVersion/hello/1.0.0 is draft, and takes no instances (no version is on offer yet)",
    ),
    "staged": (
        spec(b.PROMOTION_FILE, state="staged"),
        ONE_REF,
        "version_not_offered",
        "AppVersion/hello/1.0.0 is staged, and takes no instances (no version is on offer yet)",
    ),
    "retired": (
        spec(b.PROMOTION_FILE, state="retired"),
        ONE_REF,
        "version_not_offered",
        "AppVersion/hello/1.0.0 is retired, and takes no instances (no version is on offer yet)",
    ),
    "canary elsewhere": (
        spec(b.PROMOTION_FILE, state="canary", canary={"projects": ["acme/other"]}),
        ONE_REF,
        "not_in_canary",
        "AppVersion/hello/1.0.0 is in canary, and project acme/research is not part of it "
        "(name acme/research under /spec/canary/projects of Promotion/hello/1.0.0, or wait)",
    ),
    "artifact not registered": (
        without(b.ARTIFACT_FILE),
        PROMOTION_REF,
        "artifact_unregistered",
        f"version is active, but {b.IMAGE} (AppVersion/hello/1.0.0/spec/artifact_ref) is "
        "unregistered (register it as an Artifact, by repository and digest)",
    ),
    "artifact not promoted": (
        spec(b.ARTIFACT_FILE, state="published"),
        PROMOTION_REF,
        "artifact_not_promoted",
        "is published (promote the Artifact first)",
    ),
    "artifact revoked": (
        spec(b.ARTIFACT_FILE, state="revoked"),
        PROMOTION_REF,
        "artifact_revoked",
        "is revoked (point the version at an artifact in good standing, or retire it)",
    ),
    "artifact retired": (
        spec(b.ARTIFACT_FILE, state="retired"),
        PROMOTION_REF,
        "artifact_retired",
        "is retired (point the version at an artifact in good standing, or retire it)",
    ),
    "allocation released": (
        spec(b.ALLOCATION_FILE, state="released"),
        ONE_REF,
        "allocation_not_active",
        "Allocation/acme/research/lease is released (place the instance on an active allocation)",
    ),
    "capacity shape": (
        spec(b.VERSION_FILE, compatibility={"requires_capacity_shape": "gpu_slice"}),
        ONE_REF,
        "wrong_capacity_shape",
        "AppVersion/hello/1.0.0 needs a gpu_slice node, Node/gpu-1 is baremetal",
    ),
    "accelerator": (
        spec(b.VERSION_FILE, compatibility={"supported_accelerators": ["amd-rocm"]}),
        ONE_REF,
        "wrong_accelerator",
        "AppVersion/hello/1.0.0 does not run on nvidia-h200 (Node/gpu-1) (it runs on amd-rocm)",
    ),
    "no variant": (
        profile(variants={"amd-rocm": b.IMAGE}),
        ONE_REF,
        "no_image_variant",
        "AppVersion/hello/1.0.0 has no image for nvidia-h200 (Node/gpu-1) "
        "(it has images for amd-rocm)",
    ),
    "exclusive node": (
        spec(b.VERSION_FILE, compatibility={"requires_exclusive_node": True}),
        ONE_REF,
        "node_not_exclusive",
        "AppVersion/hello/1.0.0 needs a node to itself, Allocation/acme/research/lease is shared",
    ),
    "too few GPUs asked": (
        spec(b.VERSION_FILE, compatibility={"min_gpu_count": 2}),
        ONE_REF,
        "below_minimum",
        "AppVersion/hello/1.0.0 needs 2 GPUs, 1 asked",
    ),
    "too little memory asked": (
        profile(resources={"min_memory_mib": 8192}),
        ONE_REF,
        "below_minimum",
        "AppVersion/hello/1.0.0 needs 8192 MiB of memory, 4096 asked",
    ),
    "more GPUs than leased": (
        parameters(gpu_count=5),
        ONE_REF,
        "exceeds_allocation",
        "5 GPUs asked, Allocation/acme/research/lease has 4",
    ),
    "engine": (
        spec(b.NODE_FILE, engines=["process"]),
        ONE_REF,
        "engine_not_on_node",
        "AppVersion/hello/1.0.0 needs engine docker, which Node/gpu-1 does not have "
        "(it has process)",
    ),
    "runtime kind": (
        profile(kind="slurm"),
        VERSION_REF,
        "runtime_not_offered",
        "runtime kind slurm is not offered yet "
        "(offered: bare_metal, docker_compose, launchable_oci)",
    ),
    "secrets where they can't be brought": (
        profile(kind="slurm", secrets=[{"name": "token"}]),
        VERSION_REF,
        "secrets_not_carried",
        "runtime kind slurm brings no secrets to a workload "
        "(it is done by: bare_metal, docker_compose, launchable_oci)",
    ),
    "a secret with the name of every instance's own": (
        profile(secrets=[{"name": "token"}, {"name": "machine-identity"}]),
        VERSION_REF,
        "secret_name_reserved",
        "every instance has a secret machine-identity without asking "
        "(leave it out, or call yours something else)",
    ),
    "a secret in a variable that starts programs": (
        profile(secrets=[{"name": "token", "env": "LD_PRELOAD"}]),
        VERSION_REF,
        "secret_env_reserved",
        "LD_PRELOAD decides how programs are started, and can't be a secret "
        "(call it something else, or let the program read the file)",
    ),
    "a secret in a variable that is the platform's": (
        profile(secrets=[{"name": "token", "env": "GPUAAS_MEMBER"}]),
        VERSION_REF,
        "secret_env_reserved",
        "GPUAAS_MEMBER decides how programs are started, and can't be a secret",
    ),
    "a secret in a variable that has a value": (
        profile(secrets=[{"name": "token", "env": "B"}]),
        VERSION_REF,
        "secret_env_taken",
        "B is set by runtime_profile.env already (leave one of them out)",
    ),
    "a secret in a variable that some members set": (
        profile(
            secrets=[{"name": "token", "env": "TOKEN"}],
            members=[{"role": "worker", "env": {"TOKEN": "x"}}],
        ),
        VERSION_REF,
        "secret_env_taken",
        "TOKEN is set by the env of members of role worker already (leave one of them out)",
    ),
    "a reference that is not given": (
        profile(secrets=[{"name": "hf-token", "source": "reference"}]),
        ONE_REF,
        "secret_not_bound",
        "AppVersion/hello/1.0.0 takes its secret hf-token by reference, and none is given "
        "(add it: secrets: {hf-token: secret://project/hf-token})",
    ),
    "a reference given to another name": (
        both(
            profile(secrets=[{"name": "hf-token", "source": "reference"}]),
            spec(
                b.INSTANCE_FILE,
                secrets={"hf-token": "secret://project/x", "hf-tokn": "secret://project/x"},
            ),
        ),
        ONE_REF,
        "unknown_secret",
        "AppVersion/hello/1.0.0 has no secret hf-tokn (did you mean hf-token?)",
    ),
    "a reference given where there are no secrets": (
        spec(b.INSTANCE_FILE, secrets={"hf-token": "secret://project/x"}),
        ONE_REF,
        "unknown_secret",
        "AppVersion/hello/1.0.0 has no secret hf-token (leave it out)",
    ),
    "a reference given to what is generated": (
        both(
            profile(secrets=[{"name": "token"}]),
            spec(b.INSTANCE_FILE, secrets={"token": "secret://tenant/x"}),
        ),
        ONE_REF,
        "secret_not_a_reference",
        "secret token of AppVersion/hello/1.0.0 is generated: no reference stands for it "
        "(leave it out, or have the version say source: reference)",
    ),
    "a secret shown that is none": (
        both(
            profile(secrets=[{"name": "token"}]),
            spec(b.VERSION_FILE, access={"instructions": "with {secret:token} or {secret:tokn}"}),
        ),
        VERSION_REF,
        "unknown_secret",
        "the instructions show secret 'tokn', which this version does not have "
        "(did you mean token?)",
    ),
    "schema broken": (
        spec(b.VERSION_FILE, launch_parameters={"type": "objekt"}),
        VERSION_REF,
        "invalid_launch_parameters",
        "launch_parameters is no usable JSON Schema",
    ),
    "parameter against the schema": (
        parameters(host_port=80),
        ONE_REF,
        "out_of_range",
        "80 is out of range: it must be at least 1024",
    ),
    "parameter unknown to the schema": (
        parameters(gpu_cuont=1),
        ONE_REF,
        "unknown_field",
        "unknown field 'gpu_cuont' (did you mean 'gpu_count'?)",
    ),
    "parameter allowed but not supported": (
        both(parameters(gpu_counts=2), form(gpu_counts={"type": "integer"})),
        ONE_REF,
        "not_supported_yet",
        "parameter gpu_counts is not supported yet (did you mean gpu_count?)",
    ),
    "packages from nowhere": (
        parameters(pip_packages=["numpy"]),
        ONE_REF,
        "no_package_index",
        "packages are asked for, and the environment names no index to take them from (an admin "
        "sets package_index.url there)",
    ),
    "a port of the host's own services": (
        both(parameters(host_port=80), form(host_port={"type": "integer"})),
        ONE_REF,
        "invalid_parameter",
        "host_port must be an integer from 1024 to 65535",
    ),
    "memory that nothing can be held to": (
        both(profile(resources={"min_memory_mib": 4}), without_parameter("memory_gib")),
        ONE_REF,
        "below_minimum",
        "4 MiB of memory are no limit that can be held: 6 at least (state memory_gib, or raise "
        "what AppVersion/hello/1.0.0 or Allocation/acme/research/lease says)",
    ),
    "CPU that nothing can be held to": (
        both(profile(resources={"min_vcpu": 0.001}), without_parameter("cpu_cores")),
        ONE_REF,
        "below_minimum",
        "0.001 CPU cores are no limit that can be held: 0.01 at least",
    ),
    "less memory than Docker takes": (
        parameters(memory_gib=0.005),
        ONE_REF,
        "invalid_parameter",
        "memory_gib must be a number from 0.01 to 1048576",
    ),
    "more memory than leased": (
        parameters(memory_gib=65),
        ONE_REF,
        "exceeds_allocation",
        "66560 MiB of memory asked, Allocation/acme/research/lease has 65536",
    ),
    "more cores than leased": (
        parameters(cpu_cores=16.001),
        ONE_REF,
        "exceeds_allocation",
        "16.001 CPU cores asked, Allocation/acme/research/lease has 16",
    ),
    "parameter out of bounds": (
        parameters(cpu_cores=-1),
        ONE_REF,
        "invalid_parameter",
        "cpu_cores must be a number from 0.01 to 65536",
    ),
    "host port without a port": (
        both(parameters(host_port=9000), profile(ports=[])),
        ONE_REF,
        "no_port",
        "AppVersion/hello/1.0.0 has no port that host_port could be for",
    ),
    "hint not allowed": (
        spec(b.INSTANCE_FILE, requested=SHARED),
        ONE_REF,
        "hint_not_allowed",
        "operating_mode tenant_shared is not allowed for project acme/research (allowed: "
        "tenant_dedicated; Entitlement/acme/research/hello may allow more)",
    ),
    "shared, but not attached": (
        both(
            spec(b.INSTANCE_FILE, requested=SHARED), spec(b.ENTITLEMENT_FILE, policy_overrides=WIDE)
        ),
        ONE_REF,
        "project_not_attached",
        "a tenant_shared runtime, but Project/acme/research is not attached to it (name research "
        "under /spec/attached_projects of Tenant/acme)",
    ),
    "too much in one allocation": (
        second(gpu_count=4),
        LEASE_REF,
        "allocation_overcommitted",
        "instances one, two ask 5 GPUs in all, 4 are leased "
        "(lower or state the parameter gpu_count, or lease more)",
    ),
    "GPU not on the node": (
        spec(b.ALLOCATION_FILE, gpus=["GPU-0", "GPU-9"]),
        LEASE_REF,
        "gpu_not_on_node",
        "GPU GPU-9 is not on Node/gpu-1 (list it under the node's accelerators, or lease another)",
    ),
    "GPU leased twice": (
        second_lease(gpus=["GPU-0"]),
        OTHER_REF,
        "gpu_leased_twice",
        "GPU GPU-0 is leased by Allocation/acme/research/lease already",
    ),
    "exclusive lease": (
        both(second_lease(), spec(b.ALLOCATION_FILE, exclusive=True)),
        LEASE_REF,
        "node_not_exclusive",
        "exclusive, but Node/gpu-1 is leased to Allocation/acme/research/other as well",
    ),
    "node overcommitted": (
        second_lease(cpu_cores=17),
        OTHER_REF,
        "node_overcommitted",
        "the allocations on Node/gpu-1 lease 33 CPU cores, it has 32",
    ),
    "host port taken": (
        other_tenant_asks_port,
        FAR_REF,
        "host_port_taken",
        "host port 9000 on Node/gpu-1 is asked by AppInstance/acme/research/one as well "
        "(take another, or leave host_port out and get a free one)",
    ),
}
