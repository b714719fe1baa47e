"""POST /v1/unwrap over HTTP: once, to whoever has the token, in no log, and not for ever."""

from __future__ import annotations

import base64
import json

import httpx
import pytest
from structlog.testing import capture_logs

from reconciler.core.custody.paths import WRAP_MAC_KEY
from reconciler.core.times import time_text
from reconciler.custody.wrap_mac import KEY_FRESH_MS, WrapMac
from reconciler.errors import Transient
from reconciler.ports import Secret, Wrapped
from reconciler.use_cases.handover import read_token, token_for
from tests.fakes.clock import FakeClock
from tests.fakes.secrets import FakeSecrets
from tests.server.harness import NOW_MS, Plane, refusal

PATH, VALUE = "ssh/acme/lab/v1", "hunter2-hunter2"
in_memory = pytest.mark.parametrize("plane", ["memory"], indirect=True)


def handed(plane: Plane, path: str = PATH) -> str:
    plane.keys.write(path, Secret(VALUE))
    return token_for(macs_of(plane), path, plane.keys.wrap(path, 60)).reveal()


def macs_of(plane: Plane) -> WrapMac:
    return WrapMac(plane.keys, plane.clock)


def unwrap(plane: Plane, token: str) -> httpx.Response:
    return plane.client.post("/v1/unwrap", json={"token": token})


def forged(number: int, path: str = PATH) -> str:
    """What somebody makes up who has never seen the key, for a secret that there is."""
    macs = WrapMac(FakeSecrets(), FakeClock())
    return token_for(macs, path, Wrapped(Secret(f"hvs.{number}"), NOW_MS + 60_000)).reveal()


def told(plane: Plane) -> list[tuple[str, str, str]]:
    rows = (row.entry for row in plane.store.audit())
    return [(it.actor, it.object, it.result) for it in rows]


def alarms_counted(plane: Plane, reason: str) -> float:
    start = f'gpuaas_wrap_alarms_total{{reason="{reason}"}} '
    lines = plane.client.get("/metrics").text.splitlines()
    return next(float(line.removeprefix(start)) for line in lines if line.startswith(start))


def test_once_and_then_it_is_an_alarm(plane: Plane) -> None:
    token = handed(plane)
    with capture_logs() as lines:
        first, second = unwrap(plane, token), unwrap(plane, token)
    assert (first.status_code, first.json()) == (200, {"value": VALUE})
    assert first.headers["Cache-Control"] == "no-store"
    status, code, _ = refusal(second)
    assert (status, code) == (410, "wrap_spent")
    assert told(plane) == [("unproved", PATH, "done"), ("unproved", PATH, "wrap_spent")]
    assert plane.store.audit()[-1].entry.reason == (
        "somebody has unwrapped it already, or it is too old, it was good until "
        f"{time_text(NOW_MS + 60_000)}, from 127.0.0.1"
    )
    assert alarms_counted(plane, "wrap_spent") == 1
    assert [line["event"] for line in lines] == ["wrap_alarm", "request_refused"]
    said = json.dumps([*lines, *map(str, plane.store.audit())], default=str) + second.text
    inner = read_token(Secret(token)).token.reveal()
    assert [word for word in (VALUE, token, inner) if word in said] == []


@in_memory
def test_one_that_custody_says_holds_another_secret(plane: Plane) -> None:
    other = "projects/acme/lab/x"
    plane.keys.write(other, Secret(VALUE))
    wrapped = plane.keys.wrap(other, 60)
    token = token_for(macs_of(plane), PATH, wrapped).reveal()
    assert refusal(unwrap(plane, token))[:2] == (403, "wrap_foreign")
    assert alarms_counted(plane, "wrap_foreign") == 1
    good = token_for(macs_of(plane), other, wrapped).reveal()
    assert unwrap(plane, good).status_code == 200


@in_memory
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"null",
        b"{}",
        b'"token"',
        b'{"token": 1}',
        b'{"token": "x", "path": "y"}',
        b"[" * 5000,
        b'{"token": "\xff"}',
    ],
)
def test_a_body_that_is_none(plane: Plane, body: bytes) -> None:
    answer = plane.client.post("/v1/unwrap", content=body)
    expected = 'expected {"token": "…"} and nothing else'
    if len(body) > 4096 + 64:
        assert refusal(answer) == (413, "too_large", "the body is larger than 4160 bytes")
    else:
        assert refusal(answer) == (400, "invalid_message", expected)


NOT_OURS = (
    400,
    "handover_malformed",
    "it was not handed out by this control plane, or was changed on the way",
)


@in_memory
def test_what_is_no_token_is_no_alarm(plane: Plane) -> None:
    said = (400, "handover_malformed", "this is no hand-over token")
    assert refusal(unwrap(plane, "guess")) == said
    said = (400, "handover_malformed", "it is for something that is not handed to people")
    for path in ("joins/node-a/1", "handover/mac-key", "pki/root"):
        assert refusal(unwrap(plane, forged(1, path))) == said
    assert told(plane) == []
    assert alarms_counted(plane, "wrap_spent") == 0


