"""Runs git in a person's own repository, as that person.

Rules: no hook runs, Git asks nothing of a terminal, and of the caller's GIT_* variables only those
count that say who somebody is and where the configuration lies. Exits are told apart here.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from reconciler.errors import Refused, Transient

TIMEOUT_S = 300.0
"""A person may have to touch a key or type its passphrase."""

_STDERR_LENGTH_MAX = 2000
_KEPT_GIT_VARIABLES = frozenset(
    {
        "GIT_CONFIG_GLOBAL", "GIT_CONFIG_SYSTEM", "GIT_CONFIG_NOSYSTEM",
        "GIT_AUTHOR_NAME", "GIT_AUTHOR_EMAIL", "GIT_COMMITTER_NAME", "GIT_COMMITTER_EMAIL",
    }
)  # fmt: skip
_CONFIG = {
    "core.hooksPath": "/dev/null",
    "core.fsmonitor": "false",
    "core.splitIndex": "false",
    "core.untrackedCache": "false",
    "index.sparse": "false",
    "i18n.commitEncoding": "utf-8",
    "user.useConfigOnly": "true",
}
_NO_IDENTITY = re.compile(
    r"Please tell me who you are|empty ident|user\.useConfigOnly|no email was"
)


class LocalGit:
    """Runs git in one folder. `index`: used in place of the repository's own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.index: Path | None = None

    def run(self, *args: str, given: bytes = b"", config: Mapping[str, str] | None = None) -> str:
        """What it printed; Refused for any exit but 0, Transient when it does not end."""
        settings = {**_CONFIG, **(config or {})}
        options = [word for key, value in settings.items() for word in ("-c", f"{key}={value}")]
        command = ["git", "-C", str(self._folder), *options, *args]
        try:
            done = subprocess.run(
                command, input=given, env=self._environment(), capture_output=True,
                timeout=TIMEOUT_S, check=False,
            )  # fmt: skip
        except FileNotFoundError:
            raise Refused(
                "git_missing", "there is no git on this host", hint="install git 2.34 or newer"
            ) from None
        except subprocess.TimeoutExpired:
            raise Transient(
                "git_timeout", f"git {args[0]} did not end after {TIMEOUT_S:g} s",
                where=str(self._folder),
            ) from None  # fmt: skip
        if done.returncode != 0:
            raise _failure(args, done.stderr, self._folder)
        return done.stdout.decode("utf-8", "surrogateescape")

    def _environment(self) -> dict[str, str]:
        kept = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith("GIT_") or key in _KEPT_GIT_VARIABLES
        }
        own = {"LC_ALL": "C", "GIT_TERMINAL_PROMPT": "0", "GIT_NO_REPLACE_OBJECTS": "1"}
        index = {"GIT_INDEX_FILE": str(self.index)} if self.index else {}
        return {**kept, **own, **index}


def _failure(args: Sequence[str], stderr: bytes, folder: Path) -> Refused:
    said = " ".join(stderr.decode("utf-8", "replace")[-_STDERR_LENGTH_MAX:].split())
    where = str(folder)
    if _NO_IDENTITY.search(said):
        return Refused(
            "git_no_identity", "Git does not know whose commit this would be", where=where,
            hint="git config user.name NAME and git config user.email ADDRESS",
        )  # fmt: skip
    if "-S" in args:
        return Refused(
            "git_cannot_sign", f"Git could not sign the commit: {said}", where=where,
            hint="commit.gpgSign is on: check user.signingKey, gpg.format and your agent",
        )  # fmt: skip
    if "not a git repository" in said:
        return Refused("not_a_repository", "there is no Git repository", where=where)
    return Refused("git_failed", said or f"git {args[0]} failed", where=where)
