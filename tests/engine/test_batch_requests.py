"""What a batch takes as requests and arguments, and what it says of them."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

import parallel_core
from helpers.batch_calls import double
from helpers.hosts import Host
from parallel_core import InvalidRequestError, ParallelResult, RouterParallelRequest

MESSAGES = [{"role": "user", "content": "secret prompt"}]


async def echo(*, model: str, messages: Any, **kwargs: Any) -> Any:
    await anyio.lowlevel.checkpoint()
    return model, messages, kwargs


def test_requests_and_mappings_are_sent_alike(host: Host) -> None:
    async def main() -> None:
        requests: list[Any] = [
            RouterParallelRequest("a", MESSAGES, {"temperature": 0.5}),
            {"model": "b", "messages": MESSAGES, "max_tokens": 3},
            RouterParallelRequest(model="c", messages=MESSAGES),
        ]
        results = await parallel_core.parallel_acompletions(echo, requests, preserve_order=True)
        assert [result.unwrap() for result in results] == [
            ("a", MESSAGES, {"temperature": 0.5}),
            ("b", MESSAGES, {"max_tokens": 3}),
            ("c", MESSAGES, {}),
        ]
        assert results[1].request == RouterParallelRequest("b", MESSAGES, {"max_tokens": 3})

    host.run(main)


BAD: list[tuple[Any, str]] = [
    (None, "NoneType"),
    ("text", "str"),
    ({"model": "a"}, "messages missing"),
    ({}, "model and messages missing"),
    ({"model": "", "messages": MESSAGES}, "an empty str"),
    ({"model": 3, "messages": MESSAGES}, "not int"),
    ({"model": "a", "messages": "hello"}, "list of messages"),
    ({"model": "a", "messages": []}, "messages is empty"),
    ({"model": "a", "messages": [{"content": "x"}]}, "no 'role'"),
    ({"model": "a", "messages": ["x"]}, r"messages\[0\]"),
    ({"model": "a", "messages": MESSAGES, "metadata": "x"}, "metadata"),
    (
        {"model": "a", "messages": MESSAGES, "stream_options": True},
        "stream_options must be a mapping",
    ),
    ({"model": "a", "messages": MESSAGES, "kwargs": {"n": 1}}, "top level"),
    (RouterParallelRequest("a", MESSAGES, {"model": "b"}), "given twice"),
    (RouterParallelRequest("a", MESSAGES, "x"), "kwargs"),  # type: ignore[arg-type]
    (RouterParallelRequest("a", MESSAGES, {1: 2}), "names of kwargs"),  # type: ignore[dict-item]
]


@pytest.mark.parametrize(("bad", "problem"), BAD)
def test_sized_input_is_refused_as_a_whole(host: Host, bad: Any, problem: str) -> None:
    async def main() -> None:
        sent: list[str] = []

        async def call(*, model: str, messages: Any) -> None:
            sent.append(model)

        good = RouterParallelRequest("a", MESSAGES)
        with pytest.raises(InvalidRequestError, match=problem) as caught:
            await parallel_core.parallel_acompletions(call, [good, bad, good, bad])
        assert set(caught.value.problems) == {1, 3}
        assert "requests 1, 3: " in str(caught.value)
        assert isinstance(caught.value, ValueError)
        assert "secret" not in str(caught.value)
        assert sent == []

    host.run(main)


def test_a_bad_item_of_a_lazy_source_is_the_result_of_its_index(host: Host) -> None:
    async def main() -> None:
        requests: list[Any] = [RouterParallelRequest("a", MESSAGES), {"model": "b"}, 17]
        results = await parallel_core.parallel_acompletions(
            echo, iter(requests), preserve_order=True
        )
        assert [result.ok for result in results] == [True, False, False]
        assert "request 1: messages missing" in str(results[1].exception)
        assert results[2].request == 17  # type: ignore[comparison-overlap]
        with pytest.raises(InvalidRequestError, match="request 1: messages missing"):
            await parallel_core.parallel_acompletions(
                echo, iter(requests), return_exceptions=False, concurrency=1
            )

    host.run(main)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"concurrency": 0}, ValueError, "at least 1, not 0"),
        ({"concurrency": -3}, ValueError, "at least 1"),
        ({"concurrency": 2.0}, TypeError, "integer, not float"),
        ({"concurrency": "8"}, ValueError, "an integer, .auto. or"),
        ({"concurrency": None}, TypeError, "integer, not NoneType"),
        ({"concurrency": True}, TypeError, "integer, not bool"),
    ],
)
def test_concurrency_is_checked(
    host: Host, arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    async def main() -> None:
        with pytest.raises(error, match=message):
            await parallel_core.parallel_map(double, [1], **arguments)
        with pytest.raises(error, match=message):
            parallel_core.iter_parallel_acompletions(echo, [], **arguments)

    host.run(main)


def test_wrong_arguments_are_refused_at_the_call(host: Host) -> None:
    async def main() -> None:
        with pytest.raises(TypeError, match="iterable"):
            parallel_core.iter_parallel_map(double, 17)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="async callable"):
            parallel_core.iter_parallel_map(17, [])  # type: ignore[arg-type]
        with pytest.raises(TypeError, match=r"expected a litellm\.Router"):
            parallel_core.iter_parallel_acompletions(17, [])  # type: ignore[arg-type]
        one: Any = {"model": "a", "messages": MESSAGES}
        with pytest.raises(TypeError, match="not one dict"):
            parallel_core.iter_parallel_acompletions(echo, one)
        with pytest.raises(TypeError, match="not one RouterParallelRequest"):
            parallel_core.iter_parallel_acompletions(echo, RouterParallelRequest("a", MESSAGES))  # type: ignore[arg-type]

    host.run(main)


def test_a_sync_function_is_named_as_the_mistake(host: Host) -> None:
    async def main() -> None:
        function: Any = lambda item: item  # noqa: E731 - the mistake in its usual form
        (result,) = await parallel_core.parallel_map(function, [1])
        assert isinstance(result.exception, TypeError)
        assert "pass an async function" in str(result.exception)

    host.run(main)


def test_the_note_of_a_fail_fast_error_names_index_and_model(host: Host) -> None:
    async def main() -> None:
        async def call(*, model: str, messages: Any) -> None:
            await anyio.lowlevel.checkpoint()
            raise ConnectionError("down")

        with pytest.raises(ConnectionError) as caught:
            await parallel_core.parallel_acompletions(
                call,
                [{"model": "gpt", "messages": MESSAGES}],
                return_exceptions=False,
            )
        assert caught.value.__notes__ == ["parallel_core: raised by request 0 (model 'gpt')"]

    host.run(main)


def test_outside_of_any_world() -> None:
    with pytest.raises(RuntimeError, match="parallel_completions"):
        parallel_core.iter_parallel_map(double, [1])


def test_results_are_read_only_and_show_no_contents() -> None:
    request = RouterParallelRequest("gpt", MESSAGES, {"api_key": "sk-secret"})
    assert repr(request) == (
        "RouterParallelRequest(model='gpt', messages=<1 message>, kwargs=<api_key>)"
    )
    result = parallel_core.RouterParallelResult(3, request, None, ValueError("secret"), 1.0, 0.25)
    assert repr(result) == (
        "<RouterParallelResult index=3 model='gpt' exception=ValueError duration=0.250s>"
    )
    with pytest.raises(AttributeError):
        result.index = 4  # type: ignore[misc]
    assert not hasattr(result, "__dict__")
    assert "secret" not in repr(ParallelResult(0, "secret", "secret"))
