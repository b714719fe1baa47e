"""A state repo of any size, made up: the kinds that grow, all references good, one seed one repo.

Rules: what comes out is text as people and formatters write it (comments, quotes, short lists in
brackets, long texts as blocks), some 40 lines a document. Nothing in it is wrong; `spoiled` makes
one thing wrong on purpose. Layouts: one document a file, or as many as a path allows in one.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bench import manifest_texts as texts

Layout = Literal["single", "bundled"]
Files = Mapping[str, str]

APPS_PER_PROJECT = 4
PROJECTS_PER_TENANT = 8
BUNDLE_DOCUMENTS = 110
_MODELS = (("nvidia-h200", "H200", 143_771), ("nvidia-h100", "H100 80GB HBM3", 81_559))


@dataclass(frozen=True)
class Shape:
    """How wide a repo is: what is alone in its folder can't share a file with anything."""

    documents_per_app: int
    versions_per_app: int
    shards_per_version: int
    nodes_per_project: int


SHAPES: Mapping[Layout, Shape] = {
    "single": Shape(120, 12, 0, 8),
    "bundled": Shape(2_500, 6, 60, 100),
}


@dataclass(frozen=True)
class Placed:
    """One document, and the path that would hold it alone."""

    path: str
    text: str


def files(documents: int, layout: Layout = "single", seed: int = 1) -> dict[str, str]:
    """Path → content of a repo with about `documents` manifests; never fewer."""
    made = list(_documents(documents, SHAPES[layout], random.Random(seed)))  # noqa: S311
    if layout == "single":
        return {placed.path: placed.text for placed in made}
    return _bundled(made)


def write(root: Path, content: Files) -> None:
    """Writes the files below `root`, which may exist."""
    for folder in sorted({str(Path(path).parent) for path in content}):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for path, text in content.items():
        (root / path).write_text(text, encoding="utf-8")


def spoiled(content: Files) -> tuple[str, str]:
    """(path, content) of an instance's file, with a field of its first document misspelt."""
    path = max(path for path in content if "/instances/" in path)
    return path, content[path].replace("placement_intent:", "placement_intend:", 1)


def lines_per_document(content: Files) -> float:
    lines = sum(text.count("\n") for text in content.values())
    return lines / sum(text.count("\nkind: ") for text in content.values())


def _bundled(made: Iterable[Placed]) -> dict[str, str]:
    """As many documents a file as their paths allow; what its folder names stays alone."""
    groups: dict[str, list[Placed]] = {}
    for placed in made:
        folder, _, name = placed.path.rpartition("/")
        alone = name in ("app.yaml", "tenant.yaml", "project.yaml") or "environments" in folder
        groups.setdefault(placed.path if alone else folder, []).append(placed)
    bundles: dict[str, str] = {}
    for where, those in groups.items():
        if len(those) == 1:
            bundles[those[0].path] = those[0].text
            continue
        for number, start in enumerate(range(0, len(those), BUNDLE_DOCUMENTS)):
            some = those[start : start + BUNDLE_DOCUMENTS]
            bundles[f"{where}/all-{number}.yaml"] = "---\n".join(placed.text for placed in some)
    return bundles


def _documents(wanted: int, shape: Shape, rng: random.Random) -> Iterator[Placed]:
    """The catalog first, a fifth of it all; then projects with nodes of their own until enough."""
    yield Placed(f"environments/{texts.ENVIRONMENT}.yaml", texts.environment())
    yield Placed("tenants/platform/tenant.yaml", texts.tenant("platform"))
    yield Placed("tenants/platform/projects/catalog/project.yaml", texts.project("catalog"))
    app_count = max(APPS_PER_PROJECT, wanted // shape.documents_per_app)
    apps = [f"app-{number:03d}" for number in range(app_count)]
    count = 3
    for app in apps:
        for placed in _app(app, shape, rng):
            count += 1
            yield placed
    number = 0
    while number == 0 or count < wanted:
        for placed in _project_of(number, apps, shape, rng):
            count += 1
            yield placed
        number += 1


def _app(app: str, shape: Shape, rng: random.Random) -> Iterator[Placed]:
    yield Placed(f"catalog/{app}/app.yaml", texts.app(app, rng))
    for minor in range(shape.versions_per_app):
        version = f"1.{minor}.0"
        digest = "sha256:" + hashlib.sha256(f"{app}/{version}".encode()).hexdigest()
        below = f"tenants/platform/projects/catalog/artifacts/{app}/{version}"
        yield Placed(
            f"catalog/{app}/versions/{version}.yaml", texts.version(app, version, digest, rng)
        )
        yield Placed(f"catalog/{app}/promotions/{version}.yaml", texts.promotion(version, rng))
        yield Placed(f"{below}/image.yaml", texts.artifact(app, version, digest, rng))
        for number in range(shape.shards_per_version):
            name = f"weights-{number:05d}"
            yield Placed(f"{below}/{name}.yaml", texts.shard(name, app, version, rng))


def _project_of(number: int, apps: list[str], shape: Shape, rng: random.Random) -> Iterator[Placed]:
    """A project, its entitlements, and nodes whose GPUs are all leased to it and in use."""
    tenant = f"tenant-{number // PROJECTS_PER_TENANT:04d}"
    project = f"team-{number:05d}"
    below = f"tenants/{tenant}/projects/{project}"
    if number % PROJECTS_PER_TENANT == 0:
        yield Placed(f"tenants/{tenant}/tenant.yaml", texts.tenant(tenant))
    yield Placed(f"{below}/project.yaml", texts.project(project))
    entitled = rng.sample(apps, APPS_PER_PROJECT)
    for app in entitled:
        yield Placed(f"{below}/entitlements/{app}.yaml", texts.entitlement(app))
    for node_number in range(shape.nodes_per_project):
        node = f"gpu-{number:05d}-{node_number}"
        uuids = [f"GPU-{rng.getrandbits(128):032x}" for _ in range(texts.GPUS_PER_NODE)]
        family, model, memory_mib = rng.choice(_MODELS)
        yield Placed(
            f"platform/nodes/{node}.yaml", texts.node(node, family, model, memory_mib, uuids)
        )
        share = texts.GPUS_PER_NODE // texts.LEASES_PER_NODE
        for lease_number in range(texts.LEASES_PER_NODE):
            lease = f"lease-{node_number}-{lease_number}"
            gpus = uuids[lease_number * share : (lease_number + 1) * share]
            yield Placed(
                f"{below}/allocations/{lease}.yaml", texts.allocation(lease, node, gpus, rng)
            )
            for place in range(texts.INSTANCES_PER_LEASE):
                name = f"{rng.choice(texts.WORDS)}-{node_number}-{lease_number}-{place}"
                minor = rng.randrange(shape.versions_per_app)
                text = texts.instance(name, rng.choice(entitled), f"1.{minor}.0", lease, rng)
                yield Placed(f"{below}/instances/{name}.yaml", text)
