"""TrustPolicy: whose signatures and builds are believed, and where blobs may come from."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints, model_validator

from reconciler.core.kinds.base import ExternalId, Items, Manifest, Name, Part, UniqueItems
from reconciler.core.kinds.keys import KeyScheme, VerifierKey

PredicateType = Literal["https://slsa.dev/provenance/v1", "https://slsa.dev/provenance/v0.2"]
SLSA_V1: PredicateType = "https://slsa.dev/provenance/v1"
BuilderId = Annotated[str, StringConstraints(pattern=r"^https?://[!-~]+$", max_length=500)]
"""Compared as a whole, never as a prefix."""
UrlPrefix = Annotated[str, StringConstraints(pattern=r"^https://[^/?#@ ]+/(?:[!-~]*/)?$")]
"""Ends in /, so that a name can't be made longer than what was allowed."""


class Builder(Part):
    """A build service whose provenance counts. Empty `source_prefixes`: built from anywhere."""

    id: BuilderId
    source_prefixes: UniqueItems[Annotated[UrlPrefix, Field(max_length=500)]] = ()


class ChannelRule(Part):
    """What an artifact needs to get into a channel.

    `signing_key` is what publishers are told to sign with. Empty `accepted_keys`: every key of the
    scheme; empty `builders`: every builder of the policies.
    """

    signature_required: bool = True
    signature_scheme: KeyScheme = "ecdsa-p256"
    signing_key: ExternalId | None = None
    accepted_keys: UniqueItems[ExternalId] = ()
    provenance_required: bool = True
    predicate_types: UniqueItems[PredicateType] = Field(default=(SLSA_V1,), min_length=1)
    builders: UniqueItems[BuilderId] = ()

    @model_validator(mode="after")
    def _signed_with_something(self) -> ChannelRule:
        if not self.signature_required and self.signing_key is not None:
            raise ValueError("signing_key needs signature_required")
        return self


class TrustPolicySpec(Part):
    """All policies add up: a key, builder or prefix of one counts for the channels of all."""

    signing_keys: Items[VerifierKey] = ()
    builders: Items[Builder] = ()
    channels: dict[Name, ChannelRule] = Field(default_factory=dict, max_length=64)
    blob_sources: UniqueItems[Annotated[UrlPrefix, Field(max_length=500)]] = ()


class TrustPolicy(Manifest):
    kind: Literal["TrustPolicy"]
    spec: TrustPolicySpec
