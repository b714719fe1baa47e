"""What a signed commit took away stays away, whatever is broken beside it; and what somebody breaks
who has no say keeps nobody from anything.
"""

from __future__ import annotations

import json

import pytest

from reconciler.core.names import ObjectRef
from tests.core.authority.trust_builders import Written, account, binding, identity
from tests.test_cycle import INSTANCE
from tests.test_gate import IAM, PEOPLE, Signed, manifests

ZOE_FILE = "platform/iam/zoe.yaml"
WIDE = binding("zr", "platform-admin", "", "zoe")
NARROW = binding("zr", "viewer", "", "zoe")
SA_FILE = "tenants/acme/projects/research/service-accounts/bot.yaml"
BOT = "acme/research/bot"
BESIDE = INSTANCE.replace("hello.yaml", "zz.yaml")
NOTHING = b"a: [\n"


@pytest.fixture
def signed() -> Signed:
    world = Signed()
    world.commit("ada", **{IAM: manifests(*PEOPLE, identity("zoe"))})
    return world


def stored(signed: Signed, subject: str) -> object:
    found = signed.world.store.accepted().objects.get(subject)
    return json.loads(found.document_json) if found is not None else None


def push_after(signed: Signed, written: Written | None, **broken: bytes | None) -> None:
    """zoe breaks something after ada narrowed her rights, before anybody looked."""
    signed.commit("ada", **{ZOE_FILE: manifests(WIDE)})
    signed.converge()
    assert stored(signed, "RoleBinding/zr") == WIDE[1]
    signed.commit("ada", **{ZOE_FILE: manifests(written) if written else None})
    signed.commit("zoe", **broken)
    signed.converge()


@pytest.mark.parametrize("written", [None, NARROW])
def test_breaking_a_file_gives_no_rights_back(signed: Signed, written: Written | None) -> None:
    push_after(signed, written, **{ZOE_FILE: NOTHING})
    assert stored(signed, "RoleBinding/zr") == (written[1] if written else None)
    signed.commit("zoe", **{IAM: manifests(*PEOPLE, binding("own", "platform-admin", "", "dev"))})
    signed.converge()
    assert stored(signed, "RoleBinding/own") is None
    assert stored(signed, "RoleBinding/zr") == (written[1] if written else None)


def test_a_deleted_binding_is_not_in_the_file_of_another(signed: Signed) -> None:
    """What can still be read of a broken file does not count either."""
    push_after(signed, None, **{ZOE_FILE: manifests(WIDE) + b"---\na: [\n"})
    assert stored(signed, "RoleBinding/zr") is None


def test_a_copy_in_a_broken_file_does_not_undo_a_narrowing(signed: Signed) -> None:
    copy = manifests(WIDE) + b"---\na: 1\n"
    push_after(signed, NARROW, **{"platform/iam/copy.yaml": copy})
    assert stored(signed, "RoleBinding/zr") is None, "nobody can tell which of the two counts"
    signed.commit("ada", **{"platform/iam/copy.yaml": None})
    signed.converge()
    assert stored(signed, "RoleBinding/zr") == NARROW[1]


def test_a_binding_that_points_nowhere_is_narrowed_all_the_same(signed: Signed) -> None:
    wide = binding("shared", "app-operator", "acme/research", "zoe", BOT)
    narrow = binding("shared", "app-operator", "acme/research", "dev", BOT)
    signed.commit("ada", **{SA_FILE: manifests(account(BOT)), ZOE_FILE: manifests(wide)})
    signed.converge()
    assert stored(signed, "RoleBinding/shared") == wide[1]
    signed.commit("ada", **{SA_FILE: None})
    signed.commit("ada", **{ZOE_FILE: manifests(narrow)})
    assert "unknown_reference" in signed.codes(signed.converge())
    assert stored(signed, "RoleBinding/shared") == narrow[1]


@pytest.mark.parametrize("path", [BESIDE, INSTANCE])
def test_what_a_stranger_breaks_stops_no_removal(signed: Signed, path: str) -> None:
    signed.converge()
    if path == BESIDE:
        signed.commit("zoe", **{path: NOTHING})
        signed.converge()
    signed.commit("dev", **{INSTANCE: None})
    signed.commit("zoe", **{path: NOTHING})
    done = signed.converge()
    assert "removal_suspended" not in signed.codes(done)
    assert stored(signed, "AppInstance/acme/research/hello") is None


def test_what_is_deleted_while_its_maker_breaks_a_file_beside_stays(signed: Signed) -> None:
    """It may be meant to be in there: also for the next to look, who sees no deletion."""
    signed.converge()
    signed.commit("dev", **{INSTANCE: None, BESIDE: NOTHING})
    for path in ("README.md", "LICENSE"):
        assert "removal_suspended" in signed.codes(signed.converge())
        assert stored(signed, "AppInstance/acme/research/hello") is not None
        signed.commit("dev", **{path: b"more"})


def test_an_environment_that_a_stranger_broke_holds_up_nothing(signed: Signed) -> None:
    path = f"environments/{signed.settings.environment}.yaml"
    signed.converge()
    before = stored(signed, str(ObjectRef("Environment", (signed.settings.environment,))))
    signed.commit("zoe", **{path: NOTHING})
    signed.commit("dev", **{INSTANCE: None})
    signed.converge()
    assert stored(signed, f"Environment/{signed.settings.environment}") == before
    assert stored(signed, "AppInstance/acme/research/hello") is None
