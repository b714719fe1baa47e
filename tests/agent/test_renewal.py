"""How the agent keeps its certificate good."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from node_agent.certificate import CertificateRefused, validity_of
from node_agent.link import AgentKey, Away, Credentials, Link
from node_agent.renewal import Renewal
from node_agent.state import Identity, StateStore
from tests.agent.authority import DAY_S, Authority
from tests.agent.cases import NODE, NOW_MS
from tests.agent.control_plane import ControlPlane


class Clock:
    """`at_ms` is what the agent takes for now."""

    at_ms = NOW_MS

    def now_ms(self) -> int:
        return self.at_ms


class Bench:
    def __init__(self, plane: ControlPlane, folder: Path) -> None:
        self.plane, self.key, self.clock = plane, AgentKey.generate(), Clock()
        plane.enrol(self.key.public_key)
        self.store = StateStore(folder, NOW_MS)
        self.store.save_identity(
            Identity(
                node=NODE, server=plane.url, private_key=self.key.reveal_private(),
                verifiers=plane.reply.verifiers, min_version=1, joined_at_ms=0,
                ca=plane.authority.pem, certificate=self.issued(),
            )
        )  # fmt: skip
        self.link = Link(plane.url, self.key, lambda: Credentials(self.identity.ca))
        self.renewal = Renewal(self.store, self.key, self.link, self.clock, 0.2)

    @property
    def identity(self) -> Identity:
        identity = self.store.identity
        assert identity is not None
        return identity

    def issued(self) -> str:
        return self.plane.certified(self.key.request_certificate(NODE))


@pytest.fixture
def bench(plane: ControlPlane, tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(plane, tmp_path)
    yield bench
    bench.link.close()
    bench.store.close()


def test_it_is_due_after_half_of_its_time(bench: Bench) -> None:
    validity = validity_of(bench.identity.certificate, bench.key.public_key)
    bench.clock.at_ms = validity.begins_at_ms
    assert DAY_S / 2 <= bench.renewal.due_in_s() <= DAY_S * 0.6
    bench.clock.at_ms = validity.begins_at_ms + int(DAY_S * 600)
    assert bench.renewal.due_in_s() <= 0


@pytest.mark.parametrize("certificate", ["", "what can't be read"])
def test_without_one_it_is_due_now(bench: Bench, certificate: str) -> None:
    bench.store.save_certificate(certificate)
    assert bench.renewal.due_in_s() == 0


def test_renewed_it_is_on_disk(bench: Bench, tmp_path: Path) -> None:
    bench.renewal.renew()
    stored = Identity.model_validate_json((tmp_path / "agent.json").read_bytes())
    assert stored.certificate == bench.plane.certificates[-1] != bench.plane.certificates[0]


def test_after_a_week_off_it_comes_back_by_itself(bench: Bench) -> None:
    bench.plane.authority.offset_s = -7 * DAY_S
    bench.store.save_certificate(bench.issued())
    bench.plane.authority.offset_s = 0
    bench.clock.at_ms = time.time_ns() // 1_000_000
    assert bench.renewal.due_in_s() < 0
    assert bench.renewal.renew().ends_at_ms > bench.clock.at_ms
    assert bench.identity.certificate == bench.plane.certificates[-1]


def test_whoever_issues_it_the_ca_that_is_believed_stays(bench: Bench) -> None:
    """Whom to believe is said in signed words alone (`NodeConfig.ca`)."""
    before = bench.identity.ca
    bench.plane.authority = Authority("another")
    bench.renewal.renew()
    assert bench.identity.certificate == bench.plane.certificates[-1]
    assert bench.identity.ca == before


def test_an_answer_that_brings_a_ca_is_none(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    before, issued, another = bench.identity, bench.issued(), Authority("another").pem
    body = json.dumps({"certificate": issued, "ca": another}).encode()
    monkeypatch.setattr(bench.plane, "_certify", lambda _: (200, body))
    with pytest.raises(Away, match="answer_malformed"):
        bench.renewal.renew()
    assert bench.identity == before


@pytest.mark.parametrize("why", ["away", "sealed"])
def test_while_none_is_to_be_had_the_one_there_stays(bench: Bench, why: str) -> None:
    before = bench.identity.certificate
    bench.plane.away, bench.plane.ca_away = why == "away", why == "sealed"
    with pytest.raises(Away) as away:
        bench.renewal.renew()
    assert away.value.code == {"away": "away", "sealed": "custody_sealed"}[why]
    assert bench.identity.certificate == before


@pytest.mark.parametrize("given", ["", "nonsense", "another's"])
def test_one_that_can_not_be_used_changes_nothing(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, given: str
) -> None:
    before = bench.identity
    if given == "another's":
        other = AgentKey.generate().request_certificate(NODE)
        given = bench.plane.authority.agent(other, NODE)
    monkeypatch.setattr(bench.plane, "certified", lambda _: given)
    with pytest.raises((Away, CertificateRefused)):
        bench.renewal.renew()
    assert bench.identity == before
