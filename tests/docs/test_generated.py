"""The documentation says what the code says: generated pages, names, codes and links."""

from __future__ import annotations

import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from docs.generate import codes
from docs.impossible import IMPOSSIBLE
from node_agent.wire import FailureReason
from reconciler.core.lifecycle import TRANSITIONS, Trigger
from reconciler.core.records import State

ROOT = Path(__file__).resolve().parents[2]
WRITTEN = sorted(
    path
    for path in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    if path.parent.name != "reference"
)
LINK = re.compile(r"\]\((?!https?:|#)([^)#\s]+)(?:#[^)]*)?\)")
MODULES = [
    path
    for package in ("node_agent", "reconciler", "renderers")
    for path in sorted((ROOT / package).rglob("*.py"))
    if path.name != "__init__.py"
]


def test_pages_are_up_to_date() -> None:
    # In a process of its own: click remembers how a command was asked for its help before.
    done = subprocess.run(
        [sys.executable, "docs/generate.py", "--check"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", ""), "python docs/generate.py"


def test_every_transition_is_on_its_page() -> None:
    page = (ROOT / "docs/reference/lifecycle.md").read_text()
    happens, _, never = page.partition("## What can't happen")
    rows = [line for line in happens.splitlines() if line.startswith("| ")][2:]
    assert len(rows) == len(TRANSITIONS)
    assert all(f"`{state.value}`" in page for state in State)
    assert all(why in never for _, _, why in IMPOSSIBLE)


def test_the_diagram_has_one_arrow_a_pair_of_states_with_all_that_is_in_the_table() -> None:
    page = (ROOT / "docs/reference/lifecycle.md").read_text()
    arrows = re.findall(r"^    (\S+) --> (\S+): (.+)$", page, re.MULTILINE)
    assert len({(start, to) for start, to, _ in arrows}) == len(arrows)
    live = {state for state, trigger in TRANSITIONS if trigger is Trigger.UPGRADE and state}
    drawn = {
        (source, to, label)
        for start, to, labels in arrows
        for source in ({s.value for s in live} if start == "live" else {start})
        for label in labels.split("<br/>")
    }
    assert drawn == {
        (
            state.value if state else "[*]",
            step.to.value,
            " / ".join(filter(None, (trigger.value, " + ".join(step.events)))),
        )
        for (state, trigger), step in TRANSITIONS.items()
        if trigger is not Trigger.MOVE
    }


def test_every_code_a_person_may_meet_in_status_is_explained() -> None:
    page = (ROOT / "docs/how-to/recover.md").read_text()
    found = codes()
    wanted = {reason.value for reason in FailureReason}
    wanted |= found["Why an action is held"].keys() | found["Findings of a pass"].keys()
    wanted |= found["Why a commit or a change does not count"].keys()
    wanted |= found["What a check of the audit trail finds"].keys()
    assert {code for code in wanted if f"`{code}`" not in page} == set()


@pytest.mark.parametrize("path", WRITTEN, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path: Path) -> None:
    broken = [link for link in LINK.findall(path.read_text()) if not (path.parent / link).exists()]
    assert broken == []


@pytest.mark.parametrize("path", WRITTEN, ids=lambda path: str(path.relative_to(ROOT)))
def test_tests_that_are_named_exist(path: Path) -> None:
    named = set(re.findall(r"`(test_\w+)`", path.read_text()))
    there = "\n".join(file.read_text() for file in (ROOT / "tests").rglob("test_*.py"))
    assert {name for name in named if f"def {name}(" not in there} == set()


def test_the_map_names_every_module() -> None:
    page = (ROOT / "ARCHITECTURE.md").read_text()
    assert [str(p.relative_to(ROOT)) for p in MODULES if f"{p.name}`" not in page] == []


def test_the_map_names_no_module_that_is_gone() -> None:
    page = (ROOT / "ARCHITECTURE.md").read_text()
    there = {path.name for path in ROOT.glob("[!.]*/**/*.py")}
    assert set(re.findall(r"(?<![/\w])(\w+\.py)`", page)) - there == set()


def test_the_picture_is_whole_and_fetches_nothing() -> None:
    text = (ROOT / "docs/demo.svg").read_text()
    ET.fromstring(text)
    assert re.findall(r"url\(.?http|@font-face|@import|<image|xlink:href", text) == []
    assert re.findall(r"/(?:root|home)/", text) == []
