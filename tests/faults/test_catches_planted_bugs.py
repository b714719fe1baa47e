"""Bugs put in on purpose, one at a time: the suite has to object to each within a few cases."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from reconciler.core import accept as acceptance
from reconciler.core import first_choice
from reconciler.core.accept import AcceptedState, accept
from reconciler.core.desired import Candidate
from reconciler.core.observed import Observed, Unknown
from reconciler.core.plan import moves
from reconciler.core.records import Accepted
from reconciler.core.validate import validate
from tests.faults import repo, test_sequences, test_told_mishaps
from tests.faults.fleet import Fleet, Pipeline, node_seen
from tests.faults.test_faulty_commits import run_case
from tests.faults.test_observers import acts_on_silence

SEEDS_MAX = 60

Bend = Callable[[pytest.MonkeyPatch], Pipeline]


def _reads(bent: Callable[[Candidate], Candidate]) -> Bend:
    """A wrong reading of a revision."""

    def read(*given: Any) -> Candidate:
        return bent(validate(*given))

    return lambda _: Pipeline(validate=read)


def _accepts(bent: Callable[[AcceptedState], AcceptedState]) -> Bend:
    """A wrong idea of what counts."""

    def decide(*given: Any) -> AcceptedState:
        return bent(accept(*given))

    return lambda _: Pipeline(accept=decide)


def _patched(module: object, name: str, wrong: object) -> Bend:
    def bend(patch: pytest.MonkeyPatch) -> Pipeline:
        patch.setattr(module, name, wrong)
        return Pipeline()

    return bend


def _forgetful(candidate: Candidate, last: Accepted, *rest: Any) -> AcceptedState:
    return accept(candidate, Accepted(), *rest)


def _without_holding(
    candidate: Candidate, last: Accepted, parse: Any, environment: str, _: Any, memo: Any
) -> AcceptedState:
    return accept(candidate, last, parse, environment, {}, memo)


def _only_whole_documents(candidate: Candidate) -> Candidate:
    """Invalid documents count as deleted, and nothing else is wrong."""
    own = tuple(problem for problem in candidate.problems if not problem.object)
    return replace(candidate, problems=own)


def _no_budget(state: AcceptedState) -> AcceptedState:
    guards = replace(state.guards, removals_max=1_000, removals_max_percent=100)
    return replace(state, guards=guards)


def _moves_forgotten(state: AcceptedState) -> AcceptedState:
    nobody = {key: replace(one, moved_from=None) for key, one in state.instances.items()}
    return replace(state, instances=nobody)


def _without_environment_all_is_gone(state: AcceptedState) -> AcceptedState:
    if state.environment is not None:
        return state
    return _no_budget(replace(state, held={}))


def _silence_is_emptiness(observed: Observed) -> Observed:
    nodes = {n: node_seen(n) if isinstance(s, Unknown) else s for n, s in observed.nodes.items()}
    return replace(observed, nodes={**{name: node_seen(name) for name in repo.NODES}, **nodes})


def _own_file(path: str) -> str:
    return path


def _nothing(*_: object) -> tuple[()]:
    return ()


PLANTED: dict[str, Bend] = {
    "broken files hold nothing": _reads(lambda c: replace(c, broken_paths=frozenset(), unread={})),
    "an invalid document is a deleted one": _reads(_only_whole_documents),
    "a file that is not read bears no name": _reads(lambda c: replace(c, unread={})),
    "what was accepted before is forgotten": lambda _: Pipeline(accept=_forgetful),
    "GPUs in use are forgotten": lambda _: Pipeline(accept=_without_holding),
    "what does not resolve is not held": _accepts(lambda state: replace(state, held={})),
    "no budget": _accepts(_no_budget),
    "no Environment, no instances": _accepts(_without_environment_all_is_gone),
    "moved_from means nothing": _accepts(_moves_forgotten),
    "an invalid document freezes its own file only": _patched(first_choice, "scope_of", _own_file),
    "what may be misplaced is gone": _patched(acceptance, "keep_doubted", _nothing),
    "what came back broken is gone": _patched(acceptance, "_back_unaccepted", _nothing),
}


def objections(pipeline: Pipeline) -> Iterator[str]:
    fleet = Fleet(pipeline)
    yield from test_told_mishaps.objections(fleet)
    for seed in range(SEEDS_MAX):
        yield from run_case(fleet, seed).wrong


@pytest.mark.parametrize("bug", PLANTED)
def test_a_planted_bug_is_caught(bug: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert next(objections(PLANTED[bug](monkeypatch)), None) is not None


def test_taking_silence_for_emptiness_is_caught() -> None:
    fleet = Fleet(Pipeline(observe=_silence_is_emptiness))
    found = (one for seed in range(SEEDS_MAX) for one in acts_on_silence(fleet, seed))
    assert next(found, None) is not None


def test_a_revert_of_a_rename_that_removes_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moves, "_called", lambda _: {})
    with pytest.raises(AssertionError):
        test_sequences.test_a_rename_and_its_revert_restart_nothing()
