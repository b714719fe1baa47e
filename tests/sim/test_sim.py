"""New seeds each time, and all that once failed. What fails says how to see it again."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.sim.faults import KINDS
from tests.sim.run import Runner

HERE = Path(__file__).parent
NEW_SEEDS = int(os.environ.get("SIM_SEEDS", "150"))
TIME_MAX_S = 45.0
"""No new seed is begun after that long: a slow machine has fewer, never a failure."""


def regressions() -> Iterator[tuple[int, str]]:
    for line in (HERE / "regressions.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            seed, _, found = line.partition(" ")
            yield int(seed), found


@pytest.fixture(scope="module")
def runner() -> Runner:
    return Runner()


@pytest.mark.parametrize(("seed", "found"), list(regressions()))
def test_a_seed_that_once_failed_holds(runner: Runner, seed: int, found: str) -> None:
    result = runner.run(seed)
    assert not result.rule, f"{found}\n{result}"


def seeds_of_this_tree() -> int:
    """Others for each state of the code, the same for whoever tests it again."""
    asked = ["git", "-C", str(HERE), "rev-parse", "HEAD^{tree}"]
    head = subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip()
    return int(head[:9], 16) * 1_000 if head else time.time_ns() // 1_000_000


def test_new_seeds_hold(runner: Runner, capsys: pytest.CaptureFixture[str]) -> None:
    base = int(os.environ.get("SIM_BASE", "0")) or seeds_of_this_tree()
    ends = time.monotonic() + TIME_MAX_S
    done = 0
    for seed in range(base, base + NEW_SEEDS):
        result = runner.run(seed)
        assert not result.rule, str(result)
        done += 1
        if time.monotonic() > ends:
            break
    with capsys.disabled():
        print(f" [{done} new seeds from {base}]", end="")


def test_without_faults_every_seed_comes_to_rest(runner: Runner) -> None:
    for seed in range(15):
        result = runner.run(seed, ())
        assert not result.rule, str(result)


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_fault_alone(runner: Runner, kind: str) -> None:
    result = runner.run(sum(kind.encode()), (kind,))
    assert not result.rule, str(result)


def test_a_seed_is_the_same_in_another_process() -> None:
    """Whatever the hash seed of the interpreter: nothing hangs on the order of a set."""
    told = [
        subprocess.run(
            [sys.executable, "-m", "tests.sim", "--seed", "11", "--trace"],
            cwd=HERE.parents[1],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=False,
        ).stdout
        for hash_seed in ("1", "2")
    ]
    assert "trace " in told[0]
    assert told[0] == told[1]


def test_a_trace_does_not_hang_on_what_ran_before(runner: Runner) -> None:
    assert Runner().run(12).trace_hash == runner.run(12).trace_hash == runner.run(12).trace_hash
