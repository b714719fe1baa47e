"""Files that are wrong, or mean harm, through the real program under limits on memory and CPU.

All of them lie in one state repo, so that none may hide, hold up or take down the check of another.
"""

from __future__ import annotations

import gzip
import json
import os
import re
import shutil
import socket
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.platform import program

EXAMPLE = Path(__file__).parents[2] / "example-state-repo"
INSTANCES = "tenants/acme/projects/research/instances"
MEMORY_KIB, CPU_S = 1_500_000, 60
GOOD = (EXAMPLE / INSTANCES / "hello.yaml").read_text().replace("name: hello", "name: {name}", 1)
HEAD = b"apiVersion: gpuaas.dev/v1\nkind: AppInstance\nmetadata: {name: x}\n"

Make = bytes | Callable[[Path], None]


@dataclass(frozen=True)
class Case:
    """`code` of a problem that must be told of the file, at `line` (0: the whole file)."""

    make: Make
    code: str
    line: int | None = None


def bomb() -> bytes:
    nine = ((n, n, b", ".join([b"*l%d" % (n - 1)] * 9)) for n in range(1, 30))
    return b"l0: &l0 [x, x]\n" + b"".join(b"l%d: &l%d [%s]\n" % level for level in nine)


def sparse(path: Path) -> None:
    path.touch()
    os.truncate(path, 100 * 1024 * 1024)


def link(target: str) -> Callable[[Path], None]:
    return lambda path: path.symlink_to(target)


def submodule(path: Path) -> None:
    (path / ".git").mkdir(parents=True)
    (path / "hidden.yaml").write_bytes(HEAD)


def folder(path: Path) -> None:
    path.mkdir()
    (path / "inner.yaml").write_bytes(HEAD)


def spec(text: bytes) -> bytes:
    return HEAD + b"spec:\n  app: " + text + b"\n"


