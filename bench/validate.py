"""`gpuaas validate` beside the validators people use: the same files, the same schemas, turn about.

Rules:
- Every figure of a cold run is a whole process: start, read, check, report, exit. Sides take turns,
  so that whatever slows this machine down slows all of them.
- Before anything is measured, each side must find what was planted: who finds nothing is not fast.
- The others check documents against schemas. `gpuaas validate` also checks paths and names,
  duplicates, references, entitlements, capacity and leases; there is no way to leave that out.
- Schemas are the published ones, in a copy. Go's regular expressions refuse a repetition of more
  than 1,000: in the copy such a bound is left out, since maxLength is there as well.
- What has to be installed goes to a folder of its own: ~/.cache/gpuaas-bench.

Run: `python -m bench.validate [--rounds 5] [--documents 10000] [--large 100000] [--json FILE]`.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

from bench import manifests
from reconciler.adapters.git_pygit2 import GitSource
from reconciler.adapters.schema_files import load_schemas
from reconciler.collector import without_collector
from reconciler.core.kinds import KINDS
from reconciler.settings import Settings
from reconciler.use_cases.validation import CheckMemo, check

CACHE = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "gpuaas-bench"
KUBECONFORM = "github.com/yannh/kubeconform/cmd/kubeconform@v0.8.0"
CHECK_JSONSCHEMA = "check-jsonschema==0.39.0"
AGAIN_COMMITS = 5
_LONG_REPETITION = re.compile(r"\{\d*,(\d{4,})\}")
Argvs = list[list[str]]


@dataclass(frozen=True)
class Side:
    """One validator. `argvs` are the processes that one folder takes, one after the other."""

    name: str
    argvs: Callable[[Path], Argvs]
    takes_bundles: bool = True


@dataclass(frozen=True)
class Cold:
    """One cold run. Memory is the largest resident size of one of its processes."""

    wall_s: float
    cpu_s: float
    memory_mib: float
    exit_code: int
    output: str


@dataclass(frozen=True)
class Row:
    """Medians of one side on one layout."""

    layout: str
    side: str
    wall_s: float
    wall_min_s: float
    cpu_s: float
    memory_mib: float
    ratio: float
    """Of its wall time to that of gpuaas."""


# --- the sides -----------------------------------------------------------------------------------


def sides(schemas: Path) -> list[Side]:
    """gpuaas and whoever else can be had on this machine."""
    program = Path(sys.executable).with_name("gpuaas")
    found = [Side("gpuaas validate", lambda root: [[str(program), "validate", str(root)]])]
    kubeconform = _kubeconform()
    if kubeconform is not None:
        where = f"{schemas}/{{{{.ResourceKind}}}}.v1.schema.json"
        argv = [str(kubeconform), "-summary", "-schema-location", where, "-n"]
        found += [
            Side("kubeconform -n 1", lambda root: [[*argv, "1", str(root)]]),
            Side("kubeconform -n 2", lambda root: [[*argv, "2", str(root)]]),
        ]
    check_jsonschema = _check_jsonschema()
    if check_jsonschema is not None:

        def by_kind(root: Path) -> Argvs:
            argv = [str(check_jsonschema), "--schemafile"]
            return [[*argv, str(schemas / file), *paths] for file, paths in _kinds(root)]

        found.append(Side("check-jsonschema", by_kind, takes_bundles=False))
    return found


def _kinds(root: Path) -> Iterator[tuple[str, list[str]]]:
    """(schema file, paths) of each kind: check-jsonschema takes one schema a process."""
    paths = sorted(str(path.relative_to(root)) for path in root.rglob("*.yaml"))
    for kind in KINDS.values():
        those = [str(root / path) for path in paths if kind.pattern.fullmatch(path)]
        first = Path(those[0]).read_text(encoding="utf-8") if those else ""
        if f"kind: {kind.name}\n" in first:
            yield kind.schema_file, those


def _kubeconform() -> Path | None:
    program = CACHE / "bin" / "kubeconform"
    if not program.exists() and shutil.which("go"):
        environment = {**os.environ, "GOBIN": str(program.parent)}
        subprocess.run(["go", "install", KUBECONFORM], env=environment, check=True)
    return program if program.exists() else None


def _check_jsonschema() -> Path | None:
    folder = CACHE / "check-jsonschema"
    program = folder / "bin" / "check-jsonschema"
    if not program.exists():
        venv.create(folder, with_pip=True)
        pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet"]
        subprocess.run([*pip, CHECK_JSONSCHEMA], check=True)
    return program if program.exists() else None


def write_schemas(folder: Path) -> None:
    """The published schemas, as every side can read them."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, schema in load_schemas().items():
        text = _LONG_REPETITION.sub("*", json.dumps(schema))
        (folder / KINDS[name].schema_file).write_text(text, encoding="utf-8")


# --- cold runs -----------------------------------------------------------------------------------


def run(argvs: Argvs) -> Cold:
    wall_s = cpu_s = memory_mib = 0.0
    exit_code, output = 0, ""
    for argv in argvs:
        with tempfile.TemporaryFile("w+") as text:
            begun = time.perf_counter()
            process = subprocess.Popen(argv, stdout=text, stderr=subprocess.STDOUT)
            _, status, usage = os.wait4(process.pid, 0)
            wall_s += time.perf_counter() - begun
            process.returncode = os.waitstatus_to_exitcode(status)
            output += _beginning(text)
        cpu_s += usage.ru_utime + usage.ru_stime
        memory_mib = max(memory_mib, usage.ru_maxrss / 1024)
        exit_code = exit_code or process.returncode
    return Cold(wall_s, cpu_s, memory_mib, exit_code, output)


