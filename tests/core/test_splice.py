"""One document out of a file and back, byte for byte."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconciler.core.parse import ParseLimits, parse_file
from reconciler.core.splice import appended, removed, replaced, spans, text_of

ONE = b"# first\na: 1\n"
TWO = b"# second\nb: 2  # kept\n\n"
THREE = b"c: 3"


def file(*documents: bytes, marked: bool = False) -> bytes:
    return (b"---\n" if marked else b"") + b"---\n".join(documents)


FILES = {
    "alone": (file(ONE), [ONE]),
    "alone, marked": (file(ONE, marked=True), [ONE]),
    "three": (file(ONE, TWO, THREE), [ONE, TWO, THREE]),
    "three, marked": (file(ONE, TWO, THREE, marked=True), [ONE, TWO, THREE]),
    "a comment before the first": (b"# all\n--- # one\na: 1\n", [b"a: 1\n"]),
    "windows lines": (b"a: 1\r\n---\r\nb: 2\r\n", [b"a: 1\r\n", b"b: 2\r\n"]),
    "a byte order mark": (b"\xef\xbb\xbfa: 1\n---\nb: 2\n", [b"a: 1\n", b"b: 2\n"]),
    "more than ascii": ("a: ü€𝄞\n---\nb: 2\n".encode(), ["a: ü€𝄞\n".encode(), b"b: 2\n"]),
    "content on the marker": (b"--- {a: 1}\n---\nb: 2\n", [b"--- {a: 1}\n", b"b: 2\n"]),
    "an end marker": (b"a: 1\n...\n---\nb: 2\n", [b"a: 1\n...\n", b"b: 2\n"]),
    "dashes in a text": (b"a: |\n  ---\n  x\n---\nb: 2\n", [b"a: |\n  ---\n  x\n", b"b: 2\n"]),
    "an empty document": (b"a: 1\n---\n---\nb: 2\n", [b"a: 1\n", b"", b"b: 2\n"]),
}


@pytest.mark.parametrize(("content", "texts"), FILES.values(), ids=FILES.keys())
def test_documents_of_a_file(content: bytes, texts: list[bytes]) -> None:
    found = spans(content)
    assert [content[span.body : span.end] for span in found] == texts
    assert [span.start for span in found] == [0, *(span.end for span in found[:-1])]
    assert found[-1].end == len(content)


@pytest.mark.parametrize(("content", "texts"), FILES.values(), ids=FILES.keys())
def test_putting_back_what_was_there_changes_nothing(content: bytes, texts: list[bytes]) -> None:
    for index in range(len(texts)):
        assert replaced(content, index, text_of(content, index)) == content


def test_replace() -> None:
    assert replaced(file(ONE, TWO, THREE), 1, b"x: 9") == file(ONE, b"x: 9\n", THREE)
    assert replaced(file(ONE, TWO), 1, b"x: 9") == file(ONE, b"x: 9")
    assert replaced(b"\xef\xbb\xbfa: 1\n", 0, b"x: 9\n") == b"\xef\xbb\xbfx: 9\n"


def test_remove() -> None:
    assert removed(file(ONE), 0) is None
    assert removed(file(ONE, TWO, THREE), 1) == file(ONE, THREE)
    assert removed(file(ONE, TWO), 0) == b"---\n" + TWO
    assert removed(file(ONE, TWO), 1) == ONE
    assert removed(b"\xef\xbb\xbfa: 1\n---\nb: 2\n", 0) == b"\xef\xbb\xbf---\nb: 2\n"


def test_append() -> None:
    assert appended(ONE, TWO) == file(ONE, TWO)
    assert appended(THREE, ONE) == THREE + b"\n---\n" + ONE
    assert appended(ONE, b"--- {a: 1}\n") == ONE + b"--- {a: 1}\n"


def test_a_file_that_cannot_be_read_is_not_cut() -> None:
    with pytest.raises(ValueError, match="not readable as YAML"):
        spans(b"a: [1\n")


DOCUMENT = st.builds(
    lambda key, value, comment, end: f"{comment}{key}: {value}{end}".encode(),
    st.sampled_from("abc"),
    st.sampled_from(["1", "'x'", "[1, 2]", "|\n  text\n  ---\n  more", "{k: ü}"]),
    st.sampled_from(["", "# ö\n", "\n\n"]),
    st.sampled_from(["\n", "\n\n# after\n"]),
)


@given(st.lists(DOCUMENT, min_size=1, max_size=4), DOCUMENT, st.data())
def test_the_other_documents_stay(documents: list[bytes], new: bytes, data: st.DataObject) -> None:
    content = file(*documents)
    index = data.draw(st.integers(0, len(documents) - 1))

    def values(text: bytes) -> list[object]:
        return [one.value for one in parse_file("x.yaml", text, ParseLimits())[0]]

    before = values(content)
    expected = [*before[:index], *values(new), *before[index + 1 :]]
    assert values(replaced(content, index, new)) == expected
    left = removed(content, index)
    assert values(left or b"") == [*before[:index], *before[index + 1 :]]
    assert values(appended(content, new)) == [*before, *values(new)]
