"""What is wrong with what a user wrote. Problems are values: they are collected, never raised."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, order=True)
class Problem:
    """One finding in the state repo.

    `path` is relative to the repository root, `line` and `column` count from 1 (0: the whole file),
    `pointer` is a JSON pointer into the document, `code` is stable and documented,
    `object` is the ObjectRef as text where its name could be read, `hint` says what to do.
    """

    path: str
    line: int
    column: int
    code: str
    message: str
    pointer: str = ""
    hint: str = ""
    object: str = ""

    @property
    def where(self) -> str:
        return f"{self.path}:{self.line}:{self.column}" if self.line else self.path

    def __str__(self) -> str:
        where = f"{self.where}: " if self.where else ""
        text = f"{where}{self.code}: {self.message}"
        return f"{text} ({self.hint})" if self.hint else text


def identity(problem: Problem) -> tuple[str, str, str]:
    """What stays the same about a problem while lines move."""
    return problem.code, problem.object or problem.path, problem.pointer
