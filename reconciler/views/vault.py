"""What a Vault lacks, as people and programs read it. Pure.

Text that came from Vault is made printable: others may write there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from reconciler.core.custody.diff import Change, Op
from reconciler.core.custody.words import FOREIGN_HINT, REMAKE_HINT, drift_lines
from reconciler.core.printable import printable
from reconciler.views.changes import Line

PLAN_FORMAT = "gpuaas.dev/vault-plan/v1"
_SIGNS: dict[Op, tuple[str, str]] = {
    "create": ("+", "added"),
    "change": ("~", "changed"),
    "remake": ("!", "problem"),
    "foreign": ("?", "dim"),
}
_COUNTED: dict[Op, str] = {
    "create": "to create",
    "change": "to change",
    "remake": "for a person",
    "foreign": "not declared",
}


def plan_lines(changes: Sequence[Change], place: str) -> Iterator[Line]:
    """`place` says which Vault, and what is looked at in it."""
    yield Line(place, "title")
    for change in changes:
        yield from change_lines(change)
    counted = Counter(change.op for change in changes)
    told = [f"{counted[op]} {words}" for op, words in _COUNTED.items() if counted[op]]
    if counted.total() == counted["foreign"]:
        told = ["all is as it should be", *told]
    yield Line(", ".join(told), "good" if len(told) == 1 and not changes else "plain")


def change_lines(change: Change) -> Iterator[Line]:
    sign, style = _SIGNS[change.op]
    yield Line(f"{sign} {printable(change.object)}", style)
    for drift in change.fields:
        yield from (Line(f"    {printable(text)}") for text in drift_lines(drift))
    hint = {"remake": REMAKE_HINT, "foreign": FOREIGN_HINT}.get(change.op)
    if hint:
        yield Line(f"    {hint}", "dim")


def plan_document(changes: Sequence[Change], address: str, prefix: str) -> dict[str, Any]:
    """`op` is create, change, remake or foreign; `fields` are empty for what is not there yet."""
    return {
        "format": PLAN_FORMAT,
        "address": address,
        "prefix": prefix,
        "changes": [
            {
                "op": change.op,
                "kind": change.kind,
                "name": change.name,
                "fields": [vars(drift) for drift in change.fields],
            }
            for change in changes
        ],
    }
