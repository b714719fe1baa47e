"""RoleBinding: which roles somebody holds, and where."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from reconciler.core.kinds.base import (
    Items,
    Label,
    Manifest,
    Name,
    Part,
    ProjectPath,
    Timestamp,
    UniqueItems,
)
from reconciler.core.kinds.identity import AccountPath

Role = Literal[
    "platform-admin",
    "tenant-admin",
    "project-admin",
    "app-operator",
    "artifact-publisher",
    "break-glass",
    "viewer",
    "custom",
]
Permission = Literal[
    "apps.app.edit",
    "apps.artifact.deprecate",
    "apps.artifact.promote",
    "apps.artifact.register",
    "apps.artifact.retire",
    "apps.artifact.revoke",
    "apps.artifact.verify",
    "apps.instance.create",
    "apps.instance.delete",
    "apps.instance.read",
    "apps.instance.suspend",
    "apps.instance.update",
    "apps.version.deprecate",
    "apps.version.promote",
    "apps.version.publish",
    "fleet.node.edit",
    "fleet.node.read",
    "fleet.policy.edit",
    "fleet.release.publish",
    "platform.audit.read",
    "platform.environment.edit",
    "platform.iam.edit",
    "platform.removals.approve",
    "platform.status.read",
    "platform.sync.break_glass",
    "platform.trust.edit",
    "tenants.allocation.edit",
    "tenants.entitlement.edit",
    "tenants.project.edit",
    "tenants.service_account.edit",
    "tenants.tenant.edit",
]
"""What a change to the repo, or a look at what runs, can need, as area.object.verb."""


def _only_true(value: bool) -> bool:
    if not value:
        raise ValueError("write true, or another scope")
    return value


class Subject(Part):
    """Exactly one of the two."""

    identity: Name | None = None
    service_account: AccountPath | None = None

    @model_validator(mode="after")
    def _one(self) -> Subject:
        if (self.identity is None) == (self.service_account is None):
            raise ValueError("give exactly one of identity and service_account")
        return self


class Scope(Part):
    """Exactly one of the three. Never left out: a binding for everything has to say so."""

    platform: Annotated[bool, AfterValidator(_only_true)] | None = None
    tenant: Name | None = None
    project: ProjectPath | None = None

    @model_validator(mode="after")
    def _one(self) -> Scope:
        if [self.platform, self.tenant, self.project].count(None) != 2:
            raise ValueError("give exactly one of platform, tenant and project")
        return self

    @property
    def path(self) -> tuple[str, ...]:
        """() for the platform, (tenant,), or (tenant, project)."""
        return tuple((self.project or self.tenant or "").split("/")) if not self.platform else ()


class RoleBindingSpec(Part):
    """`permissions` are for the role custom; with `until` the binding ends by itself."""

    subjects: Items[Subject] = Field(min_length=1)
    role: Role
    permissions: UniqueItems[Permission] | None = Field(default=None, min_length=1)
    scope: Scope
    until: Timestamp | None = None
    reason: Label | None = None

    @model_validator(mode="after")
    def _permissions_are_custom(self) -> RoleBindingSpec:
        if (self.permissions is None) == (self.role == "custom"):
            raise ValueError("the role custom has permissions, and no other has")
        return self


class RoleBinding(Manifest):
    kind: Literal["RoleBinding"]
    spec: RoleBindingSpec
