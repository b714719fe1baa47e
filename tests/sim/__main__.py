"""`python -m tests.sim`: many seeds, or one with its whole trace. Exit code 1 when a seed fails."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor

from tests.sim.faults import KINDS
from tests.sim.run import Result, Runner

CHUNK = 20
SHOWN_MAX = 5


def run_chunk(first: int, count: int, kinds: Sequence[str]) -> list[Result]:
    runner = Runner()
    return [runner.run(seed, kinds) for seed in range(first, first + count)]


def results(start: int, seeds: int, jobs: int, kinds: Sequence[str]) -> Iterator[Result]:
    chunks = range(start, start + seeds, CHUNK)
    counts = [min(CHUNK, start + seeds - first) for first in chunks]
    if jobs == 1:
        runner = Runner()
        yield from (runner.run(seed, kinds) for seed in range(start, start + seeds))
        return
    with ProcessPoolExecutor(jobs) as pool:
        for chunk in pool.map(run_chunk, chunks, counts, [kinds] * len(counts)):
            yield from chunk


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.sim", description=__doc__)
    parser.add_argument("--seed", type=int, help="run this one only")
    parser.add_argument("--trace", action="store_true", help="with --seed: all that happened")
    parser.add_argument("--seeds", type=int, default=1000, help="how many, from --start on")
    parser.add_argument("--start", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--faults", default=",".join(KINDS), help="kinds that may happen")
    given = parser.parse_args(arguments)
    kinds = [kind for kind in given.faults.split(",") if kind]
    unknown = sorted(set(kinds) - set(KINDS))
    if unknown:
        parser.error(f"no such faults: {', '.join(unknown)}; there are {', '.join(KINDS)}")
    if given.seed is not None:
        return _one(given.seed, kinds, trace=given.trace)
    return _many(given.start, given.seeds, given.jobs, kinds)


def _one(seed: int, kinds: Sequence[str], *, trace: bool) -> int:
    result = Runner().run(seed, kinds, keep_trace=trace)
    if trace:
        print("\n".join(result.lines))
    print(f"seed {seed}: {result.rule or 'all held'} {result.message}".rstrip())
    print(f"{result.ticks} ticks, trace {result.trace_hash}")
    return 1 if result.rule else 0


def _many(start: int, seeds: int, jobs: int, kinds: Sequence[str]) -> int:
    began, ticks, failed = time.monotonic(), 0, 0
    for number, result in enumerate(results(start, seeds, jobs, kinds), 1):
        ticks += result.ticks
        if result.rule:
            failed += 1
            if failed <= SHOWN_MAX:
                print(f"\n{result}")
        if number % 100 == 0 or number == seeds:
            rate = number / (time.monotonic() - began)
            print(f"\r{number} of {seeds} seeds, {failed} failed, {rate:.1f} a second", end="")
            sys.stdout.flush()
    print(f"\n{ticks} ticks in {time.monotonic() - began:.0f} s")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
