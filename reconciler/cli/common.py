"""What every command shares: options, settings, output, exit codes.

Exit codes: 0 as asked, 1 an error, 2 differences or not there yet (plan, apply, status --wait).
A wrong command line is an error (1), so that 2 always means what it says.
"""

from __future__ import annotations

import json
import os
import pwd
import sys
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from reconciler.core.printable import printable, printable_json
from reconciler.errors import Refused

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from reconciler.core.records import PassSummary
    from reconciler.settings import Settings

F = TypeVar("F", bound=Callable[..., Any])

PIPE_COLUMNS = 200
EXIT_OK = 0
EXIT_ERROR = 1
EXIT_CHANGES = 2
_ASK_FOR_COLOURS = ("FORCE_COLOR", "TTY_COMPATIBLE")


# Rich is loaded by whoever prints with it: it takes longer to load than a small repo to check.


def cell(text: str, style: str = "") -> Text:
    """Text that others wrote, as a part of a line or table: neither markup nor escape sequence."""
    from rich.text import Text  # noqa: PLC0415

    return Text(printable(text), style)


def table_width(widths: Collection[int]) -> int:
    """Of a table of columns that wide, in its usual look: a blank, and padding on both sides."""
    return sum(widths) + len("   ") * (len(widths) - 1)


def out() -> Console:
    """Standard output; colours on a terminal only. A pipe gets lines as long as they need be."""
    from reconciler.cli.terminal import Terminal  # noqa: PLC0415

    wide = None if sys.stdout.isatty() else PIPE_COLUMNS
    return Terminal(highlight=False, soft_wrap=True, width=wide)


def plain() -> bool:
    """Whether it is clear without asking `out()` that no colours are wanted."""
    return not sys.stdout.isatty() and os.environ.keys().isdisjoint(_ASK_FOR_COLOURS)


def err() -> Console:
    from reconciler.cli.terminal import Terminal  # noqa: PLC0415

    return Terminal(stderr=True, highlight=False, soft_wrap=True)


def keep(held: object) -> None:
    """Says that the process, when it ends, need not free this, nor close anything else."""
    context = click.get_current_context(silent=True)
    kept = context.find_root().obj if context is not None else None
    if isinstance(kept, list):
        kept.append(held)


def write_file(path: Path, raw: bytes) -> None:
    """A file in place of the one that was there; Refused where that can't be."""
    try:
        path.write_bytes(raw + b"\n")
    except OSError as error:
        raise Refused("not_written", f"{error.strerror}", where=str(path)) from None


def print_json(document: Any) -> None:
    click.echo(printable_json(json.dumps(document, indent=2, ensure_ascii=False)))


_OPTIONS = (
    click.option(
        "--state-dir",
        type=click.Path(path_type=Path),
        help="Where the control plane keeps its state.",
    ),
    click.option("--repo", help="Git remote of the state repo: a path, ssh:// or https:// URL."),
    click.option("--branch", help="Branch that is the record."),
    click.option("--environment", "-e", help="Name of the Environment manifest to work on."),
)


def settings_options(command: F) -> F:
    """Adds the options that override `gpuaas.toml` and `GPUAAS_*` variables."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def load_settings(*, file: bool = True, **given: Any) -> Settings:
    """Settings from the command line, the environment and `gpuaas.toml`, in this order.

    `file` False leaves out `gpuaas.toml`: in a checkout it is as trustworthy as whoever pushed.
    """
    from pydantic import ValidationError  # noqa: PLC0415 - see `reconciler.wiring.ahead`

    from reconciler.settings import settings_from  # noqa: PLC0415

    chosen = {key: value for key, value in given.items() if value is not None}
    try:
        return settings_from(chosen, os.environ, Path("gpuaas.toml") if file else None)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        raise Refused(
            "bad_setting",
            f"{name}: {first['msg']}",
            hint="see gpuaas.toml, GPUAAS_* variables or the command line",
        ) from None
    except (ValueError, OSError) as error:
        raise Refused("bad_setting", str(error), where="gpuaas.toml") from None


def verdict(last: PassSummary | None, head: str, since_ms: int) -> int | None:
    """The exit code that the last pass on revision `head` begun after `since_ms` stands for.

    None while there is none, or while it goes on. A revision that is rejected needs a person.
    """
    if last is None or last.started_at_ms < since_ms:
        return None
    if last.rejected == head:
        return EXIT_ERROR
    if last.revision != head:
        return None
    return {"done": EXIT_OK, "stalled": EXIT_ERROR}.get(last.result)


def local_actor() -> str:
    """Who runs this command, for the audit trail: the host's word, not the environment's."""
    try:
        return f"local/{pwd.getpwuid(os.getuid()).pw_name}"
    except KeyError:
        return f"local/{os.getuid()}"


def environment_of(settings: Settings) -> str:
    if not settings.environment:
        raise Refused(
            "no_environment",
            "which environment?",
            hint="pass --environment NAME, or set GPUAAS_ENVIRONMENT or environment in gpuaas.toml",
        )
    return settings.environment


format_option = click.option(
    "--format",
    "output",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="Output for people or for machines.",
)

review_format_option = click.option(
    "--format",
    "output",
    type=click.Choice(["text", "markdown", "json"]),
    default="text",
    show_default=True,
    help="Text for a terminal, Markdown for a pull request, JSON for machines.",
)
