"""The fast way to read YAML: what it takes, it reads as libyaml does; it leaves the rest."""

from __future__ import annotations

import random
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bench import manifests
from reconciler.core.parse import (
    Document,
    ParseLimits,
    fast_reader,
    parse_by_events,
    parse_file,
    resolve_scalar,
)
from reconciler.core.parse_fast import FastReader

LIMITS = ParseLimits()
EXAMPLE = Path(__file__).parents[2] / "example-state-repo"
EXAMPLES = [path.read_bytes() for path in sorted(EXAMPLE.rglob("*.yaml"))]


def fast(content: bytes, limits: ParseLimits = LIMITS) -> tuple[Document, ...] | None:
    read = fast_reader(limits).read(content)
    return None if read is None else tuple(Document(*one) for one in read)


def agrees(content: bytes, reader: FastReader) -> bool:
    """Whether the fast way took the file; AssertionError when it read anything else there."""
    documents, problems = parse_by_events("f.yaml", content, LIMITS)
    read = reader.read(content)
    if read is None:
        return False
    # By repr: 1 == 1.0 == True, and the order of keys counts.
    assert repr([Document(*one) for one in read]) == repr(list(documents))
    assert problems == ()
    return True


TAKEN: list[Any] = [
    ("nothing", ""),
    ("comments alone", "# a\n\n# b\n"),
    ("null at the end", "a: 1\nb:\n"),
    ("null before a key", "a:\nb: 1\n"),
    ("no line break at the end", "a:\n  b: 1"),
    ("list below its key", "a:\n- 1\n- b: 2\n  c: 3\nd: 4\n"),
    ("list deeper than its key", "a:\n   - 1\n   -   b: 2\n       c: 3\nd: 4\n"),
    ("list in an item", "a:\n  - b:\n    - 1\n    c: 2\n  - d\n"),
    ("null in an item", "a:\n  - b:\n  - c\n"),
    ("comments anywhere", "# x\na:  # y\n    # z\n  b: 1  # w\n  # v\n  c: d#e\n"),
    ("quoted", "a: 'x: # y'\n\"b c\": \"\"\n'd': '1.0'  # e\n"),
    ("colons and hashes in words", "a: http://x/#y?z=1:2\nb: 1:30\nc: a:b\n"),
    ("flow", "a: [x, 'y', \"z, w\", 1, 1.5, true, ~, -x, --y, a b]\nb: {c: 1, 'd e': [], f: {}}\n"),
    ("flow in a list", "a:\n  - [b, {c: d}]\n  - {e: [f, g], h: i}  # j\n"),
    ("literal", "a: |\n  x\n   y\n\n  # z\n\nb: |-\n  x\n\n\nc: 1\n"),
    ("literal at the end", "a: |\n  x\n"),
    ("folded", "a: >-\n  x\n  y\n\n  z\n\n\n  w\nb: >\n  x\n  y\n"),
    ("documents", "a: 1\n---\nb: 2\n---\n---\n# c\n\n---\nd: 4\n---\n"),
    ("first marker", "# x\n---\na: 1\n"),
    ("other letters", "a: Ärzte\nb: [日本, 'ü']\nc: |\n  😀\n"),
    ("spaces at the end", "a: b  \nc:   \n  d:  e\n"),
]


@pytest.mark.parametrize("text", [row[1] for row in TAKEN], ids=[row[0] for row in TAKEN])
def test_common_forms_are_taken_and_read_as_the_reference_reads_them(text: str) -> None:
    assert agrees(text.encode(), fast_reader(LIMITS))


LEFT: list[Any] = [
    ("anchor", "a: &x 1\n"),
    ("alias", "a: *x\n"),
    ("tag", "a: !!int '1'\n"),
    ("merge key", "<<: {a: 1}\n"),
    ("directive", "%YAML 1.2\n---\na: 1\n"),
    ("end of document", "a: 1\n...\n"),
    ("content on the marker", "--- {a: 1}\n"),
    ("tab", "a:\tb\n"),
    ("carriage return", "a: 1\r\n"),
    ("byte order mark", "\ufeffa: 1\n"),
    ("line separator", "a: x\u2028y\n"),
    ("control character", "a: \x07\n"),
    ("duplicate key", "a: 1\nb: 2\na: 3\n"),
    ("duplicate in flow", "a: {b: 1, b: 2}\n"),
    ("key that is no string", "1: a\n"),
    ("null key", "~: a\n"),
    ("complex key", "? a\n: b\n"),
    ("list at the top", "- a\n"),
    ("text at the top", "a\n"),
    ("text over two lines", "a: b\n  c\n"),
    ("quotes over two lines", "a: 'b\n  c'\n"),
    ("escapes", 'a: "b\\n"\n'),
    ("doubled quotes", "a: 'it''s'\n"),
    ("flow over two lines", "a: [b,\n  c]\n"),
    ("comma at the end of a flow", "a: [b, ]\n"),
    ("pair in a flow list", "a: [b: c]\n"),
    ("word alone in a flow mapping", "a: {b}\n"),
    ("mapping in a value", "a: b: c\n"),
    ("not a finite number", "a: .nan\n"),
    ("large number", f"a: {10**30}\n"),
    ("wrong indentation", "a:\n    b: 1\n  c: 2\n"),
    ("key after a value", "a: 1\n  b: 2\n"),
    ("item after a value", "a: 1\n- b\n"),
    ("empty item", "a:\n  -\n"),
    ("list in a list", "a:\n  - - b\n"),
    ("block kept", "a: |+\n  b\n"),
    ("block with an indentation of its own", "a: |2\n   b\n"),
    ("block that begins empty", "a: |\n\n  b\n"),
    ("block without a line break", "a: |\n  b"),
    ("folded block with an indented line", "a: >\n  b\n   c\n"),
    ("words after quotes", "a: 'b' c\n"),
    ("reserved character", "a: @b\n"),
    ("not UTF-8", b"a: \xff\n"),
]


