"""Feeds `validate` broken state repos, for as long as it is told, and looks at what it says.

    python bench/fuzz_validate.py --seconds 60 --seed 1
    python bench/fuzz_validate.py --seed 1 --case 4711      # one case again

A case is made from the example repo by its seed and number alone: bytes, lines, values, fields and
paths are changed, files are joined, copied, swapped and filled with noise. Of every case it wants:
no exception, no crash, an answer in time, the same answer when coming from the example, every
problem at a place that is there, views and reviews that hold it, and of changes that mean nothing
no problem at all. What fails is saved as a folder, and its seed and number are printed.
"""

from __future__ import annotations

import argparse
import random
import re
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import yaml

from reconciler.core.kinds import KINDS
from reconciler.core.names import Revision
from reconciler.core.problems import Problem
from reconciler.core.source import Snapshot, SourceFile
from reconciler.settings import Settings
from reconciler.use_cases.review import review
from reconciler.use_cases.validation import Checked, CheckMemo, check
from reconciler.views.problems import (
    Verdict,
    github_lines,
    json_document,
    sarif_document,
    text_lines,
)

EXAMPLE = Path(__file__).resolve().parent.parent / "example-state-repo"
CASE_S_MAX = 10.0
"""CPU time for one case; the worst honest one takes a fraction of it."""
HANG_S_MAX = 60.0
MESSAGE_LENGTH_MAX = 2_000
_BREAK = re.compile(rb"\r\n|\r|\n")

Files = dict[str, bytes]
Change = Callable[[random.Random, Files], None]

WORDS = (
    b"null", b"~", b"true", b"on", b"0777", b"1e999", b".inf", b"-", b"? ", b": ", b"&a ", b"*a",
    b"<<: *a", b"!!binary x", b"%YAML 1.2\n---\n", b"---\n", b"...\n", b"|\n", b">-\n", b"'", b'"',
    b"[", b"]", b"{", b"}", b",", b"#", b"\t", b"\r", b"\0", b"\xef\xbb\xbf", b"\xff", b"\xc2\x85",
    b"\xe2\x80\xa8", b"\xf0\x9f\x98\x80", b"\x1b[2J", b"9" * 500, b"a" * 70_000, b"[" * 300,
    b"1:30", b"2026-02-30T00:00:00Z", b"9999-12-31T23:59:59+14:00", b"sha256:" + b"0" * 64,
)  # fmt: skip
VALUES: tuple[Any, ...] = (
    None, True, 0, -1, 2**63, 1.5, "", "x", "hello", "acme/research", "1.0", "é\u202e", "a" * 5_000,
    [], {}, [[]], [None], {"": 1}, {"a/b~c": {}}, ["x"] * 2_000, "(" * 50, "2026-13-01T00:00:00Z",
    "24:00", "Europe/Berln", ["numpy==1", "numpy==2", "-r x"], {"type": "object", "$ref": "#"},
    {"pattern": "(a+)+$"}, "../../etc", "gpuaas/x@sha256:" + "0" * 64,
)  # fmt: skip


def example() -> Files:
    found = (path for path in EXAMPLE.rglob("*") if path.is_file())
    return {str(path.relative_to(EXAMPLE)): path.read_bytes() for path in found}


# --- changes -------------------------------------------------------------------------------------


