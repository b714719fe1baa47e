"""The rules of the house, as an ordinary test."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from reconciler.cli.main import COMMANDS

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("reconciler", "renderers", "node_agent")
COLUMNS_MAX = 100
FUNCTION_LINES_MAX = 70
FILE_LINES_MAX = 500

PURE = (
    "reconciler/core/",
    "renderers/",
    "node_agent/converge.py",
    "node_agent/engines/compose_file.py",
    "node_agent/engines/compose_parts.py",
    "node_agent/engines/compose_seen.py",
    "node_agent/engines/docker_drift.py",
    "node_agent/flaps.py",
    "node_agent/jobs.py",
    "node_agent/learning.py",
    "node_agent/learning_services.py",
    "node_agent/restarts.py",
    "node_agent/service_standing.py",
    "node_agent/services.py",
    "node_agent/status_services.py",
    "node_agent/steps.py",
    "node_agent/units.py",
    "node_agent/wire.py",
    "reconciler/views/",
    "reconciler/use_cases/compare.py",
    "reconciler/use_cases/review.py",
)

# What each room may import of our own; a prefix covers everything below it. The first match counts.
LAYERS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("node_agent.wire_base", ()),
    ("node_agent.artifact_wire", ("node_agent.wire_base",)),
    ("node_agent.workload_wire", ("node_agent.wire_base",)),
    ("node_agent.compose_wire", ("node_agent.wire_base", "node_agent.workload_wire")),
    (
        "node_agent.wire",
        (
            "node_agent.wire_base",
            "node_agent.artifact_wire",
            "node_agent.workload_wire",
            "node_agent.compose_wire",
        ),
    ),
    ("node_agent.envelope", ("node_agent.wire",)),
    ("node_agent.sealing", ("node_agent.wire",)),
    ("node_agent.units", ("node_agent.wire",)),
    ("node_agent.steps", ("node_agent.wire", "node_agent.units")),
    ("node_agent.jobs", ("node_agent.units", "node_agent.steps")),
    (
        "node_agent.service_standing",
        (
            "node_agent.wire",
            "node_agent.compose_wire",
            "node_agent.units",
            "node_agent.steps",
            "node_agent.flaps",
            "node_agent.jobs",
            "node_agent.restarts",
        ),
    ),
    (
        "node_agent.services",
        (
            "node_agent.wire",
            "node_agent.units",
            "node_agent.steps",
            "node_agent.flaps",
            "node_agent.jobs",
            "node_agent.restarts",
            "node_agent.service_standing",
        ),
    ),
    (
        "node_agent.converge",
        (
            "node_agent.wire",
            "node_agent.units",
            "node_agent.steps",
            "node_agent.flaps",
            "node_agent.restarts",
            "node_agent.service_standing",
            "node_agent.services",
        ),
    ),
    ("node_agent", ("node_agent",)),
    (
        "reconciler.core",
        (
            "node_agent.wire_base",
            "node_agent.wire",
            "node_agent.membership",
            "reconciler.core",
        ),
    ),
    (
        "renderers",
        ("node_agent.compose_wire", "node_agent.wire", "reconciler.core", "renderers"),
    ),
    ("reconciler.errors", ()),
    ("reconciler.collector", ()),
    ("reconciler.settings", ("reconciler.core.parse",)),
    ("reconciler.logs", ("reconciler.ports", "reconciler.errors")),
    ("reconciler.artifact_ports", ("reconciler.core",)),
    ("reconciler.ports", ("node_agent.wire", "reconciler.core", "reconciler.artifact_ports")),
    (
        "reconciler.artifacts",
        (
            "node_agent.wire",
            "reconciler.core",
            "reconciler.ports",
            "reconciler.artifact_ports",
            "reconciler.errors",
            "reconciler.settings",
            "reconciler.artifacts",
        ),
    ),
    (
        "reconciler.views.explained",
        (
            "reconciler.core",
            "reconciler.views",
            "reconciler.use_cases.explain",
            "reconciler.use_cases.explained_fields",
        ),
    ),
    (
        "reconciler.views.problems",
        ("reconciler.core", "reconciler.views", "reconciler.use_cases.review"),
    ),
    (
        "reconciler.views.releases",
        ("reconciler.core", "reconciler.views", "reconciler.use_cases.releases"),
    ),
    ("reconciler.views", ("node_agent.wire", "reconciler.core", "reconciler.views")),
    (
        "reconciler.use_cases.compose_example",
        (
            "node_agent.engines.base",
            "node_agent.engines.compose_file",
            "node_agent.engines.gpus",
            "node_agent.wire",
            "reconciler.errors",
        ),
    ),
    (
        "reconciler.use_cases",
        (
            "node_agent.wire",
            "node_agent.membership",
            "node_agent.envelope",
            "renderers",
            "reconciler.core",
            "reconciler.collector",
            "reconciler.cycle",
            "reconciler.errors",
            "reconciler.gate",
            "reconciler.observe",
            "reconciler.ports",
            "reconciler.settings",
            "reconciler.custody",
            "reconciler.use_cases",
            "reconciler.views",
            "reconciler.wiring.files",
            "reconciler.artifacts",
            "reconciler.artifact_ports",
        ),
    ),
    (
        "reconciler.adapters",
        (
            "node_agent.wire",
            "node_agent.membership",
            "node_agent.envelope",
            "reconciler.core",
            "reconciler.ports",
            "reconciler.errors",
            "reconciler.settings",
            "reconciler.adapters",
            "reconciler.artifact_ports",
        ),
    ),
    (
        "reconciler.server",
        (
            "node_agent.wire",
            "node_agent.membership",
            "node_agent.envelope",
            "node_agent.sealing",
            "reconciler.core",
            "reconciler.observe",
            "reconciler.ports",
            "reconciler.errors",
            "reconciler.settings",
            "reconciler.custody",
            "reconciler.views.audit",
            "reconciler.views.read_models",
            "reconciler.views.timeline",
            "reconciler.views.transfers",
            "reconciler.use_cases.handover",
            "reconciler.use_cases.snapshot",
            "reconciler.use_cases.timeline",
            "reconciler.use_cases.intents",
            "reconciler.use_cases.transfers",
            "reconciler.use_cases.releases",
            "reconciler.views.releases",
            "reconciler.server",
            "node_agent.artifact_wire",
            "reconciler.artifacts",
            "reconciler.artifact_ports",
        ),
    ),
    (
        "reconciler.cycle",
        (
            "reconciler.artifacts",
            "reconciler.core",
            "reconciler.custody",
            "reconciler.errors",
            "reconciler.execute",
            "reconciler.forget",
            "reconciler.observe",
            "reconciler.ports",
            "reconciler.record",
            "reconciler.settings",
            "reconciler.custody",
            "reconciler.watch",
            "renderers",
        ),
    ),
    (
        "reconciler.devkit",
        (
            "node_agent.wire",
            "node_agent.membership",
            "reconciler.core",
            "reconciler.errors",
            "reconciler.settings",
            "reconciler.devkit",
            "reconciler.adapters.schema_files",
        ),
    ),
    ("reconciler.wiring", ("node_agent", "reconciler", "renderers")),
    ("reconciler.use_cases.validation", ("reconciler",)),
    ("reconciler.cli", ("node_agent.wire", "node_agent.no_dumps", "reconciler")),
    (
        "reconciler",
        (
            "node_agent.wire",
            "node_agent.membership",
            "node_agent.envelope",
            "reconciler.core",
            "reconciler.custody",
            "reconciler.errors",
            "reconciler.ports",
            "reconciler.settings",
            "reconciler.collector",
            "reconciler.custody",
            "reconciler.cycle",
            "reconciler.execute",
            "reconciler.observe",
            "reconciler.custody",
            "reconciler.watch",
            "reconciler.wakeups",
            "reconciler.artifacts",
        ),
    ),
)

ENTRY_POINTS = {"reconciler.cli.main", "node_agent.main", "reconciler.devkit.jupyter_image"}
IMPURE_MODULES = {
    "asyncio", "http", "logging", "os", "pathlib", "random", "secrets", "shutil",
    "socket", "sqlite3", "subprocess", "tempfile", "threading", "time", "urllib.request", "uuid",
    "docker", "httpx", "pygit2", "requests", "sqlalchemy", "starlette", "structlog", "uvicorn",
}  # fmt: skip


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), filename=str(path))


def tracked(*patterns: str) -> list[Path]:
    """Files that are or will be committed."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *patterns]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return [path for name in listed.splitlines() if (path := ROOT / name).is_file()]


