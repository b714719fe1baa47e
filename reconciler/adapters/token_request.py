"""Asks a control plane for a bearer token. Neither assertion nor token is in an error."""

from __future__ import annotations

from dataclasses import dataclass

from reconciler.adapters.ask import Answered, Asking, ask
from reconciler.core.authority.accounts import TOKEN_PATH
from reconciler.errors import Refused, Transient
from reconciler.ports import Secret

GRANT_TYPE = "urn:ietf:params:oauth:grant-type:jwt-bearer"
_TOKEN = Asking(
    what="a token",
    in_the_clear="token_in_the_clear",
    no_answer="token_not_fetched",
    no_answer_hint="is the control plane reachable from here?",
    odd="token_refused",
)


@dataclass(frozen=True)
class Token:
    value: Secret
    lasts_s: int
    scope: tuple[str, ...]


def request_token(
    server: str, assertion: Secret, scope: tuple[str, ...], timeout_s: float
) -> Token:
    """`server` is the address of the control plane. Refused token_refused, Transient."""
    fields = {"grant_type": GRANT_TYPE, "assertion": assertion.reveal()}
    if scope:
        fields["scope"] = " ".join(scope)
    answer = ask(server, TOKEN_PATH, _TOKEN, timeout_s, as_form=fields)
    if answer.status != 200:
        raise _refused(answer)
    found = answer.document
    value, lasts_s = found.get("access_token"), found.get("expires_in")
    if not isinstance(value, str) or not value or not isinstance(lasts_s, int):
        raise answer.odd("something that is no token")
    return Token(Secret(value), lasts_s, tuple(str(found.get("scope", "")).split()))


def _refused(answer: Answered) -> Refused | Transient:
    code = answer.code or str(answer.status)
    text = f"{code}: {answer.message}" if answer.message else f"it answered {code}"
    if answer.may_pass:
        return Transient("token_not_fetched", text, where=answer.where)
    hint = "is the account accepted, enabled, and the key in its manifest under that id?"
    shown = hint if answer.status == 401 else ""
    return Refused("token_refused", text, where=answer.where, hint=shown)
