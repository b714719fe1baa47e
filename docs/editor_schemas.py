"""What editors need beside the schemas themselves: a catalog, and a schema for each shared path.

Rules: made from the KINDS table, nothing by hand. Where several kinds may stand at one path,
editors get one schema that picks by the document's `kind`, as they take one schema a file.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from reconciler.core.kinds import KINDS, Kind, kinds_for_path

ROOT = Path(__file__).resolve().parent.parent
SCHEMAS = ROOT / "schemas"
HOME = "https://schemas.gpuaas.dev"
CATALOG = "catalog.json"


def files() -> dict[str, str]:
    """Name of a file in `schemas/` → its text, for every file made here."""
    made = {schema_name(kinds): _combined(kinds) for kinds in _shared()}
    made[CATALOG] = _catalog()
    return {name: json.dumps(document, indent=2) + "\n" for name, document in made.items()}


def schema_for(path: str) -> str:
    """The schema that an editor checks the file at `path` of a state repo with; empty for none."""
    kinds = kinds_for_path(path)
    return schema_name(kinds) if kinds else ""


def schema_name(kinds: tuple[Kind, ...]) -> str:
    """The kind's own schema, or the one that picks among several."""
    names = (kind.schema_file.partition(".")[0] for kind in kinds)
    return f"{'-or-'.join(names)}.{kinds[0].schema_file.partition('.')[2]}"


def file_matches(kind: Kind) -> list[str]:
    """Globs of the kind's files, wherever the state repo lies."""
    glob = re.sub(r"\{\w+\}", "*", kind.path)
    return [f"**/{glob}", f"**/{glob.removesuffix('.yaml')}.yml"]


def about(schema: Mapping[str, Any]) -> str:
    """What a kind says, without where it lives."""
    return re.sub(r"\s*Lives at .*", "", schema["description"])


def _by_path() -> dict[str, tuple[Kind, ...]]:
    found: dict[str, list[Kind]] = defaultdict(list)
    for kind in KINDS.values():
        found[kind.path].append(kind)
    return {path: tuple(kinds) for path, kinds in found.items()}


def _shared() -> list[tuple[Kind, ...]]:
    return [kinds for kinds in _by_path().values() if len(kinds) > 1]


def _combined(kinds: tuple[Kind, ...]) -> dict[str, Any]:
    """By `if` and `then`, not `anyOf`: an editor then tells what is wrong for the kind at hand."""
    names = [kind.name for kind in kinds]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"{HOME}/{schema_name(kinds)}",
        "title": " or ".join(names),
        "description": f"For editors: what may stand at {_readable(kinds[0])}, by its kind.",
        "type": "object",
        "required": ["apiVersion", "kind"],
        "properties": {
            "apiVersion": {"description": "Version of this contract.", "const": "gpuaas.dev/v1"},
            "kind": {"description": "What the document describes.", "enum": names},
        },
        "allOf": [
            {
                "if": {"properties": {"kind": {"const": kind.name}}, "required": ["kind"]},
                "then": {"$ref": f"#/$defs/{kind.name}"},
            }
            for kind in kinds
        ],
        "$defs": {kind.name: _inlined(_schema(kind)) for kind in kinds},
    }


def _inlined(schema: dict[str, Any]) -> dict[str, Any]:
    """Without what makes it a document of its own: so it is whole wherever it is copied to."""
    return {key: value for key, value in schema.items() if key not in ("$schema", "$id")}


def _catalog() -> dict[str, Any]:
    """In the shape of SchemaStore's catalog, which editors take from any address."""
    return {
        "$schema": "https://json.schemastore.org/schema-catalog.json",
        "version": 1,
        "schemas": [
            {
                "name": f"gpuaas {' or '.join(kind.name for kind in kinds)}",
                "description": " ".join(about(_schema(kind)) for kind in kinds),
                "fileMatch": file_matches(kinds[0]),
                "url": f"{HOME}/{schema_name(kinds)}",
            }
            for kinds in _by_path().values()
        ],
    }


def _schema(kind: Kind) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((SCHEMAS / kind.schema_file).read_text())
    return found


def _readable(kind: Kind) -> str:
    return kind.path.replace("{", "<").replace("}", ">")
