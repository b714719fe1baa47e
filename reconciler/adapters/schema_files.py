"""Where the published schemas lie: inside the installed package, else beside it in a checkout.

Rules: reads files, nothing more; what leaves is plain JSON or `Refused`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from reconciler.core.kind_places import KIND_PLACES
from reconciler.errors import Refused


def schemas_root() -> Traversable:
    """The folder of schemas that belongs to this program."""
    packaged = files("reconciler") / "_data" / "schemas"
    return packaged if packaged.is_dir() else Path(__file__).parents[2] / "schemas"


def load_schemas(root: Traversable | None = None) -> Mapping[str, dict[str, Any]]:
    """Kind → its JSON Schema. Refused (schema_missing, schema_unreadable) when one can't be had."""
    folder = root if root is not None else schemas_root()
    return {place.name: _read(folder / place.schema_file) for place in KIND_PLACES}


def _read(file: Traversable) -> dict[str, Any]:
    hint = "install the package again"
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise Refused(
            "schema_missing", f"no schema to read: {error.strerror}", where=str(file), hint=hint
        ) from None
    except ValueError as error:
        raise Refused(
            "schema_unreadable", f"not JSON: {error}", where=str(file), hint=hint
        ) from None
    if not isinstance(document, dict):
        raise Refused("schema_unreadable", "not a JSON object", where=str(file), hint=hint)
    return document
