"""Files divided between two who look at them, and problems without instances: the same answer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.fuzz_validate import make_case, snapshot_of
from reconciler.core import validate_file
from reconciler.core.check_document import Checks, Sound, sound_documents
from reconciler.core.desired import Candidate
from reconciler.core.kind_places import KIND_PLACES
from reconciler.core.kinds import KINDS
from reconciler.core.parse import ParseLimits, fast_reader
from reconciler.core.resolve import ResolveMemo, problems_of, resolve
from reconciler.core.source import SourceFile
from reconciler.core.validate import ValidateMemo, validate
from reconciler.wiring.files import schema_set

LIMITS = ParseLimits()
SCHEMAS = schema_set()


class Other:
    """Looks at the files in their order; whether it was quick enough, `news` says in turn."""

    def __init__(self, news: Iterator[bool], sulks: bool = False) -> None:
        self._news = news
        self._sulks = sulks
        self._checks = Checks(SCHEMAS, LIMITS, fast_reader(LIMITS))
        self.left: list[str] = []

    def has_news(self) -> bool:
        return next(self._news, True)

    def sound(self, file: SourceFile) -> Sequence[Sound] | None:
        return None if self._sulks else sound_documents(file, self._checks)

    def leave(self, file: SourceFile) -> None:
        self.left.append(file.path)


def one_by_one(files: Sequence[SourceFile]) -> Iterator[list[SourceFile]]:
    yield from ([file] for file in files)


@pytest.fixture(autouse=True)
def _small_portions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(validate_file, "portions", one_by_one)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000), st.lists(st.booleans(), max_size=150), st.booleans())
def test_however_the_files_are_divided(number: int, news: list[bool], sulks: bool) -> None:
    snapshot = snapshot_of(make_case("divided", number)[0])
    other = Other(iter(news), sulks)
    found = validate(snapshot, SCHEMAS, LIMITS, ValidateMemo(ahead=other))
    assert found == validate(snapshot, SCHEMAS, LIMITS)
    assert other.left == sorted(other.left, reverse=True)


def test_what_nobody_waits_for_is_done_from_the_back() -> None:
    snapshot = snapshot_of(make_case("divided", 0)[0])
    other = Other(iter([False] * 1_000))
    validate(snapshot, SCHEMAS, LIMITS, ValidateMemo(ahead=other))
    paths = [file.path for file in snapshot.files]
    assert other.left == paths[:0:-1]


def candidate_of(number: int) -> Candidate:
    return validate(snapshot_of(make_case("resolved", number)[0]), SCHEMAS, LIMITS)


@settings(deadline=None, max_examples=25)
@given(st.lists(st.tuples(st.integers(0, 200), st.booleans()), min_size=1, max_size=4))
def test_problems_without_instances(history: list[tuple[int, bool]]) -> None:
    """One memo for those who want instances and those who don't, in any order."""
    memo = ResolveMemo()
    for number, whole in history:
        found = candidate_of(number)
        fresh = resolve(found.objects, "dev", found.revision)
        if whole:
            assert resolve(found.objects, "dev", found.revision, memo=memo) == fresh
        else:
            told = problems_of(found.objects, "dev", found.revision, memo=memo)
            assert told == fresh.problems


def test_each_place_has_its_model() -> None:
    assert list(KINDS) == [place.name for place in KIND_PLACES]
    for place in KIND_PLACES:
        assert KINDS[place.name].path == place.path
        assert KINDS[place.name].model.__name__ == place.name
