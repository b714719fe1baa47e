"""`gpuaas intent`: ways in and out for artifacts, each with a credential of its own."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click

from reconciler.cli.common import (
    EXIT_CHANGES,
    EXIT_OK,
    cell,
    err,
    format_option,
    load_settings,
    local_actor,
    out,
    print_json,
    settings_options,
    write_file,
)
from reconciler.cli.token import default_token_place
from reconciler.core.times import time_text
from reconciler.core.transfers import PublishWish, PullWish
from reconciler.ports import Secret

if TYPE_CHECKING:
    from reconciler.core.transfers import ContentKind
    from reconciler.wiring.intents import AnyIntents

F = TypeVar("F", bound=Callable[..., Any])
Document = Mapping[str, Any]

_OPTIONS = (
    click.option(
        "--server",
        metavar="URL",
        help="The control plane's address.  [default: the one of this host]",
    ),
    click.option(
        "--token-file",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        help="File with the bearer token for --server.  [default: GPUAAS_TOKEN, or where gpuaas "
        "token writes it]",
    ),
)
_ttl_option = click.option(
    "--ttl-s", type=int, help="How long it is open.  [default: transfer_ttl_s]"
)
_out_option = click.option(
    "--hand-over",
    "place",
    type=click.Path(dir_okay=False, path_type=Path),
    help="File for the hand-over token of the credential.  [default: intent-ID.token]",
)


def _where(command: F) -> F:
    """Which control plane, and how output looks."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return settings_options(format_option(command))


@click.group(epilog="Exit codes: 0 as asked, 1 an error, 2 completed and not good for its channel.")
def intent() -> None:
    """Get a place to publish an artifact to, or a credential to pull one with.

    An intent is open for a while. Its credential opens one place and nothing else, and is handed
    over wrapped, to be unwrapped once. No image passes through the control plane: oras, skopeo and
    docker talk to the registry.

    \b
    Examples:
      gpuaas intent publish acme/lab notebook 1.2.0 --server https://gpuaas.example
      gpuaas intent complete 4f… --digest sha256:9a… --server https://gpuaas.example
      gpuaas intent pull acme/lab gpuaas/apps/acme/lab/notebook@sha256:9a… --server URL
    """


@intent.command(epilog="Exit codes: 0 it is open, 1 an error.")
@click.argument("project", metavar="TENANT/PROJECT")
@click.argument("app")
@click.argument("version")
@click.option("--name", default="image", show_default=True, help="Name of the Artifact manifest.")
@click.option(
    "--kind",
    type=click.Choice(["oci", "blob"]),
    default="oci",
    show_default=True,
    help="Something for the registry, or a large file for the artifact store.",
)
@click.option("--tag", default="", help="A label beside the digest.  [default: the version]")
@click.option(
    "--channel", default="", help="What it has to be good for.  [default: the Environment's]"
)
@_ttl_option
@_out_option
@_where
def publish(
    project: str,
    app: str,
    version: str,
    name: str,
    kind: str,
    tag: str,
    channel: str,
    ttl_s: int | None,
    place: Path | None,
    server: str | None,
    token_file: Path | None,
    output: str,
    **given: Any,
) -> int:
    """Get a place to push one artifact of an app's version to.

    What to do then is printed, for oras, skopeo and docker. Nobody else can push there, and nobody
    pulls from there: once it is completed it is copied by digest.

    \b
    Examples:
      gpuaas intent publish acme/lab notebook 1.2.0 --server https://gpuaas.example
      gpuaas intent publish acme/lab notebook 1.2.0 --kind blob --name weights
    """
    content = cast("ContentKind", kind)
    wish = PublishWish(project, app, version, name, content, tag, channel, ttl_s)
    with _intents(server, token_file, given) as intents:
        found = intents.publish(wish)
    return _show_opened(found, place, output)


