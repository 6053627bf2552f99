"""Attempts to have a call sent, or an answer read, by what the lane has learnt of another call."""

from __future__ import annotations

import asyncio
import copy
import json
import threading
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import httpx
import litellm
import pytest
from litellm import Router

from helpers.direct_parity import outcome_of, unlike
from helpers.hosts import ASYNCIO_HOSTS
from helpers.recording_provider import Answer, Canned, Kept, completion, recording_provider
from helpers.routers import run_with_routers
from parallel_core import iter_parallel_acompletions
from parallel_core.router.direct import lane, seam, surroundings
from parallel_core.router_hosts.litellm_loop import close_clients_of_this_loop

ASYNCIO = ASYNCIO_HOSTS[0]
QUESTION = [{"role": "user", "content": "a"}]
FAST = {"model": "openai/fast", "api_key": "sk-0"}
CLAUDE = {"model": "anthropic/claude-3-5-sonnet-20241022", "api_key": "sk-0"}
BATCH_TIMEOUT = 30.0  # seconds


def ask(**arguments: Any) -> dict[str, Any]:
    return {"model": "group", "messages": QUESTION, **arguments}


def sent(one: Kept) -> tuple[Any, ...]:
    headers = [(name.lower(), value) for name, value in one.headers]
    return one.path, sorted(pair for pair in headers if pair[0] != "connection"), one.body


def compare(
    requests: Sequence[Any], deployment: Any = FAST, answer: Answer | None = None
) -> dict[str, int]:
    """Check that both ways send and return the same. Return the reasons of the direct one.

    A request that is a function is made when its turn comes.
    """
    ways: list[tuple[list[Any], list[Any]]] = []
    reasons: dict[str, int] = {}

    async def send(direct: bool) -> None:
        async def source() -> AsyncIterator[dict[str, Any]]:
            for request in requests:
                made: dict[str, Any] = request() if callable(request) else copy.deepcopy(request)
                yield made

        with recording_provider(answer) as provider:
            router: Any = Router(
                model_list=[
                    {
                        "model_name": "group",
                        "litellm_params": {"api_base": provider.url, **deployment},
                        "model_info": {"id": f"group/{uuid.uuid4()}"},
                    }
                ],
                num_retries=0,
                disable_cooldowns=True,
            )
            async with iter_parallel_acompletions(
                router, source(), direct=direct, concurrency=1, retry=None
            ) as batch:
                outcomes = [outcome_of(result) async for result in batch]
                reasons.update(batch.indirect_calls)
            ways.append((outcomes, [sent(one) for one in provider.kept]))

    async def main() -> None:
        await send(False)
        await send(True)

    with asyncio.Runner() as runner:
        runner.run(main())
        runner.run(close_clients_of_this_loop())
    (plain, theirs), (ours, our_requests) = ways
    assert our_requests == theirs
    for number, (one, other) in enumerate(zip(plain, ours, strict=True)):
        assert unlike(one, other) == {}, number
    return reasons


def in_turn(answers: Sequence[Any]) -> tuple[list[dict[str, Any]], Answer]:
    """Requests that get these answers."""
    canned = [each if isinstance(each, Canned) else Canned(each) for each in answers]
    requests = [ask(messages=[{"role": "user", "content": str(n)}]) for n in range(len(canned))]
    return requests, lambda path, body: canned[int(body["messages"][-1]["content"])]


# --- requests ---


def of_claude(path: str, body: Any) -> Canned:
    answer = {"id": "1", "type": "message", "role": "assistant", "model": "claude"}
    usage = {"input_tokens": 3, "output_tokens": 4}
    text = [{"type": "text", "text": "hi"}]
    return Canned({**answer, "content": text, "stop_reason": "end_turn", "usage": usage})


def test_metadata_that_litellm_sends() -> None:
    parts = [{"role": "user", "content": [{"type": "text", "text": "a"}]}]
    metadata: list[dict[str, Any]] = [{}, {"user_id": "bob"}, {"user_id": "eve"}, {}]
    compare([ask(messages=parts, metadata=each) for each in metadata], CLAUDE, of_claude)


