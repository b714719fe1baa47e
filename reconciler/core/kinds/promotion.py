"""Promotion: the wanted lifecycle state of one version."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from reconciler.core.kinds.base import (
    Int,
    Label,
    Manifest,
    Part,
    ProjectPath,
    UniqueItems,
    VersionMetadata,
)

VersionState = Literal["draft", "staged", "canary", "active", "deprecated", "retired"]


class StepBack(Part):
    """When a canary goes back by itself: once more than `failed_max` of its instances failed."""

    failed_max: Int = Field(default=0, ge=0, le=100_000)


class Canary(Part):
    """Who gets the version: the named projects, and that percentage of the others.

    With `step_back` a canary that fails counts as staged again, until the Promotion is changed.
    """

    projects: UniqueItems[ProjectPath] = ()
    percent: Int = Field(default=0, ge=0, le=100)
    step_back: StepBack | None = None


class PromotionSpec(Part):
    state: VersionState
    canary: Canary | None = None
    reason: Label

    @model_validator(mode="after")
    def _canary_has_scope(self) -> PromotionSpec:
        if self.state == "canary" and self.canary is None:
            raise ValueError("state canary needs the field canary")
        return self


class Promotion(Manifest):
    kind: Literal["Promotion"]
    metadata: VersionMetadata
    spec: PromotionSpec
