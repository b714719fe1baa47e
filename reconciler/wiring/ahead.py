"""Files are read, parsed and held against their schemas by a second process, while this one loads
its libraries and makes models of what comes.

Rules: loads nothing that takes long, since all that comes before the second process is waited for
twice. What it did not do, did under other limits, or found anything wrong with, this process does
from the beginning: with or without it, the answer is the same.
"""

from __future__ import annotations

import gc
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reconciler.adapters.second_process import Questions, SecondProcess, Work, start
from reconciler.adapters.tree_limits import TreeLimits
from reconciler.adapters.working_tree import files_of_directory
from reconciler.core.check_document import Checks, Sound, sound_documents
from reconciler.core.parse import ParseLimits, fast_reader
from reconciler.core.source import SourceFile, portions
from reconciler.wiring.files import schema_set

if TYPE_CHECKING:
    from reconciler.settings import Settings

Files = Callable[[Any], Sequence[SourceFile]]
"""Reads the files that a question of plain data is about."""


def read_ahead(folder: Path) -> Ahead | None:
    """Begins to read and check the files of a folder; None where nothing is gained by it."""

    def work(questions: Questions) -> Iterator[Any]:
        yield from _read_and_check(
            files_of_directory(folder, TreeLimits()), ParseLimits(), questions
        )

    return _begin(work)


def check_ahead(files: Files) -> Ahead | None:
    """Will check the files that are asked for; see `Ahead.ask`.

    The second process calls `files` with None before it is asked, so that what takes long to load
    is loaded in the meantime.
    """
    return _begin(lambda questions: _answer(files, questions))


class Ahead:
    """What the second process makes, taken over as it comes."""

    def __init__(self, process: SecondProcess) -> None:
        self._process = process
        self._paths: list[str] = []
        self._checked: dict[str, tuple[str, Sequence[Sound] | None]] = {}

    def ask(self, settings: Settings, question: Any) -> None:
        """Has the files checked that `question` is about, under the limits of `settings`."""
        self._process.ask((astuple(settings.parse_limits), question))

    def hold_to(self, settings: Settings) -> None:
        """For `read_ahead`, which begins without knowing the settings: nothing is taken over where
        they say other limits than those by default."""
        same = settings.parse_limits == ParseLimits() and TreeLimits.of(settings) == TreeLimits()
        if not same:
            self.close()

    def files(self) -> tuple[SourceFile, ...] | None:
        """All files, in their order; None: to be read by who asks. Comes before `sound`."""
        files: list[SourceFile] = []
        while portion := self._process.take():
            files += [SourceFile(*one) for one in portion]
        self._paths = [file.path for file in files]
        return tuple(files) if portion == _THAT_IS_ALL else None

    def has_news(self) -> bool:
        """As `SoundAhead` has it, like the next two."""
        return self._process.has_news()

    def sound(self, file: SourceFile) -> Sequence[Sound] | None:
        while file.path not in self._checked:
            portion = self._process.take()
            if portion is None:
                return None
            self._checked.update(portion)
        blob_id, sound = self._checked[file.path]
        return sound if blob_id == file.blob_id else None

    def leave(self, file: SourceFile) -> None:
        self._process.ask(bisect_left(self._paths, file.path))

    def close(self) -> None:
        """Ends the second process, whatever it is about. May be called again."""
        self._process.close()


# --- in the second process -----------------------------------------------------------------------

_THAT_IS_ALL: list[Any] = []


def _begin(work: Work) -> Ahead | None:
    process = start(work)
    return None if process is None else Ahead(process)


def _read_and_check(
    files: Sequence[SourceFile], limits: ParseLimits, questions: Questions
) -> Iterator[Any]:
    for some in portions(files):
        yield [(file.path, file.blob_id, file.content, file.kind) for file in some]
    yield _THAT_IS_ALL
    yield from _check(files, limits, questions)


def _answer(files: Files, questions: Questions) -> Iterator[Any]:
    files(None)
    question = questions.next()
    if question is not None:
        limits, about = question
        yield from _read_and_check(files(about), ParseLimits(*limits), questions)


def _check(files: Sequence[SourceFile], limits: ParseLimits, questions: Questions) -> Iterator[Any]:
    """Up to where the first process says that it does the rest itself."""
    gc.disable()
    checks = Checks(schema_set(), limits, fast_reader(limits))
    position, end = 0, len(files)
    for some in portions(files):
        while questions.any():
            end = questions.next() or 0
        if position >= end:
            return
        position += len(some)
        yield {file.path: (file.blob_id, sound_documents(file, checks)) for file in some}
