"""A state repo of some size, as files: what a platform team would have after half a year.

Sixty instances in nine projects of four tenants on six nodes, two apps in three versions. Among
them: instances that are stopped, that depend on others, that share a file, twins of one name in two
projects, GPUs, fixed host ports. `older_files` is what it was like some commits ago.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

ENVIRONMENT = "dev"
APPS = ("chat", "train")
VERSIONS = ("1.0.0", "1.1.0", "2.0.0")
NODES = tuple(f"gpu-{number}" for number in range(1, 7))
GPUS_A_NODE = 16
PROJECTS = (
    ("acme", "research", 8),
    ("acme", "serving", 9),
    ("acme", "sandbox", 3),
    ("globex", "research", 7),
    ("globex", "etl", 4),
    ("initech", "tps", 12),
    ("initech", "lab", 2),
    ("umbrella", "hive", 10),
    ("umbrella", "vault", 5),
)
"""(tenant, project, instances)"""
SHARED_FILE = ("umbrella", "hive")
"""The project whose instances stand four to a file."""

Files = dict[str, bytes]


@dataclass(frozen=True)
class Placed:
    """One instance of the repo and where it stands."""

    tenant: str
    project: str
    name: str
    path: str
    allocation: str
    node: str
    app: str
    version: str

    @property
    def key(self) -> str:
        return f"{self.tenant}/{self.project}/{self.name}"

    @property
    def folder(self) -> str:
        return f"tenants/{self.tenant}/projects/{self.project}"


def digest(app: str, version: str) -> str:
    return "sha256:" + hashlib.sha256(f"{app} {version}".encode()).hexdigest()


def placed() -> Iterator[Placed]:
    for number, (tenant, project, count) in enumerate(PROJECTS):
        folder = f"tenants/{tenant}/projects/{project}/instances"
        for index in range(count):
            app = APPS[(number + index) % 2]
            twin = project == "research"
            name = f"web-{index}" if twin else f"{project}-{index}"
            file = f"group-{index // 4}.yaml" if (tenant, project) == SHARED_FILE else f"{name}.yml"
            file = file if index % 5 == 4 or "group" in file else file.replace(".yml", ".yaml")
            lease = _lease(tenant, project, index % 2)
            node = _node(number, index % 2)
            version = VERSIONS[index % 2]
            path = f"{folder}/{file}"
            yield Placed(tenant, project, name, path, lease, node, app, version)


def files() -> Files:
    """Path → content of the repo as it runs."""
    found: dict[str, str] = {f"environments/{ENVIRONMENT}.yaml": _environment()}
    for number, node in enumerate(NODES):
        found[f"platform/nodes/{node}.yaml"] = _node_manifest(node, number)
    for app in APPS:
        found |= _catalog(app)
    found |= _project("platform", "catalog", -1)
    found["tenants/platform/tenant.yaml"] = _manifest(
        "Tenant", "platform", "org_id: org-platform\ndisplay_name: Platform"
    )
    for number, (tenant, project, _) in enumerate(PROJECTS):
        found[f"tenants/{tenant}/tenant.yaml"] = _manifest(
            "Tenant", tenant, f"org_id: org-{tenant}\ndisplay_name: {tenant.title()}"
        )
        found |= _project(tenant, project, number)
    for one in placed():
        text = _instance(one)
        found[one.path] = f"{found[one.path]}---\n{text}" if one.path in found else text
    found["README.md"] = "# State repo\n"
    found["tenants/acme/CODEOWNERS"] = "* @acme-admins\n"
    return {path: text.encode() for path, text in sorted(found.items())}


def older_files() -> Files:
    """Some commits ago: another version here and there, and two instances not there yet."""
    found = files()
    for one in placed():
        if one.name in ("tps-11", "serving-8"):
            del found[one.path]
        elif one.name in ("tps-3", "lab-0", "web-2"):
            text = found[one.path].decode()
            found[one.path] = text.replace(f'"{one.version}"', '"2.0.0"').encode()
    return found


def _manifest(kind: str, name: str, spec: str) -> str:
    lines = "".join(f"  {line}\n" for line in spec.splitlines())
    quoted = f'"{name}"' if name[0].isdigit() else name
    return f"apiVersion: gpuaas.dev/v1\nkind: {kind}\nmetadata:\n  name: {quoted}\nspec:\n{lines}"


def _environment() -> str:
    return _manifest(
        "Environment",
        ENVIRONMENT,
        "domain: dev.example\n"
        "registry:\n  endpoint: registry.example:5000\n"
        "guards:\n  removals_max: 5\n  removals_max_percent: 30",
    )


def _node_manifest(node: str, number: int) -> str:
    gpus = "".join(
        f"  - {{uuid: {_gpu(node, index)}, vendor: nvidia, model: H200, memory_mib: 143000}}\n"
        for index in range(GPUS_A_NODE)
    )
    return _manifest(
        "Node",
        node,
        f"pool: main\ncapacity_shape: baremetal\naccelerator_family: nvidia-h200\n"
        f"accelerators:\n{gpus}cpu_cores: {192 + number}\nmemory_mib: 2097152\nengines: [docker]",
    )


def _gpu(node: str, index: int) -> str:
    return f"GPU-{node}-{index}"


def _catalog(app: str) -> dict[str, str]:
    found = {
        f"catalog/{app}/app.yaml": _manifest(
            "App", app, f"slug: {app}\ndisplay_name: {app.title()}\nowner: platform"
        )
    }
    for version in VERSIONS:
        found[f"catalog/{app}/versions/{version}.yaml"] = _version(app, version)
        found[f"catalog/{app}/promotions/{version}.yaml"] = _manifest(
            "Promotion", version, "state: active\nreason: Smoke test passed"
        )
        artifact = f"tenants/platform/projects/catalog/artifacts/{app}/{version}/image.yaml"
        found[artifact] = _manifest(
            "Artifact",
            "image",
            f"kind: oci\nrepository: gpuaas/apps/catalog/{app}\n"
            f"digest: {digest(app, version)}\nvisibility: platform\nstate: promoted",
        )
    return found


def _version(app: str, version: str) -> str:
    return _manifest(
        "AppVersion",
        version,
        f"slug: {app}\n"
        f"display_name: {app.title()}\n"
        f'version: "{version}"\n'
        "artifact_kind: oci\n"
        f"artifact_ref: gpuaas/apps/catalog/{app}@{digest(app, version)}\n"
        "runtime_profile:\n"
        "  kind: launchable_oci\n"
        "  command: [serve]\n"
        "  ports:\n    - {name: http, container: 8080, expose: private}\n"
        "  health:\n    readiness: {http: {port: 8080, path: /ready}}\n"
        "launch_parameters:\n"
        "  type: object\n"
        "  additionalProperties: false\n"
        "  properties:\n"
        "    gpu_count: {type: integer, minimum: 0, maximum: 8, default: 1}\n"
        "    cpu_cores: {type: number}\n"
        "    memory_gib: {type: number}\n"
        "    host_port: {type: integer, minimum: 1024}",
    )


def _lease(tenant: str, project: str, index: int) -> str:
    # Twin projects have leases of one name, all others their own: a file that lands in the wrong
    # project does not resolve there.
    return f"lease-{index}" if project == "research" else f"{tenant}-{project}-{index}"


def _node(number: int, index: int) -> str:
    return NODES[(number + index * 3) % len(NODES)]


def _project(tenant: str, project: str, number: int) -> dict[str, str]:
    folder = f"tenants/{tenant}/projects/{project}"
    spec = f"project_id: prj-{tenant}-{project}\ndisplay_name: {project.title()}"
    found = {f"{folder}/project.yaml": _manifest("Project", project, spec)}
    if number < 0:
        return found
    for app in APPS:
        found[f"{folder}/entitlements/{app}.yaml"] = _manifest("Entitlement", app, "enabled: true")
    for index in range(2):
        node = _node(number, index)
        first = (number // len(NODES) * 2 + index) * 4
        gpus = ", ".join(_gpu(node, gpu) for gpu in range(first, first + 4))
        name = _lease(tenant, project, index)
        found[f"{folder}/allocations/{name}.yaml"] = _manifest(
            "Allocation",
            name,
            f"node: {node}\nstate: active\ngpus: [{gpus}]\ncpu_cores: 40\nmemory_mib: 262144",
        )
    return found


def _instance(one: Placed) -> str:
    index = int(one.name.rpartition("-")[2])
    port = f"  host_port: {20_000 + _number(one.key)}\n" if index % 4 == 1 else ""
    text = (
        f"app: {one.app}\n"
        f'version: "{one.version}"\n'
        f"placement_intent:\n  allocation: {one.allocation}\n"
        f"parameters:\n"
        f"  gpu_count: {1 if index < 4 else 0}\n  cpu_cores: 2\n  memory_gib: 8\n{port}"
        f"desired: {'stopped' if index == 6 else 'running'}\n"
    )
    if index == 5:
        text += f"depends_on: [{one.name.rpartition('-')[0]}-0]\n"
    return _manifest("AppInstance", one.name, text)


def _number(key: str) -> int:
    return int(hashlib.sha256(key.encode()).hexdigest()[:3], 16)
