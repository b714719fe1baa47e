"""Tenant: an organisation."""

from __future__ import annotations

from typing import Literal

from reconciler.core.kinds.base import ExternalId, Label, Manifest, Name, Part, UniqueItems


class TenantSpec(Part):
    """`attached_projects` may use the tenant's shared runtimes."""

    org_id: ExternalId
    display_name: Label
    attached_projects: UniqueItems[Name] = ()


class Tenant(Manifest):
    kind: Literal["Tenant"]
    spec: TenantSpec
