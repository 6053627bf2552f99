"""Answers that are not what was asked for: without choices, cut, filtered, without text."""

from __future__ import annotations

import json
import pickle
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio
import pytest
from litellm import ModelResponse

import parallel_core
from helpers.answering_server import USAGE, AnsweringServer, answering_server, choice
from helpers.hosts import ASYNCIO_HOSTS, HOSTS, Host, in_virtual_time
from helpers.routers import make_router, run_with_routers
from parallel_core import (
    Budget,
    EmptyResponseError,
    Hedge,
    ParallelRouter,
    Usage,
    classify_failure,
)
from parallel_core.journal.run_paths import RunPaths
from parallel_core.journal.run_statistics import CallStatistics, read_statistics
from parallel_core.report import summarize
from parallel_core.router.answers import add_finish, describe_finishes, finish_of
from parallel_core.run import run_file

TWO_WORLDS = [HOSTS[0], ASYNCIO_HOSTS[0]]
in_two_worlds = pytest.mark.parametrize("host", TWO_WORLDS, ids=lambda host: host.name)
PRICES = {"gpt": (0.001, 0.01)}
COST = 5 * 0.001 + 7 * 0.01  # of an answer, in USD


@pytest.fixture(scope="module")
def running_server() -> Iterator[AnsweringServer]:
    with answering_server() as server:
        yield server


@pytest.fixture
def server(running_server: AnsweringServer) -> AnsweringServer:
    running_server.asked.clear()
    return running_server


def router_of(server: Any) -> ParallelRouter:
    """With the retries and cooldowns of litellm as they are."""
    return make_router(server, ("gpt",), num_retries=None)


