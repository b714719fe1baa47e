"""`gpuaas history`: the commits that changed an object, and what came of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click

from reconciler.cli.common import EXIT_OK, format_option, load_settings, print_json
from reconciler.cli.diff import print_lines
from reconciler.core.history import History
from reconciler.core.names import InstanceKey, ObjectRef, Revision
from reconciler.core.records import NumberedEvent
from reconciler.core.validate import validate
from reconciler.ports import Store
from reconciler.settings import Settings
from reconciler.use_cases.history import Commits, history_of, no_such, outcomes, parse_target
from reconciler.views.changes import Outcomes, Signers, history_document, history_lines
from reconciler.wiring.files import schema_set
from reconciler.wiring.history import local_history, ports_if_any

_PAGE = 1000


@click.command(epilog="Exit codes: 0 as asked, 1 an error or nothing of that name.")
@click.argument("target", metavar="OBJECT_OR_FILE")
@click.option(
    "--repo",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    default=Path(),
    help="The state repo, a Git repository here.  [default: the current folder]",
)
@click.option("--ref", default="HEAD", show_default=True, help="From this commit or branch back.")
@click.option(
    "--limit",
    type=click.IntRange(1, 100_000),
    default=20,
    show_default=True,
    help="At most so many commits.",
)
@click.option(
    "--state-dir",
    type=click.Path(path_type=Path),
    help="Tell from the control plane's state what came of each commit.",
)
@format_option
def history(
    target: str, repo: Path, ref: str, limit: int, state_dir: Path | None, output: str
) -> int:
    """Show the commits that changed an object, newest first: who, when, which fields.

    OBJECT is Kind/scope/name, or tenant/project/name for an instance; an instance is followed
    under its former names. A commit that changed only other documents of the file is left out. A
    file's path shows the commits that changed the file. A signature is checked by the identities of
    what its commit was built on, where there are any.

    \b
    Examples:
      gpuaas history acme/research/hello
      gpuaas history AppVersion/hello/1.1.0 --limit 5
      gpuaas history platform/nodes/gpu-1.yaml --format json
    """
    settings = load_settings(state_dir=state_dir)
    wanted = parse_target(target, files=True)
    commits = local_history(repo, settings)
    start = commits.resolve(ref)
    found = history_of(commits, wanted, start, limit)
    if not found.steps and found.end == "root":
        raise no_such(wanted, _known(commits, wanted, start, settings), start[:12])
    events = _outcomes(commits, wanted, found, settings, asked=state_dir is not None)
    signers = _signers(repo, found, settings)
    if output == "json":
        print_json(history_document(str(wanted), found, events, signers))
    else:
        print_lines(history_lines(f"{wanted}: {_count(found)}", found, events, signers))
    return EXIT_OK


def _signers(repo: Path, found: History, settings: Settings) -> Signers:
    """Nothing of most repos that sign nothing has to be loaded for this."""
    signed = [step.commit.revision for step in found.steps if step.commit.signed]
    if not signed:
        return {}
    from reconciler.wiring.authority import LocalTrust  # noqa: PLC0415 - see above

    return LocalTrust(repo, settings).signers(signed)


def _count(found: History) -> str:
    number = len(found.steps)
    more = "" if found.end == "root" else " at least"
    return f"{number} commit{'s' if number != 1 else ''}{more}"


def _known(
    commits: Commits, wanted: ObjectRef | str, start: Revision, settings: Settings
) -> list[ObjectRef | str]:
    """What the name may have been meant to be: files, or objects of that kind."""
    if isinstance(wanted, str):
        return [*commits.paths(start)]
    objects = validate(commits.snapshot(start), schema_set(), settings.parse_limits).objects
    return [ref for ref in objects if ref.kind == wanted.kind]


def _outcomes(
    commits: Commits,
    wanted: ObjectRef | str,
    found: History,
    settings: Settings,
    *,
    asked: bool,
) -> Outcomes:
    """Commit → events of the instance; empty without a control plane, or for other kinds."""
    if isinstance(wanted, str) or wanted.kind != "AppInstance":
        return {}
    names = {"/".join(step.of.path) for step in found.steps if step.of is not None}
    with ports_if_any(settings, wanted=asked) as ports:
        if ports is None:
            return {}
        events: list[NumberedEvent] = []
        for name in sorted(names):
            events += _events(ports.store, InstanceKey(name))
    events.sort(key=lambda numbered: numbered.cursor)
    return outcomes(commits, found.steps, events)


def _events(store: Store, instance: InstanceKey) -> Iterator[NumberedEvent]:
    after = 0
    while found := store.events(after=after, limit=_PAGE, instance=instance):
        yield from found
        after = found[-1].cursor
