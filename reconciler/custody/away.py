"""Whether custody answers, and whether it is the one that the Environment names.

Rules:
- What is away stops nothing but what needs it, and is asked again: nothing has to be restarted.
- Where a Vault is named, nothing is kept or signed anywhere else.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from urllib.parse import urlsplit

import structlog

from reconciler.core.kinds.environment import EnvironmentSpec
from reconciler.core.plan import Finding
from reconciler.core.records import Accepted
from reconciler.errors import GpuaasError, Refused, Transient
from reconciler.settings import Settings

AWAY = "custody_"
"""Begins the code of every Transient of custody: sealed, slow, out of reach."""

log = structlog.get_logger(__name__)


def is_away(error: GpuaasError | None) -> bool:
    """Whether it is custody that did not answer, and may answer the next time."""
    return isinstance(error, Transient) and error.code.startswith(AWAY)


def wrong_custody(environment: EnvironmentSpec | None, settings: Settings) -> Refused | None:
    """Why nothing may be signed here. An Environment that names no Vault leaves it to us."""
    if environment is None or environment.vault is None:
        return None
    return _wrong(environment.vault.address, settings)


def refuse_wrong_custody(accepted: Accepted, settings: Settings) -> None:
    """The same of what was accepted last, for whoever is about to use keys or secrets."""
    found = accepted.objects.get(f"Environment/{settings.environment}")
    vault = json.loads(found.document_json)["spec"].get("vault") if found is not None else None
    wrong = _wrong(vault["address"], settings) if vault else None
    if wrong is not None:
        raise wrong


def _wrong(named: str, settings: Settings) -> Refused | None:
    ours = settings.vault_address
    if not ours:
        return Refused(
            "vault_not_configured",
            f"keys and secrets belong into {named}, and this control plane knows no Vault",
            where=f"Environment/{settings.environment}",
            hint="set GPUAAS_VAULT_ADDRESS, or vault_address in gpuaas.toml; "
            "or remove spec.vault to keep them in the local store, for evaluation",
        )
    if _parts(named) != _parts(ours):
        return Refused(
            "vault_differs",
            f"keys and secrets belong into {named}, and this control plane uses {ours}",
            where=f"Environment/{settings.environment}",
            hint="make vault_address and spec.vault.address the same",
        )
    return None


def _parts(address: str) -> tuple[str, str, str]:
    found = urlsplit(address)
    return found.scheme, found.netloc.lower(), found.path.rstrip("/")


class Presence:
    """Whether custody answers. `begin` makes what a control plane can't start without; harmless
    where that is there, so that it tells by itself.

    One thread looks, others read `error`.
    """

    def __init__(self, begin: Callable[[], None], interval_ms: int) -> None:
        self._begin = begin
        self._interval_ms = interval_ms
        self._looked_ms: int | None = None
        self.error: GpuaasError | None = None

    def look(self, now_ms: int) -> None:
        """Each time while it did not answer, else once in an interval."""
        last_ms = self._looked_ms
        if last_ms is not None and 0 <= now_ms - last_ms < self._interval_ms:
            return
        try:
            self._begin()
        except GpuaasError as error:
            self._note(error)
            return
        if self.error is not None:
            log.info("custody_back", was=self.error.code)
        self.error, self._looked_ms = None, now_ms

    def doubt(self) -> None:
        """Somebody had no answer: the next look is a real one."""
        self._looked_ms = None

    def findings(self) -> tuple[Finding, ...]:
        """What a pass has to tell of it."""
        if self.error is None:
            return ()
        error, where = self.error, self.error.where or "custody"
        if isinstance(error, Transient):
            return (Finding("info", error.code, where, error.message, error.hint),)
        return (Finding("stalled", error.code, where, error.message, error.hint),)

    def _note(self, error: GpuaasError) -> None:
        if self.error is None or self.error.code != error.code:
            log.warning("custody_away", code=error.code, message=error.message, hint=error.hint)
        self.error = error
        self.doubt()
