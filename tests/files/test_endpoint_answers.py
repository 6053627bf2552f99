"""Answers of every endpoint are written as the provider sent them.

A Router with its defaults, over HTTP. What litellm itself loses is listed here, and in
docs/reference/translation.md.
"""

from __future__ import annotations

import base64
import copy
import json
import struct
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from openai.types import Completion, CreateEmbeddingResponse, ModerationCreateResponse
from openai.types.chat import ChatCompletion
from openai.types.responses import Response

from helpers.batch_files import read
from helpers.recording_provider import Canned, RecordingProvider, recording_provider
from parallel_core import ParallelRouter, RouterParallelRequest, parallel_completions
from parallel_core.config import Redactor, retire
from parallel_core.demo_server import DemoServerSettings, DemoServerThread
from parallel_core.files.batch_output import call_statistics, result_line

# litellm warns of an embedding in base64, which its class has no type for.
pytestmark = pytest.mark.filterwarnings("ignore:Pydantic serializer warnings:UserWarning")

TYPES: dict[str, Any] = {
    "acompletion": ChatCompletion,
    "aembedding": CreateEmbeddingResponse,
    "aresponses": Response,
    "atext_completion": Completion,
    "amoderation": ModerationCreateResponse,
}

# Operation, model and arguments.
ASKED: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("aembedding", "fast", {"input": "one two"}),
    ("aembedding", "fast", {"input": ["one", "two"], "encoding_format": "float"}),
    ("aembedding", "fast", {"input": [[1, 2], [3]], "encoding_format": "base64"}),
    ("aembedding", "embedder", {"input": "one", "dimensions": 3}),
    ("aembedding", "fast", {"input": "one", "extra_body": {"demo": {"usage": False}}}),
    ("aresponses", "fast", {"input": "one two", "instructions": "be brief"}),
    ("aresponses", "fast", {"input": [{"role": "user", "content": "one"}], "metadata": {"a": "b"}}),
    ("aresponses", "fast", {"input": "one two", "max_output_tokens": 16}),
    ("aresponses", "fast", {"input": "one", "extra_body": {"demo": {"usage": False}}}),
    ("atext_completion", "instruct", {"prompt": "one two", "max_tokens": 3}),
    ("atext_completion", "instruct", {"prompt": ["one", "two"], "n": 2, "stop": "words"}),
    ("amoderation", "fast", {"input": "an unsafe text"}),
    ("amoderation", "fast", {"input": ["an unsafe text", "a text"]}),
    ("arerank", "ranking", {"query": "one", "documents": ["two", {"text": "one two"}]}),
    ("arerank", "ranking", {"query": "one", "documents": ["two", "one"], "top_n": 1}),
)
MODELS = ("fast", "text-embedding-3-small", "gpt-3.5-turbo-instruct")


@pytest.fixture(scope="module")
def running_server() -> Iterator[DemoServerThread]:
    settings = DemoServerSettings(
        models=dict.fromkeys(MODELS, 1.0), latency_median=0.0, keep_requests=100
    )
    with DemoServerThread(settings) as server:
        yield server


def router_of(url: str) -> ParallelRouter:
    def deployment(name: str, model: str, **parameters: Any) -> dict[str, Any]:
        shared = {"model": model, "api_base": url, "api_key": "sk-secret-key"}
        return {"model_name": name, "litellm_params": {**shared, **parameters}}

    return ParallelRouter(
        model_list=[
            deployment("fast", "openai/fast"),
            deployment("embedder", "openai/text-embedding-3-small"),
            deployment("instruct", "openai/gpt-3.5-turbo-instruct"),
            deployment("ranking", "cohere/fast", api_base=f"{url}/rerank"),
            deployment("vllm", "hosted_vllm/fast"),
        ]
    )


def send(url: str, *requests: RouterParallelRequest) -> list[Any]:
    """Send requests one after another; return their results."""
    router = router_of(url)
    try:
        return list(parallel_completions(router, requests, concurrency=1))
    finally:
        retire(router)


def with_floats(body: dict[str, Any]) -> dict[str, Any]:
    """Decode embeddings in base64, for which the package ``openai`` has no type."""
    packed = [one for one in body.get("data", ()) if isinstance(one["embedding"], str)]
    for one in packed:
        octets = base64.b64decode(one["embedding"])
        one["embedding"] = list(struct.unpack(f"<{len(octets) // 4}f", octets))
    return body


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
def test_every_answer_is_written_as_it_was_sent(server: DemoServerThread) -> None:
    requests = [
        RouterParallelRequest(model, (), arguments, operation=operation)
        for operation, model, arguments in ASKED
    ]
    results = send(server.url, *requests)
    sent = [one.answer for one in server.requests()]
    assert len(sent) == len(results)
    for result, answer in zip(results, sent, strict=True):
        line, fields = read(result_line("a", result, Redactor()))
        assert (line.ok, line.status_code, line.error_code) == (True, 200, None)
        body = fields["response"]["body"]
        assert body == answer
        type_ = TYPES.get(result.request.operation)
        if type_ is not None and ("usage" in answer or type_ is not CreateEmbeddingResponse):
            type_.model_validate_json(json.dumps(with_floats(body)))
        measured = call_statistics("a", result, None)
        assert (measured.ok, measured.status_code, measured.attempts) == (True, 200, 1)