@pytest.mark.parametrize("text", [row[1] for row in LEFT], ids=[row[0] for row in LEFT])
def test_anything_else_is_left_to_the_reference(text: str | bytes) -> None:
    content = text.encode() if isinstance(text, str) else text
    assert fast(content) is None
    assert parse_file("f", content, LIMITS, fast_reader(LIMITS)) == parse_file("f", content, LIMITS)


def test_limits_are_those_of_the_reference() -> None:
    nested = b"".join(b" " * depth + b"a:\n" for depth in range(3))
    cases: list[tuple[bytes, ParseLimits]] = [
        (nested + b"   a: 1\n", ParseLimits(yaml_depth_max=3)),
        (b"a: [[b]]\n", ParseLimits(yaml_depth_max=2)),
        (b"a: [b]\nc:\n  d:\n    e: [b]\n", ParseLimits(yaml_depth_max=3)),
        (b"abc: 1\n", ParseLimits(key_length_max=2)),
        (b"a: {bcd: 1}\n", ParseLimits(key_length_max=2)),
        (b"a: 1\n---\na: 1\n---\na: 1\n", ParseLimits(documents_per_file_max=2)),
        (b"a: 1\n", ParseLimits(file_bytes_max=3)),
    ]
    for content, limits in cases:
        _, problems = parse_file("f", content, limits, fast_reader(limits))
        assert problems == parse_by_events("f", content, limits)[1]
        assert len(problems) == 1
        assert agrees(content, fast_reader(LIMITS))


def test_a_bomb_is_left_alone_at_once() -> None:
    for content in (b"a: " + b"[" * 500_000, b"a: [" * 100_000, b"- " * 400_000, b"{" * 900_000):
        assert fast(content) is None


def test_what_was_read_before_lifts_no_limit() -> None:
    """Attempted: a collection that is shallow where it stands first, and too deep further on."""
    flow = "x: " + "[" * 20 + "1" + "]" * 20 + "\n"
    nested = "".join(f"{' ' * level}k:\n" for level in range(30)) + " " * 30 + flow
    reader = fast_reader(LIMITS)
    assert agrees(flow.encode(), reader)
    assert [problem.code for problem in parse_by_events("f", nested.encode(), LIMITS)[1]] == [
        "too_deep"
    ]
    assert not agrees(nested.encode(), reader)


def test_a_block_of_very_many_lines_is_folded_in_one_go() -> None:
    """Attempted: a megabyte that is copied once a line, which takes ten seconds a file."""
    assert agrees(b"a: >\n" + b" x\n" * 300_000, fast_reader(LIMITS))


def test_a_flow_collection_seen_before_is_a_new_one_each_time() -> None:
    read = fast(b"a: [b]\nc: [b]\n")
    assert read is not None
    assert read[0].value["a"] is not read[0].value["c"]


@pytest.mark.parametrize("layout", ["single", "bundled"])
def test_generated_manifests_are_all_taken(layout: manifests.Layout) -> None:
    reader = fast_reader(LIMITS)
    assert all(agrees(text.encode(), reader) for text in manifests.files(600, layout).values())


def test_the_example_repo_is_taken() -> None:
    reader = fast_reader(LIMITS)
    assert all(agrees(content, reader) for content in EXAMPLES)


