"""The one app of a simulated fleet: versions of one container, and versions of several services.

Rules:
- Images go by a word. What a service's container is made from follows from its word alone, the main
  service's share of the instance apart: so who has the same word may stay over an upgrade.
- What comes of an image is said by `BAD`; the others are good.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import cache

APP = "web"
REPOSITORY = f"apps/{APP}"
ONE_CONTAINER = ("1.0.0", "1.1.0", "2.0.0")
TOPOLOGIES: Mapping[str, Mapping[str, str]] = {
    "5.0.0": {"api": "api-1", "store": "store-1"},
    "5.1.0": {"api": "api-2", "metrics": "metrics-1", "store": "store-1"},
    "5.2.0": {"api": "api-2", "metrics": "metrics-2", "store": "store-1"},
    "5.3.0": {"api": "api-2", "setup": "setup-1", "store": "store-2"},
}
"""Version → service → image. Each differs from the one before in one service or two."""
BAD_TOPOLOGIES: Mapping[str, Mapping[str, str]] = {
    "6.0.0": {"api": "api-never", "store": "store-1"},
    "6.1.0": {"api": "api-2", "metrics": "metrics-exits", "store": "store-1"},
    "6.2.0": {"api": "api-2", "metrics": "metrics-1", "store": "store-missing"},
    "6.3.0": {"api": "api-1", "metrics": "metrics-never", "store": "store-2"},
    "6.4.0": {"api": "api-2", "setup": "setup-fails", "store": "store-1"},
}
RESTARTS_ALL = frozenset({"5.3.0", "6.3.0"})
ROLLS_BACK = frozenset({"5.2.0", "6.3.0"})
GOOD = (*ONE_CONTAINER, *TOPOLOGIES)
BAD_ONE = {
    "3.0.0": "never", "3.1.0": "exits", "3.2.0": "memory", "3.3.0": "missing", "3.4.0": "forged",
}  # fmt: skip
BAD = {
    **BAD_ONE, "api-never": "never", "metrics-exits": "exits", "metrics-never": "never",
    "store-missing": "missing", "setup-fails": "fails",
}  # fmt: skip
"""Image → what is wrong with it. An image of one container has its version for a name."""
SECRET, BLOB, BLOB_BYTES = "token", "weights", b"what a model has learnt"
SECRET_OF = frozenset({"1.1.0", "api-2", "setup-1", "store-2"})
BLOB_OF = frozenset({"1.1.0", "2.0.0", "api-2", "store-2"})
"""Images that read the secret of their project, and the blob."""
REVOCABLE = ("1.0.0", "metrics-1")
"""Images that somebody may take the trust away from, for good. None of a version under
which others' are registered: whoever begins with an empty store after that accepts none of these.
"""
DRAFT = "4.0.0"
VERSIONS = (*GOOD, *BAD_ONE, *BAD_TOPOLOGIES, DRAFT)
NODES = ("n1", "n2", "n3")
COMPOSE_NODES = NODES[:2]
"""The others offer Docker alone."""
GPUS_A_NODE = 2


def digest_of(image: str) -> str:
    return "sha256:" + hashlib.sha256(f"{APP} {image}".encode()).hexdigest()


def blob_digest() -> str:
    return "sha256:" + hashlib.sha256(BLOB_BYTES).hexdigest()


def reads_secret(version: str) -> bool:
    return any(image in SECRET_OF for image in images_of(version))


def services_of(version: str) -> Mapping[str, str]:
    """Service → image; empty for one container."""
    return TOPOLOGIES.get(version) or BAD_TOPOLOGIES.get(version) or {}


def is_topology(version: str) -> bool:
    return bool(services_of(version))


def images_of(version: str) -> tuple[str, ...]:
    return tuple(services_of(version).values()) or (version,)


@cache
def digests_of(version: str) -> frozenset[str]:
    return frozenset(map(digest_of, images_of(version)))


GOOD_IMAGES = tuple(dict.fromkeys(image for version in GOOD for image in images_of(version)))
IMAGES = tuple(dict.fromkeys(image for version in VERSIONS for image in images_of(version)))


def manifest(kind: str, name: str, spec: str) -> str:
    lines = "".join(f"  {line}\n" for line in spec.splitlines())
    quoted = f'"{name}"' if name[0].isdigit() else name
    return f"apiVersion: gpuaas.dev/v1\nkind: {kind}\nmetadata:\n  name: {quoted}\nspec:\n{lines}"


def catalog_texts() -> dict[str, str]:
    """Path → text of the app's versions and images."""
    app = f"slug: {APP}\ndisplay_name: W\nowner: platform"
    found = {f"catalog/{APP}/app.yaml": manifest("App", APP, app)}
    for version in VERSIONS:
        found[f"catalog/{APP}/versions/{version}.yaml"] = _version(version)
    found.update(artifact_text(image, "promoted") for image in IMAGES)
    found[f"tenants/platform/projects/catalog/artifacts/{APP}/5.0.0/{BLOB}.yaml"] = manifest(
        "Artifact", BLOB,
        f"kind: blob\nsource: {_SOURCE}\ndigest: {blob_digest()}\n"
        "visibility: platform\nstate: promoted",
    )  # fmt: skip
    return found


