"""Why a commit may not change what a version runs, by its Promotion before that commit.

Rules: whoever made it. A Promotion that the commit changes too counts in the form before it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from reconciler.core.authority.judge import Refusal
from reconciler.core.authority.standing import Change, Standing
from reconciler.core.names import ObjectRef
from reconciler.core.promotion_steps import CHANGED_IN_PLACE, changed_in_place, promotion_of

Stood = Callable[[ObjectRef], str | None]
"""The form of an object that counted before a commit, as canonical JSON."""


def refused_in_place(
    ref: ObjectRef, before: str | None, after: str | None, stood: Stood
) -> Refusal | None:
    """None for all but an AppVersion."""
    if ref.kind != "AppVersion" or before == after:
        return None
    promotion = _document(stood(promotion_of(ref)))
    forms = (_document(before), _document(after))
    for wrong in changed_in_place(ref, forms, (promotion, promotion)):
        return Refusal(CHANGED_IN_PLACE, wrong.message, wrong.hint)
    return None


def stood_before(
    standing: Standing, changes: Sequence[Change], merged: Mapping[ObjectRef, str | None]
) -> Stood:
    """`standing` has taken the commit already. `changes` are those of the commit, and `merged` what
    counted before of all that it brings in.
    """
    made = {**{change.ref: change.before for change in changes}, **merged}
    return lambda ref: made[ref] if ref in made else standing.form(ref)[1]


def _document(text: str | None) -> Any:
    return json.loads(text) if text is not None else None
