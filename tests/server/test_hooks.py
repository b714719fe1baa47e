"""Git webhooks: who may wake the loop."""

from __future__ import annotations

import hashlib
import hmac
import queue

import pytest

from reconciler.errors import Refused, Transient
from reconciler.ports import Secret
from tests.server.harness import WEBHOOK_SECRET, Plane, refusal

HOOK = "/v1/hooks/git"
BODY = b'{"ref": "refs/heads/main"}'


def digest(body: bytes = BODY, secret: str = WEBHOOK_SECRET) -> str:
    return hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()


PROOFS = [
    {"X-Hub-Signature-256": f"sha256={digest()}"},
    {"X-Gitea-Signature": digest()},
    {"X-Gitlab-Token": WEBHOOK_SECRET},
    {"X-Gitea-Signature": digest(), "X-Hub-Signature-256": f"sha256={digest()}"},
]
FORGERIES = [
    ({"X-Hub-Signature-256": f"sha256={digest(b'{}')}"}, "x-hub-signature-256"),
    ({"X-Hub-Signature-256": digest()}, "x-hub-signature-256"),
    ({"X-Hub-Signature-256": ""}, "x-hub-signature-256"),
    ({"X-Gitea-Signature": digest(secret="wrong")}, "x-gitea-signature"),
    ({"X-Gitlab-Token": "wrong"}, "x-gitlab-token"),
    ({"X-Gitlab-Token": "é"}, "x-gitlab-token"),
    ({"X-Gitlab-Token": WEBHOOK_SECRET, "X-Gitea-Signature": "0"}, "x-gitea-signature"),
]


@pytest.mark.parametrize("headers", PROOFS, ids=["github", "gitea", "gitlab", "two"])
def test_a_forge_that_knows_the_secret_wakes_the_loop(
    plane: Plane, headers: dict[str, str]
) -> None:
    answer = plane.client.post(HOOK, content=BODY, headers=headers)
    assert (answer.status_code, answer.json()) == (202, {"accepted": True})
    assert plane.woken.get(timeout=60) == "webhook"


@pytest.mark.parametrize(("headers", "name"), FORGERIES)
def test_a_proof_that_does_not_hold(plane: Plane, headers: dict[str, str], name: str) -> None:
    raw = {key.encode(): value.encode() for key, value in headers.items()}
    answer = plane.client.post(HOOK, content=BODY, headers=raw)
    assert refusal(answer) == (
        401,
        "bad_signature",
        f"{name} does not match the webhook's secret",
    )
    with pytest.raises(queue.Empty):
        plane.woken.get_nowait()


def test_no_proof_at_all(plane: Plane) -> None:
    assert refusal(plane.client.post(HOOK, content=BODY)) == (
        401,
        "unsigned_webhook",
        "expected X-Hub-Signature-256, X-Gitea-Signature or X-Gitlab-Token",
    )


@pytest.mark.parametrize("secret", [None, Secret("")])
def test_no_secret_is_not_an_empty_secret(plane: Plane, secret: Secret | None) -> None:
    plane.keys.secrets = {} if secret is None else {"webhook/git": secret}
    headers = {"X-Gitlab-Token": "", "X-Gitea-Signature": digest(secret="")}
    answer = plane.client.post(HOOK, content=BODY, headers=headers)
    assert refusal(answer) == (
        503,
        "webhook_not_configured",
        "there is no secret at webhook/git",
    )


def test_a_secret_store_that_refuses(plane: Plane) -> None:
    plane.keys.failure = Refused("denied", "may not read", where="/secret/place", hint="ask")
    answer = plane.client.post(HOOK, content=BODY, headers=PROOFS[2])
    assert refusal(answer) == (503, "denied", "may not read (ask)")
    assert "/secret/place" not in answer.text


def test_a_body_that_is_too_large(plane: Plane) -> None:
    body = b"x" * (1024 * 1024 + 1)
    answer = plane.client.post(HOOK, content=body, headers={"X-Gitea-Signature": digest(body)})
    assert refusal(answer) == (413, "too_large", "the body is larger than 1048576 bytes")


def test_while_custody_is_away_the_secret_it_knows_does(plane: Plane) -> None:
    sealed = Transient("custody_sealed", "Vault is sealed", retry_after_s=2)
    plane.keys.failure = sealed
    answer = plane.client.post(HOOK, content=BODY, headers=PROOFS[0])
    assert refusal(answer) == (503, "custody_sealed", "Vault is sealed")
    plane.keys.failure = None
    assert plane.client.post(HOOK, content=BODY, headers=PROOFS[0]).status_code == 202
    plane.keys.failure = sealed
    assert plane.client.post(HOOK, content=BODY, headers=PROOFS[0]).status_code == 202
    forged = plane.client.post(HOOK, content=BODY, headers={"X-Gitlab-Token": "wrong"})
    assert forged.status_code == 401
