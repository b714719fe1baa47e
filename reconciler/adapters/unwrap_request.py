"""Asks a control plane for what was handed over. A request whose answer is lost may have used up
the token, and is not made again.
"""

from __future__ import annotations

from reconciler.adapters.ask import Asking, ask
from reconciler.errors import Refused, Transient
from reconciler.ports import Secret

UNWRAP_PATH = "/v1/unwrap"
_SECRET = Asking(
    what="a secret",
    in_the_clear="secret_in_the_clear",
    no_answer="not_unwrapped",
    no_answer_hint=(
        "is it reachable from here? The token may be used up: try again, or ask for a new one"
    ),
    odd="not_unwrapped",
)


def request_unwrap(server: str, token: Secret, timeout_s: float) -> Secret:
    """`server` is the address of the control plane. Refused by its own codes (wrap_spent, …)."""
    answer = ask(server, UNWRAP_PATH, _SECRET, timeout_s, as_json={"token": token.reveal()})
    if answer.status == 200:
        value = answer.document.get("value")
        if not isinstance(value, str):
            raise answer.odd("something that is no secret")
        return Secret(value)
    code = answer.code or "not_unwrapped"
    message = answer.message or f"it answered {answer.status}"
    if answer.may_pass:
        raise Transient(code, message, where=answer.where)
    raise Refused(code, message, where=answer.where)
