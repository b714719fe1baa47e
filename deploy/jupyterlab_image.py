"""Builds the JupyterLab image on Debian, keeps it, and pushes it to a registry if asked.

    python deploy/jupyterlab_image.py --push 127.0.0.1:5000 gpuaas/apps/platform/catalog/jupyterlab

Prints the repository and digest that an AppVersion and its Artifact name. As root, since a root
file system is unpacked; exit 1 when it can't be built or pushed.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from reconciler.devkit import images, jupyter_image
from reconciler.errors import GpuaasError


def main() -> int:
    parser = argparse.ArgumentParser(description="Build the JupyterLab image, and push it.")
    parser.add_argument("--cache", type=Path, help="folder to keep it in")
    parser.add_argument("--push", nargs=2, metavar=("HOST:PORT", "REPOSITORY"))
    parser.add_argument("--tag", default="latest")
    args = parser.parse_args()
    try:
        layout = jupyter_image.ensure_image(args.cache)
        sys.stderr.write(f"image layout: {layout}\n")
        if args.push:
            endpoint, repository = args.push
            digest = images.push_layout(layout, jupyter_image.REF, endpoint, repository, args.tag)
            sys.stdout.write(f"{repository}@{digest}\n")
    except GpuaasError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
