"""With a second process or without: the same answer, whatever stands in the files or befalls it."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from bench.fuzz_validate import make_case, snapshot_of
from reconciler.adapters import second_process
from reconciler.adapters.second_process import Questions, start
from reconciler.adapters.tree_limits import TreeLimits
from reconciler.core.source import SourceFile
from reconciler.core.validate import ValidateMemo
from reconciler.settings import Settings
from reconciler.use_cases.validation import CheckMemo, check
from reconciler.wiring import ahead as wiring_ahead
from reconciler.wiring.ahead import Ahead, check_ahead, read_ahead
from reconciler.wiring.files import read_local, uncommitted

EXAMPLE = Path(__file__).parents[1] / "example-state-repo"
INSTANCE = "tenants/acme/projects/research/instances/hello.yaml"
TENANT = "tenants/acme/tenant.yaml"
SETTINGS = Settings()


@pytest.fixture(autouse=True)
def _always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also on one core, and beside the threads of whoever runs the tests."""
    monkeypatch.setattr(second_process, "pays", lambda: True)


def put(path: str, content: bytes) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(content)

    return change


def link(root: Path) -> None:
    (root / "tenants/acme/link.yaml").symlink_to("tenant.yaml")
    (root / "tenants/loop").symlink_to(".")


def twice(root: Path) -> None:
    text = (root / INSTANCE).read_bytes()
    (root / INSTANCE).write_bytes(text + b"---\n" + text)


def anchored(root: Path) -> None:
    text = (root / TENANT).read_text()
    (root / TENANT).write_text(text.replace("metadata:", "metadata: &here"))


def gone(root: Path) -> None:
    shutil.rmtree(root / "catalog")


def emptied(root: Path) -> None:
    shutil.rmtree(root)
    root.mkdir()


def unusual(root: Path) -> None:
    """What only libyaml's events read, without anything wrong."""
    text = (root / TENANT).read_text()
    (root / TENANT).write_text("# \t\n" + text)


CASES: dict[str, Callable[[Path], None]] = {
    "nothing wrong": lambda _: None,
    "links": link,
    "not UTF-8": put(TENANT, b"kind: \xff\n"),
    "a key twice": put(TENANT, b"kind: Tenant\nkind: Tenant\n"),
    "a document twice": twice,
    "an anchor": anchored,
    "a comment with a tab": unusual,
    "an empty file": put(TENANT, b""),
    "too large": put(TENANT, b"#" * (SETTINGS.file_bytes_max + 1)),
    "no YAML": put(TENANT, b"{"),
    "wrong by its schema": put(TENANT, b"apiVersion: gpuaas.dev/v1\nkind: Tenant\nspec: 1\n"),
    "no kind's path": put("tenants/acme/what.yaml", b"kind: Tenant\n"),
    "a misspelt folder": put("tenant/acme/tenant.yaml", b"apiVersion: gpuaas.dev/v1\n"),
    "a misspelt ending": put("tenants/acme/tenant.yamml", b"apiVersion: gpuaas.dev/v1\n"),
    "much that is none of our business": put("charts/a.yaml", b"a: 1\n" * 10_000),
    "half of it gone": gone,
    "nothing there": emptied,
}


@pytest.mark.parametrize("case", CASES)
def test_a_folder(case: str, tmp_path: Path) -> None:
    root = shutil.copytree(EXAMPLE, tmp_path / "state")
    CASES[case](root)
    ahead = read_ahead(root)
    assert ahead is not None
    ahead.hold_to(SETTINGS)
    files = ahead.files()
    assert files is not None
    snapshot = uncommitted(files)
    assert snapshot == read_local(root, None, SETTINGS)
    assert check(snapshot, SETTINGS, memo(ahead)) == check(snapshot, SETTINGS)
    ahead.close()


@pytest.mark.parametrize("number", range(30))
def test_made_up_changes(number: int) -> None:
    snapshot = snapshot_of(make_case("looked at ahead", number)[0])
    ahead = check_ahead(lambda question: () if question is None else snapshot.files)
    assert ahead is not None
    ahead.ask(SETTINGS, "all")
    assert ahead.files() == snapshot.files
    assert check(snapshot, SETTINGS, memo(ahead)) == check(snapshot, SETTINGS)
    ahead.close()


