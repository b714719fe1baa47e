"""A small state repo in which people are known by their keys, and commits of each of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from reconciler.core.names import Revision
from reconciler.devkit.signing import SigningKey, git_config
from tests.core.builders import INSTANCE_FILE, Documents, document, world
from tests.services.git_repo import GitRepo

PEOPLE = "platform/iam/people.yaml"
ROLES = "platform/iam/roles.yaml"
BOT_FILE = "tenants/acme/projects/research/service-accounts/bot.yaml"
ONE = "AppInstance/acme/research/one"
ADMIN, OPERATOR = "ada", "olga"


def identity(name: str, key: SigningKey, **more: Any) -> dict[str, Any]:
    spec = {"type": "user", "display_name": name.title(), "keys": [key.identity_key(f"{name}-1")]}
    return _manifest("Identity", name, {**spec, **more})


def binding(name: str, who: str, role: str, scope: Mapping[str, Any]) -> dict[str, Any]:
    spec = {"subjects": [{"identity": who}], "role": role, "scope": dict(scope)}
    return _manifest("RoleBinding", name, spec)


def _manifest(kind: str, name: str, spec: Mapping[str, Any]) -> dict[str, Any]:
    envelope = {"apiVersion": "gpuaas.dev/v1", "kind": kind}
    return {**envelope, "metadata": {"name": name}, "spec": dict(spec)}


def dumped(*documents: Mapping[str, Any]) -> str:
    return yaml.safe_dump_all([dict(one) for one in documents], sort_keys=False)


class SignedState:
    """Ada may do everything, Olga operates acme/research, bot is a machine there.

    Nobody knows Eve. `folder` is the work tree, on a branch `topic` made from main.
    """

    def __init__(self, root: Path, below: str = "") -> None:
        self.root = root
        self.repo = GitRepo(root / "state")
        self.below = below
        names = (ADMIN, OPERATOR, "eve")
        self.keys = {name: SigningKey.ssh(root / "keys", name) for name in names}
        self.commit(ADMIN, self._first(), "The first one")
        self.repo.git("checkout", "--quiet", "-b", "topic")

    @property
    def folder(self) -> Path:
        return self.repo.folder / self.below

    def commit(self, who: str, files: Mapping[str, str | None], subject: str = "edit") -> Revision:
        """Signed by `who`; by nobody where that is empty."""
        for path, content in files.items():
            place = self.folder / path
            if content is None:
                place.unlink()
                continue
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(content)
        self.repo.git("add", "--all")
        options = git_config(self.keys[who]) if who else []
        arguments = ("commit", "--quiet", "--allow-empty", "--message", subject)
        return self.repo.record(*options, *arguments)

    def edited(self, path: str, old: str, new: str) -> dict[str, str]:
        text = (self.folder / path).read_text()
        assert old in text
        return {path: text.replace(old, new)}

    def edit(self, who: str, path: str, old: str, new: str, subject: str = "edit") -> Revision:
        return self.commit(who, self.edited(path, old, new), subject)

    def _first(self) -> dict[str, str]:
        documents: Documents = world()
        spec = {"roles": ["app-operator"], "public_keys": []}
        documents[BOT_FILE] = document(BOT_FILE, "bot", spec)
        texts = {path: dumped(one) for path, one in documents.items()}
        texts[PEOPLE] = dumped(*(identity(one, self.keys[one]) for one in (ADMIN, OPERATOR)))
        texts[ROLES] = dumped(
            binding("admins", ADMIN, "platform-admin", {"platform": True}),
            binding("operators", OPERATOR, "app-operator", {"project": "acme/research"}),
        )
        return texts


MORE_MEMORY = (INSTANCE_FILE, "memory_gib: 4", "memory_gib: 5")
MORE_CORES = ("platform/nodes/gpu-1.yaml", "cpu_cores: 32", "cpu_cores: 64")
