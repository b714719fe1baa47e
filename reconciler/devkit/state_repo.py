"""A state repo made from the example that ships with the product, and the edits made to it.

Rules: the files stay what a person would write; only digests, the registry and, where there is no
Docker, the runtime are filled in. Every edit is a Git commit, as it would be in real life.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

import yaml

from reconciler.devkit.signing import SigningKey, git_config
from reconciler.errors import Refused

FIRST = (
    "environments/dev.yaml",
    "platform/nodes/node-a.yaml",
    "catalog/hello",
    "tenants/acme/tenant.yaml",
    "tenants/acme/projects/research",
    "tenants/platform/tenant.yaml",
    "tenants/platform/projects/catalog/project.yaml",
    "tenants/platform/projects/catalog/artifacts/hello",
)
"""What of the example stands by itself: one environment, one node, one app and its instance."""
_INTRODUCED: tuple[tuple[str, Mapping[str, str]], ...] = (
    ("Register it, and stage it", {"promoted": "published", "active": "staged"}),
    ("Promote it, as a canary for nobody", {"active": "canary\n  canary: {percent: 0}"}),
    ("Offer it", {}),
)
"""What an artifact that is promoted, and a version that is active, are on their way there."""
PLACEHOLDER = re.compile(r"sha256:[0-9a-f]{64}")
INSTANCE = "tenants/acme/projects/research/instances/hello.yaml"
ENVIRONMENT = "environments/dev.yaml"
TRUST = "platform/trust/artifacts.yaml"
CHANNEL = "stable"
APP = "hello"
ADMINS = "platform/iam/admins.yaml"


@dataclass(frozen=True)
class Published:
    """What the demo pushed: version → digest, and where a registry or an image layout serves it.

    `token_auth`: that registry asks for tokens.
    """

    endpoint: str
    layout_path: str | None
    digests: Mapping[str, str]
    token_auth: bool = False

    @property
    def engine(self) -> str:
        return "process" if self.layout_path else "docker"


class StateRepo:
    """A Git repository with a working tree. With a `key` its commits are signed."""

    def __init__(self, folder: Path, key: SigningKey | None = None) -> None:
        self.folder = folder
        self.key = key

    def git(self, *args: str) -> str:
        """Runs git there and returns what it printed; the host's own configuration is left out."""
        environment = {
            "PATH": os.environ.get("PATH", os.defpath),
            "HOME": str(self.folder),
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_AUTHOR_NAME": "Ada Admin",
            "GIT_AUTHOR_EMAIL": "ada@acme.example",
            "GIT_COMMITTER_NAME": "Ada Admin",
            "GIT_COMMITTER_EMAIL": "ada@acme.example",
        }
        options = git_config(self.key) if self.key is not None else []
        done = subprocess.run(
            ["git", *options, *args],
            cwd=self.folder,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise Refused("git_failed", done.stderr.strip(), where=f"git {args[0]}")
        return done.stdout

    def commit(self, message: str) -> str:
        """Commits everything; returns the new revision."""
        self.git("add", "--all")
        self.git("commit", "--quiet", "--message", message)
        return self.head()

    def begin_with(self) -> str:
        """Makes all there is, edited or committed, the first commit, before anybody fetched it:
        what begins there may stand in any state.
        """
        first = self.git("rev-list", "--max-parents=0", "HEAD").strip()
        self.git("reset", "--quiet", "--soft", first)
        self.git("add", "--all")
        self.git("commit", "--quiet", "--amend", "--no-edit")
        return self.head()

    def head(self) -> str:
        return self.git("rev-parse", "HEAD").strip()

    def edit(self, path: str, change: Callable[[str], str]) -> None:
        """Rewrites one file; Refused when the change would change nothing."""
        file = self.folder / path
        before = file.read_text()
        after = change(before)
        if before == after:
            raise Refused("edit_missed", "nothing to change", where=path)
        file.write_text(after)

    def introduce(self, files: Mapping[str, str]) -> None:
        """Commits new files. Where they are of versions or artifacts that are on offer already,
        they get there in as many commits as it takes: nothing begins there.
        """
        for message, states in _INTRODUCED:
            self._write({path: _in_state(text, states) for path, text in files.items()})
            self.commit(message)

    def _write(self, files: Mapping[str, str]) -> None:
        for path, text in files.items():
            file = self.folder / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)


def _in_state(text: str, states: Mapping[str, str]) -> str:
    """The same manifest in an earlier state."""
    for state, before in states.items():
        text = text.replace(f"  state: {state}\n", f"  state: {before}\n")
    return text


