"""`gpuaas run`: the control plane, until it is told to stop."""

from __future__ import annotations

import signal
import threading
from typing import Any

import click

from node_agent.no_dumps import keep_out_of_dumps
from reconciler.cli.common import EXIT_OK, environment_of, err, load_settings, settings_options
from reconciler.wiring.server import control_plane


@click.command(epilog="Exit codes: 0 told to stop, 1 an error at start.")
@settings_options
@click.option("--listen", help="host:port of webhooks, read API and metrics.")
@click.option("--agents-listen", help="host:port of the agent API, always TLS.")
@click.option("--poll-interval-s", type=float, help="How often the state repo is fetched.")
def run(**given: Any) -> int:
    """Run the control plane: follow the state repo and converge the fleet to it.

    Stops on SIGINT or SIGTERM; what runs on the nodes goes on. Several may share one state
    directory: one leads, the others stand by.

    \b
    Examples:
      gpuaas run --repo . --environment dev --state-dir ./state
      GPUAAS_REPO=ssh://git@forge/state.git gpuaas run -e prod
    """
    keep_out_of_dumps()
    settings = load_settings(**given)
    environment_of(settings)
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    with control_plane(settings) as plane:
        err().print(
            f"gpuaas listens on {plane.address} (webhook: /v1/hooks/git), for agents on "
            f"{plane.agents_address} (join one: gpuaas node join NAME)",
            markup=False,
        )
        plane.loop.run(stop)
    return EXIT_OK
