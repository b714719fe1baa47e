"""Writes down which flags `vllm serve` takes, read from vLLM's own sources without running them.

    pip download --no-deps --no-clean --no-binary :all: vllm
    python tests/renderers/make_vllm_flags.py FOLDER_OF_THE_UNPACKED_SOURCES VERSION

pip unpacks the sources into its temporary folder and leaves them there, also where it then can't
build them.
"""

from __future__ import annotations

import ast
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

WRITTEN = Path(__file__).with_name("vllm_flags.json")
_FRONTEND = "FrontendArgs"
Classes = Mapping[str, ast.ClassDef]
Names = Mapping[str, ast.expr]


def main(sources: Path, version: str) -> None:
    trees = [ast.parse(path.read_text()) for path in sorted((sources / "vllm").rglob("*.py"))]
    classes = {
        one.name: one for tree in trees for one in tree.body if isinstance(one, ast.ClassDef)
    }
    names = {name: value for tree in trees for name, value in _assigned(tree)}
    found = {**_engine(classes, names), **_frontend(classes, names), **_direct(trees)}
    flags = {flag: found[flag] for flag in sorted(found)}
    document = {"vllm": version, "made_by": Path(__file__).name, "flags": flags}
    WRITTEN.write_text(_readable(document))


def _readable(document: Mapping[str, Any]) -> str:
    """One flag a line."""
    lines = [f"    {json.dumps(k)}: {json.dumps(v)}" for k, v in document["flags"].items()]
    head = "".join(f'  "{key}": {json.dumps(document[key])},\n' for key in ("vllm", "made_by"))
    return "{\n" + head + '  "flags": {\n' + ",\n".join(lines) + "\n  }\n}\n"


def _assigned(tree: ast.Module) -> Iterator[tuple[str, ast.expr]]:
    """Names of types at the top of a module, also those for type checkers alone."""
    for statement in ast.walk(tree):
        if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
            if "Literal" in ast.unparse(statement.value):
                yield statement.targets[0].id, statement.value
        elif (
            isinstance(statement, ast.AnnAssign)
            and statement.value is not None
            and ast.unparse(statement.annotation) == "TypeAlias"
        ):
            yield ast.unparse(statement.target), statement.value


def _engine(classes: Classes, names: Names) -> dict[str, Any]:
    """`group.add_argument("--flag", **some_kwargs["field"])`, where some_kwargs is of a class."""
    (adds,) = (
        one
        for one in classes["EngineArgs"].body
        if isinstance(one, ast.FunctionDef) and one.name == "add_cli_args"
    )
    of = {
        statement.targets[0].id: statement.value.args[0].id
        for statement in ast.walk(adds)
        if isinstance(statement, ast.Assign)
        and isinstance(statement.targets[0], ast.Name)
        and isinstance(statement.value, ast.Call)
        and ast.unparse(statement.value.func) == "get_kwargs"
        and isinstance(statement.value.args[0], ast.Name)
    }
    found: dict[str, Any] = {}
    for call in _added(adds):
        field = _field_of(call, of)
        if field is None:
            takes = _said(call)
        else:
            takes = _takes(_fields(classes, field[0]).get(field[1]), names)
        found |= dict.fromkeys(_flags_of(call), takes)
    return found | _no(found)


def _field_of(call: ast.Call, of: Mapping[str, str]) -> tuple[str, str] | None:
    """(class, field) of `some_kwargs["field"]` somewhere in what is added."""
    for word in call.keywords:
        for part in ast.walk(word.value):
            if isinstance(part, ast.Subscript) and ast.unparse(part.value) in of:
                return of[ast.unparse(part.value)], str(ast.literal_eval(part.slice))
    return None


def _said(call: ast.Call) -> dict[str, Any]:
    """What the call itself says of the flag's value."""
    words = {word.arg: ast.unparse(word.value) for word in call.keywords if word.arg}
    action = words.get("action", "").strip("'").removeprefix("argparse.")
    if action == "BooleanOptionalAction":
        return {"type": "bool"}
    if action in ("store_true", "store_false"):
        return {"type": "switch"}
    return {"type": words["type"] if words.get("type") in ("int", "float", "str") else "other"}


def _frontend(classes: Classes, names: Names) -> dict[str, Any]:
    found = {
        f"--{field.replace('_', '-')}": _takes(annotation, names)
        for field, annotation in _fields(classes, _FRONTEND).items()
    }
    return found | _no(found)


def _direct(trees: list[ast.Module]) -> dict[str, Any]:
    """What the parser of `vllm serve` adds beside both."""
    makers = [
        one
        for tree in trees
        for one in tree.body
        if isinstance(one, ast.FunctionDef) and one.name == "make_arg_parser"
        if _FRONTEND in ast.unparse(one)
    ]
    return {f: _said(call) for maker in makers for call in _added(maker) for f in _flags_of(call)}


def _added(function: ast.FunctionDef) -> Iterator[ast.Call]:
    for call in ast.walk(function):
        if isinstance(call, ast.Call) and ast.unparse(call.func).endswith(".add_argument"):
            yield call


def _flags_of(call: ast.Call) -> list[str]:
    words = [str(word.value) for word in call.args if isinstance(word, ast.Constant)]
    return [word for word in words if word.startswith("-")]


def _fields(classes: Classes, name: str) -> dict[str, ast.expr]:
    """Field → annotation of a configuration class and those that it is made of."""
    found: dict[str, ast.expr] = {}
    for base in classes[name].bases:
        if isinstance(base, ast.Name) and base.id in classes:
            found |= _fields(classes, base.id)
    for one in classes[name].body:
        if isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name):
            found[one.target.id] = one.annotation
    return found


def _takes(annotation: ast.expr | None, names: Names) -> dict[str, Any]:
    """In the order in which vLLM's own parser decides: bool, choices, int, float, text."""
    if annotation is None:
        return {"type": "other"}
    kinds, choices = _kinds(annotation, names)
    if "bool" in kinds:
        return {"type": "bool"}
    if choices and "str" not in kinds:
        return {"type": "choice", "choices": sorted(choices)}
    for kind in ("list", "tuple", "set", "int", "float", "dict", "str"):
        if kind in kinds:
            return {"type": kind} | ({"known": sorted(choices)} if choices else {})
    return {"type": "other"}


def _kinds(annotation: ast.expr, names: Names, deep: int = 0) -> tuple[set[str], set[str]]:
    """(words of types in a union, values of Literals in it)"""
    if deep > 8:
        return set(), set()
    if isinstance(annotation, ast.BinOp):
        left, right = (
            _kinds(side, names, deep + 1) for side in (annotation.left, annotation.right)
        )
        return left[0] | right[0], left[1] | right[1]
    if isinstance(annotation, ast.Subscript):
        base = ast.unparse(annotation.value)
        if base == "Literal":
            inside = annotation.slice
            words = inside.elts if isinstance(inside, ast.Tuple) else [inside]
            return set(), {str(word.value) for word in words if isinstance(word, ast.Constant)}
        return ({"str"}, set()) if base == "SkipValidation" else ({base}, set())
    word = ast.unparse(annotation)
    return _kinds(names[word], names, deep + 1) if word in names else ({word}, set())


def _no(found: Mapping[str, Any]) -> dict[str, Any]:
    """argparse makes the opposite of each switch, too."""
    return {f"--no-{flag[2:]}": takes for flag, takes in found.items() if takes["type"] == "bool"}


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
