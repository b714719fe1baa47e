"""`gpuaas token`: a bearer token, for whoever holds a private key."""

from __future__ import annotations

import os
from pathlib import Path

import click

from reconciler.cli.common import EXIT_OK, err, load_settings
from reconciler.core.authority.accounts import audience as audience_of
from reconciler.errors import GpuaasError, Refused
from reconciler.ports import Secret
from reconciler.settings import Settings
from reconciler.use_cases.assertions import assertion
from reconciler.use_cases.authority_questions import keys_of
from reconciler.wiring.authority import LocalTrust, now_ms
from reconciler.wiring.keys import public_forms, request_token, write_private

_KEY_BYTES_MAX = 64 * 1024


@click.command(epilog="Exit codes: 0 the token is written, 1 refused or an error.")
@click.option("--account", metavar="TENANT/PROJECT/NAME", help="For this service account.")
@click.option("--identity", metavar="NAME", help="For this person.")
@click.option(
    "--key",
    required=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Its private key, PEM or OpenSSH, without a passphrase. It never leaves this host.",
)
@click.option(
    "--key-id", help="What its manifest calls the key.  [default: as the manifest at --repo does]"
)
@click.option(
    "--repo",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    default=Path(),
    help="A checkout of the state repo, to look --key-id up in.  [default: the current folder]",
)
@click.option("--server", required=True, metavar="URL", help="The control plane's address.")
@click.option(
    "--environment", "-e", help="The Environment it works on, for which alone the token is good."
)
@click.option(
    "--scope",
    multiple=True,
    metavar="PERMISSION",
    help="Good for this permission only; may be given several times.  [default: all it may]",
)
@click.option(
    "--output",
    type=click.Path(dir_okay=False, allow_dash=True, path_type=Path),
    help="File to write it to, for its owner alone; - prints it.  [default: gpuaas/token below "
    "$XDG_RUNTIME_DIR or ~/.cache]",
)
def token(
    account: str | None,
    identity: str | None,
    key: Path,
    key_id: str | None,
    repo: Path,
    server: str,
    environment: str | None,
    scope: tuple[str, ...],
    output: Path | None,
) -> int:
    """Get a bearer token: prove with a private key who you are, and get what shows it for a while.

    A token says who somebody is; what that one may do is asked anew each time it is shown. It lasts
    minutes, so ask again rather than keep it. It is written to a file, and printed only when asked.

    \b
    Examples:
      gpuaas token --account acme/lab/ci --key ci.pem --key-id ci-1 --server https://gpuaas.example
      gpuaas token --identity ada --key ~/.ssh/id_ed25519 --server http://127.0.0.1:8470
      gpuaas token --account acme/lab/ci --key ci.pem --key-id ci-1 --server URL --output -
    """
    if (account is None) == (identity is None):
        raise click.UsageError("give one of --account and --identity")
    settings = load_settings(environment=environment)
    subject = account if account is not None else f"identity:{identity}"
    private = _private(key)
    used = key_id or _key_id(subject, private, repo, settings)
    asserted = assertion(private, subject, used, audience_of(settings.environment), now_ms())
    found = request_token(server, Secret(asserted), scope, settings.fetch_timeout_s)
    if output == Path("-"):
        click.echo(found.value.reveal())
        return EXIT_OK
    place = output or default_token_place()
    write_private(place, found.value)
    told = f"wrote {place}: a token of {subject}, good for {found.lasts_s} s"
    err().print(told, markup=False)
    return EXIT_OK


def _private(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_KEY_BYTES_MAX)
    except OSError as error:
        raise Refused("key_unreadable", f"{error.strerror}", where=str(path)) from None


def _key_id(subject: str, private: bytes, repo: Path, settings: Settings) -> str:
    """The id under which its manifest in the checkout has the key."""
    try:
        here = LocalTrust(repo, settings)
        known = keys_of(subject, here.at(here.resolve("HEAD")))
    except GpuaasError:
        known = {}
    forms = public_forms(private)
    for id_, public in known.items():
        if forms & public:
            return id_
    message = f"no manifest here has this key for {subject}"
    hint = "pass --key-id, or --repo with a checkout of the state repo"
    raise Refused("key_id_unknown", message, hint=hint)


def default_token_place() -> Path:
    """Where a token is written to, and looked for."""
    base = os.environ.get("XDG_RUNTIME_DIR")
    return (Path(base) if base else Path.home() / ".cache") / "gpuaas" / "token"
