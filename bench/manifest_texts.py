"""What a made-up manifest of each kind says: text as people and formatters write it."""

from __future__ import annotations

import random

ENVIRONMENT = "bench"
GPUS_PER_NODE = 8
LEASES_PER_NODE = 2
INSTANCES_PER_LEASE = 2
_SITES = ("fra-1", "ams-2", "iad-3", "sin-1")
WORDS = ("batch", "night", "training", "serving", "tuning", "sweep", "canary", "index", "ingest")


def head(kind: str, name: str, *, quoted: bool = False) -> str:
    shown = f'"{name}"' if quoted else name
    return f"apiVersion: gpuaas.dev/v1\nkind: {kind}\nmetadata:\n  name: {shown}\n"


def notes(rng: random.Random) -> str:
    """What forges, ticket systems and people leave in annotations."""
    return f"""\
    change: "CHG-{rng.randrange(10**6):06d}"
    requested-by: {rng.choice(WORDS)}@gpuaas.example
    reviewed-by: "{rng.choice(WORDS)}, {rng.choice(WORDS)}"
    pull-request: https://git.example/platform/state/pulls/{rng.randrange(10**5)}
    window: "22:00-06:00"
    review-after: 2027-0{rng.randrange(1, 10)}-15
    # Read by the cost report.
    cost-unit: cu-{rng.randrange(1000)}
    budget: "{rng.randrange(10, 100)}.5"
    origin: terraform/modules/{rng.choice(WORDS)}
"""


def environment() -> str:
    return (
        head("Environment", ENVIRONMENT)
        + """\
spec:
  domain: bench.gpuaas.internal
  registry:
    endpoint: registry.bench.gpuaas.internal:5000
  guards:
    removals_max: 5
    removals_max_percent: 30
  defaults:
    operating_mode: tenant_dedicated
    control_plane_scope: project
    tenant_boundary_mode: project_isolated
"""
    )


def tenant(name: str) -> str:
    shown = name.replace("-", " ").capitalize()
    return head("Tenant", name) + f"spec:\n  org_id: org-{name}\n  display_name: {shown}\n"


def project(name: str) -> str:
    shown = name.replace("-", " ").capitalize()
    return head("Project", name) + f"spec:\n  project_id: proj-{name}\n  display_name: {shown}\n"


def entitlement(app: str) -> str:
    return (
        head("Entitlement", app)
        + """\
spec:
  enabled: true
  policy_overrides:
    allowed_operating_modes: [tenant_dedicated, tenant_shared]
    allowed_control_plane_scopes: [project]
"""
    )


def app(app: str, rng: random.Random) -> str:
    return (
        head("App", app)
        + f"""\
spec:
  slug: {app}
  display_name: {rng.choice(WORDS).capitalize()} {app[4:]}
  owner: platform-team
  description: >-
    Serves one model over HTTP, with metrics and a page for people.
    Made for the benchmark; it does not exist.
  ui:
    icon: cube
    category: serving
"""
    )


def promotion(version: str, rng: random.Random) -> str:
    return (
        head("Promotion", version, quoted=True)
        + f"""\
  annotations:
{notes(rng)}spec:
  state: active
  reason: Smoke test and load test passed on two nodes.
"""
    )


def artifact(app: str, version: str, digest: str, rng: random.Random) -> str:
    return (
        head("Artifact", "image")
        + f"""\
  labels:
    team: platform
  annotations:
{notes(rng)}spec:
  kind: oci
  repository: gpuaas/apps/catalog/{app}
  digest: {digest}
  tag: "{version}"
  media_type: application/vnd.oci.image.manifest.v1+json
  source_metadata:
    commit: {rng.getrandbits(160):040x}
    repository_url: https://git.example/apps/{app}
    builder: ci/build-image@v3
  visibility: platform
  state: promoted
"""
    )


def shard(name: str, app: str, version: str, rng: random.Random) -> str:
    return (
        head("Artifact", name)
        + f"""\
  labels:
    team: platform
    format: safetensors
  annotations:
{notes(rng)}spec:
  kind: blob
  source: artifact_store://models/{app}/{version}/{name}.safetensors
  digest: sha256:{rng.getrandbits(256):064x}
  visibility: platform
  state: promoted
"""
    )


def node(name: str, family: str, model: str, memory_mib: int, uuids: list[str]) -> str:
    site = _SITES[sum(name.encode()) % len(_SITES)]
    gpus = "".join(
        f"    - uuid: {uuid}\n      vendor: nvidia\n      model: {model}\n"
        f"      memory_mib: {memory_mib}\n"
        for uuid in uuids
    )
    return (
        head("Node", name)
        + f"""\
  labels:
    site: {site}
    rack: r{len(name)}-{sum(name.encode()) % 40}
    power: "2 x 16 A"
  annotations:
    serial: SN{sum(name.encode()):08d}
    bmc: bmc-{name}.mgmt.example
    installed: 2026-03-1{len(name) % 10}
    warranty: until 2029-03
spec:
  pool: training
  capacity_shape: baremetal
  accelerator_family: {family}
  accelerators:
{gpus}  cpu_cores: 192
  memory_mib: 2097152
  engines: [docker]
"""
    )


