"""A small valid world, and the ways to bend it."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Mapping
from typing import Any

from reconciler.core.accept import to_stored
from reconciler.core.desired import Candidate, StateObject
from reconciler.core.kinds import KINDS, kind_for_path, ref_for
from reconciler.core.names import ObjectRef, Revision
from reconciler.core.problems import Problem
from reconciler.core.records import Accepted

Documents = dict[str, dict[str, Any]]
"""Path → the one document of that file."""

ENVIRONMENT = "eval"
REVISION = Revision("1" * 40)
LATER = Revision("2" * 40)
IMAGE = "gpuaas/apps/research/hello@sha256:" + "a" * 64
PROJECT = "tenants/acme/projects/research"
VERSION_FILE = "catalog/hello/versions/1.0.0.yaml"
PROMOTION_FILE = "catalog/hello/promotions/1.0.0.yaml"
ARTIFACT_FILE = f"{PROJECT}/artifacts/hello/1.0.0/image.yaml"
ENTITLEMENT_FILE = f"{PROJECT}/entitlements/hello.yaml"
ALLOCATION_FILE = f"{PROJECT}/allocations/lease.yaml"
INSTANCE_FILE = f"{PROJECT}/instances/one.yaml"
NODE_FILE = "platform/nodes/gpu-1.yaml"
ENVIRONMENT_FILE = "environments/eval.yaml"


def document(path: str, name: str, spec: dict[str, Any]) -> dict[str, Any]:
    """A manifest for `path`, which fixes its kind."""
    kind = kind_for_path(path)
    assert kind is not None, path
    return {
        "apiVersion": "gpuaas.dev/v1",
        "kind": kind.name,
        "metadata": {"name": name},
        "spec": spec,
    }


def gpu(number: int, model: str = "H200") -> dict[str, Any]:
    return {"uuid": f"GPU-{number}", "vendor": "nvidia", "model": model, "memory_mib": 143_000}


def version_spec(version: str = "1.0.0", **more: Any) -> dict[str, Any]:
    return {
        "slug": "hello",
        "display_name": "Hello",
        "version": version,
        "artifact_kind": "launchable",
        "artifact_ref": IMAGE,
        "runtime_profile": {
            "kind": "launchable_oci",
            "command": ["serve"],
            "env": {"B": "2", "A": "1"},
            "ports": [{"name": "http", "container": 8080}],
            "health": {"readiness": {"http": {"port": 8080, "path": "/ready"}}},
        },
        "launch_parameters": {
            "type": "object",
            "additionalProperties": False,
            "properties": {
                "gpu_count": {"type": "integer", "minimum": 0, "maximum": 8, "default": 1},
                "cpu_cores": {"type": "number"},
                "memory_gib": {"type": "number"},
                "host_port": {"type": "integer", "minimum": 1024},
                "pip_packages": {"type": "array", "items": {"type": "string"}},
            },
        },
        "access": {"instructions": "ssh -L 8080:{host}:{port}"},
        **more,
    }


def instance_spec(allocation: str = "lease", **parameters: Any) -> dict[str, Any]:
    return {
        "app": "hello",
        "version": "1.0.0",
        "placement_intent": {"allocation": allocation},
        "parameters": {"gpu_count": 1, "cpu_cores": 2, "memory_gib": 4, **parameters},
    }


def world() -> Documents:
    """One node with four GPUs, one lease of all of them, one instance of one version."""
    lease = {
        "node": "gpu-1",
        "state": "active",
        "gpus": ["GPU-0", "GPU-1", "GPU-2", "GPU-3"],
        "cpu_cores": 16,
        "memory_mib": 65_536,
    }
    node = {
        "pool": "main",
        "capacity_shape": "baremetal",
        "accelerator_family": "nvidia-h200",
        "accelerators": [gpu(number) for number in range(4)],
        "cpu_cores": 32,
        "memory_mib": 262_144,
        "engines": ["docker"],
    }
    registry = {"endpoint": "registry.example:5000", "plain_http": True}
    digest = IMAGE.partition("@")[2]
    image = {
        "kind": "oci",
        "repository": IMAGE.partition("@")[0],
        "digest": digest,
        "visibility": "tenant",
        "state": "promoted",
    }
    app = {"slug": "hello", "display_name": "Hello", "owner": "platform"}
    tenant = {"org_id": "org-1", "display_name": "Acme"}
    project = {"project_id": "prj-1", "display_name": "Research"}
    specs: dict[str, tuple[str, dict[str, Any]]] = {
        ENVIRONMENT_FILE: ("eval", {"domain": "gpu.example", "registry": registry}),
        NODE_FILE: ("gpu-1", node),
        "catalog/hello/app.yaml": ("hello", app),
        VERSION_FILE: ("1.0.0", version_spec()),
        PROMOTION_FILE: ("1.0.0", {"state": "active", "reason": "tested"}),
        "tenants/acme/tenant.yaml": ("acme", tenant),
        f"{PROJECT}/project.yaml": ("research", project),
        ENTITLEMENT_FILE: ("hello", {"enabled": True}),
        ALLOCATION_FILE: ("lease", lease),
        ARTIFACT_FILE: ("image", image),
        INSTANCE_FILE: ("one", instance_spec()),
    }
    return {path: document(path, name, spec) for path, (name, spec) in specs.items()}


def add(documents: Documents, path: str, spec: Mapping[str, Any], name: str = "") -> None:
    """Adds a document, named after its file unless told otherwise."""
    stem = path.rpartition("/")[2].removesuffix(".yaml")
    documents[path] = document(path, name or stem, copy.deepcopy(dict(spec)))


def add_instance(documents: Documents, name: str, folder: str = PROJECT, **parameters: Any) -> None:
    add(documents, f"{folder}/instances/{name}.yaml", instance_spec(**parameters))


def add_project(documents: Documents, tenant: str, project: str, **changed: Any) -> str:
    """Another project with the same entitlement; returns its folder."""
    folder = f"tenants/{tenant}/projects/{project}"
    if f"tenants/{tenant}/tenant.yaml" not in documents:
        spec = {"org_id": f"org-{tenant}", "display_name": tenant}
        add(documents, f"tenants/{tenant}/tenant.yaml", spec, tenant)
    spec = {"project_id": f"prj-{project}", "display_name": project}
    add(documents, f"{folder}/project.yaml", spec, project)
    add(documents, f"{folder}/entitlements/hello.yaml", {"enabled": True})
    lease = {**documents[ALLOCATION_FILE]["spec"], "gpus": [], "cpu_cores": 4, "memory_mib": 8192}
    add(documents, f"{folder}/allocations/lease.yaml", {**lease, **changed})
    return folder


def objects(documents: Documents) -> dict[ObjectRef, StateObject]:
    """The documents as validated objects; a document that is invalid is the test's mistake."""
    found: dict[ObjectRef, StateObject] = {}
    for path, value in documents.items():
        kind = kind_for_path(path, value["kind"])
        assert kind is not None, path
        ref = ref_for(kind, path, value["metadata"]["name"])
        manifest = KINDS[kind.name].model.model_validate(value)
        found[ref] = StateObject(ref, path, 1, manifest, json.loads(json.dumps(value)))
    return found


def candidate(
    documents: Documents,
    *,
    broken: Iterable[str] = (),
    invalid: Iterable[str] = (),
    revision: Revision = LATER,
) -> Candidate:
    """`broken` files can't be read; `invalid` ones have a readable name and a wrong field."""
    broken, invalid = frozenset(broken), frozenset(invalid)
    good = {path: value for path, value in documents.items() if path not in broken | invalid}
    problems = [Problem(path, 1, 1, "yaml_syntax", "not readable as YAML") for path in broken]
    wrong = objects({path: documents[path] for path in invalid})
    problems += [
        Problem(found.path, 3, 5, "unknown_field", "unknown field 'speck'", object=str(ref))
        for ref, found in wrong.items()
    ]
    return Candidate(revision, objects(good), tuple(sorted(problems)), broken)


def accepted(documents: Documents, revision: Revision = REVISION) -> Accepted:
    """The documents as they would be stored once accepted."""
    stored = (to_stored(found, revision) for found in objects(documents).values())
    return Accepted(revision, {one.ref: one for one in stored})
