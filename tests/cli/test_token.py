"""`gpuaas token` against a running control plane: what is written where, and what is shown."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from reconciler.cli.token import token
from reconciler.errors import Refused, Transient
from reconciler.wiring.authority import now_ms
from tests.cli.signed_state import ADMIN, SignedState
from tests.cli.state_repo import Done, run
from tests.core.authority.trust_builders import account, identity
from tests.fakes.store import MemoryStore
from tests.server.auth_world import CI, Pair, accept, claims_of, pair, viewer
from tests.server.harness import Plane, running

KEY = pair()


@pytest.fixture
def plane(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Plane]:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    monkeypatch.delenv("GPUAAS_ENVIRONMENT", raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ci.pem").write_bytes(KEY.pem)
    with running(MemoryStore()) as plane:
        plane.clock.ms = now_ms()
        accept(plane.store, account(CI, "app-operator", public_keys=[KEY.entry()]))
        yield plane


def ask(plane: Plane, *args: str | Path) -> Done:
    return run(token, *args, "--server", str(plane.client.base_url))


def refusal(plane: Plane, *args: str | Path) -> str:
    with pytest.raises(Refused) as refused:
        ask(plane, *args)
    return str(refused.value)


ACCOUNT = ("--account", CI, "--key", "ci.pem", "--key-id", "ci-1")


def test_it_is_written_for_its_owner_and_not_shown(plane: Plane, tmp_path: Path) -> None:
    place = tmp_path / "run/gpuaas/token"
    done = ask(plane, *ACCOUNT)
    text = place.read_text()
    assert done.output.splitlines()[-1] == f"wrote {place}: a token of {CI}, good for 900 s"
    assert (text.count("."), text.endswith("\n")) == (2, True)
    assert (stat.S_IMODE(place.stat().st_mode), stat.S_IMODE(place.parent.stat().st_mode)) == (
        0o600,
        0o700,
    )
    assert claims_of(text.strip())["sub"] == CI
    ask(plane, *ACCOUNT)
    assert place.read_text() != text


def test_it_is_shown_when_asked(plane: Plane) -> None:
    done = ask(plane, *ACCOUNT, "--output", "-", "--scope", "apps.instance.read")
    assert claims_of(done.output.splitlines()[-1])["scope"] == "apps.instance.read"


def test_the_key_id_is_that_of_the_checkout(plane: Plane, tmp_path: Path) -> None:
    state = SignedState(tmp_path)
    key = state.keys[ADMIN]
    entry = key.identity_key("ada-1")
    accept(plane.store, identity(ADMIN, keys=[entry]), viewer(ADMIN))
    who = ("--identity", ADMIN, "--key", key.private)
    ask(plane, *who, "--repo", state.folder, "--output", "mine")
    assert claims_of((tmp_path / "mine").read_text().strip())["kid"] == "ada-1"
    said = refusal(plane, *who)
    assert said == (
        "key_id_unknown: no manifest here has this key for identity:ada "
        "(pass --key-id, or --repo with a checkout of the state repo)"
    )


def test_nobody_gets_one(plane: Plane, tmp_path: Path) -> None:
    other: Pair = pair()
    (tmp_path / "other.pem").write_bytes(other.pem)
    said = refusal(plane, "--account", CI, "--key", "other.pem", "--key-id", "ci-1")
    assert "token_refused: assertion_refused: no such account with such a key signed this (is" in (
        said
    )
    assert not (tmp_path / "run/gpuaas/token").exists()
    assert "PRIVATE" not in said


def test_where_a_token_is_not_asked_for(plane: Plane, tmp_path: Path) -> None:
    for server, says in (
        ("http://gpuaas.example", "token_in_the_clear: a token is not asked for over plain HTTP"),
        ("gpuaas.example", "bad_server: no address: 'gpuaas.example'"),
        ("https://u:p@gpuaas.example", "bad_server: no address: 'gpuaas.example'"),
    ):
        with pytest.raises(Refused) as refused:
            run(token, *ACCOUNT, "--server", server)
        assert says in str(refused.value)
    address = str(plane.client.base_url)
    with pytest.raises(Refused, match="token_refused: not_found"):
        run(token, *ACCOUNT, "--server", f"{address}/elsewhere")


def test_nobody_answers(plane: Plane) -> None:
    with pytest.raises(Transient, match=r"token_not_fetched: no answer \(ConnectError\)"):
        run(token, *ACCOUNT, "--server", "http://127.0.0.1:1")


def test_a_key_that_is_none(plane: Plane, tmp_path: Path) -> None:
    (tmp_path / "ci.pem").write_text("hello")
    assert "key_unreadable: this is no private key" in refusal(plane, *ACCOUNT)