def test_texts_that_litellm_decodes() -> None:
    """What litellm says of the texts that the lane makes up is not the outcome of the call."""
    function = {"name": "f", "arguments": '{"a": 1}'}
    called = {"id": "c", "type": "function", "function": function}
    messages = [
        *QUESTION,
        {"role": "assistant", "content": None, "tool_calls": [called]},
        {"role": "tool", "tool_call_id": "c", "content": "r"},
    ]
    declared: dict[str, Any] = {"name": "f", "parameters": {"type": "object", "properties": {}}}
    tools: Any = [{"type": "function", "function": declared}]
    reasons = compare([ask(messages=messages, tools=tools)] * 2, CLAUDE, of_claude)
    assert "litellm refuses it" not in reasons


def test_numbers_that_are_equal_and_not_alike() -> None:
    compare([ask(extra_body={"x": number}) for number in (0.0, -0.0, 0, 1, 1.0, True, False)])


def test_an_argument_that_only_happens_to_be_equal_to_what_is_sent() -> None:
    """extra_body has the last word, and is at first what the argument is."""
    users = [*[(f"u{number}", f"u{number}") for number in range(17)], ("x", "x"), ("y", "x")]
    compare([ask(user=user, extra_body={"user": other}) for user, other in users])


def test_metadata_that_cannot_be_copied() -> None:
    reasons = compare([lambda: ask(metadata={"lock": threading.Lock()})] * 2)
    assert reasons == {"an argument cannot be copied": 2}


def test_callbacks_of_a_request() -> None:
    reasons = compare([ask(success_callback=["of nobody"])] * 2)
    assert reasons == {"it has success_callback": 2}


# --- what requests depend on besides their arguments ---


def test_keys_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    def with_key(key: str) -> Callable[[], dict[str, Any]]:
        def request() -> dict[str, Any]:
            monkeypatch.setenv("OPENAI_API_KEY", key)
            return ask()

        return request

    compare([with_key(key) for key in ("one", "one", "two", "three")], {"model": "openai/fast"})


