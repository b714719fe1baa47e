"""`gpuaas`: the one place that turns errors into exit codes."""

from __future__ import annotations

import gc
import os
import sys
from importlib import import_module
from keyword import iskeyword
from typing import NoReturn

import click
from click.shell_completion import CompletionItem

from reconciler.cli.common import EXIT_ERROR, EXIT_OK, err
from reconciler.cli.log_on_demand import log_on_demand
from reconciler.collector import without_collector
from reconciler.core.names import nearest
from reconciler.errors import GpuaasError

# Each command is imported when it is asked for, so that `validate` starts without the server.
COMMANDS = {
    "access": "Show how to reach an instance, and hand over its secrets.",
    "apply": "Converge now, or carry out a saved plan, and wait for it.",
    "artifact": "Register artifacts by digest, and see which there are.",
    "audit": "Show who did what, check that it is whole, export it.",
    "blob": "Move large files to and from the artifact store, resumable.",
    "can": "Say whether somebody may make a change, and who may if not.",
    "completion": "Print the completion script for a shell.",
    "demo": "Launch, upgrade, roll back and remove an app on this machine.",
    "diff": "Show what differs between two revisions of the state repo.",
    "events": "Show what happened, oldest first.",
    "explain": "Say why an object is as it is: field, desired, observed, cause, commit.",
    "history": "Show the commits that changed an object, and what came of them.",
    "import": "Write manifests for what is already there.",
    "init": "Make a state repo, its first commit signed by its first admin.",
    "intent": "Get a place to publish an artifact to, or a credential to pull one with.",
    "keys": "Show the keys that the control plane signs with.",
    "node": "Let hosts join the fleet, list them, shut one out, forget one.",
    "plan": "Show what would change.",
    "promote": "Write a commit that moves a version or an artifact on, on a branch.",
    "registry": "Tie a registry to this control plane: keys that sign its tokens, configuration.",
    "retire": "Write a commit that retires a version or an artifact, on a branch.",
    "release": "List the platform's own releases, and download their files.",
    "rollback": "Write a commit that takes an object back, on a branch.",
    "run": "Run the control plane.",
    "secret": "Keep the secrets that instances refer to: set, list, delete.",
    "service-account": "Let a machine act for a project: create, rotate keys, disable, list.",
    "sign": "Sign an artifact in a registry with the key in custody.",
    "snapshot": "Export what is observed, signed and redacted, to plan offline with.",
    "ssh-key": "Hand over a project's key for tunnels, or list what keys there are.",
    "status": "Show instances, nodes and what the last pass found.",
    "timeline": "Show an instance's life: what happened, how long it took, by which commit.",
    "topology": "Show the services of an instance or a version: roles, needs, endpoints, health.",
    "token": "Get a bearer token for the control plane.",
    "unwrap": "Get the secret that a hand-over token stands for, once.",
    "validate": "Check a state repo.",
    "vault": "Show and make what a Vault has to hold.",
    "webhook": "Show the secret that a forge signs its webhooks with.",
    "whoami": "Show who you are to a state repo, and what you may do there.",
}
LOG_MUCH = frozenset({"apply", "run", "unwrap"})
"""What runs a control plane logs as it goes, and so are alarms; the rest has a line for the log now
and then.
"""


class Commands(click.Group):
    """Lists commands without importing them."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            ctx.fail(_unknown(cmd_name))
        name = f"{cmd_name}_" if iskeyword(cmd_name) else cmd_name.replace("-", "_")
        with without_collector():
            module = import_module(f"reconciler.cli.{name}")
        found: click.Command = getattr(module, name)
        return found

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        found = [
            CompletionItem(name, help=text)
            for name, text in sorted(COMMANDS.items())
            if name.startswith(incomplete)
        ]
        return found + click.Command.shell_complete(self, ctx, incomplete)

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
@click.version_option(package_name="gpuaas", prog_name="gpuaas")
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
    level = log_level or ("info" if context.invoked_subcommand == "run" else "warning")
    if context.invoked_subcommand not in LOG_MUCH:
        log_on_demand(level)
        return
    from reconciler.logs import configure_logging  # noqa: PLC0415

    configure_logging(level)


def _unknown(name: str) -> str:
    near = nearest(name, COMMANDS)
    return f"no such command {name!r}" + (f", did you mean {near!r}?" if near else "")


def main() -> None:
    """Entry point. Every known error is one line on standard error and exit code 1."""
    # Nobody plugs into our models; to look for who might reads what every package says of itself.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    kept: list[object] = []
    try:
        code = gpuaas.main(standalone_mode=False, obj=kept)
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
    code = code if isinstance(code, int) else EXIT_OK
    if kept:
        _leave(code)
    # The process ends: to look for garbage in all that it holds would only take time.
    gc.freeze()
    sys.exit(code)


def _leave(code: int) -> NoReturn:
    """Ends the process as it is: to take apart what it holds takes a tenth of a large check."""
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except BrokenPipeError:
        code = EXIT_ERROR
    os._exit(code)