def artifact_text(image: str, state: str) -> tuple[str, str]:
    """Path and text."""
    own = image if image in VERSIONS else "5.0.0"
    name = "image" if image in VERSIONS else image
    said = manifest(
        "Artifact", name,
        f"kind: oci\nrepository: {REPOSITORY}\ndigest: {digest_of(image)}\n"
        f"visibility: platform\nstate: {state}",
    )  # fmt: skip
    return f"tenants/platform/projects/catalog/artifacts/{APP}/{own}/{name}.yaml", said


_SOURCE = f"artifact_store://projects/platform/catalog/artifacts/{APP}/5.0.0/{BLOB}"


def _supplies(version: str) -> str:
    images = images_of(version)
    secrets = f"  secrets:\n    - {{name: {SECRET}, source: reference}}\n"
    blobs = f"  blobs:\n    - {{name: {BLOB}, ref: {_SOURCE}@{blob_digest()}}}\n"
    return (secrets if SECRET_OF & {*images} else "") + (blobs if BLOB_OF & {*images} else "")


def _read_by(image: str) -> str:
    secrets = f"        secrets: [{SECRET}]\n" if image in SECRET_OF else ""
    return secrets + (f"        blobs: [{BLOB}]\n" if image in BLOB_OF else "")


_PARAMETERS = """launch_parameters:
  type: object
  additionalProperties: false
  properties:
    gpu_count: {type: integer, minimum: 0, maximum: 2, default: 0}
    cpu_cores: {type: number}
    memory_gib: {type: number}
    host_port: {type: integer, minimum: 1024}"""
_ONE = """runtime_profile:
  kind: launchable_oci
  command: [serve]
  ports:
    - {name: http, container: 8080, expose: private}
  health:
    readiness: {http: {port: 8080, path: /ready}}
    interval_s: 5
    timeout_s: 1
    start_budget_s: 8
    failures_max: 2
"""


def _version(version: str) -> str:
    main = services_of(version).get("api", version)
    profile = _topology(version) if is_topology(version) else _ONE + _supplies(version)
    return manifest(
        "AppVersion", version,
        f'slug: {APP}\ndisplay_name: W\nversion: "{version}"\nartifact_kind: oci\n'
        f"artifact_ref: {REPOSITORY}@{digest_of(main)}\n{profile}{_PARAMETERS}",
    )  # fmt: skip


def _topology(version: str) -> str:
    services = services_of(version)
    written = "".join(
        _SERVICES[name].format(**_sidecar(services, name)) + _read_by(services[name])
        for name in services
    )
    vital = "restart_all" if version in RESTARTS_ALL else "restart_service"
    other = "roll_back" if version in ROLLS_BACK else "degrade"
    return (
        "runtime_profile:\n  kind: docker_compose\n  renderer: generic_services\n"
        f"{_supplies(version)}  topology:\n"
        f"    services:\n{written}"
        "    volumes:\n      - {name: data, size_mib: 64}\n"
        "    endpoints:\n"
        "      - {name: http, service: api, port: 8080, expose: private}\n"
        f"    failure: {{vital: {vital}, other: {other}}}\n"
    )


def _sidecar(services: Mapping[str, str], name: str) -> dict[str, str]:
    setup = ", {service: setup, condition: completed}" if "setup" in services else ""
    return {"image": f"{REPOSITORY}@{digest_of(services[name])}", "setup": setup}


_HEALTH = """        health:
          readiness: {{http: {{port: 8080, path: /ready}}}}
          interval_s: 9
          start_budget_s: 8
          failures_max: 2
"""
_SMALL = "        limits: {{memory_mib: 64, vcpu: 0.1}}\n        stop_grace_s: 2\n"
_SERVICES = {
    "api": "      - name: api\n        role: main\n        command: [serve]\n" + _HEALTH
    + "        depends_on: [{{service: store, condition: healthy}}{setup}]\n",
    "metrics": "      - name: metrics\n        sidecar_class: metrics\n        image_ref: {image}\n"
    "        command: [serve]\n" + _SMALL + _HEALTH
    + "        depends_on: [{{service: api, condition: started}}]\n        vital: false\n",
    "setup": "      - name: setup\n        sidecar_class: setup\n        image_ref: {image}\n"
    "        command: [work]\n        restart: on_failure\n" + _SMALL
    + "        mounts: [{{volume: data, path: /data}}]\n        health: {{start_budget_s: 8}}\n",
    "store": "      - name: store\n        sidecar_class: data\n        image_ref: {image}\n"
    "        command: [serve]\n" + _SMALL + _HEALTH
    + "        mounts: [{{volume: data, path: /data}}]\n",
}  # fmt: skip
