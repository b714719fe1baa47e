"""Versions that can be ordered, and Python packages that may be asked for."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node_agent.wire import Packages, Workload
from reconciler.core.checks.packages import (
    SAME_MAX,
    SPECS_MAX,
    newest,
    refused_specs,
    requirement_lines,
    spec_texts,
)
from reconciler.core.problems import Problem
from reconciler.core.resolve import resolve
from renderers import render
from tests.core import builders as b
from tests.core.resolve_cases import parameters, spec

HASH, OTHER_HASH = f"--hash=sha256:{'a' * 64}", f"--hash=sha256:{'b' * 64}"
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
    [f"numpy==2.1.0 {HASH}", f"torch==2.4 {OTHER_HASH} {HASH}"],
    [f"tomli==2.0.1; python_version < '3.11' {HASH}"],
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
    "numpy --hash=sha256:00": "a hash is --hash=sha256: and 64 hexadecimal digits, at the end: ",
    f"numpy==1 --hash=md5:{'a' * 32}": "a hash is --hash=sha256: and 64 hexadecimal digits, at",
    f"numpy==1 {HASH} --pre": "a hash is --hash=sha256: and 64 hexadecimal digits, at the end: ",
    f"numpy==1 {HASH.upper()}": "pip options are not taken: ",
    f"-r all.txt {HASH}": "pip options are not taken: '-r all.txt'",
    f"x @ https://evil.example/x.whl {HASH}": "addresses and repositories are not taken: ",
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
    "numpy\ntorch": "a package is plain text on one line: 'numpy\\ntorch'",
    "nümpy": "a package is plain text on one line: 'nümpy'",
    "x" * 400: "400 characters are no package: 'xxx",
    # A text in a marker is read as Python's: what is written so could be a line or a quote later.
    r"""numpy; os_name != "x'\n\x2di evil\x22\x22" """: "a package is plain text on one line: ",
    r"""numpy; os_name != 'x\x22\n\x2di evil'""": "a package is plain text on one line: ",
    "numpy; os_name != 'x\ny'": "a package is plain text on one line: ",
    """numpy; os_name != 'x" -"r" /etc/all'""": "pip options are not taken: ",
}


@pytest.mark.parametrize(("written", "says"), REFUSED.items(), ids=[r[:30] for r in REFUSED])
def test_what_reaches_past_the_index_is_refused(written: str, says: str) -> None:
    ((number, message, hint, _),) = refused_specs(["torch", written])
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
    ((number, message, hint, _),) = refused_specs([one, "torch", other])
    assert (number, hint) == (2, "keep one of the two")
    assert message == f"{other!r} and {one!r} can't both hold"


def test_too_many_packages() -> None:
    ((_, message, hint, _),) = refused_specs(["numpy"] * (SPECS_MAX + 1))
    assert (message, hint) == ("201 packages, at most 200 are taken", "put them into the image")


@given(st.lists(st.text(max_size=40), max_size=5))
def test_no_text_raises(specs: list[str]) -> None:
    assert all(0 <= found.number < len(specs) for found in refused_specs(specs))


MARKER_TEXT = st.text(alphabet="xn2di0\\\"' -;#\n@[]{}$%", max_size=30)


@given(st.sampled_from(("'", '"')), MARKER_TEXT)
def test_what_is_not_refused_is_one_line_of_one_package(quote: str, text: str) -> None:
    spec = f"numpy; os_name != {quote}{text}{quote}"
    if list(refused_specs([spec])):
        return
    (line,) = requirement_lines([spec])
    assert line.isprintable()
    assert "\\" not in line
    assert not any(word.startswith("-") for word in line.split())


UNPINNED = ["numpy", "numpy>=2", "numpy==2.*", "numpy==2,!=3"]


@pytest.mark.parametrize("spec", UNPINNED)
def test_a_hash_holds_for_one_version(spec: str) -> None:
    ((_, message, hint, code),) = refused_specs([f"{spec} {HASH}"])
    assert code == "pip_spec_refused"
    assert message == f"a hash holds for one version, and {spec!r} names none"
    assert hint == "pin it with ==, for example numpy==2.1.0 --hash=sha256:…"


def test_hashes_for_all_or_for_none() -> None:
    ((number, message, hint, code),) = refused_specs([f"numpy==2.1.0 {HASH}", "torch==2.4"])
    assert (number, code) == (1, "pip_hashes_partial")
    assert message == "1 of 2 packages have a hash, 'torch==2.4' has none"
    assert hint == "give each its hashes, also those that they need in turn, or none any"


def test_many_of_one_package() -> None:
    """Each is compared with each, so there is an end to it."""
    specs = [f"numpy!={number}" for number in range(SAME_MAX + 2)]
    ((number, message, hint, _),) = refused_specs(specs)
    assert (number, hint) == (SAME_MAX, "say it in one: numpy>=2,<3")
    assert message == f"more than {SAME_MAX} of 'numpy!=16'"


def test_a_long_text_is_read_in_one_go() -> None:
    """What may be in a file of the largest size must not keep everybody else waiting."""
    gap = " " * 1_000_000
    assert requirement_lines([f"a{gap}b", f"a{gap}{HASH}"]) == ()
    assert [found.number for found in refused_specs([f"a{gap[:90_000]}b"])] == [0]


def test_too_much_text() -> None:
    specs = [f"p{number}==1 " + " ".join([HASH] * 20) for number in range(100)]
    ((_, message, hint, _),) = refused_specs(specs)
    assert message.endswith("characters of packages and hashes, at most 100000 are taken")
    assert hint == "leave out the hashes of other platforms, or use the image"


LINES = [
    (["torch (>=2.4)", "numpy"], ("numpy", "torch>=2.4")),
    (["numpy", "numpy ", " numpy"], ("numpy",)),
    (["x<3,>=2", "x>=2,<3"], ("x<3,>=2",)),
    ([f"b==1  {OTHER_HASH} {HASH} {HASH}"], (f"b==1 {HASH} {OTHER_HASH}",)),
    (["a[z,b]==1 ; python_version<'3.11'"], ('a[b,z]==1; python_version < "3.11"',)),
    (["-r all.txt", "x"], ("x",)),
]


@pytest.mark.parametrize(("specs", "lines"), LINES)
def test_one_spelling_and_order_of_the_same_packages(
    specs: list[str], lines: tuple[str, ...]
) -> None:
    assert requirement_lines(specs) == lines
    assert requirement_lines([*reversed(specs)]) == lines
    assert list(refused_specs(lines)) == []
    assert requirement_lines(lines) == lines


def test_a_text_may_go_on_in_the_next_line_as_in_a_lock_file() -> None:
    text = f"numpy==2.1.0 \\\n    {HASH} \\\n    {OTHER_HASH}\n\ntorch==2.4 {HASH}\n"
    specs = spec_texts(text)
    assert specs is not None
    assert requirement_lines(specs) == (f"numpy==2.1.0 {HASH} {OTHER_HASH}", f"torch==2.4 {HASH}")
    assert spec_texts({"numpy": 1}) is spec_texts(["numpy", 2]) is spec_texts(7) is None


INDEX = {"url": "https://wheels.example/simple/"}


def with_index() -> b.Documents:
    documents = b.world()
    spec(b.ENVIRONMENT_FILE, package_index=INDEX)(documents)
    return documents


def rendered(documents: b.Documents) -> Workload:
    found = resolve(b.objects(documents), b.ENVIRONMENT, b.REVISION)
    assert found.problems == ()
    (instance,) = found.instances.values()
    workload = render(instance)
    assert isinstance(workload, Workload)
    return workload


def test_packages_reach_the_workload() -> None:
    documents = with_index()
    parameters(pip_packages=["torch>=2.4", "numpy"])(documents)
    packages = rendered(documents).packages
    assert packages == Packages(index_url=INDEX["url"], requirements=("numpy", "torch>=2.4"))
    parameters(pip_packages=[f"numpy==2.1.0 {HASH}"])(documents)
    packages = rendered(documents).packages
    assert packages is not None
    assert (packages.requirements, packages.require_hashes) == ((f"numpy==2.1.0 {HASH}",), True)
    before = rendered(documents).spec_hash
    parameters(pip_packages=[])(documents)
    assert rendered(documents).packages is None
    assert rendered(documents).spec_hash != before


def test_another_order_is_the_same_workload() -> None:
    hashes = set()
    for packages in (["a", "b>=1,<2"], ["b<2,>=1", "a"]):
        documents = with_index()
        parameters(pip_packages=packages)(documents)
        hashes.add(rendered(documents).spec_hash)
    assert len(hashes) == 1


def test_the_default_of_the_form_is_put_in_too() -> None:
    documents = with_index()
    form = documents[b.VERSION_FILE]["spec"]["launch_parameters"]
    form["properties"]["pip_packages"]["default"] = ["numpy"]
    packages = rendered(documents).packages
    assert packages is not None
    assert packages.requirements == ("numpy",)
    parameters(pip_packages=[])(documents)
    assert rendered(documents).packages is None


def test_a_bad_default_is_the_versions() -> None:
    documents = with_index()
    form = documents[b.VERSION_FILE]["spec"]["launch_parameters"]
    form["properties"]["pip_packages"]["default"] = ["-r all.txt"]
    form["properties"]["host_port"]["default"] = 80
    first, second = problems(documents)
    assert first.object == second.object == "AppVersion/hello/1.0.0"
    assert first.pointer == "/spec/launch_parameters/properties/host_port/default"
    assert first.message == (
        "the default can't be carried out: host_port must be an integer from 1024 to 65535"
    )
    assert (second.code, "'-r all.txt'" in second.message) == ("pip_spec_refused", True)


def test_packages_without_an_index_to_take_them_from() -> None:
    documents = b.world()
    parameters(pip_packages=["numpy"])(documents)
    (problem,) = problems(documents)
    assert problem.pointer == "/spec/parameters/pip_packages"
    assert str(problem).endswith(
        "no_package_index: packages are asked for, and the environment names no index to take them "
        "from (an admin sets package_index.url there)"
    )
    parameters(pip_packages=[])(documents)
    assert problems(documents) == ()


def test_a_bad_package_is_told_where_it_stands() -> None:
    documents = with_index()
    parameters(pip_packages=["numpy", "-r all.txt"])(documents)
    (problem,) = problems(documents)
    assert problem.pointer == "/spec/parameters/pip_packages/1"
    assert str(problem).endswith(
        f"pip_spec_refused: pip options are not taken: '-r all.txt' ({ALONE})"
    )


def test_packages_one_a_line() -> None:
    documents = with_index()
    schema = documents[b.VERSION_FILE]["spec"]["launch_parameters"]
    schema["properties"]["pip_packages"] = {"type": ["string", "integer"]}
    parameters(pip_packages="numpy\n\ntorch==2.*.*\n")(documents)
    (problem,) = problems(documents)
    assert problem.pointer == "/spec/parameters/pip_packages"
    assert "'torch==2.*.*' is no package requirement" in problem.message
    parameters(pip_packages=7)(documents)
    (problem,) = problems(documents)
    assert problem.code == "invalid_parameter"
    assert problem.message == (
        "pip_packages must be a list of texts, or one text with a package a line"
    )


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
