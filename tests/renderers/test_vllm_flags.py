"""What the renderer writes for vLLM, held to what vLLM's own sources say that it takes.

`make_vllm_flags.py` made the list, and says how.
"""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconciler.core.kinds.topology import VllmSpec
from renderers.vllm_openai import flags
from tests.renderers.topologies import SIZES, example, rendered

DOCUMENTED: dict[str, dict[str, Any]] = json.loads(
    Path(__file__).with_name("vllm_flags.json").read_text()
)["flags"]
FULL = {
    "model": "org/model",
    "served_name": "small",
    "port": 8080,
    "pipeline_parallel": 2,
    "max_model_len": 4096,
    "gpu_memory_utilization": 0.85,
    "dtype": "bfloat16",
    "quantization": "fp8",
    "max_num_seqs": 32,
}
"""Everything that becomes a flag, none of it left out."""
QUANTIZATIONS = DOCUMENTED["--quantization"]["known"]


def taken(flag: str, value: str | None) -> bool:
    """Whether vLLM's parser takes the value, None standing for a switch without one."""
    documented = DOCUMENTED[flag]
    kind = documented["type"]
    if value is None or kind == "bool":
        return value is None and kind in ("bool", "switch")
    if kind == "choice":
        return value in documented["choices"]
    if kind in ("int", "float"):
        (int if kind == "int" else float)(value)
    return kind in ("int", "float", "str", "list")


def pairs(words: tuple[str, ...]) -> list[tuple[str, str | None]]:
    return [
        (word, None if following.startswith("--") else following)
        for word, following in pairwise((*words, "--"))
        if word.startswith("--")
    ]


def test_every_flag_there_can_be_is_documented() -> None:
    both = (
        flags(VllmSpec.model_validate({**FULL, "enable_prefix_caching": on}), 4)
        for on in (False, True)
    )
    found = {flag for words in both for flag, _ in pairs(words)}
    assert len(found) == 12
    assert found <= {*DOCUMENTED}


SPECS = st.fixed_dictionaries(
    {"model": st.just("org/model")},
    optional={
        "served_name": st.from_regex(r"[/A-Za-z0-9][-_./A-Za-z0-9]{0,20}", fullmatch=True),
        "port": st.integers(1, 65_535),
        "pipeline_parallel": st.integers(1, 1024),
        "max_model_len": st.integers(1, 100_000_000),
        "gpu_memory_utilization": st.floats(0.05, 1),
        "dtype": st.sampled_from(get_args(VllmSpec.model_fields["dtype"].annotation)),
        "quantization": st.sampled_from(QUANTIZATIONS),
        "max_num_seqs": st.integers(1, 1_000_000),
        "enable_prefix_caching": st.booleans(),
    },
)


@given(SPECS, st.integers(1, 1024))
def test_every_value_is_one_that_vllm_takes(spec: dict[str, Any], tensor_parallel: int) -> None:
    words = flags(VllmSpec.model_validate(spec), tensor_parallel)
    found = pairs(words)
    assert sum(1 if value is None else 2 for _, value in found) == len(words)
    assert [flag for flag, value in found if not taken(flag, value)] == []


@pytest.mark.parametrize("name", [name for name in SIZES if name.startswith("vllm")])
def test_the_command_begins_as_vllm_documents_it(name: str) -> None:
    workload = rendered(example(name))
    assert workload.topology is not None
    main = workload.topology.service("vllm")
    assert main is not None
    assert main.command[:2] == ("vllm", "serve")
    assert not main.command[2].startswith("-")
    written = [(flag, value) for flag, value in pairs(main.command[3:]) if flag in DOCUMENTED]
    assert [flag for flag, value in written if not taken(flag, value)] == []


@pytest.mark.parametrize(
    ("flag", "value"),
    [("--dtype", "int4"), ("--enable-prefix-caching", "yes"), ("--headless", "1")],
)
def test_the_list_would_tell(flag: str, value: str) -> None:
    assert not taken(flag, value)


def test_schemas_offer_every_dtype_that_vllm_documents_and_no_other() -> None:
    offered = get_args(VllmSpec.model_fields["dtype"].annotation)
    assert sorted(offered) == DOCUMENTED["--dtype"]["choices"]
