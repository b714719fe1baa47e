"""An OCI image of the real JupyterLab on a Debian root file system, made once and kept.

`deploy/jupyterlab_image.py` builds and pushes it.

Rules:
- Debian comes through debootstrap, from the mirror that this machine's apt uses. JupyterLab comes
  from the Python package index, every wheel by the hash in `jupyterlab.lock`.
- What is installed runs as user 1000 and holds no package lists, caches or logs.
- An image is built beside its place in the cache and renamed: half of one is never used. Its name
  there is the hash of all that it is made from, so a new recipe makes a new image.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from reconciler.devkit import images
from reconciler.devkit.process import find_program
from reconciler.errors import Refused

SUITE = "bookworm"
PYTHON = "3.11.2"
"""The suite's own, that the wheels have to fit."""
LOCK = Path(__file__).with_name("jupyterlab.lock")
REF = "jupyterlab"
PORT = 8888
USER_ID = 1000
HOME = "/srv/jupyter"
WORK = f"{HOME}/notebooks"
"""A volume: what stands there outlives an upgrade, anything else does not."""
ENVIRONMENT = "opt/jupyter"
LOG_TAIL = 2_000
_DEBIAN_PACKAGES = ("python3", "python3-venv", "ca-certificates")
_PLATFORMS = ("manylinux2014", "manylinux_2_17", "manylinux_2_28")
_LEFT_OUT = ("dev/", "proc/", "sys/", "tmp/", "wheels", "run/", "var/log/", "var/cache/",
             "var/lib/apt/lists/", "usr/share/doc/", "usr/share/man/", "usr/share/locale/",
             "usr/share/info/", "srv/jupyter")  # fmt: skip


def cache_folder() -> Path:
    """Where images are kept between runs."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "gpuaas" / "images"


def ensure_image(cache: Path | None = None) -> Path:
    """The OCI image layout with the image as `REF`, built when it is not there: about 90 s.

    Refused where it can't be built: debootstrap wants root, and a mirror to reach.
    """
    folder = cache or cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    place = folder / f"jupyterlab-{_recipe()}"
    with _alone(folder):
        if not (place / "index.json").is_file():
            with tempfile.TemporaryDirectory(dir=folder, prefix=".building-") as draft:
                built = _build(Path(draft))
                built.rename(place)
    return place


def _build(folder: Path) -> Path:
    if os.geteuid() != 0:
        raise Refused(
            "root_needed",
            "a Debian root file system can only be unpacked as root",
            hint="run it once as root; the image is kept",
        )
    root = folder / "root"
    _debian(root)
    _jupyterlab(root, folder / "wheels")
    base = folder / "base.tar"
    top = folder / "top.tar"
    _write_layer(root, base, lambda name: not name.startswith((*_LEFT_OUT, ENVIRONMENT)))
    _write_layer(root, top, lambda name: name.startswith((ENVIRONMENT, "srv/jupyter")))
    layout = folder / "layout"
    images.write_layout_of_files([base, top], _settings(), layout, REF)
    return layout


def _debian(root: Path) -> None:
    debootstrap = find_program("debootstrap", "debootstrap")
    include = ",".join(_DEBIAN_PACKAGES)
    _run([debootstrap, "--variant=minbase", f"--include={include}", SUITE, str(root), *_mirror()])


def _mirror() -> list[str]:
    """The mirror that apt is set to use for this suite; debootstrap's own where it has none."""
    asked = ["apt-get", "indextargets", "--format", "$(REPO_URI) $(CODENAME)"]
    try:
        listed = subprocess.run(asked, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return []
    rows = [line.split() for line in listed.stdout.splitlines()]
    return next(([row[0]] for row in rows if len(row) == 2 and row[1] == SUITE), [])


def _jupyterlab(root: Path, wheels: Path) -> None:
    """Fetched from outside, with what reaches the index there, and installed inside, offline."""
    machine = os.uname().machine
    platforms = [word for name in _PLATFORMS for word in ("--platform", f"{name}_{machine}")]
    _run(
        [sys.executable, "-m", "pip", "download", "--quiet", "--only-binary=:all:",
         "--python-version", PYTHON, "--implementation", "cp", *platforms, "--no-deps",
         "--require-hashes", "--requirement", str(LOCK), "--dest", str(wheels)]
    )  # fmt: skip
    inside = root / "wheels"
    shutil.copytree(wheels, inside)
    shutil.copy(LOCK, inside / "lock")
    python = f"/{ENVIRONMENT}/bin/python3"
    chroot = [find_program("chroot", "coreutils"), str(root)]
    _run([*chroot, "python3", "-m", "venv", f"/{ENVIRONMENT}"])
    _run(
        [*chroot, python, "-m", "pip", "install", "--quiet", "--no-index", "--no-compile",
         "--find-links", "/wheels", "--no-deps", "--require-hashes",
         "--requirement", "/wheels/lock"]
    )  # fmt: skip
    # By content: by time stamp it would be compiled anew at each start, all stamps being zero.
    compiled = ["compileall", "-q", "--invalidation-mode", "unchecked-hash"]
    places = ["/usr/lib/python3", f"/usr/lib/python{PYTHON.rpartition('.')[0]}"]
    # Some packages carry files for other Pythons: those stay as they are.
    _run([*chroot, python, "-m", *compiled, *places, f"/{ENVIRONMENT}/lib"], may_fail=True)
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
            f"PATH=/{ENVIRONMENT}/bin:/usr/local/bin:/usr/bin:/bin",
            f"HOME={HOME}",
            "LANG=C.UTF-8",
        ],
        "ExposedPorts": {f"{PORT}/tcp": {}},
        "User": f"{USER_ID}:{USER_ID}",
        "Volumes": {WORK: {}},
        "WorkingDir": WORK,
    }


def _write_layer(root: Path, place: Path, wanted: Callable[[str], bool]) -> None:
    """The files under `root` by name, without times and accounts' names."""
    with tarfile.open(place, "w", format=tarfile.PAX_FORMAT) as archive:
        for name in _names(root):
            if wanted(name):
                archive.add(root / name, name, recursive=False, filter=_plain)


def _names(root: Path) -> Iterator[str]:
    for folder, folders, files in os.walk(root):
        folders.sort()
        inside = os.path.relpath(folder, root)
        prefix = "" if inside == "." else f"{inside}/"
        yield from (prefix + name for name in sorted([*folders, *files]))


def _plain(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
    if entry.ischr() or entry.isblk() or entry.isfifo():
        return None
    entry.mtime, entry.uname, entry.gname = 0, "", ""
    return entry


def _recipe() -> str:
    parts = [SUITE, *_DEBIAN_PACKAGES, os.uname().machine, json.dumps(_settings())]
    content = LOCK.read_bytes() + Path(__file__).read_bytes() + "\n".join(parts).encode()
    return hashlib.sha256(content).hexdigest()[:16]


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One builder at a time: another one waits, and then finds the image there."""
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _run(argv: Sequence[str], may_fail: bool = False) -> None:
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8"}
    done = subprocess.run(argv, capture_output=True, text=True, check=False, env=env)
    if done.returncode and not may_fail:
        said = (done.stderr or done.stdout)[-LOG_TAIL:].strip()
        name = Path(argv[0]).name
        raise Refused("image_not_built", f"{name} ended with {done.returncode}: {said}")