CASES: dict[str, Case] = {
    "alias bomb": Case(bomb(), "anchor", 1),
    "alias": Case(HEAD + b"spec: *x\n", "alias", 4),
    "recursive": Case(b"a: &a [*a]\n", "alias"),
    "merge key": Case(HEAD + b"spec:\n  <<: {app: x}\n", "merge_key", 5),
    "anchor": Case(spec(b"&x hello"), "anchor", 5),
    "python tag": Case(spec(b"!!python/object/apply:os.system [id]"), "tag", 5),
    "local tag": Case(spec(b"!include /etc/passwd"), "tag", 5),
    "flood of tag directives": Case(b"%TAG !a! x:\n" * 40_000 + b"---\na: 1\n", "tag", 1),
    "100 MB": Case(sparse, "file_too_large", 0),
    "a million lines": Case(b"\n" * 1_000_000 + b"a: 'x\n", "yaml_syntax"),
    "a million lines and a wrong field": Case(
        b"\n" * 1_000_000 + HEAD + b"bad: 1\n", "unknown_field", 1_000_004
    ),
    "400,000 items": Case(HEAD + b"spec: [" + b"1," * 400_000 + b"1]\n", "wrong_type", 4),
    "400,000 items in blocks": Case(HEAD + b"spec:\n" + b"- \n" * 300_000, "wrong_type", 4),
    "100,000 fields": Case(
        HEAD + b"spec:\n" + b"".join(b"  f%d: 1\n" % n for n in range(70_000)), "unknown_field"
    ),
    "random bytes": Case(bytes(range(256)) * 40, "not_utf8"),
    "gzip": Case(gzip.compress(HEAD), "not_utf8"),
    "Latin-1": Case(spec(b"h\xe9llo"), "not_utf8", 5),
    "overlong UTF-8": Case(spec(b"\xc0\xaf"), "not_utf8", 5),
    "surrogates": Case(spec(b"\xed\xa0\x80"), "not_utf8", 5),
    "UTF-16": Case("a: 1\n".encode("utf-16"), "not_utf8", 1),
    "NUL": Case(spec(b"a\0b"), "control_character", 5),
    "escaped NUL": Case(spec(b'"a\\0b"'), "control_character", 5),
    "escape codes": Case(spec(b"\x1b[2J"), "control_character", 5),
    "deep lists": Case(b"[" * 50_000, "too_deep", 1),
    "deep mappings": Case(b"{a: " * 50_000, "too_deep", 1),
    "deep blocks": Case(b"- " * 50_000 + b"x\n", "too_deep", 1),
    "deep keys": Case(b"? " * 50_000 + b"x\n", "too_deep", 1),
    "deep and after an error": Case(b"a: !x 1\nb: " + b"[" * 50_000, "too_deep", 2),
    "duplicate key": Case(spec(b"x\n  app: y"), "duplicate_key", 6),
    "list as key": Case(HEAD + b"spec:\n  ? [a]\n  : 1\n", "key_not_string", 5),
    "number as key": Case(HEAD + b"spec:\n  1: 1\n", "key_not_string", 5),
    "huge key": Case(HEAD + b"spec:\n  ? " + b"k" * 500_000 + b"\n  : 1\n", "key_too_long", 5),
    "huge integer": Case(spec(b"9" * 500_000), "bad_number", 5),
    "huge float": Case(spec(b"1e999999999"), "bad_number", 5),
    "huge hex": Case(spec(b"0x" + b"f" * 500_000), "bad_number", 5),
    "infinity": Case(spec(b".inf"), "bad_number", 5),
    "not a number": Case(spec(b".nan"), "bad_number", 5),
    "huge text": Case(spec(b"x" * 900_000), "wrong_format", 5),
    "many documents": Case(b"---\na: 1\n" * 5_000, "too_many_documents"),
    "many problems": Case(b"".join(b"a%d: !x 1\n" % n for n in range(40_000)), "too_many_problems"),
    "empty": Case(b"", "empty_file", 0),
    "comments alone": Case(b"# nothing\n", "empty_file", 0),
    "a scalar": Case(b"hello\n", "not_a_mapping", 1),
    "a list": Case(b"- hello\n", "not_a_mapping", 1),
    "null": Case(HEAD + b"spec: null\n", "wrong_type", 4),
    "tabs": Case(HEAD + b"spec:\n\tapp: x\n", "yaml_syntax", 5),
    "conflict": Case(b"<<<<<<< HEAD\na: 1\n=======\na: 2\n>>>>>>> b\n", "yaml_syntax"),
    "quotes": Case(b'"' * 900_001, "yaml_syntax"),
    "colons": Case(b"a: " * 200_000, "yaml_syntax"),
    "directive": Case(b"%YAML 9.9\n---\na: 1\n", "yaml_syntax"),
    "link out of the repo": Case(link("/etc/passwd"), "symlink", 0),
    "link to nowhere": Case(link("nowhere.yaml"), "symlink", 0),
    "link to itself": Case(link("link-to-itself.yaml"), "symlink", 0),
    "link to a folder": Case(link("/"), "symlink", 0),
    "submodule": Case(submodule, "submodule", 0),
}
FOLDER = f"{INSTANCES}/a-folder.yaml"
ODD_NAMES = (
    b"new\nline.yaml",
    b"\x1b[2Jclear.yaml",
    b"\xff\xfe.yaml",
    b"\xe2\x80\xaeright-to-left.yaml",
    b"a:1:1: error.yaml",
    b"%25.yaml",
    b" .yaml",
    b"n" * 240 + b".yaml",
)
FINE: Mapping[str, Callable[[str], bytes]] = {
    "crlf": lambda text: text.replace("\n", "\r\n").encode(),
    "bom": lambda text: b"\xef\xbb\xbf" + text.encode(),
    "no-newline": lambda text: text.rstrip().encode(),
    "many-comments": lambda text: b"# x\n" * 200_000 + text.encode(),
}


def file_of(name: str) -> str:
    return f"{INSTANCES}/{name.replace(' ', '-').replace(',', '')}.yaml"


