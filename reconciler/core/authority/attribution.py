"""Whose each accepted form is."""

from __future__ import annotations

from dataclasses import replace

from reconciler.core.authority.facts import Walked
from reconciler.core.records import Accepted


def signed(accepted: Accepted, walked: Walked) -> Accepted:
    """What was accepted of a revision, with what its commits say of it."""
    objects = dict(accepted.objects)
    for change in walked.changes:
        stored = objects.get(str(change.ref))
        fresh = stored is not None and stored.revision == walked.head
        if stored is not None and fresh and not change.refusal and change.after:
            objects[stored.ref] = replace(stored, by=str(change.actor))
    return replace(accepted, objects=objects, refused=walked.refused, at_ms=walked.at_ms)
