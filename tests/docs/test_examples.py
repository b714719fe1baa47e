"""Every whole manifest that a page shows is valid beside the example platform."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from reconciler.cli.validate import validate
from reconciler.core.topology import CLASSES, CONFINED
from tests.cli.state_repo import run

ROOT = Path(__file__).resolve().parents[2]
BLOCK = re.compile(
    r"^```yaml\n# (?P<path>\S+\.yaml)\n(?P<text>apiVersion:.*?)^```", re.MULTILINE | re.DOTALL
)
REST = ("scratch", "secrets", "blobs", "gpus")
SHORT = re.compile(r"sha256:([0-9a-f]{2})…")
ARTIFACT = re.compile(r"((?:gpuaas/apps/|artifact_store://)[-a-z0-9/.]+)@(sha256:[0-9a-f]{64})")
PAGES = sorted(
    path for path in (ROOT / "docs").rglob("*.md") if BLOCK.search(path.read_text()) is not None
)


def test_there_are_pages_with_manifests() -> None:
    assert {page.name for page in PAGES} >= {
        "run-several-services.md",
        "serve-a-model-with-vllm.md",
    }


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_manifests_of_a_page_are_valid(page: Path, tmp_path: Path) -> None:
    """Once their images are registered, and their versions offered."""
    repo = tmp_path / "state"
    shutil.copytree(ROOT / "example-state-repo", repo)
    shown = {found["path"]: in_full(found["text"]) for found in BLOCK.finditer(page.read_text())}
    for path, text in shown.items():
        put(repo / path, text.replace("state: staged", "state: active"))
        app, _, version = path.removeprefix("catalog/").partition("/versions/")
        if version:
            offer(repo, app, version.removesuffix(".yaml"), {*ARTIFACT.findall(text)})
    node = repo / "platform/nodes/node-a.yaml"
    node.write_text(re.sub("engines: .*", "engines: [docker, compose, process]", node.read_text()))
    done = run(validate, repo)
    assert done.code == 0, done.output


def test_the_table_of_sidecar_classes_is_the_one_that_is_asked() -> None:
    page = (ROOT / "docs/how-to/run-several-services.md").read_text()
    rows = re.findall(r"^\| `([a-z]+)` \|" + r" ?(.*?) ?\|" * 7 + "$", page, re.MULTILINE)
    told = {
        name: {
            *(["endpoints"] if endpoints else []),
            *(["read_volumes"] if volumes else []),
            *(["write_volumes"] if volumes == "yes" else []),
            *(said for said, cell in zip(REST, rest, strict=True) if cell),
        }
        for name, endpoints, volumes, *rest, _ in rows
    }
    assert told == {name: {*may} for name, may in CLASSES.items()}
    assert {row[0] for row in rows if row[-1] == "confined"} == CONFINED


def in_full(text: str) -> str:
    """With digests as long as they are; pages show two of their digits."""
    return SHORT.sub(lambda found: f"sha256:{found[1] * 32}", text)


def offer(repo: Path, app: str, version: str, artifacts: set[tuple[str, str]]) -> None:
    about = {"slug": app, "display_name": app, "owner": "platform-team"}
    put_new(repo / f"catalog/{app}/app.yaml", document("App", app, about))
    offered = {"state": "active", "reason": "for the page"}
    promotion = document("Promotion", version, offered)
    put_new(repo / f"catalog/{app}/promotions/{version}.yaml", promotion)
    folder = repo / f"tenants/platform/projects/catalog/artifacts/{app}/{version}"
    for number, (place, digest) in enumerate(sorted(artifacts)):
        blob = place.startswith("artifact_store:")
        spec = {
            **({"kind": "blob", "source": place} if blob else {"kind": "oci", "repository": place}),
            "digest": digest,
            "media_type": "application/vnd.oci.image.manifest.v1+json",
            "source_metadata": {"repository_url": "https://weights.acme.example/models/any"},
            "visibility": "platform",
            "state": "promoted",
        }
        put(folder / f"{number}.yaml", document("Artifact", f"{number}", spec))


def document(kind: str, name: str, spec: dict[str, Any]) -> str:
    return yaml.safe_dump(
        {"apiVersion": "gpuaas.dev/v1", "kind": kind, "metadata": {"name": name}, "spec": spec}
    )


def put_new(path: Path, text: str) -> None:
    if not path.exists():
        put(path, text)


def put(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
