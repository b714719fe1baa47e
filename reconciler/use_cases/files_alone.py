"""What a state repo's files come to where no control plane keeps its state. Reads and decides only.

Rule: everything is as if it were accepted for the first time.
"""

from __future__ import annotations

from dataclasses import replace

from reconciler.core.accept import AcceptedState, accept, parse_accepted
from reconciler.core.records import Accepted
from reconciler.core.schema import SchemaSet
from reconciler.core.source import Snapshot
from reconciler.core.validate import located, validate
from reconciler.errors import Refused
from reconciler.settings import Settings

NOTE = "no control plane state here: this is what the state repo alone comes to"


def accepted_alone(snapshot: Snapshot, schemas: SchemaSet, settings: Settings) -> AcceptedState:
    """For the Environment of the settings, or the only one there is; Refused (no_environment) where
    there are several.
    """
    candidate = validate(snapshot, schemas, settings.parse_limits)
    named = sorted(one.name for one in candidate.objects if one.kind == "Environment")
    environment = settings.environment or (named[0] if len(named) == 1 else "")
    if not environment and named:
        hint = f"pass --environment: there are {', '.join(named)}"
        raise Refused("no_environment", "which environment?", hint=hint)
    state = accept(candidate, Accepted(), parse_accepted, environment)
    problems = located(state.problems, snapshot, settings.parse_limits)
    return replace(state, problems=tuple(problems))