@pytest.fixture(scope="module")
def repo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example with all of these beside its own instance."""
    root = tmp_path_factory.mktemp("bad") / "state"
    shutil.copytree(EXAMPLE, root)
    for name, case in CASES.items():
        path = root / file_of(name)
        if isinstance(case.make, bytes):
            path.write_bytes(case.make)
        else:
            case.make(path)
    return root


NOT_FILES = ("link out of the repo", "link to nowhere", "link to a folder", "submodule")


@pytest.fixture
def odd(tmp_path: Path) -> Path:
    """The example with everything that is no plain file, too large or named to play tricks."""
    root = tmp_path / "state"
    shutil.copytree(EXAMPLE, root)
    for name in NOT_FILES:
        make = CASES[name].make
        assert callable(make)
        make(root / file_of(name))
    folder(root / FOLDER)
    (root / file_of("large")).write_bytes(b"#" * (2 * 1024 * 1024))
    os.mkfifo(root / INSTANCES / "pipe.yaml")
    for raw in ODD_NAMES:
        with open(os.fsencode(root / INSTANCES) + b"/" + raw, "wb") as file:
            file.write(HEAD)
    return root


def limited(*args: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """gpuaas with a bound on memory and CPU time: beyond it, it is killed."""
    return subprocess.run(
        [
            "sh",
            "-c",
            f'ulimit -v {MEMORY_KIB} && ulimit -t {CPU_S} && exec "$@"',
            "sh",
            program("gpuaas"),
            *args,
        ],
        env={"PATH": os.environ["PATH"], **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def told(repo: Path) -> dict[str, list[dict[str, Any]]]:
    """What is said of each file."""
    done = limited("validate", str(repo), "--format", "json")
    assert (done.returncode, done.stderr) == (1, "")
    found: dict[str, list[dict[str, Any]]] = {}
    for problem in json.loads(done.stdout)["problems"]:
        found.setdefault(problem["path"], []).append(problem)
    return found


@pytest.mark.parametrize("name", CASES)
def test_a_bad_file_is_a_problem_at_its_place(
    name: str, told: dict[str, list[dict[str, Any]]]
) -> None:
    case, problems = CASES[name], told[file_of(name)]
    matching = [problem for problem in problems if problem["code"] == case.code]
    assert matching, problems[:3]
    if case.line is not None:
        assert case.line in {problem["line"] for problem in matching}
    for problem in problems:
        assert len(problem["message"]) < 500, problem["message"][:600]
        assert len(problem["hint"]) < 500
        assert "Traceback" not in problem["message"]
    assert len(problems) < 20_000


def test_the_rest_of_the_repo_is_checked_all_the_same(
    told: dict[str, list[dict[str, Any]]]
) -> None:
    assert f"{INSTANCES}/hello.yaml" not in told
    assert "environments/dev.yaml" not in told


def test_odd_names_are_told_and_shown_harmless(odd: Path) -> None:
    for output in ("text", "github", "sarif", "json"):
        done = limited("validate", str(odd), "--format", output)
        assert (done.returncode, done.stderr) == (1, "")
        assert [c for c in done.stdout if not c.isprintable() and c != "\n"] == []
    found = json.loads(done.stdout)["problems"]
    codes = {problem["path"].removeprefix(f"{INSTANCES}/"): problem["code"] for problem in found}
    for name in ODD_NAMES:
        assert name.decode("utf-8", "backslashreplace") in codes
    assert codes["a-folder.yaml/inner.yaml"] == "unknown_path"
    assert codes["large.yaml"] == "file_too_large"
    assert "pipe.yaml" not in codes, "a pipe is nothing that Git would keep"


def test_the_same_committed(odd: Path) -> None:
    plain = limited("validate", str(odd), "--format", "json")
    shutil.rmtree(odd / file_of("submodule"))
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@gpu.example", "-C", str(odd)]
    subprocess.run([*git, "init", "--quiet", "--initial-branch=main"], check=True)
    subprocess.run([*git, "add", "--all"], check=True)
    gitlink = f"160000,{'1' * 40},{file_of('submodule')}"
    subprocess.run([*git, "update-index", "--add", "--cacheinfo", gitlink], check=True)
    subprocess.run([*git, "commit", "--quiet", "--message=all"], check=True)
    done = limited("validate", str(odd), "--ref", "HEAD", "--format", "json")
    assert (done.returncode, done.stderr) == (1, "")
    assert json.loads(done.stdout)["problems"] == json.loads(plain.stdout)["problems"]


@pytest.mark.parametrize("name", FINE)
def test_what_is_odd_and_right_passes(name: str, tmp_path: Path) -> None:
    root = tmp_path / "state"
    shutil.copytree(EXAMPLE, root)
    (root / INSTANCES / "hello.yaml").write_bytes(FINE[name](GOOD.format(name="hello")))
    done = limited("validate", str(root))
    assert (done.returncode, done.stderr) == (0, ""), done.stdout


PATTERN = """  launch_parameters:
    type: object
    properties:
      memory_gib: {type: number}
      cpu_cores: {type: string, pattern: "PATTERN"}
