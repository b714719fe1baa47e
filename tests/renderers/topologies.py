"""Versions of several services, as manifests, and the instances and Compose files made of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from node_agent.engines.compose_file import Placement, compose_file
from node_agent.engines.gpus import GpuHost, grant
from node_agent.wire import SecretFile, Workload
from reconciler.core.blobs import blob_files
from reconciler.core.desired import Instance, Policy, Topology
from reconciler.core.kinds.app_version import AppVersion, AppVersionSpec
from reconciler.core.names import ArtifactKey, InstanceKey, ObjectRef
from reconciler.core.topology import image_of, published_ports, services_of
from renderers import render

HERE = Path(__file__).parent
MANIFESTS = HERE / "manifests"
GOLDEN = HERE / "golden"
FAMILY = "nvidia-h200"
GPUS = tuple(f"GPU-{number}" for number in range(4))
NODE = "gpu-1"
ROOTS = ("/run/gpuaas-node", "/var/lib/gpuaas-node")
"""Where on the node secrets and blobs are."""
HOST = GpuHost(
    frozenset(f"GPU-{number}" for number in range(8)),
    {f"GPU-{number}": f"nvidia.com/gpu=GPU-{number}" for number in range(8)},
)
SIZES: Mapping[str, Mapping[str, Any]] = {
    "lab": {"gpu_uuids": GPUS[:1], "cpu_millis": 4000, "memory_mib": 16_384},
    "retrieval": {"gpu_uuids": GPUS[:2], "cpu_millis": 8000, "memory_mib": 16_384},
    "vllm": {"gpu_uuids": GPUS, "cpu_millis": 32_000, "memory_mib": 262_144},
    "vllm_shared": {"gpu_uuids": GPUS, "cpu_millis": 16_000, "memory_mib": 131_072},
}
"""What an instance of each manifest has."""


def manifest(name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((MANIFESTS / f"{name}.yaml").read_text())
    return found


def version_of(document: Mapping[str, Any]) -> AppVersionSpec:
    return AppVersion.model_validate(document).spec


def instance_of(version: AppVersionSpec, **size: Any) -> Instance:
    """An instance of the version on a node with NVIDIA GPUs, with all its secrets bound."""
    profile = version.runtime_profile
    images = {
        placed.service.name: ArtifactKey.parse(found)
        for placed in services_of(profile)
        if (found := image_of(version, placed.service, FAMILY)) is not None
    }
    secrets = tuple(
        SecretFile(
            name=one.name,
            source=f"secret://project/{one.name}" if one.source == "reference" else "",
            env=one.env or "",
        )
        for one in profile.secrets
    )
    sized = {"cpu_millis": 8000, "memory_mib": 32_768, **size}
    return Instance(
        key=InstanceKey("acme/research/one"),
        ref=ObjectRef("AppInstance", ("acme", "research", "one")),
        org_id="org-1",
        project_id="prj-1",
        app=version.slug,
        version=version.version,
        artifact=ArtifactKey.parse(version.artifact_ref),
        node=NODE,
        run="running",
        policy=Policy("tenant_dedicated", "project", "docker_compose", "project_isolated"),
        registry_endpoint="registry.example:5000",
        registry_plain_http=False,
        command=profile.command,
        env=dict(sorted(profile.env.items())),
        ports=published_ports(profile, 9000),
        secrets=secrets,
        blobs=blob_files(profile),
        gpu_vendor="nvidia" if sized.get("gpu_uuids") else None,
        topology=Topology(profile.renderer or "", profile, images),
        **sized,
    )


def example(name: str, **changed: Any) -> Instance:
    return replace(instance_of(version_of(manifest(name)), **SIZES[name]), **changed)


def rendered(instance: Instance) -> Workload:
    found = render(instance)
    assert isinstance(found, Workload), found
    return found


def placed(workload: Workload) -> Placement:
    """On a node that has everything, with fixed places for it."""
    topology = workload.topology
    assert topology is not None
    services = topology.services
    return Placement(
        node=NODE,
        host_ports={p.name: p.host or 32_000 + n for n, p in enumerate(workload.ports)},
        images={one.name: {"Config": {"Cmd": ["serve"], "Env": ["PATH=/bin"]}} for one in services},
        gpus={one.name: grant(one.limits, HOST) for one in services},
        secrets={one.name: f"{ROOTS[0]}/one-{one.name}" for one in services if one.secrets},
        blobs={blob.name: f"{ROOTS[1]}/{blob.digest[7:]}" for blob in workload.blobs},
    )


def compose_of(workload: Workload) -> dict[str, Any]:
    return compose_file(workload, placed(workload))


def golden_texts(name: str) -> dict[Path, str]:
    """What the files in `golden` have to say of one manifest."""
    workload = rendered(example(name))
    return {
        GOLDEN / f"{name}.workload.json": readable(workload.model_dump(mode="json")),
        GOLDEN / f"{name}.compose.json": readable(compose_of(workload)),
    }


def readable(document: Mapping[str, Any]) -> str:
    return json.dumps(document, indent=2, sort_keys=True) + "\n"