_ODD_KEYS = ["'q'", '"r s"', "on", "true", "1", "a b", "<<", "?", "", "~", "0x1", "é", "x/y", "z-z"]
_KEYS = st.sampled_from("abcdefghijkl") | st.sampled_from([*"mnopqrstuvw", *_ODD_KEYS])
_VALUES = """\
b|true|null|~|on|yes|0777|0o17|0x1F|1:30|1_000|.5|1.|1e3|+7|-|-1|- x|-x|--|---|.inf|-.nan
1e999|a b|a: b|a:|a:b|a #b|a#b|#|'|''|'x'|'x' y|'x'#|'it''s'|"|""|"x\\n"|"x: y"|"x" # c|[]|{}
[a]|[a,b]|[a, ]|[,]|[a b, -c]|[- a]|[a: b]|{a: b}|{a:b}|{a}|{a: }|{a: b, a: c}|[[a], {b: c}]
{a: [b, c], d: {e: f}}|{1: a}|[a]]|[a] b|[a] # b|{'a': 1}|{"a":1}|[~, null, 1.5]|[a #b]|[a\\b]
&x|*x|!x|%x|@x|`x|? x|?x|: x|:x|,x|]x|}x|é|\xa0x|x\xa0|😀|<a>|=|<<|a\\nb|$x|^x|(x)|;x|2026-01-01
12:30:45|0b1|1__0|+.5|-.5e-3|1.5.2|x, y|x [y] {z}|x & y *z
"""
_SCALARS = st.sampled_from(
    ["x", "1.0", "true", "y z", "'v'", "[a, 1]", "{a: b}"]
) | st.sampled_from(re.split(r"[|\n]", _VALUES.rstrip()))
_STARTS = st.sampled_from(
    ["", "", " ", "  ", "  ", "   ", "    ", "    ", "      ", "  ", "", "\t"]
)
_DASHES = st.sampled_from(["", "", "", "", "", "", "- ", "- ", "- ", "-   ", "-", "- - "])
_ENDS = st.sampled_from(["", "", "", "", "", "", "", " ", " # c", "#c", " #", "\t", "\r"])
_BLOCKS = st.sampled_from(["|", "|-", ">", ">-", "|+", ">+", "|2", "| # c", "|x", ">1-"])


@st.composite
def _lines(draw: st.DrawFn) -> str:
    form = draw(st.integers(0, 12))
    start = draw(_STARTS)
    if form == 0:
        return draw(
            st.sampled_from(["", "---", "--- ", "...", "# c", "   ", "%TAG", "--- a", "---a"])
        )
    if form <= 2:
        return start + draw(_DASHES) + draw(_SCALARS) + draw(_ENDS)
    if form <= 5:
        return start + draw(_DASHES) + draw(_KEYS) + ":" + draw(_ENDS)
    if form == 6:
        return start + draw(_DASHES) + draw(_KEYS) + ": " + draw(_BLOCKS) + draw(_ENDS)
    gap = draw(st.sampled_from([" ", " ", " ", "  ", ""]))
    return start + draw(_DASHES) + draw(_KEYS) + ":" + gap + draw(_SCALARS) + draw(_ENDS)


_READER = fast_reader(LIMITS)
"""One for all that follow, so that what it remembers of one file is tried on the others."""


@given(st.lists(_lines(), max_size=9), st.booleans())
@example(["a:", "- b:", "- c"], True)
@example(["a: |", "  x", " # c", "b: 1"], True)
@settings(max_examples=400, deadline=None)
def test_made_up_lines_are_read_as_the_reference_reads_them(lines: list[str], ends: bool) -> None:
    agrees(("\n".join(lines) + "\n" * ends).encode(), _READER)


@given(st.text(alphabet="ab1-:#[]{},|>'\" \n\t&*!?%~.é\\", max_size=60))
@settings(max_examples=400, deadline=None)
def test_made_up_text_is_read_as_the_reference_reads_it(text: str) -> None:
    agrees(text.encode(), _READER)


@given(st.integers(0, 2**32), st.integers(1, 4))
@settings(max_examples=300, deadline=None)
def test_broken_examples_are_read_as_the_reference_reads_them(seed: int, changes: int) -> None:
    agrees(broken(random.Random(seed), changes), _READER)


def broken(rng: random.Random, changes: int) -> bytes:
    """An example file after a few careless edits."""
    lines = rng.choice(EXAMPLES).decode().split("\n")
    for _ in range(changes):
        at = rng.randrange(len(lines))
        line = lines[at]
        place = rng.randrange(len(line) + 1)
        bit = rng.choice("  -:#[]{},|>'\"\t&*!?%~\n.1é\\")
        lines[at] = rng.choice(
            (
                line[:place] + bit + line[place:],
                line[:place] + line[place + 1 :],
                " " * rng.randrange(4) + line,
                line.replace("  ", "", 1),
                line + "\n" + line,
                line.partition(":")[0] + ":",
                line.partition(":")[0] + ": |",
                line.replace(": ", ": - "),
                "",
            )
        )
    return "\n".join(lines).encode()


@given(st.text(max_size=12))
@settings(max_examples=300, deadline=None)
def test_any_value_is_read_as_the_reference_reads_it(text: str) -> None:
    for content in (f"a: {text}\n", f"a:\n  - {text}\n", f"a: [{text}]\n", f"a: |\n  {text}\n"):
        agrees(content.encode("utf-8", "surrogatepass"), _READER)


def test_numbers_and_words_resolve_the_same_everywhere() -> None:
    for text in ("1.10", "0777", "true", "No", "1e3", "~"):
        assert fast(f"a: {text}\n".encode()) == (Document({"a": resolve_scalar(text)}, 0, 1),)
        assert fast(f"a: [{text}]\n".encode()) == (Document({"a": [resolve_scalar(text)]}, 0, 1),)
