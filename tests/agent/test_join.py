"""What `gpuaas-agent join` says, and whom it believes."""

from __future__ import annotations

import base64
import json
import stat
from pathlib import Path

import pytest

from node_agent.link import AgentKey, Away, JoinRefused, join, parse_join_token
from node_agent.membership import JoinToken
from node_agent.state import Identity
from tests.agent.authority import DAY_S, Authority
from tests.agent.commands import run_command
from tests.agent.control_plane import SECRET, ControlPlane


@pytest.mark.parametrize(
    ("changes", "code", "words"),
    [
        (None, 4, "token_malformed: not a join token, or not the whole of it"),
        ({"ca_hash": "0" * 64}, 4, "pin_mismatch: the server's CA is not the one that the token"),
        ({"secret": "guessed"}, 4, "token_invalid: unknown, used or expired join token"),
        ({"server": "https://127.0.0.1:1"}, 7, "unreachable: the control plane does not answer"),
        (
            {"server": "http://127.0.0.1:1"},
            4,
            "insecure_server: the token is for a control plane without TLS: ask for a new one",
        ),
        ({"node": "n2"}, 4, "answer_malformed: the answer to a join is for another node"),
    ],
)
def test_join_tells_what_is_wrong(
    plane: ControlPlane, tmp_path: Path, changes: dict[str, str] | None, code: int, words: str
) -> None:
    plane.ca_away = True
    token = "nonsense" if changes is None else plane.token(**changes)
    result = run_command(tmp_path, "join", environment={"GPUAAS_JOIN_TOKEN": token})
    assert (result.exit_code, words in result.output) == (code, True), result.output
    assert SECRET not in result.output
    assert not (tmp_path / "agent.json").exists()


def test_a_join_token_works_once(plane: ControlPlane, joined: Path, tmp_path: Path) -> None:
    token = {"GPUAAS_JOIN_TOKEN": plane.token()}
    result = run_command(tmp_path / "second", "join", environment=token)
    assert (result.exit_code, "token_invalid" in result.output) == (4, True)
    again = run_command(joined, "join", environment=token)
    assert (again.exit_code, "already joined" in again.output) == (1, True)


def test_it_leaves_with_a_certificate_and_the_ca(plane: ControlPlane, joined: Path) -> None:
    stored = joined / "agent.json"
    identity = Identity.model_validate_json(stored.read_bytes())
    assert (identity.certificate, identity.ca) == (plane.certificates[0], plane.authority.pem)
    assert stat.S_IMODE(stored.stat().st_mode) == 0o600
    for shown in (repr(identity), str(identity)):
        assert identity.private_key not in shown
        assert "CERTIFICATE" not in shown


def test_the_secret_is_told_to_nobody_who_is_not_of_the_pinned_ca(plane: ControlPlane) -> None:
    """Attempted: to hand out the true CA, which is public, and to answer with another's word."""
    plane.show(Authority())
    heard: list[str] = []
    answer = plane.answer

    def listening(path: str, body: bytes, peer: bytes | None) -> tuple[int, bytes]:
        heard.append(path)
        return answer(path, body, peer)

    plane.answer = listening  # type: ignore[method-assign]
    with pytest.raises(Away) as away:
        join(parse_join_token(plane.token()), AgentKey.generate())
    assert str(away.value) == (
        "tls_refused: the server's certificate is not of the CA that this node joined"
    )
    assert heard == ["/v1/agent/ca"]


@pytest.mark.parametrize(
    "ca", [{"ca": "no PEM"}, {"ca": 7}, {}, [], {"ca": "-----BEGIN CERTIFICATE-----\nAAAA\n"}]
)
def test_what_is_no_control_plane_is_said_so(
    plane: ControlPlane, monkeypatch: pytest.MonkeyPatch, ca: object
) -> None:
    monkeypatch.setattr(plane, "answer", lambda *_: (200, json.dumps(ca).encode()))
    with pytest.raises(JoinRefused) as refused:
        join(parse_join_token(plane.token()), AgentKey.generate())
    assert str(refused.value) == (
        f"answer_malformed: {plane.url} gives no CA certificate: is it a control plane's?"
    )


@pytest.mark.parametrize("given", ["", "nonsense", "another's"])
def test_a_certificate_that_can_not_be_used_costs_no_token(
    plane: ControlPlane, monkeypatch: pytest.MonkeyPatch, given: str
) -> None:
    """The CA does not answer, say: the agent asks again once it runs."""
    if given == "another's":
        other = AgentKey.generate().request_certificate("n1")
        given = plane.authority.agent(other, "n1", DAY_S)
    monkeypatch.setattr(plane, "certified", lambda _: given)
    reply = join(parse_join_token(plane.token()), AgentKey.generate())
    assert (reply.certificate, reply.ca) == ("", plane.authority.pem)


def test_a_token_of_before_there_were_certificates_is_none() -> None:
    old = {"server": "http://x", "node": "n1", "secret": "s", "verifier_hash": "0" * 64}
    text = base64.urlsafe_b64encode(json.dumps(old).encode()).decode()
    with pytest.raises(JoinRefused, match="token_malformed"):
        parse_join_token(text)
    fresh = JoinToken(server="https://x", node="n1", secret="s", ca_hash="0" * 64)
    assert parse_join_token(base64.urlsafe_b64encode(fresh.canonical()).decode()) == fresh


def test_who_joined_before_there_were_certificates_is_told_to_join_again(
    plane: ControlPlane, joined: Path
) -> None:
    stored = joined / "agent.json"
    document = json.loads(stored.read_text())
    for field in ("certificate", "ca", "config"):
        del document[field]
    document["server"] = "http://127.0.0.1:1"
    stored.write_text(json.dumps(document))
    result = run_command(joined, "run", "--engine", "process")
    assert result.exit_code == 3
    assert "was joined by an agent of before there were certificates" in result.output
    assert "gpuaas-agent join --again" in result.output
