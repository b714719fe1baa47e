"""The errors that cross a port: what may pass by itself, and what a person must act on.

What a user wrote in the state repo is never an exception (see `core.problems`).
"""

from __future__ import annotations


class GpuaasError(Exception):
    """Base: a stable `code`, what happened, `where` (file, object, service), and a `hint`."""

    def __init__(self, code: str, message: str, *, where: str = "", hint: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.where = where
        self.hint = hint

    def __str__(self) -> str:
        head = (
            f"{self.where}: {self.code}: {self.message}"
            if self.where
            else (f"{self.code}: {self.message}")
        )
        return f"{head} ({self.hint})" if self.hint else head


class Transient(GpuaasError):
    """May work when tried again after `retry_after_s` seconds; nothing was decided meanwhile."""

    def __init__(
        self,
        code: str,
        message: str,
        *,
        where: str = "",
        hint: str = "",
        retry_after_s: float = 5.0,
    ) -> None:
        super().__init__(code, message, where=where, hint=hint)
        self.retry_after_s = retry_after_s


class Refused(GpuaasError):
    """Will not work until a person changes something."""
