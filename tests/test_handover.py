"""Handing over: both ends in the audit trail, once, and an alarm where somebody was first."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from typing import cast

import pytest
from structlog.testing import capture_logs

from reconciler.core.custody.paths import WRAP_MAC_KEY
from reconciler.core.records import AuditEntry
from reconciler.custody.wrap_mac import WrapMac
from reconciler.errors import Refused, Transient
from reconciler.logs import mask_secrets
from reconciler.ports import Ports, Registry, Secret, StateSource
from reconciler.use_cases.handover import Asker, alarms, hand_over, read_token, take, told_shown
from reconciler.views.audit import row_line
from tests.fakes.ca import FakeCa
from tests.fakes.clock import FakeClock
from tests.fakes.secrets import FakeSecrets
from tests.fakes.store import MemoryStore

PATH, OTHER = "projects/acme/lab/token", "projects/acme/web/token"
VALUE = "hunter2-hunter2"
ADA, BOB = Asker("local/ada", "local"), Asker("local/bob", "local")
DAY_MS = 24 * 3_600_000


@pytest.fixture
def ports() -> Ports:
    clock = FakeClock()
    secrets = FakeSecrets(clock)
    secrets.write(PATH, Secret(VALUE))
    secrets.write(OTHER, Secret("another"))
    source, registry = cast(StateSource, None), cast(Registry, None)
    return Ports(source, registry, secrets, FakeCa(clock), MemoryStore(), clock)


def advance(ports: Ports, by_ms: int) -> None:
    assert isinstance(ports.clock, FakeClock)
    ports.clock.advance(by_ms)


def told(ports: Ports) -> list[tuple[str, str, str, str, str]]:
    rows = (row.entry for row in ports.store.audit())
    return [(it.actor, it.action, it.object, it.result, it.reason) for it in rows]


def test_both_ends_are_told(ports: Ports) -> None:
    given = hand_over(ports, PATH, ADA, 60, to="bob")
    with capture_logs() as lines:
        assert take(ports, given.token, BOB).reveal() == VALUE
    assert lines == []
    assert given.expires_at_ms == ports.clock.now_ms() + 60_000
    assert told(ports) == [
        ("local/ada", "secrets.wrap.create", PATH, "done", "for bob, until 2023-11-14T22:14:20Z"),
        ("local/bob", "secrets.wrap.unwrap", PATH, "done", ""),
    ]
    assert alarms(ports.store, ports.clock.now_ms()) == []


def test_a_second_one_hears_that_he_is_late_and_so_do_all(ports: Ports) -> None:
    given = hand_over(ports, PATH, ADA, 60)
    take(ports, given.token, BOB)
    with capture_logs() as lines, pytest.raises(Refused) as refused:
        take(ports, given.token, Asker("unproved", "unproved", "10.0.0.9", "c-1"))
    assert refused.value.code == "wrap_spent"
    assert lines == [
        {
            "event": "wrap_alarm",
            "log_level": "error",
            "code": "wrap_spent",
            "path": PATH,
            "asker": "unproved",
            "peer": "10.0.0.9",
            "correlation_id": "c-1",
        }
    ]
    row = ports.store.audit()[-1]
    assert row.entry.reason.endswith(", from 10.0.0.9")
    assert alarms(ports.store, ports.clock.now_ms()) == [row]
    assert f"{PATH}  ALARM: wrap_spent" in row_line(row).text
    advance(ports, DAY_MS + 1)
    assert alarms(ports.store, ports.clock.now_ms()) == []


def test_too_late_is_an_alarm_as_well(ports: Ports) -> None:
    """Nobody can tell it from a token that somebody else used."""
    given = hand_over(ports, PATH, ADA, 60)
    advance(ports, 60_000)
    with pytest.raises(Refused, match=r".") as refused:
        take(ports, given.token, BOB)
    assert refused.value.code == "wrap_spent"


def test_a_token_that_was_swapped_on_the_way_is_found_out_before_it_is_spent(ports: Ports) -> None:
    """Who swaps what is inside, for a token that he may unwrap, gets no thanks for it."""
    meant, other = hand_over(ports, PATH, ADA, 60), hand_over(ports, OTHER, ADA, 60)
    one, two = read_token(meant.token), read_token(other.token)
    swapped = [PATH, two.token.reveal(), two.expires_at_ms, one.mac]
    with pytest.raises(Refused) as refused:
        take(ports, forged(swapped), BOB)
    assert str(refused.value) == (
        "handover_malformed: it was not handed out by this control plane, or was changed on the "
        "way (give all of it, as it was printed; if that is what you did, ask for a new one)"
    )
    assert alarms(ports.store, ports.clock.now_ms()) == []
    assert take(ports, other.token, BOB).reveal() == "another"
    assert take(ports, meant.token, BOB).reveal() == VALUE


def test_of_several_processes_all_know_what_was_handed_out(ports: Ports) -> None:
    """The key is made once, lies in custody, and is handed out to nobody."""
    one, other = (WrapMac(ports.secrets, ports.clock) for _ in range(2))
    given = one.given(PATH, ports.secrets.wrap(PATH, 60))
    assert other.holds(given)
    assert not other.holds(replace(given, path=OTHER))
    assert not other.holds(replace(given, mac="\ud800"))
    assert not WrapMac(FakeSecrets(), ports.clock).holds(given)
    key = ports.secrets.read(WRAP_MAC_KEY)
    assert key is not None
    assert len(key.reveal()) == 43


def forged(said: object) -> Secret:
    text = json.dumps(said).encode()
    return Secret("gpuaas-h1." + base64.urlsafe_b64encode(text).rstrip(b"=").decode())


MAC = "0" * 64
NOT_FOR_PEOPLE = "handover_malformed: it is for something that is not handed to people"
MALFORMED = "handover_malformed: this is no hand-over token (give all of it, as it was printed: gpu"


@pytest.mark.parametrize(
    ("token", "said"),
    [
        (Secret(""), MALFORMED),
        (Secret("hvs.CAESI"), MALFORMED),
        (Secret("gpuaas-h2.e30"), MALFORMED),
        (Secret("gpuaas-h1.!"), MALFORMED),
        (Secret("gpuaas-h1.A"), MALFORMED),
        (Secret("gpuaas-h1." + "A" * 5000), MALFORMED),
        (forged({}), MALFORMED),
        (forged([PATH]), MALFORMED),
        (forged([PATH, "x"]), MALFORMED),
        (forged([PATH, "", 1, MAC]), MALFORMED),
        (forged([PATH, 1, 1, MAC]), MALFORMED),
        (forged([PATH, "x", "1", MAC]), MALFORMED),
        (forged([PATH, "x", True, MAC]), MALFORMED),
        (forged([PATH, "x", 1, 1]), MALFORMED),
        (forged([PATH, "x", 1, MAC[1:]]), MALFORMED),
        (forged([PATH, "\u00e4", 1, MAC]), MALFORMED),
        (forged([PATH, "\ud800x", 1, MAC]), MALFORMED),
        (forged(["webhook/\ud800", "x", 1, MAC]), MALFORMED),
        (forged([PATH, "x", 1, MAC]), "handover_malformed: it was not handed out by this control "),
        (forged(["joins/node-a/1", "x", 1, MAC]), NOT_FOR_PEOPLE),
        (forged(["pki/root", "x", 1, MAC]), NOT_FOR_PEOPLE),
        (forged(["handover/mac-key", "x", 1, MAC]), NOT_FOR_PEOPLE),
        (forged(["nobody/s", "x", 1, MAC]), NOT_FOR_PEOPLE),
    ],
)
def test_what_is_no_token_is_no_alarm(ports: Ports, token: Secret, said: str) -> None:
    with pytest.raises(Refused) as refused:
        take(ports, token, BOB)
    assert str(refused.value).startswith(said)
    assert token.reveal() not in (str(refused.value),)
    assert told(ports) == []


def test_what_is_not_there_is_not_handed_over(ports: Ports) -> None:
    with pytest.raises(Refused) as refused:
        hand_over(ports, "projects/acme/lab/none", ADA, 60)
    assert refused.value.code == "no_secret"
    assert told(ports) == []


def test_while_custody_is_away_nothing_is_spent(ports: Ports) -> None:
    given = hand_over(ports, PATH, ADA, 60)
    assert isinstance(ports.secrets, FakeSecrets)
    ports.secrets.failure = Transient("custody_sealed", "it is sealed")
    with pytest.raises(Transient, match="it is sealed"):
        take(ports, given.token, BOB)
    ports.secrets.failure = None
    assert take(ports, given.token, BOB).reveal() == VALUE
    assert alarms(ports.store, ports.clock.now_ms()) == []


def test_what_is_printed_is_told(ports: Ports) -> None:
    told_shown(ports, PATH, ADA)
    assert told(ports) == [("local/ada", "secrets.value.shown", PATH, "done", "")]


def test_alarms_are_found_behind_many_rows(ports: Ports) -> None:
    now_ms = ports.clock.now_ms()
    row = AuditEntry(now_ms, "system", "system", "a.b.c", "x")
    spent = AuditEntry(now_ms, "x", "x", "secrets.wrap.unwrap", PATH, result="wrap_spent")
    ports.store.append_audit([spent, *[row] * 2500, spent])
    assert [one.seq for one in alarms(ports.store, now_ms)] == [1, 2502]


def test_no_log_shows_one(ports: Ports) -> None:
    given = hand_over(ports, PATH, ADA, 60).token
    line = mask_secrets(None, "info", {"event": f"it is {given.reveal()}, really"})
    assert line == {"event": "it is ***, really"}
