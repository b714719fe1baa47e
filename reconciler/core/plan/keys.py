"""What is to be done about signing keys, and with which version tasks are signed. Pure.

Rules:
- A version signs once every agent that counts knows it. An agent is taken to know what it reported,
  or else no more than the oldest version there is. Only a revoked one does not count.
- A version goes once all who count know a later one and nothing that it signed is still queued. By
  an explicit `min_version` it goes without those that are gone, and what is queued is handed out
  anew. Who is silent is gone only if somebody else was heard of all the while: it may be us who
  were away.
- Keys never go back.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from reconciler.core.actions import Held, KeyAction
from reconciler.core.desired import Desired, KeyWish
from reconciler.core.names import InstanceKey
from reconciler.core.observed import Known, NodeSeen, NodeUnknown, Observed, Seen, Unknown
from reconciler.core.plan import Finding
from reconciler.core.plan.terms import in_force
from reconciler.core.plan.windows import window_hold
from reconciler.core.records import Intent
from reconciler.core.times import time_text

TASKS = "tasks"
REVOKED = "node_revoked"
NOT_ROTATED = "key_not_rotated"
"""Held until another action of the same plan is carried out: how far that is, is what counts."""
NODES_NAMED_MAX = 5
GONE_AFTER_MS = 600_000
"""Silent for longer than that, while others are heard of, a node does not keep a leaked key alive;
a host that starts anew is back by then."""

Nodes = Mapping[str, Seen[NodeSeen]]
Wishes = Mapping[str, KeyWish]


# --- who knows what ------------------------------------------------------------------------------


def signing_version(versions: Sequence[int], nodes: Nodes) -> int:
    """The newest of `versions` (not retired, oldest first, at least one) that all agents know.

    Agents that missed the oldest can't be helped by any of them; nobody waits for those.
    """
    oldest = versions[0]
    known = [version for _, version in known_versions(nodes, oldest) if version >= oldest]
    return max((one for one in versions if all(one <= most for most in known)), default=oldest)


def known_versions(nodes: Nodes, oldest: int) -> Iterator[tuple[str, int]]:
    """Node by node that counts, the newest version that its agent knows for all we know."""
    for name, seen in sorted(nodes.items()):
        if isinstance(seen, Known):
            yield name, _last_known(seen, oldest)
        elif seen.code != REVOKED:
            yield name, oldest


def signed_with(intent: Intent, key_ids: Mapping[str, int]) -> int | None:
    """The version that signed its task; 0 for one that is retired, None when that is not known."""
    envelope = json.loads(intent.envelope) if intent.envelope else {}
    signers = [signature["keyid"] for signature in envelope.get("signatures", ())]
    return max((key_ids.get(signer, 0) for signer in signers), default=None)


def unbelievable(observed: Observed, intents: Sequence[Intent]) -> tuple[InstanceKey, ...]:
    """Instances whose queued task was signed with a version that is retired by now: no agent takes
    it over, so that it has to be handed out anew.
    """
    if not observed.key_ids:
        return ()
    queued = (intent for intent in intents if intent.state == "queued")
    lost = {one.instance for one in queued if signed_with(one, observed.key_ids) == 0}
    return tuple(sorted(lost))


# --- what is to be done --------------------------------------------------------------------------


def wanted_of_keys(
    wishes: Wishes, observed: Observed, intents: Sequence[Intent]
) -> tuple[KeyAction, ...]:
    """In the order to carry it out, each with what it waits for by itself."""
    found: list[KeyAction] = []
    for name, wish in sorted(wishes.items()):
        seen = observed.keys.get(name)
        if isinstance(seen, Known):
            found += _wanted(name, wish, seen.value, observed, intents)
    return tuple(found)


def _wanted(
    name: str,
    wish: KeyWish,
    versions: Sequence[int],
    observed: Observed,
    intents: Sequence[Intent],
) -> Iterator[KeyAction]:
    newest, oldest = (versions[-1], versions[0]) if versions else (0, wish.version)
    rotates = newest < wish.version
    if rotates:
        reason = f"version {wish.version} is wanted, " + (
            f"{newest} is the newest" if versions else "there is no key yet"
        )
        yield KeyAction("rotate", name, wish.version, newest, reason)
    if oldest < wish.min_version:
        reason = f"versions below {wish.min_version} are not to be believed any more"
        held = _unheard_now(wish.min_version, oldest, observed.nodes) if name == TASKS else None
        held = _after_rotation(wish) if rotates and wish.min_version > newest else held
        yield KeyAction("retire", name, wish.min_version, oldest, reason, held)
    elif name == TASKS and oldest < wish.version:
        reason = f"version {wish.version} takes their place"
        held = _unheard(wish.version, oldest, observed.nodes)
        held = held or _in_flight(wish.version, observed.key_ids, intents)
        held = _after_rotation(wish) if rotates else held
        yield KeyAction("retire", name, wish.version, oldest, reason, held)


def _after_rotation(wish: KeyWish) -> Held:
    return Held(NOT_ROTATED, f"once version {wish.version} is there and agents know it")


def _unheard(version: int, oldest: int, nodes: Nodes) -> Held | None:
    """All who count have to know the version, whether they are there or not."""
    names = [name for name, known in known_versions(nodes, oldest) if known < version]
    return _waits_for(names, version)


def _unheard_now(version: int, oldest: int, nodes: Nodes) -> Held | None:
    """Who can be reached hears of it first; who is gone, or missed too much, joins again."""
    listened = any(_proves_silence(seen, version) for seen in nodes.values())
    names = [
        name
        for name, seen in sorted(nodes.items())
        if oldest <= _last_known(seen, oldest) < version
        and not (isinstance(seen, Unknown) and seen.code == REVOKED)
        and not (listened and isinstance(seen, NodeUnknown) and seen.silent_ms > GONE_AFTER_MS)
    ]
    return _waits_for(names, version)


def _proves_silence(seen: Seen[NodeSeen], version: int) -> bool:
    """Whether it knows the version, and reported it to us for so long that who did not is gone."""
    if not isinstance(seen, Known) or seen.value.heard_for_ms < GONE_AFTER_MS:
        return False
    return _last_known(seen, 0) >= version


def _last_known(seen: Seen[NodeSeen], oldest: int) -> int:
    """By its last word, however long ago: an agent does not forget a version, unless it joins
    again, which takes that word back.
    """
    if isinstance(seen, Known):
        config = seen.value.config
    else:
        config = seen.config if isinstance(seen, NodeUnknown) else None
    return config.newest_version if config and config.newest_version else oldest


def _waits_for(names: Sequence[str], version: int) -> Held | None:
    if not names:
        return None
    more = len(names) - NODES_NAMED_MAX
    told = ", ".join(names[:NODES_NAMED_MAX]) + (f" and {more} more" if more > 0 else "")
    return Held("nodes_unaware", f"waits for agents that do not know version {version} yet: {told}")


def _in_flight(version: int, key_ids: Mapping[str, int], intents: Sequence[Intent]) -> Held | None:
    queued = [intent for intent in intents if intent.state == "queued"]
    older = [one for one in queued if (signed_with(one, key_ids) or 0) < version]
    if not older:
        return None
    tasks = "task" if len(older) == 1 else "tasks"
    return Held(
        "tasks_in_flight",
        f"waits for {len(older)} queued {tasks} signed with an older version, "
        f"such as that of {min(one.instance for one in older)}",
    )


# --- what holds it back --------------------------------------------------------------------------


def hold_keys(
    actions: Sequence[KeyAction], desired: Desired, plan_id: str, now_ms: int
) -> tuple[KeyAction, ...]:
    """The same actions, held as the Environment asks for. `plan_id` is empty once it was applied.

    A rotation that was begun is brought to its end: agents need not wait for an hour of the day.
    """
    return tuple(
        action if action.held else replace(action, held=_guarded(action, desired, plan_id, now_ms))
        for action in actions
    )


def _guarded(action: KeyAction, desired: Desired, plan_id: str, now_ms: int) -> Held | None:
    guards = desired.guards
    suspend = in_force(guards.suspend, now_ms)
    if suspend is not None:
        until = time_text(suspend.until_ms)
        why = f"the environment is suspended by {suspend.by} until {until}: {suspend.reason}"
        return Held("suspended", why, suspend.until_ms)
    if action.kind == "retire" and action.version > desired.keys[action.key].min_version:
        return None
    if in_force(guards.break_glass, now_ms) is None:
        held = window_hold(guards.windows, "", now_ms)
        if held is not None:
            return held
    if guards.manual and plan_id:
        message = f"changes are applied by hand here: gpuaas apply {plan_id}"
        return Held("awaiting_apply", message)
    return None


# --- what there is to know -----------------------------------------------------------------------


def key_findings(wishes: Wishes, observed: Observed, actions: Sequence[KeyAction]) -> list[Finding]:
    found = []
    for name, wish in sorted(wishes.items()):
        where, seen = f"SigningKey/{name}", observed.keys.get(name)
        if isinstance(seen, Unknown):
            message = f"nobody knows which versions there are: {seen.reason}"
            found.append(Finding("info", "keys_unknown", where, message, _AWAY))
        elif seen is not None and seen.value and seen.value[-1] > wish.version:
            newest = seen.value[-1]
            message = f"version {wish.version} is wanted, but there is {newest} already"
            hint = f"keys never go back: write version: {newest} or higher"
            found.append(Finding("stalled", "key_version_below", where, message, hint))
    waiting = [a for a in actions if a.held is not None and a.held.code == "awaiting_apply"]
    found += [
        Finding("stalled", "awaiting_apply", f"SigningKey/{a.key}", a.held.message)
        for a in waiting[:1]
        if a.held is not None
    ]
    return found + _left_behind(observed)


_AWAY = "what is signed already goes on; it is looked at again in the next pass"


def _left_behind(observed: Observed) -> list[Finding]:
    """Agents that know no version that there still is: they can be told nothing any more."""
    seen = observed.keys.get(TASKS)
    if not isinstance(seen, Known) or not seen.value:
        return []
    oldest = seen.value[0]
    return [
        Finding(
            "stalled",
            "node_keys_outdated",
            f"Node/{name}",
            f"its agent knows keys up to version {known}, but those below {oldest} are retired",
            f"join it again: gpuaas node join {name}, then there gpuaas-agent join --again",
        )
        for name, known in known_versions(observed.nodes, oldest)
        if known < oldest
    ]