class Loader(yaml.SafeLoader):
    """Leaves times as they are written."""

    yaml_implicit_resolvers = {  # noqa: RUF012
        first: [one for one in resolvers if one[0] != "tag:yaml.org,2002:timestamp"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


def load(text: bytes) -> list[Any]:
    return list(yaml.load_all(text, Loader))


def pick(rng: random.Random, files: Files) -> str:
    return rng.choice(sorted(path for path in files if path.endswith(".yaml")) or sorted(files))


def change_bytes(rng: random.Random, files: Files) -> None:
    path = pick(rng, files)
    content = bytearray(files[path])
    at, end = sorted((rng.randrange(len(content) + 1), rng.randrange(len(content) + 1)))
    how = rng.randrange(4)
    if how == 0:
        content[at:at] = rng.choice(WORDS)
    elif how == 1:
        del content[at : min(end, at + rng.choice((1, 8, 400)))]
    elif how == 2:
        content[at:at] = content[at:end] * rng.choice((1, 2, 30))
    elif content:
        content[at % len(content)] = rng.randrange(256)
    files[path] = bytes(content)


def change_lines(rng: random.Random, files: Files) -> None:
    path = pick(rng, files)
    lines = files[path].split(b"\n")
    at, other = rng.randrange(len(lines)), rng.randrange(len(lines))
    how = rng.randrange(6)
    if how == 0:
        lines.insert(at, lines[other])
    elif how == 1:
        del lines[at]
    elif how == 2:
        lines[at], lines[other] = lines[other], lines[at]
    elif how == 3:
        lines[at] = b" " * rng.randrange(6) + lines[at].lstrip()
    elif how == 4:
        lines[at] = lines[at].partition(b":")[0] + b": " + rng.choice(WORDS)
    else:
        lines[at] += b" " + rng.choice(WORDS)
    files[path] = b"\n".join(lines)


def change_values(rng: random.Random, files: Files) -> None:
    """Takes the document apart and changes one node of it."""
    path = pick(rng, files)
    try:
        documents = load(files[path])
    except (yaml.YAMLError, ValueError, RecursionError):
        return
    nodes = list(_nodes(documents))
    if not nodes:
        return
    node, key = rng.choice(nodes)
    how = rng.randrange(4)
    if how == 0:
        node[key] = rng.choice(VALUES)
    elif how == 1:
        del node[key]
    elif how == 2:
        there, name = rng.choice(nodes)
        node[key] = there[name] if name in _keys(there) else rng.choice(VALUES)
    elif isinstance(node, dict):
        node[f"{key}{rng.choice(('', 's', '_x'))}"] = node.pop(key)
    try:
        text = yaml.safe_dump_all(documents, allow_unicode=True)
    except (yaml.YAMLError, ValueError, RecursionError):
        return
    files[path] = text.encode("utf-8", "replace")


def _keys(node: Any) -> Any:
    return node if isinstance(node, dict) else range(len(node))


def _nodes(value: Any, depth: int = 0) -> Any:
    """(container, key) of everything in a document."""
    if isinstance(value, dict | list) and depth < 20:
        for key in list(_keys(value)):
            yield value, key
            yield from _nodes(value[key], depth + 1)


def change_paths(rng: random.Random, files: Files) -> None:
    path, other = pick(rng, files), pick(rng, files)
    template = rng.choice(sorted(kind.path for kind in KINDS.values()))
    names = ("hello", "acme", "research", "1.0.0", "dev", "x", "X Y", "\n", "..", "é")
    made = re.sub(r"\{\w+\}", lambda _: rng.choice(names), template)
    how = rng.randrange(6)
    if how == 0:
        del files[path]
    elif how == 1:
        files[made] = files.pop(path)
    elif how == 2:
        files[made] = files[path]
    elif how == 3:
        files[path], files[other] = files[other], files[path]
    elif how == 4:
        files[path.replace("/", rng.choice(("/", "//", "/x/")), 1)] = files.pop(path)
    else:
        files[path.upper() if rng.random() < 0.5 else path[:-5] + ".yml"] = files.pop(path)


def change_documents(rng: random.Random, files: Files) -> None:
    """Joins files, or repeats one."""
    path, other = pick(rng, files), pick(rng, files)
    between = rng.choice((b"---\n", b"\n---\n", b"...\n---\n", b"", b"--- |\n"))
    files[path] = (files[path] + between) * rng.choice((1, 1, 2, 60)) + files[other]


def change_to_noise(rng: random.Random, files: Files) -> None:
    length = rng.choice((0, 1, 30, 3_000))
    alphabet = rng.choice((bytes(range(256)), b"-?:,[]{}#&*!|>'\"%@` \n\tab01", b"[{: \n-"))
    files[pick(rng, files)] = bytes(rng.choice(alphabet) for _ in range(length))


CHANGES: tuple[Change, ...] = (
    change_bytes,
    change_lines,
    change_values,
    change_values,
    change_paths,
    change_documents,
    change_to_noise,
)


def leave_meaning(rng: random.Random, files: Files) -> None:
    """Changes the text of every file, and what none of them says."""
    for path in [path for path in files if path.endswith(".yaml")]:
        text = files[path]
        how = rng.randrange(5)
        if how == 0:
            text = text.replace(b"\n", b"\r\n")
        elif how == 1:
            text = b"\xef\xbb\xbf" + text
        elif how == 2:
            text = b"# a remark: [\n\n---\n" + text + b"\n...\n"
        elif how == 3:
            text = text.rstrip(b"\n")
        else:
            sort = rng.random() < 0.5
            text = yaml.safe_dump_all(load(text), sort_keys=sort, indent=4, width=30).encode()
        files[path] = text


def make_case(seed: str, number: int) -> tuple[Files, bool]:
    """The files of a case, and whether they still mean what the example means."""
    rng = random.Random(f"{seed}/{number}")  # noqa: S311
    files = example()
    if number % 10 == 0:
        leave_meaning(rng, files)
        return files, True
    for _ in range(rng.choice((1, 1, 2, 3, 8))):
        if files:
            rng.choice(CHANGES)(rng, files)
    return files, False


# --- what is wanted ------------------------------------------------------------------------------


class Wrong(Exception):
    """What a case showed."""


def run_case(files: Files, clean: bool, base: Checked, settings: Settings) -> None:
    """Raises for whatever is not as it should be."""
    snapshot = snapshot_of(files)
    begun_s = time.process_time()
    found = check(snapshot, settings)
    took_s = time.process_time() - begun_s
    if took_s > CASE_S_MAX:
        raise Wrong(f"took {took_s:.1f} s")
    memo = CheckMemo()
    check(base.snapshot, settings, memo)
    again = check(snapshot, settings, memo)
    if again.problems != found.problems:
        raise Wrong(f"other problems on the way from the base: {again.problems}")
    if again.candidate != found.candidate:
        raise Wrong("other objects on the way from the base")
    if clean and found.problems:
        raise Wrong(f"nothing is wrong, and yet: {found.problems[0]}")
    for problem in found.problems:
        wrong = misplaced(problem, files)
        if wrong:
            raise Wrong(f"{wrong}: {problem!r}")
    compared = review(base, found, settings.parse_limits)
    verdict = Verdict(found.revision, found.objects, compared.problems, 0.0, compared, "state/")
    list(text_lines(verdict))
    list(github_lines(verdict))
    json_document(verdict)
    sarif_document(verdict, "0.0.0")


def snapshot_of(files: Files) -> Snapshot:
    held = (SourceFile(p, sha256(files[p]).hexdigest(), files[p]) for p in sorted(files))
    return Snapshot(Revision("0" * 40), tuple(held), "", "", 0)


def misplaced(problem: Problem, files: Files) -> str:
    """Why nobody could go where the problem says; empty when it is there."""
    if not problem.code or not problem.message or len(problem.message) > MESSAGE_LENGTH_MAX:
        return "no code, or no or a very long message"
    if problem.path not in files:
        # Told of what is missing.
        return "" if problem.code == "unknown_environment" else "no such file"
    if problem.line == 0:
        return ""
    lines = _BREAK.split(files[problem.path])
    if not 0 < problem.line <= len(lines):
        return "no such line"
    width = len(lines[problem.line - 1].decode("utf-8", "replace"))
    return "" if 0 < problem.column <= width + 2 else "no such column"


# --- running -------------------------------------------------------------------------------------


def work(seed: str, first: int, seconds: float, progress: Path) -> int:
    """Runs cases until the time is over, or the number of the one that failed is in `progress`."""
    settings = Settings()
    base = check(snapshot_of(example()), settings)
    end_s = time.monotonic() + seconds
    number = first
    with progress.open("r+b", buffering=0) as file:
        while time.monotonic() < end_s:
            file.seek(0)
            file.write(b"%020d" % number)
            files, clean = make_case(seed, number)
            try:
                run_case(files, clean, base, settings)
            except Exception:
                traceback.print_exc()
                return 1
            number += 1
    return 0


def watch(seed: str, seconds: float, folder: Path) -> int:
    """Runs the worker as a process of its own, so that a crash or endless loop is seen too."""
    folder.mkdir(parents=True, exist_ok=True)
    progress = folder / "progress"
    progress.write_bytes(b"%020d" % 0)
    command = [sys.executable, __file__, "--seed", seed, "--seconds", str(seconds)]
    worker = subprocess.Popen([*command, "--out", str(folder), "--worker"])
    seen, since_s = b"", time.monotonic()
    while worker.poll() is None:
        time.sleep(0.2)
        if (now := progress.read_bytes()) != seen:
            seen, since_s = now, time.monotonic()
        elif time.monotonic() - since_s > HANG_S_MAX:
            worker.kill()
            worker.wait()
    number = int(progress.read_bytes())
    if worker.returncode == 0:
        print(f"{number} cases, seed {seed}: nothing found")
        return 0
    place = folder / f"case-{seed}-{number}"
    for path, content in make_case(seed, number)[0].items():
        target = place / path.replace("..", "__")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    print(f"FAILED: --seed {seed} --case {number} (exit {worker.returncode}), saved in {place}")
    return 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", default=str(random.SystemRandom().randrange(10**6)))
    parser.add_argument("--case", type=int, help="run this one alone, in this process")
    parser.add_argument("--out", type=Path, default=Path(tempfile.gettempdir()) / "gpuaas-fuzz")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.case is not None:
        settings = Settings()
        base = check(snapshot_of(example()), settings)
        run_case(*make_case(given.seed, given.case), base, settings)
        print("nothing found")
        return 0
    if given.worker:
        return work(given.seed, 0, given.seconds, given.out / "progress")
    print(f"seed {given.seed}", flush=True)
    return watch(given.seed, given.seconds, given.out)


if __name__ == "__main__":
    sys.exit(main())
