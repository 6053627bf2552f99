from __future__ import annotations

import base64
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio
import litellm
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from litellm import Router

from helpers.hosts import Host
from parallel_core.control.metering import ItemMeter, RouterMeter
from parallel_core.control.prices import Price
from parallel_core.types import RouterParallelRequest, StreamedResponse, Usage

SCRIPTS = Path(__file__).parent / "scripts"


def request(model: str = "m", text: Any = "häh", **kwargs: Any) -> RouterParallelRequest:
    return RouterParallelRequest(model, [{"role": "user", "content": text}], kwargs or None)


def deployment(name: str, model: str, **parameters: Any) -> dict[str, Any]:
    return {
        "model_name": name,
        "litellm_params": {"model": model, "api_key": "x", **parameters},
    }


texts = st.text(max_size=200) | st.text('<|endoftext|>\U0001f600ก\u0300\n\\"', max_size=100)
parts = st.lists(texts.map(lambda text: {"type": "text", "text": text}), min_size=1, max_size=4)
tools = st.lists(
    st.builds(
        lambda name, about, argument, kind: {
            "type": "function",
            "function": {
                "name": name,
                "description": about,
                "parameters": {
                    "type": "object",
                    "properties": {argument: {"type": kind, "description": about}},
                    "required": [argument],
                },
            },
        },
        texts,
        texts,
        st.text(min_size=1, max_size=30),
        st.sampled_from(["string", "integer", "boolean"]),
    ),
    max_size=3,
)


@settings(max_examples=max(200, settings().max_examples))
@given(st.lists(texts | parts, min_size=1, max_size=4), st.text(max_size=20), tools)
def test_a_prompt_has_fewer_tokens_than_its_worst_case(
    contents: list[Any], name: str, given_tools: list[Any]
) -> None:
    messages = [{"role": "user", "content": content, "name": name} for content in contents]
    asked = RouterParallelRequest("gpt-4o", messages, {"tools": given_tools, "max_tokens": 1})
    counted = litellm.token_counter(
        model="gpt-4o",
        messages=messages,
        tools=given_tools or None,
    )
    assert RouterMeter(None).worst_case(asked).prompt_tokens >= counted


@given(st.text(st.characters(categories=None, codec=None), max_size=50))
def test_any_text_is_counted(text: str) -> None:  # lone surrogates as well
    meter = RouterMeter(None)
    empty = meter.worst_case(request(text="", max_tokens=1)).prompt_tokens
    worst = meter.worst_case(request(text=text, max_tokens=1)).prompt_tokens
    assert worst - empty == len(text.encode("utf-8", "surrogatepass"))


DATA = base64.b64encode(bytes(300_000)).decode()


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{DATA}"}},
        {"type": "image_url", "image_url": f"data:image/png;base64,{DATA}"},
        {"type": "image", "source": {"type": "base64", "data": DATA}},
        {"type": "input_audio", "input_audio": {"data": DATA, "format": "wav"}},
    ],
)
def test_images_and_audio_are_not_their_length(part: Any) -> None:
    worst = RouterMeter(None).worst_case(request(text=[part], max_tokens=1))
    assert 65_536 < worst.prompt_tokens < 400_000


def test_a_text_beside_an_image_is_counted_and_a_schema_is_no_image() -> None:
    meter = RouterMeter(None)
    image = {"type": "image_url", "image_url": {"url": "https://x/y.png"}}
    text = {"type": "text", "text": "x" * 5000}
    assert meter.worst_case(request(text=[image, text], max_tokens=1)).prompt_tokens > 9096
    schema = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"d": "y" * 9000}}}
    assert meter.worst_case(request(response_format=schema, max_tokens=1)).prompt_tokens > 9000


