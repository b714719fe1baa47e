"""AppVersion: the app manifest, everything needed to run one version of an app."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from reconciler.core.kinds.base import (
    AcceleratorFamily,
    ArtifactRef,
    BlobRef,
    CapacityShape,
    Int,
    Label,
    Manifest,
    Name,
    Part,
    PortNumber,
    Text,
    UniqueItems,
    UrlPath,
    Version,
    VersionMetadata,
    Word,
)
from reconciler.core.kinds.health import Command, EnvName, EnvValue, Health
from reconciler.core.kinds.topology import JupyterSpec, RendererName, TopologySpec, VllmSpec

RuntimeKind = Literal["launchable_oci", "docker_compose", "bare_metal", "k8s", "slurm", "ray"]


class Compatibility(Part):
    """Which allocations can run the app. No accelerators listed: any will do."""

    requires_capacity_shape: CapacityShape | None = None
    min_gpu_count: Int = Field(default=0, ge=0, le=1024)
    requires_exclusive_node: bool = False
    supported_accelerators: UniqueItems[AcceleratorFamily] = ()


class AppPort(Part):
    name: Name
    container: PortNumber
    expose: Literal["private", "embedded_ui_gateway", "members"] = "private"


class Resources(Part):
    min_memory_mib: Int = Field(default=0, ge=0, le=1_073_741_824)
    min_vcpu: float = Field(default=0, ge=0, le=65_536)


class SecretFile(Part):
    """A file under /run/gpuaas/secrets, and with `env` also a variable.

    generated: random, made once for each instance. reference: each instance says which it is.
    """

    name: Name
    source: Literal["generated", "reference"] = "generated"
    env: EnvName | None = None


class Blob(Part):
    """A registered blob, read-only at /run/gpuaas/blobs/NAME: `artifact_store://…@sha256:…`."""

    name: Name
    ref: BlobRef


class Runnable(Part):
    """What any member of an instance runs."""

    image_ref: ArtifactRef | None = None
    variants: dict[AcceleratorFamily, ArtifactRef] = Field(default_factory=dict, max_length=64)
    command: Command = ()
    env: dict[EnvName, EnvValue] = Field(default_factory=dict, max_length=1024)
    ports: Annotated[tuple[AppPort, ...], Field(strict=False, max_length=64)] = ()
    resources: Resources = Resources()
    health: Health = Health()


class MemberRole(Runnable):
    """What further members of an instance run, beside the first. What is left out, image, shared
    memory and grace, is as for the first.
    """

    role: Name
    members_min: Int = Field(default=0, ge=0, le=256)
    members_max: Int = Field(default=256, ge=1, le=256)


class RuntimeProfile(Runnable):
    """How it runs. The image is the node's entry of `variants` (by accelerator family), else
    `image_ref`, else the version's artifact. `role` is what the first member is called.

    For docker_compose, `renderer` makes services of `topology` and of the part named after it; what
    `Runnable` says is then of the main service, where the renderer makes that.
    """

    kind: RuntimeKind
    shm_mib: Int = Field(default=64, ge=1, le=16_777_216)
    stop_grace_s: Int = Field(default=10, ge=0, le=3600)
    secrets: Annotated[tuple[SecretFile, ...], Field(strict=False, max_length=32)] = ()
    blobs: Annotated[tuple[Blob, ...], Field(strict=False, max_length=32)] = ()
    role: Name = "controller"
    members: Annotated[tuple[MemberRole, ...], Field(strict=False, max_length=16)] = ()
    renderer: RendererName | None = None
    topology: TopologySpec | None = None
    vllm: VllmSpec | None = None
    jupyter: JupyterSpec | None = None


class VersionUi(Part):
    extension_kind: Word
    path: UrlPath


class Metering(Part):
    kind: Literal["session_seconds", "tokens", "requests"]


class Access(Part):
    """`instructions` is a template for people; see the schema for its placeholders."""

    instructions: Text


class SmokeTest(Part):
    command: Command = Field(min_length=1)


class AppVersionSpec(Part):
    """`launch_parameters` is a JSON Schema for an instance's parameters, with x-ui hints."""

    slug: Name
    display_name: Label
    version: Version
    artifact_kind: Literal["oci", "launchable", "controller"]
    artifact_ref: ArtifactRef
    compatibility: Compatibility = Compatibility()
    runtime_profile: RuntimeProfile
    launch_parameters: dict[str, Any]
    ui: VersionUi | None = None
    metering: Metering | None = None
    access: Access | None = None
    smoke_test: SmokeTest | None = None
    release_notes: Text = ""


class AppVersion(Manifest):
    kind: Literal["AppVersion"]
    metadata: VersionMetadata
    spec: AppVersionSpec