SOURCES = [p for p in tracked("*.py") if p.relative_to(ROOT).parts[0] in PACKAGES]
TESTS = tracked("tests/*.py", "bench/*.py")


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> Iterator[str]:
    """Every module a file imports, also inside functions and type-checking blocks."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def below(module: str, prefixes: tuple[str, ...]) -> bool:
    return any(module == p or module.startswith(p + ".") for p in prefixes)


@pytest.mark.parametrize("path", SOURCES, ids=module_of)
def test_imports_keep_to_the_layers(path: Path) -> None:
    module = module_of(path)
    allowed = next(may for room, may in LAYERS if below(module, (room,)))
    own = [name for name in imports(path) if below(name, PACKAGES)]
    assert [name for name in own if not below(name, allowed)] == []


@pytest.mark.parametrize("path", SOURCES, ids=module_of)
def test_pure_rooms_do_nothing(path: Path) -> None:
    relative = str(path.relative_to(ROOT))
    if not relative.startswith(PURE):
        return
    found = [name for name in imports(path) if below(name, tuple(IMPURE_MODULES))]
    calls = [
        node.func.id
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    ]
    clocks = [
        node.func.attr
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
    ]
    assert found == []
    assert {"open", "print", "input", "eval", "exec"} & set(calls) == set()
    assert {"now", "utcnow", "today"} & set(clocks) == set()


def test_only_the_cli_prints_or_exits() -> None:
    found = []
    for path in SOURCES:
        if "/cli/" in str(path) or path == ROOT / "node_agent" / "main.py":
            continue
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Call):
                name = ast.unparse(node.func)
                if name in ("print", "sys.exit", "exit", "quit", "click.echo"):
                    found.append(f"{path.relative_to(ROOT)}:{node.lineno}: {name}")
    assert found == []


def test_adapters_are_constructed_in_wiring_only() -> None:
    importers = {
        module_of(path)
        for path in SOURCES
        for name in imports(path)
        if below(name, ("reconciler.adapters",))
        and not below(module_of(path), ("reconciler.adapters",))
    }
    assert {name for name in importers if not below(name, ("reconciler.wiring",))} == set()


@pytest.mark.parametrize("path", SOURCES + TESTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_sizes(path: Path) -> None:
    lines = path.read_text().splitlines()
    assert len(lines) <= FILE_LINES_MAX
    assert [i for i, line in enumerate(lines, 1) if len(line) > COLUMNS_MAX] == []
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert (node.end_lineno or 0) - node.lineno < FUNCTION_LINES_MAX, node.name


@pytest.mark.parametrize("path", SOURCES, ids=module_of)
def test_every_module_says_what_it_is_for(path: Path) -> None:
    if path.read_text().strip():
        assert ast.get_docstring(tree(path))


def test_no_module_is_dead() -> None:
    imported = {name for path in SOURCES for name in imports(path)}
    commands = [name.replace("-", "_") for name in COMMANDS]
    imported |= {f"reconciler.cli.{name}{tail}" for name in commands for tail in ("", "_")}
    dead = []
    for path in SOURCES:
        module = module_of(path)
        used = any(name == module or name.startswith(module + ".") for name in imported)
        if not used and module not in ENTRY_POINTS and path.name != "__init__.py":
            dead.append(module)
    assert [name for name in dead if ".migrations" not in name] == []


def test_no_error_is_swallowed_whole() -> None:
    found = []
    for path in SOURCES + TESTS:
        for node in ast.walk(tree(path)):
            if not isinstance(node, ast.ExceptHandler):
                continue
            broad = node.type is None or ast.unparse(node.type) in ("Exception", "BaseException")
            if broad and all(isinstance(s, ast.Pass | ast.Continue) for s in node.body):
                found.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert found == []


def test_no_dry_run_flag() -> None:
    """`plan` stops before `execute`; a flag would have to be checked in every place that acts."""
    flag = "dry" + "_run"
    assert [str(p) for p in SOURCES if flag in p.read_text()] == []


def test_texts_name_no_machine() -> None:
    """No paths of somebody's machine and no package registry's host: a clone works anywhere."""
    hosts = (
        "pypi" + ".org",
        "files.python" + "hosted",
        "registry.npm" + "js",
        "deb.deb" + "ian.org",
    )
    # Not in the middle of a longer path, such as that of a mount in Vault. Jovyan lives in images.
    homes = re.compile(r"(?<![\w}-])/(?:root|home/(?!jovyan/)\w+|wo" + r"rk)/")
    found = []
    for path in tracked():
        if path.suffix in (".svg", ".png"):
            continue
        text = path.read_text(errors="replace")
        found += [f"{path.name}: {host}" for host in hosts if host in text]
        found += [f"{path.name}: {match.group()}" for match in homes.finditer(text)]
    assert found == []
