"""`gpuaas explain`: why an object is as it is, field by field, and whose commit decided it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from rich import box
from rich.console import Console
from rich.table import Table

from reconciler.cli.common import (
    EXIT_OK,
    cell,
    format_option,
    load_settings,
    out,
    print_json,
    settings_options,
)
from reconciler.cli.diff import print_lines
from reconciler.core.accept import AcceptedState
from reconciler.core.desired import StateObject
from reconciler.core.doubt import former_of
from reconciler.core.forms import parse_accepted
from reconciler.core.health import Health, told_health
from reconciler.core.names import InstanceKey, ObjectRef, Revision, instance_key, member_key
from reconciler.core.plan import Plan
from reconciler.core.plan.stepped import CODE as STEPPED_BACK
from reconciler.core.plan.stepped import in_its_place
from reconciler.core.printable import printable
from reconciler.core.records import InstanceRecord, State
from reconciler.core.times import time_text
from reconciler.cycle import load, load_last, preview, wanted
from reconciler.errors import GpuaasError, Refused
from reconciler.observe import see_nodes
from reconciler.ports import Ports
from reconciler.settings import Settings
from reconciler.use_cases.explain import Explanation, chosen, explained_file
from reconciler.use_cases.explain import explain as explained
from reconciler.use_cases.explained_fields import UNKNOWN, Live, Row, Subject
from reconciler.use_cases.files_alone import NOTE, accepted_alone
from reconciler.use_cases.history import Commits, member_of_target, no_such, parse_target
from reconciler.views.authority import by_text, refused_lines
from reconciler.views.changes import NOT_CHECKED, Line, Signers
from reconciler.views.explained import (
    explanation_document,
    file_document,
    file_lines,
    problem_lines,
    signer_text,
)
from reconciler.views.failure_words import page_of, words_of
from reconciler.views.plan_words import verb_of
from reconciler.wiring.files import schema_set
from reconciler.wiring.gate import walked_to
from reconciler.wiring.history import local_history, mirrored_history, ports_if_any
from reconciler.wiring.source import mirror_dir

_DEPENDENTS_SHOWN_MAX = 12
_COLUMNS = ("FIELD", "DESIRED", "OBSERVED", "CAUSE", "COMMIT")
_WIDE_COLUMNS = 160


@click.command(epilog="Exit codes: 0 as asked, 1 an error or nothing of that name.")
@click.argument("target", metavar="OBJECT_OR_FILE")
@click.argument("field", required=False)
@settings_options
@click.option("--ref", help="As of this commit, branch or tag instead of the branch's head.")
@format_option
def explain(target: str, field: str | None, ref: str | None, output: str, **given: Any) -> int:
    """Show why an object is as it is: field, desired, observed, cause, commit, signer.

    OBJECT is Kind/scope/name, or tenant/project/name for an instance, tenant/project/name.member
    for a further member of one; FIELD is one of the table, or any field of the manifest
    (spec.parameters.gpu_count). A file's path shows what counts of each object in it. Where the
    control plane keeps its state, what is accepted, from whom, which changes were refused and what
    nodes report is taken from there; without, the state repo is read alone. Changes nothing.

    \b
    Examples:
      gpuaas explain acme/research/hello
      gpuaas explain acme/research/hello memory
      gpuaas explain acme/research/batch.w1 node
      gpuaas explain platform/iam/people.yaml
      gpuaas explain Node/gpu-1 --format json | jq .instances
    """
    wanted_ref = parse_target(target, files=True)
    settings = load_settings(**given)
    asked = given.get("state_dir") is not None
    with ports_if_any(settings, wanted=asked) as ports:
        view = _live(ports, settings, ref) if ports else _alone(settings, ref)
        if isinstance(wanted_ref, str):
            if field:
                raise click.UsageError("a file has no fields: name the object")
            return _explain_file(wanted_ref, view, output)
        subject = view.subject(wanted_ref, member_of_target(target, wanted_ref))
    if wanted_ref not in subject.objects and view.commits.form(wanted_ref, view.head) is None:
        found = _leaving(wanted_ref, subject, view)
    else:
        found = explained(wanted_ref, subject, view.commits, view.head)
    if field:
        found = chosen(found, field, subject, view.commits)
    signers = _signers(found, view, settings)
    if output == "json":
        print_json({**explanation_document(found, signers), "notes": list(view.notes)})
    else:
        print_lines(_head(found, view))
        if found.rows:
            _print_rows(out(), found.rows, signers)
        print_lines(_users(found) if not field else [])
    return EXIT_OK


def _signers(found: Explanation, view: _View, settings: Settings) -> Signers:
    """Whose the commits are that decided something, as far as they are signed."""
    signed = {row.commit.revision for row in found.rows if row.commit and row.commit.signed}
    if not signed:
        return {}
    from reconciler.wiring.authority import LocalTrust  # noqa: PLC0415 - for signed commits alone

    place = mirror_dir(settings) if view.live is not None else Path(settings.repo)
    return LocalTrust(place, settings).signers(sorted(signed))


def _explain_file(path: str, view: _View, output: str) -> int:
    """What counts of each object in a file, and whose changes of them don't."""
    found = explained_file(path, view.commits, view.head, view.state)
    if not found.objects and not found.refused:
        raise no_such(path, view.commits.paths(view.head), view.head[:12])
    if output == "json":
        print_json({**file_document(found), "notes": list(view.notes)})
        return EXIT_OK
    notes = (Line(f"  {printable(note)}", "dim") for note in view.notes)
    print_lines([*file_lines(found, notes, alone=view.live is None)])
    return EXIT_OK