def ask(what: str, **kwargs: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": what}]
    return {"model": "gpt", "messages": messages, "max_tokens": 20, **kwargs}


# --- no choices ---


@in_two_worlds
def test_an_answer_without_choices_is_a_failure_that_was_paid_for(
    host: Host, server: AnsweringServer
) -> None:
    requests = [ask("empty"), ask("empty", stream=True), ask("text"), ask("no text")]

    async def main() -> None:
        budget = Budget(max_cost=10, prices=PRICES)
        batch = parallel_core.iter_parallel_acompletions(
            router_of(server), requests, concurrency="auto", preserve_order=True, budget=budget
        )
        async with batch:
            results = [result async for result in batch]
        assert [result.ok for result in results] == [False, False, True, True]
        for index, result in enumerate(results[:2]):
            error = result.exception
            assert isinstance(error, EmptyResponseError)
            assert (error.index, error.model) == (index, "gpt")
            failure = classify_failure(error)
            assert (failure.kind, failure.sent, failure.may_pass) == ("answer", True, False)
            assert result.usage is not None
            assert result.usage.total_tokens == 12
            assert result.usage.cost == pytest.approx(COST)
        assert batch.usage.total_tokens == 4 * 12
        assert budget.spent_cost == pytest.approx(4 * COST)
        assert batch.limit_changes[-1].rejected == 0

    run_with_routers(host, main)
    assert server.asked == {"empty": 2, "text": 1, "no text": 1}


@in_two_worlds
def test_an_answer_that_has_no_list_of_choices_is_empty_too(
    host: Host, server: AnsweringServer
) -> None:
    async def main() -> None:
        budget = Budget(max_cost=10, prices=PRICES)
        batch = parallel_core.iter_parallel_acompletions(
            router_of(server), [ask("none"), ask("null")], budget=budget
        )
        async with batch:
            errors = [result.exception async for result in batch]
        assert [type(error) for error in errors] == [EmptyResponseError] * 2
        # litellm keeps no usage of it: each counts with its worst case.
        assert batch.usage.unpriced_calls == 2
        assert budget.spent_cost > 2 * 20 * 0.01

    run_with_routers(host, main)
    assert server.asked == {"none": 1, "null": 1}


def test_the_first_empty_answer_ends_a_fail_fast_batch(server: AnsweringServer) -> None:
    async def main() -> None:
        with pytest.raises(EmptyResponseError, match="the answer \\(model 'gpt'\\) has no choices"):
            await parallel_core.parallel_acompletions(
                router_of(server), [ask("empty")], return_exceptions=False
            )

    run_with_routers(ASYNCIO_HOSTS[0], main)


def test_the_other_attempt_of_a_hedged_call_may_have_choices(server: AnsweringServer) -> None:
    """The first attempt is empty while the second one is under way."""
    second_began = anyio.Event()

    class Twice:
        def __init__(self) -> None:
            self.calls = 0

        async def acompletion(self, **_: Any) -> dict[str, Any]:
            self.calls += 1
            if self.calls == 1:
                await second_began.wait()
                return {"choices": [], "usage": USAGE}
            second_began.set()
            return {"choices": [choice("answer")], "usage": USAGE}

    async def main() -> None:
        budget = Budget(max_cost=10, prices=PRICES)
        (result,) = await parallel_core.parallel_acompletions(
            Twice(), [ask("x")], hedge=Hedge(after=0.01, max_extra=1.0), budget=budget
        )
        assert result.unwrap()["choices"][0]["message"]["content"] == "answer"
        assert budget.spent_cost == pytest.approx(2 * COST)

    in_virtual_time(main)


def test_an_empty_answer_survives_a_meter_that_looks_for_a_choice() -> None:
    class Meter:
        def worst_case(self, item: Any) -> Usage:
            return Usage()

        def usage(self, value: Any) -> Usage:
            return Usage(completion_tokens=len(value["choices"][0]["message"]["content"]))

    class Empty:
        async def acompletion(self, **_: Any) -> dict[str, Any]:
            return {"choices": []}

    async def main() -> None:
        (result,) = await parallel_core.parallel_acompletions(Empty(), [ask("x")], meter=Meter())
        assert isinstance(result.exception, EmptyResponseError)
        assert isinstance(result.exception.__cause__, IndexError)

    in_virtual_time(main)


def test_what_a_callable_returns_is_its_own_affair() -> None:
    async def answer(**_: Any) -> dict[str, Any]:
        return {"choices": []}

    async def main() -> None:
        (result,) = await parallel_core.parallel_acompletions(answer, [ask("x")])
        assert result.unwrap() == {"choices": []}

    in_virtual_time(main)


def test_the_error_survives_pickling() -> None:
    error = EmptyResponseError(3, "gpt", Usage(prompt_tokens=1), 0.5)
    copy = pickle.loads(pickle.dumps(error))
    assert (copy.index, copy.model, copy.usage) == (3, "gpt", Usage(prompt_tokens=1))
    assert (copy.time_to_first_chunk, str(copy)) == (0.5, str(error))


# --- finish reasons ---

OTHER = {"finish_reason": "recitation", "message": {"content": "a"}}


@pytest.mark.parametrize(
    ("choices", "expected"),
    [
        ([choice("a")], ("stop", False)),
        ([choice("a", "length"), choice("b", "content_filter")], ("content_filter", False)),
        ([choice("a"), choice("b", "length")], ("length", False)),
        ([choice("a"), OTHER], ("recitation", False)),
        ([choice("a", "length"), OTHER], ("length", False)),
        (
            [choice("a"), choice(None, "tool_calls", tool_calls=[{"id": "1"}])],
            ("tool_calls", False),
        ),
        ([choice("a"), choice(" \n")], ("stop", True)),
        ([choice(None)], ("stop", True)),
        ([choice("", "length")], ("length", True)),
        ([choice(None, refusal="no")], ("stop", False)),
        ([choice(None, provider_specific_fields={"refusal": "no"})], ("stop", False)),
        ([choice(None, function_call={"name": "f"})], ("stop", False)),
        ([choice(None, audio={"id": "1"})], ("stop", False)),
        ([choice(None, images=[{"type": "image_url"}])], ("stop", False)),
        ([{"message": None}], (None, True)),
        ([{"text": ""}], (None, True)),
        ([{"text": "a", "finish_reason": "stop"}], ("stop", False)),
        ([{"finish_reason": 7}, 5], (None, False)),
        ("no list", (None, False)),
        (None, (None, False)),
    ],
)
def test_an_answer_counts_by_its_worst_choice(choices: Any, expected: Any) -> None:
    assert finish_of({"choices": choices}) == expected
    # As an object with attributes, as litellm has it.
    namespace: Any = json.loads(json.dumps(choices), object_hook=lambda f: SimpleNamespace(**f))
    assert finish_of(SimpleNamespace(choices=namespace)) == expected


def test_an_answer_of_litellm_counts() -> None:
    fields = {"choices": [choice("cut", "length"), choice("whole")]}
    assert finish_of(ModelResponse(**fields)) == ("length", False)


def test_finish_reasons_without_end_need_no_memory() -> None:
    reasons = Counter[str]()
    add_finish(reasons, None)
    for number in range(1000):
        add_finish(reasons, f"reason {number}")
    add_finish(reasons, "reason 0")
    assert len(reasons) == 33
    assert (reasons["reason 0"], reasons["another reason"]) == (2, 968)
    assert len(finish_of({"choices": [choice("a", "x" * 10_000)]}).reason or "") == 64


def test_what_is_unusual_is_said() -> None:
    assert describe_finishes({"stop": 5, "tool_calls": 2}, 0) == ""
    reasons = {"stop": 9_000, "length": 1_212, "content_filter": 3, "recitation": 1}
    assert describe_finishes(reasons, 8) == (
        "1,212 cut at max_tokens, 3 filtered, 1 ended with recitation, 8 without text"
    )


# --- runs ---


@in_two_worlds
def test_a_run_counts_how_its_answers_ended(
    host: Host, server: AnsweringServer, tmp_path: Path
) -> None:
    asked = ["text", "cut", "cut", "filtered", "no text", "thought", "refusal", "empty", "none"]
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    lines = [json.dumps({"custom_id": f"{n} {what}", **ask(what)}) for n, what in enumerate(asked)]
    lines.append(json.dumps({"custom_id": "9 empty", **ask("empty", stream=True)}))
    source.write_text("\n".join(lines))

    async def main() -> None:
        summary = await run_file(router_of(server), source, output)
        assert (summary.ending, summary.succeeded, summary.failed) == ("complete", 7, 3)
        assert summary.finish_reasons == {"stop": 3, "length": 3, "content_filter": 1}
        assert summary.without_text == 3
        (group,) = summary.failures
        assert (group.kind, group.count) == ("answer", 3)
        assert group.message == "the answer has no choices"
        assert (summary.final_failures, summary.failures_that_may_pass) == (0, 3)

    run_with_routers(host, main)
    assert server.asked["empty"] == 2
    results = [json.loads(line) for line in output.read_text().splitlines()]
    failed = {result["custom_id"]: result["error"] for result in results if result["error"]}
    error = {"code": "empty_response", "message": "the answer (model 'gpt') has no choices"}
    assert failed == {"7 empty": error, "8 none": error, "9 empty": error}
    measured = {
        record.custom_id: record
        for record in read_statistics(RunPaths.of(output).statistics)
        if isinstance(record, CallStatistics)
    }
    for custom_id in ("7 empty", "9 empty"):
        record = measured[custom_id]
        assert (record.ok, record.error) == (False, "EmptyResponseError")
        assert (record.prompt_tokens, record.completion_tokens) == (5, 7)
    assert (measured["5 thought"].finish_reason, measured["5 thought"].without_text) == (
        "length",
        True,
    )
    report = summarize(output)
    assert report.total.finish_reasons == {"length": 3, "stop": 3, "content_filter": 1}
    assert report.total.without_text == 3
