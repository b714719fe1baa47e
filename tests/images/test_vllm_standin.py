"""The stand-in takes vLLM's command lines, and answers as vLLM does but for who wrote the words."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from deploy.images.plain.http_app import App
from deploy.images.vllm_standin import arguments
from deploy.images.vllm_standin.engine import Engine, Settings
from deploy.images.vllm_standin.metrics import Metrics
from deploy.images.vllm_standin.openai_api import app
from reconciler.devkit.services import free_port
from tests.images.serving import serving
from tests.waiting import wait_until

ROOT = Path(__file__).parents[2]
MODEL, KEY = "qwen3", "sk-made-up"
ASKED = {"role": "user", "content": "Which GPU is it?"}
SAID = "This is vllm-standin, no model ran. It was asked: Which GPU is it?"


def engine(max_model_len: int = 64, token_s: float = 0.0, seqs: int = 2) -> Engine:
    names = (MODEL, "other-name")
    return Engine(Settings("Qwen/Qwen3", names, max_model_len, seqs, token_s), Metrics(MODEL))


def open_app(max_model_len: int = 64) -> App:
    return app(engine(max_model_len), [])


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    with serving(app(engine(), [KEY])) as found:
        found.headers["Authorization"] = f"Bearer {KEY}"
        yield found


def error_of(answer: httpx.Response) -> tuple[int, str, str]:
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["code"] == answer.status_code
    return answer.status_code, error["type"], error["message"]


def events(answer: httpx.Response) -> list[dict[str, Any]]:
    assert answer.headers["content-type"].startswith("text/event-stream")
    lines = answer.text.split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]


def test_models_say_whose_they_are(client: httpx.Client) -> None:
    page = client.get("/v1/models").json()
    assert page["object"] == "list"
    first, second = page["data"]
    assert (first["id"], second["id"]) == (MODEL, "other-name")
    assert first["owned_by"] == "vllm-standin"
    assert (first["object"], first["root"], first["max_model_len"]) == ("model", "Qwen/Qwen3", 64)
    assert client.get("/version").json() == {"version": "vllm-standin 1.0.0"}


def test_chat(client: httpx.Client) -> None:
    page = client.post("/v1/chat/completions", json={"model": MODEL, "messages": [ASKED]}).json()
    assert page["object"] == "chat.completion"
    assert page["id"].startswith("chatcmpl-")
    assert page["model"] == MODEL
    (choice,) = page["choices"]
    assert choice["message"] == {"role": "assistant", "content": SAID}
    assert (choice["index"], choice["finish_reason"]) == (0, "stop")
    assert page["usage"] == {"prompt_tokens": 4, "completion_tokens": 13, "total_tokens": 17}


def test_chat_in_parts(client: httpx.Client) -> None:
    parts = [{"type": "text", "text": "Which GPU"}, {"type": "text", "text": "is it?"}]
    asked = {"model": MODEL, "messages": [{"role": "user", "content": parts}]}
    page = client.post("/v1/chat/completions", json=asked).json()
    assert page["choices"][0]["message"]["content"] == SAID


def test_chat_streamed(client: httpx.Client) -> None:
    options = {"stream": True, "stream_options": {"include_usage": True}, "max_tokens": 5}
    asked = {"model": MODEL, "messages": [ASKED], **options}
    told = events(client.post("/v1/chat/completions", json=asked))
    assert {event["object"] for event in told} == {"chat.completion.chunk"}
    assert len({event["id"] for event in told}) == 1
    assert told[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    said = "".join(event["choices"][0]["delta"].get("content", "") for event in told[:-1])
    assert said == "This is vllm-standin, no model"
    assert told[-2]["choices"][0]["delta"] == {}
    assert told[-2]["choices"][0]["finish_reason"] == "length"
    assert (told[-1]["choices"], told[-1]["usage"]["completion_tokens"]) == ([], 5)


def test_completion_and_the_same_streamed(client: httpx.Client) -> None:
    asked = {"model": "other-name", "prompt": "one two", "max_tokens": 4}
    page = client.post("/v1/completions", json=asked).json()
    assert (page["object"], page["id"][:5]) == ("text_completion", "cmpl-")
    (choice,) = page["choices"]
    assert (choice["text"], choice["finish_reason"]) == ("This is vllm-standin, no", "length")
    told = events(client.post("/v1/completions", json={**asked, "stream": True}))
    assert "".join(event["choices"][0]["text"] for event in told) == choice["text"]
    assert told[-1]["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize(
    ("path", "body", "expected"),
    [
        ("chat/completions", {"model": "gpt-9", "messages": [ASKED]},
         (404, "NotFoundError", "The model `gpt-9` does not exist.")),
        ("chat/completions", {"model": MODEL, "messages": []},
         (400, "BadRequestError", "messages has to be a list that is not empty")),
        ("chat/completions", {"model": MODEL, "messages": [{"role": "user"}]},
         (400, "BadRequestError", "each message has to have a role and content")),
        ("completions", {"model": MODEL, "prompt": "a", "max_tokens": 0},
         (400, "BadRequestError", "max_tokens must be at least 1, got 0.")),
        ("completions", {"model": MODEL, "prompt": "a b", "max_tokens": 63},
         (400, "BadRequestError", "This model's maximum context length is 64 tokens. However, you "
          "requested 63 output tokens and your prompt contains 2 input tokens.")),
        ("embeddings", {}, (404, "NotFoundError", "there is no /v1/embeddings")),
    ],
)  # fmt: skip
def test_errors_are_openais(
    client: httpx.Client, path: str, body: dict[str, Any], expected: tuple[int, str, str]
) -> None:
    assert error_of(client.post(f"/v1/{path}", json=body)) == expected


def test_a_body_that_is_no_json(client: httpx.Client) -> None:
    status, kind, message = error_of(client.post("/v1/completions", content=b"{"))
    assert (status, kind) == (400, "BadRequestError")
    assert message.startswith("the body is no JSON")
    assert error_of(client.get("/v1/completions"))[0] == 405


@pytest.mark.parametrize("given", ["", "Bearer wrong", f"Basic {KEY}", KEY, "Bearer"])
def test_below_v1_the_key_is_asked_for(client: httpx.Client, given: str) -> None:
    headers = {"Authorization": given}
    for method, path in (("GET", "/v1/models"), ("POST", "/v1/completions")):
        answer = client.request(method, path, headers=headers)
        assert error_of(answer) == (401, "AuthenticationError", "Unauthorized")
    for path in ("/health", "/metrics", "/version"):
        assert client.get(path, headers=headers).status_code == 200


def test_without_a_key_everybody_is_served() -> None:
    with serving(open_app()) as client:
        assert client.get("/v1/models").status_code == 200


def test_metrics_are_vllms_and_prometheus_reads_them() -> None:
    with serving(open_app()) as client:
        client.post("/v1/completions", json={"model": MODEL, "prompt": "a b c", "max_tokens": 2})
        answer = client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    samples = {
        (one.name, one.labels.get("le"), one.labels.get("finished_reason")): one
        for family in text_string_to_metric_families(answer.text)
        for one in family.samples
    }
    labels = {(one.labels["model_name"], one.labels["engine"]) for one in samples.values()}
    assert labels == {(MODEL, "0")}
    values = {
        "vllm:num_requests_running": 0, "vllm:num_requests_waiting": 0,
        "vllm:kv_cache_usage_perc": 0, "vllm:gpu_cache_usage_perc": 0,
        "vllm:prompt_tokens_total": 3, "vllm:generation_tokens_total": 2,
        "vllm:time_to_first_token_seconds_count": 1, "vllm:inter_token_latency_seconds_count": 1,
        "vllm:e2e_request_latency_seconds_count": 1, "vllm:request_queue_time_seconds_count": 1,
    }  # fmt: skip
    assert {name: samples[name, None, None].value for name in values} == values
    assert samples["vllm:request_success_total", None, "length"].value == 1
    assert samples["vllm:e2e_request_latency_seconds_bucket", "+Inf", None].value == 1


def test_more_than_max_num_seqs_wait() -> None:
    one_at_a_time = engine(seqs=1)
    first, second = one_at_a_time.generate("a", 9), one_at_a_time.generate("b", 9)
    assert next(first) == "This"
    page = one_at_a_time.metrics.page().decode()
    assert 'vllm:num_requests_running{engine="0",model_name="qwen3"} 1.0' in page
    assert 'vllm:kv_cache_usage_perc{engine="0",model_name="qwen3"} 1.0' in page
    first.close()
    assert "".join(second).startswith("This is vllm-standin")
    page = one_at_a_time.metrics.page().decode()
    assert 'finished_reason="abort",model_name="qwen3"} 1.0' in page
    assert 'vllm:num_requests_running{engine="0",model_name="qwen3"} 0.0' in page


@pytest.mark.parametrize(
    ("text", "expected"), [("32768", 32_768), ("32k", 32_000), ("32K", 32_768), ("1.5k", 1500)]
)
def test_lengths_as_vllm_reads_them(text: str, expected: int) -> None:
    asked = arguments.parse(["serve", "m", f"--max-model-len={text}"])
    assert asked.max_model_len == expected


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["serve", "m", "--tensor-paralel-size=2"], "unrecognized arguments"),
        (["serve", "m", "--tensor-parallel=2"], "unrecognized arguments"),
        (["serve", "m", "--tensor-parallel-size=0"], "0 is not at least 1"),
        (["serve", "m", "--gpu-memory-utilization=1.5"], "1.5 is not between 0 and 1"),
        (["serve", "m", "--max-model-len=1.5"], "'1.5' is no number, nor one such as 32k or 32K"),
        (["serve", "m", "--dtype=int3"], "invalid choice: 'int3'"),
        (["serve"], "the following arguments are required: MODEL"),
        (["bench", "m"], "invalid choice: 'bench'"),
    ],
)
def test_what_vllm_would_not_take_is_an_error(
    argv: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        arguments.parse(argv)
    assert ended.value.code == 2
    assert expected in capsys.readouterr().err


def test_every_flag_is_one_that_vllm_documents() -> None:
    documented = json.loads((ROOT / "tests/renderers/vllm_flags.json").read_text())
    flags = set(documented["flags"])
    served = arguments.parser()._subparsers._group_actions[0].choices["serve"]  # type: ignore
    ours = {text for action in served._actions for text in action.option_strings}
    named = {flag.replace("--no-", "--") for flag in ours if flag.startswith("--")}
    assert named - flags == {"--help"}


def test_the_program_loads_listens_and_ends() -> None:
    port = free_port()
    code = "from deploy.images.vllm_standin.serve import main; main()"
    argv = ["serve", "Qwen/Qwen3", f"--port={port}", "--served-model-name", MODEL]
    program = subprocess.Popen(
        [sys.executable, "-c", code, *argv],
        cwd=ROOT,
        env={"PATH": os.defpath, "VLLM_API_KEY": KEY, "STANDIN_LOAD_S": "0.2"},
        stdout=subprocess.PIPE,
        text=True,
    )
    base = f"http://127.0.0.1:{port}"
    try:
        wait_until(lambda: _status(f"{base}/health") == 200)
        assert _status(f"{base}/v1/models") == 401
    finally:
        program.terminate()
        said, _ = program.communicate(timeout=20)
    assert program.returncode == 0
    assert "this is not vLLM. No model is loaded and no GPU used; qwen3 is a name." in said
    assert KEY not in said


def _status(url: str) -> int:
    try:
        return httpx.get(url, trust_env=False).status_code
    except httpx.TransportError:
        return 0
