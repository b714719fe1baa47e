"""Problems as text, JSON, SARIF and annotations: what forges and people are given."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from docs.generate import codes
from reconciler.core.problems import Problem
from reconciler.use_cases.review import Change, Review
from reconciler.views.problem_codes import MEANINGS, meaning_of
from reconciler.views.problems import (
    CHANGES_SHOWN_MAX,
    Verdict,
    github_lines,
    json_document,
    sarif_document,
    text_lines,
)

OLD = Problem("a.yaml", 1, 1, "tag", "tag '!x' is not taken", hint="leave the tag out")
NEW = Problem(
    "tenants/ä b.yaml", 3, 5, "unknown_field", "unknown field 'x'", "/spec/x", "", "Tenant/acme"
)
WHOLE = Problem("c%.yaml", 0, 0, "symlink", "a symbolic link stands where manifests belong")
HOSTILE = Problem(
    "x,y:z\n::error::.yaml", 1, 1, "tag", "a\r\n::stop-commands::x \x1b[2J 100%", hint="b\nc"
)
CHANGES = (
    Change("App/a", "added", "catalog/a/app.yaml"),
    Change("App/b", "changed", "catalog/b/app.yaml"),
    Change("App/c", "removed", "catalog/c/app.yaml"),
    Change("App/d", "unreadable", "catalog/d/app.yaml"),
)


def alone(*problems: Problem, **changes: Any) -> Verdict:
    return replace(Verdict("0" * 40, 7, tuple(sorted(problems)), 0.125), **changes)


def compared(*problems: Problem, changes: tuple[Change, ...] = CHANGES, fixed: int = 2) -> Verdict:
    found = Review("b" * 40, tuple(sorted(problems)), frozenset({NEW}), fixed, changes)
    return alone(*problems, review=found, prefix="state/")


def text(verdict: Verdict) -> list[str]:
    return ["".join(piece.text for piece in line) for line in text_lines(verdict)]


def test_text_of_a_check_alone() -> None:
    assert text(alone(OLD, NEW)) == [
        "a.yaml:1:1: tag: tag '!x' is not taken",
        "    leave the tag out",
        "tenants/ä b.yaml:3:5: unknown_field: unknown field 'x' (at /spec/x)",
        "7 objects, 2 problems in 2 files. (0.12 s)",
    ]


def test_text_of_a_comparison_begins_with_what_was_introduced() -> None:
    assert text(compared(OLD, NEW)) == [
        "Introduced here:",
        "tenants/ä b.yaml:3:5: unknown_field: unknown field 'x' (at /spec/x)",
        "",
        "Already there at bbbbbbbbbbbb:",
        "a.yaml:1:1: tag: tag '!x' is not taken",
        "    leave the tag out",
        "",
        "Objects that differ from bbbbbbbbbbbb:",
        "  + App/a  catalog/a/app.yaml",
        "  ~ App/b  catalog/b/app.yaml",
        "  - App/c  catalog/c/app.yaml",
        "  ? App/d  catalog/d/app.yaml",
        "",
        "7 objects, 1 added and 1 changed and 1 removed and 1 unreadable, 2 problems in 2 files "
        "(1 introduced here), 2 mended. (0.12 s)",
    ]


def test_text_of_nothing_wrong() -> None:
    assert text(alone(objects=1)) == ["1 object, no problem. (0.12 s)"]
    same = compared(changes=(), fixed=0)
    assert text(same) == ["7 objects, nothing changed, no problem. (0.12 s)"]


def test_a_long_list_of_changes_is_cut() -> None:
    many = tuple(Change(f"App/a{n}", "added", "x") for n in range(CHANGES_SHOWN_MAX + 3))
    assert "  and 3 more: --format json names them all" in text(compared(changes=many))
    assert len(json_document(compared(changes=many))["changes"]) == CHANGES_SHOWN_MAX + 3


def test_json() -> None:
    found = json_document(compared(OLD, NEW))
    assert found["counts"] == {
        "problems": 2,
        "new": 1,
        "already_there": 1,
        "mended": 2,
        "files": 2,
    }
    assert [problem["new"] for problem in found["problems"]] == [False, True]
    assert found["base"] == "b" * 40
    assert found["changes"][0] == {
        "object": "App/a",
        "verb": "added",
        "path": "catalog/a/app.yaml",
    }
    single = json_document(alone(OLD))
    assert "base" not in single
    assert single["problems"][0] == {
        "path": "a.yaml",
        "line": 1,
        "column": 1,
        "code": "tag",
        "message": "tag '!x' is not taken",
        "pointer": "",
        "hint": "leave the tag out",
        "object": "",
        "where": "a.yaml:1:1",
        "new": True,
    }


def sarif_run(verdict: Verdict) -> dict[str, Any]:
    """The one run, after everything SARIF 2.1.0 and GitHub require of it."""
    found = sarif_document(verdict, "1.2.3")
    assert json.loads(json.dumps(found)) == found
    assert found["version"] == "2.1.0"
    assert found["$schema"].endswith("sarif-2.1.0.json")
    (run,) = found["runs"]
    driver = run["tool"]["driver"]
    assert driver["name"]
    assert re.fullmatch(r"\d+\.\d+\.\d+", driver["semanticVersion"])
    assert len({rule["id"] for rule in driver["rules"]}) == len(driver["rules"])
    for rule in driver["rules"]:
        assert rule["shortDescription"]["text"]
        assert rule["help"]["text"].endswith(".")
    for result in run["results"]:
        assert driver["rules"][result["ruleIndex"]]["id"] == result["ruleId"]
        assert result["message"]["text"]
        assert result["level"] in ("none", "note", "warning", "error")
        (location,) = result["locations"]
        place = location["physicalLocation"]
        assert re.fullmatch(r"[-._~/%0-9A-Za-z]*", place["artifactLocation"]["uri"])
        assert all(value >= 1 for value in place.get("region", {"": 1}).values())
        assert result.get("baselineState") in (None, "new", "unchanged", "updated", "absent")
    marks = [str(result["partialFingerprints"]) for result in run["results"]]
    assert len({*marks}) == len(marks)
    assert isinstance(run, dict)
    return run


def test_sarif() -> None:
    old, new = sarif_run(compared(OLD, NEW))["results"]
    assert (old["baselineState"], new["baselineState"]) == ("unchanged", "new")
    assert old["message"]["text"] == "tag '!x' is not taken: leave the tag out"
    assert new["locations"] == [
        {
            "physicalLocation": {
                "artifactLocation": {
                    "uri": "state/tenants/%C3%A4%20b.yaml",
                    "uriBaseId": "%SRCROOT%",
                },
                "region": {"startLine": 3, "startColumn": 5},
            },
            "logicalLocations": [
                {"fullyQualifiedName": "Tenant/acme/spec/x", "kind": "object"}
            ],
        }
    ]


def test_sarif_of_a_whole_file_and_of_hostile_names() -> None:
    whole, hostile = sarif_run(alone(WHOLE, HOSTILE))["results"]
    place = whole["locations"][0]["physicalLocation"]
    assert place == {"artifactLocation": {"uri": "c%25.yaml", "uriBaseId": "%SRCROOT%"}}
    assert "baselineState" not in whole
    assert "\x1b" not in json.dumps(hostile, ensure_ascii=False)


def test_sarif_fingerprints_hold_while_lines_move() -> None:
    def marks(*problems: Problem) -> list[dict[str, str]]:
        return [r["partialFingerprints"] for r in sarif_run(alone(*problems))["results"]]

    assert marks(OLD, NEW) == marks(replace(OLD, line=40), replace(NEW, line=9, column=1))
    assert marks(OLD) != marks(replace(OLD, path="b.yaml"))
    assert len(marks(OLD, replace(OLD, line=2))) == 2


def test_annotations() -> None:
    assert list(github_lines(compared(OLD, NEW, WHOLE))) == [
        "::error file=state/tenants/ä b.yaml,line=3,col=5,title=unknown_field"
        "::unknown field 'x' (at /spec/x)",
        "::warning file=state/a.yaml,line=1,col=1,title=tag"
        "::tag '!x' is not taken%0Aleave the tag out",
        "::warning file=state/c%25.yaml,title=symlink"
        "::a symbolic link stands where manifests belong",
        "7 objects, 1 added and 1 changed and 1 removed and 1 unreadable, 3 problems in 3 files "
        "(1 introduced here), 2 mended. (0.12 s)",
    ]


def test_an_annotation_cannot_smuggle_a_command() -> None:
    line, _ = github_lines(alone(HOSTILE))
    assert line == (
        "::error file=x%2Cy%3Az\\n%3A%3Aerror%3A%3A.yaml,line=1,col=1,title=tag"
        "::a\\r\\n::stop-commands::x \\x1b[2J 100%25%0Ab\\nc"
    )


Words = st.text(min_size=1, max_size=30)
PROBLEMS = st.builds(
    Problem, Words, st.integers(0, 9), st.integers(0, 9), st.just("tag"), Words, Words, Words
)


@given(st.lists(PROBLEMS))
def test_no_view_lets_out_what_acts(problems: list[Problem]) -> None:
    verdict = alone(*{*problems})
    lines = text(verdict)
    assert all(line.isprintable() for line in lines)
    count = sum(1 + bool(problem.hint) for problem in verdict.problems)
    assert len(lines) == count + 1
    for line in list(github_lines(verdict))[:-1]:
        assert line.startswith("::error file=")
        assert re.search("[\r\n]", line) is None
    sarif_run(verdict)


def test_every_code_a_check_may_give_has_a_meaning() -> None:
    found = codes()
    made = {*found["Problems in a state repo"], *found["Why a commit or a change does not count"]}
    assert made - {*MEANINGS} == set()


def test_meanings_are_short_sentences() -> None:
    for code, meaning in MEANINGS.items():
        assert re.fullmatch("[a-z]+(?:_[a-z0-9]+)*", code)
        assert 0 < len(meaning.what) < 80
        assert meaning.what[0].isupper() or meaning.what[0] == "$" or "_" in meaning.what.split()[0]
        assert meaning.to_do.endswith(".")


def test_a_code_without_a_row_has_its_own_words() -> None:
    assert meaning_of("brand_new").what == "Brand new"


@pytest.mark.parametrize("style", ["bold", "red"])
def test_pieces_carry_their_style(style: str) -> None:
    first = next(iter(text_lines(alone(OLD))))
    assert style in {piece.style for piece in first}