@intent.command(
    short_help="Get a credential to pull one ARTIFACT with.",
    epilog="Exit codes: 0 it is open, 1 an error.",
)
@click.argument("project", metavar="TENANT/PROJECT")
@click.argument("artifact")
@_ttl_option
@_out_option
@_where
def pull(
    project: str,
    artifact: str,
    ttl_s: int | None,
    place: Path | None,
    server: str | None,
    token_file: Path | None,
    output: str,
    **given: Any,
) -> int:
    """Get a credential to pull one ARTIFACT with, on behalf of a project that may see it.

    ARTIFACT is REPOSITORY@DIGEST, artifact_store://…@DIGEST, or the path of its manifest,
    TENANT/PROJECT/APP/VERSION/NAME.

    \b
    Examples:
      gpuaas intent pull acme/lab gpuaas/apps/acme/lab/notebook@sha256:9a… --server URL
      gpuaas intent pull acme/lab acme/models/llm/1.0.0/weights --server URL
    """
    with _intents(server, token_file, given) as intents:
        found = intents.pull(PullWish(project, artifact, ttl_s))
    return _show_opened(found, place, output)


@intent.command(
    short_help="Take what was pushed to where it belongs.",
    epilog="Exit codes: 0 done, 2 done and not good for its channel, 1 an error.",
)
@click.argument("intent_id", metavar="ID")
@click.option("--digest", required=True, help="What was pushed: sha256:…")
@click.option(
    "--out",
    "place",
    type=click.Path(dir_okay=False, path_type=Path),
    help="File to write the Artifact manifest to.",
)
@_where
def complete(
    intent_id: str,
    digest: str,
    place: Path | None,
    server: str | None,
    token_file: Path | None,
    output: str,
    **given: Any,
) -> int:
    """Take what was pushed to where it belongs, by digest, with its signatures.

    Prints the Artifact manifest that registers it. The credential opens nothing from then on. To do
    it again with the same digest is harmless; another digest needs another intent.

    \b
    Examples:
      gpuaas intent complete 4f… --digest sha256:9a… --server https://gpuaas.example
      gpuaas intent complete 4f… --digest sha256:9a… --server URL --out image.yaml
    """
    with _intents(server, token_file, given) as intents:
        found = intents.complete(intent_id, digest)
    manifest, verdict = found["manifest"], found["verdict"]
    if place is not None:
        write_file(place, manifest["content"].rstrip("\n").encode())
    if output == "json":
        print_json(found)
    else:
        err().print(f"completed: {found['repository']}@{found['digest']}", markup=False)
        if not verdict["good"]:
            err().print(f"  {_judged(found)}", markup=False, style="yellow")
        if place is None:
            err().print(f"commit it as {manifest['path']}:", markup=False)
            click.echo(manifest["content"], nl=False)
        else:
            err().print(f"wrote {place}: commit it as {manifest['path']}", markup=False)
    return EXIT_OK if verdict["good"] else EXIT_CHANGES


@intent.command(epilog="Exit codes: 0 as asked, 1 an error.")
@click.argument("intent_id", metavar="ID")
@_where
def show(
    intent_id: str, server: str | None, token_file: Path | None, output: str, **given: Any
) -> int:
    """Show one intent. Its credential is not shown again.

    \b
    Examples:
      gpuaas intent show 4f… --server https://gpuaas.example
    """
    with _intents(server, token_file, given) as intents:
        found = intents.show(intent_id)
    _show(found, output)
    return EXIT_OK


@intent.command("list", epilog="Exit codes: 0 as asked, 1 an error.")
@click.argument("project", default="", metavar="[TENANT/PROJECT]")
@_where
def list_(
    project: str, server: str | None, token_file: Path | None, output: str, **given: Any
) -> int:
    """List intents, newest first.

    \b
    Examples:
      gpuaas intent list acme/lab --server https://gpuaas.example
    """
    with _intents(server, token_file, given) as intents:
        found = intents.listed(project)
    if output == "json":
        print_json(found)
        return EXIT_OK
    rows = [_row(one) for one in found["intents"]]
    if not rows:
        out().print("There is no intent here.")
        return EXIT_OK
    _print_rows([("ID", "KIND", "STATE", "UNTIL", "ARTIFACT"), *rows])
    return EXIT_OK


