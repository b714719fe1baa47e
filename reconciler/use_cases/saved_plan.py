"""A plan on file, to be carried out later exactly as it was read, once, or not at all.

Rules:
- Signed with a key of its own (`PLAN_KEY`): an edited plan, or one of another control plane, is
  refused before anything in it is read.
- Bound to the commit, to what was observed, and to an end. When any of it moved on, the plan is
  refused, and the refusal says what differs.
- Nothing in the file is carried out. Its id is what the control plane is asked for; it makes the
  plan again, and acts only when it comes to the same id.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from node_agent.envelope import EnvelopeRefused, unseal
from reconciler.core.actions import (
    PULL_BLOB,
    Action,
    BlobAction,
    KeyAction,
    action_id,
    blob_action_id,
    blob_subject,
    key_action_id,
)
from reconciler.core.names import ActionId, InstanceKey
from reconciler.core.observed import Known, Seen
from reconciler.core.plan import Plan
from reconciler.core.records import InstanceRecord, Intent, State
from reconciler.core.times import PLAN_LIFETIME_S, time_text
from reconciler.custody import signing
from reconciler.errors import Refused
from reconciler.ports import SecretStore
from reconciler.views.plan import plan_document
from reconciler.views.plan_words import Shown, listed, verb_of

FORMAT = "gpuaas.dev/saved-plan/v1"
PLAN_TYPE = "application/vnd.gpuaas.plan.v1+json"
PLAN_KEY = "plans"
"""The signing key of saved plans, by its name in the SecretStore."""
PLAN_BYTES_MAX = 64 * 1024 * 1024
AWAITING = "awaiting_apply"
"""Why a change is held in manual mode: it is what applying a plan lets through."""
REASON = "plan:"
"""Before a plan's id: the reason for a pass that may carry out this plan."""
_NAMED_MAX = 5
_AGAIN = "make another: gpuaas plan --out FILE"
_KEY = "SigningKey/"
_OF_KEYS = ("rotate", "retire")
_SETTLED = (State.RUNNING, State.FAILED, State.DECOMMISSIONED)


@dataclass(frozen=True)
class SavedAction:
    """One action of a saved plan; `runs` when applying the plan carries it out.

    One on a signing key has no node, and its id says all of it.
    """

    action_id: ActionId
    verb: str
    instance: str
    node: str
    runs: bool

    def __str__(self) -> str:
        return _told(self.verb, self.instance, self.node)


def _told(verb: str, instance: str, node: str) -> str:
    return f"{verb} {instance} on {node}" if node else f"{verb} {instance}"


@dataclass(frozen=True)
class SavedPlan:
    environment: str
    branch: str
    revision: str
    observed: str
    plan_id: str
    created_at_ms: int
    expires_at_ms: int
    actions: tuple[SavedAction, ...]

    @property
    def running(self) -> tuple[SavedAction, ...]:
        """What applying it carries out."""
        return tuple(action for action in self.actions if action.runs)

    @property
    def running_keys(self) -> tuple[str, ...]:
        """The names of the signing keys that it does something about, sorted."""
        return tuple(sorted({_key_of(a)[0] for a in self.running if a.verb in _OF_KEYS}))

    @property
    def reason(self) -> str:
        return REASON + self.plan_id


def runs(action: Action | KeyAction | BlobAction) -> bool:
    """Whether applying the plan carries it out at once; what else holds an action goes on doing so,
    and what was agreed to goes ahead by itself when that ends.
    """
    return action.held is None or action.held.code == AWAITING


def _saved_action(action: Action) -> SavedAction:
    where = str(action.instance), action.node
    return SavedAction(action_id(action), verb_of(action), *where, runs(action))


def _saved_key(action: KeyAction) -> SavedAction:
    return SavedAction(
        ActionId(key_action_id(action)), action.kind, _KEY + action.key, "", runs(action)
    )


def _saved_blob(action: BlobAction) -> SavedAction:
    subject = str(blob_subject(action.node, action.digest))
    return SavedAction(blob_action_id(action), action.kind, subject, action.node, runs(action))


def _key_of(action: SavedAction) -> tuple[str, int]:
    _, name, version = action.action_id.split("/")
    return name, int(version)


