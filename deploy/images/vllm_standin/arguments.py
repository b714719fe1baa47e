"""The command line of `vllm serve`, as far as this program knows it: what vLLM documents.

Rules: a flag means what it means to vLLM, and one that is not listed here is an error, so that a
command line that was made wrongly is found out. Most are accepted and have no effect.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence

VERSION = "1.0.0"
NAME = f"vllm-standin {VERSION}"
_UNITS = {"": 1, "k": 10**3, "K": 2**10, "m": 10**6, "M": 2**20, "g": 10**9, "G": 2**30}
DTYPES = ("auto", "half", "float16", "bfloat16", "float", "float32")


def length(text: str) -> int:
    """`32768`, `32k` (thousands) or `32K` (times 1024), as vLLM reads lengths."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([kKmMgG]?)", text)
    if not found or ("." in found[1] and not found[2]):
        raise argparse.ArgumentTypeError(f"{text!r} is no number, nor one such as 32k or 32K")
    return int(float(found[1]) * _UNITS[found[2]])


def share(text: str) -> float:
    value = float(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return value


def count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return value


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="vllm", description=f"{NAME}: takes vLLM's command line.")
    top.add_argument("-v", "--version", action="version", version=NAME)
    serve = top.add_subparsers(dest="command", required=True, metavar="serve").add_parser(
        "serve", allow_abbrev=False, help="answer requests as vLLM does, without a model"
    )
    serve.add_argument("model", metavar="MODEL")
    _serving(serve)
    _model(serve)
    _engine(serve)
    return top


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Exits with 2 and says why when they are none of vLLM's."""
    return parser().parse_args(argv)


def _serving(serve: argparse.ArgumentParser) -> None:
    serve.add_argument("--host", default="")
    serve.add_argument("--port", type=int, default=8000)
    serve.add_argument("--api-key", nargs="+", default=[])
    serve.add_argument("--served-model-name", nargs="+", default=[])
    serve.add_argument("--root-path", default="")
    serve.add_argument("--uvicorn-log-level", default="info")
    serve.add_argument("--chat-template")
    serve.add_argument("--enable-auto-tool-choice", action=argparse.BooleanOptionalAction)
    serve.add_argument("--tool-call-parser")
    serve.add_argument("--disable-uvicorn-access-log", action=argparse.BooleanOptionalAction)


def _model(serve: argparse.ArgumentParser) -> None:
    serve.add_argument("--max-model-len", type=length, default=8192)
    serve.add_argument("--dtype", choices=DTYPES, default="auto")
    serve.add_argument("--quantization", "-q")
    serve.add_argument("--tokenizer")
    serve.add_argument("--revision")
    serve.add_argument("--seed", type=int)
    serve.add_argument("--load-format", default="auto")
    serve.add_argument("--download-dir")
    serve.add_argument("--trust-remote-code", action=argparse.BooleanOptionalAction)
    serve.add_argument("--enforce-eager", action=argparse.BooleanOptionalAction)
    serve.add_argument("--generation-config", default="auto")


def _engine(serve: argparse.ArgumentParser) -> None:
    serve.add_argument("--tensor-parallel-size", "-tp", type=count, default=1)
    serve.add_argument("--pipeline-parallel-size", "-pp", type=count, default=1)
    serve.add_argument("--data-parallel-size", "-dp", type=count, default=1)
    serve.add_argument("--distributed-executor-backend")
    serve.add_argument("--gpu-memory-utilization", type=share, default=0.9)
    serve.add_argument("--kv-cache-dtype", default="auto")
    serve.add_argument("--block-size", type=count)
    serve.add_argument("--max-num-seqs", type=count, default=256)
    serve.add_argument("--max-num-batched-tokens", type=length)
    serve.add_argument("--enable-prefix-caching", action=argparse.BooleanOptionalAction)
    serve.add_argument("--enable-chunked-prefill", action=argparse.BooleanOptionalAction)
    serve.add_argument("--disable-log-stats", action="store_true")
