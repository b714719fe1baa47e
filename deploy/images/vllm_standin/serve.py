"""`vllm serve …` without vLLM, a model or a GPU, for trying what stands around one.

`VLLM_API_KEY` is asked for as vLLM does. `STANDIN_LOAD_S` is how long it takes until it listens,
as loading a model would; `STANDIN_TOKEN_MS` how long a token takes.
"""

from __future__ import annotations

import os
import sys
import time

from deploy.images.plain.http_app import run, say
from deploy.images.vllm_standin.arguments import NAME, parse
from deploy.images.vllm_standin.engine import Engine, Settings
from deploy.images.vllm_standin.metrics import Metrics
from deploy.images.vllm_standin.openai_api import app


def main() -> None:
    arguments = parse(sys.argv[1:])
    names = tuple(arguments.served_model_name) or (arguments.model,)
    given = os.environ.get("VLLM_API_KEY")
    keys = arguments.api_key or ([given] if given else [])
    settings = Settings(
        arguments.model,
        names,
        arguments.max_model_len,
        arguments.max_num_seqs,
        float(os.environ.get("STANDIN_TOKEN_MS") or 0) / 1000,
    )
    say(f"{NAME}: this is not vLLM. No model is loaded and no GPU used; {names[0]} is a name.")
    time.sleep(float(os.environ.get("STANDIN_LOAD_S") or 0))
    run(app(Engine(settings, Metrics(names[0])), keys), arguments.port)
