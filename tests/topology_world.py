"""The example repo with its app made of several services, each from an image of its own."""

from __future__ import annotations

from typing import Any

import yaml

from reconciler.core.names import ArtifactKey
from tests.core.fleet import digest_of
from tests.test_cycle import World

PLACE = "gpuaas/apps/platform/catalog"
SIDECARS = ("db", "metrics")


def sidecar(name: str, version: str) -> ArtifactKey:
    """`db` has another image in each version, `metrics` the same."""
    return ArtifactKey(f"{PLACE}/{name}", digest_of(f"db {version}" if name == "db" else name))


def with_services(world: World, *versions: str) -> World:
    """These versions of the app, or both, become topologies: api, db, and metrics, which is not
    vital.
    """
    changed: dict[str, bytes] = {}
    for version in versions or ("1.0.0", "1.1.0"):
        path = f"catalog/hello/versions/{version}.yaml"
        found = yaml.safe_load(world.files[path])
        found["spec"]["runtime_profile"] = _profile(version)
        changed[path] = yaml.safe_dump(found).encode()
        for name in SIDECARS:
            key = sidecar(name, version)
            world.registry.say(key)
            changed[_path(name, version)] = yaml.safe_dump(_artifact(name, key)).encode()
    node = yaml.safe_load(world.files["platform/nodes/node-a.yaml"])
    node["spec"]["engines"] = ["docker", "compose"]
    changed["platform/nodes/node-a.yaml"] = yaml.safe_dump(node).encode()
    if _path("metrics", "1.0.0") in changed:
        changed.pop(_path("metrics", "1.1.0"), None)  # One content is registered once.
    world.commit(**changed)
    return world


def _path(name: str, version: str) -> str:
    return f"tenants/platform/projects/catalog/artifacts/hello/{version}/{name}.yaml"


def _profile(version: str) -> dict[str, Any]:
    def image(name: str) -> str:
        return str(sidecar(name, version))

    return {
        "kind": "docker_compose",
        "renderer": "generic_services",
        "resources": {"min_memory_mib": 16, "min_vcpu": 0.1},
        "topology": {
            "services": [
                {
                    "name": "api",
                    "role": "main",
                    "env": {"VERSION": version},
                    "health": {"readiness": {"http": {"port": 8080}}},
                    "depends_on": [{"service": "db", "condition": "healthy"}],
                },
                {
                    "name": "db",
                    "sidecar_class": "data",
                    "image_ref": image("db"),
                    "limits": {"memory_mib": 16, "vcpu": 0.05},
                    "health": {"readiness": {"tcp": {"port": 5432}}},
                },
                {
                    "name": "metrics",
                    "sidecar_class": "metrics",
                    "image_ref": image("metrics"),
                    "limits": {"memory_mib": 16, "vcpu": 0.05},
                },
            ],
            "endpoints": [{"name": "web", "service": "api", "port": 8080, "expose": "private"}],
        },
    }


def _artifact(name: str, key: ArtifactKey) -> dict[str, Any]:
    spec = {
        "kind": "oci",
        "repository": key.repository,
        "digest": str(key.digest),
        "visibility": "platform",
        "state": "promoted",
    }
    head = {"apiVersion": "gpuaas.dev/v1", "kind": "Artifact", "metadata": {"name": name}}
    return {**head, "spec": spec}
