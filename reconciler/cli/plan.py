"""`gpuaas plan`: what would change, and nothing else happens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click

from reconciler.cli.common import (
    EXIT_CHANGES,
    EXIT_ERROR,
    EXIT_OK,
    environment_of,
    err,
    load_settings,
    out,
    print_json,
    review_format_option,
    settings_options,
)
from reconciler.collector import without_collector
from reconciler.core.kinds.environment import EnvironmentSpec
from reconciler.core.names import ObjectRef, Revision
from reconciler.core.plan import Plan
from reconciler.core.problems import Problem
from reconciler.core.validate import ValidateMemo, validate
from reconciler.errors import Refused
from reconciler.settings import Settings
from reconciler.use_cases import saved_plan, snapshot
from reconciler.use_cases.planning import look_now, shown
from reconciler.views.plan import plan_document, plan_lines
from reconciler.views.plan_markdown import plan_markdown
from reconciler.views.plan_words import Offline, Shown
from reconciler.wiring.files import read_base, read_local, schema_set
from reconciler.wiring.ports import open_ports
from reconciler.wiring.snapshots import now_ms, read_snapshot

AGE_S_MAX = 86_400
STYLES = {
    "title": "bold",
    "notice": "bold yellow",
    "good": "green",
    "launch": "green",
    "upgrade": "yellow",
    "rollback": "yellow",
    "start": "yellow",
    "stop": "yellow",
    "move": "cyan",
    "remove": "red",
    "held": "magenta",
    "waiting": "cyan",
    "dim": "dim",
}


@dataclass(frozen=True)
class Wanted:
    """What the command line asks for."""

    ref: str | None
    base: str | None
    out: Path | None
    lifetime_s: float
    snapshot: str | None
    keys: tuple[str, ...]
    age_s_max: float


@click.command(
    epilog="Exit codes: 0 nothing to do, 2 something would change (also when all of it is held), "
    "or waits for a person, 1 an error or a problem in the revision."
)
@settings_options
@click.option("--ref", help="Plan this commit, branch or tag instead of the branch's head.")
@click.option(
    "--base",
    help="Also say what the change from this commit, branch or tag to --ref itself causes, and "
    "what is pending without it. With --snapshot: from where the two parted.",
)
@click.option(
    "--out",
    "out_file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Save the plan, signed, for `gpuaas apply FILE`.",
)
@click.option(
    "--expires-s",
    type=click.FloatRange(min=1),
    default=saved_plan.LIFETIME_S,
    show_default=True,
    help="How long a saved plan may be applied.",
)
@click.option(
    "--snapshot",
    "from_snapshot",
    metavar="FILE_OR_URL",
    help="Plan offline, without store or credential, from what `gpuaas snapshot` exported. Its "
    "signature is checked against snapshot_keys of the Environment at --base, never at --ref: a "
    "change can't vouch for itself.",
)
@click.option(
    "--snapshot-key",
    "keys",
    multiple=True,
    help="Public key to check the snapshot with, in place of the ones at --base. Repeatable.",
)
@click.option(
    "--max-age-s",
    type=click.FloatRange(min=1),
    default=AGE_S_MAX,
    show_default=True,
    help="Refuse a snapshot that is older.",
)
@click.option("--all", "everything", is_flag=True, help="Sum nothing up, however long it gets.")
@review_format_option
def plan(
    ref: str | None,
    base: str | None,
    out_file: Path | None,
    expires_s: float,
    from_snapshot: str | None,
    keys: tuple[str, ...],
    max_age_s: float,
    everything: bool,
    output: str,
    **given: Any,
) -> int:
    """Show what would change to bring what runs to what the state repo says.

    Compares the accepted form of the newest revision with what the nodes last reported and the
    registry serves. Changes nothing.

    \b
    Examples:
      gpuaas plan --environment dev
      gpuaas plan --ref my-branch --base main --format markdown
      gpuaas plan --out plan.json; gpuaas apply plan.json
      gpuaas plan --format json | jq .actions
      gpuaas plan -e prod --snapshot snapshot.json --repo . --ref HEAD --base origin/main
    """
    # A gpuaas.toml in the checkout belongs to whoever wrote the change under review.
    settings = load_settings(file=from_snapshot is None, **given)
    environment_of(settings)
    wanted = Wanted(ref, base, out_file, expires_s, from_snapshot, keys, max_age_s)
    found = offline(wanted, settings) if from_snapshot else live(wanted, settings)
    _print(found, output, everything=everything)
    if out_file:
        until = "as long as nothing else changes"
        err().print(f"saved to {out_file}: apply it within {expires_s:g} s, {until}", markup=False)
    return exit_code(found.plan, found.problems)


@without_collector()
def live(wanted: Wanted, settings: Settings) -> Shown:
    """The plan against the store, the nodes' reports and the registry; saved when asked for."""
    if wanted.keys:
        raise Refused("no_snapshot", "--snapshot-key is for --snapshot", hint="pass both")
    with open_ports(settings) as ports:
        head = ports.source.fetch()
        revision = ports.source.find(wanted.ref) if wanted.ref else head
        if wanted.out and revision != head:
            raise Refused(
                "plan_not_head",
                f"{revision[:12]} is not the head of {settings.branch}: it can't be applied",
                hint="leave out --ref, or merge it first",
            )
        base = ports.source.snapshot(ports.source.find(wanted.base)) if wanted.base else None
        look = look_now(ports, settings)
        found = shown(look, ports.source.snapshot(revision), base, schema_set(), settings)
        if wanted.out:
            _refuse_problems(found.problems)
            raw = saved_plan.sealed(
                found, settings.branch, look.now_ms, wanted.lifetime_s, ports.secrets
            )
            write_file(wanted.out, raw)
    return found


