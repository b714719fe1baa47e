"""`gpuaas artifact`: what it writes and shows, and what it refuses to register."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from reconciler.cli.artifact import artifact, print_artifacts
from reconciler.cli.terminal import Terminal
from reconciler.core.names import Digest
from reconciler.devkit.services import free_port
from reconciler.errors import GpuaasError
from reconciler.settings import Settings
from reconciler.use_cases.registering import registered_in
from reconciler.use_cases.validation import check_path
from reconciler.wiring.blobs import open_blob_store
from tests.cli.state_repo import Done, run
from tests.fakes.bad_registry import BadRegistry, hanging, serving
from tests.fakes.bad_server import Answer
from tests.services.git_repo import GitRepo
from tests.services.oci import index_of, small_image

EXAMPLE = Path(__file__).parents[2] / "example-state-repo"
IMAGE = small_image("honest")
OTHER = small_image("other")
REPOSITORY = "gpuaas/apps/acme/research/hello"
PATH = "tenants/acme/projects/research/artifacts/hello/1.1.0/image.yaml"
NAMED = "gpuaas/apps/platform/catalog/vllm@sha256:" + (
    "962e9a725a9816b744ed1089c23821343b0dc25cbbe15eea31bcc807301e0718"
)


@pytest.fixture
def registry() -> Iterator[BadRegistry]:
    with BadRegistry(dict(IMAGE.blobs)) as server:
        yield server


@pytest.fixture
def repo(tmp_path: Path, registry: BadRegistry, monkeypatch: pytest.MonkeyPatch) -> GitRepo:
    """The example, whose dev environment has the registry."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    monkeypatch.setenv("GPUAAS_REGISTRY_TIMEOUT_S", "0.3")
    monkeypatch.setenv("GPUAAS_STATE_DIR", str(tmp_path / "control-plane"))
    made = GitRepo(tmp_path / "state")
    shutil.copytree(EXAMPLE, made.folder, dirs_exist_ok=True)
    served_by(made, registry.endpoint)
    return made


def served_by(repo: GitRepo, endpoint: str) -> None:
    dev = repo.folder / "environments/dev.yaml"
    lines = dev.read_text().splitlines()
    lines = [f'    endpoint: "{endpoint}"' if "endpoint:" in one else one for one in lines]
    dev.write_text("\n".join(lines) + "\n")
    repo.commit({"environments/dev.yaml": dev.read_text()}, "registry")


def register(
    repo: GitRepo, place: str = f"{REPOSITORY}@{IMAGE.manifest_digest}", *args: Any
) -> Done:
    options = {"project": "acme/research", "app": "hello", "version": "1.1.0", "name": "image"}
    given = [word for name, value in options.items() for word in (f"--{name}", value)]
    return run(artifact, "register", place, *given, "--repo", repo.folder, "-e", "dev", *args)


def refused(repo: GitRepo, *args: Any) -> str:
    with pytest.raises(GpuaasError) as error:
        register(repo, *args)
    assert not (repo.folder / PATH).exists()
    return str(error.value)


# --- register ------------------------------------------------------------------------------------


def test_what_is_served_is_registered(repo: GitRepo) -> None:
    done = register(repo, f"{REPOSITORY}@{IMAGE.manifest_digest}", "--tag", "1.1.0")
    assert done.code == 0
    assert (repo.folder / PATH).read_text() == (
        "apiVersion: gpuaas.dev/v1\nkind: Artifact\nmetadata:\n  name: image\nspec:\n  kind: oci\n"
        f"  repository: {REPOSITORY}\n  digest: {IMAGE.manifest_digest}\n  tag: 1.1.0\n"
        "  media_type: application/vnd.oci.image.manifest.v1+json\n"
        "  visibility: project\n  state: published\n"
    )
    title, wrote, then = done.output.splitlines()
    assert title.startswith("Artifact/acme/research/hello/1.1.0/image: ")
    assert "bytes, for linux/amd64, hashed as 127.0.0.1:" in title
    assert wrote == f"wrote {repo.folder / PATH}"
    assert then == "Review and commit it."


