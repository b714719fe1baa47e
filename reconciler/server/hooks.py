"""Webhooks of Git forges: a reason to look at the state repo now, and nothing more.

Rules: the payload is authenticated and then thrown away. What to reconcile comes from Git.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from reconciler.errors import Transient
from reconciler.ports import WEBHOOK_SECRET_PATH, Secret
from reconciler.server.deps import ServerDeps, Threads
from reconciler.server.errors import ApiError, read_body


class Hooks:
    """Routes under /v1/hooks."""

    def __init__(self, deps: ServerDeps, threads: Threads) -> None:
        self._deps = deps
        self._threads = threads
        self._known: Secret | None = None

    def routes(self) -> list[Route]:
        return [Route("/v1/hooks/git", self.git, methods=["POST"])]

    async def git(self, request: Request) -> Response:
        settings = self._deps.settings
        body = await read_body(request, settings.webhook_bytes_max, settings.body_timeout_s)
        secret = await self._threads.run(self._read)
        if secret is None or not secret.reveal():
            raise ApiError(
                503, "webhook_not_configured", f"there is no secret at {WEBHOOK_SECRET_PATH}"
            )
        authenticate(request.headers, body, secret.reveal())
        self._deps.wake("webhook")
        return JSONResponse({"accepted": True}, status_code=202)

    def _read(self) -> Secret | None:
        """The webhook's secret; while custody is away the one it was: no commit waits for a poll
        then, and all that it gets anybody is a pass.
        """
        try:
            self._known = self._deps.secrets.read(WEBHOOK_SECRET_PATH)
        except Transient:
            if self._known is None:
                raise
        return self._known


def authenticate(headers: Mapping[str, str], body: bytes, secret: str) -> None:
    """Raises ApiError 401 unless GitHub, Gitea or GitLab proves to know the secret.

    Every proof that is sent must hold; comparing takes the same time wherever it fails.
    """
    digest = hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()
    expected = {
        "x-hub-signature-256": f"sha256={digest}",
        "x-gitea-signature": digest,
        "x-gitlab-token": secret,
    }
    sent = [name for name in expected if name in headers]
    if not sent:
        raise ApiError(
            401,
            "unsigned_webhook",
            "expected X-Hub-Signature-256, X-Gitea-Signature or X-Gitlab-Token",
        )
    for name in sent:
        if not hmac.compare_digest(headers[name].encode(), expected[name].encode()):
            raise ApiError(401, "bad_signature", f"{name} does not match the webhook's secret")