def sealed(
    shown: Shown, branch: str, created_at_ms: int, lifetime_s: float, secrets: SecretStore
) -> bytes:
    """The plan as a signed DSSE envelope."""
    document = {
        "format": FORMAT,
        "environment": shown.environment,
        "branch": branch,
        "revision": shown.plan.revision,
        "observed": shown.plan.base,
        "plan_id": shown.plan.plan_id,
        "created_at_ms": created_at_ms,
        "expires_at_ms": created_at_ms + int(lifetime_s * 1000),
        "runs": [
            *(action_id(action) for action in shown.plan.actions if runs(action)),
            *(key_action_id(action) for action in shown.plan.keys if runs(action)),
            *(blob_action_id(action) for action in shown.plan.blobs if runs(action)),
        ],
        "plan": plan_document(shown),
    }
    payload = json.dumps(document, sort_keys=True, separators=(",", ":")).encode()
    envelope = signing.sealed(secrets, PLAN_KEY, payload, PLAN_TYPE)
    return json.dumps(envelope, sort_keys=True).encode()


def of_plan(plan: Plan, environment: str, branch: str, now_ms: int) -> SavedPlan:
    """A plan that was not on file: it is what is wanted now, and for now only."""
    return SavedPlan(
        environment=environment,
        branch=branch,
        revision=plan.revision,
        observed=plan.base,
        plan_id=plan.plan_id,
        created_at_ms=now_ms,
        expires_at_ms=now_ms + int(PLAN_LIFETIME_S * 1000),
        actions=(
            *map(_saved_key, plan.keys),
            *map(_saved_blob, plan.blobs),
            *map(_saved_action, plan.actions),
        ),
    )


def opened(raw: bytes, secrets: SecretStore) -> SavedPlan:
    """Refused (plan_unreadable, plan_not_ours) for what this control plane did not sign."""
    try:
        keys = secrets.verifier_keys(PLAN_KEY)
        payload, _ = unseal(raw, PLAN_TYPE, keys, bytes_max=PLAN_BYTES_MAX)
    except EnvelopeRefused as refused:
        if refused.code in ("malformed", "wrong_type"):
            message = f"it is no saved plan: {refused.message}"
            raise Refused("plan_unreadable", message, hint=_AGAIN) from None
        raise Refused(
            "plan_not_ours",
            f"this control plane did not make it, or it was edited: {refused.message}",
            hint=_AGAIN,
        ) from None
    try:
        return _parsed(json.loads(payload))
    except (ValueError, KeyError, TypeError) as error:
        message = f"written by a version we cannot read ({type(error).__name__})"
        raise Refused("plan_unreadable", message, hint=_AGAIN) from None


def _parsed(found: Any) -> SavedPlan:
    if found["format"] != FORMAT:
        raise ValueError(found["format"])
    running = set(found["runs"])
    return SavedPlan(
        environment=found["environment"],
        branch=found["branch"],
        revision=found["revision"],
        observed=found["observed"],
        plan_id=found["plan_id"],
        created_at_ms=found["created_at_ms"],
        expires_at_ms=found["expires_at_ms"],
        actions=tuple(
            SavedAction(
                ActionId(one["action_id"]),
                one["action"],
                one["instance"] if "instance" in one else _KEY + one["key"],
                one.get("node", ""),
                one["action_id"] in running,
            )
            for sort in ("keys", "blobs", "actions")
            for one in found["plan"].get(sort, ())
        ),
    )


# --- may it still be carried out? ----------------------------------------------------------------


def refuse_untimely(saved: SavedPlan, environment: str, branch: str, now_ms: int) -> None:
    """Refused: plan_environment, plan_branch, plan_expired."""
    for code, theirs, ours in (
        ("plan_environment", saved.environment, environment),
        ("plan_branch", saved.branch, branch),
    ):
        if theirs != ours:
            what = code.removeprefix("plan_")
            raise Refused(
                code,
                f"it was made for {what} {theirs}, this is {ours}",
                hint=f"apply it with --{what} {theirs}, or {_AGAIN}",
            )
    if now_ms >= saved.expires_at_ms:
        raise Refused(
            "plan_expired", f"it was good until {time_text(saved.expires_at_ms)}", hint=_AGAIN
        )


def refuse_used(saved: SavedPlan, intents: Iterable[Intent], *, manual: bool) -> None:
    """Refused (plan_used) once any of its actions was handed out since it was made.

    `manual`: changes wait for an apply here; else the control plane acts by itself.
    """
    wanted = {action.action_id: action for action in saved.running}
    done = sorted(
        {
            str(wanted[intent.action_id])
            for intent in intents
            if intent.action_id in wanted and intent.created_at_ms >= saved.created_at_ms
        }
    )
    if not done:
        return
    why = "" if manual else ", by an apply or by the control plane, which waits for none here"
    raise Refused(
        "plan_used",
        f"{len(done)} of its {len(wanted)} actions were handed out already{why}: "
        f"{listed(done, _NAMED_MAX)}",
        hint=f"`gpuaas status` says how far it got; for what is left {_AGAIN}",
    )


