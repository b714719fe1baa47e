"""A Debian root file system with Python: the layer that images of ours stand on, made once.

Rules:
- Debian comes through debootstrap, from the mirror that this machine's apt uses.
- It holds no package lists, caches or logs, and Python's own library is compiled.
- What is kept is built beside its place in the cache and renamed: half of it is never used. Its
  name there is the hash of all that it is made from, so a new recipe makes a new one.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import subprocess
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
"""The suite's own."""
REF = "debian"
PATH = "/usr/local/bin:/usr/bin:/bin"
LOG_TAIL = 2_000
_PACKAGES = ("python3", "python3-venv", "ca-certificates")
_LEFT_OUT = ("dev/", "proc/", "sys/", "tmp/", "run/", "var/log/", "var/cache/",
             "var/lib/apt/lists/", "usr/share/doc/", "usr/share/man/", "usr/share/locale/",
             "usr/share/info/")  # fmt: skip


def cache_folder() -> Path:
    """Where images are kept between runs."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "gpuaas" / "images"


def ensure_base(cache: Path | None = None) -> Path:
    """The OCI image layout with the root file system alone as `REF`, built when it is not there:
    about 40 s.

    Refused where it can't be built: debootstrap wants root, and a mirror to reach.
    """
    recipe = "\n".join([SUITE, *_PACKAGES, os.uname().machine]).encode()
    return kept("debian", Path(__file__).read_bytes() + recipe, _build, cache)


def kept(
    name: str, recipe: bytes, build: Callable[[Path], Path], cache: Path | None = None
) -> Path:
    """The image layout that `build` makes in a folder it is given, from the cache if it is there.

    One builder of that name at a time: another one waits, and then finds it.
    """
    folder = cache or cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    place = folder / f"{name}-{hashlib.sha256(recipe).hexdigest()[:16]}"
    with _alone(folder / f".{name}.lock"):
        if not (place / "index.json").is_file():
            with tempfile.TemporaryDirectory(dir=folder, prefix=".building-") as draft:
                build(Path(draft)).rename(place)
    return place


def unpack(root: Path, base: Path) -> None:
    """Writes the root file system of `ensure_base` to the folder `root`, to install more in it."""
    root.mkdir()
    (layer,) = images.layers_of(base, REF)
    tar = find_program("tar", "tar")
    run([tar, "--extract", "--file", str(layer), "--directory", str(root), "--numeric-owner"])


def write_layer(root: Path, place: Path, wanted: Callable[[str], bool]) -> None:
    """The files under `root` by name, without times and accounts' names."""
    with tarfile.open(place, "w", format=tarfile.PAX_FORMAT) as archive:
        for name in _names(root):
            if wanted(name):
                archive.add(root / name, name, recursive=False, filter=_plain)


def run_in(root: Path, *argv: str, may_fail: bool = False) -> None:
    """Runs a program inside of it."""
    run([find_program("chroot", "coreutils"), str(root), *argv], may_fail)


def run(argv: Sequence[str], may_fail: bool = False) -> None:
    """Refused with the end of what the program said when it fails."""
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8"}
    done = subprocess.run(argv, capture_output=True, text=True, check=False, env=env)
    if done.returncode and not may_fail:
        said = (done.stderr or done.stdout)[-LOG_TAIL:].strip()
        name = Path(argv[0]).name
        raise Refused("image_not_built", f"{name} ended with {done.returncode}: {said}")


def compiled(root: Path, *places: str) -> None:
    """Compiles what Python finds there.

    By content: by time stamp it would be compiled anew at each start, all stamps being zero.
    """
    # Some packages carry files for other Pythons: those stay as they are.
    how = ["compileall", "-q", "--invalidation-mode", "unchecked-hash"]
    run_in(root, "python3", "-m", *how, *places, may_fail=True)


def _build(folder: Path) -> Path:
    if os.geteuid() != 0:
        raise Refused(
            "root_needed",
            "a Debian root file system can only be unpacked as root",
            hint="run it once as root; the image is kept",
        )
    root, layer, layout = folder / "root", folder / "layer.tar", folder / "layout"
    debootstrap = find_program("debootstrap", "debootstrap")
    include = f"--include={','.join(_PACKAGES)}"
    run([debootstrap, "--variant=minbase", include, SUITE, str(root), *_mirror()])
    compiled(root, "/usr/lib/python3", f"/usr/lib/python{PYTHON.rpartition('.')[0]}")
    write_layer(root, layer, lambda name: not name.startswith(_LEFT_OUT))
    images.write_layout_of_files([layer], {"Env": [f"PATH={PATH}"]}, layout, REF)
    return layout


def _mirror() -> list[str]:
    """The mirror that apt is set to use for this suite; debootstrap's own where it has none."""
    asked = ["apt-get", "indextargets", "--format", "$(REPO_URI) $(CODENAME)"]
    try:
        listed = subprocess.run(asked, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return []
    rows = [line.split() for line in listed.stdout.splitlines()]
    return next(([row[0]] for row in rows if len(row) == 2 and row[1] == SUITE), [])


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


@contextmanager
def _alone(place: Path) -> Iterator[None]:
    with place.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
