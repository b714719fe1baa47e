"""An explanation for machines, and its words for people. Pure."""

from __future__ import annotations

from reconciler.core.names import InstanceKey
from reconciler.use_cases.explain import Explanation
from reconciler.use_cases.explained_fields import Row
from reconciler.views.changes import problem_document, signature_text

FORMAT = "gpuaas.dev/explanation/v1"


def explanation_document(found: Explanation) -> dict[str, object]:
    """The JSON view of `gpuaas explain`."""
    return {
        "format": FORMAT,
        "object": str(found.ref),
        "head": found.head,
        "path": found.path,
        "line": found.line,
        "accepted": {"revision": found.accepted, "newest": found.newest},
        "problems": [problem_document(problem) for problem in found.problems],
        "plan": list(found.says),
        "fields": [_row_document(row) for row in found.rows],
        "dependents": [str(ref) for ref in found.dependents],
        "instances": [InstanceKey("/".join(ref.path)) for ref in found.instances],
    }


def _row_document(row: Row) -> dict[str, object]:
    commit = row.commit
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
        "signature": "present_not_checked" if commit and commit.signed else "absent",
    }


def signer_text(row: Row) -> str:
    """Whose commit decided it, with what is known of its signature."""
    return f"{row.commit.author} ({signature_text(row.commit)})" if row.commit else ""
