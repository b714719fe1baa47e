"""An explanation for machines, and its words for people. Pure."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator

from reconciler.core.names import InstanceKey
from reconciler.core.printable import printable
from reconciler.core.problems import Problem
from reconciler.use_cases.explain import ExplainedFile, ExplainedObject, Explanation
from reconciler.use_cases.explained_fields import Row
from reconciler.views.authority import by_text, refused_document, refused_lines
from reconciler.views.changes import (
    NOT_CHECKED,
    Line,
    Signers,
    commit_document,
    problem_document,
    signature_text,
)

FORMAT = "gpuaas.dev/explanation/v1"
FILE_FORMAT = "gpuaas.dev/file-explanation/v1"


def explanation_document(found: Explanation, signers: Signers = NOT_CHECKED) -> dict[str, object]:
    """The JSON view of `gpuaas explain`."""
    return {
        "format": FORMAT,
        "object": str(found.ref),
        "head": found.head,
        "path": found.path,
        "line": found.line,
        "accepted": {"revision": found.accepted, "newest": found.newest, "by": found.by or None},
        "refused": refused_document(found.refused),
        "problems": [problem_document(problem) for problem in found.problems],
        "plan": list(found.says),
        "fields": [_row_document(row, signers) for row in found.rows],
        "dependents": [str(ref) for ref in found.dependents],
        "instances": [InstanceKey("/".join(ref.path)) for ref in found.instances],
    }


def file_lines(found: ExplainedFile, notes: Iterable[Line], *, alone: bool) -> Iterator[Line]:
    """What counts of each object in a file. `alone`: there is no control plane that accepts."""
    yield Line(printable(found.path), "title")
    yield from notes
    if found.refused is not None:
        yield from refused_lines(found.refused)
    for one in found.objects:
        yield Line(str(one.ref), "title")
        if not alone:
            yield _accepted_line(one, found.head)
        if one.refused is not None:
            yield from refused_lines(one.refused)
    told = {(one.refused.code, str(one.ref)) for one in found.objects if one.refused is not None}
    yield from problem_lines(found.problems, told)


def problem_lines(problems: Iterable[Problem], told: Container[tuple[str, str]]) -> Iterator[Line]:
    """One a problem, but for those (code, object) that were told of as refused changes."""
    for problem in problems:
        if (problem.code, problem.object) not in told:
            yield Line(f"  ! {printable(str(problem))}", "problem")


def _accepted_line(one: ExplainedObject, head: str) -> Line:
    if one.accepted is None:
        return Line("  not accepted: no form of it counts yet", "problem")
    by = by_text(one.accepted.by)
    text = f"  what counts was accepted in {one.accepted.revision[:12]}{by}"
    if one.newest:
        return Line(text, "good")
    return Line(f"{text}; {head[:12]} says otherwise, and that is not accepted", "problem")


def file_document(found: ExplainedFile) -> dict[str, object]:
    """The JSON view of `gpuaas explain FILE`."""
    return {
        "format": FILE_FORMAT,
        "path": found.path,
        "head": found.head,
        "refused": refused_document(found.refused),
        "objects": [
            {
                "object": str(one.ref),
                "accepted": one.accepted.revision if one.accepted else None,
                "by": (one.accepted.by or None) if one.accepted else None,
                "newest": one.newest,
                "refused": refused_document(one.refused),
            }
            for one in found.objects
        ],
        "problems": [problem_document(problem) for problem in found.problems],
    }


def _row_document(row: Row, signers: Signers) -> dict[str, object]:
    commit = row.commit
    told = commit_document(commit, signers.get(commit.revision)) if commit else {}
    return {
        "field": row.field,
        "desired": row.desired,
        "observed": row.observed,
        "differs": row.differs,
        "cause": row.deciding.cause,
        "decided_by": {"object": str(row.deciding.ref), "pointer": row.deciding.pointer}
        if row.deciding.ref
        else None,
        "commit": commit.revision if commit else None,
        "signer": commit.author if commit else None,
        "signature": told.get("signature", "absent"),
        "signed_by": told.get("signed_by"),
    }


def signer_text(row: Row, signers: Signers = NOT_CHECKED) -> str:
    """Whose commit decided it, with what is known of its signature."""
    if row.commit is None:
        return ""
    return f"{row.commit.author} ({signature_text(row.commit, signers.get(row.commit.revision))})"