@pytest.mark.parametrize(
    ("kwargs", "assumed", "output"),
    [
        ({"max_tokens": 5}, 9, 5),
        ({"max_completion_tokens": 6}, None, 6),
        ({"max_tokens": 5, "max_completion_tokens": 6}, None, 6),
        ({"extra_body": {"max_tokens": 7}}, None, 7),
        ({"max_tokens": 5, "extra_body": {"max_tokens": 7, "n": 2}}, None, 14),
        ({"max_tokens": 5, "n": 3}, None, 15),
        ({}, 9, 9),
        ({"max_tokens": -1}, 9, 9),
        ({"max_tokens": True}, 9, 9),
        ({"n": 2}, None, 2 * 16384),
    ],
)
def test_output(kwargs: Any, assumed: int | None, output: int) -> None:
    assert litellm.model_cost["gpt-4o"]["max_output_tokens"] == 16384
    meter = RouterMeter(None, assume_output_tokens=assumed)
    assert meter.worst_case(request("gpt-4o", **kwargs)).completion_tokens == output


def test_output_of_deployments() -> None:
    meter = RouterMeter(
        Router(
            model_list=[
                deployment("a", "openai/gpt-4o", max_tokens=10),
                deployment("b", "openai/gpt-4o"),
                deployment("c", "openai/unknown"),
            ],
            fallbacks=[{"a": ["b"]}],
        )
    )
    assert meter.worst_case(request("a")).completion_tokens == 16384
    assert meter.worst_case(request("b")).completion_tokens == 16384
    with pytest.raises(ValueError, match=r"'c'.*max_tokens"):
        meter.worst_case(request("c"))


def test_cost_of_the_worst_case() -> None:
    worst = RouterMeter(None, {"m": (0.5, 2.0)}).worst_case(request(max_tokens=5, n=2))
    assert worst.completion_tokens == 10
    assert worst.cost == worst.prompt_tokens * 0.5 + 20
    assert worst.unpriced_calls == 0
    assert RouterMeter(None).worst_case(request(max_tokens=5)).unpriced_calls == 1


def test_price_of_callables() -> None:
    meter = RouterMeter(None, {"gpt-4o": (1, 2)})
    assert meter.price_of("gpt-4o") == (1, 2)
    assert meter.price_of("no-such-model") is None
    entry = litellm.model_cost["gpt-4o-mini"]
    price = meter.price_of("openai/gpt-4o-mini")
    assert price is not None
    assert price.of_input >= entry["input_cost_per_token"]
    assert meter.price_of("gpt-4o-mini") == price
    assert meter.price_of("somebody_else/gpt-4o-mini") is None


PRICES = {"a": 1.0, "a2": 2.0, "b": 4.0, "c": 3.0, "d": 5.0, "e": 6.0, "z": 7.0}


def priced_router(**options: Any) -> Router:
    deployments = [
        deployment(
            name.rstrip("2"), "openai/x", input_cost_per_token=cost, output_cost_per_token=cost
        )
        for name, cost in PRICES.items()
    ]
    models: Any = [*deployments, deployment("u", "openai/unknown")]
    router: Router = Router(model_list=models, **options)
    return router


@pytest.mark.parametrize(
    ("options", "price"),
    [
        ({}, 2),
        ({"fallbacks": [{"a": ["b"]}]}, 4),
        ({"fallbacks": [{"a": ["c"]}, {"c": ["d"]}, {"d": ["a"]}]}, 5),
        ({"fallbacks": [{"b": ["z"]}, {"*": ["e"]}]}, 6),
        ({"default_fallbacks": ["d"]}, 5),
        ({"context_window_fallbacks": [{"a": ["b"]}]}, 4),
        ({"content_policy_fallbacks": [{"a": ["b"]}]}, 4),
        ({"fallbacks": [{"a": ["u"]}]}, None),
        ({"fallbacks": [{"a": ["nowhere"]}]}, None),
        ({"fallbacks": [{"a": [{"model": "b"}]}]}, 4),
    ],
)
def test_the_dearest_of_deployments_and_fallbacks(options: Any, price: float | None) -> None:
    meter = RouterMeter(priced_router(**options))
    assert meter.price_of("a") == (None if price is None else (price, price))


def test_prices_of_the_user_count_for_fallbacks_as_well() -> None:
    meter = RouterMeter(priced_router(fallbacks=[{"a": ["u"]}]), {"u": (9, 8)})
    assert meter.price_of("a") == (9, 8)
    meter = RouterMeter(priced_router(fallbacks=[{"a": ["z"]}]), {"a": (0.1, 0.2)})
    assert meter.price_of("a") == (0.1, 0.2)