@in_memory
def test_nobody_raises_an_alarm_without_a_token_of_ours(plane: Plane) -> None:
    """Attempted: for a secret of others, with a token made up, and with parts of real ones."""
    token = handed(plane)
    words = json.loads(base64.urlsafe_b64decode(token.partition(".")[2] + "=="))
    for changed in ({0: "projects/acme/lab/x"}, {1: "hvs.y"}, {2: words[2] + 1}, {3: "0" * 64}):
        made = json.dumps([changed.get(at, word) for at, word in enumerate(words)]).encode()
        text = "gpuaas-h1." + base64.urlsafe_b64encode(made).decode().rstrip("=")
        assert refusal(unwrap(plane, text)) == NOT_OURS
    assert refusal(unwrap(plane, forged(1))) == NOT_OURS
    assert told(plane) == []
    assert alarms_counted(plane, "wrap_spent") == alarms_counted(plane, "wrap_foreign") == 0
    assert unwrap(plane, token).json() == {"value": VALUE}


@in_memory
def test_who_is_refused_often_has_to_wait_and_nobody_else(plane: Plane) -> None:
    """All of them come from one address, as they do behind a proxy."""
    token, spent = handed(plane), handed(plane)
    assert unwrap(plane, spent).status_code == 200
    statuses = [unwrap(plane, forged(number)).status_code for number in range(12)]
    assert statuses == [400] * 10 + [429] * 2
    answer = unwrap(plane, "guess")
    assert refusal(answer)[1:] == (
        "rate_limited", "too many refused tries from this address: wait, then retry",
    )  # fmt: skip
    assert answer.headers["Retry-After"] == "6"
    assert unwrap(plane, token).json() == {"value": VALUE}
    assert unwrap(plane, spent).status_code == 410
    assert told(plane)[-1] == ("unproved", PATH, "wrap_spent")
    plane.clock.ms += 6_000
    assert unwrap(plane, "guess").status_code == 400


@in_memory
@pytest.mark.parametrize("noise", ["\ud800", "gpuaas-h1.x", "lone surrogate inside"])
def test_noise_of_any_kind_is_counted(plane: Plane, noise: str) -> None:
    """A token with half a character in it is refused as any other is."""
    if noise == "lone surrogate inside":
        said = b'["webhook/git","\\ud800x",1,"' + b"0" * 64 + b'"]'
        noise = "gpuaas-h1." + base64.urlsafe_b64encode(said).decode().rstrip("=")
    body = json.dumps({"token": noise})
    statuses = [plane.client.post("/v1/unwrap", content=body).status_code for _ in range(12)]
    assert statuses == [400] * 10 + [429] * 2


@in_memory
def test_no_alarm_mutes_that_of_another_secret(plane: Plane) -> None:
    """Who has a spent token tries it for ever: its own tries are limited, and no others."""
    tried, other = handed(plane), handed(plane)
    assert [unwrap(plane, token).status_code for token in (tried, other)] == [200, 200]
    statuses = [unwrap(plane, tried).status_code for _ in range(60)]
    assert statuses == [410] * 10 + [429] * 50
    before = len(told(plane))
    assert unwrap(plane, other).status_code == 410
    assert told(plane)[before:] == [("unproved", PATH, "wrap_spent")]
    assert alarms_counted(plane, "wrap_spent") == 11
    answer = unwrap(plane, tried)
    assert refusal(answer)[2] == "too many tries of this token: wait, then retry"
    plane.clock.ms += 60_000
    assert unwrap(plane, tried).status_code == 410


@in_memory
def test_noise_is_told_apart_while_custody_is_away(plane: Plane) -> None:
    token = handed(plane)
    assert unwrap(plane, "gpuaas-h1.x").status_code == 400
    assert refusal(unwrap(plane, forged(1))) == NOT_OURS
    plane.keys.failure = Transient("custody_sealed", "it is sealed")
    for wait_ms in (0, KEY_FRESH_MS):
        plane.clock.ms += wait_ms
        assert refusal(unwrap(plane, forged(2))) == NOT_OURS
        assert refusal(unwrap(plane, token))[:2] == (503, "custody_sealed")


@in_memory
def test_with_another_key_all_that_was_handed_out_is_void(plane: Plane) -> None:
    """Deleting the key is how an operator takes everything back; no restart is needed."""
    token = handed(plane)
    assert refusal(unwrap(plane, forged(1))) == NOT_OURS
    plane.keys.delete(WRAP_MAC_KEY)
    plane.clock.ms += KEY_FRESH_MS
    assert refusal(unwrap(plane, token)) == NOT_OURS
    assert unwrap(plane, handed(plane)).json() == {"value": VALUE}


@in_memory
def test_custody_that_is_away_spends_nothing_and_is_nobodys_fault(plane: Plane) -> None:
    token = handed(plane)
    plane.keys.failure = Transient("custody_sealed", "it is sealed", retry_after_s=5)
    for _ in range(12):
        assert refusal(unwrap(plane, token)) == (503, "custody_sealed", "it is sealed")
    plane.keys.failure = None
    assert unwrap(plane, token).json() == {"value": VALUE}
