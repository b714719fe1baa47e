"""Forgets the secrets of instances whose teardown was proved in this pass.

Rules:
- They go before the pass is stored. After a crash in between, the proof is heard again and what is
  gone already is forgotten once more, which is harmless; in the other order they would stay.
- Where they can't be forgotten, it counts as if the proof had not been heard yet: the instance
  stays as it was, and so does everything else that the pass has to say.
- Only what is the instance's own goes: what it refers to is its project's or its tenant's.
- What is launched anew under the same name has none yet: they are made when its node asks.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from reconciler.core.custody.paths import asked_for
from reconciler.core.names import InstanceKey, secret_path
from reconciler.core.records import InstanceRecord, node_name
from reconciler.core.settle import Settled
from reconciler.errors import GpuaasError
from reconciler.execute import Outcome
from reconciler.ports import SecretStore


def forget_secrets(
    secrets: SecretStore,
    settled: Settled,
    outcome: Outcome,
    barred: GpuaasError | None = None,
) -> tuple[Settled, Outcome]:
    """Both as they are once it is done; what was not is left out of them.

    `barred` is why custody is not to be asked at all.
    """
    kept: dict[InstanceKey, InstanceRecord] = {}
    error = outcome.error
    for record in _gone(settled):
        try:
            if barred is not None:
                raise barred
            for name, reference in map(asked_for, record.secrets):
                if not reference:
                    secrets.delete(secret_path(record.node, node_name(record), name))
        except GpuaasError as failed:
            kept[record.key] = record
            error = error or failed
    if not kept:
        return settled, outcome
    return (
        replace(
            settled,
            records={**settled.records, **kept},
            events=tuple(event for event in settled.events if event.instance not in kept),
        ),
        replace(
            outcome,
            records={**outcome.records, **kept},
            intents=tuple(one for one in outcome.intents if one.instance not in kept),
            events=tuple(event for event in outcome.events if event.instance not in kept),
            error=error,
        ),
    )


def _gone(settled: Settled) -> Iterable[InstanceRecord]:
    """The records from before, of those that hold no secrets any more."""
    for key, before in sorted(settled.before.items()):
        after = settled.records.get(key)
        if before.secrets and after is not None and not after.secrets:
            yield before
