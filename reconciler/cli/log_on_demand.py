"""Logging that is set up by its first line: to load the library that writes lines takes longer
than a small repo takes to check, and most commands write none.

Rule: this is for lines of the standard library's loggers. What logs with structlog itself has
loaded it anyway, and calls `configure_logging`.
"""

from __future__ import annotations

import logging


class _FirstLine(logging.Handler):
    """Puts the real handler in its place, and hands the line on."""

    def emit(self, record: logging.LogRecord) -> None:
        from reconciler.logs import configure_logging  # noqa: PLC0415

        configure_logging(logging.getLevelName(logging.getLogger().level))
        logger = logging.getLogger(record.name)
        if logger.isEnabledFor(record.levelno):
            logger.handle(record)


def log_on_demand(level: str) -> None:
    """What is logged from `level` on goes to standard error, as `configure_logging` says."""
    root = logging.getLogger()
    root.handlers[:] = [_FirstLine()]
    root.setLevel(level.upper())
