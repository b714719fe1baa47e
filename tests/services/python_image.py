"""Small images with a shell, with and without the python3 and pip that run these tests.

Made of the very interpreter at hand: its standard library, the libraries it is linked to, and pip.
"""

from __future__ import annotations

import io
import re
import subprocess
import sys
import sysconfig
import tarfile
from collections.abc import Iterable
from pathlib import Path

import pip

from node_agent.wire import Image
from reconciler.devkit import images

USER = "65534:65534"
_LEFT_OUT = {"__pycache__", "test", "idlelib", "site-packages", "dist-packages", "ensurepip",
             "tkinter", "turtledemo", "lib2to3"}  # fmt: skip


def push(folder: Path, registry: str, name: str, *, python: bool, **settings: object) -> Image:
    """Builds in `folder` and uploads as `name`. It runs as nobody in particular."""
    layer = folder / "layer.tar"
    with tarfile.open(layer, "w") as archive:
        _folder(archive, "tmp", 0o1777)
        archive.add(images.BUSYBOX, "bin/sh")
        archive.add(images.BUSYBOX, "bin/busybox")
        if python:
            _add_python(archive)
    config = {
        "User": USER,
        "Entrypoint": ["/bin/sh", "-c", "echo its own command; sleep 600"],
        **settings,
    }
    images.write_layout_of_files([layer], config, folder / "layout", name)
    repository = f"gpuaas/apps/tests/{name}"
    digest = images.push_layout(folder / "layout", name, registry, repository, "1")
    return Image(registry=registry, plain_http=True, repository=repository, digest=str(digest))


def _add_python(archive: tarfile.TarFile) -> None:
    program = Path(sys.executable).resolve()
    library = Path(sysconfig.get_paths()["stdlib"])
    asked = "import site; print(site.getsitepackages()[0])"
    packages = subprocess.check_output([program, "-I", "-c", asked], text=True).strip()
    linked = _linked([program, *library.glob("lib-dynload/*.so")])
    for path in sorted({program, *linked}):
        archive.add(path.resolve(), str(path).lstrip("/"))
    archive.add(library, str(library).lstrip("/"), filter=_kept)
    archive.add(Path(pip.__file__).parent, f"{packages}/pip".lstrip("/"), filter=_kept)
    entry = tarfile.TarInfo("usr/local/bin/python3")
    entry.type, entry.linkname = tarfile.SYMTYPE, str(program)
    archive.addfile(entry)


def _linked(programs: Iterable[Path]) -> set[Path]:
    told = subprocess.run(
        ["ldd", *map(str, programs)], capture_output=True, text=True, check=False
    ).stdout
    return {Path(path) for path in re.findall(r"^\s+(?:\S+ => )?(/\S+) \(0x", told, re.MULTILINE)}


def _kept(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
    return None if _LEFT_OUT & set(Path(entry.name).parts[-1:]) else entry


def _folder(archive: tarfile.TarFile, name: str, mode: int) -> None:
    entry = tarfile.TarInfo(name)
    entry.type, entry.mode = tarfile.DIRTYPE, mode
    archive.addfile(entry, io.BytesIO())
