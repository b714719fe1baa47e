"""A small state repo of a few commits, and commands run on it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import yaml
from click.testing import CliRunner

from reconciler.core.names import Revision
from tests.core.builders import (
    ARTIFACT_FILE,
    IMAGE,
    INSTANCE_FILE,
    PROJECT,
    Documents,
    add,
    version_spec,
    world,
)
from tests.services.git_repo import GitRepo

INSTANCE = f"{PROJECT}/instances/hello.yaml"
PROMOTION = "catalog/hello/promotions/1.1.0.yaml"
HELLO = "AppInstance/acme/research/hello"
OTHER_IMAGE = IMAGE.replace("a" * 64, "b" * 64)
MANIFEST = """apiVersion: gpuaas.dev/v1
kind: AppInstance
metadata:
  name: hello
spec:
  app: hello
  version: "1.0.0"
  placement_intent:
    allocation: lease
  parameters:
    cpu_cores: 0.5
    memory_gib: 0.25
  desired: running
"""


def second_version(documents: Documents) -> None:
    """Adds 1.1.0 of the app, promoted, with another image."""
    spec = version_spec("1.1.0", artifact_ref=OTHER_IMAGE)
    add(documents, "catalog/hello/versions/1.1.0.yaml", spec, "1.1.0")
    add(documents, PROMOTION, {"state": "active", "reason": "tested"}, "1.1.0")
    image = {**documents[ARTIFACT_FILE]["spec"], "digest": OTHER_IMAGE.partition("@")[2]}
    add(documents, f"{PROJECT}/artifacts/hello/1.1.0/image.yaml", image)


@dataclass
class StateRepo:
    """`edit` changes a file and commits it."""

    repo: GitRepo

    @property
    def folder(self) -> Path:
        return self.repo.folder

    def read(self, path: str) -> str:
        return (self.folder / path).read_text()

    def edit(self, path: str, old: str, new: str, subject: str = "edit") -> Revision:
        text = self.read(path)
        assert old in text
        return self.repo.commit({path: text.replace(old, new)}, subject)

    def show(self, path: str, revision: str) -> str:
        return self.repo.git("show", f"{revision}:{path}")


def make(folder: Path) -> StateRepo:
    """One app and one instance, then an upgrade, then more memory: one field a commit."""
    documents = world()
    del documents[INSTANCE_FILE]
    second_version(documents)
    repo = GitRepo(folder)
    texts = {path: yaml.safe_dump(one, sort_keys=False) for path, one in documents.items()}
    repo.commit({**texts, INSTANCE: MANIFEST}, "The platform, one app and one instance")
    state = StateRepo(repo)
    state.edit(INSTANCE, '"1.0.0"', '"1.1.0"', "Move hello to 1.1.0")
    state.edit(INSTANCE, "memory_gib: 0.25", "memory_gib: 0.5", "More memory for hello")
    return state


@dataclass(frozen=True)
class Done:
    code: int
    output: str

    @property
    def document(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.output)
        return found


def run(command: click.Command, *args: str | Path) -> Done:
    """Runs a command; what it refuses is raised."""
    done = CliRunner().invoke(
        command, [str(arg) for arg in args], standalone_mode=False, catch_exceptions=False
    )
    return Done(done.return_value, done.output)


Edit = Callable[[StateRepo], Any]
