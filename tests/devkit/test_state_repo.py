"""The part of the example that stands by itself, as the demo and a first state repo use it."""

from __future__ import annotations

from pathlib import Path

from reconciler.adapters.schema_files import load_schemas
from reconciler.core.names import Revision
from reconciler.core.parse import ParseLimits
from reconciler.core.resolve import resolve
from reconciler.core.schema import SchemaSet
from reconciler.core.source import Snapshot, SourceFile
from reconciler.core.validate import validate
from reconciler.devkit.state_repo import (
    FIRST,
    INSTANCE,
    Published,
    ask_for_signatures,
    first_files,
    make_state_repo,
)

ROOT = Path(__file__).resolve().parents[2]
PUBLIC_KEY = """-----BEGIN PUBLIC KEY-----
MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAElURZFyJQd3qT0eb5dYgdd090f9N7
SSv2ybaaxm/xKlqoePS7xBdxxkdq9Fkz6Tq3FFqudIgjoJnhRJf+m6QJXQ==
-----END PUBLIC KEY-----
"""


def test_it_has_one_instance_and_no_problem() -> None:
    files = tuple(SourceFile(path, "0", content) for path, content in first_files().items())
    snapshot = Snapshot(Revision("1" * 40), files, "Ada", "a change", 0)
    found = validate(snapshot, SchemaSet.build(load_schemas()), ParseLimits())
    resolution = resolve(found.objects, "dev", found.revision)
    assert (found.problems, resolution.problems) == ((), ())
    assert list(resolution.instances) == ["acme/research/hello"]


def test_the_readme_of_the_example_copies_the_same_files() -> None:
    text = (ROOT / "example-state-repo/README.md").read_text()
    catalog = "tenants/platform/projects/catalog"
    text = text.replace(
        f"{catalog}/{{project.yaml,artifacts/hello}}",
        f"{catalog}/project.yaml {catalog}/artifacts/hello",
    )
    command = text.partition("-t ../state \\\n")[2].partition("```")[0]
    assert command.replace("\\\n", "").split() == list(FIRST)


def test_what_was_published_is_filled_in(tmp_path: Path) -> None:
    digests = {"1.0.0": "sha256:" + "1" * 64, "1.1.0": "sha256:" + "2" * 64}
    repo = make_state_repo(tmp_path, Published("127.0.0.1:5001", None, digests))
    assert repo.git("status", "--porcelain") == ""
    assert (tmp_path / INSTANCE).is_file()
    assert 'endpoint: "127.0.0.1:5001"' in (tmp_path / "environments/dev.yaml").read_text()
    for version, digest in digests.items():
        manifest = (tmp_path / f"catalog/hello/versions/{version}.yaml").read_text()
        assert f"hello@{digest}" in manifest


def test_from_then_on_signatures_are_asked_for(tmp_path: Path) -> None:
    digests = {"1.0.0": "sha256:" + "1" * 64, "1.1.0": "sha256:" + "2" * 64}
    repo = make_state_repo(tmp_path, Published("127.0.0.1:5001", None, digests))
    ask_for_signatures(repo, PUBLIC_KEY)
    paths = [path for path in sorted(tmp_path.rglob("*.yaml")) if path.is_file()]
    files = tuple(
        SourceFile(str(path.relative_to(tmp_path)), "0", path.read_bytes()) for path in paths
    )
    snapshot = Snapshot(Revision("1" * 40), files, "Ada", "a change", 0)
    found = validate(snapshot, SchemaSet.build(load_schemas()), ParseLimits())
    resolution = resolve(found.objects, "dev", found.revision)
    assert (found.problems, resolution.problems) == ((), ())
    assert {one.channel for one in resolution.instances.values()} == {"stable"}