@dataclass(frozen=True)
class _View:
    """The state that is explained. `seen` is None where no control plane keeps its state."""

    commits: Commits
    head: Revision
    state: AcceptedState
    notes: tuple[str, ...] = ()
    live: _Seen | None = None

    def subject(self, ref: ObjectRef, member: str = "") -> Subject:
        objects = _objects(self.state)
        if self.live is None:
            return Subject(objects, self.state, alone=True, member=member)
        key = instance_key(ref)
        key = member_key(key, member) if member else key
        target = self.live.desired.targets.get(key)
        return Subject(objects, self.state, target, self.live.of(ref, key), member=member)


@dataclass(frozen=True)
class _Seen:
    """What the control plane remembers, sees and would do."""

    plan: Plan
    desired: Any
    observed: Any
    records: Any

    def of(self, ref: ObjectRef, key: InstanceKey) -> Live:
        record: InstanceRecord | None = self.records.get(key)
        says, why = _said(self.plan, ref, key, record.node if record else "")
        if ref.kind != "AppInstance":
            return Live(says=says)
        target = self.desired.targets.get(key)
        node = record.node if record else target.instance.node if target else ""
        report = self.observed.workload(node, key)
        state = () if record is None else _state(record)
        stepped = self.desired.stepped.get(key)
        if stepped is not None:
            says, why = (in_its_place(stepped), *says), why or STEPPED_BACK
        why = why or (record.reason if record else "")
        return Live(record, report, (*state, *says), why)


def _live(ports: Ports, settings: Settings, ref: str | None) -> _View:
    notes: list[str] = []
    try:
        head = ports.source.fetch()
    except GpuaasError as error:
        head = ports.source.head()
        notes.append(f"the newest revision could not be fetched, this is the last one: {error}")
    revision = ports.source.find(ref) if ref else head
    last = ports.store.accepted()
    walked = walked_to(revision, last, settings, ports) if revision == head else None
    if walked is not None and walked.rejection is not None:
        state = load_last(revision, walked.rejection, ports, settings)
        notes.append(f"the newest revision counts for nothing: {walked.rejection}")
    else:
        snapshot = ports.source.snapshot(revision)
        state = load(snapshot, schema_set(), ports, settings, walked=walked)
    planned, _ = preview(state, ports, settings)
    records = ports.store.records()
    now_ms = ports.clock.now_ms()
    nodes, backs = see_nodes(ports, settings, now_ms), ports.store.step_backs()
    desired, observed = wanted(state, nodes, records, backs)
    seen = _Seen(planned, desired, observed, records)
    return _View(mirrored_history(settings), revision, state, tuple(notes), seen)


def _alone(settings: Settings, ref: str | None) -> _View:
    """Only the repository: everything as if it were accepted for the first time."""
    commits = local_history(Path(settings.repo), settings)
    head = commits.resolve(ref or "HEAD")
    state = accepted_alone(commits.snapshot(head), schema_set(), settings)
    return _View(commits, head, state, (NOTE,))


def _objects(state: AcceptedState) -> dict[ObjectRef, StateObject]:
    parsed = (parse_accepted(stored) for stored in state.accepted.objects.values())
    return {found.ref: found for found in parsed if isinstance(found, StateObject)}


def _leaving(ref: ObjectRef, subject: Subject, view: _View) -> Explanation:
    """What is known of an instance that was removed and is not gone yet. Refused for all else."""
    steps = view.commits.log(ref, view.head, 1).steps
    if not steps:
        raise no_such(ref, _alike(subject, ref), view.head[:12])
    commit, record = steps[0].commit, subject.live.record
    removed = f"removed in {commit.revision[:12]} ({printable(commit.subject)})"
    if record is not None and record.state is not State.DECOMMISSIONED:
        says = (f"its manifest was {removed}", *subject.live.says)
        return Explanation(ref, view.head, "", 0, None, False, (), says, ())
    for found in subject.objects.values():
        if former_of(found) == ref:
            message = f"{ref} is called {found.ref} now"
            hint = f"gpuaas explain {found.ref}; its manifest was {removed}"
            raise Refused("object_renamed", message, hint=hint)
    raise Refused(
        "object_removed",
        f"{ref} was {removed}",
        hint=f"gpuaas history {ref} shows more, gpuaas rollback {ref} brings it back",
    )


def _alike(subject: Subject, ref: ObjectRef) -> list[ObjectRef | str]:
    return [one for one in subject.objects if one.kind == ref.kind]


