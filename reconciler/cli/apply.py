"""`gpuaas apply`: converge now, or carry out a saved plan, and wait for it."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from reconciler.cli.common import (
    EXIT_CHANGES,
    EXIT_ERROR,
    EXIT_OK,
    environment_of,
    load_settings,
    out,
    settings_options,
    verdict,
)
from reconciler.cli.events import event_line
from reconciler.cli.status import print_findings
from reconciler.core.names import InstanceKey
from reconciler.core.plan import Plan
from reconciler.core.records import Intent, PassSummary
from reconciler.errors import Refused
from reconciler.observe import key_versions
from reconciler.ports import Ports
from reconciler.settings import Settings
from reconciler.use_cases import saved_plan
from reconciler.use_cases.planning import look_now, plan_revision
from reconciler.use_cases.saved_plan import SavedPlan
from reconciler.wiring.files import schema_set
from reconciler.wiring.gate import walked_to
from reconciler.wiring.ports import leader, open_ports
from reconciler.wiring.server import ControlPlane, control_plane

_LOOK_S = 0.2
_HEARD_MS = 2_000
_ASKED_ONE_BY_ONE_MAX = 50
_PLAN_ID = re.compile("[0-9a-f]{16}")


@click.command(
    epilog="Exit codes: 0 converged, or the plan carried out, 2 not there when the time ran out, "
    "1 an error, a plan that is refused or failed, or something only a person can settle.",
)
@click.argument("plan", required=False)
@settings_options
@click.option("--listen", help="host:port of the agent API while it runs.")
@click.option("--timeout-s", type=float, default=600.0, show_default=True, help="How long to wait.")
def apply(plan: str | None, timeout_s: float, **given: Any) -> int:
    """Bring what runs to the newest revision of the state repo, and wait until it is there.

    With a PLAN, a file that `gpuaas plan --out` saved or the id that `gpuaas plan` shows, exactly
    that is carried out, once, and only while commit and observed state still are what it was made
    from. Other changes wait meanwhile.

    Where `gpuaas run` leads already, asks it for a pass and follows; else leads for as long as
    it takes. Interrupting it is safe: the next apply or run goes on where it was.

    \b
    Examples:
      gpuaas apply --environment dev
      gpuaas plan --out plan.json; gpuaas apply plan.json
      gpuaas apply --timeout-s 60 || gpuaas status
    """
    settings = load_settings(**given)
    environment_of(settings)
    deadline = time.monotonic() + timeout_s
    if plan is not None:
        return _apply_saved(plan, settings, deadline)
    with open_ports(settings) as ports:
        if leader(ports, settings):
            ports.store.request_pass("apply", ports.clock.now_ms())
            return _follow(ports, deadline)
    with control_plane(settings) as plane, _leading(plane):
        return _follow(plane.ports, deadline)


@contextmanager
def _leading(plane: ControlPlane) -> Iterator[None]:
    stop = threading.Event()
    worker = threading.Thread(target=plane.loop.run, args=(stop,), daemon=True)
    worker.start()
    try:
        yield
    finally:
        stop.set()
        worker.join(timeout=10)


@dataclass
class _Events:
    """Prints events as they come, from now on."""

    ports: Ports
    cursor: int = field(init=False)

    def __post_init__(self) -> None:
        self.cursor = self.ports.store.last_cursor()

    def show(self) -> None:
        console = out()
        for numbered in self.ports.store.events(after=self.cursor):
            console.print(event_line(numbered), markup=False)
            self.cursor = numbered.cursor


def _follow(ports: Ports, deadline: float) -> int:
    """Prints events as they come until a pass on the newest revision has nothing left to do."""
    console = out()
    started_ms = ports.clock.now_ms()
    head = ports.source.fetch()
    events = _Events(ports)
    while True:
        events.show()
        last = ports.store.last_pass()
        code = verdict(last, head, started_ms)
        if code is not None or time.monotonic() > deadline:
            break
        time.sleep(_LOOK_S)
    if code is None:
        console.print("not converged in time; `gpuaas status` says what is missing", style="yellow")
        print_findings(console, last.findings if last is not None else ())
        return EXIT_CHANGES
    if code == EXIT_OK:
        console.print(f"converged at {head[:12]}", style="green")
        return EXIT_OK
    assert last is not None
    console.print(f"cannot converge at {head[:12]}:", style="red")
    print_findings(console, last.findings)
    return EXIT_ERROR


# --- a saved plan --------------------------------------------------------------------------------


def _apply_saved(plan: str, settings: Settings, deadline: float) -> int:
    with open_ports(settings, make=False) as ports:
        if _PLAN_ID.fullmatch(plan) and not Path(plan).exists():
            saved = _by_id(plan, ports, settings)
        else:
            saved = saved_plan.opened(_read(Path(plan)), ports.secrets)
            check(saved, ports, settings)
        if not saved.running:
            return _nothing(saved)
        if leader(ports, settings):
            events, asked_ms = _Events(ports), ports.clock.now_ms()
            ports.store.request_pass(saved.reason, asked_ms)
            return _follow_plan(saved, ports, settings, events, asked_ms, deadline)
    with control_plane(settings, manual=True) as plane:
        events, asked_ms = _Events(plane.ports), plane.ports.clock.now_ms()
        plane.loop.wakeups.add(saved.reason)
        with _leading(plane):
            return _follow_plan(saved, plane.ports, settings, events, asked_ms, deadline)


def _by_id(plan_id: str, ports: Ports, settings: Settings) -> SavedPlan:
    """The plan of that id, as long as it is the one of now."""
    head = ports.source.fetch()
    now, _ = _plan_of_now(head, head, ports, settings)
    assert now is not None
    if now.plan_id != plan_id:
        raise Refused(
            "plan_stale",
            f"the plan is {now.plan_id} now: commit or observed state are not what they were",
            hint="look at it again: gpuaas plan",
        )
    now_ms = ports.clock.now_ms()
    return saved_plan.of_plan(now, settings.environment, settings.branch, now_ms)


def _read(file: Path) -> bytes:
    try:
        with file.open("rb") as handle:
            return handle.read(saved_plan.PLAN_BYTES_MAX + 1)
    except OSError as error:
        raise Refused(
            "plan_unreadable",
            f"it cannot be read: {error.strerror}",
            where=str(file),
            hint="`gpuaas plan --out FILE` makes one",
        ) from None


def check(saved: SavedPlan, ports: Ports, settings: Settings) -> None:
    """Refuses a plan that may not be carried out now, with why and what to do."""
    now_ms = ports.clock.now_ms()
    saved_plan.refuse_untimely(saved, settings.environment, settings.branch, now_ms)
    head = ports.source.fetch()
    now, manual = _plan_of_now(saved.revision, head, ports, settings)
    saved_plan.refuse_used(saved, ports.store.intents(), manual=manual)
    saved_plan.refuse_stale(saved, head, now)


def _plan_of_now(
    revision: str, head: str, ports: Ports, settings: Settings
) -> tuple[Plan | None, bool]:
    """The plan as it would be made now, when it still is one of the same revision; and whether
    changes wait for an apply.
    """
    if head != revision:
        return None, True
    source = ports.source.snapshot(ports.source.head())
    look = look_now(ports, settings, lambda last: walked_to(source.revision, last, settings, ports))
    planned = plan_revision(look, source, schema_set(), settings)
    if planned.state.problems:
        raise Refused(
            "plan_problems",
            f"the revision has problems, the first: {planned.state.problems[0]}",
            hint="mend them with a new commit, and plan again",
        )
    return planned.plan, planned.state.guards.manual


def _follow_plan(
    saved: SavedPlan,
    ports: Ports,
    settings: Settings,
    events: _Events,
    asked_ms: int,
    deadline: float,
) -> int:
    """Until every action it let through has ended, one way or the other."""
    heard_ms = asked_ms + int(4_000 * settings.wakeup_interval_s) + _HEARD_MS
    while True:
        events.show()
        keys = key_versions(ports.secrets, saved.running_keys)[0]
        done = saved_plan.outcome(saved, _intents_of(saved, ports), ports.store.records(), keys)
        if not done.waiting or time.monotonic() > deadline:
            break
        if not done.begun and _passed_over(saved, ports.store.last_pass(), asked_ms, heard_ms):
            check(saved, ports, settings)
            raise Refused(
                "plan_stale",
                "the world moved on while it was asked for, nothing was carried out",
                hint="make another: gpuaas plan --out FILE",
            )
        time.sleep(_LOOK_S)
    return _conclude(saved, done)


def _intents_of(saved: SavedPlan, ports: Ports) -> Sequence[Intent]:
    """The journal of the plan's instances: by instance while they are few."""
    keys = sorted({InstanceKey(action.instance) for action in saved.running if action.node})
    if len(keys) > _ASKED_ONE_BY_ONE_MAX:
        return ports.store.intents()
    return [intent for key in keys for intent in ports.store.intents(key)]


