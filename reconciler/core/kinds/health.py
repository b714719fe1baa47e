"""What is run, and when it counts as ready: parts of a manifest that several places have."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, StringConstraints, model_validator

from reconciler.core.kinds.base import Argument, Int, Items, Part, PortNumber, UrlPath

Command = Items[Argument]
EnvName = Annotated[str, StringConstraints(pattern="^[A-Za-z_][0-9A-Za-z_]*$", max_length=255)]
EnvValue = Annotated[str, StringConstraints(max_length=32_768)]


class HttpReadiness(Part):
    """Ready when GET answers 2xx or 3xx."""

    port: PortNumber
    path: UrlPath = "/"


class TcpReadiness(Part):
    port: PortNumber


class ExecReadiness(Part):
    command: Command = Field(min_length=1)


class ReadinessProbe(Part):
    """Exactly one of the three."""

    http: HttpReadiness | None = None
    tcp: TcpReadiness | None = None
    exec: ExecReadiness | None = None

    @model_validator(mode="after")
    def _one(self) -> ReadinessProbe:
        if sum(probe is not None for probe in (self.http, self.tcp, self.exec)) != 1:
            raise ValueError("give exactly one of http, tcp and exec")
        return self


class Health(Part):
    """When a started instance is ready, and how long that may take. No probe: once it runs."""

    readiness: ReadinessProbe | None = None
    interval_s: float = Field(default=1, ge=0.05, le=3600)
    timeout_s: float = Field(default=1, ge=0.05, le=3600)
    start_budget_s: float = Field(default=60, ge=0.1, le=86_400)
    failures_max: Int = Field(default=3, ge=1, le=1000)
