"""Operations other than chat through a litellm Router, over real HTTP, against the demo server.

The Router has its default retries and cooldowns. Troubles are tested with `aresponses`: the client
of openai, with which litellm sends embeddings, would send them again by itself.
"""

from __future__ import annotations

import asyncio
import io
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

import parallel_core
from helpers.hosts import TRIO, Host
from helpers.routers import run_with_routers
from parallel_core import (
    Budget,
    BudgetExceededError,
    InvalidRequestError,
    ParallelRouter,
    RouterParallelRequest,
    RouterParallelResult,
    classify_failure,
    open_router_host,
)
from parallel_core.config import retire
from parallel_core.demo_server import DemoServerSettings, DemoServerThread, Trouble

TIMEOUT = 60.0  # seconds

PRICES = {"input_cost_per_token": 1e-6, "output_cost_per_token": 2e-6}

# A request of each operation: the arguments of the Router's method.
REQUESTS: dict[str, dict[str, Any]] = {
    "aembedding": {"model": "fast", "input": ["one two", "three"]},
    "aresponses": {"model": "fast", "input": "one two", "metadata": {"own": "yes"}},
    "atext_completion": {"model": "text", "prompt": "one two", "max_tokens": 3},
    "amoderation": {"model": "fast", "input": "an unsafe text"},
    "arerank": {"model": "ranking", "query": "one", "documents": ["two", "one two"]},
}


@pytest.fixture(scope="module")
def running_server() -> Iterator[DemoServerThread]:
    settings = DemoServerSettings(
        models={"fast": 1.0, "gpt-4o-mini": 1.0}, latency_median=0.0, keep_requests=50
    )
    with DemoServerThread(settings) as server:
        yield server


@pytest.fixture(scope="module")
def router(running_server: DemoServerThread) -> Iterator[ParallelRouter]:
    url = running_server.url

    def deployment(name: str, model: str, **parameters: Any) -> dict[str, Any]:
        shared = {"model": model, "api_base": url, "api_key": "sk-secret-key"}
        return {"model_name": name, "litellm_params": {**shared, **parameters}}

    made = ParallelRouter(
        model_list=[
            deployment("fast", "openai/fast", **PRICES),
            # litellm knows this model, and sends a text completion as a chat. For others it makes a
            # client for each call, and leaves its connection open until it is collected.
            deployment("text", "openai/gpt-4o-mini", **PRICES),
            deployment("ranking", "cohere/fast", api_base=f"{url}/rerank", **PRICES),
        ]
    )
    yield made
    retire(made)


@pytest.fixture(autouse=True)
def no_trouble_is_left(server: DemoServerThread) -> Iterator[None]:
    yield
    server.set_trouble([])


@pytest.mark.parametrize("operation", REQUESTS)
def test_each_operation(operation: str, router: ParallelRouter, server: DemoServerThread) -> None:
    request = REQUESTS[operation]
    results = parallel_core.parallel_calls_sync(router, [request] * 3, operation=operation)
    assert [(one.index, one.ok, one.attempts) for one in results] == [
        (index, True, 1) for index in range(3)
    ]
    assert all(one.request.arguments == request for one in results)
    for answer in (one.unwrap() for one in results):
        if operation == "aembedding":
            assert [len(one["embedding"]) for one in answer.data] == [8, 8]
        elif operation == "aresponses":
            assert answer.output[0].content[0].text
        elif operation == "atext_completion":
            assert answer.choices[0].text
        elif operation == "amoderation":
            assert answer.results[0].flagged
        else:
            assert [one["index"] for one in answer.results] == [1, 0]
    bodies = [one.body for one in server.requests()]
    assert len(bodies) == 3
    assert "parallel_" not in str(bodies)
    # The user's own metadata is an argument of this operation, and goes to the provider as it is.
    assert all(body.get("metadata") == request.get("metadata") for body in bodies)


