"""Log lines: JSON for machines, columns for a terminal, to stderr, with no secret in them.

Rules: called once, by the command line. Our own lines and those of libraries take one road, and the
mask is its last station before the renderer, so that tracebacks pass it too. Tracebacks never show
local variables.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Mapping, MutableMapping
from contextlib import AbstractContextManager
from typing import Any, Literal, TextIO

import structlog
from structlog.typing import Processor

from reconciler.ports import Secret

Format = Literal["auto", "json", "console"]

MASK = "***"
_DEPTH_MAX = 6
TALKATIVE = {
    "alembic": logging.WARNING,
    "apscheduler": logging.WARNING,
    "apscheduler.scheduler": logging.ERROR,  # It warns of each tick left out on a busy host.
    "httpx": logging.WARNING,
}
"""Libraries that report every call or timer as news; what goes wrong in them is still said."""
_PRIVATE_KEY = re.compile(
    r"token|secret|passw(?:or)?d|authorization|private_?key|credential|cookie", re.IGNORECASE
)
_PRIVATE_TEXT = (
    (re.compile(r"(://)[^/\s@'\"]+@"), rf"\1{MASK}@"),
    (re.compile(r"\b(Bearer|Basic)\s+[\w.~+/=-]{8,}", re.IGNORECASE), rf"\1 {MASK}"),
    (re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END[^-]*-----|\Z)", re.S), MASK),
    (re.compile(r"\beyJ[\w-]+\.[\w-]+\.[\w-]*"), MASK),
    (re.compile(r"\bgpuaas-h[0-9]+\.[\w-]+"), MASK),
)


def configure_logging(
    level: str = "info", format: Format = "auto", stream: TextIO | None = None
) -> None:
    """Sends all logging of this process to `stream` (stderr). May be called again."""
    target = sys.stderr if stream is None else stream
    as_json = format == "json" or (format == "auto" and not target.isatty())
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
    ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.PositionalArgumentsFormatter(),
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(target)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                mask_secrets,
                _renderer(as_json, target),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for name, least in TALKATIVE.items():
        quiet = logging.NOTSET if root.level <= logging.DEBUG else least
        logging.getLogger(name).setLevel(quiet)


def bound(
    *,
    correlation_id: str | None = None,
    revision: str | None = None,
    app_instance_id: str | None = None,
    org_id: str | None = None,
    project_id: str | None = None,
) -> AbstractContextManager[None]:
    """Within the block every line, of libraries too, carries the given fields."""
    given = {
        "correlation_id": correlation_id,
        "revision": revision,
        "app_instance_id": app_instance_id,
        "org_id": org_id,
        "project_id": project_id,
    }
    return structlog.contextvars.bound_contextvars(
        **{name: value for name, value in given.items() if value is not None}
    )


def mask_secrets(
    logger: Any, method: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    """A structlog processor: masks Secrets, fields with private names, and credentials in text."""
    del logger, method
    return {name: _masked(name, value, 0) for name, value in event.items()}


def _masked(name: str, value: Any, depth: int) -> Any:
    if isinstance(value, Secret):
        return MASK
    if value is None or isinstance(value, bool | int | float):
        return value
    if _PRIVATE_KEY.search(name):
        return MASK
    if depth > _DEPTH_MAX:
        return "…"
    if isinstance(value, Mapping):
        return {str(key): _masked(str(key), item, depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_masked("", item, depth + 1) for item in value]
    return _masked_text(value if isinstance(value, str) else str(value))


def _masked_text(text: str) -> str:
    for pattern, replacement in _PRIVATE_TEXT:
        text = pattern.sub(replacement, text)
    return text


def _renderer(as_json: bool, target: TextIO) -> Processor:
    if as_json:
        return structlog.processors.JSONRenderer(default=str, ensure_ascii=False)
    return structlog.dev.ConsoleRenderer(
        colors=target.isatty(), exception_formatter=structlog.dev.plain_traceback
    )
