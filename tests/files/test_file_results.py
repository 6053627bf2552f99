"""Results of files as objects: of this package, of OpenAI and of vLLM."""

from __future__ import annotations

import base64
import gzip
import json
import struct
from pathlib import Path
from typing import Any

import pytest

from parallel_core import FileResult, read_results

USAGE = {"prompt_tokens": 9, "completion_tokens": 2, "total_tokens": 11}
CHAT = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "model": "gpt-4o-mini-2024-07-18",
    "choices": [
        {"index": 0, "message": {"role": "assistant", "content": "4"}, "finish_reason": "stop"},
        {"index": 1, "message": {"role": "assistant", "content": "5"}, "finish_reason": "length"},
    ],
    "usage": USAGE,
}
COMPLETION = {
    "object": "text_completion",
    "model": "instruct",
    "choices": [{"text": " world", "index": 0, "logprobs": None, "finish_reason": "length"}],
    "usage": USAGE,
}
RESPONSE = {
    "object": "response",
    "model": "gpt-5",
    "status": "completed",
    "output": [
        {"type": "reasoning", "summary": []},
        {
            "type": "message",
            "role": "assistant",
            "content": [
                {"type": "output_text", "text": "Four", "annotations": []},
                {"type": "output_text", "text": ".", "annotations": []},
            ],
        },
    ],
    "usage": {"input_tokens": 9, "output_tokens": 2, "total_tokens": 11},
}
INCOMPLETE = {**RESPONSE, "status": "incomplete"}
INCOMPLETE["incomplete_details"] = {"reason": "max_output_tokens"}
VECTOR = [0.5, -0.25, 2.0]
EMBEDDING = {
    "object": "list",
    "model": "small",
    "data": [{"object": "embedding", "index": 0, "embedding": VECTOR}],
    "usage": {"prompt_tokens": 3, "total_tokens": 3},
}
BASE64 = base64.b64encode(struct.pack("<3f", *VECTOR)).decode()


def line_of(body: Any, custom_id: str = "a", status: int = 200, **more: Any) -> bytes:
    response = {"status_code": status, "request_id": "r", "body": body}
    line = {"id": "b", "custom_id": custom_id, "response": response, "error": None, **more}
    return json.dumps(line).encode() + b"\n"


def read(path: Path, content: bytes) -> list[FileResult]:
    path.write_bytes(content)
    return list(read_results(path))


def one(path: Path, body: Any, **more: Any) -> FileResult:
    (result,) = read(path, line_of(body, **more))
    return result


def test_a_chat_completion(tmp_path: Path) -> None:
    metadata, columns = {"page": "7"}, {"source": "web", "n": 3}
    result = one(tmp_path / "out.jsonl", CHAT, metadata=metadata, columns=columns)
    assert result == FileResult(
        custom_id="a",
        ok=True,
        text="4",
        finish_reason="stop",
        model="gpt-4o-mini-2024-07-18",
        prompt_tokens=9,
        completion_tokens=2,
        total_tokens=11,
        usage=USAGE,
        status_code=200,
        metadata=metadata,
        columns=columns,
        body=CHAT,
    )


@pytest.mark.parametrize(
    ("body", "text", "finish", "tokens"),
    [
        (COMPLETION, " world", "length", (9, 2)),
        (RESPONSE, "Four.", "completed", (9, 2)),
        (INCOMPLETE, "Four.", "max_output_tokens", (9, 2)),
        (
            {"choices": [{"message": {"content": None, "tool_calls": [{}]}}]},
            None,
            None,
            (None,) * 2,
        ),
        (
            {"choices": [{"message": {"content": [{"type": "text", "text": "a"}, {"text": "b"}]}}]},
            "ab",
            None,
            (None, None),
        ),
        ({"choices": []}, None, None, (None, None)),
        ({"choices": [7], "usage": 3, "model": 4}, None, None, (None, None)),
        ([1], None, None, (None, None)),
        ({"output": [{"type": "message", "content": []}, 3]}, None, None, (None, None)),
    ],
)
def test_answers_of_other_shapes(
    tmp_path: Path, body: Any, text: str | None, finish: str | None, tokens: Any
) -> None:
    result = one(tmp_path / "out.jsonl", body)
    assert (result.ok, result.text, result.finish_reason) == (True, text, finish)
    assert (result.prompt_tokens, result.completion_tokens) == tokens
    assert (result.vectors, result.body) == (None, body)


