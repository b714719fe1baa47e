"""`gpuaas status`: what runs where, how well, and what is missing."""

from __future__ import annotations

import re
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import click
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from reconciler.cli.common import (
    EXIT_CHANGES,
    EXIT_OK,
    cell,
    err,
    format_option,
    load_settings,
    out,
    print_json,
    settings_options,
    table_width,
    verdict,
)
from reconciler.cli.events import event_line
from reconciler.core.endpoints import LOOPBACK
from reconciler.core.names import InstanceKey, nearest
from reconciler.core.records import NumberedEvent
from reconciler.core.times import time_text
from reconciler.errors import Refused
from reconciler.ports import Ports
from reconciler.use_cases.handover import alarms
from reconciler.use_cases.reach import Reach
from reconciler.views.audit import row_document
from reconciler.views.failure_words import page_of, words_of
from reconciler.views.findings import place_of, said_once
from reconciler.views.read_models import event_document, status_document
from reconciler.wiring.ports import open_ports

_LOOK_S = 0.2
_EVENTS_SHOWN = 20
_ALARMS_SHOWN = 5
_AFTER_ALARM = (
    "{} in the last day: change those secrets, and look who was first with `gpuaas audit list`."
)
_PASS_OVERDUE_S = 60
"""A control plane that runs makes a pass every `resync_interval_s`, 15 s by default."""
_SILENT_S = 20
"""Longer than it takes from one pass to the next."""
_IS_IT_RUNNING = "Is `gpuaas run` running? Its log says why."
_FIRST = ("INSTANCE", "STATE", "HEALTH", "VERSION")
_PLACE = ("NODE", "ENDPOINT")
_NOTE_COLUMNS_MIN = 40
_STATE_STYLES = {
    "running": "green",
    "failed": "red",
    "stopped": "dim",
    "decommissioned": "dim",
}
_HEALTH_STYLES = {"ready": "green", "failed": "red", "stuck": "red", "stopped": "dim"}


@click.command(
    epilog="Exit codes: 0 as asked (with --wait: converged), 2 not converged in time, 1 an error."
)
@click.argument("instance", required=False)
@settings_options
@click.option("--wait", is_flag=True, help="Wait until the newest revision has converged.")
@click.option("--timeout-s", type=float, default=300.0, show_default=True, help="For --wait.")
@click.option("--all", "everything", is_flag=True, help="Decommissioned instances too.")
@format_option
def status(
    instance: str | None, wait: bool, timeout_s: float, everything: bool, output: str, **given: Any
) -> int:
    """Show instances, nodes and what the last pass found; or all about one INSTANCE.

    \b
    Examples:
      gpuaas status
      gpuaas status acme/research/hello
      gpuaas status --wait --timeout-s 60
      gpuaas status --format json | jq '.instances[].state'
    """
    settings = load_settings(**given)
    deadline = time.monotonic() + timeout_s
    with open_ports(settings, make=wait) as ports:
        result = _wait(ports, deadline) if wait else EXIT_OK
        document = _with_tunnels(current(ports, settings.node_offline_after_s), ports)
        events = ports.store.events(instance=InstanceKey(instance)) if instance else ()
    if instance:
        return show_one(instance, document, events, output) or result
    if not everything:
        document["instances"] = [i for i in document["instances"] if i["state"] != "decommissioned"]
    if output == "json":
        print_json(document)
    else:
        print_status(out(), document)
    return result


def current(ports: Ports, offline_after_s: float) -> dict[str, Any]:
    """The status document of now."""
    document = status_document(
        ports.store.records(),
        ports.store.nodes(),
        ports.store.last_pass(),
        ports.clock.now_ms(),
        int(offline_after_s * 1000),
    )
    raised = [row_document(row) for row in alarms(ports.store, ports.clock.now_ms())]
    return {**document, "last_cursor": ports.store.last_cursor(), "alarms": raised}


def _with_tunnels(document: dict[str, Any], ports: Ports) -> dict[str, Any]:
    """The same, with how each endpoint of each instance is reached."""
    records, reach = ports.store.records(), Reach(ports.store.accepted())
    for one in document["instances"]:
        record = records.get(InstanceKey(one["instance"]))
        one["tunnels"] = reach.tunnels(record) if record is not None else []
    return document


