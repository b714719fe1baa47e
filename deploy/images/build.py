"""Builds the images of `deploy/images`, and pushes them to a registry if asked.

    python deploy/images/build.py --push 127.0.0.1:5000

Prints image, repository and digest of each, for the AppVersions and Artifacts that name them. All
stand on one base, a Debian with Python, which is made once, as root, and kept; on it each is a
layer of a few small programs. The same sources give the same digests.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from reconciler.devkit import debian, images
from reconciler.errors import GpuaasError

CATALOG = "gpuaas/apps/platform/catalog"
SOURCES = Path(__file__).resolve().parent
INSIDE = "opt/programs/deploy/images"
USER_ID = 10001


@dataclass(frozen=True)
class Recipe:
    """`program` is what it is called by, and `module` what that runs the `main` of. `folders`: what
    its user may write to; a volume that is empty begins as such a folder is.
    """

    repository: str
    package: str
    program: str
    module: str
    port: int | None = None
    folders: tuple[str, ...] = ()


def _retrieval(name: str, port: int | None = None, *folders: str) -> Recipe:
    program, module = f"retrieval-{name}", f"retrieval.{name}"
    return Recipe(f"{CATALOG}/retrieval", "retrieval", program, module, port, folders)


IMAGES: Mapping[str, Recipe] = {
    "vllm-standin": Recipe(
        f"{CATALOG}/vllm-standin", "vllm_standin", "vllm", "vllm_standin.serve", 8000,
        ("var/cache/vllm",),
    ),
    "retrieval-api": _retrieval("api", 8080),
    "retrieval-vectors": _retrieval("vectors", 6333, "var/lib/vectors"),
    "retrieval-worker": _retrieval("worker", None, "srv/documents"),
    "retrieval-metrics": _retrieval("metrics", 9090),
    "retrieval-setup": _retrieval("setup", None, "srv/documents"),
}  # fmt: skip


def build(name: str, base: Path, version: str = "1.0.0") -> images.OciImage:
    """One of IMAGES on the base of `debian.ensure_base`. The version is in a variable of it."""
    recipe = IMAGES[name]
    files = {
        f"{INSIDE}/{path.relative_to(SOURCES)}": (path.read_bytes(), 0o644)
        for package in ("plain", recipe.package)
        for path in sorted((SOURCES / package).rglob("*"))
        if path.suffix in (".py", ".txt")
    }
    script = f"#!/usr/bin/python3\nfrom deploy.images.{recipe.module} import main\n\nmain()\n"
    files[f"usr/local/bin/{recipe.program}"] = (script.encode(), 0o755)
    settings: dict[str, object] = {
        "Entrypoint": [recipe.program],
        "Env": [
            f"PATH={debian.PATH}",
            f"PYTHONPATH=/{INSIDE.removesuffix('/deploy/images')}",
            "PYTHONDONTWRITEBYTECODE=1",
            f"{recipe.package.upper()}_VERSION={version}",
        ],
        "ExposedPorts": {f"{recipe.port}/tcp": {}} if recipe.port else {},
        "User": f"{USER_ID}:{USER_ID}",
        "WorkingDir": "/",
    }
    owners = dict.fromkeys(recipe.folders, USER_ID)
    return images.build_on(base, debian.REF, files, settings, owners)


def push(name: str, base: Path, endpoint: str, version: str = "1.0.0") -> str:
    """Builds it and uploads it to its repository in the registry; returns the digest."""
    image = build(name, base, version)
    repository, tag = IMAGES[name].repository, f"{version}-{name.rpartition('-')[2]}"
    return str(images.push(image, endpoint, repository, tag, layout=base))


def main() -> int:
    parser = argparse.ArgumentParser(description="Build the images, and push them.")
    parser.add_argument("name", nargs="*", choices=[*IMAGES, []], help="all when none is named")
    parser.add_argument("--cache", type=Path, help="folder to keep the base in")
    parser.add_argument("--push", metavar="HOST:PORT")
    parser.add_argument("--version", default="1.0.0")
    args = parser.parse_args()
    try:
        base = debian.ensure_base(args.cache)
        for name in args.name or IMAGES:
            if args.push:
                digest = push(name, base, args.push, args.version)
            else:
                digest = str(build(name, base, args.version).manifest_digest)
            sys.stdout.write(f"{name}  {IMAGES[name].repository}@{digest}\n")
    except GpuaasError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