def make_state_repo(folder: Path, published: Published, key: SigningKey | None = None) -> StateRepo:
    """Writes the first files of the example to `folder`, with what was published filled in, and
    makes the first commit. With a `key` it is Ada's, who may do everything.
    """
    if key is not None:
        file = folder / ADMINS
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(_admins(key))
    for path, content in first_files().items():
        file = folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(_filled(Path(path), content.decode(), published))
    repo = StateRepo(folder, key)
    repo.git("init", "--quiet", "--initial-branch", "main")
    repo.commit("The platform, one app and one instance")
    return repo


def ask_for_signatures(repo: StateRepo, public_key: str) -> None:
    """Writes a policy with this key, PEM, and an Environment that asks for it; commits nothing."""
    policy = {
        "apiVersion": "gpuaas.dev/v1",
        "kind": "TrustPolicy",
        "metadata": {"name": "artifacts"},
        "spec": {
            "signing_keys": [
                {"id": "artifacts", "scheme": "ecdsa-p256", "public_key": public_key.strip() + "\n"}
            ],
            "channels": {CHANNEL: {"signing_key": "artifacts", "provenance_required": False}},
        },
    }
    file = repo.folder / TRUST
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump(policy, sort_keys=False))
    line = f"spec:\n  trust: {{channel: {CHANNEL}}}\n"
    repo.edit(ENVIRONMENT, lambda text: text.replace("spec:\n", line, 1))


def _admins(key: SigningKey) -> str:
    """Who Ada is, and that she may do everything."""
    ada = {
        "apiVersion": "gpuaas.dev/v1",
        "kind": "Identity",
        "metadata": {"name": "ada"},
        "spec": {
            "type": "user",
            "display_name": "Ada Admin",
            "emails": ["ada@acme.example"],
            "keys": [key.identity_key("ada")],
        },
    }
    admins = {
        "apiVersion": "gpuaas.dev/v1",
        "kind": "RoleBinding",
        "metadata": {"name": "platform-admins"},
        "spec": {
            "subjects": [{"identity": "ada"}],
            "role": "platform-admin",
            "scope": {"platform": True},
        },
    }
    return str(yaml.safe_dump_all([ada, admins], sort_keys=False))


def set_version(repo: StateRepo, version: str) -> None:
    """Points the instance at another version of its app."""
    repo.edit(INSTANCE, lambda text: re.sub(r'version: "[^"]*"', f'version: "{version}"', text))


def first_files() -> dict[str, bytes]:
    """Path → content of every file that FIRST names."""
    found: dict[str, bytes] = {}
    for path in FIRST:
        found.update(_files_at(example_root().joinpath(*path.split("/")), path))
    return found


def _files_at(place: Traversable, path: str) -> dict[str, bytes]:
    if place.is_file():
        return {path: place.read_bytes()}
    below = sorted(place.iterdir(), key=lambda entry: entry.name)
    return {k: v for entry in below for k, v in _files_at(entry, f"{path}/{entry.name}").items()}


def example_root() -> Traversable:
    """The example state repo: inside the installed package, else beside it in a checkout."""
    packaged = files("reconciler") / "_data" / "example-state-repo"
    return packaged if packaged.is_dir() else Path(__file__).parents[2] / "example-state-repo"


def _filled(path: Path, text: str, published: Published) -> str:
    parts = path.parts
    for version, digest in published.digests.items():
        if version in (path.stem, path.parent.name) and APP in parts:
            text = PLACEHOLDER.sub(digest, text)
    if "environments" in parts:
        text = _with_registry(text, published)
    if published.layout_path and "versions" in parts:
        text = _as_process(text)
    return text


def _with_registry(text: str, published: Published) -> str:
    text = re.sub(r"endpoint: .*", f'endpoint: "{published.endpoint}"', text, count=1)
    if published.layout_path:
        line = f'plain_http: false\n    layout_path: "{published.layout_path}"'
        text = re.sub(r"plain_http: .*", line, text, count=1)
    if published.token_auth:
        text = re.sub(r"(plain_http: .*)", r"\1\n    auth: token", text, count=1)
    return text


def _as_process(text: str) -> str:
    """The same app for the process engine: its image carries a small Python server."""
    text = text.replace("kind: launchable_oci", "kind: bare_metal")
    return re.sub(
        r"^( +)command:(?: \[.*\]|(?:\n +- .*)+)",
        r'\1command: ["python3", "serve.py"]',
        text,
        count=1,
        flags=re.MULTILINE,
    )
