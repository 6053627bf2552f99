"""Runs of files whose lines ask for several endpoints: a default Router, HTTP, the demo server."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers.file_runs import lines_of, write_lines
from helpers.hosts import ASYNCIO_HOSTS, Host
from helpers.routers import run_with_routers
from parallel_core import Budget, InputFile, ParallelRouter, run_file
from parallel_core.config import retire
from parallel_core.demo_server import DemoServerSettings, DemoServerThread, Trouble
from parallel_core.errors import DifferentRunError
from parallel_core.files.batch_output import parse_output_line
from parallel_core.journal.run_paths import RunPaths
from parallel_core.journal.run_statistics import CallStatistics, read_statistics
from parallel_core.report import summarize
from parallel_core.router import estimate_cost

PRICES = {"input_cost_per_token": 1e-6, "output_cost_per_token": 2e-6}
MESSAGES = [{"role": "user", "content": "one two"}]

# litellm warns of an embedding in base64, which its class has no type for.
pytestmark = pytest.mark.filterwarnings("ignore:Pydantic serializer warnings:UserWarning")

BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"model": "fast", "messages": MESSAGES, "max_tokens": 5},
    "/v1/responses": {"model": "fast", "input": "one two", "max_output_tokens": 20},
    "/v1/embeddings": {"model": "fast", "input": "one two"},
    "/v1/completions": {"model": "text", "prompt": "one two", "max_tokens": 5},
    "/v1/moderations": {"model": "fast", "input": "an unsafe text"},
    "/v1/rerank": {"model": "ranking", "query": "one", "documents": ["two", "one two"]},
}


def a_line(number: int, url: str, **more: Any) -> dict[str, Any]:
    return {"custom_id": f"{url}#{number}", "url": url, "body": {**BODIES[url], **more}}


def mixed(count: int) -> list[dict[str, Any]]:
    return [a_line(number, url) for number in range(count) for url in BODIES]


@pytest.fixture(scope="module")
def running_server() -> Iterator[DemoServerThread]:
    settings = DemoServerSettings(
        models={"fast": 1.0, "gpt-4o-mini": 1.0}, latency_median=0.0, keep_requests=100
    )
    with DemoServerThread(settings) as server:
        yield server


@pytest.fixture(scope="module")
def router(running_server: DemoServerThread) -> Iterator[ParallelRouter]:
    made = ParallelRouter(model_list=deployments(running_server.url))
    yield made
    retire(made)


def deployments(url: str) -> list[dict[str, Any]]:
    def deployment(name: str, model: str, **parameters: Any) -> dict[str, Any]:
        shared = {"model": model, "api_base": url, "api_key": "sk-secret-key"}
        return {"model_name": name, "litellm_params": {**shared, **parameters}}

    return [
        deployment("fast", "openai/fast", **PRICES),
        # litellm sends a text completion of this model as a chat. For others it makes a client for
        # each call, and leaves its connection open until it is collected.
        deployment("text", "openai/gpt-4o-mini", **PRICES),
        deployment("ranking", "cohere/fast", api_base=f"{url}/rerank", **PRICES),
    ]


@pytest.fixture(autouse=True)
def no_trouble_is_left(server: DemoServerThread) -> Iterator[None]:
    yield
    server.set_trouble([])


def statistics_of(output: Path) -> dict[str, CallStatistics]:
    records = read_statistics(RunPaths.of(output).statistics)
    return {one.custom_id: one for one in records if isinstance(one, CallStatistics)}


def test_one_run_sends_the_lines_of_all_endpoints(
    either_library: Host, router: ParallelRouter, server: DemoServerThread, tmp_path: Path
) -> None:
    source = write_lines(tmp_path / "in.jsonl", mixed(3))
    output = tmp_path / "out.jsonl"

    async def main() -> None:
        trial = await run_file(router, source, output, limit=7)
        assert (trial.succeeded, trial.failed) == (7, 0)
        summary = await run_file(router, source, output, order="input", direct=True)
        assert (summary.earlier_succeeded, summary.succeeded, summary.failed) == (7, 11, 0)
        # Of the one chat that was left.
        assert summary.direct_calls + sum(summary.indirect_calls.values()) == 11
        assert summary.indirect_calls["another operation than chat"] == 10
        assert summary.usage.unpriced_calls == 2  # of moderations, whose price litellm knows not

    run_with_routers(either_library, main)
    results = lines_of(output)
    assert [one["custom_id"] for one in results] == [one["custom_id"] for one in mixed(3)]
    paths = Counter(one.path for one in server.requests())
    assert paths == {
        "/v1/chat/completions": 6,
        **dict.fromkeys(BODIES.keys() - {"/v1/chat/completions", "/v1/completions"}, 3),
    }
    measured = statistics_of(output)
    for result in results:
        line = parse_output_line(json.dumps(result).encode())
        assert (line.ok, line.status_code) == (True, 200)
        url = result["custom_id"].partition("#")[0]
        one = measured[result["custom_id"]]
        assert (one.ok, one.attempts) == (True, 1)
        answers_in_text = url in ("/v1/chat/completions", "/v1/responses", "/v1/completions")
        assert (one.completion_tokens > 0) is answers_in_text
        assert (one.finish_reason in ("stop", "length")) is answers_in_text
        assert not one.without_text
        assert (one.cost is None) is (url == "/v1/moderations")
        assert (one.prompt_tokens > 0) is (url != "/v1/moderations")
    (model,) = [one for one in summarize(output).models if one.model == "fast"]
    assert (model.requests, model.ok) == (12, 12)


@pytest.mark.parametrize("url", ["/v1/embeddings", "/v1/completions", "/v1/responses"])
def test_each_attempt_is_one_of_the_run(
    url: str, router: ParallelRouter, server: DemoServerThread, tmp_path: Path
) -> None:
    """OpenAI's client would send a failed embedding twice more by itself."""
    source = write_lines(tmp_path / "in.jsonl", [a_line(0, url)])
    output = tmp_path / "out.jsonl"
    server.set_trouble([Trouble("rate_limited", count=1, retry_after=0)])

    async def main() -> None:
        assert (await run_file(router, source, output)).ok

    run_with_routers(ASYNCIO_HOSTS[0], main)
    (measured,) = statistics_of(output).values()
    assert (measured.attempts, len(server.requests())) == (2, 2)