def test_aliases() -> None:
    meter = RouterMeter(
        priced_router(model_group_alias={"x": "b", "y": {"model": "c", "hidden": False}})
    )
    assert meter.price_of("x") == (4, 4)
    assert meter.price_of("y") == (3, 3)
    assert meter.price_of("not-there") is None


def test_fallbacks_of_a_request() -> None:
    meter = RouterMeter(priced_router())
    worst = meter.worst_case(request("a", max_tokens=1, fallbacks=["z"]))
    assert worst.cost == 7 * worst.total_tokens
    assert meter.worst_case(request("a", max_tokens=1, fallbacks=["u"])).unpriced_calls == 1


def test_own_price_of_a_deployment_goes_first() -> None:
    def price(**where: Any) -> Price | None:
        entry = {"model_name": "a", "litellm_params": {"model": "openai/gpt-4o"}}
        entry["litellm_params"].update(where.pop("params", {}))  # type: ignore[attr-defined]
        return RouterMeter(SimpleNamespace(model_list=[{**entry, **where}])).price_of("a")

    own = {"input_cost_per_token": 0.1, "output_cost_per_token": 0.2}
    assert price(params=own) == (0.1, 0.2)
    assert price(model_info=own) == (0.1, 0.2)
    assert price(params={"input_cost_per_token": 0, "output_cost_per_token": 0}) == (0, 0)
    assert price(params={"model": "azure/my-own"}, model_info={"base_model": "gpt-4o"}) == price()
    assert price() is not None
    assert price(params={"model": "openai/unknown"}) is None


def test_tiers_and_caches_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = {
        "litellm_provider": "x",
        "input_cost_per_token": 1.0,
        "input_cost_per_token_above_200k_tokens": 2.0,
        "cache_creation_input_token_cost": 3.0,
        "output_cost_per_token": 4.0,
        "output_cost_per_reasoning_token": 5.0,
    }
    monkeypatch.setitem(litellm.model_cost, "x/tiers", entry)
    assert RouterMeter(None).price_of("x/tiers") == (3, 5)


class Raising:
    @property
    def usage(self) -> Any:
        raise KeyError


REPORTED = {
    "prompt_tokens": 3,
    "completion_tokens": 4,
    "prompt_tokens_details": {"cached_tokens": 2},
    "completion_tokens_details": {"reasoning_tokens": 1},
}


def test_usage_of_objects_and_dicts() -> None:
    meter = RouterMeter(None, {"m": (0.5, 2.0)})
    expected = Usage(3, 4, 2, 1, cost=9.5)
    assert meter.usage_of(request(), {"usage": REPORTED}) == expected
    assert meter.usage_of(request(), SimpleNamespace(usage=REPORTED)) == expected
    of_litellm = litellm.ModelResponse(usage=litellm.Usage(**REPORTED))  # type: ignore[arg-type]
    assert meter.usage_of(request(), of_litellm) == expected
    assert meter.usage_of(request("other"), {"usage": REPORTED}) == Usage(
        3, 4, 2, 1, unpriced_calls=1
    )


def test_a_stream_that_was_read_elsewhere_is_priced_here() -> None:
    meter = RouterMeter(None, {"m": (0.5, 2.0)})
    elsewhere = Usage(3, 4, 2, 1, unpriced_calls=1)
    answer = StreamedResponse(None, elsewhere, 0.5)
    assert meter.usage_of(request(), answer) == Usage(3, 4, 2, 1, cost=9.5)
    assert meter.usage_of(request("other"), answer) == elsewhere
    assert meter.usage_of(request(), StreamedResponse(None, None, None)) is None


@pytest.mark.parametrize(
    "value",
    [
        None, "text", 5, {}, {"usage": None}, {"usage": "x"}, {"usage": {}}, Raising(),
        {"usage": {"prompt_tokens": None, "completion_tokens": 1}},
        {"usage": {"prompt_tokens": "3", "completion_tokens": 1}},
        {"usage": {"prompt_tokens": -3, "completion_tokens": 1}},
        {"usage": {"prompt_tokens": 3, "completion_tokens": float("nan")}},
        {"usage": {"prompt_tokens": True, "completion_tokens": 1}},
        {"usage": {"prompt_tokens": 0, "completion_tokens": 0}},
    ],
)  # fmt: skip
def test_odd_values_tell_nothing(value: Any) -> None:
    assert RouterMeter(None).usage_of(request(), value) is None


