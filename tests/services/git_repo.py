"""A repository with a working tree, used the way people use one: by the git command line."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

from reconciler.core.names import Revision

AUTHOR = {"user.name": "Ada Admin", "user.email": "ada@acme.example"}


class GitRepo:
    """`config` is set in the repository itself; the host's own configuration is left out."""

    def __init__(
        self, folder: Path, *options: str, config: Mapping[str, str] = AUTHOR, make: bool = True
    ) -> None:
        self.folder = folder
        self._number = 0
        if make:
            folder.mkdir(parents=True, exist_ok=True)
            self.git("init", "--quiet", "--initial-branch", "main", *options)
        for key, value in config.items():
            self.git("config", key, value)

    def git(self, *args: str, given: bytes = b"", **variables: str) -> str:
        environment = {
            "PATH": os.environ.get("PATH", os.defpath),
            "HOME": str(self.folder),
            "GIT_CONFIG_NOSYSTEM": "1",
            "LC_ALL": "C",
            **variables,
        }
        done = subprocess.run(
            ["git", *args], cwd=self.folder, env=environment, input=given, capture_output=True,
            check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout.decode("utf-8", "surrogateescape")

    def commit(
        self, files: Mapping[str, bytes | str | None], subject: str = "change", *options: str
    ) -> Revision:
        """Writes or removes files and commits them; each commit is a minute after the last."""
        for path, content in files.items():
            place = self.folder / path
            if content is None:
                place.unlink()
                continue
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(content if isinstance(content, bytes) else content.encode())
        self.git("add", "--all")
        return self.record("commit", "--quiet", "--allow-empty", "--message", subject, *options)

    def record(self, *args: str) -> Revision:
        """Runs a git command that commits, at the next minute; returns the new head."""
        self._number += 1
        at = f"{1_700_000_000 + 60 * self._number} +0000"
        self.git(*args, GIT_AUTHOR_DATE=at, GIT_COMMITTER_DATE=at)
        return self.head()

    def head(self, ref: str = "HEAD") -> Revision:
        return Revision(self.git("rev-parse", ref).strip())
