"""A CertificateAuthority in memory: real certificates, by a root of its own."""

from __future__ import annotations

from reconciler.adapters.ca_local import LocalCa
from reconciler.errors import GpuaasError
from reconciler.ports import Clock
from tests.fakes.clock import FakeClock
from tests.fakes.secrets import FakeSecrets


class FakeCa(LocalCa):
    """Set `failure` to make every method raise it."""

    def __init__(self, clock: Clock | None = None) -> None:
        clock = clock or FakeClock()
        self.kept = FakeSecrets(clock)
        super().__init__(self.kept, clock)

    @property
    def failure(self) -> GpuaasError | None:
        return self.kept.failure

    @failure.setter
    def failure(self, failure: GpuaasError | None) -> None:
        self.kept.failure = failure
