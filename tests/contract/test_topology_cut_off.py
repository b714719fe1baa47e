"""Whatever ends an agent or a Compose, and when: the next turns lead to the same end."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from node_agent.engines.base import EngineFailure, ownership_labels
from node_agent.engines.compose_file import LABEL_SERVICE_HASH
from node_agent.wire import LABEL_SERVICE, HttpProbe, Workload
from tests.contract.test_engines import eventually
from tests.contract.topology_place import (
    ALL,
    INSTANCE,
    NODE,
    NOTHING,
    Place,
    script,
)

pytestmark = pytest.mark.real


DELAYS_S = (0.01, 0.04, 0.07, 0.1, 0.14, 0.2, 0.3, 0.5)


def cut_off(place: Place, compose: Path, delay_s: float) -> Path:
    text = (
        f'[ "$1" = version ] && exec {compose} "$@"\n'
        f'{compose} "$@" & pid=$!\n(sleep {delay_s}; kill -9 $pid) & wait $pid'
    )
    return script(place.folder / f"cut-{delay_s}", text)


def is_whole(place: Place, workload: Workload) -> None:
    unit = place.unit(workload)
    assert {one.name: one.status for one in unit.services} == dict.fromkeys(ALL, "running")
    assert place.altered(workload) == {}
    assert place.engine.residue(INSTANCE).containers == len(ALL)
    eventually(lambda: place.engine.probe(unit, HttpProbe(port=8080), 1_000).ready)


@pytest.mark.parametrize("delay_s", DELAYS_S)
def test_a_compose_that_is_killed_is_gone_on_from(
    place: Place, compose_program: Path, delay_s: float
) -> None:
    cut = place.another(cut_off(place, compose_program, delay_s))
    first, second = place.workload(), place.workload(env={"LEVEL": "debug"})
    for workload in (first, second, first):
        unit = place.create(workload)
        for _ in range(2):
            with contextlib.suppress(EngineFailure):
                cut.start(unit)
        place.engine.start(place.unit(workload))
        place.engine.start_services(place.unit(workload), ALL)
        is_whole(place, workload)
    unit = place.unit(first)
    cut.stop(unit, 0)
    cut.remove(unit)
    cut.close()
    assert place.engine.residue(INSTANCE).containers == 0


def test_what_a_killed_compose_left_running_is_asked_to_stop(place: Place) -> None:
    """It had made the new container, and not come to the old one yet."""
    workload = place.workload()
    place.run(workload)
    wait = "trap 'exit 7' TERM; echo ready; while :; do sleep 0.1; done"
    old = place.api.create_container_from_config(
        {
            "Image": place.image.reference,
            "Entrypoint": ["/bin/busybox", "sh", "-c", wait],
            "StopTimeout": 60,
            "Labels": {
                **ownership_labels(NODE, INSTANCE),
                LABEL_SERVICE: "api",
                LABEL_SERVICE_HASH: "sha256:old",
            },
        }
    )["Id"]
    place.api.start(old)
    eventually(lambda: b"ready" in place.api.logs(old))
    called = place.calls()
    place.engine.start(place.unit(workload))
    assert place.calls() == called
    is_whole(place, workload)
    told = place.api.events(
        since=0, until=int(time.time()) + 1, decode=True,
        filters={"container": old, "event": "die"},
    )  # fmt: skip
    assert [one["Actor"]["Attributes"]["exitCode"] for one in told] == ["7"]


AGENT = """
import sys, threading
from pathlib import Path
from node_agent.engines.compose import ComposeEngine
node, state, host, program, instance, doing = sys.argv[1:]
engine = ComposeEngine(node, Path(state), host, program=Path(program))
units = {unit.status: unit for unit in engine.units(instance)}
print("ready", flush=True)
sys.stdin.readline()
if doing == "start":
    engine.start(units["created"])
else:
    engine.stop(units["running"], 0)
    engine.remove(units["running"])
"""


def killed_agent(place: Place, doing: str, delay_s: float) -> None:
    """One that is at it, and ends without a word."""
    with subprocess.Popen(
        [sys.executable, "-c", AGENT, NODE, str(place.state), place.host,
         str(place.program), INSTANCE, doing],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    ) as agent:  # fmt: skip
        assert agent.stdin is not None
        assert agent.stdout is not None
        assert agent.stdout.readline() == "ready\n"
        agent.stdin.write("\n")
        agent.stdin.flush()
        time.sleep(delay_s)
        agent.send_signal(signal.SIGKILL)


@pytest.mark.parametrize("delay_s", [*DELAYS_S, 0.8])
def test_an_agent_that_is_killed_is_gone_on_from(place: Place, delay_s: float) -> None:
    first, second = place.workload(), place.workload(env={"LEVEL": "debug"})
    place.run(first)
    place.create(second)
    killed_agent(place, "start", delay_s)
    # Right away, whatever the Compose that it started is still at.
    place.engine.start(place.unit(second))
    place.engine.start_services(place.unit(second), ALL)
    is_whole(place, second)
    killed_agent(place, "remove", delay_s)
    for _ in range(2):
        for unit in place.engine.units():
            place.engine.stop(unit, 0)
            place.engine.remove(unit)
    place.engine.sweep(INSTANCE)
    assert place.engine.residue(INSTANCE) == NOTHING


def test_a_compose_that_takes_too_long_is_ended_with_all_that_it_started(
    place: Place, compose_program: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And one that is called off, when the agent ends."""
    marker = place.folder / "still-there"
    slow = script(
        place.folder / "slow",
        f'[ "$1" = version ] && exec {compose_program} "$@"\n'
        f"(sleep 1.5; touch {marker}) & sleep 600",
    )
    engine = place.another(slow)
    unit = place.create(place.workload())
    monkeypatch.setattr("node_agent.engines.compose.MAKE_LIMIT_S", 0.3)
    with pytest.raises(EngineFailure, match="took over") as over:
        engine.start(unit)
    assert over.value.transient
    monkeypatch.undo()
    threading.Timer(0.3, engine.close).start()
    with pytest.raises(EngineFailure, match="called off"):
        engine.start(unit)
    time.sleep(1.7)
    assert not marker.exists()
    place.engine.start(place.unit(place.workload()))
