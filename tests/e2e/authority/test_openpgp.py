"""The same with OpenPGP keys, and with keys in manifests that are none."""

from __future__ import annotations

import pytest

from reconciler.devkit.signing import SigningKey
from tests.cli.signed_state import binding, dumped, identity
from tests.e2e.authority.red_team import (
    ADMIN,
    DEVELOPER,
    INSTANCE,
    NODE,
    RedTeam,
    more_cores,
    more_memory,
    said,
)

GINA = "platform/iam/gina.yaml"
JUNK = "-----BEGIN PGP PUBLIC KEY BLOCK-----\n\nAAAA\n=AAAA\n-----END PGP PUBLIC KEY BLOCK-----\n"


def gina_s(*keys: SigningKey) -> str:
    who = identity("gina", keys[0])
    who["spec"]["keys"] = [key.identity_key(f"gina-{n}") for n, key in enumerate(keys)]
    return dumped(who, binding("gina-may", "gina", "platform-admin", {"platform": True}))


@pytest.fixture
def gina(team: RedTeam) -> SigningKey:
    """An admin who signs with an OpenPGP subkey; her primary key only certifies."""
    key = team.keys.get("gina") or team.openpgp_key("gina", subkey="rsa3072")
    team.send(ADMIN, {GINA: gina_s(key)}, "Gina is here")
    team.note()
    return key


def test_an_admin_signs_with_a_subkey(team: RedTeam, gina: SigningKey) -> None:
    made = team.send("gina", more_cores(team))
    assert team.done_by(made) == {("user/gina", NODE)}
    (row,) = [e for e in team.audit() if e.object == NODE]
    assert (row.key_id, row.requester_type) == ("gina-0", "user")
    assert gina.fingerprint not in team.log()


@pytest.mark.usefixtures("gina")
def test_an_openpgp_key_that_nobody_knows(team: RedTeam) -> None:
    key = team.openpgp_key("mallory")
    made = team.commit("mallory", more_memory(team))
    team.push()
    what = f"is signed with {key.fingerprint[-16:]}, a key that no Identity has"
    team.rejected("signer_unknown", said(made, what))


@pytest.mark.usefixtures("gina")
def test_an_openpgp_key_with_the_admin_s_name_and_address(team: RedTeam) -> None:
    """gpg knows people by names; here a key is its fingerprint, and who brings it is judged."""
    twin = team.openpgp_key("twin", name="gina", email="gina@acme.example")
    made = team.commit(DEVELOPER, {"platform/iam/twin.yaml": dumped(identity("twin", twin))})
    used = team.commit("twin", more_cores(team), "as Gina")
    team.push()
    what = f"is signed with {twin.fingerprint}, a key that no Identity has"
    team.rejected("signer_unknown", said(used, what, "as Gina"))
    assert made not in {e.revision for e in team.audit()}


def test_an_armored_block_of_junk(team: RedTeam, gina: SigningKey) -> None:
    """It keeps nobody else's key from being read."""
    who = identity("junk", gina)
    who["spec"]["keys"] = [
        {"id": "junk", "type": "openpgp", "public_key": JUNK, "fingerprint": "A" * 40}
    ]
    team.send(ADMIN, {"platform/iam/junk.yaml": dumped(who)}, "Junk")
    assert not team.accepted().refused
    made = team.send("gina", more_cores(team))
    assert ("user/gina", NODE) in team.done_by(made)


def test_a_block_with_a_fingerprint_that_is_not_its_own(team: RedTeam, gina: SigningKey) -> None:
    """Whoever claims the admin's fingerprint stands in her way at most, if an admin lets him; a
    developer's claim is refused.
    """
    mallory = team.keys.get("mallory") or team.openpgp_key("mallory")
    claim = identity("claim", mallory)
    claim["spec"]["keys"][0]["fingerprint"] = gina.fingerprint
    made = team.commit(DEVELOPER, {"platform/iam/claim.yaml": dumped(claim)})
    team.push()
    subject = "Identity/claim"
    message = f"user/dora may not change {subject}: platform.iam.edit is missing on the platform"
    team.refused(made, subject, "change_not_allowed", message)
    good = team.send("gina", more_cores(team))
    assert ("user/gina", NODE) in team.done_by(good)


@pytest.mark.parametrize(
    "line",
    [
        'command="sh" {}',
        "cert-authority {}",
        "{}\nssh-ed25519 AAAA",
        "ssh-dss AAAAB3NzaC1kc3MAAACB",
        "* {}",
        "{} \u0430da",
    ],
)
def test_an_ssh_key_line_with_more_in_it(team: RedTeam, line: str) -> None:
    """Options, patterns or a second key: it is no key, and the identity is as it was not made."""
    text = line.format(team.keys["eve"].public_line)
    who = identity("odd", team.keys["eve"])
    who["spec"]["keys"][0]["public_key"] = text
    made = team.send(ADMIN, {"platform/iam/odd.yaml": dumped(who)}, "Odd")
    assert team.form("Identity/odd") is None
    found = [f for f in team.findings() if f.get("object") == "Identity/odd"]
    assert found, made
    assert {f["where"].partition(":")[0] for f in found} == {"platform/iam/odd.yaml"}
    team.note()
    used = team.commit("eve", more_memory(team))
    team.push()
    what = f"is signed with {team.keys['eve'].fingerprint}, a key that no Identity has"
    team.rejected("signer_unknown", said(used, what))
    team.unchanged(INSTANCE)
