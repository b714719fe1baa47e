"""`gpuaas events`: what happened, once each, from a cursor."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime
from typing import Any

import click

from reconciler.cli.common import EXIT_OK, err, load_settings, out, settings_options
from reconciler.core.names import InstanceKey
from reconciler.core.printable import printable_json
from reconciler.core.records import NumberedEvent
from reconciler.views.read_models import event_document
from reconciler.wiring.ports import open_ports

_LOOK_S = 0.5


@click.command(epilog="Exit codes: 0 as asked, 1 an error.")
@settings_options
@click.option(
    "--after", type=click.IntRange(min=0), default=0, help="Only events after this cursor."
)
@click.option(
    "--limit",
    type=click.IntRange(1, 10_000),
    default=1000,
    show_default=True,
    help="At most so many.",
)
@click.option(
    "--last",
    type=click.IntRange(min=1),
    help="Begin so many events, of any instance, before the newest.",
)
@click.option("--instance", help="Only events of this instance, TENANT/PROJECT/NAME.")
@click.option("--follow", "-f", is_flag=True, help="Wait for more; stop with Ctrl-C.")
@click.option(
    "--format",
    "output",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="Text, or one JSON object a line.",
)
def events(
    after: int,
    limit: int,
    last: int | None,
    instance: str | None,
    follow: bool,
    output: str,
    **given: Any,
) -> int:
    """Show events, oldest first. Each has a stable event_id and a cursor to go on from.

    \b
    Examples:
      gpuaas events
      gpuaas events --last 50
      gpuaas events --after 120 --format json
      gpuaas events --follow --instance acme/research/hello
    """
    settings = load_settings(**given)
    key = InstanceKey(instance) if instance else None
    console = out()
    with open_ports(settings, make=follow) as ports:
        newest = ports.store.last_cursor()
        after = max(after, newest - last) if last else after
        while True:
            found = ports.store.events(after=after, limit=limit, instance=key)
            for numbered in found:
                if output == "json":
                    click.echo(_json_line(numbered))
                else:
                    console.print(event_line(numbered), markup=False)
                after = numbered.cursor
            if not follow:
                _say_what_is_missing(len(found), limit, after, newest, instance)
                return EXIT_OK
            if not found:
                time.sleep(_LOOK_S)


def _say_what_is_missing(
    shown: int, limit: int, after: int, newest: int, instance: str | None
) -> None:
    """On standard error, so that nobody takes a part for the whole, or a wrong name for silence."""
    if shown == limit and after < newest:
        text = f"there may be more: --after {after} goes on, --last 50 shows the newest ({newest})"
        err().print(text, style="yellow")
    elif not shown:
        of = f" of {instance}" if instance else ""
        err().print(f"no events{of} here", style="yellow", markup=False)


def event_line(numbered: NumberedEvent) -> str:
    """One event on one line: cursor, time, type, instance, what it was about."""
    event = numbered.event
    at = datetime.fromtimestamp(event.at_ms / 1000, UTC).isoformat(timespec="milliseconds")
    at = at.replace("+00:00", "Z")
    about = [event.data.get("version", "")]
    if event.data.get("reason"):
        about.append(f"{event.data['reason']}: {event.data.get('message', '')}")
    elif event.data.get("message"):
        about.append(event.data["message"])
    text = "  ".join(part for part in about if part)
    return f"{numbered.cursor:>5}  {at}  {event.type:<38} {event.instance}  {text}".rstrip()


def _json_line(numbered: NumberedEvent) -> str:
    return printable_json(json.dumps(event_document(numbered), ensure_ascii=False))
