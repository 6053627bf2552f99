"""The endpoints of the demo server beside chat."""

from __future__ import annotations

import base64
import math
import struct
from typing import Any

import aiohttp
import pytest

from helpers.demo_clients import IMMEDIATE, run
from parallel_core.demo_server import DemoServer, DemoServerSettings, Trouble


def ask(path: str, *bodies: Any, settings: DemoServerSettings = IMMEDIATE) -> list[tuple[int, Any]]:
    """The status and the answer of each body."""
    answers: list[tuple[int, Any]] = []

    async def test(server: DemoServer, client: aiohttp.ClientSession) -> None:
        for body in bodies:
            url = f"{server.url}/{path}"
            given = {"model": "fast", **body} if isinstance(body, dict) else body
            async with client.post(url, json=given) as response:
                answers.append((response.status, await response.json()))

    run(test, settings)
    return answers


def good(path: str, *bodies: dict[str, Any]) -> list[Any]:
    answers = ask(path, *bodies)
    assert [status for status, _ in answers] == [200] * len(bodies), answers
    return [answer for _, answer in answers]


def test_embeddings_depend_on_the_text_alone() -> None:
    one, both, packed, short, tokens = good(
        "embeddings",
        {"input": "one two"},
        {"input": ["three", "one two"]},
        {"input": "one two", "encoding_format": "base64"},
        {"input": "one two", "dimensions": 2, "demo": {"usage": False}},
        {"input": [[1, 2], [3]]},
    )
    vector = one["data"][0]["embedding"]
    assert [entry["index"] for entry in both["data"]] == [0, 1]
    assert both["data"][1]["embedding"] == vector != both["data"][0]["embedding"]
    assert math.hypot(*vector) == pytest.approx(1)
    unpacked = struct.unpack("<8f", base64.b64decode(packed["data"][0]["embedding"]))
    assert unpacked == pytest.approx(vector)
    assert len(short["data"][0]["embedding"]) == 2
    assert "usage" not in short
    assert one["usage"] == {"prompt_tokens": 6, "total_tokens": 6}
    assert len(tokens["data"]) == 2


def test_responses() -> None:
    whole, cut, filtered, empty = good(
        "responses",
        {"input": "one two", "instructions": "be brief", "demo": {"reply": "three words here"}},
        {"input": [{"role": "user", "content": "hi"}], "max_output_tokens": 1},
        {"input": "hi", "demo": {"fault": "filtered"}},
        {"input": "hi", "demo": {"fault": "empty"}},
    )
    text = whole["output"][0]["content"][0]["text"]
    assert text.endswith("three words here")
    usage = whole["usage"]
    assert (usage["input_tokens"], usage["output_tokens"]) == (12, len(text.split(" ")))
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]
    assert whole["status"] == "completed"
    assert cut["incomplete_details"] == {"reason": "max_output_tokens"}
    assert cut["usage"]["output_tokens"] == 1
    assert filtered["incomplete_details"] == {"reason": "content_filter"}
    assert filtered["output"] == empty["output"] == []


def test_completions_answer_each_prompt() -> None:
    (answer,) = good("completions", {"prompt": ["one", "two"], "n": 2, "max_tokens": 3})
    assert answer["object"] == "text_completion"
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    assert all(len(choice["text"].split(" ")) == 3 for choice in answer["choices"])
    assert answer["usage"]["completion_tokens"] == 12


def test_moderations_and_rankings() -> None:
    (answer,) = good("moderations", {"input": ["an unsafe text", "a text"]})
    assert [result["flagged"] for result in answer["results"]] == [True, False]
    documents = ["three", {"text": "one two"}, "one"]
    (ranking,) = good("rerank", {"query": "one two", "documents": documents, "top_n": 2})
    assert ranking["results"] == [
        {"index": 1, "relevance_score": 1.0},
        {"index": 2, "relevance_score": 0.5},
    ]
    assert ranking["meta"]["tokens"] == {"input_tokens": 22}


@pytest.mark.parametrize(
    ("path", "body", "named"),
    [
        ("embeddings", {}, "'input'"),
        ("embeddings", {"input": []}, "'input'"),
        ("embeddings", {"input": ["a", 1]}, "'input'"),
        ("embeddings", {"input": "a", "dimensions": 0}, "'dimensions'"),
        ("completions", {"prompt": "a", "n": "many"}, "'n'"),
        ("completions", {"prompt": "a", "stream": True}, "streams only chat"),
        ("responses", {"input": "a", "max_output_tokens": 0}, "max_tokens"),
        ("rerank", {"documents": ["a"]}, "'query'"),
        ("rerank", {"query": "a", "documents": 3}, "'documents'"),
        ("rerank", [], "a JSON object"),
    ],
)
def test_bad_bodies_are_refused(path: str, body: Any, named: str) -> None:
    ((status, answer),) = ask(path, body)
    assert status == 400
    assert named in answer["error"]["message"]


@pytest.mark.parametrize("path", ["embeddings", "moderations", "rerank"])
def test_troubles_are_those_of_chat(path: str) -> None:
    trouble = (Trouble("rate_limited", count=1), Trouble("empty", after=1, count=1))
    body = {"input": "a", "query": "a", "documents": ["a"]}
    settings = DemoServerSettings(latency_median=0.0, trouble=trouble)
    refused, empty, whole = ask(path, body, body, body, settings=settings)
    assert [refused[0], empty[0], whole[0]] == [429, 200, 200]
    found = "data" if path == "embeddings" else "results"
    assert (len(empty[1][found]), len(whole[1][found])) == (0, 1)
