"""`gpuaas completion`: what a shell needs to complete commands, options and their values."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from reconciler.cli.common import EXIT_OK

SHELLS = ("bash", "zsh", "fish")
_PROGRAM = "gpuaas"
_VARIABLE = "_GPUAAS_COMPLETE"


@click.command(epilog="Exit codes: 0 as asked, 1 an error.")
@click.argument("shell", type=click.Choice(SHELLS))
def completion(shell: str) -> int:
    """Print the completion script for SHELL.

    It asks gpuaas itself, so that it stays right after an update.

    \b
    Examples:
      gpuaas completion bash > ~/.local/share/bash-completion/completions/gpuaas
      gpuaas completion zsh > "${fpath[1]}/_gpuaas"
      gpuaas completion fish > ~/.config/fish/completions/gpuaas.fish
      source <(gpuaas completion bash)    # this shell only
    """
    found = get_completion_class(shell)
    root = click.get_current_context().find_root().command
    if found is None:
        raise click.BadParameter(f"no completion for {shell}")
    click.echo(found(root, {}, _PROGRAM, _VARIABLE).source())
    return EXIT_OK
