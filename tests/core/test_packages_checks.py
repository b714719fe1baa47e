"""Versions that can be ordered, and Python packages that may be asked for."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconciler.core.checks.packages import SPECS_MAX, newest, refused_specs
from reconciler.core.problems import Problem
from reconciler.core.resolve import resolve
from tests.core import builders as b
from tests.core.resolve_cases import parameters, spec

ALONE = "name the package and its version alone, for example numpy==2.1.0"


def problems(documents: b.Documents) -> tuple[Problem, ...]:
    return resolve(b.objects(documents), b.ENVIRONMENT, b.REVISION).problems


TAKEN = [
    ["numpy"],
    ["numpy==2.1.0", "torch>=2.4,<3", "uvicorn[standard]~=0.30"],
    ["a-b.c_d==1.*"],
    ["torch (>=2.4)"],
    ["numpy>=1", "NumPy<3"],
    ["tomli==2.0.1; python_version < '3.11'", "tomli==2.2.1; python_version >= '3.11'"],
    ["x==1.0+cu124"],
    ["x>1.0b1", "x<1.0b3"],
    [],
]


@pytest.mark.parametrize("specs", TAKEN, ids=str)
def test_packages_that_may_be_asked_for(specs: list[str]) -> None:
    assert list(refused_specs(specs)) == []


REFUSED = {
    "--index-url=https://evil.example/simple": "pip options are not taken: '--index-url=https:",
    "--extra-index-url https://evil.example": "pip options are not taken: ",
    "-e .": "pip options are not taken: '-e .'",
    "-r requirements.txt": "pip options are not taken: '-r requirements.txt'",
    "numpy --hash=sha256:00": "pip options are not taken: 'numpy --hash=sha256:00'",
    "numpy -i evil": "pip options are not taken: 'numpy -i evil'",
    "x @ https://evil.example/x.whl": "addresses and repositories are not taken: 'x @ https:",
    "x@https://evil.example/x.whl": "addresses and repositories are not taken: ",
    "x@file:x.whl": "are not taken: 'x@file:x.whl'",
    "git+ssh://git@evil.example/x": "addresses and repositories are not taken: 'git+ssh:",
    "https://evil.example/x.tar.gz": "addresses and repositories are not taken: ",
    "./x": "paths are not taken: './x'",
    "/tmp/x": "paths are not taken: '/tmp/x'",
    "~/x": "paths are not taken: '~/x'",
    "..\\x": "paths are not taken: ",
    "dist/x": "paths are not taken: 'dist/x'",
    "x-1.0-py3-none-any.whl": "paths are not taken: ",
    "x.tar.gz": "paths are not taken: ",
    "$PACKAGE": "environment variables are not filled in: '$PACKAGE'",
    "numpy==${VERSION}": "environment variables are not filled in: ",
    "%PACKAGE%": "environment variables are not filled in: ",
    "numpy # the best": "comments are not taken: 'numpy # the best'",
    "numpy===2.1.0": "=== compares letter by letter: use ==: 'numpy===2.1.0'",
    "numpy==*": "'numpy==*' is no package requirement: ",
    "numpy*": "'numpy*' is no package requirement: ",
    "numpy>=1.*": "'numpy>=1.*' is no package requirement: ",
    "numpy=2": "'numpy=2' is no package requirement: ",
    "numpy 2": "'numpy 2' is no package requirement: ",
    "": "'' is no package requirement: ",
    "numpy\ntorch": "'numpy\\ntorch' is no package requirement: ",
    "nümpy": "'nümpy' is no package requirement: ",
    "x" * 400: "400 characters are no package: 'xxx",
}


@pytest.mark.parametrize(("written", "says"), REFUSED.items(), ids=[r[:30] for r in REFUSED])
def test_what_reaches_past_the_index_is_refused(written: str, says: str) -> None:
    ((number, message, hint),) = refused_specs(["torch", written])
    assert (number, hint) == (1, ALONE)
    assert says in message
    assert len(message) < 300


CONTRADICTIONS = [
    ("numpy==1.0", "NumPy==2.0"),
    ("numpy>=2", "numpy<2"),
    ("numpy>2", "numpy<=2"),
    ("numpy~=1.4", "numpy>=2"),
    ("numpy==1.*", "numpy==2.*"),
    ("numpy==1.0", "numpy!=1.0"),
    ("a.b==1", "A-B==2"),
]


@pytest.mark.parametrize(("one", "other"), CONTRADICTIONS)
def test_two_that_contradict_each_other(one: str, other: str) -> None:
    ((number, message, hint),) = refused_specs([one, "torch", other])
    assert (number, hint) == (2, "keep one of the two")
    assert message == f"{other!r} and {one!r} can't both hold"


def test_too_many_packages() -> None:
    ((_, message, hint),) = refused_specs(["numpy"] * (SPECS_MAX + 1))
    assert (message, hint) == ("201 packages, at most 200 are taken", "put them into the image")


@given(st.lists(st.text(max_size=40), max_size=5))
def test_no_text_raises(specs: list[str]) -> None:
    assert all(0 <= found.number < len(specs) for found in refused_specs(specs))


def test_a_bad_package_is_told_rather_than_that_none_are_taken_yet() -> None:
    documents = b.world()
    parameters(pip_packages=["numpy", "-r all.txt"])(documents)
    (problem,) = problems(documents)
    assert problem.pointer == "/spec/parameters/pip_packages/1"
    assert str(problem).endswith(
        f"pip_spec_refused: pip options are not taken: '-r all.txt' ({ALONE})"
    )
    parameters(pip_packages=["numpy"])(documents)
    assert [problem.code for problem in problems(documents)] == ["not_supported_yet"]


def test_packages_one_a_line() -> None:
    documents = b.world()
    schema = documents[b.VERSION_FILE]["spec"]["launch_parameters"]
    schema["properties"]["pip_packages"] = {"type": "string"}
    parameters(pip_packages="numpy\n\ntorch==2.*.*\n")(documents)
    (problem,) = problems(documents)
    assert problem.pointer == "/spec/parameters/pip_packages"
    assert "'torch==2.*.*' is no package requirement" in problem.message


def with_version(name: str, state: str = "draft") -> b.Documents:
    documents = b.world()
    b.add(documents, f"catalog/hello/versions/{name}.yaml", b.version_spec(name))
    promotion: dict[str, Any] = {"state": state, "reason": "tested"}
    b.add(documents, f"catalog/hello/promotions/{name}.yaml", promotion)
    return documents


@pytest.mark.parametrize("name", ["2.0.0rc1", "2.0.0-rc.1", "2024.6", "1.0.0+cu124", "v3", "2a1"])
def test_versions_that_can_be_ordered(name: str) -> None:
    assert problems(with_version(name)) == ()


@pytest.mark.parametrize("name", ["latest", "1.0.x", "1.0-nightly", "2024-06-01-hotfix"])
def test_a_version_that_cannot_be_ordered(name: str) -> None:
    (problem,) = problems(with_version(name))
    assert problem.object == f"AppVersion/hello/{name}"
    assert str(problem).endswith(
        f"version_unreadable: '{name}' can't be read as a version "
        "(write it as 1.2.0, 1.2.0rc1 or 1.2.0+build.5)"
    )


def test_two_spellings_of_one_version() -> None:
    (problem,) = problems(with_version("1.0"))
    assert problem.code == "version_ambiguous"
    assert problem.message in (
        "1.0.0 and 1.0 are the same version",
        "1.0 and 1.0.0 are the same version",
    )
    assert problem.hint == "keep one spelling"


def test_both_spellings_are_blamed() -> None:
    blamed = resolve(b.objects(with_version("1.0")), b.ENVIRONMENT, b.REVISION).blamed
    assert {str(ref) for ref in blamed} == {"AppVersion/hello/1.0", "AppVersion/hello/1.0.0"}


def test_an_unknown_version_names_the_newest_on_offer() -> None:
    documents = b.world()
    for name in ("1.9.0", "1.10.0", "0.9", "1.10.0rc1", "1.2.0"):
        more = with_version(name, "active")
        documents |= {path: more[path] for path in more if path.endswith(f"/{name}.yaml")}
    spec(b.INSTANCE_FILE, version="7.7.7")(documents)
    (problem,) = [p for p in problems(documents) if p.code == "unknown_reference"]
    assert problem.hint == "on offer: 1.10.0, 1.10.0rc1, 1.9.0, 1.2.0, 1.0.0"


def test_order() -> None:
    written = ["1.9", "1.10", "latest", "1.10rc1", "0.1", "alpha"]
    assert newest(written, 9) == ("1.10", "1.10rc1", "1.9", "0.1", "latest", "alpha")