def costing(cost: Any) -> Any:
    return SimpleNamespace(usage=REPORTED, _hidden_params={"response_cost": cost})


@pytest.mark.parametrize("cost", [None, 0, "1", float("nan"), float("inf"), -1.0, True])
def test_costs_that_say_nothing(cost: Any) -> None:
    usage = RouterMeter(None).usage_of(request(), costing(cost))
    assert usage == Usage(3, 4, 2, 1, unpriced_calls=1)


def test_what_is_free_is_priced(monkeypatch: pytest.MonkeyPatch) -> None:
    assert RouterMeter(None).usage_of(request(), costing(0.25)) == Usage(3, 4, 2, 1, cost=0.25)
    free = {"input_cost_per_token": 0, "output_cost_per_token": 0}
    monkeypatch.setitem(litellm.model_cost, "m", free)
    assert RouterMeter(None).usage_of(request(), costing(0)) == Usage(3, 4, 2, 1)
    router = Router(model_list=[deployment("own", "openai/x", **free)])
    assert RouterMeter(router).usage_of(request("own"), costing(0.0)) == Usage(3, 4, 2, 1)
    # litellm 1.110 says 0 for streams of deployments with prices of their own.
    prices = {"input_cost_per_token": 1e-6, "output_cost_per_token": 2e-6}
    router = Router(model_list=[deployment("priced", "openai/x", **prices)])
    usage = RouterMeter(router).usage_of(request("priced"), costing(0))
    assert usage is not None
    assert usage.cost == pytest.approx(3e-6 + 8e-6)
    assert usage.unpriced_calls == 0


