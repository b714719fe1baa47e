"""`gpuaas`: the one place that turns errors into exit codes."""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.metadata import version

import click

from reconciler.cli.common import EXIT_ERROR, err
from reconciler.core.names import nearest
from reconciler.errors import GpuaasError
from reconciler.logs import configure_logging

# Each command is imported when it is asked for, so that `validate` starts without the server.
COMMANDS = {
    "apply": "Converge now, and wait for it.",
    "demo": "Launch, upgrade, roll back and remove an app on this machine.",
    "events": "Show what happened, oldest first.",
    "node": "Let hosts join the fleet.",
    "plan": "Show what would change.",
    "run": "Run the control plane.",
    "status": "Show instances, nodes and what the last pass found.",
    "validate": "Check a state repo.",
    "webhook": "Show the secret that a forge signs its webhooks with.",
}


class Commands(click.Group):
    """Lists commands without importing them."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            ctx.fail(_unknown(cmd_name))
        found: click.Command = getattr(import_module(f"reconciler.cli.{cmd_name}"), cmd_name)
        return found

    def format_commands(
        self,
        ctx: click.Context,  # noqa: ARG002
        formatter: click.HelpFormatter,
    ) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(sorted(COMMANDS.items()))


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Exit codes: 0 as asked, 1 an error, 2 differences or not there yet.",
)
@click.version_option(version("gpuaas"), prog_name="gpuaas")
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    help="What is logged to standard error.  [default: warning; info for run]",
)
@click.pass_context
def gpuaas(context: click.Context, log_level: str | None) -> None:
    """A GitOps control plane for GPU apps.

    Describe apps, nodes and instances as YAML in a Git repository; gpuaas makes it so.

    \b
    Examples:
      gpuaas validate .
      gpuaas plan --repo . --environment dev
      gpuaas run --repo ssh://git@forge/state.git --environment prod
      gpuaas status --wait
    """
    calm = "info" if context.invoked_subcommand == "run" else "warning"
    configure_logging(log_level or calm)


def _unknown(name: str) -> str:
    near = nearest(name, COMMANDS)
    return f"no such command {name!r}" + (f", did you mean {near!r}?" if near else "")


def main() -> None:
    """Entry point. Every known error is one line on standard error and exit code 1."""
    try:
        code = gpuaas.main(standalone_mode=False)
    except click.exceptions.Abort:
        err().print("interrupted")
        code = EXIT_ERROR
    except click.ClickException as error:
        error.show()
        code = EXIT_ERROR
    except GpuaasError as error:
        err().print("error:", str(error), markup=False)
        code = EXIT_ERROR
    except BrokenPipeError:
        code = EXIT_ERROR
    sys.exit(code if isinstance(code, int) else 0)
