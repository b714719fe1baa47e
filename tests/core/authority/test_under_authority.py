"""A revision without what was refused of it: what is accepted then, and what is told."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from dataclasses import replace

import pytest

from reconciler.core.accept import AcceptedState, accept, parse_accepted
from reconciler.core.authority.facts import REFUSALS, RefusedChange, Walked
from reconciler.core.authority.walk import last_candidate, under_authority
from reconciler.core.desired import Candidate
from reconciler.core.forms import canonical_json
from reconciler.core.names import ObjectRef, Revision
from reconciler.core.problems import Problem
from reconciler.core.records import Accepted
from tests.core import builders as b
from tests.core.authority.chains import (
    PEOPLE,
    accepted,
    iam,
    instance_file,
    known,
    node,
    seen,
    walked,
    yaml,
)
from tests.core.authority.trust_builders import Document, binding, identity, manifest

ONE = ObjectRef("AppInstance", ("acme", "research", "one"))
NODE = ObjectRef("Node", ("gpu-1",))
NODE_FILE = "platform/nodes/gpu-1.yaml"
MADE = Revision("3" * 40)
BEFORE = b.accepted(b.world())


def refused(
    ref: ObjectRef = ONE, form: Document | None = None, path: str = b.INSTANCE_FILE
) -> Walked:
    text = canonical_json(form) if form is not None else None
    one = RefusedChange(
        str(ref), path, MADE, "user/zoe", "change_not_allowed", "zoe may not", "ask ada", text
    )
    return Walked(b.LATER, refused={one.subject: one})


def unread(path: str = b.INSTANCE_FILE, *held: ObjectRef) -> Walked:
    """The file held these objects, as they were accepted."""
    texts = json.dumps({str(ref): BEFORE.objects[str(ref)].document_json for ref in held})
    said = ("unread_change", "not readable", "mend it")
    one = RefusedChange(path, path, MADE, "user/zoe", *said, texts)
    return Walked(b.LATER, refused={path: one})


def stopped(documents: b.Documents) -> Document:
    """The instance as it was; in `documents` it is stopped from now on."""
    before = copy.deepcopy(documents[b.INSTANCE_FILE])
    documents[b.INSTANCE_FILE]["spec"]["desired"] = "stopped"
    return before


def run(candidate: Candidate, last: Accepted = BEFORE) -> AcceptedState:
    return accept(candidate, last, parse_accepted, b.ENVIRONMENT)


def form(state: AcceptedState, ref: ObjectRef = ONE) -> str | None:
    stored = state.accepted.objects.get(str(ref))
    return stored.document_json if stored is not None else None


def test_nothing_refused_changes_nothing() -> None:
    candidate = b.candidate(b.world())
    found = under_authority(candidate, Walked(b.LATER), BEFORE)
    assert found == replace(candidate, decided=frozenset())


def test_a_refused_change_is_not_accepted_and_told() -> None:
    documents = b.world()
    before = stopped(documents)
    candidate = under_authority(b.candidate(documents), refused(form=before), BEFORE)
    assert candidate.objects[ONE].document == before
    path, code = b.INSTANCE_FILE, "change_not_allowed"
    problem = Problem(path, 1, 1, code, "zoe may not", "", "ask ada", str(ONE))
    assert candidate.problems == (problem,)
    state = run(candidate)
    assert form(state) == form(run(b.candidate(b.world())))
    assert problem in state.problems
    assert not state.held


def test_what_is_refused_on_top_of_a_new_form_keeps_the_new_form() -> None:
    """Not the one that was accepted before it."""
    documents = b.world()
    stopped(documents)
    second = copy.deepcopy(documents[b.INSTANCE_FILE])
    documents[b.INSTANCE_FILE]["spec"]["parameters"]["gpu_count"] = 4
    state = run(under_authority(b.candidate(documents), refused(form=second), BEFORE))
    assert form(state) == canonical_json(second)
    assert state.accepted.objects[str(ONE)].revision == b.LATER


def test_a_refused_deletion_leaves_it_there() -> None:
    documents = b.world()
    before = documents.pop(b.INSTANCE_FILE)
    candidate = under_authority(b.candidate(documents), refused(form=before), BEFORE)
    assert list(candidate.objects) == sorted(candidate.objects)
    (problem,) = candidate.problems
    assert (problem.path, problem.line) == (b.INSTANCE_FILE, 0)
    assert form(run(candidate)) == BEFORE.objects[str(ONE)].document_json


def test_a_refused_object_is_not_there() -> None:
    documents = b.world()
    b.add_instance(documents, "two")
    two, path = ObjectRef("AppInstance", ("acme", "research", "two")), b.INSTANCE_FILE
    candidate = under_authority(b.candidate(documents), refused(two, path=path), BEFORE)
    assert two not in candidate.objects
    state = run(candidate)
    assert form(state, two) is None
    assert state.accepted.objects == BEFORE.objects


def test_what_is_wrong_with_a_refused_form_does_not_matter() -> None:
    """Else somebody who may change nothing could hold up what others remove beside it."""
    documents = b.world()
    b.add_instance(documents, "two")
    last = b.accepted(documents)
    two_file = b.INSTANCE_FILE.replace("one", "two")
    del documents[two_file]
    before = documents[b.INSTANCE_FILE]
    candidate = b.candidate(documents, invalid=[b.INSTANCE_FILE])
    assert "AppInstance/acme/research/two" in run(candidate, last).accepted.objects
    state = run(under_authority(candidate, refused(form=before), last), last)
    assert {problem.code for problem in state.problems} == {"change_not_allowed"}
    assert "AppInstance/acme/research/two" not in state.accepted.objects
    assert form(state) == canonical_json(before)


def _extra_field(document: Document) -> None:
    document["spec"]["speck"] = 1


def _of_another_app(document: Document) -> None:
    document["spec"]["slug"] = "other"


@pytest.mark.parametrize(
    ("ref", "path", "bend", "said"),
    [
        (ONE, b.INSTANCE_FILE, _extra_field, "its model does not take it"),
        (
            ObjectRef("AppVersion", ("hello", "1.0.0")),
            b.VERSION_FILE,
            _of_another_app,
            "disagrees with the path",
        ),
    ],
)
def test_a_form_that_somebody_could_make_may_be_invalid(
    ref: ObjectRef, path: str, bend: Callable[[Document], None], said: str
) -> None:
    documents = b.world()
    wrong = copy.deepcopy(documents[path])
    bend(wrong)
    candidate = under_authority(b.candidate(documents), refused(ref, wrong, path), BEFORE)
    assert ref not in candidate.objects
    problem = next(one for one in candidate.problems if one.code == "authorised_form_invalid")
    assert said in problem.message
    assert form(run(candidate), ref) == BEFORE.objects[str(ref)].document_json


def test_a_file_that_could_not_be_read_keeps_what_was_accepted_of_it() -> None:
    documents = b.world()
    stopped(documents)
    candidate = under_authority(b.candidate(documents), unread(b.INSTANCE_FILE, ONE), BEFORE)
    assert candidate.objects[ONE] == parse_accepted(BEFORE.objects[str(ONE)])
    assert candidate.problems == (
        Problem(b.INSTANCE_FILE, 0, 0, "unread_change", "not readable", "", "mend it"),
    )
    documents.pop(b.INSTANCE_FILE)
    candidate = under_authority(b.candidate(documents), unread(b.INSTANCE_FILE, ONE), BEFORE)
    assert candidate.objects[ONE] == parse_accepted(BEFORE.objects[str(ONE)])


def test_an_environment_in_a_file_that_could_not_be_read_guards_as_before() -> None:
    ref = ObjectRef("Environment", (b.ENVIRONMENT,))
    path = BEFORE.objects[str(ref)].path
    documents = b.world()
    del documents[path]
    found = replace(b.candidate(documents), broken_paths=frozenset((path,)))
    guards = run(b.candidate(b.world())).guards
    assert run(under_authority(found, unread(path, ref), BEFORE)).guards == guards
    assert run(found).guards == replace(guards, removals_max=0)


def test_what_is_new_in_a_file_that_could_not_be_read_is_not_there() -> None:
    last = Accepted(BEFORE.revision, {k: v for k, v in BEFORE.objects.items() if k != str(ONE)})
    broken = frozenset((b.INSTANCE_FILE,))
    before = Candidate(b.LATER, b.candidate(b.world()).objects, (), broken)
    candidate = under_authority(before, unread(), last)
    assert ONE not in candidate.objects
    assert not candidate.broken_paths, "nothing is gone that it may hold"


def test_while_a_revision_is_rejected_all_stays_as_it_was() -> None:
    problem = Problem("", 0, 0, "commit_unsigned", "commit 123 is not signed")
    candidate = last_candidate(BEFORE, problem)
    assert candidate == Candidate(b.REVISION, b.objects(b.world()), (problem,))
    state = run(candidate)
    assert state.accepted == BEFORE
    assert [*state.instances] == ["acme/research/one"]
    assert not state.held
    assert state.problems == (problem,)


def test_before_anything_was_accepted_nothing_is_there() -> None:
    problem = Problem("", 0, 0, "commit_unsigned", "commit 123 is not signed")
    assert last_candidate(Accepted(), problem) == Candidate(Revision(""), {}, (problem,))


# --- from commits on -----------------------------------------------------------------------------


def test_an_authorised_form_and_a_refused_one_in_one_push() -> None:
    repo = known()
    last = accepted(repo, walked(repo))
    repo.commit({NODE_FILE: yaml(node(cpu_cores=8))}, by="ada")
    repo.commit({NODE_FILE: "\n\n" + yaml(node(cpu_cores=9))}, by="nils")
    candidate = seen(repo, walked(repo, last), last)
    assert candidate.objects[NODE].document == node(cpu_cores=8)
    assert candidate.objects[NODE].line == 3
    (problem,) = candidate.problems
    assert problem.where == f"{NODE_FILE}:3:1"
    assert problem.code == "change_not_allowed"
    assert problem.object == str(NODE)


def test_what_was_valid_in_nobody_s_eyes_is_held_up_by_nobody() -> None:
    """zoe adds what is no valid Identity; what ada removes beside it goes."""
    repo = known()
    last = accepted(repo, walked(repo))
    repo.commit({iam("junk"): yaml(manifest("Identity", "junk", {"speck": 1}))}, by="zoe")
    repo.commit({iam("roles"): yaml(binding("admins", "platform-admin", "", "ada")[1])})
    found = walked(repo, last)
    candidate = seen(repo, found, last)
    assert {problem.code for problem in candidate.problems} <= REFUSALS
    assert "RoleBinding/lab" not in accepted(repo, found, last).objects


@pytest.mark.parametrize(
    ("changed", "counts"),
    [
        ({iam("more"): PEOPLE[iam("people")]}, PEOPLE),
        ({iam("more"): yaml(identity("ada", disabled=True)[1])}, PEOPLE),
        ({iam("people"): None}, PEOPLE),
        ({iam("people"): "a: ["}, PEOPLE),
        ({instance_file("one"): "a: ["}, PEOPLE),
    ],
)
def test_what_nobody_may_counts_for_nothing(
    changed: Mapping[str, str | None], counts: Mapping[str, str]
) -> None:
    repo = known()
    last = accepted(repo, walked(repo))
    repo.commit(changed, by="zoe")
    after = accepted(repo, walked(repo, last), last)
    assert {ref: one.document_json for ref, one in after.objects.items()} == {
        ref: one.document_json for ref, one in last.objects.items()
    }
    assert len(after.objects) == 5 + 2 + len(counts) - 2