def _passed_over(saved: SavedPlan, last: PassSummary | None, asked_ms: int, heard_ms: int) -> bool:
    """Whether a pass that knew of the plan has come to another one."""
    if last is None or last.started_at_ms < asked_ms:
        return False
    named = f"Plan/{saved.plan_id}"
    return last.started_at_ms > heard_ms or any(f.get("object") == named for f in last.findings)


def _conclude(saved: SavedPlan, done: saved_plan.Outcome) -> int:
    console, name = out(), f"plan {saved.plan_id}"
    for text in done.failed:
        console.print(f"failed: {text}", style="red", markup=False)
    for text in done.waiting:
        console.print(f"not done yet: {text}", style="yellow", markup=False)
    left = len(saved.actions) - len(saved.running)
    if left:
        console.print(
            f"{left} more of its actions wait for something else and go ahead after it; "
            "`gpuaas plan` says for what",
            style="yellow",
        )
    if done.failed:
        console.print(f"{name}: {len(done.failed)} failed", style="red")
        return EXIT_ERROR
    if done.waiting:
        console.print(f"{name} is not carried out in time; `gpuaas status` says how far it got")
        return EXIT_CHANGES
    console.print(f"{name} is carried out", style="green")
    return EXIT_OK


def _nothing(saved: SavedPlan) -> int:
    """Nothing in it is let through: all is held for reasons that an apply does not lift."""
    held = len(saved.actions)
    more = f"; {held} actions are held, `gpuaas plan` says why" if held else ""
    out().print(f"plan {saved.plan_id} has nothing to carry out{more}")
    return EXIT_CHANGES if held else EXIT_OK
