"""Asks a control plane for publish and pull intents. No token or credential is in an error."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from reconciler.adapters.ask import Asking, ask
from reconciler.core.transfers import PublishWish, PullWish
from reconciler.errors import Refused, Transient
from reconciler.ports import Secret

PATH = "/v1/intents"
_INTENT = Asking(
    what="a credential",
    in_the_clear="intent_in_the_clear",
    no_answer="intent_not_answered",
    no_answer_hint="is it reachable from here? gpuaas intent list says what came of it",
    odd="intent_not_answered",
)


@dataclass(frozen=True)
class RemoteIntents:
    """Documents as the API answers them. Refused by its own codes."""

    server: str
    token: Secret | None
    timeout_s: float

    def publish(self, wish: PublishWish) -> Mapping[str, Any]:
        wanted = asdict(wish)
        kind = wanted.pop("content")
        return self._ask("POST", f"{PATH}/publish", {**wanted, "kind": kind})

    def pull(self, wish: PullWish) -> Mapping[str, Any]:
        return self._ask("POST", f"{PATH}/pull", asdict(wish))

    def complete(self, transfer_id: str, digest: str) -> Mapping[str, Any]:
        return self._ask("POST", f"{PATH}/{transfer_id}/complete", {"digest": digest})

    def show(self, transfer_id: str) -> Mapping[str, Any]:
        return self._ask("GET", f"{PATH}/{transfer_id}")

    def listed(self, project: str) -> Mapping[str, Any]:
        return self._ask("GET", PATH, query={"project": project} if project else None)

    def close(self, transfer_id: str) -> Mapping[str, Any]:
        return self._ask("DELETE", f"{PATH}/{transfer_id}")

    def _ask(
        self,
        method: str,
        path: str,
        wanted: Mapping[str, Any] | None = None,
        query: Mapping[str, str] | None = None,
    ) -> Mapping[str, Any]:
        answer = ask(
            self.server,
            path,
            _INTENT,
            self.timeout_s,
            method=method,
            token=self.token,
            as_json=wanted,
            query=query,
        )
        if answer.status in (200, 201) and answer.document:
            return answer.document
        code = answer.code or "intent_not_answered"
        message = answer.message or f"it answered {answer.status}"
        if answer.may_pass:
            raise Transient(code, message, where=answer.where)
        hint = "get a token with gpuaas token" if answer.status == 401 else ""
        raise Refused(code, message, where=answer.where, hint=hint)
