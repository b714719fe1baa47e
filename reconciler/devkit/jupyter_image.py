"""An OCI image of the real JupyterLab on a Debian root file system, made once and kept.

`deploy/jupyterlab_image.py` builds and pushes it.

Rules:
- It stands on the base of `debian.py`. JupyterLab comes from the Python package index, every wheel
  by the hash in `jupyterlab.lock`.
- What is installed runs as user 1000.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from reconciler.devkit import debian, images

LOCK = Path(__file__).with_name("jupyterlab.lock")
REF = "jupyterlab"
PORT = 8888
USER_ID = 1000
HOME = "/srv/jupyter"
WORK = f"{HOME}/notebooks"
"""A volume: what stands there outlives an upgrade, anything else does not."""
ENVIRONMENT = "opt/jupyter"
_PLATFORMS = ("manylinux2014", "manylinux_2_17", "manylinux_2_28")
_OWN = (ENVIRONMENT, "srv/jupyter", "etc/passwd", "etc/group")


def ensure_image(cache: Path | None = None) -> Path:
    """The OCI image layout with the image as `REF`, built when it is not there: about 90 s.

    Refused where it can't be built: that wants root, and mirrors to reach.
    """
    base = debian.ensure_base(cache)
    sources = [LOCK, Path(__file__), Path(debian.__file__)]
    recipe = b"".join(path.read_bytes() for path in sources) + os.uname().machine.encode()
    return debian.kept("jupyterlab", recipe, lambda folder: _build(folder, base), cache)


def _build(folder: Path, base: Path) -> Path:
    root = folder / "root"
    debian.unpack(root, base)
    _jupyterlab(root, folder / "wheels")
    # Named twice on this disk and written once: the base's layer stays where it is kept.
    (kept,) = images.layers_of(base, debian.REF)
    lower, upper = folder / "lower.tar", folder / "upper.tar"
    os.link(kept, lower)
    debian.write_layer(root, upper, lambda name: name.startswith(_OWN))
    layout = folder / "layout"
    images.write_layout_of_files([lower, upper], _settings(), layout, REF)
    return layout


def _jupyterlab(root: Path, wheels: Path) -> None:
    """Fetched from outside, with what reaches the index there, and installed inside, offline."""
    machine = os.uname().machine
    platforms = [word for name in _PLATFORMS for word in ("--platform", f"{name}_{machine}")]
    debian.run(
        [sys.executable, "-m", "pip", "download", "--quiet", "--only-binary=:all:",
         "--python-version", debian.PYTHON, "--implementation", "cp", *platforms, "--no-deps",
         "--require-hashes", "--requirement", str(LOCK), "--dest", str(wheels)]
    )  # fmt: skip
    inside = root / "wheels"
    shutil.copytree(wheels, inside)
    shutil.copy(LOCK, inside / "lock")
    debian.run_in(root, "python3", "-m", "venv", f"/{ENVIRONMENT}")
    debian.run_in(
        root, f"/{ENVIRONMENT}/bin/python3", "-m", "pip", "install", "--quiet", "--no-index",
        "--no-compile", "--find-links", "/wheels", "--no-deps", "--require-hashes",
        "--requirement", "/wheels/lock",
    )  # fmt: skip
    debian.compiled(root, f"/{ENVIRONMENT}/lib")
    work = root / WORK.removeprefix("/")
    work.mkdir(parents=True)
    for path in (work.parent, work):
        os.chown(path, USER_ID, USER_ID)
    with (root / "etc/passwd").open("a") as accounts:
        accounts.write(f"user:x:{USER_ID}:{USER_ID}::{HOME}:/bin/sh\n")
    with (root / "etc/group").open("a") as groups:
        groups.write(f"user:x:{USER_ID}:\n")


def _settings() -> dict[str, object]:
    return {
        "Cmd": ["jupyter", "lab", "--ip=0.0.0.0", f"--port={PORT}", "--no-browser"],
        "Env": [
            f"PATH=/{ENVIRONMENT}/bin:{debian.PATH}",
            f"HOME={HOME}",
            "LANG=C.UTF-8",
        ],
        "ExposedPorts": {f"{PORT}/tcp": {}},
        "User": f"{USER_ID}:{USER_ID}",
        "Volumes": {WORK: {}},
        "WorkingDir": WORK,
    }