def allocation(name: str, node: str, gpus: list[str], rng: random.Random) -> str:
    listed = "".join(f"    - {uuid}\n" for uuid in gpus)
    return (
        head("Allocation", name)
        + f"""\
  labels:
    cost-center: "4711"
    contract: "2026-{len(node)}"
  annotations:
    owner: capacity@gpuaas.example
    note: Leased for the year; ask before it is changed.
    approved-by: "finance, platform"
    invoice: monthly
    # Both halves of a node go to one project.
    lease: {name}
{notes(rng)}spec:
  node: {node}
  state: active
  gpus:
{listed}  cpu_cores: 96
  memory_mib: 1048576
"""
    )


def instance(name: str, app: str, version: str, lease: str, rng: random.Random) -> str:
    gpus = GPUS_PER_NODE // LEASES_PER_NODE // INSTANCES_PER_LEASE
    return (
        f"# {name}: asked for in REQ-{rng.randrange(10**5):05d}\n"
        + head("AppInstance", name)
        + f"""\
  labels:
    team: {rng.choice(WORDS)}
    stage: production
    on-call: "yes"
  annotations:
    owner: {rng.choice(WORDS)}@gpuaas.example
    request: "REQ-{rng.randrange(10**5):05d}"
    runbook: https://wiki.example/{app}/runbook#restart
    ticket-queue: ml-platform
    cost-center: "4711"
    slo: 99.5 % of requests below 300 ms
    dashboard: https://graphs.example/d/{rng.getrandbits(40):010x}/{app}?var-lease={lease}
    model: models/{rng.choice(WORDS)}-{rng.randrange(70)}b
    reviewed-by: "{rng.choice(WORDS)}, {rng.choice(WORDS)}"
    expires: 2027-0{rng.randrange(1, 10)}-01
    last-load-test: "{rng.randrange(100, 999)} requests a second"
    traffic: internal
    note: |
      Restart it in the morning, never at night.
      Ask the {rng.choice(WORDS)} team first.

      It serves the {rng.choice(WORDS)} page; a minute away is seen by customers.
spec:
  app: {app}
  version: "{version}"
  requested:
    operating_mode: tenant_dedicated
    control_plane_scope: project
  placement_intent:
    allocation: {lease}  # the whole lease is theirs
  parameters:
    gpu_count: {gpus}
    cpu_cores: {rng.choice((8, 16, 32))}
    memory_gib: {rng.choice((64, 128.5, 256))}
  desired: running
"""
    )


def version(app: str, version: str, digest: str, rng: random.Random) -> str:
    port = rng.randrange(8000, 9000)
    return (
        head("AppVersion", version, quoted=True)
        + f"""\
spec:
  slug: {app}
  display_name: {rng.choice(WORDS).capitalize()} {app[4:]}
  version: "{version}"
  artifact_kind: oci
  artifact_ref: gpuaas/apps/catalog/{app}@{digest}
  compatibility:
    requires_capacity_shape: baremetal
    min_gpu_count: 1
    supported_accelerators: [nvidia-h100, nvidia-h200]
  runtime_profile:
    kind: launchable_oci
    command: ["python3", "-m", "serve", "--host", "0.0.0.0", "--port", "{port}"]
    env:
      HF_HUB_OFFLINE: "1"
      NCCL_DEBUG: WARN
      OMP_NUM_THREADS: "8"
    ports:
      - name: http
        container: {port}
        expose: private
      - name: metrics
        container: {port + 1000}
        expose: private
    resources:
      min_memory_mib: 16384
      min_vcpu: 4
    shm_mib: 16384
    stop_grace_s: 30
    health:
      readiness:
        http:
          port: {port}
          path: /health
      interval_s: 2
      timeout_s: 1.5
      start_budget_s: 600
      failures_max: 3
{_form(app)}  metering:
    kind: tokens
  access:
    instructions: >-
      ssh -L {port}:127.0.0.1:{{host_port}} {{node}},
      then open http://127.0.0.1:{port}/
  smoke_test:
    command: ["python3", "-m", "serve.smoke", "--url", "http://127.0.0.1:{port}/health"]
  release_notes: |
    # {version}
    - Faster first token.
    - Fewer retries when a GPU is busy.

    Upgrade one instance first, then the others.
"""
    )


def _form(app: str) -> str:
    return f"""\
  launch_parameters:
    title: Parameters of {app}
    type: object
    additionalProperties: false
    properties:
      gpu_count:
        type: integer
        minimum: 1
        maximum: 8
        default: 1
        x-ui: {{label: GPUs}}
      cpu_cores:
        type: number
        minimum: 1
        maximum: 128
        x-ui: {{label: CPU cores}}
      memory_gib:
        type: number
        minimum: 1
        maximum: 1024
        x-ui: {{label: Memory, unit: GiB}}
      host_port:
        type: integer
        minimum: 1024
        maximum: 65535
        x-ui: {{label: "Port on the node, any free one when left out"}}
      model_name:
        type: string
        pattern: "^[-a-z0-9/.]+$"
        maxLength: 200
        x-ui: {{label: Model}}
      model_length_max: {{type: integer, minimum: 128, maximum: 131072}}
      memory_share: {{type: number, minimum: 0.1, maximum: 1}}
      prefix_caching: {{type: boolean, default: true}}
      log_level: {{type: string, enum: [debug, info, warning]}}
      extra_args:
        type: array
        maxItems: 32
        items: {{type: string, maxLength: 200}}
      schedule:
        type: object
        additionalProperties: false
        properties:
          timezone: {{type: string}}
          quiet_hours: {{type: array, items: {{type: string}}}}
      tags:
        type: array
        items:
          type: string
"""
