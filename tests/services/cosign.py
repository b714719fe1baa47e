"""The real cosign, offline: no transparency log, no certificate, keys in files."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tests.services.go_tools import program

Form = Literal["classic", "bundle"]
TIMEOUT_S = 120.0
_OLD = ("--new-bundle-format=false", "--use-signing-config=false", "--tlog-upload=false")


class CosignFailed(Exception):
    """cosign said no; its words are the message."""


@dataclass(frozen=True)
class Cosign:
    """Works in `folder`, where its key pair `cosign.key`, `cosign.pub` is."""

    folder: Path

    @classmethod
    def set_up(cls, folder: Path) -> Cosign:
        folder.mkdir(parents=True, exist_ok=True)
        made = cls(folder)
        made.run("generate-key-pair")
        made.run("signing-config", "create", "--out", "config.json")
        made.run("trusted-root", "create", "--out", "root.json")
        return made

    @property
    def public_key(self) -> str:
        return (self.folder / "cosign.pub").read_text()

    def sign(self, reference: str, form: Form) -> None:
        self.run("sign", *self._signing(form), reference)

    def attest(self, reference: str, form: Form, predicate: dict[str, Any], kind: str) -> None:
        (self.folder / "predicate.json").write_text(json.dumps(predicate))
        about = ("--predicate", "predicate.json", "--type", kind)
        self.run("attest", *self._signing(form), *about, reference)

    def verify(self, reference: str, form: Form, public_key: str) -> None:
        self.run("verify", *self._verifying(form, public_key), reference)

    def verify_attestation(self, reference: str, form: Form, public_key: str, kind: str) -> None:
        about = ("--type", kind)
        self.run("verify-attestation", *self._verifying(form, public_key), *about, reference)

    def run(self, *arguments: str) -> str:
        done = subprocess.run(
            [program("cosign"), *arguments],
            cwd=self.folder,
            env={"COSIGN_PASSWORD": "", "HOME": str(self.folder), "PATH": os.environ["PATH"]},
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
        if done.returncode != 0:
            raise CosignFailed(done.stderr[-2000:])
        return done.stdout

    def _signing(self, form: Form) -> tuple[str, ...]:
        config = ("--signing-config", "config.json", "--trusted-root", "root.json")
        how = _OLD if form == "classic" else config
        return ("--key", "cosign.key", "-y", "--allow-http-registry", *how)

    def _verifying(self, form: Form, public_key: str) -> tuple[str, ...]:
        (self.folder / "verify.pub").write_text(public_key)
        how = "false" if form == "classic" else "true"
        return (
            "--key",
            "verify.pub",
            "--insecure-ignore-tlog",
            "--allow-http-registry",
            f"--new-bundle-format={how}",
        )
