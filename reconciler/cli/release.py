"""`gpuaas release`: the platform's own releases: which there are, what is in one, and its files."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import click

from reconciler.cli.common import (
    EXIT_CHANGES,
    EXIT_OK,
    cell,
    err,
    format_option,
    load_settings,
    out,
    print_json,
    settings_options,
)
from reconciler.core.printable import printable
from reconciler.errors import Refused, Transient
from reconciler.use_cases.releases import ANY, COMPONENTS, FILE_NAME
from reconciler.views.releases import platforms_of, release_rows, size_text
from reconciler.wiring.releases import Catalog, is_there, open_catalog, this_platform
from reconciler.wiring.snapshots import bearer_token

F = TypeVar("F", bound=Callable[..., Any])
_OPTIONS = (
    click.option(
        "--server", metavar="URL", help="The control plane's address.  [default: the one here]"
    ),
    click.option(
        "--token-file",
        type=click.Path(path_type=Path, dir_okay=False),
        help="File with the bearer token for --server; else GPUAAS_TOKEN holds it, if one is "
        "needed.",
    ),
)


def _from_where(command: F) -> F:
    command = format_option(settings_options(command))
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


@click.group(epilog="Exit codes: 0 as asked, 1 an error, 2 a download that was cut off.")
def release() -> None:
    """List the releases of the CLI, the SDK and the agent, and download their files.

    What is published is decided in the state repo. A release that was withdrawn is given to nobody.

    \b
    Examples:
      gpuaas release list --server https://gpuaas.example --token-file token
      gpuaas release download 0.2.0 cli --server https://gpuaas.example --token-file token
    """


@release.command(name="list", epilog="Exit codes: 0 as asked, 1 an error.")
@click.option("--channel", default="", help="Only of this channel.")
@_from_where
def list_(
    channel: str, server: str | None, token_file: Path | None, output: str, **given: Any
) -> int:
    """List what is published, newest first.

    \b
    Examples:
      gpuaas release list --server https://gpuaas.example --token-file token
      gpuaas release list --channel stable --format json
    """
    with _catalog(server, token_file, given) as catalog:
        found = catalog.releases(channel)
    if output == "json":
        print_json(found)
        return EXIT_OK
    if not found["releases"]:
        of = f" in channel {channel}" if channel else ""
        err().print(f"nothing is published{of}", markup=False)
    for one in found["releases"]:
        released = f", {one['released_at']}" if one["released_at"] else ""
        builds = "; ".join(
            f"{component} for {', '.join(names)}"
            for component, names in sorted(platforms_of(one).items())
        )
        out().print(cell(f"{one['version']}  {one['channel']}{released}  {builds}"))
    return EXIT_OK


@release.command(epilog="Exit codes: 0 as asked, 1 there is none, it was withdrawn, or an error.")
@click.argument("version")
@_from_where
def show(
    version: str, server: str | None, token_file: Path | None, output: str, **given: Any
) -> int:
    """Show what a release is made of: each file with its digest.

    \b
    Examples:
      gpuaas release show 0.2.0 --server https://gpuaas.example
    """
    with _catalog(server, token_file, given) as catalog:
        found = catalog.release(version)
    if output == "json":
        print_json(found)
        return EXIT_OK
    released = f", released {found['released_at']}" if found["released_at"] else ""
    out().print(cell(f"{found['version']}, channel {found['channel']}{released}", "bold"))
    if found["notes"]:
        out().print(cell(found["notes"].strip()))
    for component, platform, size, digest, name in release_rows(found):
        out().print(cell(f"  {component:<6} {platform:<14} {size:>10}  {digest}  {name}"))
    return EXIT_OK


@release.command(
    epilog="Exit codes: 0 it is there and has its digest, 2 it was cut off and goes on when asked "
    "again, 1 refused or an error."
)
@click.argument("version")
@click.argument("component", type=click.Choice(COMPONENTS))
@click.option("--platform", metavar="OS/ARCH", help="For this system.  [default: this one]")
@click.option(
    "--out",
    "place",
    type=click.Path(path_type=Path),
    help="File, or folder that is there, to write to.  [default: the file's own name, here]",
)
@click.option(
    "--digest", help="Refuse any other: the one you know, from a checkout of the state repo, say."
)
@_from_where
def download(
    version: str,
    component: str,
    platform: str | None,
    place: Path | None,
    digest: str | None,
    server: str | None,
    token_file: Path | None,
    output: str,
    **given: Any,
) -> int:
    """Download a file of a release, and go on where it was cut off.

    It appears under its name once it hashed to the digest of its release; until then what came is
    in a .part file beside it.

    \b
    Examples:
      gpuaas release download 0.2.0 cli --server https://gpuaas.example --token-file token
      gpuaas release download 0.2.0 agent --platform linux/arm64 --out /srv/builds --format json
    """
    with _catalog(server, token_file, given) as catalog:
        build = _build(catalog.release(version), component, platform or this_platform())
        if digest is not None and build["digest"] != digest:
            message = f"release {version} has {build['digest']}, not the digest you gave"
            raise Refused("digest_mismatch", message, hint="ask whoever published it")
        file = _place(place, build)
        try:
            if not is_there(file, build["digest"]):
                catalog.fetch(version, build, file, _progress())
        except Transient as error:
            err().print("error:", str(error), markup=False)
            return EXIT_CHANGES
    told = {name: build[name] for name in ("component", "platform", "digest", "size_bytes")}
    if output == "json":
        print_json({"version": version, **told, "file": str(file)})
    else:
        size = size_text(build["size_bytes"])
        err().print(f"wrote {printable(str(file))}: {size}, {build['digest']}", markup=False)
    return EXIT_OK


@contextmanager
def _catalog(
    server: str | None, token_file: Path | None, given: Mapping[str, Any]
) -> Iterator[Catalog]:
    if token_file is not None and server is None:
        raise click.UsageError("--token-file is for --server")
    token = bearer_token(token_file, os.environ) if server is not None else None
    with open_catalog(load_settings(**given), server, token) as catalog:
        yield catalog


def _build(found: Mapping[str, Any], component: str, platform: str) -> Mapping[str, Any]:
    """That of the system, else the one that runs everywhere."""
    builds: dict[str, Mapping[str, Any]] = {
        one["platform"]: one for one in found["builds"] if one["component"] == component
    }
    build = builds.get(platform) or builds.get(ANY)
    if build is None:
        there = ", ".join(sorted(builds)) or "none at all"
        message = f"release {found['version']} has no {component} for {platform}"
        raise Refused("no_such_build", message, hint=f"there are: {there}")
    if build["kind"] == "oci":
        where = build["reference"]
        message = f"{where} is an image: it comes from the registry"
        hint = f"gpuaas intent pull {where} gives a credential for it"
        raise Refused("release_in_registry", message, hint=hint)
    return build


def _place(place: Path | None, build: Mapping[str, Any]) -> Path:
    if place is not None and not place.is_dir():
        return place
    name = str(build["file_name"])
    if not FILE_NAME.fullmatch(name):
        raise Refused("bad_server", "it named a file that none could be called", hint="pass --out")
    return (place or Path()) / name


def _progress() -> Callable[[int, int], None]:
    """A line that is written over on a terminal; nothing anywhere else."""
    console = err()
    if not console.is_terminal:
        return lambda _done, _total: None
    last = [-1]

    def told(done: int, total: int) -> None:
        percent = 100 * done // total if total else 100
        if percent != last[0]:
            last[0] = percent
            end = "\n" if done >= total else "\r"
            console.print(f"{percent:3d} %  {size_text(done)} of {size_text(total)}", end=end)

    return told
