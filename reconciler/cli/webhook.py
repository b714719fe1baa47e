"""`gpuaas webhook`: what a forge needs to tell us about pushes."""

from __future__ import annotations

from typing import Any

import click

from reconciler.cli.common import EXIT_OK, err, load_settings, settings_options
from reconciler.ports import WEBHOOK_SECRET_PATH
from reconciler.wiring.ports import first_start, open_ports


@click.command(epilog="Exit codes: 0 as asked, 1 an error.")
@settings_options
def webhook(**given: Any) -> int:
    """Print the secret with which a forge signs its webhooks, to be pasted into its settings.

    GitHub and Gitea sign with it, GitLab sends it as its token. A webhook is only a reason to
    look: what is reconciled always comes from Git.

    \b
    Examples:
      gpuaas webhook
    """
    settings = load_settings(**given)
    with open_ports(settings) as ports:
        first_start(ports)
        secret = ports.secrets.read(WEBHOOK_SECRET_PATH)
    assert secret is not None
    err().print(f"URL: http://{settings.listen}/v1/hooks/git, content type JSON; the secret:")
    click.echo(secret.reveal())
    return EXIT_OK