@pytest.mark.parametrize("name", ["headers", "headers in place", "drop_params"])
def test_settings_of_litellm(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    headers: dict[str, str] = {}

    def with_number(number: int) -> Callable[[], dict[str, Any]]:
        def request() -> dict[str, Any]:
            headers["x-number"] = str(number)
            value = headers if name.endswith("place") else dict(headers)
            if name == "drop_params":
                monkeypatch.setattr(litellm, "drop_params", number == 1)
            else:
                monkeypatch.setattr(litellm, "headers", value)
            return ask(temperature=0.5) if name == "drop_params" else ask()

        return request

    deployment = {"model": "openai/gpt-5-mini", "api_key": "sk-0"}
    compare([with_number(number) for number in (1, 1, 2, 1)], deployment)


def test_what_is_known_is_forgotten_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    """litellm renews credentials that it has fetched."""
    recorded: list[Any] = []

    async def record(*arguments: Any) -> Any:
        recorded.append(arguments)
        return await lane_record(*arguments)

    lane_record = seam.record
    monkeypatch.setattr(lane, "record", record)
    monkeypatch.setattr(surroundings, "_SECONDS", 0.0)
    compare([ask()] * 3)
    assert len(recorded) == 6


@pytest.mark.parametrize("name", ["litellm.acompletion", "httpx.AsyncClient.send"])
def test_a_function_that_somebody_else_has_replaced(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    owner: Any = litellm if name.startswith("litellm") else httpx.AsyncClient
    attribute = name.rpartition(".")[2]
    before = getattr(owner, attribute)

    async def replacement(*args: Any, **kwargs: Any) -> Any:
        seen.append(attribute)
        return await before(*args, **kwargs)

    monkeypatch.setattr(owner, attribute, replacement)
    assert compare([ask()] * 3) == {f"{name} is replaced": 3}
    assert len(seen) == 6


def test_cookies_are_sent_back() -> None:
    values = ["a=1; Path=/", None, "b=2", "b=3", None]
    headers = [[("Set-Cookie", value)] if value else [] for value in values]
    requests, answer = in_turn([Canned(completion(), headers=each) for each in headers])
    compare(requests, FAST, answer)


def test_a_learner_that_is_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[asyncio.Event] = []

    async def record(*arguments: Any) -> Any:
        if len(started) == 1:
            started[0].set()
            started.append(asyncio.Event())
            await started[1].wait()
        return await lane_record(*arguments)

    lane_record = seam.record
    monkeypatch.setattr(lane, "record", record)

    async def main() -> None:
        started.append(asyncio.Event())
        with recording_provider() as provider:
            parameters = {**FAST, "api_base": provider.url}
            router: Any = Router(model_list=[{"model_name": "group", "litellm_params": parameters}])
            learnt = lane.DirectLane(router)
            call = learnt.wrap(lambda _, request: router.acompletion(**request))
            tasks = [asyncio.ensure_future(call(number, ask())) for number in range(3)]
            await started[0].wait()
            tasks[0].cancel()
            async with asyncio.timeout(BATCH_TIMEOUT):
                outcomes: list[Any] = await asyncio.gather(*tasks, return_exceptions=True)
            assert isinstance(outcomes[0], asyncio.CancelledError)
            assert [each.choices[0].message.content for each in outcomes[1:]] == ["answer"] * 2
            assert learnt.direct_calls == 2

    run_with_routers(ASYNCIO, main)


# --- answers ---

DEEP = json.dumps(completion())[:-1].encode() + b', "x": ' + b"[" * 200_000 + b"]" * 200_000 + b"}"


@pytest.mark.parametrize(
    "third",
    [
        Canned(completion(), headers=[("x-letters", "\xe9")]),
        Canned(completion(), headers=[("x-litellm-response-cost", "0.5")]),
        Canned(DEEP),
    ],
    ids=["a header that is not ASCII", "a header with the cost", "too deep"],
)
def test_an_answer_that_is_not_like_those_before(third: Canned) -> None:
    deployment = {"model": "openai/gpt-4o-mini", "api_key": "sk-0"}
    requests, answer = in_turn([completion(), completion(), third, third])
    compare(requests, deployment, answer)


def test_counts_that_a_provider_prices_or_corrects() -> None:
    counts = [{"cost": 0}, {"cost": 0}, {"cost": 10}, {}, {}, {"prompt_tokens": 50}]
    usage = {"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12}
    answers = [completion(usage={**usage, **each}) for each in counts]
    requests, answer = in_turn(answers)
    compare(requests, {"model": "xai/grok-3", "api_key": "sk-0"}, answer)


def test_costs_that_a_proxy_tells_and_that_are_at_first_those_of_the_list() -> None:
    """The cost in the header is what litellm counts, even where it could count one itself."""
    prompt, answered = 5, 7  # tokens, at the prices of gpt-4o-mini
    listed = litellm.completion_cost(
        completion_response=litellm.ModelResponse(
            model="gpt-4o-mini",
            usage=litellm.Usage(prompt_tokens=prompt, completion_tokens=answered),
        ),
        model="gpt-4o-mini",
    )
    costs = [str(listed), str(listed), "0.5", "0.0", "nan", "-1", "x", str(listed)]
    answers = [Canned(completion(), headers=[("x-litellm-response-cost", each)]) for each in costs]
    requests, answer = in_turn(answers)
    for parameters in ({}, {"input_cost_per_token": 1.0, "output_cost_per_token": 2.0}):
        deployment = {"model": "openai/gpt-4o-mini", "api_key": "sk-0", **parameters}
        compare(requests, deployment, answer)


@pytest.mark.parametrize("where", ["litellm", "request"])
def test_answers_that_litellm_checks(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "enable_json_schema_validation"
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    extra = {name: True} if where == "request" else {}
    if where == "litellm":
        monkeypatch.setattr(litellm, name, True)
    answers: list[Any] = []
    for text in ('{"a": 1}', '{"a": 2}', '{"a": "x"}'):
        answers.append(completion())
        answers[-1]["choices"][0]["message"]["content"] = text
    requests, answer = in_turn(answers)
    compare([{**each, "response_format": form, **extra} for each in requests], FAST, answer)