def _wait(ports: Ports, deadline: float) -> int:
    asked_ms = ports.clock.now_ms()
    head = ports.source.fetch()
    ports.store.request_pass("status --wait", asked_ms)
    silent_at = time.monotonic() + _SILENT_S
    while time.monotonic() < deadline:
        last = ports.store.last_pass()
        code = verdict(last, head, asked_ms)
        if code is not None:
            return code
        if time.monotonic() > silent_at and (last is None or last.started_at_ms < asked_ms):
            err().print(f"No pass began within {_SILENT_S} s. {_IS_IT_RUNNING}", style="yellow")
            silent_at = deadline
        time.sleep(_LOOK_S)
    err().print("not converged in time; what is missing is shown here", style="yellow")
    return EXIT_CHANGES


def show_one(
    name: str, document: Mapping[str, Any], events: Sequence[NumberedEvent], output: str
) -> int:
    """Everything about one instance; Refused when there is none of that name."""
    found = {one["instance"]: one for one in document["instances"]}
    if name not in found:
        raise _not_there(name, found, document["last_pass"])
    last = events[-_EVENTS_SHOWN:]
    members = [one for one in document["instances"] if one["member_of"] == name]
    members = [one for one in members if one["state"] != "decommissioned"]
    if output == "json":
        told = [event_document(event) for event in last]
        print_json({**found[name], "members": members, "events": told})
    else:
        print_instance(out(), found[name], last, members)
        print_pass(out(), about(found[name], document["last_pass"]))
    return EXIT_OK


def _not_there(name: str, found: Collection[str], last: Mapping[str, Any] | None) -> Refused:
    """Why there is none of that name: its file may be there, and was never accepted."""
    tenant, _, rest = name.partition("/")
    project, _, own = rest.partition("/")
    file = f"tenants/{tenant}/projects/{project}/instances/{own}."
    for finding in last["findings"] if last else ():
        if str(finding.get("where", "")).startswith(file):
            return Refused(
                "not_accepted",
                f"nothing runs as {name}: its file was never accepted: "
                f"{finding['code']}: {finding['message']}",
                where=finding["where"],
                hint=f"gpuaas explain {name}",
            )
    near = nearest(name, found)
    hint = f"did you mean {near}?" if near else "see gpuaas status --all"
    return Refused("no_such_instance", f"no instance {name}", hint=hint)