def test_a_refused_key_stops_a_model_and_names_why(
    router: ParallelRouter, server: DemoServerThread, tmp_path: Path
) -> None:
    lines = [a_line(number, "/v1/embeddings") for number in range(6)]
    source = write_lines(tmp_path / "in.jsonl", lines)
    output = tmp_path / "out.jsonl"
    server.set_trouble([Trouble("bad_key")])

    async def main() -> None:
        summary = await run_file(router, source, output, concurrency=1)
        assert (summary.ending, summary.unfinished) == ("blocked", 6)
        assert "fast" in summary.blocked
        server.set_trouble([])
        assert (await run_file(router, source, output)).succeeded == 6

    run_with_routers(ASYNCIO_HOSTS[0], main)


def test_a_budget_and_an_estimate_know_the_prices_of_each_endpoint(
    router: ParallelRouter, server: DemoServerThread, tmp_path: Path
) -> None:
    source = write_lines(tmp_path / "in.jsonl", mixed(1))
    with InputFile(source) as file:
        requests = [one.request for one in file.requests()]
    by_endpoint = {one.operation: estimate_cost(router, [one]).known_cost for one in requests}
    # 5 and 20 tokens of an answer, and that of a text completion at most 5; 4 bytes for a token.
    assert by_endpoint["aembedding"] == pytest.approx(5e-6)
    assert by_endpoint["arerank"] == pytest.approx(20e-6)
    assert by_endpoint["aresponses"] == pytest.approx(5e-6 + 20 * 2e-6)
    assert by_endpoint["atext_completion"] == pytest.approx(5e-6 + 5 * 2e-6)
    output = tmp_path / "out.jsonl"

    async def main() -> None:
        with pytest.raises(ValueError, match="max_output_tokens"):
            await run_file(
                router,
                InputFile(
                    write_lines(tmp_path / "long.jsonl", [{"model": "fast", "input": "x"}]),
                    endpoint="responses",
                ),
                tmp_path / "long.out.jsonl",
                budget=Budget(max_tokens=1000),
            )
        budget = Budget(max_cost=1.0)
        summary = await run_file(router, source, output, budget=budget)
        assert summary.ok
        # A moderation does not say what it used: it counts with its worst case.
        worst = (len("an unsafe text") + 16) * 1e-6
        assert budget.spent_cost == pytest.approx(summary.usage.cost + worst)

    run_with_routers(ASYNCIO_HOSTS[0], main)