def test_what_is_sound_is_taken_over() -> None:
    ahead = read_ahead(EXAMPLE)
    assert ahead is not None
    files = ahead.files()
    assert files is not None
    found = next(file for file in files if file.path == INSTANCE)
    sound = ahead.sound(found)
    assert sound is not None
    assert [(kind, names) for _, _, kind, names in sound] == [
        ("AppInstance", ("acme", "research", "hello"))
    ]
    other = SourceFile(found.path, "0" * 40, b"", "file")
    assert ahead.sound(other) is None
    ahead.close()


def small_portions(files: Sequence[SourceFile]) -> Iterator[list[SourceFile]]:
    yield from ([file] for file in files)


@pytest.mark.parametrize("portions", range(0, 120, 7))
def test_killed_at_any_time(portions: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wiring_ahead, "portions", small_portions)
    snapshot = read_local(EXAMPLE, None, SETTINGS)
    whole = wiring_ahead._read_and_check

    def work(questions: Questions) -> Iterator[Any]:
        for number, portion in enumerate(whole(snapshot.files, SETTINGS.parse_limits, questions)):
            if number == portions:
                os.kill(os.getpid(), signal.SIGKILL)
            yield portion

    process = start(work)
    assert process is not None
    ahead = Ahead(process)
    assert ahead.files() in (None, snapshot.files)
    assert check(snapshot, SETTINGS, memo(ahead)) == check(snapshot, SETTINGS)
    ahead.close()


def test_other_limits_are_none_of_its_answers() -> None:
    ahead = read_ahead(EXAMPLE)
    assert ahead is not None
    ahead.hold_to(Settings(file_bytes_max=100))
    assert ahead.files() is None
    assert ahead.sound(SourceFile(TENANT, "", b"")) is None


def test_the_limits_by_default_are_those_of_the_settings() -> None:
    assert TreeLimits.of(SETTINGS) == TreeLimits()


def test_a_folder_that_is_refused_is_left_to_who_asks(tmp_path: Path) -> None:
    ahead = read_ahead(tmp_path / "not there")
    assert ahead is not None
    assert ahead.files() is None


def test_one_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    def work(_: Questions) -> Iterator[Any]:
        yield 1
        time.sleep(60)

    process = start(work)
    assert process is not None
    assert process.take() == 1
    monkeypatch.setattr(second_process, "SILENCE_S_MAX", 0.05)
    assert process.take() is None
    assert process.take() is None


def test_one_whose_work_raises_says_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    def work(_: Questions) -> Iterator[Any]:
        os.write(1, b"not to be seen")
        os.write(2, b"nor that")
        yield 1
        raise ValueError("nor this")

    process = start(work)
    assert process is not None
    assert [process.take(), process.take()] == [1, None]
    assert capfd.readouterr() == ("", "")


def children() -> set[str]:
    """Processes of ours, ended ones that nobody asked for included."""
    found = set()
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            parent = (entry / "stat").read_text().rpartition(")")[2].split()[1]
            if parent == str(os.getpid()):
                found.add(entry.name)
    return found


def test_nobody_is_left_behind() -> None:
    def work(questions: Questions) -> Iterator[Any]:
        yield questions.next()

    before = children()
    process = start(work)
    assert process is not None
    assert len(children() - before) == 1
    process.close()
    process.close()
    process.ask("too late")
    assert children() == before


def test_it_answers_questions() -> None:
    def work(questions: Questions) -> Iterator[Any]:
        while (question := questions.next()) is not None:
            yield question * 2

    process = start(work)
    assert process is not None
    process.ask(2)
    assert process.take() == 4
    process.ask("a" * 100)
    assert process.take() == "a" * 200
    process.close()


def memo(ahead: Ahead) -> CheckMemo:
    return CheckMemo(validated=ValidateMemo(ahead=ahead))