USAGES = {
    # (prompt, answer, USD) of a call: the demo server counts the words of texts, and 4 for each.
    "aembedding": (11, 0, 11e-6),
    "atext_completion": (6, 3, 12e-6),
    "arerank": (16, 0, 16e-6),
}


@pytest.mark.parametrize("operation", USAGES)
def test_usage_and_price(operation: str, router: ParallelRouter, server: DemoServerThread) -> None:
    async def main() -> None:
        requests = [REQUESTS[operation]] * 2
        async with router.iter_parallel_calls(requests, operation=operation) as batch:
            assert [result.ok async for result in batch] == [True, True]
        prompt, completion, cost = USAGES[operation]
        usage = batch.usage
        assert (usage.prompt_tokens, usage.completion_tokens) == (2 * prompt, 2 * completion)
        assert (usage.unpriced_calls, usage.estimated_calls) == (0, 0)
        assert usage.cost == pytest.approx(2 * cost)

    run_with_routers(TRIO, main)


def test_usage_of_responses_and_of_moderations(
    router: ParallelRouter, server: DemoServerThread
) -> None:
    async def main() -> None:
        requests = [REQUESTS["aresponses"]] * 2
        async with router.iter_parallel_calls(requests, operation="aresponses") as batch:
            answers = [result.unwrap() async for result in batch]
        used = sum(answer.usage.output_tokens for answer in answers)
        assert used > 0
        assert (batch.usage.prompt_tokens, batch.usage.completion_tokens) == (12, used)
        assert batch.usage.cost == pytest.approx(12e-6 + used * 2e-6)

        requests = [REQUESTS["amoderation"]] * 2
        async with router.iter_parallel_calls(requests, operation="amoderation") as batch:
            assert [result.ok async for result in batch] == [True, True]
        assert (batch.usage.total_tokens, batch.usage.unpriced_calls) == (0, 2)

    run_with_routers(TRIO, main)


def test_order_on_every_host(host: Host, router: ParallelRouter, server: DemoServerThread) -> None:
    async def main() -> None:
        texts = [f"text {index}" for index in range(20)]
        requests = [{"model": "fast", "input": [text]} for text in texts]
        results = await parallel_core.parallel_calls(router, requests, concurrency=5)
        sent = [result.request.arguments["input"] for result in results]
        assert sent == [[text] for text in texts]
        vectors = [result.unwrap().data[0]["embedding"] for result in results]
        again = await parallel_core.parallel_calls(router, requests[7:8])
        assert again[0].unwrap().data[0]["embedding"] == vectors[7] != vectors[8]

    run_with_routers(host, main)
    assert server.stats().max_in_flight <= 5


def test_fail_fast_leaves_no_request_open(
    either_library: Host, router: ParallelRouter, server: DemoServerThread
) -> None:
    server.set_trouble([Trouble("hang", count=7), Trouble("content_refused", after=7)])
    wait = asyncio.to_thread
    if either_library.library == "trio":
        import trio

        wait = trio.to_thread.run_sync  # type: ignore[assignment]

    async def source() -> AsyncIterator[dict[str, Any]]:
        for _ in range(7):
            yield REQUESTS["aresponses"]
        await wait(server.wait_in_flight, 7)
        for _ in range(100):
            yield REQUESTS["aresponses"]

    async def main() -> None:
        with pytest.raises(Exception, match=r"safety system|content") as caught:
            await parallel_core.parallel_calls(
                router, source(), operation="aresponses", return_exceptions=False
            )
        note = "parallel_core: raised by request 7 (model 'fast')"
        assert note in caught.value.__notes__
        assert classify_failure(caught.value).kind == "request"

    run_with_routers(either_library, main)
    server.wait_idle(TIMEOUT)
    stats = server.stats()
    assert (stats.accepted, stats.disconnected) == (8, 7)


