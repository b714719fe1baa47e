"""`gpuaas registry`: what makes a registry let in who this control plane gave a token, and no one
else.
"""

from __future__ import annotations

from typing import Any, cast

import click

from reconciler.cli.common import EXIT_OK, cell, load_settings, out, settings_options
from reconciler.use_cases.registry import TrustForm, check_registry, trust_of
from reconciler.wiring.ports import open_ports

_EXIT_CODES = "Exit codes: 0 as asked, 1 an error."


@click.group(epilog=_EXIT_CODES)
def registry() -> None:
    """Tie an OCI registry to this control plane, which gives out the tokens that it asks for.

    \b
    Examples:
      gpuaas registry trust > /etc/docker/registry/gpuaas-tokens.pem
      gpuaas registry trust --format config
      gpuaas registry check
    """


@registry.command(
    short_help="Print what the registry has to be configured with.",
    epilog=_EXIT_CODES,
)
@click.option(
    "--format",
    "form",
    type=click.Choice(["pem", "jwks", "config"]),
    default="pem",
    show_default=True,
    help="Certificates for rootcertbundle, a key set for distribution 3, or the configuration.",
)
@settings_options
def trust(form: str, **given: Any) -> int:
    """Print what the registry's configuration has to hold: the keys that sign tokens, or the part
    that names them.

    All versions of the key that are not retired are in it. The oldest signs: to rotate, raise
    `signing_keys.registry_tokens.version` of the Environment, give the registry this anew and
    start it again, then set `min_version`.

    \b
    Examples:
      gpuaas registry trust > /etc/docker/registry/gpuaas-tokens.pem
      gpuaas registry trust --format jwks
      gpuaas registry trust --format config >> /etc/docker/registry/config.yml
    """
    settings = load_settings(**given)
    with open_ports(settings) as ports:
        text = trust_of(ports.secrets, settings, cast(TrustForm, form))
    click.echo(text, nl=False)
    return EXIT_OK


@registry.command(
    short_help="Ask the registry whether it takes our tokens alone.",
    epilog="Exit codes: 0 it does, 1 it does not, or an error.",
)
@settings_options
def check(**given: Any) -> int:
    """Ask the Environment's registry whether it lets in a token of this control plane, and nobody
    without one.

    \b
    Examples:
      gpuaas registry check
    """
    settings = load_settings(**given)
    with open_ports(settings, make=False) as ports:
        found = check_registry(ports, settings)
    says = "lets in a token of this control plane, and nobody without one"
    out().print(cell(f"{found.endpoint} {says}"))
    return EXIT_OK
