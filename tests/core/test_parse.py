"""Bytes to documents: YAML 1.2 scalars, everything refused with its place, nothing that raises."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from reconciler.core.parse import Document, ParseLimits, parse_file
from reconciler.core.parse_places import Place, locate, locate_all
from reconciler.core.problems import Problem

LIMITS = ParseLimits()


def values(content: bytes) -> list[dict[str, Any]]:
    documents, problems = parse_file("f.yaml", content, LIMITS)
    assert problems == ()
    return [document.value for document in documents]


def scalar(text: str) -> Any:
    return values(f"v: {text}".encode())[0]["v"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("on", "on"),
        ("yes", "yes"),
        ("NO", "NO"),
        ("true", True),
        ("False", False),
        ("~", None),
        ("", None),
        ("null", None),
        ("0777", 777),
        ("0o17", 15),
        ("0x1F", 31),
        ("-12", -12),
        ("+7", 7),
        ("1:30", "1:30"),
        ("1_000", "1_000"),
        ("1.10", 1.1),
        (".5", 0.5),
        ("1.", 1.0),
        ("1e3", 1000.0),
        ("1.0.0", "1.0.0"),
        ("-x", "-x"),
        ("2026-01-01", "2026-01-01"),
        ("=", "="),
        ("'1.10'", "1.10"),
        ('"true"', "true"),
        ("9223372036854775807", 2**63 - 1),
    ],
)
def test_plain_scalars_are_yaml_1_2(text: str, expected: Any) -> None:
    found = scalar(text)
    assert found == expected
    assert type(found) is type(expected)


def test_documents_keep_their_index_and_line_and_empty_ones_are_skipped() -> None:
    documents, problems = parse_file(
        "f.yaml", b"# note\na: 1\n---\n# nothing\n---\n\nb: [x, {c: 2}]\n---\n", LIMITS
    )
    assert problems == ()
    assert documents == (Document({"a": 1}, 0, 2), Document({"b": ["x", {"c": 2}]}, 2, 7))


@pytest.mark.parametrize(
    "content",
    [
        b"a: 1\r\nb: |\r\n  x\r\n",
        b"\xef\xbb\xbfa: 1\nb: |\n  x\n",
        b"%YAML 1.2\n---\na: 1\nb: |\n  x\n...\n",
    ],
    ids=["crlf", "byte order mark", "yaml directive"],
)
def test_harmless_forms(content: bytes) -> None:
    assert values(content) == [{"a": 1, "b": "x\n"}]


def test_nothing_at_all_is_no_document() -> None:
    for content in (b"", b"\n\n", b"# only a comment\n", b"---\n---\n"):
        assert parse_file("f.yaml", content, LIMITS) == ((), ())


REFUSED: list[Any] = [
    ("duplicate key", b"a: 1\nb: 2\na: 3\n", "duplicate_key", 3, 1, "'a' stands here twice"),
    ("duplicate inner key", b"a: {b: 1, b: 2}\n", "duplicate_key", 1, 11, "'b' stands here twice"),
    ("quoted duplicate", b"a: 1\n'a': 2\n", "duplicate_key", 2, 1, "'a' stands here twice"),
    ("anchor", b"a: &x 1\n", "anchor", 1, 4, "anchor 'x' is not taken"),
    ("alias", b"a: 1\nb: *x\n", "alias", 2, 4, "alias 'x' is not taken"),
    ("alias as a key", b"*x : 1\n", "alias", 1, 1, "alias 'x' is not taken"),
    ("merge key", b"a: 1\n<<: {b: 2}\n", "merge_key", 2, 1, "merge keys are not taken"),
    ("tag", b"a: !!int '1'\n", "tag", 1, 4, "tag 'tag:yaml.org,2002:int' is not taken"),
    ("python tag", b"!!python/object:os.system {}\n", "tag", 1, 1, "is not taken"),
    ("tag directive", b"%TAG !e! tag:x,2000:\n---\na: 1\n", "tag", 1, 1, "tag directives"),
    ("number key", b"a: 1\n2: b\n", "key_not_string", 2, 1, "got the number 2"),
    ("boolean key", b"true: b\n", "key_not_string", 1, 1, "got the boolean true"),
    ("null key", b"? \n: b\n", "key_not_string", 1, 2, "got nothing (null)"),
    ("list key", b"? [a]\n: b\n", "key_not_string", 1, 3, "got a list"),
    ("mapping key", b"{{a: 1}: b}\n", "key_not_string", 1, 2, "got a mapping"),
    ("not a number", b"a: .nan\n", "bad_number", 1, 4, ".nan is not a finite number"),
    ("infinity", b"a: [1, -.inf]\n", "bad_number", 1, 8, "-.inf is not a finite number"),
    ("float overflow", b"a: 1e999\n", "bad_number", 1, 4, "'1e999' is too large"),
    ("large integer", b"a: 9223372036854775808\n", "bad_number", 1, 4, "is too large"),
    ("endless integer", b"a: " + b"9" * 100_000, "bad_number", 1, 4, "is too large"),
    ("list document", b"- a\n", "not_a_mapping", 1, 1, "expected a manifest, got a list"),
    ("text document", b"just text\n", "not_a_mapping", 1, 1, "got the text 'just text'"),
    ("not UTF-8", b"a: 1\nb: \xff\n", "not_utf8", 2, 1, "not UTF-8"),
    ("UTF-16", "a: 1\n".encode("utf-16"), "not_utf8", 1, 1, "not UTF-8"),
    ("binary", b"a: 1\nb: \x00\x01", "control_character", 2, 4, "U+0000 does not belong"),
    ("escape character", b"a: \x1b[31m", "control_character", 1, 4, "U+001B does not belong"),
    ("line separator", "a: x\u2028y".encode(), "control_character", 1, 5, "U+2028 does not"),
    ("escaped NUL", b'a: "\\0"\n', "control_character", 1, 4, "a string holds a NUL"),
    ("unclosed", b"a: [1,\n", "yaml_syntax", 2, 1, "while parsing a flow node"),
    ("bad indent", b"a: b\n c: d\n", "yaml_syntax", 2, 3, "mapping values are not allowed"),
    ("tab", b"a:\n\tb: 1\n", "yaml_syntax", 2, 1, "cannot start any token"),
    ("nested lists", b"[" * 50_000, "too_deep", 1, 41, "deeper than 40 levels"),
    ("closed nested lists", b"[" * 9_000 + b"]" * 9_000, "too_deep", 1, 41, "deeper than 40"),
    ("nested mappings", b"{a: " * 50_000, "too_deep", 1, 161, "deeper than 40 levels"),
    ("nested dashes", b"- " * 50_000, "too_deep", 1, 81, "deeper than 40 levels"),
    ("nested questions", b"? " * 50_000, "key_not_string", 1, 3, "got a mapping"),
    ("too many documents", b"--- {a: 1}\n" * 2001, "too_many_documents", 2001, 1, "2000"),
    ("too large", b"a: " + b"x" * LIMITS.file_bytes_max, "file_too_large", 0, 0, "1048579 bytes"),
]


@pytest.mark.parametrize(
    ("content", "code", "line", "column", "words"),
    [pytest.param(*case[1:], id=case[0]) for case in REFUSED],
)
def test_refused(content: bytes, code: str, line: int, column: int, words: str) -> None:
    _, problems = parse_file("f.yaml", content, LIMITS)
    first = problems[0]
    assert (first.path, first.code, first.line, first.column) == ("f.yaml", code, line, column)
    assert words in first.message
    assert all(len(str(problem)) < 400 for problem in problems)


def test_every_problem_is_told_and_the_good_documents_are_kept() -> None:
    content = b"a: &x 1\na: *x\n---\nb: 2\n---\n- c\n---\nd: 4\n"
    documents, problems = parse_file("f.yaml", content, LIMITS)
    assert [document.value for document in documents] == [{"b": 2}, {"d": 4}]
    assert [(problem.code, problem.line) for problem in problems] == [
        ("anchor", 1),
        ("duplicate_key", 2),
        ("alias", 2),
        ("not_a_mapping", 6),
    ]


def test_an_alias_bomb_is_refused_without_being_expanded() -> None:
    lines = ["a0: &a0 [x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 30)]
    documents, problems = parse_file("f.yaml", "\n".join(lines).encode(), LIMITS)
    assert documents == ()
    assert {problem.code for problem in problems} == {"anchor", "alias", "too_many_problems"}
    assert len(problems) == LIMITS.problems_max + 1


@pytest.mark.parametrize(
    ("content", "hint"),
    [
        (b"a:\n\tb: 1\n", "indent with spaces: YAML takes no tabs there"),
        (b"a:\n  \tb: c: d\n", "indent with spaces: YAML takes no tabs there"),
        (b"a: 'x\n", "look for a quote or bracket above that is not closed"),
        (b"a: b\n c: d\n", "look at the indentation, quotes and brackets here and in the lines"),
        (b"a: 1\n<<<<<<< HEAD\nb: 1\n", "a merge conflict was left in this file"),
    ],
)
def test_a_syntax_error_says_what_to_look_for(content: bytes, hint: str) -> None:
    _, (problem,) = parse_file("f.yaml", content, LIMITS)
    assert problem.code == "yaml_syntax"
    assert problem.hint.startswith(hint)


def test_what_follows_a_syntax_error_is_not_read_but_what_precedes_is() -> None:
    documents, problems = parse_file("f.yaml", b"a: 1\n---\nb: [\n---\nc: 3\n", LIMITS)
    assert [document.value for document in documents] == [{"a": 1}]
    assert [problem.code for problem in problems] == ["yaml_syntax"]


NESTED = b"""a: 1
---
spec:
  list:
    - x
    - {c/d: 1.10, "e~": [7]}