def test_the_same_members_for_another_endpoint_are_another_run(
    router: ParallelRouter, server: DemoServerThread, tmp_path: Path
) -> None:
    source = write_lines(tmp_path / "in.jsonl", [{"model": "fast", "input": "one two"}])
    output = tmp_path / "out.jsonl"

    async def main() -> None:
        assert (await run_file(router, source, output)).ok
        with (
            InputFile(source, endpoint="moderations") as other,
            pytest.raises(DifferentRunError),
        ):
            await run_file(router, other, output)

    run_with_routers(ASYNCIO_HOSTS[0], main)
    assert [one.path for one in server.requests()] == ["/v1/embeddings"]


def test_a_callable_has_chat_alone(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "in.jsonl", [a_line(0, url) for url in BODIES])

    async def answer(*, model: str, messages: Any, **_: Any) -> dict[str, Any]:
        raise AssertionError

    async def main() -> None:
        with pytest.raises(ValueError, match=r"line 2 .*'aresponses'"):
            await run_file(answer, source, tmp_path / "out.jsonl")

    ASYNCIO_HOSTS[0].run(main)


def test_a_provider_that_litellm_does_not_ask_for_an_endpoint_is_named(
    router: ParallelRouter, server: DemoServerThread, tmp_path: Path
) -> None:
    """litellm has no rerank of OpenAI, which has none."""
    line = {"model": "fast", "query": "one", "documents": ["two"]}
    source = write_lines(tmp_path / "in.jsonl", [line])
    output = tmp_path / "out.jsonl"

    async def main() -> None:
        summary = await run_file(router, source, output)
        (failure,) = summary.failures
        assert failure.kind == "request"
        assert "litellm does not have this endpoint of the provider" in failure.message

    run_with_routers(ASYNCIO_HOSTS[0], main)
    assert server.requests() == []


DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "file-formats.md"


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
def test_the_lines_of_the_document_run(server: DemoServerThread, tmp_path: Path) -> None:
    """Through a Router that has their models, all served by the demo server."""
    found = [
        json.loads(line)
        for line in DOCUMENT.read_text(encoding="utf-8").splitlines()
        if line.startswith('{"custom_id"') and '"url": "/v1/' in line and '"q-1"' not in line
    ]
    assert {one["url"] for one in found} == BODIES.keys()
    source = write_lines(tmp_path / "in.jsonl", found)
    shared = {"api_base": server.url, "api_key": "sk-secret-key"}
    own = {
        "rerank-v3.5": {"model": "cohere/fast", "api_base": f"{server.url}/rerank"},
        # See `deployments`.
        "gpt-3.5-turbo-instruct": {"model": "openai/gpt-4o-mini"},
    }
    router = ParallelRouter(
        model_list=[
            {"model_name": name, "litellm_params": {"model": "openai/fast", **shared, **more}}
            for name, more in [(one["body"]["model"], {}) for one in found] + [*own.items()]
            if more or name not in own
        ]
    )

    async def main() -> None:
        summary = await run_file(router, source, tmp_path / "out.jsonl")
        assert (summary.succeeded, summary.failed) == (len(found), 0)

    try:
        run_with_routers(ASYNCIO_HOSTS[0], main)
    finally:
        retire(router)


def test_dimensions_that_litellm_refuses_arrive_in_extra_body(
    router: ParallelRouter, server: DemoServerThread, tmp_path: Path
) -> None:
    lines = [
        a_line(0, "/v1/embeddings", dimensions=3),
        a_line(1, "/v1/embeddings", extra_body={"dimensions": 3}),
    ]
    source = write_lines(tmp_path / "in.jsonl", lines)
    output = tmp_path / "out.jsonl"

    async def main() -> None:
        summary = await run_file(router, source, output, order="input")
        assert [group.kind for group in summary.failures] == ["request"]

    run_with_routers(ASYNCIO_HOSTS[0], main)
    refused, answered = lines_of(output)
    assert refused["response"]["status_code"] == 400
    assert len(answered["response"]["body"]["data"][0]["embedding"]) == 3
    assert len(server.requests()) == 1
