"""Embeddings of many lines in one request: each line gets its own answer."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.file_runs import ids_of, lines_of, write_lines
from helpers.hosts import ASYNCIO_HOSTS, Host
from helpers.recording_provider import Canned, RecordingProvider, recording_provider
from helpers.routers import run_with_routers
from parallel_core import Budget, ParallelRouter, run_file
from parallel_core.config import retire
from parallel_core.journal.run_paths import RunPaths
from parallel_core.journal.run_statistics import CallStatistics, read_statistics
from parallel_core.run.packing import shares

MESSAGES = [{"role": "user", "content": "a chat"}]


def embeddings(path: str, body: Any) -> Canned:
    """Embed each text as its length, in any order. Refuse texts that are bad, and lose some."""
    if "messages" in body:
        answer = {"index": 0, "message": {"role": "assistant", "content": "hi"}}
        return Canned({"id": "1", "created": 1, "model": "m", "choices": [answer]})
    given_ = body["input"]
    texts = [given_] if isinstance(given_, str) else given_
    if any("bad" in text for text in texts):
        error = {"message": "an input is bad", "type": "invalid_request_error", "code": None}
        return Canned({"error": error}, 400)
    data = [
        {"object": "embedding", "index": index, "embedding": [float(len(text)), 0.5]}
        for index, text in enumerate(texts)
    ]
    if len(texts) > 1 and any("lost" in text for text in texts):
        data.pop()
    tokens = 7 * len(texts) + 1
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return Canned({"object": "list", "model": "m", "data": data[::-1], "usage": usage})


@pytest.fixture(scope="module")
def provider() -> Iterator[RecordingProvider]:
    with recording_provider(embeddings) as running:
        yield running


@pytest.fixture(scope="module")
def router(provider: RecordingProvider) -> Iterator[ParallelRouter]:
    shared = {"model": "openai/m", "api_base": provider.url, "api_key": "sk-secret-key"}
    price = {"input_cost_per_token": 1e-3, "output_cost_per_token": 0.0}
    made = ParallelRouter(model_list=[{"model_name": "m", "litellm_params": {**shared, **price}}])
    yield made
    retire(made)


@pytest.fixture(autouse=True)
def nothing_was_asked(provider: RecordingProvider) -> None:
    provider.kept.clear()


def a_line(number: int, text: Any, **more: Any) -> dict[str, Any]:
    return {"custom_id": f"id-{number}", "body": {"model": "m", "input": text, **more}}


def inputs(provider: RecordingProvider) -> list[Any]:
    return [json.loads(one.body).get("input") for one in provider.kept]


def body_of(entry: dict[str, Any]) -> dict[str, Any]:
    body: dict[str, Any] = entry["response"]["body"]
    return body


def statistics_of(output: Path) -> dict[str, CallStatistics]:
    records = read_statistics(RunPaths.of(output).statistics)
    return {one.custom_id: one for one in records if isinstance(one, CallStatistics)}


def test_each_line_gets_its_own_embedding_and_its_share(
    either_library: Host, router: ParallelRouter, provider: RecordingProvider, tmp_path: Path
) -> None:
    texts = ["x" * (number + 1) for number in range(10)]
    texts[4:5] = [["five!"]]  # type: ignore[list-item]
    source = write_lines(tmp_path / "in.jsonl", [a_line(n, text) for n, text in enumerate(texts)])
    output = tmp_path / "out.jsonl"
    budget = Budget(max_cost=10.0)

    async def main() -> None:
        summary = await run_file(
            router, source, output, pack=4, order="input", budget=budget, concurrency=2
        )
        assert (summary.succeeded, summary.failed, summary.ending) == (10, 0, "complete")
        assert summary.usage.prompt_tokens == 29 + 29 + 15
        assert budget.spent_cost == pytest.approx(73e-3)

    run_with_routers(either_library, main)
    assert sorted(len(one) for one in inputs(provider)) == [2, 4, 4]
    results = lines_of(output)
    assert [one["custom_id"] for one in results] == [f"id-{number}" for number in range(10)]
    for number, entry in enumerate(results):
        body = body_of(entry)
        embedding = {"object": "embedding", "index": 0, "embedding": [number + 1.0, 0.5]}
        assert body["data"] == [embedding]
        assert body["usage"]["prompt_tokens"] == body["usage"]["total_tokens"]
    # One token of four characters and three: 29 tokens for 1 + 2 + 3 + 4 characters.
    used = [body_of(entry)["usage"]["prompt_tokens"] for entry in results]
    assert used[:4] == [2, 6, 9, 12]
    assert sum(used) == 73
    measured = statistics_of(output)
    assert sum(one.prompt_tokens for one in measured.values()) == 73
    assert sum(one.cost or 0.0 for one in measured.values()) == pytest.approx(73e-3)
    assert all(one.estimated and one.attempts == 1 for one in measured.values())


def test_one_bad_input_fails_alone(
    either_library: Host, router: ParallelRouter, provider: RecordingProvider, tmp_path: Path
) -> None:
    texts = ["one", "two", "a bad one", "four", "five"]
    source = write_lines(tmp_path / "in.jsonl", [a_line(n, text) for n, text in enumerate(texts)])
    output = tmp_path / "out.jsonl"

    async def main() -> None:
        summary = await run_file(router, source, output, pack=4, order="input")
        assert (summary.succeeded, summary.failed, summary.ending) == (4, 1, "complete")
        (failure,) = summary.failures
        assert (failure.kind, failure.custom_ids) == ("request", ["id-2"])

    run_with_routers(either_library, main)
    results = lines_of(output)
    assert [entry["response"]["status_code"] for entry in results] == [200, 200, 400, 200, 200]
    assert [body_of(one)["data"][0]["embedding"][0] for one in results if "data" in body_of(one)]
    packed = [one for one in inputs(provider) if isinstance(one, list)]
    assert packed == [texts[:4]]
    alone = [one for one in inputs(provider) if isinstance(one, str)]
    assert sorted(alone) == sorted(texts)


def test_an_answer_without_an_embedding_for_each_input_is_not_shared_out(
    router: ParallelRouter, provider: RecordingProvider, tmp_path: Path
) -> None:
    source = write_lines(
        tmp_path / "in.jsonl", [a_line(n, text) for n, text in enumerate(["one", "lost", "three"])]
    )
    output = tmp_path / "out.jsonl"

    async def main() -> None:
        assert (await run_file(router, source, output, pack=8, order="input")).succeeded == 3

    run_with_routers(ASYNCIO_HOSTS[0], main)
    lengths = [body_of(entry)["data"][0]["embedding"][0] for entry in lines_of(output)]
    assert lengths == [3.0, 4.0, 5.0]
    assert len(provider.kept) == 4


def test_lines_that_differ_do_not_share_a_request(
    router: ParallelRouter, provider: RecordingProvider, tmp_path: Path
) -> None:
    chat = {"custom_id": "chat", "body": {"model": "m", "messages": MESSAGES}}
    lines = [
        a_line(0, "one"),
        a_line(1, "two", user="u"),
        a_line(2, ["three", "four"]),
        chat,
        a_line(3, "five"),
        a_line(4, "six", user="u"),
        a_line(5, "x" * 300_000),
        a_line(6, "y" * 150_000),
        a_line(7, "z" * 150_000),
    ]
    source = write_lines(tmp_path / "in.jsonl", lines)
    output = tmp_path / "out.jsonl"

    async def main() -> None:
        assert (await run_file(router, source, output, pack=64)).succeeded == len(lines)

    run_with_routers(ASYNCIO_HOSTS[0], main)
    asked = [one for one in inputs(provider) if one is not None]
    assert ["three", "four"] in asked
    assert ["two", "six"] in asked
    sizes = sorted(sum(map(len, [one] if isinstance(one, str) else one)) for one in asked)
    assert sizes == [6, 9, 150_000, 150_007, 300_000]
    assert len(body_of(next(e for e in lines_of(output) if e["custom_id"] == "id-2"))["data"]) == 2


def test_a_run_resumes_line_by_line(
    router: ParallelRouter, provider: RecordingProvider, tmp_path: Path
) -> None:
    source = write_lines(tmp_path / "in.jsonl", [a_line(n, f"text {n}") for n in range(9)])
    output = tmp_path / "out.jsonl"

    async def main() -> None:
        assert (await run_file(router, source, output, pack=3, limit=4)).succeeded == 4
        assert (await run_file(router, source, output, pack=64)).succeeded == 5
        assert (await run_file(router, source, output, pack=2)).succeeded == 0

    run_with_routers(ASYNCIO_HOSTS[0], main)
    assert sorted(ids_of(output)) == [f"id-{number}" for number in range(9)]
    sent = [text for one in inputs(provider) for text in ([one] if isinstance(one, str) else one)]
    assert sorted(sent) == [f"text {number}" for number in range(9)]


def test_packs_that_wait_have_a_limit(
    router: ParallelRouter, provider: RecordingProvider, tmp_path: Path
) -> None:
    """Each line has parameters of its own, so none can share a request."""
    lines = [a_line(number, "x", user=f"user {number}") for number in range(150)]
    source = write_lines(tmp_path / "in.jsonl", lines)

    async def main() -> None:
        assert (await run_file(router, source, tmp_path / "out.jsonl", pack=64)).succeeded == 150

    run_with_routers(ASYNCIO_HOSTS[0], main)
    assert len(provider.kept) == 150


@given(st.integers(0, 10**9), st.lists(st.integers(0, 10**6), min_size=1, max_size=70))
def test_shares_are_exact_and_in_proportion(total: int, weights: list[int]) -> None:
    parts = shares(total, weights)
    assert sum(parts) == total
    assert all(part >= 0 for part in parts)
    whole = sum(weights)
    for part, weight in zip(parts, weights, strict=True):
        assert not whole or abs(part * whole - total * weight) < whole
