"""Identity: somebody whose signature on a commit says who acted."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints, model_validator

from reconciler.core.kinds.base import Items, Label, Manifest, Part, UniqueItems
from reconciler.core.kinds.keys import SignerKey
from reconciler.core.names import NAME

Email = Annotated[
    str,
    StringConstraints(pattern=r"^[!#-'*+\-./0-9=?A-Z^-~]+@[0-9A-Za-z][-.0-9A-Za-z]*$"),
    Field(max_length=254),
]
AccountPath = Annotated[str, StringConstraints(pattern=f"^{NAME}/{NAME}/{NAME}$")]
"""`tenant/project/name` of a ServiceAccount."""


class IdentitySpec(Part):
    """`service_account` is the one that a signer of type service_account stands for.

    `vouches_for_author` is for a forge: who merged in its web page is the author it wrote into the
    commit, found by e-mail address. Otherwise the addresses are for people and decide nothing.
    """

    type: Literal["user", "service_account", "forge"]
    display_name: Label
    emails: UniqueItems[Email] = Field(default=(), max_length=32)
    keys: Items[SignerKey] = Field(default=(), max_length=64)
    service_account: AccountPath | None = None
    vouches_for_author: bool | None = None
    disabled: bool = False

    @model_validator(mode="after")
    def _fields_fit_type(self) -> IdentitySpec:
        if self.service_account is not None and self.type != "service_account":
            raise ValueError("service_account needs the type service_account")
        if self.vouches_for_author is not None and self.type != "forge":
            raise ValueError("vouches_for_author needs the type forge")
        return self


class Identity(Manifest):
    kind: Literal["Identity"]
    spec: IdentitySpec
