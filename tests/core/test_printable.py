"""Text that others wrote does nothing where it is shown."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconciler.core.printable import printable, printable_json


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Grüße, 東京 → ✓", "Grüße, 東京 → ✓"),
        ("\x1b]0;owned\x07", "\\x1b]0;owned\\x07"),
        ("one\r\ntwo\tthree", "one\\r\\ntwo\\tthree"),
        ("\x9b2J", "\\x9b2J"),
        ("a\u202eb\u2066c", "a\\u202eb\\u2066c"),
    ],
)
def test_escape_sequences_and_line_breaks_are_shown(text: str, shown: str) -> None:
    assert printable(text) == shown


@given(st.text())
def test_what_is_shown_is_one_harmless_line(text: str) -> None:
    assert printable(text).isprintable()


@given(st.text())
def test_json_means_the_same_and_holds_no_control_character(text: str) -> None:
    shown = printable_json(json.dumps([text], ensure_ascii=False))
    assert json.loads(shown) == [text]
    assert not any(c in shown for c in "\x1b\x7f\x9b\u202e\u2066")