USAGE = {"prompt_tokens": 3, "total_tokens": 3}
VENDOR = {"a": None}
LOGPROBS = {"tokens": ["h"], "token_logprobs": [-0.1], "top_logprobs": None}
TEXT = {"type": "output_text", "text": "hi", "logprobs": []}
CITATION = {"type": "url_citation", "url": "u", "title": "t", "start_index": 0, "end_index": 1}
RICH: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    # Operation: what a vendor answers; the arguments of the request.
    "aembedding": (
        {
            "id": "embd-1",
            "object": "list",
            "created": 5,
            "model": "m",
            "data": [{"index": 0, "object": "embedding", "embedding": [-2.25e-05, 0.1]}],
            "usage": {**USAGE, "completion_tokens": 0, "prompt_tokens_details": None},
            "vendor": VENDOR,
        },
        {"input": "a"},
    ),
    "atext_completion": (
        {
            "id": "cmpl-1",
            "object": "text_completion",
            "created": 5,
            "model": "m",
            "kv_transfer_params": None,
            "choices": [
                {
                    "index": 0,
                    "text": "hi",
                    "logprobs": {**LOGPROBS, "text_offset": [0]},
                    "finish_reason": "stop",
                    "stop_reason": 7,
                    "prompt_logprobs": None,
                }
            ],
            "usage": {**USAGE, "completion_tokens": 2, "vendor": VENDOR},
            "vendor": VENDOR,
        },
        {"prompt": "a"},
    ),
    "aresponses": (
        {
            "id": "resp_68",
            "object": "response",
            "created_at": 5,
            "status": "completed",
            "error": None,
            "billing": {"payer": "developer"},
            "model": "m",
            "output": [
                {"id": "rs_1", "type": "reasoning", "summary": [], "encrypted_content": None},
                {
                    "id": "fc_1",
                    "type": "function_call",
                    "arguments": '{"a":1}',
                    "call_id": "1",
                    "name": "f",
                },
                {
                    "id": "msg_1",
                    "type": "message",
                    "status": "completed",
                    "role": "assistant",
                    "content": [{**TEXT, "annotations": [CITATION]}],
                    "vendor": 3,
                },
            ],
            "parallel_tool_calls": True,
            "previous_response_id": "resp_67",
            "reasoning": {"effort": "low", "summary": None},
            "text": {"format": {"type": "text"}, "verbosity": "medium"},
            "tool_choice": "auto",
            "tools": [{"type": "function", "name": "f", "parameters": {}, "strict": True}],
            "usage": {
                "input_tokens": 3,
                "input_tokens_details": {"cached_tokens": 1},
                "output_tokens": 4,
                "output_tokens_details": {"reasoning_tokens": 2},
                "total_tokens": 7,
            },
            "metadata": {},
        },
        {"input": "a"},
    ),
    "amoderation": (
        {
            "id": "modr-1",
            "model": "m",
            "results": [
                {
                    "flagged": True,
                    "categories": {"harassment/threatening": False, "illicit": None, "own": True},
                    "category_scores": {"harassment/threatening": 1e-7, "own": 0.5},
                    "category_applied_input_types": {"harassment/threatening": ["text"]},
                }
            ],
            "vendor": 1,
        },
        {"input": "a"},
    ),
    "arerank": (
        {
            "id": "rank-1",
            "model": "m",
            "results": [{"index": 1, "document": {"text": "b"}, "relevance_score": 0.5}],
            "meta": {"api_version": {"version": "2"}, "billed_units": {"search_units": 1}},
            "vendor": 1,
        },
        {"query": "a", "documents": ["a", "b"]},
    ),
}
# Members that litellm drops when it makes its own object of an answer.
LOST: Mapping[str, tuple[tuple[Any, ...], ...]] = {
    "aembedding": (
        *(("id",), ("created",), ("vendor",), ("usage", "completion_tokens")),
        ("usage", "prompt_tokens_details"),
    ),
    "atext_completion": (("kv_transfer_params",), ("choices", 0, "prompt_logprobs")),
    "aresponses": (("output", 0, "encrypted_content"),),
    "amoderation": (("results", 0, "categories", "illicit"),),
    "arerank": (("model",), ("vendor",)),
}


@pytest.fixture(scope="module")
def vendor() -> Iterator[RecordingProvider]:
    answers = {
        "/v1/embeddings": "aembedding",
        "/v1/completions": "atext_completion",
        "/v1/responses": "aresponses",
        "/v1/moderations": "amoderation",
        "/v1/rerank": "arerank",
    }
    with recording_provider(lambda path, body: Canned(RICH[answers[path]][0])) as provider:
        yield provider


@pytest.mark.parametrize("operation", RICH)
def test_what_litellm_loses_of_an_answer_is_known(
    operation: str, vendor: RecordingProvider
) -> None:
    answer, arguments = RICH[operation]
    model = {"arerank": "ranking", "atext_completion": "instruct"}.get(operation, "fast")
    (result,) = send(vendor.url, RouterParallelRequest(model, (), arguments, operation=operation))
    expected = copy.deepcopy(answer)
    for *path, name in LOST[operation]:
        inner: Any = expected
        for step in path:
            inner = inner[step]
        del inner[name]
    _, fields = read(result_line("a", result, Redactor()))
    assert fields["response"]["body"] == expected


def test_the_end_of_a_response_is_that_of_a_chat(server: DemoServerThread) -> None:
    def asked(demo: dict[str, Any]) -> RouterParallelRequest:
        arguments = {"input": "one", "extra_body": {"demo": demo}, "max_output_tokens": 16}
        return RouterParallelRequest("fast", (), arguments, operation="aresponses")

    plain, cut, filtered = (
        call_statistics("a", result, None)
        for result in send(
            server.url,
            asked({"reply": "short"}),
            asked({"reply": "many words " * 20}),
            asked({"fault": "filtered"}),
        )
    )
    assert (plain.finish_reason, plain.without_text) == ("stop", False)
    assert (cut.finish_reason, cut.without_text) == ("length", False)
    assert (filtered.finish_reason, filtered.without_text) == ("content_filter", True)
    assert plain.prompt_tokens > 0 < plain.completion_tokens
