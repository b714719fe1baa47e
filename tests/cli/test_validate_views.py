"""What `gpuaas validate` prints, of mistakes and of files that mean harm."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from reconciler.cli.validate import validate

MANIFEST = """apiVersion: gpuaas.dev/v1
kind: Tenant
metadata: {name: acme}
spec: {org_id: org-1, display_name: Acme, "\\e]0;owned\\a\\n::error::[/]": 1}
"""


def test_names_that_are_markup_or_escape_sequences(tmp_path: Path) -> None:
    """Attempted: a file whose name or field crashes the check, or speaks to a terminal or CI."""
    folder = tmp_path / "tenants" / "acme"
    (folder / "\\[").mkdir(parents=True)
    (folder / "tenant.yaml").write_text(MANIFEST)
    (folder / "\\[/].yaml").write_text(MANIFEST)
    (folder / "\x1b[2J\n::error::.yaml").write_text(MANIFEST)
    for output in ("text", "json"):
        done = CliRunner().invoke(validate, [str(tmp_path), "--format", output])
        assert done.exception is None or isinstance(done.exception, SystemExit)
        assert [c for c in done.output if not c.isprintable() and c != "\n"] == []
        assert not any(line.startswith("::error::") for line in done.output.splitlines())
        assert "unknown_field" in done.output
        assert "unknown_path" in done.output


EXAMPLE = Path(__file__).parents[2] / "example-state-repo"
INSTANCE = "tenants/acme/projects/research/instances/hello.yaml"
VERSION = "catalog/hello/versions/1.0.0.yaml"
MISTAKES = {
    "unknown version": (
        INSTANCE,
        ('"1.0.0"', '"2.0.0"'),
        [f"{INSTANCE}:8:3: unknown_reference: AppVersion/hello/2.0.0 does not exist"],
    ),
    "a parameter's name": (
        INSTANCE,
        ("cpu_cores", "cpu_core"),
        [f"{INSTANCE}:12:5: unknown_field: unknown field 'cpu_core'"],
    ),
    "a parameter's type": (
        INSTANCE,
        ("cpu_cores: 0.5", "cpu_cores: '0.5'"),
        [f"{INSTANCE}:12:5: wrong_type: expected a number, got the text '0.5'"],
    ),
    "more than is leased": (
        INSTANCE,
        ("memory_gib: 0.25", "memory_gib: 3"),
        [f"{INSTANCE}:13:5: exceeds_allocation: 3072 MiB of memory asked"],
    ),
    "tag instead of digest": (
        VERSION,
        ("hello@sha256:", "hello:1.0.0-"),
        [
            "catalog/hello/promotions/1.0.0.yaml:5:3: reference_quarantined: AppVersion/hello/",
            f"{VERSION}:11:3: wrong_format: the text 'gpuaas/apps/platform/catalog/hello:1.0.0-",
            f"{INSTANCE}:8:3: reference_quarantined: AppVersion/hello/1.0.0 has a problem of its",
            "tenants/platform/projects/catalog/artifacts/hello/1.0.0/image.yaml:2:1: reference_qu",
        ],
    ),
    "a node that is gone": (
        "platform/nodes/node-a.yaml",
        ("name: node-a", "name: node-9"),
        ["tenants/acme/projects/research/allocations/small.yaml:7:3: unknown_reference: Node/"],
    ),
}


@pytest.mark.parametrize(("file", "change", "says"), MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_is_said_once_at_the_line_of_its_field(
    file: str, change: tuple[str, str], says: list[str], tmp_path: Path
) -> None:
    shutil.copytree(EXAMPLE, tmp_path / "state")
    changed = tmp_path / "state" / file
    changed.write_text(changed.read_text().replace(*change))
    done = CliRunner().invoke(validate, [str(tmp_path / "state")])
    told = [line for line in done.output.splitlines() if line.startswith(("cat", "pl", "ten"))]
    assert [line[: len(said)] for line, said in zip(told, says, strict=True)] == says


def test_a_folder_that_is_no_state_repo(tmp_path: Path) -> None:
    done = CliRunner().invoke(validate, [str(tmp_path)])
    assert "add environments/<name>.yaml, or look in another folder" in done.output


def test_one_environment_by_name() -> None:
    command = [str(EXAMPLE), "--environment"]
    assert "no problem" in CliRunner().invoke(validate, [*command, "dev"]).output
    wrong = CliRunner().invoke(validate, [*command, "eval"], standalone_mode=False)
    assert wrong.return_value == 1
    assert (
        "unknown_environment: Environment/eval does not exist\n    known: dev, prod" in wrong.output
    )
