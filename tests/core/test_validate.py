"""A revision's files to objects and problems: every check, its place and its words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reconciler.adapters.schema_files import load_schemas
from reconciler.core.desired import Candidate
from reconciler.core.kinds import KINDS
from reconciler.core.kinds.app_instance import AppInstance
from reconciler.core.names import ObjectRef, Revision
from reconciler.core.parse import ParseLimits
from reconciler.core.schema import SchemaSet
from reconciler.core.source import FileKind, Snapshot, SourceFile
from reconciler.core.validate import validate

SCHEMAS = SchemaSet.build(load_schemas())
EXAMPLE = Path(__file__).parents[2] / "example-state-repo"
INSTANCES = "tenants/acme/projects/research/instances"
DIGEST = "sha256:" + "ab" * 32


def check(*files: SourceFile) -> Candidate:
    ordered = tuple(sorted(files, key=lambda file: file.path))
    snapshot = Snapshot(Revision("a" * 40), ordered, "Ada", "a change", 0)
    return validate(snapshot, SCHEMAS, ParseLimits())


def file(path: str, content: str = "", kind: FileKind = "file") -> SourceFile:
    return SourceFile(path, "0", content.encode(), kind)


def instance(name: str = "hello", **fields: str) -> str:
    lines = {"app": "hello", "version": '"1.0.0"', "placement_intent": "{allocation: small}"}
    spec = "".join(f"  {key}: {value}\n" for key, value in (lines | fields).items())
    return f"apiVersion: gpuaas.dev/v1\nkind: AppInstance\nmetadata:\n  name: {name}\nspec:\n{spec}"


def version(extra: str = "", launch: str = "{type: object}", ports: str = "[]") -> str:
    return (
        'apiVersion: gpuaas.dev/v1\nkind: AppVersion\nmetadata:\n  name: "1.0.0"\nspec:\n'
        '  slug: hello\n  display_name: Hello\n  version: "1.0.0"\n  artifact_kind: oci\n'
        f"  artifact_ref: gpuaas/hello@{DIGEST}\n"
        f"  runtime_profile:\n    kind: launchable_oci\n    ports: {ports}\n"
        f"  launch_parameters: {launch}\n{extra}"
    )


def test_a_good_file_becomes_an_object() -> None:
    found = check(file(f"{INSTANCES}/hello.yaml", "# note\n" + instance()))
    assert found.problems == ()
    assert found.broken_paths == frozenset()
    ref = ObjectRef("AppInstance", ("acme", "research", "hello"))
    assert list(found.objects) == [ref]
    only = found.objects[ref]
    assert (only.path, only.line) == (f"{INSTANCES}/hello.yaml", 2)
    assert isinstance(only.manifest, AppInstance)
    assert only.manifest.spec.desired == "running"
    assert only.document["kind"] == "AppInstance"


def test_the_example_state_repo_has_no_problem() -> None:
    files = [
        SourceFile(str(path.relative_to(EXAMPLE)), "0", path.read_bytes())
        for path in EXAMPLE.rglob("*")
        if path.is_file()
    ]
    found = check(*files)
    assert found.problems == ()
    assert {ref.kind for ref in found.objects} == {*KINDS}
    assert ObjectRef("AppInstance", ("acme", "research", "hello")) in found.objects


def test_other_files_are_not_looked_at() -> None:
    found = check(
        file("README.md", "[["),
        file(".github/workflows/check.yaml", "on: {push: ["),
        file("tenants/acme/notes.md", "[["),
        file("elsewhere/link", kind="symlink"),
    )
    assert found.problems == ()
    assert found.broken_paths == frozenset()


PATH = f"{INSTANCES}/hello.yaml"
VERSION_PATH = "catalog/hello/versions/1.0.0.yaml"
CASES: list[Any] = [
    (
        "misspelt field",
        PATH,
        instance(verison='"1.0.0"'),
        ("unknown_field", 9, 3, "/spec/verison"),
        "unknown field 'verison' (did you mean 'version'?)",
    ),
    (
        "version that YAML reads as a number",
        PATH,
        instance(version="1.10"),
        ("wrong_type", 7, 3, "/spec/version"),
        'expected a string, got the number 1.1 (put it in quotes: "1.10")',
    ),
    (
        "missing field",
        PATH,
        instance().replace("  app: hello\n", ""),
        ("missing_field", 5, 1, "/spec"),
        "the field 'app' is missing (App of the catalog.)",
    ),
    (
        "unknown value",
        PATH,
        instance(desired="runing"),
        ("unknown_value", 9, 3, "/spec/desired"),
        "the text 'runing' is not one of: running, stopped, decommissioned "
        "(did you mean 'running'?)",
    ),
    (
        "YAML 1.1 boolean",
        "tenants/acme/projects/research/entitlements/hello.yaml",
        "apiVersion: gpuaas.dev/v1\nkind: Entitlement\nmetadata: {name: hello}\n"
        "spec: {enabled: on}\n",
        ("wrong_type", 4, 8, "/spec/enabled"),
        "expected true or false, got the text 'on' (write true)",
    ),
    (
        "null",
        PATH,
        instance(parameters="~"),
        ("wrong_type", 9, 3, "/spec/parameters"),
        "expected a mapping, got nothing (null) (give it a value or leave the field out)",
    ),
    (
        "quoted number",
        VERSION_PATH,
        version(ports='[{name: http, container: "8080"}]'),
        ("wrong_type", 13, 26, "/spec/runtime_profile/ports/0/container"),
        "expected a whole number, got the text '8080' (write the number without quotes)",
    ),
    (
        "version that is not the file's",
        VERSION_PATH,
        version().replace('version: "1.0.0"', 'version: "1.0.1"'),
        ("path_mismatch", 8, 3, "/spec/version"),
        "the text '1.0.1' disagrees with the path, which says '1.0.0' (write 1.0.0)",
    ),
    (
        "slug that is not the folder's",
        VERSION_PATH,
        version().replace("slug: hello", "slug: helo"),
        ("path_mismatch", 6, 3, "/spec/slug"),
        "the text 'helo' disagrees with the path, which says 'hello' (write hello)",
    ),
    (
        "port name twice",
        VERSION_PATH,
        version(ports="[{name: a, container: 1}, {name: a, container: 2}]"),
        ("duplicate_item", 13, 39, "/spec/runtime_profile/ports/1/name"),
        "name a is used twice (each needs its own)",
    ),
    (
        "secret name twice",
        VERSION_PATH,
        version(ports="[]\n    secrets: [{name: a}, {name: b}, {name: a}]"),
        ("duplicate_item", 14, 38, "/spec/runtime_profile/secrets/2/name"),
        "name a is used twice (each needs its own)",
    ),
    *(
        (
            f"{one[:-1]} of a topology twice",
            VERSION_PATH,
            version(ports=f"[]\n    topology: {{{one}: [{{name: a{more}}}, {{name: a{more}}}]}}"),
            ("duplicate_item", 14, column, f"/spec/runtime_profile/topology/{one}/1/name"),
            "name a is used twice (each needs its own)",
        )
        for one, more, column in (
            ("services", "", 39),
            ("volumes", ", size_mib: 1", 51),
            ("endpoints", ", service: a, port: 1", 61),
        )
    ),
    (
        "launch parameters that are no schema",
        VERSION_PATH,
        version(launch="{type: object, properties: {a: {type: strin}}}"),
        ("launch_parameters_invalid", 14, 54, "/spec/launch_parameters/properties/a/type"),
        'not a valid JSON Schema: "strin" is not valid under any of the schemas listed in the '
        "'anyOf' keyword",
    ),
    (
        "launch parameters that refer to themselves",
        VERSION_PATH,
        version(launch='{type: object, properties: {a: {$ref: "#"}}}'),
        ("launch_parameters_ref", 14, 54, "/spec/launch_parameters/properties/a/$ref"),
        "$ref is not taken here (write the schema out)",
    ),
    (
        "launch parameters for a list",
        VERSION_PATH,
        version(launch="{type: array}"),
        ("launch_parameters_invalid", 14, 23, "/spec/launch_parameters/type"),
        "launch_parameters describe a mapping: the type must be object",
    ),
]


@pytest.mark.parametrize(
    ("path", "content", "expected", "words"),
    [pytest.param(*case[1:], id=case[0]) for case in CASES],
)
def test_one_problem_with_its_place_and_its_owner(
    path: str, content: str, expected: tuple[str, int, int, str], words: str
) -> None:
    found = check(file(path, content))
    assert [(p.code, p.line, p.column, p.pointer) for p in found.problems] == [expected]
    problem = found.problems[0]
    assert str(problem) == f"{path}:{expected[1]}:{expected[2]}: {expected[0]}: {words}"
    assert ObjectRef.parse(problem.object).name in path
    assert found.objects == {}
    assert found.broken_paths == frozenset()


NO_OWNER: list[Any] = [
    (
        "name that is not the file's",
        file(PATH, instance("helo")),
        ("name_mismatch", 4, 3),
        "named 'helo', but its file is named 'hello' (rename one of the two)",
    ),
    (
        "name that is not the folder's",
        file(
            "tenants/acme/tenant.yaml",
            "apiVersion: gpuaas.dev/v1\nkind: Tenant\nmetadata:\n  name: acne\n"
            "spec: {org_id: o-1, display_name: Acme}\n",
        ),
        ("name_mismatch", 4, 3),
        "named 'acne', but its folder is named 'acme' (rename one of the two)",
    ),
    (
        "unknown kind",
        file(PATH, instance().replace("AppInstance", "AppInstanse")),
        ("unknown_kind", 2, 1),
        "unknown kind 'AppInstanse' (did you mean 'AppInstance'?)",
    ),
    (
        "unknown kind, far from any",
        file(PATH, instance().replace("AppInstance", "Zebra")),
        ("unknown_kind", 2, 1),
        "unknown kind 'Zebra' (this path is for AppInstance)",
    ),
    (
        "kind that lives elsewhere",
        file("tenants/acme/projects/research/allocations/hello.yaml", instance()),
        ("kind_mismatch", 2, 1),
        "AppInstance does not belong here: this path is for Allocation "
        "(move it to tenants/<tenant>/projects/<project>/instances/<name>.yaml)",
    ),
    (
        "path that is nothing's",
        file("tenants/acme/projects/research/instance/hello.yaml", instance()),
        ("unknown_path", 0, 0),
        "no kind of manifest lives at this path "
        "(did you mean tenants/<tenant>/projects/<project>/instances/<name>.yaml?)",
    ),
    (
        "symbolic link",
        file(PATH, kind="symlink"),
        ("symlink", 0, 0),
        "a symbolic link stands where manifests belong (commit the file itself)",
    ),
    (
        "submodule for a folder",
        file("tenants/acme/projects", kind="submodule"),
        ("submodule", 0, 0),
        "a submodule stands where manifests belong (commit the files themselves)",
    ),
    (
        "link for a top folder",
        file("tenants", kind="symlink"),
        ("symlink", 0, 0),
        "a symbolic link stands where manifests belong (commit the file itself)",
    ),
    (
        "too large to be read",
        file(PATH, kind="too_large"),
        ("file_too_large", 0, 0),
        "larger than 1048576 bytes (split the file)",
    ),
    (
        "not YAML",
        file(PATH, "a: ["),
        ("yaml_syntax", 1, 5),
        "while parsing a flow node did not find expected node content "
        "(look at the indentation, quotes and brackets here and in the lines above)",
    ),
    (
        "empty",
        file(PATH, "# all of it commented out\n"),
        ("empty_file", 0, 0),
        "no manifest stands in this file (remove the file if what it held should go)",
    ),
    (
        "no name",
        file(PATH, instance().replace("name: hello", "labels: {}")),
        ("missing_field", 3, 1),
        "the field 'name' is missing (Name of the instance, the same as the file's.)",
    ),
]


@pytest.mark.parametrize(
    ("source", "expected", "words"), [pytest.param(*case[1:], id=case[0]) for case in NO_OWNER]
)
def test_what_a_file_holds_is_not_known(
    source: SourceFile, expected: tuple[str, int, int], words: str
) -> None:
    found = check(source)
    assert [(p.code, p.line, p.column) for p in found.problems] == [expected]
    problem = found.problems[0]
    assert str(problem) == f"{problem.where}: {expected[0]}: {words}"
    assert problem.object == ""
    assert found.objects == {}
    assert found.broken_paths == {source.path}


def test_a_name_of_the_wrong_form_in_a_shared_file_breaks_the_path() -> None:
    content = f"{instance('one')}---\n{instance('Two')}"
    found = check(file(f"{INSTANCES}/all.yaml", content))
    assert [(p.code, p.line, p.object) for p in found.problems] == [("wrong_format", 13, "")]
    assert [ref.name for ref in found.objects] == ["one"]
    assert found.broken_paths == {f"{INSTANCES}/all.yaml"}


def test_a_file_of_several_documents_may_be_called_anything() -> None:
    content = f"{instance('one')}---\n{instance('two', desired='stopped')}"
    found = check(file(f"{INSTANCES}/all.yml", content))
    assert found.problems == ()
    assert [(ref.name, item.line) for ref, item in found.objects.items()] == [
        ("one", 1),
        ("two", 10),
    ]


def test_one_bad_document_does_not_take_its_neighbours_along() -> None:
    content = f"{instance('one')}---\n{instance('two', desired='of')}---\n{instance('three')}"
    found = check(file(f"{INSTANCES}/all.yaml", content))
    assert [(p.code, p.line, p.object) for p in found.problems] == [
        ("unknown_value", 18, "AppInstance/acme/research/two")
    ]
    assert [ref.name for ref in found.objects] == ["one", "three"]
    assert found.broken_paths == frozenset()


def test_an_unreadable_document_breaks_the_path_but_not_its_neighbours() -> None:
    found = check(file(f"{INSTANCES}/all.yaml", f"{instance('one')}---\na: &x 1\n"))
    assert [ref.name for ref in found.objects] == ["one"]
    assert found.broken_paths == {f"{INSTANCES}/all.yaml"}


def test_an_object_that_stands_twice_is_told_at_both_places_and_is_no_object() -> None:
    found = check(
        file(f"{INSTANCES}/all.yaml", f"{instance('other')}---\n{instance()}"),
        file(f"{INSTANCES}/hello.yaml", instance()),
    )
    ref = "AppInstance/acme/research/hello"
    assert [str(problem) for problem in found.problems] == [
        f"{INSTANCES}/all.yaml:10:1: duplicate_object: {ref} also stands at "
        f"{INSTANCES}/hello.yaml:1 (keep one of the two)",
        f"{INSTANCES}/hello.yaml:1:1: duplicate_object: {ref} also stands at "
        f"{INSTANCES}/all.yaml:10 (keep one of the two)",
    ]
    assert {problem.object for problem in found.problems} == {ref}
    assert [found_ref.name for found_ref in found.objects] == ["other"]


def test_all_problems_come_at_once_and_sorted() -> None:
    found = check(
        file(PATH, instance(verison="1", desired="no", app="7")),
        file("environments/dev.yaml", "apiVersion: gpuaas.dev/v1\nkind: Environment\n"),
        file("catalog/oops.yaml", "a: 1"),
    )
    assert list(found.problems) == sorted(found.problems)
    assert [(problem.path, problem.code) for problem in found.problems] == [
        ("catalog/oops.yaml", "unknown_path"),
        ("environments/dev.yaml", "missing_field"),
        ("environments/dev.yaml", "missing_field"),
        (PATH, "wrong_type"),
        (PATH, "unknown_field"),
        (PATH, "unknown_value"),
    ]


def test_an_escaped_pointer_is_located() -> None:
    content = instance().replace("  name: hello\n", "  name: hello\n  labels:\n    a/b: 1\n")
    found = check(file(PATH, content))
    assert [(p.pointer, p.line, p.column) for p in found.problems] == [
        ("/metadata/labels/a~1b", 6, 5)
    ]


@settings(max_examples=200, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from([PATH, VERSION_PATH, f"{INSTANCES}/all.yaml", "catalog/hello/app.yaml"]),
        st.lists(
            st.sampled_from([instance(), instance("two"), version(), "a: [", "kind: App", "", "-"])
            | st.text(max_size=20),
            max_size=3,
        ).map("\n---\n".join),
    )
)
def test_no_file_raises_and_none_is_lost_without_a_word(files: dict[str, str]) -> None:
    found = check(*(SourceFile(path, "0", text.encode()) for path, text in files.items()))
    assert list(found.problems) == sorted(set(found.problems))
    for problem in found.problems:
        assert problem.object or problem.path in found.broken_paths
    for item in found.objects.values():
        assert item.path in files


def test_a_misspelled_top_folder_is_told_and_a_folder_of_something_else_is_not() -> None:
    found = check(
        file("tenats/acme/tenant.yaml", "apiVersion: gpuaas.dev/v1\nkind: Tenant\n"),
        file("tenats/values.yaml", "apiVersion: v1\nkind: List\n"),
        file("charts/x.yaml", "apiVersion: gpuaas.dev/v1\nkind: Tenant\n"),
    )
    assert [(p.path, p.code, p.hint) for p in found.problems] == [
        ("tenats/acme/tenant.yaml", "unknown_path", "did you mean tenants/<name>/tenant.yaml?")
    ]