@pytest.mark.parametrize(
    ("trouble", "kind"),
    [("bad_key", "account"), ("context_length", "request"), ("quota", "account")],
)
def test_failure_kinds(
    trouble: Any, kind: str, router: ParallelRouter, server: DemoServerThread
) -> None:
    server.set_trouble([Trouble(trouble)])
    (result,) = parallel_core.parallel_calls_sync(
        router, [REQUESTS["aresponses"]], operation="aresponses"
    )
    assert result.exception is not None
    assert classify_failure(result.exception).kind == kind
    assert result.attempts == 1
    assert len(server.requests()) == 1


def test_a_request_is_sent_again_after_a_temporary_failure(
    router: ParallelRouter, server: DemoServerThread
) -> None:
    """The batch retries, and the Router's own retries do not multiply with it."""
    server.set_trouble([Trouble("rate_limited", count=1, retry_after=0)])
    requests = [REQUESTS["aresponses"]] * 3
    results = parallel_core.parallel_calls_sync(
        router, requests, operation="aresponses", concurrency=1
    )
    assert [result.ok for result in results] == [True, True, True]
    assert sorted(result.attempts for result in results) == [1, 1, 2]
    assert len(server.requests()) == 4


def test_a_budget_caps_embeddings(router: ParallelRouter, server: DemoServerThread) -> None:
    """The worst case of a text is its bytes, and an embedding has no answer to pay for."""
    request = {"model": "fast", "input": ["one two"]}
    worst = len("one two") + 16
    budget = Budget(max_tokens=worst + 6 + 1)
    results = parallel_core.parallel_calls_sync(router, [request] * 3, concurrency=1, budget=budget)
    assert [result.ok for result in results] == [True, True, False]
    assert isinstance(results[2].exception, BudgetExceededError)
    assert budget.spent_tokens == 12  # two words and 4 more, twice
    assert len(server.requests()) == 2


def test_a_budget_refuses_what_it_cannot_cap(
    router: ParallelRouter, server: DemoServerThread
) -> None:
    def refused(operation: str, **arguments: Any) -> str:
        request = {**REQUESTS.get(operation, {}), "model": "fast", **arguments}
        with pytest.raises(ValueError, match="unknown") as caught:
            parallel_core.parallel_calls_sync(
                router, [request], operation=operation, budget=Budget(max_tokens=1000)
            )
        return str(caught.value)

    assert "max_output_tokens" in refused("aresponses")
    limited = {"max_output_tokens": 5}
    assert "'tools'" in refused("aresponses", tools=[{"type": "web_search"}], **limited)
    assert "'previous_response_id'" in refused("aresponses", previous_response_id="x", **limited)
    assert "meter" in refused("aimage_generation", prompt="a tree")
    assert server.requests() == []