def about(one: Mapping[str, Any], last: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """The last pass with those of its findings that speak of this instance, its file or node."""
    if last is None:
        return None
    file = f"tenants/{one['tenant']}/projects/{one['project']}/instances/{_declared(one)}."
    objects = (f"AppInstance/{one['instance']}", f"Node/{one['node']}")
    mine = [
        finding
        for finding in last["findings"]
        if str(finding.get("where", "")).startswith(file) or finding.get("object") in objects
    ]
    return {**last, "findings": mine}


def _declared(one: Mapping[str, Any]) -> str:
    """The name its manifest has: that of its instance, for a further member."""
    return str(one["name"]).partition(".")[0]


def print_instance(
    console: Console,
    one: Mapping[str, Any],
    events: Sequence[NumberedEvent],
    members: Sequence[Mapping[str, Any]] = (),
) -> None:
    """One instance for people: where it stands, why, how to reach it, what happened last."""
    wanted, runs = _versions(one)
    rows = {
        "instance": one["instance"],
        "member of": one["member_of"],
        "role": one["role"],
        "state": shown_state(one),
        "health": _health(one),
        "wanted": wanted,
        "runs": runs,
        "before": one["previous_version"],
        "revision": f"{one['revision']} wanted, {one['applied_revision'] or 'none'} applied",
        "node": one["node"],
        "gpus": " ".join(one["gpu_uuids"]),
        "restarts": str(one["restarts"]),
    }
    for name, value in rows.items():
        if value:
            console.print(f"{name + ':':<10} {value}", markup=False)
    for service in one.get("services", ()):
        detail = f": {service['detail']}" if service["detail"] else ""
        weight = "" if service["vital"] else ", not vital"
        weight += ", when last heard of" if one["health"] == "unknown" else ""
        text = f"{service['name']} {service['phase']}{weight}{detail}"
        style = "" if service["phase"] in ("ready", "completed") else "yellow"
        console.print(f"{'service:':<10} {text}", style=style, markup=False)
    for number, line in enumerate(one["access"].splitlines()):
        console.print(f"{'' if number else 'access:':<10} {line}", markup=False)
    for tunnel in one.get("tunnels", ()):
        at = f"{tunnel['name']} at {tunnel['url'] or tunnel['local']} while this runs"
        console.print(f"{'endpoint:':<10} {at}", markup=False)
        console.print(f"{'':<10}   {tunnel['tunnel']}", markup=False, soft_wrap=True)
    for condition in one["conditions"]:
        text = f"{condition['type']}: {condition['status']} {condition['reason']}"
        style = "green" if condition["status"] == "True" else "yellow"
        console.print(f"{text}  {condition['message']}".rstrip(), style=style, markup=False)
    reason = _reason(one)
    words = words_of(reason)
    if words is not None:
        console.print(f"{reason}: {words.means}. Do: {words.do}", style="yellow")
        console.print(f"  see {page_of(reason)}", style="dim", markup=False)
    if members:
        print_instances(console, {"instances": members})
    for event in events:
        console.print(event_line(event), style="dim", markup=False)


def _reason(one: Mapping[str, Any]) -> str:
    """Why it failed, or why it does not get on: then its conditions begin with it."""
    open_ones = (c for c in one["conditions"] if c["status"] != "True")
    told = (c["message"].partition(":")[0] for c in open_ones)
    return next((code for code in (one["reason"], *told) if words_of(code)), "")


def _health(one: Mapping[str, Any]) -> str:
    since = f" since {time_text(one['health_since_ms'])}" if one["health_since_ms"] else ""
    return f"{one['health']}{since}" if one["health"] else ""


def _versions(one: Mapping[str, Any]) -> tuple[str, str]:
    """What is wanted and what runs."""
    wanted = f"version {one['target_version']} {one['target_digest']}"
    runs = f"version {one['applied_version']} {one['applied_digest']}"
    if one["state"] == "decommissioned":
        return "nothing", f"nothing, was {runs}" if one["applied_version"] else "nothing"
    if one["state"] == "decommissioning":
        wanted = "nothing, it is being removed"
    if not one["applied_version"]:
        return wanted, "nothing yet"
    if one["health"] == "failed":
        return wanted, f"nothing that is ready, last was {runs}"
    if one["health"] == "unknown":
        return wanted, f"nobody can look now, last was {runs}"
    return wanted, f"nothing, last was {runs}" if shown_state(one) == "stopped" else runs


def print_status(console: Console, document: Mapping[str, Any]) -> None:
    """The tables people see."""
    print_alarms(console, document.get("alarms", ()))
    print_instances(console, document)
    console.print()
    console.print(nodes_table(document))
    console.print()
    print_pass(console, document.get("last_pass"))


def print_alarms(console: Console, alarms: Sequence[Mapping[str, Any]]) -> None:
    """Handed over secrets that somebody else may have, for a day."""
    for alarm in alarms[-_ALARMS_SHOWN:]:
        text = f"ALARM {alarm['at']}: {alarm['object']}: {alarm['result']}: {alarm['reason']}"
        console.print(text, style="red", markup=False)
    if alarms:
        console.print(_AFTER_ALARM.format(len(alarms)), style="red", markup=False)
        console.print()


def print_pass(console: Console, last: Mapping[str, Any] | None) -> None:
    """How the last pass ended, when, and what it found."""
    if last is None:
        hint = "start `gpuaas run` or `gpuaas apply`; if one runs, its log says what is in the way"
        console.print(f"No pass yet: {hint}.", style="yellow")
        return
    style = "green" if last["result"] == "done" else "yellow"
    age_s = last["age_ms"] // 1000
    line = f"Last pass: {last['result']} at {last['revision'][:12]}, {last['duration_ms']} ms"
    console.print(f"{line}, {age_s} s ago", style=style, markup=False)
    if age_s >= _PASS_OVERDUE_S:
        text = f"  No pass since: all above may be old. {_IS_IT_RUNNING}"
        console.print(text, style="red", markup=False)
    if last["rejected"]:
        text = f"  Nothing of {last['rejected'][:12]} counts, the newest revision; see below."
        console.print(text, style="red", markup=False)
    if last["message"]:
        console.print(f"  {last['message']}", style="red", markup=False)
    print_findings(console, last["findings"])


def print_findings(console: Console, findings: Iterable[Mapping[str, Any]]) -> None:
    """What a pass found: code, where, what, and what to do; what may stay so comes last."""
    for finding, where in said_once(sorted(findings, key=lambda one: one.get("level") == "info")):
        place = f"{where}: " if where else ""
        text = f"  {finding['code']}: {place}{finding['message']}"
        console.print(text, style="yellow", markup=False)
        if finding.get("hint"):
            console.print(f"      {finding['hint']}", style="dim", markup=False)


def shown_state(one: Mapping[str, Any]) -> str:
    """The state of its life, but "stopped" for what runs by its life and was told to stop."""
    stopped = any(c["type"] == "Ready" and c["reason"] == "Stopped" for c in one["conditions"])
    return "stopped" if stopped and one["state"] == "running" else str(one["state"])


def print_instances(console: Console, document: Mapping[str, Any]) -> None:
    """A row each. Where that does not fit, digests are left out and notes come below: nothing
    that says how an instance is may be cut.
    """
    rows = [*_rows(document)]
    if _width(rows) <= console.width:
        console.print(_instances_table(rows, (*_FIRST, "DIGEST", *_PLACE, "NOTE")))
        return
    table = _instances_table(rows, (*_FIRST, *_PLACE), wrapped=("INSTANCE", *_PLACE))
    table.padding = (0, 1, 0, 0)  # Closer together: a name or address in one piece can be copied.
    console.print(table)
    for row in rows:
        if row["NOTE"]:
            text = f"  {row['INSTANCE'].plain.strip()}: {row['NOTE'].plain}"
            console.print(text, style="yellow", markup=False)


def _width(rows: Sequence[Mapping[str, Text]]) -> int:
    """How wide all columns are, with room for a note that is wrapped."""
    columns = (*_FIRST, "DIGEST", *_PLACE, "NOTE")
    widths = {c: max((len(c), *(row[c].cell_len for row in rows))) for c in columns}
    widths["NOTE"] = min(widths["NOTE"], _NOTE_COLUMNS_MIN)
    return table_width(widths.values())


def _rows(document: Mapping[str, Any]) -> Iterator[dict[str, Text]]:
    told = _Told((document.get("last_pass") or {}).get("findings", ()))
    shown: set[str] = set()
    for one in document["instances"]:
        shown.add(one["instance"])
        endpoints = _endpoints(one)
        yield {
            "INSTANCE": cell(_shown_name(one, shown)),
            "STATE": cell(shown_state(one), _STATE_STYLES.get(shown_state(one), "yellow")),
            "HEALTH": cell(one["health"], _HEALTH_STYLES.get(one["health"], "yellow")),
            "VERSION": cell(one["applied_version"] or one["target_version"]),
            "DIGEST": cell((one["applied_digest"] or one["target_digest"])[7:19]),
            "NODE": cell(one["node"]),
            "ENDPOINT": cell(" ".join(endpoints)),
            "NOTE": cell(_note(one, told)),
        }


def _instances_table(
    rows: Iterable[Mapping[str, Text]],
    columns: tuple[str, ...],
    wrapped: tuple[str, ...] = ("NOTE",),
) -> Table:
    table = _table(columns, wrapped)
    for row in rows:
        table.add_row(*(row[column] for column in columns))
    return table


def _endpoints(one: Mapping[str, Any]) -> Iterator[str]:
    """What is on loopback is for people, through a tunnel; all else is for other members."""
    told = {tunnel["name"]: tunnel["protocol"] for tunnel in one.get("tunnels", ())}
    several = sum(endpoint["host_ip"] == LOOPBACK for endpoint in one["endpoints"]) > 1
    for endpoint in one["endpoints"]:
        host, port, name = endpoint["host_ip"], endpoint["host_port"], endpoint["name"]
        if host == LOOPBACK:
            there = f"{told.get(name) or 'http'}://{host}:{port}"
            yield f"{name}={there}" if several else there
        else:
            yield f"{name} at " + (f"[{host}]:{port}" if ":" in host else f"{host}:{port}")


def _shown_name(one: Mapping[str, Any], above: Collection[str]) -> str:
    """A further member is indented below its instance."""
    if not one["member"]:
        return str(one["instance"])
    name = one["name"] if one["member_of"] in above else one["instance"]
    return f"{'  ' if one['member_of'] in above else ''}{name} ({one['role']})"


class _Told:
    """What stands below the table, so that a row of it need not say it again."""

    def __init__(self, findings: Iterable[Mapping[str, Any]]) -> None:
        findings = tuple(findings)
        self.words = {(finding["code"], finding.get("message")) for finding in findings}
        self.codes: dict[str, str] = {}
        for finding in findings:
            # The file without line and ending, and the object where one could be read.
            for name in (place_of(finding).partition(".")[0], str(finding.get("object", ""))):
                self.codes.setdefault(name, finding["code"])


def _note(one: Mapping[str, Any], told: _Told) -> str:
    """Why it is not as wanted, or not ready, or else what is wrong with its newest form."""
    members = _condition(one, "MembersReady")
    about = _own_note(one, told) or _missing(one)
    return "; ".join(part for part in (members["message"] if members else "", about) if part)


def _missing(one: Mapping[str, Any]) -> str:
    """The services without which it runs all the same."""
    services, ready = _condition(one, "ServicesReady"), _condition(one, "Ready")
    partly = services and services["status"] == "False" and ready and ready["status"] == "True"
    return str(services["message"]) if services and partly else ""


def _own_note(one: Mapping[str, Any], told: _Told) -> str:
    converged, ready = _condition(one, "Converged"), _condition(one, "Ready")
    open_ones = [c for c in (converged, ready) if c and c["status"] != "True"]
    # What is under way on a node that nobody can look at: both say something.
    blind = open_ones[1:] and open_ones[1]["status"] == "Unknown" and _is_moving(open_ones[0])
    if open_ones:
        return "; ".join(_said(c, one, told) for c in open_ones[: 2 if blind else 1])
    file = f"tenants/{one['tenant']}/projects/{one['project']}/instances/{one['name']}"
    found = told.codes.get(f"AppInstance/{one['instance']}") or told.codes.get(file)
    return f"{found}, see below" if found else ""


def _is_moving(condition: Mapping[str, Any]) -> bool:
    return bool(condition["reason"] == "Progressing")


def _said(condition: Mapping[str, Any], one: Mapping[str, Any], told: _Told) -> str:
    code, message = _code(condition["reason"]), condition["message"]
    if (code, message) in told.words:
        return f"{code}, see below"
    # How far it is says more than that it is under way; health has a column of its own.
    plain = message and code in ("progressing", one["health"])
    return ": ".join(filter(None, ("" if plain else code, message)))


def _condition(one: Mapping[str, Any], name: str) -> Mapping[str, Any] | None:
    return next((c for c in one["conditions"] if c["type"] == name), None)


def _code(reason: str) -> str:
    """A condition's reason as the code it is made of, to be found in the documentation."""
    return re.sub("(?<!^)(?=[A-Z])", "_", reason).lower()


def nodes_table(document: Mapping[str, Any]) -> Table:
    columns = ("NODE", "STATE", "AGENT", "ENGINES", "GPUS", "CPUS", "MEMORY", "LAST REPORT")
    table = _table(columns, ("NODE", "ENGINES"))
    for one in document["nodes"]:
        age = one["report_age_ms"]
        table.add_row(
            cell(one["name"]),
            cell(one["state"], "green" if one["state"] == "online" else "yellow"),
            cell(one["agent_version"] or ""),
            cell(" ".join(one["engines"])),
            str(len(one["gpus"])),
            str(one["cpu_count"] or ""),
            f"{one['memory_mib'] // 1024} GiB" if one["memory_mib"] else "",
            "never" if age is None else f"{age / 1000:.0f} s ago",
        )
    return table


def _table(columns: tuple[str, ...], wrapped: tuple[str, ...]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold", no_wrap=column not in wrapped)
    return table
