"""`gpuaas plan --snapshot`: the plan from a snapshot and the checkout alone, offline."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from reconciler.cli.planned import Wanted
from reconciler.collector import without_collector
from reconciler.core.kinds.environment import EnvironmentSpec
from reconciler.core.names import ObjectRef, Revision
from reconciler.core.validate import ValidateMemo, validate
from reconciler.errors import Refused
from reconciler.settings import Settings
from reconciler.use_cases import snapshot
from reconciler.use_cases.planning import shown
from reconciler.views.plan_words import Offline, Shown
from reconciler.wiring.files import read_base, read_local, schema_set
from reconciler.wiring.snapshots import bearer_token, is_address, now_ms, read_snapshot


@without_collector()
def offline(wanted: Wanted, settings: Settings) -> Shown:
    """The plan from a snapshot and the checkout alone."""
    if wanted.out:
        raise Refused(
            "plan_offline",
            "a plan made from a snapshot can't be applied",
            hint="leave out --out, or plan against live state",
        )
    assert wanted.snapshot is not None
    remote = is_address(wanted.snapshot)
    token = bearer_token(wanted.token_file, os.environ) if remote else None
    raw = read_snapshot(wanted.snapshot, settings, token)
    schemas, checkout = schema_set(), Path(settings.repo)
    today_ms = now_ms()
    age_ms_max = int(wanted.age_s_max * 1000)
    keys = wanted.keys or _keys_at(wanted, settings)
    read = _documents_in(checkout, settings)
    seen = snapshot.opened(raw, keys, settings.environment, today_ms, age_ms_max, read)
    source = read_local(checkout, wanted.ref or "HEAD", settings)
    base = read_base(checkout, wanted.ref, wanted.base, settings) if wanted.base else None
    found = shown(seen, source, base, schemas, settings)
    return replace(found, now_ms=today_ms, offline=Offline(seen.taken_at_ms))


def _documents_in(checkout: Path, settings: Settings) -> snapshot.ReadDocuments:
    """Reads the manifests of a commit; none when the checkout does not have it."""

    schemas, memo = schema_set(), ValidateMemo()

    def read(revision: Revision) -> Mapping[str, str]:
        try:
            source = read_local(checkout, revision, settings)
        except Refused as refused:
            if refused.code == "unknown_revision":
                return {}
            raise
        candidate = validate(source, schemas, settings.parse_limits, memo)
        return snapshot.documents_of(candidate)

    return read


def _keys_at(wanted: Wanted, settings: Settings) -> tuple[str, ...]:
    """The keys that the tip of the base trusts now; what the change says of them counts nothing."""
    keys: tuple[str, ...] = ()
    if wanted.base:
        tip = read_local(Path(settings.repo), wanted.base, settings)
        objects = validate(tip, schema_set(), settings.parse_limits).objects
        found = objects.get(ObjectRef("Environment", (settings.environment,)))
        spec = found.manifest.spec if found is not None else None
        keys = spec.snapshot_keys if isinstance(spec, EnvironmentSpec) else ()
    if keys:
        return keys
    where = f"Environment/{settings.environment} at {wanted.base} has no snapshot_keys"
    raise Refused(
        "snapshot_key_missing",
        where if wanted.base else "no key to check the snapshot with",
        hint="commit snapshot_keys to the Environment and pass --base with the branch it is on, "
        "or pass --snapshot-key; `gpuaas snapshot --key` prints the key",
    )
