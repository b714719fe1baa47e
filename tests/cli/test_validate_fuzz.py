"""A few cases of `bench/fuzz_validate.py`, and that it sees what it looks for."""

from __future__ import annotations

import pytest

from bench.fuzz_validate import Wrong, example, make_case, misplaced, run_case, snapshot_of
from reconciler.core.problems import Problem
from reconciler.settings import Settings
from reconciler.use_cases.validation import Checked, check


@pytest.fixture(scope="module")
def base() -> Checked:
    return check(snapshot_of(example()), Settings())


@pytest.mark.parametrize("number", range(40))
def test_a_case(number: int, base: Checked) -> None:
    files, clean = make_case("in the tests", number)
    assert make_case("in the tests", number) == (files, clean)
    run_case(files, clean, base, Settings())


def test_it_sees_a_problem_where_none_should_be(base: Checked) -> None:
    files = {**example(), "tenants/acme/tenant.yaml": b"{}"}
    with pytest.raises(Wrong, match=r"nothing is wrong, and yet: .*tenant\.yaml"):
        run_case(files, True, base, Settings())


@pytest.mark.parametrize(
    ("problem", "says"),
    [
        (Problem("a.yaml", 2, 1, "tag", "x"), ""),
        (Problem("a.yaml", 2, 3, "tag", "x"), ""),
        (Problem("a.yaml", 0, 0, "tag", "x"), ""),
        (Problem("a.yaml", 4, 1, "tag", "x"), "no such line"),
        (Problem("a.yaml", 2, 9, "tag", "x"), "no such column"),
        (Problem("a.yaml", 2, 0, "tag", "x"), "no such column"),
        (Problem("b.yaml", 1, 1, "tag", "x"), "no such file"),
        (Problem("a.yaml", 1, 1, "tag", ""), "no code, or no or a very long message"),
    ],
)
def test_it_sees_a_place_that_is_not_there(problem: Problem, says: str) -> None:
    assert misplaced(problem, {"a.yaml": b"ab: 1\r\ncd\r\n"}) == says