def test_expected_tokens(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[str] = []
    counter = litellm.token_counter

    def counted(**arguments: Any) -> int:
        assert arguments["use_default_image_token_count"] is True  # else it fetches them
        same = threading.current_thread() is threading.main_thread()
        threads.append("loop" if same else "worker")
        return counter(**arguments)

    monkeypatch.setattr(litellm, "token_counter", counted)

    async def main() -> None:
        meter = RouterMeter(None)
        short = counter(model="m", messages=request().messages)
        assert await meter.expected_tokens(request()) == short + 500
        assert await meter.expected_tokens(request(max_tokens=7, n=2)) == short + 14
        meter.usage_of(request(), {"usage": {"prompt_tokens": 1, "completion_tokens": 10}})
        meter.usage_of(request(), {"usage": {"prompt_tokens": 1, "completion_tokens": 21}})
        assert await meter.expected_tokens(request()) == short + 15
        await meter.expected_tokens(request(text="word " * 5000))
        await meter.expected_tokens(request(tools=[{"x": "y" * 30_000}]))
        assert threads == ["worker", "loop", "loop", "worker", "worker"]
        threads.clear()
        together = RouterMeter(None)
        async with anyio.create_task_group() as tasks:
            for _ in range(10):
                tasks.start_soon(together.expected_tokens, request())
        assert threads == ["worker"] + ["loop"] * 9  # one loads, and the others wait for it

    host.run(main)


def test_a_counter_that_fails_is_replaced(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(**_: Any) -> int:
        raise KeyError

    monkeypatch.setattr(litellm, "token_counter", failing)

    async def main() -> None:
        meter = RouterMeter(None)
        prompt = meter.worst_case(request(max_tokens=1)).prompt_tokens
        assert await meter.expected_tokens(request(max_tokens=1)) == prompt // 4 + 1

    host.run(main)


def test_a_meter_of_the_user() -> None:
    with pytest.raises(TypeError, match="must have a method worst_case, and int has none"):
        ItemMeter(5)  # type: ignore[arg-type]


def test_usage_alone_imports_no_litellm() -> None:
    subprocess.run([sys.executable, str(SCRIPTS / "usage_alone.py")], check=True, timeout=60)


# --- operations other than chat ---


def meter_of(*deployments: dict[str, Any], **options: Any) -> RouterMeter:
    return RouterMeter(Router(model_list=list(deployments)), **options)


def operation_request(operation: str, **arguments: Any) -> RouterParallelRequest:
    return RouterParallelRequest("m", kwargs=arguments, operation=operation)


def test_a_model_that_bills_other_things_than_tokens_has_no_price() -> None:
    """Its price per token is 0 in litellm's map, and would let a budget through."""
    cohere = deployment("r", "cohere/rerank-english-v3.0")
    small = deployment("e", "openai/text-embedding-3-small")
    assert meter_of(cohere).price_of("r", "arerank") is None
    assert meter_of(small).price_of("e", "aembedding") == Price(2e-08, 0.0)
    own = deployment("e", "openai/unknown", input_cost_per_token=1e-6)
    assert meter_of(own).price_of("e", "aembedding") == Price(1e-6, 0.0)
    mixed = meter_of(deployment("m", "openai/gpt-4o-mini"))
    chat, embedding = mixed.price_of("m"), mixed.price_of("m", "aembedding")
    assert chat is not None
    assert embedding is not None
    assert chat.of_output > 0.0 == embedding.of_output


def test_the_worst_case_of_operations() -> None:
    def worst(operation: str, **arguments: Any) -> tuple[int, int]:
        meter = meter_of(deployment("m", "openai/unknown"), assume_output_tokens=10)
        usage = meter.worst_case(operation_request(operation, **arguments))
        return usage.prompt_tokens, usage.completion_tokens

    assert worst("aembedding", input=["four", "four"]) == (2 * 20, 0)
    assert worst("aembedding", input=[[1, 2, 3], [4]]) == (4, 0)
    assert worst("arerank", query="four", documents=["four"] * 3) == (6 * 20, 0)
    assert worst("aresponses", input="four", instructions="four") == (2 * 20, 10)
    assert worst("aresponses", input="four", max_output_tokens=3) == (20, 3)
    assert worst("atext_completion", prompt=["four"] * 2, n=2, max_tokens=3) == (2 * 20, 12)
    assert worst("atext_completion", prompt=[1, 2], best_of=4, max_tokens=3) == (2, 12)


async def _expected(operation: str, **arguments: Any) -> int:
    meter = meter_of(deployment("m", "openai/gpt-4o-mini"))
    return await meter.expected_tokens(operation_request(operation, **arguments))


def test_expected_tokens_of_operations() -> None:
    assert anyio.run(lambda: _expected("aembedding", input=["one two", "one two"])) == 4
    assert anyio.run(lambda: _expected("aresponses", input="one two", max_output_tokens=7)) == 9
    assert anyio.run(lambda: _expected("aresponses", input="one two")) == 502


def test_an_answer_with_a_price_and_no_tokens() -> None:
    hidden = SimpleNamespace(_hidden_params={"response_cost": 0.04}, usage=None)
    item = operation_request("aimage_generation", prompt="a tree")
    assert meter_of().usage_of(item, hidden) == Usage(cost=0.04)
    assert meter_of().usage_of(item, SimpleNamespace()) is None
    ranking = operation_request("arerank", query="a" * 24, documents=["a" * 24])
    usage = meter_of().usage_of(ranking, hidden)
    assert usage == Usage(20, cost=0.04, estimated_calls=1)


def test_an_answer_without_tokens_of_a_model_that_is_free_costs_nothing() -> None:
    item = operation_request("amoderation", input="a" * 24)
    free = meter_of(deployment("m", "openai/omni-moderation-latest"))
    assert free.usage_of(item, SimpleNamespace()) == Usage(10, estimated_calls=1)
    assert meter_of(deployment("m", "openai/x")).usage_of(item, SimpleNamespace()) is None
    priced = meter_of(deployment("m", "openai/text-embedding-3-small"))
    assert priced.usage_of(item, SimpleNamespace()) is None


def test_text_completions_have_the_price_that_litellm_lists_under_a_name_of_their_own() -> None:
    meter = meter_of(deployment("m", "openai/gpt-3.5-turbo-instruct"))
    assert meter.price_of("m", "atext_completion") == Price(1.5e-6, 2e-6)
    assert meter_of(deployment("m", "groq/gpt-3.5-turbo-instruct")).price_of("m") is None