@intent.command(epilog="Exit codes: 0 closed, 1 an error.")
@click.argument("intent_id", metavar="ID")
@_where
def close(
    intent_id: str, server: str | None, token_file: Path | None, output: str, **given: Any
) -> int:
    """End an intent: its credential opens nothing any more.

    A token of the registry that somebody got with it before lasts for some minutes at most.

    \b
    Examples:
      gpuaas intent close 4f… --server https://gpuaas.example
    """
    with _intents(server, token_file, given) as intents:
        found = intents.close(intent_id)
    _show(found, output)
    return EXIT_OK


def _intents(
    server: str | None, token_file: Path | None, given: Mapping[str, Any]
) -> AbstractContextManager[AnyIntents]:
    from reconciler.wiring.intents import intents_of  # noqa: PLC0415 - HTTP loads slowly
    from reconciler.wiring.snapshots import bearer_token  # noqa: PLC0415

    token: Secret | None = None
    if server is not None:
        token = bearer_token(token_file, os.environ)
        kept = default_token_place()
        if token is None and kept.is_file():
            token = bearer_token(kept, {})
    return intents_of(server, token, load_settings(**given), local_actor())


# --- what is shown -------------------------------------------------------------------------------


def _show_opened(found: Document, place: Path | None, output: str) -> int:
    """The hand-over token goes to a file, as the commands that are printed expect it."""
    from reconciler.wiring.keys import write_private  # noqa: PLC0415

    credential = found["credential"]
    if output == "json":
        print_json(found)
        return EXIT_OK
    if credential is not None:
        place = place or Path(f"intent-{found['id']}.token")
        write_private(place, Secret(credential["hand_over"]))
    for line in opened_lines(found, place):
        out().print(line, markup=False, soft_wrap=True)
    return EXIT_OK


def opened_lines(found: Document, place: Path | None) -> Sequence[str]:
    """What to do with an intent that was just opened, as lines for a shell."""
    from reconciler.views.transfers import VARIABLES, needs_lines  # noqa: PLC0415

    commands: dict[str, list[str]] = dict(found["commands"])
    first, last = commands.pop("unwrap", []), commands.pop("complete", [])
    if place is not None:
        named = shlex.quote(str(place))
        first = [line.replace(f"intent-{found['id']}.token", named) for line in first]
    lines = [f"# Intent {found['id']}, open until {time_text(found['expires_at_ms'])}."]
    lines += [f"# {line}" for line in needs_lines(found["signature"])] if found["signature"] else []
    if found["credential"] is None:
        lines.append("# The registry asks for no credential.")
    lines += first
    for client, own in commands.items():
        used = [f"{name}: {says}" for name, says in VARIABLES.items()
                if name != "DIGEST" and re.search(rf"\${name}\b", "\n".join(own))]  # fmt: skip
        if (found["kind"], client) == ("pull", "oras"):
            used = ["for what oras pushed; images are for skopeo and docker"]
        lines += ["", f"# With {client}" + (f" ({'; '.join(used)}):" if used else ":"), *own]
    return [*lines, *(["", "# Then:", *last] if last else [])]


def _show(found: Document, output: str) -> None:
    if output == "json":
        print_json(found)
        return
    _print_rows([("ID", "KIND", "STATE", "UNTIL", "ARTIFACT"), _row(found)])


def _row(one: Document) -> tuple[str, ...]:
    what = f"{one['repository']}@{one['digest']}" if one["digest"] else one["repository"]
    until = time_text(one["expires_at_ms"])
    return one["id"], f"{one['kind']} {one['content']}", one["state"], until, what


def _print_rows(rows: Sequence[tuple[str, ...]]) -> None:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
    for row in rows:
        start = "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=False))
        out().print(cell(f"{start}  {row[-1]}"))


def _judged(found: Document) -> str:
    verdict = found["verdict"]
    hint = f" ({verdict['hint']})" if verdict["hint"] else ""
    return f"not good for {found['channel']}: {verdict['code']}: {verdict['message']}{hint}"