def refuse_stale(saved: SavedPlan, head: str, now: Plan | None) -> None:
    """Refused (plan_stale) unless the plan of now, made at the branch's head, is the same."""
    if head != saved.revision:
        message = f"the branch is at {head[:12]} now, the plan was made for {saved.revision[:12]}"
        raise Refused("plan_stale", message, hint=_AGAIN)
    if now is None or now.plan_id == saved.plan_id:
        return
    raise Refused(
        "plan_stale",
        f"the world has moved on: {'; '.join(differences(saved, now))}",
        hint=_AGAIN,
    )


def differences(saved: SavedPlan, now: Plan) -> tuple[str, ...]:
    """What is not as it was when the plan was made."""
    then: dict[str, str] = {action.action_id: str(action) for action in saved.actions}
    wanted: dict[str, str] = {
        action_id(a): _told(verb_of(a), a.instance, a.node) for a in now.actions
    }
    wanted |= {key_action_id(a): _told(a.kind, _KEY + a.key, "") for a in now.keys}
    wanted |= {one.action_id: str(one) for one in map(_saved_blob, now.blobs)}
    added = sorted(text for key, text in wanted.items() if key not in then)
    gone = sorted(text for key, text in then.items() if key not in wanted)
    told = []
    if added:
        told.append(f"new: {listed(added, _NAMED_MAX)}")
    if gone:
        told.append(f"no longer needed: {listed(gone, _NAMED_MAX)}")
    if saved.observed != now.base:
        told.append("nodes or the registry report something else than then")
    return tuple(told) or ("its actions come in another order",)


# --- what came of it -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """Where the actions of a plan that was let through stand: `done`, `failed` and the rest."""

    waiting: tuple[str, ...] = ()
    failed: tuple[str, ...] = ()
    begun: bool = False


def outcome(
    saved: SavedPlan,
    intents: Sequence[Intent],
    records: Mapping[InstanceKey, InstanceRecord],
    keys: Mapping[str, Seen[tuple[int, ...]]] | None = None,
) -> Outcome:
    """By the journal, the inventory and the `keys` there are. An action has ended when its node
    said how.
    """
    by_id = {i.action_id: i for i in intents if i.created_at_ms >= saved.created_at_ms}
    waiting, failed, begun = [], [], False
    for action in saved.running:
        record = records.get(InstanceKey(action.instance))
        intent = by_id.get(action.action_id)
        if action.verb in _OF_KEYS:
            seen = _is_seen(action, keys or {})
            begun = begun or seen
            waiting += [] if seen else [str(action)]
            continue
        if action.verb == "move":
            begun = begun or record is not None
            if record is None:
                waiting.append(str(action))
            continue
        begun = begun or intent is not None
        if intent is None or not _ended(intent, record):
            waiting.append(str(action))
        elif _went_wrong(intent, record):
            failed.append(f"{action}: {_why(intent, record)}")
    return Outcome(tuple(waiting), tuple(failed), begun)


def _is_seen(action: SavedAction, keys: Mapping[str, Seen[tuple[int, ...]]]) -> bool:
    """Whether the versions are there, or gone, as it wants them."""
    name, version = _key_of(action)
    seen = keys.get(name)
    if not isinstance(seen, Known) or not seen.value:
        return False
    return (seen.value[-1] if action.verb == "rotate" else seen.value[0]) >= version


def _ended(intent: Intent, record: InstanceRecord | None) -> bool:
    if intent.state in ("refused", "expired", "superseded"):
        return True
    if intent.state == "queued" or intent.kind in ("control", PULL_BLOB):
        return False
    return record is None or record.state in _SETTLED


def _went_wrong(intent: Intent, record: InstanceRecord | None) -> bool:
    if intent.state in ("refused", "expired"):
        return True
    if record is None:
        return False
    launched = intent.target_hash and record.applied_hash != intent.target_hash
    return record.state is State.FAILED or bool(launched)


def _why(intent: Intent, record: InstanceRecord | None) -> str:
    if intent.state == "expired":
        return "its node did not take the task over in time"
    if intent.state == "refused":
        return intent.detail
    return (record.reason or record.message or "it was put back") if record else ""
