"""Which bytes are asked for, by every header that a client may send."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconciler.core.names import Digest
from reconciler.server.errors import ApiError
from reconciler.server.ranges import byte_range, etag_of, repr_digest

ETAG = etag_of(Digest.of(b""))
SIZE = 1000

CASES = [
    (None, None),
    ("bytes=0-", (0, 1000)),
    ("bytes=0-0", (0, 1)),
    ("bytes=500-", (500, 1000)),
    ("bytes=500-599", (500, 600)),
    ("bytes=999-", (999, 1000)),
    ("bytes=0-99999", (0, 1000)),
    ("bytes=-1", (999, 1000)),
    ("bytes=-5000", (0, 1000)),
    ("bytes = 5 - 6", (5, 7)),
    # What can't be read, or is several, gets the whole.
    ("bytes=0-1,5-6", None),
    ("bytes=6-5", None),
    ("bytes=-", None),
    ("bytes=a-b", None),
    ("bytes=٣-", None),
    ("lines=1-2", None),
    ("0-5", None),
    ("bytes=" + "9" * 30 + "-", None),
]


@pytest.mark.parametrize(("header", "wanted"), CASES)
def test_ranges(header: str | None, wanted: tuple[int, int] | None) -> None:
    assert byte_range(header, None, ETAG, SIZE) == wanted


@pytest.mark.parametrize("header", ["bytes=1000-", "bytes=1000-2000", "bytes=-0"])
def test_what_lies_behind_the_end_is_refused(header: str) -> None:
    with pytest.raises(ApiError) as refused:
        byte_range(header, None, ETAG, SIZE)
    assert (refused.value.status, refused.value.code) == (416, "range_not_satisfiable")
    assert refused.value.message == "there are 1000 bytes, and none of them is in that range"
    assert refused.value.headers["Content-Range"] == "bytes */1000"


@pytest.mark.parametrize(
    ("if_range", "wanted"),
    [
        (ETAG, (5, 1000)),
        (f" {ETAG} ", (5, 1000)),
        (etag_of(Digest.of(b"other")), None),
        (f"W/{ETAG}", None),
        ("Wed, 21 Oct 2015 07:28:00 GMT", None),
    ],
)
def test_a_range_of_other_content_gets_the_whole(
    if_range: str, wanted: tuple[int, int] | None
) -> None:
    assert byte_range("bytes=5-", if_range, ETAG, SIZE) == wanted


@given(st.text(), st.none() | st.text(), st.integers(0, 2**50))
def test_no_header_gets_more_than_there_is(header: str, if_range: str | None, size: int) -> None:
    for text in (header, f"bytes={header}"):
        try:
            found = byte_range(text, if_range, ETAG, size)
        except ApiError:
            continue
        assert found is None or 0 <= found[0] < found[1] <= size


def test_the_digest_is_written_as_rfc_9530_has_it() -> None:
    assert repr_digest(Digest.of(b"")) == "sha-256=:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=:"