def test_on_a_branch_of_its_own(repo: GitRepo) -> None:
    head = repo.head()
    source = ("--source-url", "https://git.example/hello", "--source-commit", "a" * 40)
    done = register(repo, f"{REPOSITORY}@{IMAGE.manifest_digest}", "--branch", "new", *source)
    assert not (repo.folder / PATH).exists()
    assert (repo.head(), repo.git("status", "--porcelain")) == (head, "")
    spec = yaml.safe_load(repo.git("show", f"new:{PATH}"))["spec"]
    assert spec["source_metadata"] == {
        "repository_url": "https://git.example/hello",
        "commit": "a" * 40,
    }
    assert "  git push origin new" in done.output


def test_an_index_with_all_its_platforms(repo: GitRepo, registry: BadRegistry) -> None:
    arm = small_image("arm", "arm64")
    index = index_of({"linux/amd64": IMAGE, "linux/arm64": arm})
    for one in (arm, index):
        registry.blobs.update(one.blobs)
        registry.blobs[one.manifest_digest] = one.manifest
    media_type = "application/vnd.oci.image.index.v1+json"
    answer = serving(index.manifest, Content_Type=media_type)
    registry.answers["GET", str(index.manifest_digest)] = answer
    done = register(repo, f"{REPOSITORY}@{index.manifest_digest}", "--format", "json")
    assert "for linux/amd64, linux/arm64" in done.document["proof"]
    assert f"media_type: {media_type}" in done.document["manifest"]


LIE = "the registry serves something else than was asked for; do not trust it"
BAD: dict[str, tuple[Answer, str]] = {
    "serves other bytes": (
        serving(OTHER.manifest),
        f"digest_mismatch: its bytes hash to {OTHER.manifest_digest} ({LIE})",
    ),
    "hangs": (hanging, "registry_timeout: no answer in 0.3 s"),
    "points elsewhere": (
        serving(b"", 307, Location="http://127.0.0.1:1/"),
        "registry_redirected: manifests are taken from the registry itself, not from where it "
        "points (name the registry's final host in the Environment)",
    ),
    "forgot it": (
        serving(b'{"errors": [{"code": "MANIFEST_UNKNOWN"}]}', 404),
        f"artifact_not_found: {REPOSITORY} has no {IMAGE.manifest_digest} (push it first: gpuaas "
        "intent publish says where and with which credential)",
    ),
    "fails": (serving(b"", 503), "registry_unavailable: answered 503"),
}


@pytest.mark.parametrize(("answer", "said"), BAD.values(), ids=BAD.keys())
def test_what_a_registry_says_is_no_proof(
    repo: GitRepo, registry: BadRegistry, answer: Answer, said: str
) -> None:
    for method in ("GET", "HEAD"):
        registry.answers[method, str(IMAGE.manifest_digest)] = answer
    assert said in refused(repo)


def test_a_registry_that_is_away(repo: GitRepo) -> None:
    served_by(repo, f"127.0.0.1:{free_port()}")
    assert "registry_unreachable" in refused(repo)


def test_a_registry_that_forgets_between_two_looks(repo: GitRepo, registry: BadRegistry) -> None:
    assert register(repo).code == 0
    (repo.folder / PATH).unlink()
    gone = serving(b'{"errors": [{"code": "MANIFEST_UNKNOWN"}]}', 404)
    for method in ("GET", "HEAD"):
        registry.answers[method, str(IMAGE.manifest_digest)] = gone
    assert "artifact_not_found" in refused(repo)


