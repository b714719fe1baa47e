"""One envelope for every failure: {"error": {"code", "message", "correlation_id"}}.

Rules:
- Every answer carries X-Correlation-Id, the caller's own when it is well-formed; every failure is
  logged with it.
- A failure says what the caller did or must wait for; it never shows our insides.
"""

from __future__ import annotations

import asyncio
import math
import re
import uuid
from collections.abc import Mapping

import structlog
from pydantic import ValidationError
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, ExceptionHandler, Message, Receive, Scope, Send

from reconciler.errors import GpuaasError, Transient

CORRELATION_HEADER = "X-Correlation-Id"
_CORRELATION_ID = re.compile(r"[A-Za-z0-9][-_.A-Za-z0-9]{0,63}")
_HTTP_CODES = {404: "not_found", 405: "method_not_allowed"}
_HTTP_MESSAGES = {404: "there is nothing at this path", 405: "this path does not take the method"}

log = structlog.get_logger(__name__)


class ApiError(Exception):
    """An answer that is a refusal: HTTP status, stable code, message for people."""

    def __init__(
        self, status: int, code: str, message: str, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(f"{code}: {message}")
        self.status = status
        self.code = code
        self.message = message
        self.headers = dict(headers or {})


async def read_body(request: Request, bytes_max: int, timeout_s: float) -> bytes:
    """The whole body; ApiError 413 as soon as it is too large, however it is sent; 408 if slow."""
    try:
        async with asyncio.timeout(timeout_s):
            return await _read_body(request, bytes_max)
    except TimeoutError:
        headers = {"Connection": "close"}
        message = f"the body was not sent within {timeout_s:g} s"
        raise ApiError(408, "too_slow", message, headers) from None


async def _read_body(request: Request, bytes_max: int) -> bytes:
    too_large = ApiError(413, "too_large", f"the body is larger than {bytes_max} bytes")
    declared = request.headers.get("content-length", "0")
    if declared.isdecimal() and int(declared[:20]) > bytes_max:
        raise too_large
    chunks = bytearray()
    async for chunk in request.stream():
        chunks += chunk
        if len(chunks) > bytes_max:
            raise too_large
    return bytes(chunks)


def first_problem(error: ValidationError) -> str:
    """Where a message is wrong and how, without repeating what was sent."""
    problem = error.errors(include_url=False, include_input=False, include_context=False)[0]
    where = ".".join(str(part) for part in problem["loc"])
    return f"{where}: {problem['msg']}" if where else problem["msg"]


class CorrelationMiddleware:
    """Names each request, and turns what nobody foresaw into a 500 that shows only that name."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        correlation_id = _correlation_id(scope)
        scope.setdefault("state", {})["correlation_id"] = correlation_id
        started = False

        async def send_named(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                headers = MutableHeaders(scope=message)
                headers[CORRELATION_HEADER] = correlation_id
                headers["Cache-Control"] = "no-store"
                headers["X-Content-Type-Options"] = "nosniff"
            await send(message)

        try:
            await self._app(scope, receive, send_named)
        except ClientDisconnect:
            log.info("client_gone", correlation_id=correlation_id, path=scope["path"])
        except Exception:
            log.exception("request_failed", correlation_id=correlation_id, path=scope["path"])
            if started:
                raise
            answer = _envelope(500, "internal", "the control plane failed", correlation_id)
            await answer(scope, receive, send_named)


def exception_handlers() -> dict[type[Exception], ExceptionHandler]:
    """For Starlette: what each family of exceptions answers."""
    return {ApiError: _on_api_error, HTTPException: _on_http, GpuaasError: _on_port_error}


async def _on_api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return _answer(request, error.status, error.code, error.message, error.headers)


async def _on_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    status = error.status_code
    code = _HTTP_CODES.get(status, "http_error")
    message = _HTTP_MESSAGES.get(status, error.detail)
    return _answer(request, status, code, message, error.headers)


async def _on_port_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, GpuaasError)
    headers = {}
    if isinstance(error, Transient):
        headers["Retry-After"] = str(math.ceil(error.retry_after_s))
    message = f"{error.message} ({error.hint})" if error.hint else error.message
    return _answer(request, 503, error.code, message, headers)


def _answer(
    request: Request, status: int, code: str, message: str, headers: Mapping[str, str] | None
) -> Response:
    correlation_id = request.state.correlation_id
    write = log.warning if status >= 500 else log.info
    write(
        "request_refused",
        correlation_id=correlation_id,
        path=request.url.path,
        status=status,
        code=code,
        reason=message,
    )
    return _envelope(status, code, message, correlation_id, headers)


def _envelope(
    status: int,
    code: str,
    message: str,
    correlation_id: str,
    headers: Mapping[str, str] | None = None,
) -> Response:
    error = {"code": code, "message": message, "correlation_id": correlation_id}
    return JSONResponse({"error": error}, status_code=status, headers=headers)


def _correlation_id(scope: Scope) -> str:
    given = Headers(scope=scope).get(CORRELATION_HEADER, "")
    return given if _CORRELATION_ID.fullmatch(given) else uuid.uuid4().hex
