"""Who somebody is, what he may do, and service accounts, for people and for machines. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from reconciler.core.authority.answers import Answer, Held, Who
from reconciler.core.authority.facts import Actor, RefusedChange
from reconciler.core.authority.grants import FOREVER_MS
from reconciler.core.authority.public_key import PublicKey
from reconciler.core.desired import StateObject
from reconciler.core.kinds.keys import Key
from reconciler.core.kinds.service_account import ServiceAccount
from reconciler.core.printable import printable
from reconciler.core.problems import Problem
from reconciler.core.times import parse_time_ms, time_text
from reconciler.views.changes import Line

WHO_FORMAT = "gpuaas.dev/whoami/v1"
CAN_FORMAT = "gpuaas.dev/can/v1"
_OTHERS_SHOWN_MAX = 8
_PERMISSIONS_SHOWN_MAX = 6


# --- who -----------------------------------------------------------------------------------------


def who_lines(who: Who, signed: str, at_ms: int) -> Iterator[Line]:
    """`signed` says with what, such as `SHA256:... (user.signingKey)`."""
    actor = who.actor
    via = f", vouched for by {actor.via}" if actor.via else ""
    yield Line(f"{actor}  {printable(who.display_name)}".rstrip() + via, "title")
    yield Line(f"  {signed}", "dim")
    if who.disabled:
        yield Line(f"  {who.object} is disabled: nothing that it signs counts", "problem")
    for key in who.keys:
        mark = "  ← this one" if key.id == actor.key_id else ""
        state = key_state(key, at_ms)
        yield Line(f"  key {key.id}  {state}{mark}", "plain" if state.startswith("va") else "dim")
    if not who.holds:
        yield Line("  may do nothing: no RoleBinding names it", "problem")
    yield from (Line(f"  may {_held_text(held)}") for held in who.holds)


def _held_text(held: Held) -> str:
    if held.everything:
        what = "everything"
    elif len(held.permissions) > _PERMISSIONS_SHOWN_MAX:
        more = len(held.permissions) - _PERMISSIONS_SHOWN_MAX + 1
        shown = ", ".join(held.permissions[: _PERMISSIONS_SHOWN_MAX - 1])
        what = f"{shown} and {more} more"
    else:
        what = ", ".join(held.permissions)
    where = "everywhere" if held.scope == "platform" else f"in {held.scope}"
    until = f", until {time_text(held.until_ms)}" if held.until_ms < FOREVER_MS else ""
    return f"{what} {where}: {held.why}{until}"


def who_document(who: Who, key_id: str, at_ms: int) -> dict[str, Any]:
    actor = who.actor
    return {
        "format": WHO_FORMAT,
        "actor": str(actor),
        "type": actor.type,
        "name": actor.name,
        "via": actor.via or None,
        "object": str(who.object),
        "display_name": who.display_name,
        "disabled": who.disabled,
        "signed_with": key_id,
        "keys": [_key_document(key, at_ms) for key in who.keys],
        "holds": [
            {
                "scope": held.scope,
                "why": held.why,
                "permissions": list(held.permissions),
                "until": time_text(held.until_ms) if held.until_ms < FOREVER_MS else None,
            }
            for held in who.holds
        ],
    }


def nobody_document(problem: Problem, key_id: str) -> dict[str, Any]:
    return {
        "format": WHO_FORMAT,
        "actor": None,
        "signed_with": key_id,
        "code": problem.code,
        "message": problem.message,
        "hint": problem.hint,
    }


def identity_lines(key: PublicKey) -> Iterator[Line]:
    """What an admin adds for whoever holds the key."""
    yield Line("To be let in, have somebody with platform.iam.edit add to platform/iam/:", "title")
    text = ["kind: Identity", "metadata:", "  name: NAME", "spec:", "  type: user"]
    text += ["  display_name: YOUR NAME", "  keys:", "    - id: NAME-1", f"      type: {key.type}"]
    if key.type == "ssh":
        text.append(f"      public_key: {key.text}")
    else:
        text.append(f'      fingerprint: "{key.key_id}"')
        text += ["      public_key: |", *(f"        {one}" for one in key.text.splitlines())]
    yield Line("  apiVersion: gpuaas.dev/v1")
    yield from (Line(f"  {line}".rstrip()) for line in text)
    yield Line("and a RoleBinding that names it.")


# --- may -----------------------------------------------------------------------------------------


def answer_lines(answers: Sequence[Answer]) -> Iterator[Line]:
    """One line each that may be; those that may not with the reason and who can."""
    for one in answers:
        if one.refusal is None:
            yield Line(f"yes  {printable(one.asked)}", "good")
            continue
        yield Line(f"no   {printable(one.asked)}", "problem")
        yield Line(f"     {one.refusal.code}: {printable(one.refusal.message)}")
        if one.refusal.hint:
            yield Line(f"     {printable(one.refusal.hint)}", "dim")
        yield Line(f"     who can: {_others(one)}", "dim")
    if len(answers) > 1:
        refused = sum(not one.may for one in answers)
        told = f"{len(answers)} objects, {refused} of them not by {answers[0].actor}"
        yield Line(told, "problem" if refused else "good")


def _others(one: Answer) -> str:
    more = len(one.others) - _OTHERS_SHOWN_MAX
    shown = ", ".join(one.others[:_OTHERS_SHOWN_MAX])
    return (shown or "nobody") + (f" and {more} more" if more > 0 else "")


def answers_document(actor: Actor, answers: Sequence[Answer]) -> dict[str, Any]:
    return {
        "format": CAN_FORMAT,
        "actor": str(actor),
        "may": all(one.may for one in answers),
        "answers": [
            {
                "asked": one.asked,
                "may": one.may,
                "object": str(one.ref) if one.ref else None,
                "code": one.refusal.code if one.refusal else None,
                "message": one.refusal.message if one.refusal else None,
                "hint": one.refusal.hint if one.refusal else None,
                "who_can": list(one.others),
            }
            for one in answers
        ],
    }


# --- changes that were refused -------------------------------------------------------------------


def by_text(by: str) -> str:
    """Who gave an accepted form; nothing where signatures are not asked for."""
    return f", signed by {by}" if by else ""


def refused_lines(change: RefusedChange) -> Iterator[Line]:
    """Who wanted what, why that does not count, and what there is to do."""
    counts = "what counts instead is its form before" if change.form_json else "it does not exist"
    commit = change.revision[:12]
    told = f"the change of {change.subject} in {commit} by {change.actor} does not count: {counts}"
    yield Line(f"  ! {printable(told)}", "problem")
    yield Line(f"    {change.code}: {printable(change.message)}")
    if change.hint:
        yield Line(f"    {printable(change.hint)}", "dim")
    approve = f"Approves: {change.subject}"
    yield Line(f"    who may can agree to it in a signed commit with the line `{approve}`", "dim")


def refused_document(change: RefusedChange | None) -> dict[str, Any] | None:
    if change is None:
        return None
    return {
        "commit": change.revision,
        "actor": change.actor,
        "code": change.code,
        "message": change.message,
        "hint": change.hint,
        "path": change.path,
        "counts_instead": change.form_json is not None,
    }


# --- service accounts ----------------------------------------------------------------------------


def account_row(found: StateObject, at_ms: int) -> tuple[str, str, str]:
    """Name, roles and keys of a service account."""
    assert isinstance(found.manifest, ServiceAccount)
    spec = found.manifest.spec
    disabled = " (disabled)" if spec.disabled else ""
    keys = ", ".join(f"{key.id} {key_state(key, at_ms)}" for key in spec.public_keys)
    return "/".join(found.ref.path), ", ".join(spec.roles) + disabled, keys or "no key"


def account_document(found: StateObject, at_ms: int) -> dict[str, Any]:
    assert isinstance(found.manifest, ServiceAccount)
    spec = found.manifest.spec
    return {
        "account": "/".join(found.ref.path),
        "path": found.path,
        "display_name": spec.display_name,
        "roles": list(spec.roles),
        "disabled": spec.disabled,
        "token_ttl_s": spec.token_ttl_s,
        "keys": [_key_document(key, at_ms) for key in spec.public_keys],
    }


def _key_document(key: Key, at_ms: int) -> dict[str, Any]:
    return {
        "id": key.id,
        "state": key_state(key, at_ms),
        "valid_from": key.valid_from,
        "valid_until": key.valid_until,
        "revoked": key.revoked is not None,
    }


def key_state(key: Key, at_ms: int) -> str:
    """`valid`, `valid until 2027-06-30T00:00:00Z`, `expired 2025-…`, `revoked: …`."""
    if key.revoked is not None:
        return f"revoked: {printable(key.revoked.reason)}"
    first, last = _ms(key.valid_from), _ms(key.valid_until)
    if first is not None and at_ms < first:
        return f"not valid before {key.valid_from}"
    if last is not None and at_ms >= last:
        return f"expired {key.valid_until}"
    return f"valid until {key.valid_until}" if key.valid_until else "valid"


def _ms(text: str | None) -> int | None:
    """What is no day of the calendar is told by `gpuaas validate`."""
    try:
        return parse_time_ms(text) if text else None
    except (ValueError, OverflowError):
        return None