REFUSED: dict[str, tuple[str, str]] = {
    "a tag": (
        f"{REPOSITORY}:1.1.0",
        f"not_by_digest: '{REPOSITORY}:1.1.0' is no REPOSITORY@sha256:… (name it by digest: a tag "
        "may be another tomorrow)",
    ),
    "with the registry": (
        f"registry.example:5000/{REPOSITORY}@{IMAGE.manifest_digest}",
        f"not_by_digest: 'registry.example:5000/{REPOSITORY}@{IMAGE.manifest_digest}' is no "
        "REPOSITORY@sha256:… (leave registry.example:5000 out: the Environment says which "
        "registry it is)",
    ),
    "half a digest": (
        f"{REPOSITORY}@sha256:12",
        f"not_by_digest: '{REPOSITORY}@sha256:12' is no REPOSITORY@sha256:… (gpuaas intent "
        "complete says it, and so does skopeo inspect)",
    ),
    "no repository": (
        f"Not/A/Repo@{IMAGE.manifest_digest}",
        "repository_invalid: 'Not/A/Repo' is no repository name",
    ),
    "a blob that is not in the store": (
        f"artifact_store://projects/acme/research/artifacts/hello/1.1.0/image@sha256:{'0' * 64}",
        f"artifact_not_found: the artifact store has no sha256:{'0' * 64} that was published as "
        "this (first gpuaas intent publish --kind blob, blob upload, intent complete)",
    ),
}


@pytest.mark.parametrize(("place", "said"), REFUSED.values(), ids=REFUSED.keys())
def test_what_is_refused(repo: GitRepo, place: str, said: str) -> None:
    assert said in refused(repo, place)


def test_it_has_to_be_called_something_that_there_can_be(repo: GitRepo) -> None:
    with pytest.raises(GpuaasError, match="image names no artifact"):
        register(repo, f"{REPOSITORY}@{IMAGE.manifest_digest}", "--project", "acme")


def test_the_registry_is_that_of_one_environment(repo: GitRepo) -> None:
    assert "no_environment: no Environment prdo (did you mean prod?)" in refused(
        repo, f"{REPOSITORY}@{IMAGE.manifest_digest}", "-e", "prdo"
    )
    assert "no_environment: whose registry? (--environment, one of: dev, prod)" in refused(
        repo, f"{REPOSITORY}@{IMAGE.manifest_digest}", "-e", ""
    )


def test_what_is_registered_is_not_written_over(repo: GitRepo) -> None:
    register(repo)
    before = (repo.folder / PATH).read_text()
    with pytest.raises(GpuaasError, match="image is registered already"):
        register(repo)
    assert (repo.folder / PATH).read_text() == before