"""


@pytest.mark.parametrize(
    ("index", "pointer", "place"),
    [
        (0, "", (1, 1)),
        (0, "/a", (1, 1)),
        (1, "", (3, 1)),
        (1, "/spec/list", (4, 3)),
        (1, "/spec/list/0", (5, 7)),
        (1, "/spec/list/1/c~1d", (6, 8)),
        (1, "/spec/list/1/e~0/0", (6, 26)),
        (1, "/spec/list/9/nothing", (4, 3)),
        (1, "/nowhere", (3, 1)),
        (7, "", (0, 0)),
    ],
)
def test_locate(index: int, pointer: str, place: tuple[int, int]) -> None:
    assert locate(NESTED, index, pointer) == place


def test_locate_keeps_the_scalar_as_it_was_written() -> None:
    found = locate_all(NESTED, {1: {"/spec/list/1/c~1d"}})
    assert found[1, "/spec/list/1/c~1d"] == Place(6, 8, "1.10")


def test_locate_stops_before_what_is_endless() -> None:
    assert locate(b"a: {b: 1}\n--- " + b"[" * 100_000, 0, "/a/b") == (1, 5)
    assert locate(b"a: [", 0, "/a") == (1, 1)


# --- whatever comes, problems are values ---------------------------------------------------------

YAML_SOUP = st.text(alphabet="ab:-[]{}&*!|>'\"%#?<,.~0159 \n\t\\", max_size=80)


@settings(max_examples=500, deadline=None)
@given(
    st.one_of(
        st.binary(max_size=200), st.text(max_size=80).map(str.encode), YAML_SOUP.map(str.encode)
    )
)
@example(b"\xed\xa0\x80")
@example(b"? - ? - ?")
def test_parse_file_never_raises(content: bytes) -> None:
    documents, problems = parse_file("f.yaml", content, LIMITS)
    for document in documents:
        json.dumps(document.value, allow_nan=False)
        assert locate(content, document.index, "")[0] == document.line
    for problem in problems:
        assert isinstance(problem, Problem)
        assert problem.code
        assert problem.message


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63) + 1, 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cc", "Cn", "Cs", "Zl", "Zp"]), max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text("abc<=/~", max_size=4), inner)
    ),
    max_leaves=12,
)


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(st.sampled_from(["spec", "on", "1", "~", "null", ""]), JSON, min_size=1))
def test_json_is_read_as_json(document: dict[str, Any]) -> None:
    assert values(json.dumps(document, ensure_ascii=False).encode()) == [document]


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(st.sampled_from(["spec", "kind", "metadata"]), JSON, min_size=1))
def test_what_pyyaml_writes_quoted_is_read_back(document: dict[str, Any]) -> None:
    text = yaml.safe_dump(document, default_style='"', allow_unicode=True)
    if "!!" in text:  # Numbers and null carry a tag in this style, and tags are refused.
        _, problems = parse_file("f.yaml", text.encode(), LIMITS)
        assert {problem.code for problem in problems} <= {"tag", "too_many_problems"}
    else:
        assert values(text.encode()) == [document]


def test_a_field_name_as_long_as_a_file() -> None:
    """Attempted: to fill the memory, as pointers repeat the names of all that is above."""
    documents, problems = parse_file("a.yaml", b"? " + b"k" * 100_000 + b"\n: [0]\n", ParseLimits())
    assert documents == ()
    assert [(p.code, p.message) for p in problems] == [
        ("key_too_long", "a field's name of 100000 characters, at most 256 are taken")
    ]


def test_places_beside_a_huge_branch_are_found_without_walking_its_pointers() -> None:
    """Attempted: hours of work, by one problem beside 300 000 values under a very long name."""
    huge = b"? " + b"k" * 400_000 + b"\n: [" + b"0," * 300_000 + b"0]\n"
    found = locate_all(huge + b"z: {y: 1}\n", {0: {"/z/y"}})
    assert found[0, "/z/y"] == Place(3, 5, "1")
