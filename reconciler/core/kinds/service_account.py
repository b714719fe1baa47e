"""ServiceAccount: a machine that acts for one project, and the keys it proves itself with."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from reconciler.core.kinds.base import Int, Items, Label, Manifest, Part, UniqueItems
from reconciler.core.kinds.keys import VerifierKey

ServiceRole = Literal["app-operator", "artifact-publisher", "viewer"]
"""Roles that need no human; the others can't be given to a machine."""


class ServiceAccountSpec(Part):
    """Its roles hold in its own project only. `token_ttl_s` is how long a bearer token lasts."""

    display_name: Label | None = None
    roles: UniqueItems[ServiceRole] = Field(min_length=1)
    public_keys: Items[VerifierKey] = Field(default=(), max_length=64)
    token_ttl_s: Int = Field(default=900, ge=60, le=3600)
    disabled: bool = False


class ServiceAccount(Manifest):
    kind: Literal["ServiceAccount"]
    spec: ServiceAccountSpec
