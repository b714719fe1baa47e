"""Keys, tokens and the files of a checkout, for the commands that write them."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from reconciler.adapters.account_keys import (
    generate_account_key,
    public_forms,
    read_account_key,
)
from reconciler.adapters.git_first import Place, commit_signed, knows_who, look, stage
from reconciler.adapters.signing_keys import local_signing_key, read_public_key
from reconciler.adapters.token_request import request_token
from reconciler.adapters.unwrap_request import request_unwrap
from reconciler.errors import Refused
from reconciler.ports import Secret


def write_manifest(folder: Path, path: str, content: bytes | None) -> None:
    """A file of a checkout, whole or not at all; None takes it away. Refused where that can't be.

    A link in the checkout, which anybody may have committed, leads nowhere else.
    """
    place = folder / path
    if not place.parent.resolve().is_relative_to(folder.resolve()) or place.is_symlink():
        hint = "put a folder or file in its place"
        message = "a link in the checkout leads out of it"
        raise Refused("not_written", message, where=str(place), hint=hint)
    try:
        if content is None:
            place.unlink()
            return
        place.parent.mkdir(parents=True, exist_ok=True)
        mode = place.stat().st_mode & 0o777 if place.exists() else 0o644
        _replace(place, content, mode)
    except OSError as error:
        raise Refused("not_written", f"{error.strerror}", where=str(place)) from None


def write_private(place: Path, value: Secret) -> None:
    """A file for its owner alone, in place of the one that was there."""
    try:
        place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _replace(place, value.reveal().encode() + b"\n", 0o600)
    except OSError as error:
        raise Refused("not_written", f"{error.strerror}", where=str(place)) from None


def _replace(place: Path, content: bytes, mode: int) -> None:
    """In one step."""
    descriptor, name = tempfile.mkstemp(dir=place.parent, prefix=f".{place.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        os.chmod(name, mode)
        os.replace(name, place)
    except OSError:
        os.unlink(name)
        raise


__all__ = [
    "Place",
    "commit_signed",
    "generate_account_key",
    "knows_who",
    "local_signing_key",
    "look",
    "public_forms",
    "read_account_key",
    "read_public_key",
    "request_token",
    "request_unwrap",
    "stage",
    "write_manifest",
    "write_private",
]