def _said(plan: Plan, ref: ObjectRef, key: InstanceKey, node: str) -> tuple[tuple[str, ...], str]:
    """What the plan says of an object and its node, in sentences, and why it is not as desired."""
    says: list[str] = []
    why = ""
    actions = plan.actions if ref.kind == "AppInstance" else ()
    for action in actions:
        if action.instance != key:
            continue
        held = action.held
        then = f"held, {held.code}: {held.message}" if held else "the next pass does it"
        says.append(f"plan: {verb_of(action)} on {action.node}, {action.reason}; {then}")
        why = f"held: {held.code}" if held else f"to {verb_of(action)}"
    for item in plan.waiting if ref.kind == "AppInstance" else ():
        if item.instance == key:
            says.append(f"under way: {item.code}: {item.message}")
            why = f"under way: {item.code}"
    for finding in plan.findings:
        if finding.object in (str(ref), f"AppInstance/{key}", f"Node/{node}"):
            hint = f" ({finding.hint})" if finding.hint else ""
            says.append(f"{finding.code}: {finding.message}{hint}")
            why = why or finding.code
    return tuple(says or ["plan: nothing to do"]), why


def _state(record: InstanceRecord) -> tuple[str, ...]:
    """Where it stands in its life, how well it is, and what its last failure means."""
    reason = f", {record.reason}: {record.message}" if record.reason else ""
    members = next((c.message for c in record.conditions if c.type == "MembersReady"), "")
    reason += f"; {members}" if members else ""
    since = f" since {time_text(record.since_ms)}" if record.since_ms else ""
    lines = [f"state: {record.state.value}{since}, operation {record.epoch}{reason}"]
    seen, words = told_health(record), words_of(record.reason)
    if seen.health not in (Health.READY, Health.STOPPED) and seen.since_ms:
        why = f", {seen.why}" if seen.why else ""
        lines.append(f"health: {seen.health.value} since {time_text(seen.since_ms)}{why}")
    if words is not None:
        lines.append(f"{record.reason}: {words.means}; {words.do} ({page_of(record.reason)})")
    return tuple(lines)


def _head(found: Explanation, view: _View) -> Iterator[Line]:
    where = f"{found.path}:{found.line}" if found.line else found.path or "no manifest any more"
    yield Line(f"{found.ref}  {printable(where)}", "title")
    yield from (Line(f"  {printable(note)}", "dim") for note in view.notes)
    if view.live is not None and found.path:
        yield _accepted(found)
    if found.refused is not None:
        yield from refused_lines(found.refused)
    told = {(found.refused.code, str(found.ref))} if found.refused is not None else set()
    yield from problem_lines(found.problems, told)
    yield from (Line(f"  {printable(text)}") for text in found.says)
    unseen = {row.observed for row in found.rows if (row.observed or "").startswith(UNKNOWN)}
    if view.live is not None:
        yield from (Line(f"  observed is {printable(text or '')}", "changed") for text in unseen)


def _accepted(found: Explanation) -> Line:
    if found.accepted is None:
        return Line("  not accepted: no form of it counts yet", "problem")
    form = f"  what counts was accepted in {found.accepted[:12]}{by_text(found.by)}"
    if found.newest:
        return Line(f"{form}; nothing newer is in {found.head[:12]}", "good")
    return Line(f"{form}; {found.head[:12]} says otherwise, and that is not accepted", "problem")


def _print_rows(console: Console, rows: tuple[Row, ...], whose: Signers = NOT_CHECKED) -> None:
    """The table; where it would get narrow, each commit's signer stands once, below it."""
    wide = console.width >= _WIDE_COLUMNS
    console.print(_table(rows, wide, whose))
    if wide:
        return
    signers = {row.commit.revision: signer_text(row, whose) for row in rows if row.commit}
    for revision, signer in signers.items():
        console.print(f"commit {revision[:12]}  {printable(signer)}", style="dim", markup=False)


def _table(rows: tuple[Row, ...], wide: bool, whose: Signers) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for column in (*_COLUMNS, *(["SIGNER"] if wide else [])):
        table.add_column(column, overflow="fold", no_wrap=column in ("FIELD", "COMMIT"))
    for row in rows:
        seen = (row.observed or "").partition(UNKNOWN)
        text = "unknown" if seen[1] else seen[0]
        cells = [
            cell(row.field, "bold"),
            cell(row.desired),
            cell(f"≠ {text}" if row.differs else text, "yellow" if row.differs else ""),
            cell(row.deciding.cause),
            cell(row.commit.revision[:12] if row.commit else ""),
        ]
        table.add_row(*cells, *([cell(signer_text(row, whose))] if wide else []))
    return table


def _users(found: Explanation) -> Iterator[Line]:
    """Who names it, and which instances a change of it reaches."""
    if not found.dependents and not found.instances:
        return
    yield Line("")
    for title, those in (("Named by", found.dependents), ("Instances", found.instances)):
        if those:
            shown = ", ".join(map(str, those[:_DEPENDENTS_SHOWN_MAX]))
            more = len(those) - _DEPENDENTS_SHOWN_MAX
            yield Line(f"{title}: {shown}{f' and {more} more' if more > 0 else ''}")