def test_a_link_leads_nowhere(repo: GitRepo, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (repo.folder / PATH).parents[2].symlink_to(elsewhere)
    with pytest.raises(GpuaasError, match="not_written: a link in the folder leads out of it"):
        register(repo)
    assert [*elsewhere.iterdir()] == []


def test_another_projects_place_is_a_problem(repo: GitRepo) -> None:
    done = register(repo, f"gpuaas/apps/platform/catalog/hello@{IMAGE.manifest_digest}")
    assert done.code == 1
    title, said, last = done.output.splitlines()
    assert title == (
        "Not registered: with Artifact/acme/research/hello/1.1.0/image, 1 problem(s) would be new"
    )
    assert "foreign_repository: gpuaas/apps/platform/catalog/hello belongs to project" in said
    assert last == "Nothing was written."
    assert not (repo.folder / PATH).exists()


def test_a_blob_that_was_uploaded(repo: GitRepo, tmp_path: Path) -> None:
    store = open_blob_store(Settings(state_dir=tmp_path / "control-plane"))
    content = b"weights" * 100
    digest = Digest.of(content)
    store.append("up", 0, [content])
    store.finish("up", digest)
    place = "artifact_store://projects/acme/research/artifacts/hello/1.1.0/image"
    assert "artifact_not_found" in refused(repo, f"{place}@{digest}")
    store.claim(place, digest)
    url = "https://weights.acme.example/models/hello"
    assert register(repo, f"{place}@{digest}").code == 1  # It does not say where it comes from.
    done = register(repo, f"{place}@{digest}", "--source-url", url, "--format", "json")
    assert done.document["proof"] == "700 bytes, hashed by the artifact store"
    spec = yaml.safe_load((repo.folder / PATH).read_text())["spec"]
    assert (spec["kind"], spec["source"], spec["digest"]) == ("blob", place, str(digest))


# --- what is there -------------------------------------------------------------------------------


def test_the_list(repo: GitRepo) -> None:
    lines = run(artifact, "list", "--repo", repo.folder).output.splitlines()
    rows = {line.split()[0]: line.split()[1:] for line in lines if "/" in line}
    assert rows["platform/catalog/vllm/0.11.0/image"] == [
        "oci", "promoted", "canary", "platform", "cba912e277d7", "vllm/0.11.0",
    ]  # fmt: skip
    assert rows["platform/catalog/jupyterlab/4.5.0/image"][1:3] == ["published", "platform"]
    assert rows["platform/catalog/hello/1.0.0/image"][2] == "all"


def test_a_part_of_it(repo: GitRepo) -> None:
    found = run(artifact, "list", "--project", "acme/assistant", "--format", "json",
                "--repo", repo.folder).document["artifacts"]  # fmt: skip
    assert [one["artifact"] for one in found] == ["acme/assistant/vllm/0.10.2/llama-3-3-70b"]
    done = run(artifact, "list", "--state", "revoked", "--repo", repo.folder)
    assert done.output == "No artifact is registered here.\n"


@pytest.mark.parametrize("width", [60, 80, 100, 200])
def test_nothing_in_the_list_is_cut(repo: GitRepo, width: int) -> None:
    found = registered_in(check_path(repo.folder, None, Settings()).candidate.objects, "", "")
    console = Terminal(width=width, highlight=False)
    with console.capture() as captured:
        print_artifacts(console, found)
    lines = [line.rstrip() for line in captured.get().splitlines()]
    assert all(len(line) <= width for line in lines)
    folded = "".join(line.split(" ")[0] for line in lines if not line.startswith("visibility"))
    for one in found:
        assert one.name in folded
        row = next(line for line in lines if one.spec.digest[7:19] in line)
        assert one.spec.kind in row
        assert one.spec.state in row
    in_show = "visibility and versions: gpuaas artifact show ARTIFACT"
    assert (lines[-1] == in_show) == (width < 200)
    assert ("VISIBILITY" in lines[0]) == (width == 200)


def test_the_list_of_what_is_not_there(repo: GitRepo, tmp_path: Path) -> None:
    with pytest.raises(GpuaasError) as error:
        run(artifact, "list", "--project", "acme/assistent", "--repo", repo.folder)
    assert str(error.value) == (
        "no_such_project: no project acme/assistent (did you mean acme/assistant?)"
    )
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(GpuaasError) as error:
        run(artifact, "list", "--repo", empty)
    assert str(error.value) == f"{empty}: no_state_repo: it has no manifest (pass --repo)"


def test_one_of_them(repo: GitRepo) -> None:
    shown = run(artifact, "show", "platform/catalog/vllm/0.10.2/image", "--repo", repo.folder)
    assert shown.output.splitlines() == [
        "Artifact/platform/catalog/vllm/0.10.2/image",
        "  state       promoted for stable, canary",
        "  next        deprecated or revoked",
        "  place       gpuaas/apps/platform/catalog/vllm",
        f"  digest      {NAMED.partition('@')[2]}",
        "  tag         0.10.2",
        "  media type  application/vnd.oci.image.manifest.v1+json",
        "  visibility  platform",
        "  source      https://git.acme.example/apps/vllm",
        "  builder     https://ci.acme.example/builders/gpu-apps@v1",
        "  named by    AppVersion/vllm/0.10.2",
        "  file        tenants/platform/projects/catalog/artifacts/vllm/0.10.2/image.yaml",
    ]
    found = run(artifact, "show", NAMED, "--format", "json", "--repo", repo.folder).document
    assert (found["artifact"], found["channels"], found["next_states"]) == (
        "platform/catalog/vllm/0.10.2/image",
        ["stable", "canary"],
        ["deprecated", "revoked"],
    )


def test_one_that_is_not_there(repo: GitRepo) -> None:
    with pytest.raises(GpuaasError) as error:
        run(artifact, "show", "platform/catalog/vllm/0.10.2/imge", "--repo", repo.folder)
    assert str(error.value) == (
        "no_such_object: there is no Artifact platform/catalog/vllm/0.10.2/imge (did you mean "
        "platform/catalog/vllm/0.10.2/image?)"
    )