"""


@pytest.mark.parametrize(
    ("pattern", "code"),
    [
        ("^(a+)+$", "wrong_format"),
        ("^(a|a)*b$", "wrong_format"),
        ("(((a{1000}){1000}){1000})", "invalid"),
        ("(", "invalid"),
        ("(?=a)", "invalid"),
    ],
)
def test_patterns_that_take_for_ever(pattern: str, code: str, tmp_path: Path) -> None:
    root = tmp_path / "state"
    shutil.copytree(EXAMPLE, root)
    version = root / "catalog/hello/versions/1.0.0.yaml"
    before, _, after = version.read_text().partition("  launch_parameters:\n")
    kept = re.sub(r"\A(?: {4}.*\n|\n)*", "", after)
    version.write_text(before + PATTERN.replace("PATTERN", pattern) + kept)
    instance = root / INSTANCES / "hello.yaml"
    instance.write_text(instance.read_text().replace("cpu_cores: 0.5", f"cpu_cores: {'a' * 60}!"))
    done = limited("validate", str(root))
    assert (done.returncode, done.stderr) == (1, "")
    assert code in done.stdout


@pytest.mark.parametrize(
    ("make", "environment", "says"),
    [
        (lambda root: None, {"GPUAAS_FILES_MAX": "3"}, "too_many_files: more than 3 files"),
        (lambda root: None, {"GPUAAS_SNAPSHOT_BYTES_MAX": "99"}, "too_many_bytes: more than 99"),
        (
            lambda root: (root / "/".join(["d"] * 70)).mkdir(parents=True),
            {},
            "too_deep: folders more than 64 deep",
        ),
    ],
    ids=["files", "bytes", "folders"],
)
def test_what_is_beyond_the_limits_is_refused_whole(
    make: Callable[[Path], None], environment: dict[str, str], says: str, tmp_path: Path
) -> None:
    root = tmp_path / "state"
    shutil.copytree(EXAMPLE, root)
    make(root)
    done = limited("validate", str(root), **environment)
    assert (done.returncode, done.stdout) == (1, "")
    assert f"error: {root}: {says}" in done.stderr
    assert "keep the state repo for platform state alone" in done.stderr


def test_what_cannot_be_opened_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A socket: opening it fails for everybody, root included."""
    root = tmp_path / "state"
    shutil.copytree(EXAMPLE, root)
    monkeypatch.chdir(root / INSTANCES)
    with socket.socket(socket.AF_UNIX) as made:
        made.bind("s.yaml")
    done = limited("validate", str(root))
    assert "Traceback" not in done.stderr
    if done.returncode:
        assert f"error: {root / INSTANCES / 's.yaml'}: unreadable: " in done.stderr