def test_embeddings_are_vectors_of_floats(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    assert one(path, EMBEDDING).vectors == [VECTOR]
    packed = {**EMBEDDING, "data": [{"embedding": BASE64}, {"embedding": [1, 2]}]}
    assert one(path, packed).vectors == [VECTOR, [1, 2]]
    for wrong in ("%%%", "AAA", 7, None):
        assert one(path, {"data": [{"embedding": wrong}]}).vectors is None
    assert one(path, {"data": []}).vectors is None


def test_failures_of_three_programs(tmp_path: Path) -> None:
    error = {"message": "slow down", "type": "rate_limit", "param": None, "code": "429"}
    lines = [
        line_of({"error": error}, "http", 429),
        (
            b'{"custom_id": "own", "response": null, "error": {"code": "request_timeout", '
            b'"message": "it took too long"}, "columns": {"n": 1}}\n'
        ),
        b'{"id": "vllm-1", "custom_id": "vllm", "response": null, "error": "bad request"}\n',
        (
            b'{"custom_id": "vllm2", "response": {"status_code": 400, "request_id": "x", '
            b'"body": null}, "error": {"object": "error", "message": "too long", '
            b'"type": "BadRequestError", "param": null, "code": 400}}\n'
        ),
    ]
    results = read(tmp_path / "out.jsonl", b"".join(lines))
    assert [
        (r.custom_id, r.ok, r.status_code, r.error_message, r.failure_kind) for r in results
    ] == [
        ("http", False, 429, "slow down", "overloaded"),
        ("own", False, None, "it took too long", "timeout"),
        ("vllm", False, None, "bad request", "unknown"),
        ("vllm2", False, 400, "too long", "request"),
    ]
    assert results[0].body == {"error": error}
    assert results[1].columns == {"n": 1}
    assert all(result.text is None for result in results)


def test_half_a_line_is_skipped_and_another_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    whole = line_of(CHAT)
    assert len(read(path, whole + b"\n" + b"\0" * 9 + b"\n" + whole + whole[:40])) == 2
    with pytest.raises(ValueError, match=r"out\.jsonl, line 2 is not the result.*it is a request"):
        read(path, whole + b'{"custom_id": "a", "body": {}}\n')
    with pytest.raises(FileNotFoundError):
        read_results(tmp_path / "nothing.jsonl")


def test_compressed_results(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl.gz"
    packed = gzip.compress(line_of(CHAT) * 2)
    assert [result.text for result in read(path, packed)] == ["4", "4"]
    with pytest.raises(ValueError, match=r"out\.jsonl\.gz: .* broken: it ends too early"):
        read(path, packed[:-12])
    with pytest.raises(ValueError, match=r"out\.jsonl\.gz: .* broken: .*incorrect data check"):
        read(path, packed[:-8] + b"\0" * 8)
    assert len(read(path, line_of(CHAT))) == 1  # the contents say how it is compressed
    assert len(read(tmp_path / "results.jsonl", packed)) == 2


@pytest.mark.parametrize("content", [b"\x89PNG\0\0", b"PAR1\0\0\n\0", b"a\0b\n", b"hello"])
def test_another_kind_of_file_is_no_damaged_line(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(ValueError, match=r"out\.jsonl, line 1 is not valid"):
        read(tmp_path / "out.jsonl", content)


def test_halves_of_surrogate_pairs_are_replaced(tmp_path: Path) -> None:
    content = line_of(
        {"choices": [{"message": {"content": "cut \ud83d"}}]}, columns={"x": "\ud83d"}
    )
    (result,) = read(tmp_path / "out.jsonl", content)
    assert (result.text, result.columns) == ("cut \ufffd", {"x": "\ufffd"})