@without_collector()
def offline(wanted: Wanted, settings: Settings) -> Shown:
    """The plan from a snapshot and the checkout alone."""
    if wanted.out:
        raise Refused(
            "plan_offline",
            "a plan made from a snapshot can't be applied",
            hint="leave out --out, or plan against live state",
        )
    assert wanted.snapshot is not None
    raw = read_snapshot(wanted.snapshot, settings)
    schemas, checkout = schema_set(), Path(settings.repo)
    today_ms = now_ms()
    age_ms_max = int(wanted.age_s_max * 1000)
    keys = wanted.keys or _keys_at(wanted, settings)
    read = _documents_in(checkout, settings)
    seen = snapshot.opened(raw, keys, settings.environment, today_ms, age_ms_max, read)
    source = read_local(checkout, wanted.ref or "HEAD", settings)
    base = read_base(checkout, wanted.ref, wanted.base, settings) if wanted.base else None
    found = shown(seen, source, base, schemas, settings)
    return replace(found, now_ms=today_ms, offline=Offline(seen.taken_at_ms))


def _documents_in(checkout: Path, settings: Settings) -> snapshot.ReadDocuments:
    """Reads the manifests of a commit; none when the checkout does not have it."""

    schemas, memo = schema_set(), ValidateMemo()

    def read(revision: Revision) -> Mapping[str, str]:
        try:
            source = read_local(checkout, revision, settings)
        except Refused as refused:
            if refused.code == "unknown_revision":
                return {}
            raise
        candidate = validate(source, schemas, settings.parse_limits, memo)
        return snapshot.documents_of(candidate)

    return read


def _keys_at(wanted: Wanted, settings: Settings) -> tuple[str, ...]:
    """The keys that the tip of the base trusts now; what the change says of them counts nothing."""
    keys: tuple[str, ...] = ()
    if wanted.base:
        tip = read_local(Path(settings.repo), wanted.base, settings)
        objects = validate(tip, schema_set(), settings.parse_limits).objects
        found = objects.get(ObjectRef("Environment", (settings.environment,)))
        spec = found.manifest.spec if found is not None else None
        keys = spec.snapshot_keys if isinstance(spec, EnvironmentSpec) else ()
    if keys:
        return keys
    where = f"Environment/{settings.environment} at {wanted.base} has no snapshot_keys"
    raise Refused(
        "snapshot_key_missing",
        where if wanted.base else "no key to check the snapshot with",
        hint="commit snapshot_keys to the Environment and pass --base with the branch it is on, "
        "or pass --snapshot-key; `gpuaas snapshot --key` prints the key",
    )


def write_file(path: Path, raw: bytes) -> None:
    """A file in place of the one that was there; Refused where that can't be."""
    try:
        path.write_bytes(raw + b"\n")
    except OSError as error:
        raise Refused("not_written", f"{error.strerror}", where=str(path)) from None


def _refuse_problems(problems: Sequence[Problem]) -> None:
    if problems:
        raise Refused(
            "plan_problems",
            f"the revision has {len(problems)} problems, the first: {problems[0]}",
            hint="mend them first; `gpuaas plan` without --out shows all",
        )


def _print(found: Shown, output: str, *, everything: bool) -> None:
    if output == "json":
        print_json(plan_document(found))
    elif output == "markdown":
        click.echo(plan_markdown(found, everything=everything))
    else:
        console = out()
        for line in plan_lines(found, everything=everything):
            console.print(line.text, style=STYLES.get(line.style), markup=False)


def exit_code(planned: Plan, problems: Sequence[Problem]) -> int:
    """A revision with problems is an error, whatever the rest of it would change.

    What was given up runs in another form than is wanted: nothing will be done, and yet it differs.
    """
    if problems:
        return EXIT_ERROR
    return EXIT_OK if planned.empty and not planned.stalled else EXIT_CHANGES
