"""`vllm_openai`: vLLM's OpenAI-compatible server as the main service, with any sidecars.

Rules:
- Only flags that vLLM documents, with values that it takes: a test holds this file to them.
- The API key reaches it in VLLM_API_KEY, never as a flag.
- It takes the GPUs that no sidecar counts, or as many as its parallel sizes say.
"""

from __future__ import annotations

from collections.abc import Sequence

from node_agent.wire import Workload
from reconciler.core.desired import Instance
from reconciler.core.kinds.topology import Service, VllmSpec
from reconciler.core.topology import VLLM, VLLM_CACHE_PATH
from renderers.common import CannotRender
from renderers.made_main import called, health_of, needed_secret
from renderers.services import rendered, services_for, topology_of, workload_of
from renderers.shares import Unfit

NAME = "vllm_openai"
PROGRAM = ("vllm", "serve")
API_KEY = "VLLM_API_KEY"
OTHERWISE = {"start_budget_s": 1200.0, "timeout_s": 5.0}
"""Weights are read and graphs compiled before it answers, and it answers late while it is busy."""
_ALWAYS = {"DO_NOT_TRACK": "1", "VLLM_NO_USAGE_STATS": "1"}
_CACHED = {
    "HF_HOME": f"{VLLM_CACHE_PATH}/huggingface",
    "VLLM_CACHE_ROOT": f"{VLLM_CACHE_PATH}/vllm",
}
_OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}


def render(instance: Instance) -> Workload | CannotRender:
    return rendered(_render, instance)


def _render(instance: Instance) -> Workload:
    profile = topology_of(instance).profile
    vllm = profile.vllm
    if vllm is None:
        raise Unfit("renderer_part_missing", f"{NAME} serves what runtime_profile.vllm says")
    needed_secret(instance, vllm.api_key_secret)
    main, *others = services_for(instance)
    made = main.model_copy(
        update={
            "command": called(
                profile.command,
                PROGRAM,
                flags(vllm, _tensor_parallel(vllm, others, len(instance.gpu_uuids))),
                vllm.model,
            ),
            "env": {**environment(vllm), **instance.env},
            "gpus": main.gpus if instance.gpu_uuids else None,
            "health": health_of(profile.health, vllm.port, "/health", OTHERWISE),
        }
    )
    variables = {} if vllm.api_key_secret is None else {vllm.api_key_secret: API_KEY}
    return workload_of(instance, VLLM, (made, *others), variables)


def flags(vllm: VllmSpec, tensor_parallel: int) -> tuple[str, ...]:
    """What follows `vllm serve MODEL`."""
    prefix_caching = "--enable-prefix-caching"
    found: list[tuple[str, object]] = [
        ("--host", "0.0.0.0"),  # noqa: S104 - within the instance's own network
        ("--port", vllm.port),
        ("--tensor-parallel-size", tensor_parallel),
        ("--pipeline-parallel-size", vllm.pipeline_parallel),
        ("--max-model-len", vllm.max_model_len),
        ("--gpu-memory-utilization", vllm.gpu_memory_utilization),
        ("--dtype", vllm.dtype),
        ("--quantization", vllm.quantization),
        ("--max-num-seqs", vllm.max_num_seqs),
        ("--served-model-name", vllm.served_name),
    ]
    words = [word for flag, value in found if value is not None for word in (flag, str(value))]
    return (*words, prefix_caching if vllm.enable_prefix_caching else "--no-enable-prefix-caching")


def environment(vllm: VllmSpec) -> dict[str, str]:
    """Nobody is told that it runs, and a model that lies there is looked for nowhere else."""
    cached = _CACHED if vllm.cache_volume is not None else {}
    return {**_ALWAYS, **cached, **(_OFFLINE if vllm.model.startswith("/") else {})}


def _tensor_parallel(vllm: VllmSpec, others: Sequence[Service], there: int) -> int:
    """What it says, if there are the GPUs for it; else what its GPUs come to. A single process can
    do without any, on the CPU.
    """
    counted = sum(one.gpus for one in others if isinstance(one.gpus, int))
    left, pipeline = there - counted, vllm.pipeline_parallel
    needed = (vllm.tensor_parallel or 1) * pipeline
    if there == 0 and needed == 1:
        return 1
    if left < needed:
        raise Unfit(
            "gpus_too_few",
            f"tensor_parallel x pipeline_parallel needs {needed} GPUs; the instance has {there}, "
            f"of which other services count {counted}",
        )
    if vllm.tensor_parallel is not None:
        return vllm.tensor_parallel
    if left % pipeline:
        raise Unfit(
            "tensor_parallel_uneven",
            f"{left} GPUs can't be split over {pipeline} pipeline stages alike: give "
            "tensor_parallel, or another number of GPUs",
        )
    return left // pipeline
