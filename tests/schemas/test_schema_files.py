"""Where schemas are read from, and what is said when one can't be."""

from __future__ import annotations

from pathlib import Path

import pytest

from reconciler.adapters.schema_files import load_schemas, schemas_root
from reconciler.core.kinds import KINDS
from reconciler.errors import Refused


def test_every_kind_has_its_schema() -> None:
    assert schemas_root().is_dir()
    assert list(load_schemas()) == list(KINDS)


@pytest.mark.parametrize(
    ("content", "code", "words"),
    [
        (None, "schema_missing", "no schema to read: No such file or directory"),
        ("{", "schema_unreadable", "not JSON: "),
        ("[]", "schema_unreadable", "not a JSON object"),
    ],
)
def test_refused(tmp_path: Path, content: str | None, code: str, words: str) -> None:
    for kind in KINDS.values():
        (tmp_path / kind.schema_file).write_text("{}")
    broken = tmp_path / KINDS["App"].schema_file
    broken.unlink()
    if content is not None:
        broken.write_text(content)
    with pytest.raises(Refused) as refused:
        load_schemas(tmp_path)
    assert refused.value.code == code
    assert words in refused.value.message
    assert str(refused.value).startswith(f"{broken}: {code}: ")
    assert refused.value.hint == "install the package again"
