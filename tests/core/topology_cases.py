"""What can be wrong with a topology: how to bend a version, and what is said of which field."""

from __future__ import annotations

from tests.core.topology_world import (
    GENERIC,
    INDEX_IMAGE,
    JUPYTER,
    VLLM,
    Bend,
    E,
    P,
    Profile,
    S,
    both,
    endpoint,
    fields,
    more,
    part,
    service,
    topology,
    waits,
)

OF_VERSION: dict[str, tuple[Profile, Bend, str, str, str]] = {
    "no renderer": (
        GENERIC, fields(renderer=None), P, "renderer_missing",
        "docker_compose without a renderer: nobody makes services of this "
        "(say renderer: one of generic_services, jupyter_with_sidecar, vllm_openai)",
    ),
    "no part for the renderer": (
        GENERIC, fields(renderer="vllm_openai"), P, "renderer_missing",
        "the renderer vllm_openai makes services of vllm, which is not there "
        "(add runtime_profile.vllm)",
    ),
    "a topology for one container": (
        GENERIC, fields(kind="launchable_oci", renderer=None), f"{P}/topology", "field_not_read",
        "topology is for the runtime kind docker_compose, and this is launchable_oci "
        "(leave it out, or say kind: docker_compose)",
    ),
    "the part of another renderer": (
        GENERIC, fields(vllm={"model": "m"}), f"{P}/vllm", "field_not_read",
        "vllm is not read by the renderer generic_services (leave it out)",
    ),
    "ports": (
        VLLM, fields(ports=[{"name": "http", "container": 80}]), f"{P}/ports", "field_not_read",
        "ports is not read by the renderer vllm_openai (say it under topology.endpoints)",
    ),
    "a command of nobody": (
        GENERIC, fields(command=["serve"]), f"{P}/command", "field_not_read",
        "command is not read by the renderer generic_services (say it of the service)",
    ),
    "variables of nobody": (
        GENERIC, fields(env={"A": "1"}), f"{P}/env", "field_not_read",
        "env is not read by the renderer generic_services (say it of the service)",
    ),
    "a probe of nobody": (
        GENERIC, fields(health={"start_budget_s": 5}), f"{P}/health", "field_not_read", "health is",
    ),
    "further members": (
        GENERIC, fields(members=[{"role": "worker"}]), f"{P}/kind", "members_not_offered",
        "runtime kind docker_compose carries no further members",
    ),
    "packages": (
        GENERIC, lambda profile: None, "/spec/launch_parameters/properties/pip_packages",
        "packages_not_carried",
        "the runtime kind docker_compose puts no packages into its services "
        "(put them into the image)",
    ),
    # Who is who.
    "no main service": (
        GENERIC, service(0, role=None, sidecar_class="data", limits={"memory_mib": 9, "vcpu": 1}),
        S, "main_service", "no service is the main one: which of them is the app? "
        "(say role: main of one of them)",
    ),
    "no service at all": (
        GENERIC, fields(topology={}), S, "main_service", "no service is the main one",
    ),
    "two main services": (
        GENERIC, more(role="main", sidecar_class=None, limits=None), f"{S}/3/role", "main_service",
        "more is a main service, and api is one already (make it a sidecar)",
    ),
    "a main service that ends": (
        GENERIC, service(0, restart="on_failure"), f"{S}/0/restart", "main_service",
        "api is the main service: once it ended well the app would count as ready, without it "
        "(leave restart out)",
    ),
    "a main service beside the renderer's": (
        VLLM, more(role="main", sidecar_class=None), f"{S}/1/role", "main_service",
        "more is a main service, and vllm is one already",
    ),
    "the name of the renderer's service": (
        JUPYTER, more(name="notebook"), f"{S}/0/name", "service_name_taken",
        "notebook is the service that the renderer jupyter_with_sidecar makes "
        "(call it something else)",
    ),
    "a name that nobody else can reach": (
        GENERIC, more(name="localhost"), f"{S}/3/name", "service_name_taken",
        "localhost is every service's name for itself, so no other reaches this one "
        "(call it something else)",
    ),
    "a name that is an address": (
        GENERIC, more(name="0x7f"), f"{S}/3/name", "service_name_taken",
        "0x7f is read as an address, so no other service reaches this one",
    ),
    "an image of the main service's own": (
        GENERIC, service(0, image_ref=INDEX_IMAGE), f"{S}/0/image_ref", "image_of_main",
        "the main service api runs what the version itself does "
        "(say it in runtime_profile.image_ref)",
    ),
    "variants of the main service's own": (
        GENERIC, service(0, variants={"cpu": INDEX_IMAGE}), f"{S}/0/variants", "image_of_main",
        "(say it in runtime_profile.variants)",
    ),
    "a sidecar of no class": (
        GENERIC, service(1, sidecar_class=None), f"{S}/1", "sidecar_class",
        "sidecar index does not say what sort it is (say sidecar_class: one of cache, data, logs, "
        "metrics, proxy, setup, worker)",
    ),
    "a main service of a class": (
        GENERIC, service(0, sidecar_class="data"), f"{S}/0/sidecar_class", "sidecar_class",
        "api is the main service, and no sidecar of any class (leave it out)",
    ),
    "a setup that never ends": (
        GENERIC, service(2, restart=None), f"{S}/2/restart", "sidecar_class",
        "fill is of class setup, which ends, and is always started again "
        "(give it restart on_failure or never)",
    ),
    # Who waits for whom.
    "waiting for nobody": (
        GENERIC, waits(1, ("fil", "started")), f"{S}/1/depends_on/0/service", "unknown_service",
        "there is no service fil (did you mean fill?)",
    ),
    "waiting twice": (
        GENERIC, waits(1, ("fill", "started"), ("fill", "completed")), f"{S}/1/depends_on/0",
        "dependency_twice", "index waits for fill more than once "
        "(say it once, with the condition that is meant)",
    ),
    "waiting for an end that never comes": (
        GENERIC, waits(0, ("index", "completed")), f"{S}/0/depends_on/0/condition",
        "condition_never_holds", "index never completes: its restart is always "
        "(give it restart on_failure or never, or wait for it to be healthy)",
    ),
    "waiting for the end of the main service": (
        VLLM, more(depends_on=[{"service": "vllm", "condition": "completed"}]),
        f"{S}/1/depends_on/0/condition", "condition_never_holds",
        "vllm never completes: its restart is always (wait for it to be healthy)",
    ),
    "waiting for health that nobody asks for": (
        GENERIC, waits(1, ("fill", "healthy")), f"{S}/1/depends_on/0/condition",
        "condition_never_holds", "fill says nowhere when it is healthy "
        "(give it health.readiness, or wait for it to be started)",
    ),
    "waiting for itself": (
        GENERIC, waits(1, ("index", "started")), f"{S}/1/depends_on/0", "service_cycle",
        "services wait for each other: index → index (take one of these out of a depends_on)",
    ),
    "waiting in a circle": (
        GENERIC, both(waits(1, ("fill", "started")), waits(2, ("api", "started"))),
        f"{S}/0/depends_on/0", "service_cycle",
        "services wait for each other: api → index → fill → api",
    ),
    "a main service that may be missing": (
        GENERIC, service(0, vital=False), f"{S}/0/vital", "vital_after_all",
        "api is the main service, without which there is no app (leave it out)",
    ),
    "a service that may be missing and is waited for": (
        GENERIC, service(1, vital=False), f"{S}/1/vital", "vital_after_all",
        "index is said not to be vital, and api does not start without it "
        "(leave vital out, or have that one wait for it to be started alone)",
    ),
    # Endpoints.
    "an endpoint of nobody": (
        GENERIC, endpoint(service="idex"), f"{E}/3/service", "unknown_service",
        "there is no service idex (did you mean index?)",
    ),
    "the name of the renderer's endpoint": (
        VLLM, endpoint(name="api", service="vllm"), f"{E}/1/name", "endpoint_name_taken",
        "api is the endpoint that the renderer vllm_openai makes (call this one something else)",
    ),
    "two endpoints at one port": (
        GENERIC, endpoint(port=6333, protocol="grpc"), f"{E}/3/port", "endpoint_port_taken",
        "port 6333 of index is the endpoint index already (endpoints at one port speak the same, "
        "have paths of their own, and one of them at most is reached from outside)",
    ),
    "two protocols at one port": (
        GENERIC, endpoint(port=6333, path="/x"), f"{E}/3/port", "endpoint_port_taken",
        "port 6333 of index is the endpoint index already",
    ),
    "one port published twice": (
        GENERIC, endpoint(service="api", port=8080, path="/x", expose="private"), f"{E}/3/port",
        "endpoint_port_taken", "port 8080 of api is the endpoint api already",
    ),
    "the renderer's port published again": (
        VLLM, endpoint(service="vllm", port=8000, path="/x", expose="private"), f"{E}/1/port",
        "endpoint_port_taken", "port 8000 of vllm is the endpoint api already",
    ),
    "a path where there are none": (
        GENERIC, endpoint(protocol="tcp", path="/x"), f"{E}/3/path", "endpoint_not_http",
        "tcp has no paths (leave path out)",
    ),
    "a page that is none": (
        GENERIC, endpoint(protocol="grpc", expose="embedded_ui_gateway"), f"{E}/3/expose",
        "endpoint_not_http", "the gateway shows pages, and more speaks grpc "
        "(expose it as private)",
    ),
    # Volumes and scratch.
    "a volume that is not there": (
        GENERIC, service(1, mounts=[{"volume": "dat", "path": "/x"}]), f"{S}/1/mounts/0/volume",
        "unknown_volume",
        "index mounts the volume dat, which is not there (did you mean data?)",
    ),
    "a cache that is not there": (
        VLLM, part("vllm", cache_volume="models"), f"{P}/vllm/cache_volume", "unknown_volume",
        "vllm mounts the volume models, which is not there (add it under "
        "/spec/runtime_profile/topology/volumes)",
    ),
    "a place to work that is not there": (
        JUPYTER, part("jupyter", work_volume="home"), f"{P}/jupyter/work_volume", "unknown_volume",
        "notebook mounts the volume home, which is not there",
    ),
    "a volume of nobody": (
        JUPYTER, topology(volumes=[{"name": one, "size_mib": 1} for one in ("work", "more")]),
        f"{P}/topology/volumes/1", "nothing_reads_it",
        "no service mounts the volume more (mount it, or leave it out)",
    ),
    "two things in one place": (
        GENERIC, service(1, scratch=[{"path": "/data", "size_mib": 1}]), f"{S}/1/scratch/0/path",
        "paths_overlap", "index has /data and /data, one in the other "
        "(give each a path of its own)",
    ),
    "one thing in another": (
        GENERIC, service(1, scratch=[{"path": "/data/tmp", "size_mib": 1}]),
        f"{S}/1/scratch/0/path", "paths_overlap", "index has /data/tmp and /data, one in the other",
    ),
    "a volume over the secrets": (
        GENERIC, service(1, mounts=[{"volume": "data", "path": "/run"}]), f"{S}/1/mounts/0/path",
        "path_reserved", "/run of index would cover, or be in, /run/gpuaas (that is where the "
        "system, secrets or blobs are: choose another)",
    ),
    "files where the secrets are": (
        JUPYTER, part("jupyter", work_path="/run/gpuaas/secrets"), f"{P}/jupyter/work_path",
        "path_reserved", "/run/gpuaas/secrets of notebook would cover, or be in, /run/gpuaas",
    ),
    "scratch for devices": (
        GENERIC, service(1, scratch=[{"path": "/dev/shm", "size_mib": 1}]),
        f"{S}/1/scratch/0/path", "path_reserved", "would cover, or be in, /dev",
    ),
    "all memory for scratch": (
        GENERIC, service(1, scratch=[{"path": "/tmp", "size_mib": 512}]), f"{S}/1/scratch",
        "scratch_too_large", "index has 512 MiB of memory, and 512 MiB of it are scratch "
        "(scratch is in memory: lower it, or raise limits.memory_mib)",
    ),
    "a sidecar without limits": (
        GENERIC, service(1, limits=None), f"{S}/1/limits", "sidecar_unlimited",
        "sidecar index has no limit for memory_mib and vcpu "
        "(say it: the main service has what the sidecars leave)",
    ),
    "a sidecar without one limit": (
        GENERIC, service(1, limits={"memory_mib": 512}), f"{S}/1/limits", "sidecar_unlimited",
        "sidecar index has no limit for vcpu",
    ),
    "a main service held to less than it needs": (
        GENERIC, service(0, limits={"memory_mib": 100}), f"{S}/0/limits/memory_mib",
        "below_minimum", "api is held to 100, and needs 1024 at least "
        "(raise it, or lower what runtime_profile.resources says)",
    ),
    # Secrets and blobs.
    "a secret that is not there": (
        GENERIC, service(1, secrets=["tokn"]), f"{S}/1/secrets/0", "unknown_secret",
        "index reads secret tokn, which this version does not have (did you mean token?)",
    ),
    "the machine's identity for a sidecar": (
        GENERIC, service(1, secrets=["machine-identity"]), f"{S}/1/secrets/0", "unknown_secret",
        "index reads secret machine-identity, which this version does not have "
        "(the main service has it without asking, and no other)",
    ),
    "a blob that is not there": (
        GENERIC, service(1, blobs=["weights"]), f"{S}/1/blobs/0", "unknown_blob",
        "index reads blob weights, which this version does not have "
        "(name it in runtime_profile.blobs)",
    ),
    "a secret of nobody": (
        GENERIC, service(0, secrets=None), f"{P}/secrets/0", "nothing_reads_it",
        "no service reads secret token (name it in the secrets of a service, or leave it out)",
    ),
    "a variable beside its secret": (
        GENERIC, service(0, env={"TOKEN": "x"}), f"{S}/0/env/TOKEN", "secret_env_taken",
        "TOKEN of api is filled by its secret token already (leave one of them out)",
    ),
    "a key that is not there": (
        VLLM, part("vllm", api_key_secret="api-key"), f"{P}/vllm/api_key_secret", "unknown_secret",
        "vllm reads secret api-key, which this version does not have",
    ),
    "a key in a variable of another name": (
        VLLM, fields(secrets=[{"name": "key", "env": "API_KEY"}]), f"{P}/secrets/0/env",
        "secret_env_taken", "key is in VLLM_API_KEY, and can't be in API_KEY as well "
        "(leave env out)",
    ),
    "a key for all to read": (
        VLLM, fields(env={"VLLM_API_KEY": "sk-x"}), f"{P}/env/VLLM_API_KEY", "secret_in_env",
        "VLLM_API_KEY is a secret, and would stand here for all to read "
        "(name a secret in vllm.api_key_secret)",
    ),
    "a key on the command line": (
        VLLM, fields(command=["vllm", "serve", "--api_key=sk-x"]), f"{P}/command/2",
        "secret_in_command", "--api-key shows a secret to whoever lists processes "
        "(name a secret in vllm.api_key_secret)",
    ),
    "a token on the command line, cut short": (
        JUPYTER, fields(command=["start-notebook.py", "--IdentityProvider.tok", "x"]),
        f"{P}/command/1", "secret_in_command",
        "--identityprovider.tok shows a secret to whoever lists processes",
    ),
    "a second secret in the key's variable": (
        VLLM, fields(secrets=[{"name": "key"}, {"name": "old", "env": "VLLM_API_KEY"}]),
        f"{P}/secrets/1/env", "secret_env_taken",
        "VLLM_API_KEY is for key, which vllm.api_key_secret names (call that of old otherwise)",
    ),
    "a secret in place of the token's file": (
        JUPYTER, fields(secrets=[{"name": "token"}, {"name": "old", "env": "JUPYTER_TOKEN_FILE"}]),
        f"{P}/secrets/1/env", "secret_env_taken",
        "JUPYTER_TOKEN_FILE is for token, which jupyter.token_secret names",
    ),
    "a flag that the renderer writes": (
        JUPYTER, fields(command=["start-notebook.py", "--ServerApp.base_url=/x"]),
        f"{P}/command/1", "field_not_read", "--ServerApp.base_url is written by the renderer "
        "jupyter_with_sidecar (say it in jupyter.base_path)",
    ),
    "a flag of vLLM that is a field": (
        VLLM, fields(command=["vllm", "serve", "-tp", "2"]), f"{P}/command/2", "field_not_read",
        "-tp is written by the renderer vllm_openai (say it in vllm.tensor_parallel)",
    ),
    "a flag that is the platform's alone": (
        VLLM, fields(command=["vllm", "serve", "--host=::"]), f"{P}/command/2", "field_not_read",
        "--host is written by the renderer vllm_openai (leave it out)",
    ),
    # GPUs.
    "the rest for two": (
        GENERIC, both(service(0, gpus="rest"), more(gpus="rest")), f"{S}/3/gpus", "gpu_shares",
        "api and more both have the rest of the GPUs (say how many one of them has, or all of "
        "both)",
    ),
    "all for one, and some for another": (
        GENERIC, both(service(0, gpus="all"), more(gpus=1)), f"{S}/0/gpus", "gpu_shares",
        "api has all GPUs, and more some that are no other's (say rest of the one, or all of both)",
    ),
    "the rest beside a main service that says nothing": (
        GENERIC, more(gpus="rest"), f"{S}/3/gpus", "gpu_shares",
        "more has the rest of the GPUs, which leaves the main none (say how many api has)",
    ),
    "instructions for an entrance that is none": (
        GENERIC, topology(endpoints=[{"name": "index", "service": "index", "port": 6333}]),
        "/spec/access/instructions", "unknown_endpoint",
        "the instructions show {host_port}, and no endpoint of api is reached from outside "
        "(say expose: private of one)",
    ),
    "instructions for a port of nobody": (
        GENERIC, lambda profile: None, "/spec/access/instructions", "unknown_endpoint",
        "the instructions show the port of 'index', which nobody outside reaches "
        "(those there are: api, ui)",
    ),
}  # fmt: skip
