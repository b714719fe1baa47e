"""`gpuaas demo`: the main job on this machine, in a minute."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from reconciler.cli.common import EXIT_OK, out
from reconciler.cli.status import print_status
from reconciler.devkit.demo import kept_environment, take_down, tell


def default_root() -> Path:
    base = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    return Path(base) / "gpuaas-demo"


class Teller:
    """Prints the story."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def title(self, text: str) -> None:
        self._console.print(f"\n[bold cyan]== {text}[/]")

    def command(self, text: str) -> None:
        self._console.print(f"$ {text}", style="bold", markup=False)

    def text(self, text: str) -> None:
        for line in text.splitlines():
            self._console.print(line, markup=False)

    def status(self, document: Mapping[str, Any]) -> None:
        print_status(self._console, document)

    def events(self, lines: list[str]) -> None:
        for line in lines:
            self._console.print(line, style="dim", markup=False)


def _down(root: Path | None) -> list[str]:
    """The command that ends a kept demo, as it can be typed here."""
    chosen = [] if root is None else ["--dir", str(root)]
    return [sys.argv[0], "demo", "--down", *chosen]


@click.command(epilog="Exit codes: 0 every step worked, 1 an error.")
@click.option("--keep", is_flag=True, help="Leave it running after the rollback.")
@click.option("--down", is_flag=True, help="Take down a demo that was kept.")
@click.option(
    "--engine",
    type=click.Choice(["docker", "process"]),
    help="Default: docker where it can be had, else process (bare_metal).",
)
@click.option(
    "--dir", "root", type=click.Path(path_type=Path), help="Where it plays; removed at the end."
)
def demo(keep: bool, down: bool, engine: str | None, root: Path | None) -> int:
    """Launch, upgrade, roll back and remove an app on this machine, from Git commits.

    Starts a private dockerd and registry, a control plane and one agent, and takes everything
    down again. Pulls nothing from anywhere.

    \b
    Examples:
      gpuaas demo
      gpuaas demo --keep
      gpuaas demo --down
    """
    folder = (root or default_root()).absolute()
    console = out()
    if down:
        take_down(folder)
        console.print("the demo is down")
        return EXIT_OK
    tell(folder, engine, keep, Teller(console))
    if keep:
        console.print(f"\nIt goes on running, in {folder}. To look around:")
        for name, value in kept_environment(folder).items():
            console.print(f"  export {name}={shlex.quote(value)}", markup=False)
        console.print(f"  {shlex.join([sys.argv[0], 'status'])}", markup=False)
        console.print(f"Take it down: {shlex.join(_down(root))}", markup=False)
    else:
        console.print("\nEverything is taken down.", style="green")
    return EXIT_OK
