"""Problems as people and forges read them: text, JSON, SARIF 2.1.0, GitHub annotations. Pure.

Rules: what others wrote is made printable here; the same problems give the same bytes, times apart.
`prefix` is where the checked folder lies in the repository, so that forges find the file.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple
from urllib.parse import quote

from reconciler.core.names import content_hash
from reconciler.core.printable import printable
from reconciler.core.problems import Problem, identity
from reconciler.views.problem_codes import meaning_of

if TYPE_CHECKING:
    from reconciler.use_cases.review import Review, Verb

FORMAT = "gpuaas.dev/validation/v1"
SARIF_SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"
CHANGES_SHOWN_MAX = 50
_VERBS: tuple[Verb, ...] = ("added", "changed", "removed", "unreadable")
_MARKS = {"added": "+", "changed": "~", "removed": "-", "unreadable": "?"}

Style = Literal["", "bold", "red", "green", "yellow", "dim"]


class Piece(NamedTuple):
    text: str
    style: Style = ""


Line = tuple[Piece, ...]


@dataclass(frozen=True)
class Verdict:
    """One run of `validate`. `review` None: it was compared with nothing."""

    revision: str
    objects: int
    problems: tuple[Problem, ...]
    elapsed_s: float
    review: Review | None = None
    prefix: str = ""

    def is_new(self, problem: Problem) -> bool:
        return self.review is None or problem in self.review.introduced


# --- text ----------------------------------------------------------------------------------------


def text_lines(verdict: Verdict) -> Iterator[Line]:
    """A line a problem with its hint below it, those introduced here first, and the count."""
    if verdict.review is None:
        yield from _problem_lines(verdict.problems)
    else:
        yield from _grouped(verdict, verdict.review)
        yield from _change_lines(verdict.review)
    yield (Piece(_count(verdict), "red" if verdict.problems else "green"),)


def _grouped(verdict: Verdict, review: Review) -> Iterator[Line]:
    new = [problem for problem in verdict.problems if verdict.is_new(problem)]
    old = [problem for problem in verdict.problems if not verdict.is_new(problem)]
    base = review.base[:12]
    for title, problems in (("Introduced here", new), (f"Already there at {base}", old)):
        if problems:
            yield (Piece(f"{title}:", "bold"),)
            yield from _problem_lines(problems)
            yield (Piece(""),)


def _problem_lines(problems: Iterable[Problem]) -> Iterator[Line]:
    for problem in problems:
        yield (
            Piece(printable(problem.where), "bold"),
            Piece(": "),
            Piece(problem.code, "red"),
            Piece(": "),
            Piece(printable(_sentence(problem))),
        )
        if problem.hint:
            yield (Piece(f"    {printable(problem.hint)}", "dim"),)


def _sentence(problem: Problem) -> str:
    return f"{problem.message} (at {problem.pointer})" if problem.pointer else problem.message


def _change_lines(review: Review) -> Iterator[Line]:
    if not review.changes:
        return
    yield (Piece(f"Objects that differ from {review.base[:12]}:", "bold"),)
    styles: Mapping[str, Style] = {"added": "green", "changed": "yellow", "removed": "red"}
    for change in review.changes[:CHANGES_SHOWN_MAX]:
        what = f"  {_MARKS[change.verb]} {printable(change.object)}"
        where = Piece(f"  {printable(change.path)}", "dim")
        yield (Piece(what, styles.get(change.verb, "")), where)
    more = len(review.changes) - CHANGES_SHOWN_MAX
    if more > 0:
        yield (Piece(f"  and {more} more: --format json names them all", "dim"),)
    yield (Piece(""),)


def _count(verdict: Verdict) -> str:
    parts = [_several(verdict.objects, "object")]
    review = verdict.review
    if review is not None:
        parts.append(_change_count(review))
    if verdict.problems:
        files = len({problem.path for problem in verdict.problems})
        several = f"{_several(len(verdict.problems), 'problem')} in {_several(files, 'file')}"
        if review is not None:
            several += f" ({len(review.introduced)} introduced here)"
        parts.append(several)
    else:
        parts.append("no problem")
    if review is not None and review.fixed:
        parts.append(f"{review.fixed} mended")
    return f"{', '.join(parts)}. ({verdict.elapsed_s:.2f} s)"


def _change_count(review: Review) -> str:
    counts = Counter(change.verb for change in review.changes)
    found = [f"{counts[verb]} {verb}" for verb in _VERBS if counts[verb]]
    return " and ".join(found) if found else "nothing changed"


def _several(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


# --- JSON ----------------------------------------------------------------------------------------


def json_document(verdict: Verdict) -> dict[str, Any]:
    """`base` and `changes` stand there only when there was a base."""
    new = sum(verdict.is_new(problem) for problem in verdict.problems)
    review = verdict.review
    compared: dict[str, Any] = {}
    if review is not None:
        compared = {"base": review.base, "changes": [asdict(change) for change in review.changes]}
    return {
        "format": FORMAT,
        "revision": verdict.revision,
        "objects": verdict.objects,
        "counts": {
            "problems": len(verdict.problems),
            "new": new,
            "already_there": len(verdict.problems) - new,
            "mended": review.fixed if review else 0,
            "files": len({problem.path for problem in verdict.problems}),
        },
        "elapsed_s": round(verdict.elapsed_s, 3),
        **compared,
        "problems": [
            {**asdict(problem), "where": problem.where, "new": verdict.is_new(problem)}
            for problem in verdict.problems
        ],
    }


# --- SARIF ---------------------------------------------------------------------------------------


def sarif_document(verdict: Verdict, version: str) -> dict[str, Any]:
    """SARIF 2.1.0 with one run. Fingerprints hold while lines move."""
    codes = sorted({problem.code for problem in verdict.problems})
    return {
        "$schema": SARIF_SCHEMA,
        "version": "2.1.0",
        "runs": [
            {
                "tool": {
                    "driver": {
                        "name": "gpuaas validate",
                        "semanticVersion": version,
                        "rules": [_rule(code) for code in codes],
                    }
                },
                "columnKind": "unicodeCodePoints",
                "automationDetails": {"id": f"gpuaas/validate/{verdict.prefix}"},
                "invocations": [{"executionSuccessful": True}],
                "results": list(_results(verdict, codes)),
            }
        ],
    }


def _rule(code: str) -> dict[str, Any]:
    meaning = meaning_of(code)
    return {
        "id": code,
        "shortDescription": {"text": meaning.what},
        "help": {"text": meaning.to_do},
        "defaultConfiguration": {"level": "error"},
    }


def _results(verdict: Verdict, codes: Sequence[str]) -> Iterator[dict[str, Any]]:
    index_of = {code: index for index, code in enumerate(codes)}
    seen: Counter[tuple[str, str, str]] = Counter()
    for problem in verdict.problems:
        name = identity(problem)
        seen[name] += 1
        result: dict[str, Any] = {
            "ruleId": problem.code,
            "ruleIndex": index_of[problem.code],
            "level": "error",
            "message": {"text": printable(_with_hint(problem))},
            "locations": [_location(problem, verdict.prefix)],
            "partialFingerprints": {
                "gpuaas/v1": f"{content_hash(verdict.prefix, *name)[:16]}:{seen[name]}"
            },
        }
        if verdict.review is not None:
            result["baselineState"] = "new" if verdict.is_new(problem) else "unchanged"
        yield result


def _location(problem: Problem, prefix: str) -> dict[str, Any]:
    place: dict[str, Any] = {
        "artifactLocation": {"uri": quote(_file(problem, prefix)), "uriBaseId": "%SRCROOT%"}
    }
    if problem.line:
        place["region"] = {"startLine": problem.line, "startColumn": max(problem.column, 1)}
    location: dict[str, Any] = {"physicalLocation": place}
    if problem.object:
        name = printable(problem.object + problem.pointer)
        location["logicalLocations"] = [{"fullyQualifiedName": name, "kind": "object"}]
    return location


def _file(problem: Problem, prefix: str) -> str:
    """Its file in the repository. A commit is none, and forges want to be given one."""
    return problem.path if problem.path.startswith("commit ") else prefix + problem.path


def _with_hint(problem: Problem) -> str:
    sentence = _sentence(problem)
    return f"{sentence}: {problem.hint}" if problem.hint else sentence


# --- GitHub --------------------------------------------------------------------------------------


def github_lines(verdict: Verdict) -> Iterator[str]:
    """Workflow commands that annotate the changed files; what was there before only warns."""
    new = [problem for problem in verdict.problems if verdict.is_new(problem)]
    old = [problem for problem in verdict.problems if not verdict.is_new(problem)]
    for command, problems in (("error", new), ("warning", old)):
        for problem in problems:
            yield _annotation(command, problem, verdict.prefix)
    yield _count(verdict)


def _annotation(command: str, problem: Problem, prefix: str) -> str:
    properties = {"file": printable(_file(problem, prefix))}
    if problem.line:
        properties |= {"line": str(problem.line), "col": str(max(problem.column, 1))}
    properties["title"] = problem.code
    written = ",".join(f"{key}={_property(value)}" for key, value in properties.items())
    message = printable(_sentence(problem))
    if problem.hint:
        message += "\n" + printable(problem.hint)
    return f"::{command} {written}::{_data(message)}"


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
