"""The small world with a version of several services, and the ways to bend it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from reconciler.core.names import ArtifactKey, InstanceKey
from reconciler.core.resolve import Resolution, resolve
from tests.core import builders as b

ONE = InstanceKey("acme/research/one")
INSTANCE, VERSION = "AppInstance/acme/research/one", "AppVersion/hello/1.0.0"
PROMOTION = "Promotion/hello/1.0.0"
INDEX_IMAGE = "gpuaas/apps/research/index@sha256:" + "b" * 64
INDEX_AMD = "gpuaas/apps/research/index@sha256:" + "c" * 64
INDEX_FILE = b.ARTIFACT_FILE.replace("image", "index")
INDEX_ARTIFACT = "Artifact/acme/research/hello/1.0.0/index"
MAIN, INDEX = ArtifactKey.parse(b.IMAGE), ArtifactKey.parse(INDEX_IMAGE)

SERVICES: list[dict[str, Any]] = [
    {
        "name": "api",
        "role": "main",
        "secrets": ["token"],
        "health": {"readiness": {"http": {"port": 8080}}},
        "depends_on": [
            {"service": "index", "condition": "healthy"},
            {"service": "fill", "condition": "completed"},
        ],
    },
    {
        "name": "index",
        "sidecar_class": "data",
        "image_ref": INDEX_IMAGE,
        "limits": {"memory_mib": 512, "vcpu": 0.5},
        "health": {"readiness": {"tcp": {"port": 6333}}},
        "mounts": [{"volume": "data", "path": "/data"}],
        "scratch": [{"path": "/tmp", "size_mib": 64}],
    },
    {
        "name": "fill",
        "sidecar_class": "setup",
        "limits": {"memory_mib": 64, "vcpu": 0.1},
        "restart": "on_failure",
        "mounts": [{"volume": "data", "path": "/data"}],
    },
]
GENERIC: dict[str, Any] = {
    "kind": "docker_compose",
    "renderer": "generic_services",
    "secrets": [{"name": "token", "env": "TOKEN"}],
    "resources": {"min_memory_mib": 1024, "min_vcpu": 1},
    "topology": {
        "services": SERVICES,
        "volumes": [{"name": "data", "size_mib": 1024}],
        "endpoints": [
            {"name": "index", "service": "index", "port": 6333, "protocol": "grpc"},
            {"name": "api", "service": "api", "port": 8080, "expose": "private"},
            {"name": "ui", "service": "api", "port": 8081, "expose": "embedded_ui_gateway"},
        ],
    },
}
VLLM: dict[str, Any] = {
    "kind": "docker_compose",
    "renderer": "vllm_openai",
    "secrets": [{"name": "key"}],
    "vllm": {"model": "Qwen/Qwen3-8B", "api_key_secret": "key", "cache_volume": "cache"},
    "topology": {
        "services": [
            {
                "name": "load",
                "sidecar_class": "setup",
                "limits": {"memory_mib": 256, "vcpu": 0.5},
                "restart": "on_failure",
                "mounts": [{"volume": "cache", "path": "/cache"}],
            }
        ],
        "volumes": [{"name": "cache", "size_mib": 1024}],
        "endpoints": [{"name": "metrics", "service": "vllm", "port": 8000, "path": "/metrics"}],
    },
}
JUPYTER: dict[str, Any] = {
    "kind": "docker_compose",
    "renderer": "jupyter_with_sidecar",
    "secrets": [{"name": "token"}],
    "jupyter": {"token_secret": "token", "work_volume": "work", "base_path": "/lab/"},
    "topology": {"volumes": [{"name": "work", "size_mib": 64}]},
}


def world(profile: dict[str, Any] | None = None, **instance: Any) -> b.Documents:
    """The small world whose version has that profile, `GENERIC` when none is given."""
    documents = b.world()
    documents[b.NODE_FILE]["spec"]["engines"] = ["docker", "compose"]
    version = documents[b.VERSION_FILE]["spec"]
    version["runtime_profile"] = copy.deepcopy(GENERIC if profile is None else profile)
    del version["launch_parameters"]["properties"]["pip_packages"]
    image = {**documents[b.ARTIFACT_FILE]["spec"]}
    image["repository"], _, image["digest"] = INDEX_IMAGE.partition("@")
    b.add(documents, INDEX_FILE, image)
    documents[b.INSTANCE_FILE]["spec"]["parameters"].update(instance)
    return documents


def profile_of(documents: b.Documents) -> dict[str, Any]:
    found: dict[str, Any] = documents[b.VERSION_FILE]["spec"]["runtime_profile"]
    return found


def run(documents: b.Documents, **options: Any) -> Resolution:
    return resolve(b.objects(documents), b.ENVIRONMENT, b.REVISION, **options)


Profile = dict[str, Any]
Bend = Callable[[Profile], object]
P = "/spec/runtime_profile"
S, E = f"{P}/topology/services", f"{P}/topology/endpoints"


def service(index: int, **changes: Any) -> Bend:
    """Sets fields of a service; None takes one out."""

    def bend(profile: Profile) -> None:
        one = profile["topology"]["services"][index]
        one.update(changes)
        for field in [name for name, value in changes.items() if value is None]:
            del one[field]

    return bend


def more(**fields: Any) -> Bend:
    """One service more, at the end: a sidecar of class worker."""
    limits = {"memory_mib": 64, "vcpu": 0.1}
    one = {"name": "more", "sidecar_class": "worker", "limits": limits, **fields}
    return lambda profile: (
        profile["topology"]
        .setdefault("services", [])
        .append({name: value for name, value in one.items() if value is not None})
    )


def topology(**fields: Any) -> Bend:
    return lambda profile: profile["topology"].update(fields)


def endpoint(**fields: Any) -> Bend:
    """One endpoint more, the fourth; the second where vLLM is."""
    one = {"name": "more", "service": "index", "port": 7000, **fields}
    return lambda profile: profile["topology"].setdefault("endpoints", []).append(one)


def fields(**changes: Any) -> Bend:
    def bend(profile: Profile) -> None:
        profile.update(changes)
        for name in [name for name, value in changes.items() if value is None]:
            del profile[name]

    return bend


def part(name: str, **changes: Any) -> Bend:
    return lambda profile: profile[name].update(changes)


def both(*bends: Bend) -> Bend:
    return lambda profile: [bend(profile) for bend in bends]


def waits(index: int, *needed: tuple[str, str]) -> Bend:
    listed = [{"service": name, "condition": condition} for name, condition in needed]
    return service(index, depends_on=listed)
