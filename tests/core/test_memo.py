"""With a memo or without: the same answer, whatever changed in between, down to the last byte."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Mapping
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from reconciler.core.accept import AcceptMemo, accept, parse_accepted, to_desired
from reconciler.core.checks import references
from reconciler.core.desired import Candidate, StateObject
from reconciler.core.names import InstanceKey, ObjectRef
from reconciler.core.records import Accepted
from reconciler.core.resolve import ResolveMemo, resolve
from renderers import render
from tests.core import builders as b
from tests.core.resolve_cases import CASES

Objects = dict[ObjectRef, StateObject]
Holding = dict[InstanceKey, tuple[str, ...]]
Edit = Callable[[b.Documents, random.Random], object]

STEPS_MAX = 8
GONE = ObjectRef("AppInstance", ("acme", "research", "gone"))
OTHER = b.INSTANCE_FILE.replace("one", "other")
FAR = "tenants/umbra/projects/lab/instances/far.yaml"
SUSPENDED = {"by": "ops", "reason": "moving house", "until": "2030-02-30T00:00:00Z"}


def start() -> b.Documents:
    documents = b.world()
    documents[b.ARTIFACT_FILE]["spec"]["visibility"] = "platform"
    b.add_instance(documents, "other", gpu_count=2)
    folder = b.add_project(documents, "umbra", "lab", gpus=[])
    b.add_instance(documents, "far", folder, gpu_count=0)
    return documents


def bend(documents: b.Documents, chance: random.Random) -> None:
    CASES[chance.choice(sorted(CASES))][0](documents)


def mend(documents: b.Documents, chance: random.Random) -> None:
    path = chance.choice(sorted(start()))
    documents[path] = start()[path]


def remove(documents: b.Documents, chance: random.Random) -> None:
    del documents[chance.choice(sorted(documents))]


def instance_says(**fields: object) -> Edit:
    def edit(documents: b.Documents, chance: random.Random) -> None:
        spec = documents[chance.choice([b.INSTANCE_FILE, OTHER, FAR])]["spec"]
        spec.update({name: chance.choice(values) for name, values in choices})

    choices = [(name, values) for name, values in fields.items() if isinstance(values, list)]
    return edit


def add_one(documents: b.Documents, chance: random.Random) -> None:
    name = f"n{chance.randrange(4)}"
    b.add_instance(documents, name, gpu_count=chance.randrange(3), host_port=9000)


EDITS: tuple[Edit, ...] = (
    bend,
    bend,
    mend,
    mend,
    mend,
    remove,
    add_one,
    instance_says(desired=["running", "stopped", "decommissioned"]),
    instance_says(version=["1.0.0", "2.0.0"]),
    instance_says(depends_on=[["one"], ["other"], ["n1", "other"], []]),
    instance_says(moved_from=["one", "n2", "gone"]),
    instance_says(suspend=[SUSPENDED]),
)


def edited(documents: b.Documents, chance: random.Random) -> b.Documents:
    """The documents after one to three edits; one that finds nothing to edit is none."""
    after = copy.deepcopy(documents)
    for _ in range(chance.randint(1, 3)):
        attempt = copy.deepcopy(after)
        try:
            chance.choice(EDITS)(attempt, chance)
            b.objects(attempt)
        except (KeyError, ValueError):
            continue
        after = attempt
    return after


def read_again(documents: b.Documents, before: Mapping[ObjectRef, StateObject]) -> Objects:
    """As reading a revision does it: what did not change is the same object, in another table."""
    found = b.objects(documents)
    return {ref: before[ref] if before.get(ref) == one else one for ref, one in found.items()}


def holding(chance: random.Random) -> Holding:
    keys = (InstanceKey(f"acme/research/{name}") for name in ("one", "other", "n1"))
    return {key: (f"GPU-{chance.randrange(4)}",) for key in keys if chance.random() < 0.5}


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32))
def test_resolving_with_a_memo_gives_what_resolving_anew_gives(seed: int) -> None:
    chance, memo = random.Random(seed), ResolveMemo()
    documents, held = start(), holding(chance)
    objects = read_again(documents, {})
    for _ in range(STEPS_MAX):
        hidden = frozenset(chance.sample([*sorted(objects), GONE, GONE], chance.randrange(3)))
        seen = {ref: one for ref, one in objects.items() if ref not in hidden}
        named = b.ENVIRONMENT if chance.random() < 0.95 else "evil"
        kept = resolve(seen, named, b.REVISION, quarantined=hidden, holding=held, memo=memo)
        anew = resolve(seen, named, b.REVISION, quarantined=hidden, holding=held)
        assert repr(kept) == repr(anew)
        documents = edited(documents, chance)
        objects = read_again(documents, objects)
        held = holding(chance) if chance.random() < 0.3 else held


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32))
def test_accepting_with_a_memo_gives_what_accepting_anew_gives(seed: int) -> None:
    chance, memo = random.Random(seed), AcceptMemo()
    documents, last, held = start(), Accepted(), holding(chance)
    candidate = b.candidate(documents)
    for number in range(STEPS_MAX):
        kept = accept(candidate, last, parse_accepted, b.ENVIRONMENT, held, memo)
        anew = accept(candidate, last, parse_accepted, b.ENVIRONMENT, held)
        assert repr(kept) == repr(anew)
        names = {key: InstanceKey(f"{key}-then") for key in kept.instances if chance.random() < 0.2}
        assert repr(to_desired(kept, render, names)) == repr(to_desired(anew, render, names))
        # Stored by this process, read back from the store, or not stored at all.
        last = chance.choice([kept.accepted, copy.deepcopy(kept.accepted), last])
        documents = edited(documents, chance)
        candidate = next_candidate(documents, candidate, chance, number)
        held = holding(chance) if chance.random() < 0.3 else held


def next_candidate(
    documents: b.Documents, before: Candidate, chance: random.Random, number: int
) -> Candidate:
    paths = sorted(documents)
    bad = chance.sample(paths, min(len(paths), chance.choice([0, 0, 1, 2])))
    revision = b.REVISION if number % 2 else b.LATER
    found = b.candidate(documents, broken=bad[:1], invalid=bad[1:], revision=revision)
    known = before.objects
    same = {ref: known[ref] if known.get(ref) == one else one for ref, one in found.objects.items()}
    return replace(found, objects=same)


def test_an_unchanged_revision_is_the_same_objects_again() -> None:
    memo, resolved = AcceptMemo(), b.candidate(start())
    first = accept(resolved, Accepted(), parse_accepted, b.ENVIRONMENT, memo=memo)
    again = accept(resolved, first.accepted, parse_accepted, b.ENVIRONMENT, memo=memo)
    for key, instance in first.instances.items():
        assert again.instances[key] is instance
    for ref, stored in first.accepted.objects.items():
        assert again.accepted.objects[ref] is stored
    targets = to_desired(first, render).targets
    for key, target in to_desired(again, render).targets.items():
        assert target is targets[key]


def test_one_changed_instance_is_made_anew_and_no_other() -> None:
    documents, memo = start(), ResolveMemo()
    objects = read_again(documents, {})
    first = resolve(objects, b.ENVIRONMENT, b.REVISION, memo=memo)
    documents[OTHER]["spec"]["desired"] = "stopped"
    second = resolve(read_again(documents, objects), b.ENVIRONMENT, b.REVISION, memo=memo)
    changed = {k for k, made in second.instances.items() if made is not first.instances[k]}
    assert changed == {InstanceKey("acme/research/other")}


def test_everything_an_instance_refers_to_is_looked_up_with_its_setting() -> None:
    """Otherwise an instance whose setting is whole might have a reference that leads nowhere."""
    looked_up = {"Project", "App", "AppVersion", "Promotion", "Entitlement", "Allocation"}
    assert {found.kind for found in references.REFERENCES["AppInstance"]} == looked_up
