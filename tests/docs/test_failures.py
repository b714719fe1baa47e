"""Every reason of the fixed list has its words and its page, and the commands on it exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

from node_agent.wire import FailureReason
from reconciler.cli.main import COMMANDS, gpuaas
from reconciler.use_cases.history import parse_target
from reconciler.views.failure_words import FAILURE_WORDS, page_of, words_of

ROOT = Path(__file__).resolve().parents[2]
HEADINGS = [
    "What it means",
    "How you see it",
    "Usual causes",
    "What the platform does",
    "What you do",
]
PAGES = [
    *sorted((ROOT / "docs" / "failures").glob("*.md")),
    ROOT / "docs" / "how-to" / "monitor.md",
]
BLOCK = re.compile(r"^```(?:sh|console)\n(.*?)^```", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`(gpuaas [a-z][^`]*)`")


def commands(path: Path) -> list[str]:
    """Every `gpuaas …` that a page shows, in a block or within a line."""
    text = path.read_text()
    lines = [line.removeprefix("$ ") for block in BLOCK.findall(text) for line in block.split("\n")]
    return [*(line for line in lines if line.startswith("gpuaas ")), *INLINE.findall(text)]


@pytest.mark.parametrize("reason", FailureReason)
def test_every_reason_has_words_and_a_page(reason: FailureReason) -> None:
    words = words_of(reason.value)
    assert words is FAILURE_WORDS[reason]
    assert words is not None
    for text in (words.means, words.do):
        assert 20 < len(text) < 90
        assert not text.endswith(".")
    page = (ROOT / page_of(reason.value)).read_text()
    assert re.findall(r"^## (.+)$", page, re.MULTILINE) == HEADINGS
    assert page.startswith("# ")
    assert page.split("\n")[0].endswith(f": `{reason.value}`")
    assert commands(ROOT / page_of(reason.value))
    index = (ROOT / "docs/failures/README.md").read_text()
    assert f"| [`{reason.value}`]({reason.value}.md) | {words.means} | {words.do} |" in index


def test_no_page_is_left_of_a_reason_that_is_gone() -> None:
    there = {path.stem for path in (ROOT / "docs" / "failures").glob("*.md")} - {"README"}
    assert there == {reason.value for reason in FailureReason}
    assert words_of("no_such_reason") is None
    assert words_of("") is None


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_the_commands_of_a_page_are_there(path: Path) -> None:
    for line in commands(path):
        words = shlex.split(line.partition(" | ")[0].partition(" > ")[0])
        assert words[1] in COMMANDS, line
        command = gpuaas.get_command(click.Context(gpuaas), words[1])
        assert command is not None
        known = {option for one in command.params for option in (*one.opts, *one.secondary_opts)}
        assert {word for word in words[2:] if word.startswith("-")} <= known, line
        names = [word for word in words[2:] if "/" in word and not word.startswith(("-", "."))]
        for name in names:
            parse_target(name)
