"""Programs of others that the tests run, built once from Go modules and kept in the user's cache.

Versions are pinned, and their content by Go's checksum database. Where one can't be built the test
fails: what it proves is that we and that program understand each other.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tests.services.vault_server import go_program

BUILD_TIMEOUT_S = 1800.0


@dataclass(frozen=True)
class GoTool:
    """`package` is below `module`. `stamp` is the variable that holds its own version."""

    module: str
    version: str
    package: str
    stamp: str = ""


TOOLS = {
    # The registry that Debian has is distribution 2: the next one names keys otherwise.
    "distribution": GoTool("github.com/distribution/distribution/v3", "v3.0.0", "cmd/registry"),
    # Debian's docker-compose is 1.29, in another language and another product by now.
    "docker-compose": GoTool(
        "github.com/docker/compose/v2",
        "v2.40.3",
        "cmd",
        "github.com/docker/compose/v2/internal.Version",
    ),
    # The oldest release that the agent takes, which hashes in another way than the one above.
    "docker-compose-oldest": GoTool(
        "github.com/docker/compose/v2",
        "v2.20.0",
        "cmd",
        "github.com/docker/compose/v2/internal.Version",
    ),
    "cosign": GoTool("github.com/sigstore/cosign/v3", "v3.1.1", "cmd/cosign"),
    "oras": GoTool("oras.land/oras", "v1.3.3", "cmd/oras"),
    "versitygw": GoTool("github.com/versity/versitygw", "v1.8.0", "cmd/versitygw"),
}


def program(name: str) -> Path:
    """The path of one of `TOOLS`, built if it is not there yet; another process may be at it."""
    tool = TOOLS[name]
    folder = _cache() / "gpuaas" / "tools" / f"{name}-{tool.version}"
    found = folder / name
    if found.is_file():
        return found
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not found.is_file():
            with tempfile.TemporaryDirectory(dir=folder, prefix=".building-") as draft:
                _build(tool, Path(draft) / name).rename(found)
    return found


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")


def _build(tool: GoTool, built: Path) -> Path:
    """In a module that asks for this version of the tool and nothing else."""
    module = f"module tools\n\ngo 1.25\n\nrequire {tool.module} {tool.version}\n"
    (built.parent / "go.mod").write_text(module)
    package = f"{tool.module}/{tool.package}"
    done = subprocess.run(
        [
            go_program(built.parent),
            "build",
            "-trimpath",
            "-ldflags=-s -w" + (f" -X {tool.stamp}={tool.version}" if tool.stamp else ""),
            "-o",
            str(built),
            package,
        ],
        cwd=built.parent,
        env={**os.environ, "CGO_ENABLED": "0", "GOFLAGS": "-mod=mod"},
        capture_output=True,
        text=True,
        timeout=BUILD_TIMEOUT_S,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(f"{package} can't be built:\n{done.stderr[-2000:]}")
    return built