@pytest.mark.parametrize(
    ("request_", "problem"),
    [
        (["no mapping"], "a mapping of the arguments of aembedding"),
        ({"input": "x"}, "model missing"),
        ({"model": "", "input": "x"}, "non-empty str"),
        ({"model": "none", "input": "x"}, "no model 'none'; it has 'fast', 'ranking', 'text'"),
        ({"model": "fast", "input": "x", "stream": True}, "iter_parallel_streams"),
        ({"model": "fast", "kwargs": {"input": "x"}}, "top level"),
        ({"model": "fast", "input": "x", "timeout": -1}, "timeout"),
        ({"model": "fast", "input": "x", "litellm_metadata": 3}, "litellm_metadata"),
        ({"model": "fast", "file": ("a.wav", io.BytesIO(b"sound"))}, "open file"),
        (RouterParallelRequest("fast", kwargs={"model": "text"}), "given twice"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_requests_are_refused_before_the_first_call(
    request_: Any, problem: str, router: ParallelRouter, server: DemoServerThread
) -> None:
    good = REQUESTS["aembedding"]
    with pytest.raises(InvalidRequestError) as caught:
        parallel_core.parallel_calls_sync(router, [good, request_])
    assert list(caught.value.problems) == [1]
    assert problem in caught.value.problems[1]
    results = parallel_core.parallel_calls_sync(router, iter([good, request_]))
    assert [type(result.exception) for result in results] == [type(None), InvalidRequestError]
    assert len(server.requests()) == 1


def test_an_unknown_operation_is_refused_with_those_of_the_router(
    either_library: Host, router: ParallelRouter, server: DemoServerThread
) -> None:
    async def main() -> None:
        for name in ("embedding", "aembeding"):
            with pytest.raises(ValueError, match=r"did you mean 'aembedding'\?$"):
                await parallel_core.parallel_calls(router, [], operation=name)
        with pytest.raises(ValueError, match="no async method 'nothing like it'; it has") as caught:
            await parallel_core.parallel_calls(router, [], operation="nothing like it")
        listed = str(caught.value).partition("it has ")[2].split(", ")
        assert {"aembedding", "aresponses", "acompletion", *REQUESTS} <= set(listed)
        assert not [name for name in listed if name.startswith(("_", "async_"))]
        with pytest.raises(TypeError, match="not int"):
            await parallel_core.parallel_calls(router, [], operation=3)  # type: ignore[arg-type]
        for options in ({"direct": True}, {"on_chunk": print}, {"stall_timeout": 1.0}):
            with pytest.raises(ValueError, match=next(iter(options))):
                parallel_core.iter_parallel_calls(router, [], **options)

    either_library.run(main)
    assert server.requests() == []


def test_chat_is_the_operation_acompletion(
    router: ParallelRouter, server: DemoServerThread
) -> None:
    messages = [{"role": "user", "content": "hi"}]
    request = {"model": "fast", "messages": messages, "stream": True}
    results = parallel_core.parallel_calls_sync(router, [request], operation="acompletion")
    assert results[0].unwrap().choices[0].message.content
    assert results[0].request == RouterParallelRequest("fast", messages, {"stream": True})
    assert results[0].time_to_first_chunk is not None


def test_a_host_in_trio_has_the_operations_of_its_router(
    router: ParallelRouter, server: DemoServerThread
) -> None:
    async def main() -> None:
        async with open_router_host(router) as host:
            call: Any = host
            answer = await call.aembedding(**REQUESTS["aembedding"])
            assert len(answer.data) == 2
            results = await parallel_core.parallel_calls(host, [REQUESTS["aembedding"]])
            assert results[0].ok
            assert not hasattr(host, "embedding")
            with pytest.raises(AttributeError, match="'RouterHost' object has no attribute 'nix'"):
                _ = call.nix

    run_with_routers(TRIO, main)


class Own:
    """No Router: an object with an async method, and one that returns a stream."""

    def __init__(self) -> None:
        self.closed = 0
        self.threads = set[threading.Thread]()

    async def length(self, *, model: str, text: str) -> int:
        self.threads.add(threading.current_thread())
        return len(text)

    async def pieces(self, *, model: str) -> AsyncIterator[str]:
        async def stream() -> AsyncIterator[str]:
            try:
                yield "piece"
            finally:
                self.closed += 1

        made = stream()
        assert await anext(made) == "piece"
        return made

    def embed(self, **arguments: Any) -> None:
        raise AssertionError("it is not async")


def test_any_object(host: Host) -> None:
    own = Own()

    async def main() -> None:
        requests = ({"model": "m", "text": "x" * number} for number in range(5))
        results: list[RouterParallelResult] = await parallel_core.parallel_calls(
            own, requests, operation="length"
        )
        assert [result.unwrap() for result in results] == [0, 1, 2, 3, 4]
        (streamed,) = await parallel_core.parallel_calls(own, [{"model": "m"}], operation="pieces")
        assert isinstance(streamed.exception, TypeError)
        assert "pieces has returned a stream" in str(streamed.exception)
        with pytest.raises(ValueError, match=r"no async method 'embed'; it has length, pieces$"):
            await parallel_core.parallel_calls(own, [], operation="embed")

    host.run(main)
    assert own.closed == 1
    assert own.threads == {threading.current_thread()}