def _beginning(text: TextIO) -> str:
    text.seek(0)
    return text.read(100_000)


def find_planted(those: Sequence[Side], root: Path, content: manifests.Files) -> None:
    """Raises RuntimeError when a side is content with what is wrong, or not with what is right."""
    path, spoiled = manifests.spoiled(content)
    for side in those:
        good = run(side.argvs(root))
        (root / path).write_text(spoiled, encoding="utf-8")
        bad = run(side.argvs(root))
        (root / path).write_text(content[path], encoding="utf-8")
        if good.exit_code != 0 or bad.exit_code == 0 or Path(path).name not in bad.output:
            raise RuntimeError(f"{side.name}: {good.exit_code}, {bad.exit_code}\n{bad.output}")


def measure(those: Sequence[Side], root: Path, layout: str, rounds: int) -> list[Row]:
    runs: dict[str, list[Cold]] = {side.name: [] for side in those}
    for _ in range(rounds):
        for side in those:
            runs[side.name].append(run(side.argvs(root)))
    walls = {name: statistics.median(one.wall_s for one in some) for name, some in runs.items()}
    return [
        Row(
            layout,
            name,
            walls[name],
            min(one.wall_s for one in some),
            statistics.median(one.cpu_s for one in some),
            statistics.median(one.memory_mib for one in some),
            walls[name] / walls[those[0].name],
        )
        for name, some in runs.items()
    ]


# --- the long-lived process ----------------------------------------------------------------------


def again(root: Path) -> dict[str, Any]:
    """In this process: the first check of a repository, then one after each commit to one file."""
    _git(root, "init", "--quiet")
    _git(root, "add", ".")
    _git(root, "commit", "--quiet", "--message", "all")
    settings, memo = Settings(), CheckMemo()
    reader = GitSource.local(root, settings)
    instances = sorted(root.glob("tenants/*/projects/*/instances/*.yaml"))
    times = []
    for number in range(AGAIN_COMMITS + 1):
        if number:
            path = instances[number * len(instances) // (AGAIN_COMMITS + 1)]
            text = path.read_text(encoding="utf-8")
            path.write_text(text.replace("stage: production", "stage: trial", 1), encoding="utf-8")
            _git(root, "commit", "--quiet", "--all", "--message", "one file")
        with without_collector():
            begun = time.perf_counter()
            checked = check(reader.snapshot(reader.resolve("HEAD")), settings, memo)
            times.append(time.perf_counter() - begun)
        if checked.problems:
            raise RuntimeError(str(checked.problems[0]))
    return {
        "objects": checked.objects,
        "first_s": times[0],
        "one_file_s": statistics.median(times[1:]),
        "files_read": memo.validated.files_checked,
    }


def _git(root: Path, *args: str) -> None:
    name = ["-c", "user.name=bench", "-c", "user.email=bench@gpuaas.example", "-c", "gc.auto=0"]
    subprocess.run(["git", "-C", str(root), *name, *args], check=True)


# --- one run -------------------------------------------------------------------------------------


def report(rows: Sequence[Row]) -> None:
    print(f"\n{'':<12}{'':<20}{'median':>9}{'min':>9}{'CPU':>9}{'memory':>10}{'ratio':>8}")
    for row in rows:
        times = "".join(f"{value:7.2f} s" for value in (row.wall_s, row.wall_min_s, row.cpu_s))
        memory = f"{row.memory_mib:6.0f} MiB"
        print(f"{row.layout:<12}{row.side:<20}{times}{memory}{row.ratio:8.2f}")


def compare(given: argparse.Namespace, base: Path) -> list[Row]:
    write_schemas(base / "schemas")
    those = sides(base / "schemas")
    rows: list[Row] = []
    for layout in ("single", "bundled"):
        content = manifests.files(given.documents, layout)
        root = base / layout
        manifests.write(root, content)
        able = [side for side in those if side.takes_bundles or layout == "single"]
        find_planted(able, root, content)
        lines = manifests.lines_per_document(content)
        print(f"{layout}: {len(content)} files, {lines:.0f} lines a document")
        rows += measure(able, root, layout, given.rounds)
    report(rows)
    return rows


def one_commit(documents: int, base: Path) -> Mapping[str, Any]:
    """`again` in a process of its own."""
    root = base / f"git-{documents}"
    manifests.write(root, manifests.files(documents))
    argv = [sys.executable, "-m", "bench.validate", "--again", str(root)]
    found = run([argv])
    if found.exit_code:
        raise RuntimeError(found.output)
    said: dict[str, Any] = json.loads(found.output)
    print(
        f"{said['objects']} objects in one process: first {said['first_s']:.2f} s, "
        f"after a commit to one file {said['one_file_s'] * 1000:.0f} ms, "
        f"{found.memory_mib:.0f} MiB"
    )
    return {**said, "memory_mib": found.memory_mib}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--documents", type=int, default=10_000)
    parser.add_argument("--large", type=int, default=100_000, help="0: left out")
    parser.add_argument("--json", type=Path, help="Where the figures go as JSON.")
    parser.add_argument("--again", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.again:
        print(json.dumps(again(given.again)))
        return
    print(f"{os.cpu_count()} cores, Python {sys.version.split()[0]}, {given.rounds} rounds each")
    with tempfile.TemporaryDirectory(prefix="gpuaas-bench-") as folder:
        rows = compare(given, Path(folder))
        print()
        sizes = [given.documents, *([given.large] if given.large else [])]
        commits = [one_commit(size, Path(folder)) for size in sizes]
    if given.json:
        figures = {"cold": [asdict(row) for row in rows], "one_commit": commits}
        given.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
