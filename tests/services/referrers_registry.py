"""A registry with the referrers API, which Debian's has not; built once from `referrers_go/`."""

from __future__ import annotations

import fcntl
import hashlib
import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from reconciler.devkit import process
from tests.services.vault_server import go_program

SOURCES = Path(__file__).resolve().parent / "referrers_go"
BUILD_TIMEOUT_S = 600.0
READY_TIMEOUT_S = 20.0


@contextmanager
def referrers_registry(root: Path) -> Iterator[str]:
    """host:port of a fresh one, over plain HTTP; it keeps everything in memory."""
    root.mkdir(parents=True, exist_ok=True)
    service = process.start("referrers", [str(_program())], root)
    try:
        process.wait_ready(service, lambda: _told(service.log) != "", READY_TIMEOUT_S)
        yield _told(service.log)
    finally:
        service.stop()


def _told(log: Path) -> str:
    lines = log.read_text().splitlines()
    return next((line for line in lines if line.startswith("127.0.0.1:")), "")


def _program() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    folder = Path(base) / "gpuaas" / "test-services"
    hashed = hashlib.sha256(b"".join(file.read_bytes() for file in sorted(SOURCES.iterdir())))
    place = folder / f"referrers-registry-{hashed.hexdigest()[:16]}"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".referrers.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not place.is_file():
            with tempfile.TemporaryDirectory(dir=folder, prefix=".building-") as draft:
                _build(Path(draft)).rename(place)
    return place


def _build(draft: Path) -> Path:
    built = draft / "referrers-registry"
    done = subprocess.run(
        [go_program(draft), "build", "-trimpath", "-ldflags=-s -w", "-o", str(built), "."],
        cwd=SOURCES,
        env={**os.environ, "CGO_ENABLED": "0", "GOFLAGS": "-mod=readonly"},
        capture_output=True,
        text=True,
        timeout=BUILD_TIMEOUT_S,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(f"the registry with referrers can't be built:\n{done.stderr[-2000:]}")
    return built
