"""`gpuaas apply`: converge now, and wait for it."""

from __future__ import annotations

import threading
import time
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
from reconciler.ports import Ports
from reconciler.wiring.ports import leader, open_ports
from reconciler.wiring.server import control_plane

_LOOK_S = 0.2


@click.command(
    epilog="Exit codes: 0 converged, 2 not there when the time ran out, "
    "1 an error or something only a person can settle.",
)
@settings_options
@click.option("--listen", help="host:port of the agent API while it runs.")
@click.option("--timeout-s", type=float, default=600.0, show_default=True, help="How long to wait.")
def apply(timeout_s: float, **given: Any) -> int:
    """Bring what runs to the newest revision of the state repo, and wait until it is there.

    Where `gpuaas run` leads already, asks it for a pass and follows; else leads for as long as
    it takes. Interrupting it is safe: the next apply or run goes on where it was.

    \b
    Examples:
      gpuaas apply --environment dev
      gpuaas apply --timeout-s 60 || gpuaas status
    """
    settings = load_settings(**given)
    environment_of(settings)
    deadline = time.monotonic() + timeout_s
    with open_ports(settings) as ports:
        if leader(ports, settings):
            ports.store.request_pass("apply", ports.clock.now_ms())
            return _follow(ports, deadline)
    with control_plane(settings) as plane:
        stop = threading.Event()
        worker = threading.Thread(target=plane.loop.run, args=(stop,), daemon=True)
        worker.start()
        try:
            return _follow(plane.ports, deadline)
        finally:
            stop.set()
            worker.join(timeout=10)


def _follow(ports: Ports, deadline: float) -> int:
    """Prints events as they come until a pass on the newest revision has nothing left to do."""
    console = out()
    started_ms = ports.clock.now_ms()
    head = ports.source.fetch()
    cursor = ports.store.last_cursor()
    while True:
        for numbered in ports.store.events(after=cursor):
            console.print(event_line(numbered), markup=False)
            cursor = numbered.cursor
        last = ports.store.last_pass()
        code = verdict(last, head, started_ms)
        if code is not None or time.monotonic() > deadline:
            break
        time.sleep(_LOOK_S)
    if code is None:
        console.print("not converged in time; `gpuaas status` says what is missing", style="yellow")
        return EXIT_CHANGES
    if code == EXIT_OK:
        console.print(f"converged at {head[:12]}", style="green")
        return EXIT_OK
    assert last is not None
    console.print(f"cannot converge at {head[:12]}:", style="red")
    for finding in last.findings:
        text = f"  {finding.get('code')}: {finding.get('message')}"
        console.print(text, markup=False)
    return EXIT_ERROR
