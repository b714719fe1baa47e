"""`gpuaas timeline`: one instance's life, what took how long, and by which commit."""

from __future__ import annotations

from typing import Any

import click

from reconciler.cli.common import (
    EXIT_OK,
    format_option,
    load_settings,
    print_json,
    settings_options,
)
from reconciler.cli.diff import print_lines
from reconciler.core.names import InstanceKey, Revision, nearest
from reconciler.core.records import NumberedEvent
from reconciler.errors import GpuaasError, Refused
from reconciler.settings import Settings
from reconciler.use_cases.history import Commits
from reconciler.use_cases.timeline import events_of
from reconciler.views.timeline import timeline_document, timeline_lines
from reconciler.wiring.history import mirrored_history
from reconciler.wiring.ports import open_ports


@click.command(epilog="Exit codes: 0 as asked, 1 an error or no instance of that name.")
@click.argument("instance", metavar="TENANT/PROJECT/NAME")
@settings_options
@click.option(
    "--last",
    type=click.IntRange(min=1),
    help="Show the newest so many entries only.",
)
@format_option
def timeline(instance: str, last: int | None, output: str, **given: Any) -> int:
    """Show what happened to an instance, oldest first: versions, durations, failures, commits.

    Each step says how long it took since the one before it; what ends an operation also says how
    long that was since its commit was first seen here. An instance is followed under its former
    names. Who made a commit is read from the control plane's own copy of the state repo.

    \b
    Examples:
      gpuaas timeline acme/research/hello
      gpuaas timeline acme/research/hello --last 10
      gpuaas timeline acme/research/hello --format json | jq '.entries[] | .what, .step_ms'
    """
    settings = load_settings(**given)
    with open_ports(settings, make=False) as ports:
        records = ports.store.records()
        key = InstanceKey(instance.removeprefix("AppInstance/"))
        events = events_of(ports.store, key)
        if key not in records and not events:
            near = nearest(key, records)
            hint = f"did you mean {near}?" if near else "see gpuaas status --all"
            raise Refused("no_such_instance", f"no instance {key}", hint=hint)
        now_ms = ports.clock.now_ms()
        commits = _commits(settings, events[-last:] if last else events)
    document = timeline_document(key, records.get(key), events, now_ms, last, commits)
    if output == "json":
        print_json(document)
    else:
        print_lines(timeline_lines(document))
    return EXIT_OK


def _commits(settings: Settings, events: list[NumberedEvent]) -> dict[str, dict[str, Any]]:
    """What the mirror knows of the events' revisions; a commit that is gone from it is left out."""
    commits: Commits = mirrored_history(settings)
    found: dict[str, dict[str, Any]] = {}
    for revision in sorted({numbered.event.revision for numbered in events} - {""}):
        try:
            commit = commits.commit(Revision(revision))
        except GpuaasError:
            continue
        found[revision] = {
            "author": commit.author,
            "subject": commit.subject,
            "committed_at_ms": commit.committed_at_ms,
        }
    return found
