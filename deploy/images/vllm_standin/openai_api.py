"""The routes of vLLM's server that clients and operators use, in the shapes that it gives them."""

from __future__ import annotations

import hmac
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from deploy.images.plain.http_app import METRICS_TEXT, Answer, App, Failure, Request
from deploy.images.vllm_standin.arguments import NAME
from deploy.images.vllm_standin.engine import Engine, reply_to, tokens_of

OWNER = "vllm-standin"
COMPLETION_TOKENS_USUAL = 16
EVENTS = "text/event-stream; charset=utf-8"
_TYPES = {400: "BadRequestError", 401: "AuthenticationError", 404: "NotFoundError",
          405: "BadRequestError", 413: "BadRequestError"}  # fmt: skip


def app(engine: Engine, api_keys: Sequence[str]) -> App:
    """`api_keys`: what is let in below /v1; none: everybody is."""

    def admit(request: Request) -> None:
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        known = [hmac.compare_digest(given.encode(), key.encode()) for key in api_keys]
        let_in = scheme.lower() == "bearer" and any(known)
        if api_keys and request.path.startswith("/v1") and not let_in:
            raise Failure(401, "Unauthorized")

    routes = Routes(engine)
    return App(
        {
            ("GET", "/health"): lambda _: Answer(),
            ("GET", "/version"): lambda _: Answer.json({"version": NAME}),
            ("GET", "/metrics"): lambda _: Answer(engine.metrics.page(), 200, METRICS_TEXT),
            ("GET", "/v1/models"): routes.models,
            ("POST", "/v1/completions"): routes.completions,
            ("POST", "/v1/chat/completions"): routes.chat,
        },
        failed,
        admit,
    )


def failed(failure: Failure) -> Answer:
    """In OpenAI's shape."""
    kind = _TYPES.get(failure.status, "InternalServerError")
    error = {"message": failure.message, "type": kind, "param": None, "code": failure.status}
    return Answer.json({"error": error}, failure.status)


@dataclass(frozen=True)
class _Asked:
    """One request for a completion, looked through."""

    model: str
    prompt: str
    tokens_max: int
    stream: bool
    usage_wanted: bool

    def usage(self, generated: int) -> dict[str, int]:
        prompt = len(tokens_of(self.prompt))
        return {
            "prompt_tokens": prompt,
            "total_tokens": prompt + generated,
            "completion_tokens": generated,
        }

    def finish(self) -> str:
        return "stop" if len(reply_to(self.prompt)) <= self.tokens_max else "length"


class Routes:
    """Each answers one route."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._created = int(time.time())

    def models(self, _: Request) -> Answer:
        settings = self._engine.settings
        data = [
            {
                "id": name,
                "object": "model",
                "created": self._created,
                "owned_by": OWNER,
                "root": settings.model,
                "parent": None,
                "max_model_len": settings.max_model_len,
            }
            for name in settings.names
        ]
        return Answer.json({"object": "list", "data": data})

    def completions(self, request: Request) -> Answer:
        document = request.json()
        prompt = document.get("prompt")
        if not isinstance(prompt, str):
            raise Failure(400, "prompt has to be a string; this stand-in takes no lists")
        asked = self._asked(document, prompt, "max_tokens", COMPLETION_TOKENS_USUAL)
        head = self._head("cmpl-", "text_completion", asked)

        def part(text: str | None, finish: str | None) -> dict[str, Any]:
            return {"index": 0, "text": text or "", "logprobs": None, "finish_reason": finish}

        if asked.stream:
            return self._streamed(asked, head, part, opening=None)
        text, usage = self._whole(asked)
        return Answer.json({**head, "choices": [part(text, asked.finish())], "usage": usage})

    def chat(self, request: Request) -> Answer:
        document = request.json()
        prompt = _conversation(document.get("messages"))
        limit = "max_completion_tokens" if "max_completion_tokens" in document else "max_tokens"
        asked = self._asked(document, prompt, limit, self._engine.settings.max_model_len)
        if asked.stream:
            head = self._head("chatcmpl-", "chat.completion.chunk", asked)

            def part(text: str | None, finish: str | None) -> dict[str, Any]:
                delta = {} if text is None else {"content": text}
                return {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}

            opening = part("", None)
            opening["delta"]["role"] = "assistant"
            return self._streamed(asked, head, part, opening)
        text, usage = self._whole(asked)
        message = {"role": "assistant", "content": text}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": asked.finish()}
        head = self._head("chatcmpl-", "chat.completion", asked)
        return Answer.json({**head, "choices": [choice], "usage": usage})

    def _asked(self, document: dict[str, Any], prompt: str, limit: str, usual: int) -> _Asked:
        settings = self._engine.settings
        model = document.get("model", settings.names[0])
        if model not in settings.names:
            raise Failure(404, f"The model `{model}` does not exist.")
        room = settings.max_model_len - len(tokens_of(prompt))
        wanted = document.get(limit)
        if wanted is not None and (not isinstance(wanted, int) or wanted < 1):
            raise Failure(400, f"{limit} must be at least 1, got {wanted}.")
        if room < (wanted or 1):
            raise Failure(
                400,
                f"This model's maximum context length is {settings.max_model_len} tokens. However, "
                f"you requested {wanted or 1} output tokens and your prompt contains "
                f"{settings.max_model_len - room} input tokens.",
            )
        options = document.get("stream_options") or {}
        return _Asked(
            model,
            prompt,
            min(wanted or usual, room),
            bool(document.get("stream", False)),
            bool(options.get("include_usage", False)),
        )

    def _head(self, prefix: str, kind: str, asked: _Asked) -> dict[str, Any]:
        name = f"{prefix}{uuid4().hex}"
        return {"id": name, "object": kind, "created": int(time.time()), "model": asked.model}

    def _whole(self, asked: _Asked) -> tuple[str, dict[str, int]]:
        tokens = list(self._engine.generate(asked.prompt, asked.tokens_max))
        return "".join(tokens), asked.usage(len(tokens))

    def _streamed(
        self,
        asked: _Asked,
        head: dict[str, Any],
        part: Callable[[str | None, str | None], dict[str, Any]],
        opening: dict[str, Any] | None,
    ) -> Answer:
        def events() -> Iterator[bytes]:
            generated = 0
            if opening is not None:
                yield _event({**head, "choices": [opening]})
            for token in self._engine.generate(asked.prompt, asked.tokens_max):
                generated += 1
                yield _event({**head, "choices": [part(token, None)]})
            yield _event({**head, "choices": [part(None, asked.finish())]})
            if asked.usage_wanted:
                yield _event({**head, "choices": [], "usage": asked.usage(generated)})
            yield b"data: [DONE]\n\n"

        return Answer(events(), 200, EVENTS)


def _conversation(messages: object) -> str:
    if not isinstance(messages, list) or not messages:
        raise Failure(400, "messages has to be a list that is not empty")
    said = []
    for message in messages:
        content = message.get("content") if isinstance(message, dict) else None
        if isinstance(content, list):
            parts = [one.get("text", "") for one in content if isinstance(one, dict)]
            content = " ".join(str(part) for part in parts)
        if not isinstance(content, str):
            raise Failure(400, "each message has to have a role and content")
        said.append(content)
    return "\n".join(said)


def _event(document: object) -> bytes:
    return f"data: {json.dumps(document)}\n\n".encode()
