"""How a provider's stream has ended: whole, cut off, in one choice or in each. Over HTTP."""

from __future__ import annotations

from typing import Any

import pytest

import parallel_core
from helpers.hosts import HOSTS
from helpers.routers import run_with_routers
from helpers.streaming_servers import ENVELOPE, answer_of_server, event
from helpers.streams import request, say, told
from parallel_core import StreamInterruptedError


def test_a_server_that_says_nothing_has_not_answered() -> None:
    async def main() -> None:
        result = await answer_of_server([])
        assert isinstance(result.exception, StreamInterruptedError)
        # But an answer may have no text.
        empty = await answer_of_server([event(""), event(None, "stop")])
        assert empty.ok
        assert empty.response.choices[0].finish_reason == "stop"

    run_with_routers(HOSTS[1], main)


def call_of_a_tool(arguments: str) -> dict[str, Any]:
    call: dict[str, Any] = {"index": 0, "id": "c", "type": "function"}
    call["function"] = {"name": "f", "arguments": arguments}
    begun: dict[str, Any] = event(None)
    begun["choices"][0]["delta"]["tool_calls"] = [call]
    return begun


@pytest.mark.parametrize("provider", ["hosted_vllm", "groq", "deepseek", "databricks", "snowflake"])
def test_done_is_no_finish_reason(provider: str) -> None:
    """litellm's own parsers of lines make ``[DONE]`` into the finish reason "stop"."""

    async def main() -> None:
        for events, text in (
            ([event("half")], "half"),
            ([event("half"), {**told(3, 2), **ENVELOPE}], "half"),
            ([call_of_a_tool('{"half": ')], ""),
            ([event("")], ""),
            ([], ""),
        ):
            result = await answer_of_server(events, provider=provider)
            assert isinstance(result.exception, StreamInterruptedError), events
            assert result.exception.text == text
        for finish in ("stop", "length"):
            result = await answer_of_server([event("a"), event(None, finish)], provider=provider)
            (choice,) = result.unwrap().choices
            assert (choice.message.content, choice.finish_reason) == ("a", finish)
        called = [call_of_a_tool("{}"), event(None, "tool_calls")]
        result = await answer_of_server(called, provider=provider)
        assert result.unwrap().choices[0].finish_reason == "tool_calls"

    run_with_routers(HOSTS[1], main)


def of_gemini(text: str, finish: str | None = None) -> dict[str, Any]:
    candidate: dict[str, Any] = {"content": {"parts": [{"text": text}], "role": "model"}}
    if finish is not None:
        candidate["finishReason"] = finish
    return {"candidates": [{**candidate, "index": 0}], "modelVersion": "gpt", "responseId": "1"}


def test_a_stream_of_gemini_without_a_finish_reason_is_no_answer() -> None:
    """litellm's parser of Gemini writes "stop" into each chunk that has content."""

    async def main() -> None:
        for events, text in (([of_gemini("a")], "a"), ([of_gemini("a"), of_gemini("b")], "ab")):
            result = await answer_of_server(events, provider="gemini", end="eof")
            assert isinstance(result.exception, StreamInterruptedError)
            assert result.exception.text == text
        for events, end in (
            ([of_gemini("all", "STOP")], ("all", "stop")),
            ([of_gemini("a"), of_gemini("b", "MAX_TOKENS")], ("ab", "length")),
            ([of_gemini("a"), of_gemini("", "STOP")], ("a", "stop")),
        ):
            result = await answer_of_server(events, provider="gemini", end="eof")
            (choice,) = result.unwrap().choices
            assert (choice.message.content, choice.finish_reason) == end

    run_with_routers(HOSTS[1], main)


def test_the_first_chunk_may_have_a_finish_reason() -> None:
    """The Router has read it before anybody sees the stream."""

    async def main() -> None:
        for reasons in (("length", "stop"), ("stop", "length")):
            events = [event("a", reasons[0]), event("b", reasons[1], index=1)]
            result = await answer_of_server(events, n=2)
            choices = result.unwrap().choices
            assert [choice.message.content for choice in choices] == ["a", "b"]
            assert tuple(choice.finish_reason for choice in choices) == reasons

    run_with_routers(HOSTS[1], main)


@pytest.mark.parametrize("asked_for", [{"n": 2}, {"n": 2.0}, {"extra_body": {"n": 2}}, {}], ids=str)
def test_no_choice_is_cut_off_unnoticed(asked_for: dict[str, Any]) -> None:
    """However the request asks for several, and also one of which nothing was written."""

    async def main() -> None:
        begun = [event(""), event("", index=1)]
        first = [event("a"), event(None, "stop")]
        for events in ([*begun, *first], [*begun, event("b", index=1), *first]):
            result = await answer_of_server(events, **asked_for)
            assert isinstance(result.exception, StreamInterruptedError)
            assert result.exception.text == "a"
        # One that is empty and has a finish reason is an answer.
        whole = [*begun, *first, event(None, "content_filter", index=1)]
        result = await answer_of_server(whole, **asked_for)
        assert [
            (choice.index, choice.message.content, choice.finish_reason)
            for choice in result.unwrap().choices
        ] == [(0, "a", "stop"), (1, "", "content_filter")]

    run_with_routers(HOSTS[1], main)


def test_a_connection_that_ends_after_the_answer_loses_nothing() -> None:
    async def main() -> None:
        words = [event("two"), event(" words")]
        for end in ("eof", "drop"):
            result = await answer_of_server([*words, event(None, "length")], end=end)
            (choice,) = result.unwrap().choices
            assert (choice.message.content, choice.finish_reason) == ("two words", "length")
            assert result.usage is not None
            assert result.usage.estimated
            result = await answer_of_server(words, end=end)
            assert isinstance(result.exception, StreamInterruptedError)
            two = [*words, event("b", index=1), event(None, "length")]
            result = await answer_of_server(two, end=end, n=2)
            assert isinstance(result.exception, StreamInterruptedError)

    run_with_routers(HOSTS[1], main)


def test_a_generator_around_a_stream_of_litellm_may_have_several_choices() -> None:
    def in_generator(router: Any) -> Any:
        async def answer(**kwargs: Any) -> Any:
            return say(*[chunk async for chunk in await router.acompletion(**kwargs)])

        return answer

    async def main() -> None:
        events = [
            event("a"),
            event("b", index=1),
            event(None, "stop"),
            event(None, "stop", index=1),
        ]
        result = await answer_of_server(events, around=in_generator, n=2)
        assert [choice.message.content for choice in result.unwrap().choices] == ["a", "b"]

    run_with_routers(HOSTS[1], main)


def audio(data: str) -> dict[str, Any]:
    part = event(None)
    part["choices"][0]["delta"]["audio"] = {"id": "1", "data": data, "transcript": "la"}
    return part


def test_a_whole_answer_has_its_audio() -> None:
    async def main() -> None:
        result = await answer_of_server([audio("AAAA"), audio("BBBB"), event(None, "stop")])
        sound = result.unwrap().choices[0].message.audio
        assert (sound.data, sound.transcript) == ("AAAABBBB", "lala")
        # No answer can be made of these: nobody says that they had broken off.
        broken = [audio("A"), event(None, "stop"), {**told(3, 2), **ENVELOPE}]
        result = await answer_of_server(broken)
        assert isinstance(result.exception, StreamInterruptedError)
        assert result.exception.is_complete
        assert "broke off" not in str(result.exception)
        assert result.usage is not None
        assert result.usage.total_tokens == 5

    run_with_routers(HOSTS[1], main)


def test_each_choice_of_a_stream_has_its_own_end() -> None:
    """litellm keeps one finish reason for all of them, and makes up the others."""
    begun = [event("a"), event("b", index=1)]

    async def main() -> None:
        ends = [event(None, "stop", index=0), event(None, "length", index=1)]
        for events in ([*begun, *ends], [*begun, *reversed(ends)]):
            result = await answer_of_server(events, n=2)
            choices = result.unwrap().choices
            assert [
                (choice.index, choice.message.content, choice.finish_reason) for choice in choices
            ] == [(0, "a", "stop"), (1, "b", "length")]
        together = event("c", "stop")
        together["choices"] += event("d", "length", index=1)["choices"]
        result = await answer_of_server([together], n=2)
        assert result.unwrap().choices[0].finish_reason == "stop"
        for end in ends:
            result = await answer_of_server([*begun, end, {**told(3, 2), **ENVELOPE}], n=2)
            assert isinstance(result.exception, StreamInterruptedError)
            assert result.exception.text == "a"
            assert result.usage is not None
            assert (result.usage.total_tokens, result.usage.estimated) == (5, False)

    run_with_routers(HOSTS[1], main)


def test_a_fallback_that_is_cut_off_has_not_answered() -> None:
    async def main() -> None:
        whole = [event("of the"), event(" other"), event(None, "length")]
        result = await answer_of_server([], fallback=whole)
        (choice,) = result.unwrap().choices
        assert (choice.message.content, choice.finish_reason) == ("of the other", "length")
        result = await answer_of_server([], fallback=whole[:2])
        assert isinstance(result.exception, StreamInterruptedError)
        assert result.exception.text == "of the other"
        both = [*whole, event("b", index=1)]
        result = await answer_of_server([], fallback=both, n=2)
        assert isinstance(result.exception, StreamInterruptedError)
        result = await answer_of_server([], fallback=[*both, event(None, "stop", index=1)], n=2)
        assert [choice.finish_reason for choice in result.unwrap().choices] == ["length", "stop"]

    run_with_routers(HOSTS[1], main)


def test_an_answer_has_the_usage_that_its_provider_has_told() -> None:
    async def main() -> None:
        words = [event("two"), event(" words"), event(None, "stop")]
        result = await answer_of_server(words)
        assert result.unwrap().usage is None
        assert result.usage is not None
        assert result.usage.estimated
        usage: Any = {**told(7, 2), **ENVELOPE}
        usage["usage"]["cost"] = 0.25
        result = await answer_of_server([*words, usage])
        assert result.unwrap().usage.model_dump(exclude_none=True) == usage["usage"]
        assert result.usage is not None
        assert (result.usage.prompt_tokens, result.usage.completion_tokens) == (7, 2)
        assert not result.usage.estimated
        # Some servers send the usage so far with each chunk; it is not added up, or added to.
        growing = [{**word, "usage": told(7, count)["usage"]} for count, word in enumerate(words)]
        for events in (growing, [*growing, {**told(7, 2), **ENVELOPE}]):
            result = await answer_of_server(events)
            last: Any = told(7, 2)["usage"]
            assert result.unwrap().usage.model_dump(exclude_none=True) == last

    run_with_routers(HOSTS[1], main)


def test_an_answer_that_litellm_makes_up_is_whole() -> None:
    """A mock has no finish reason, ever."""

    async def main() -> None:
        router = parallel_core.ParallelRouter(
            model_list=[{"model_name": "gpt", "litellm_params": {"model": "openai/gpt"}}],
            num_retries=0,
        )
        for text, number in (("made up", 1), ("made up", 2), ("", 1)):
            plain, streamed = await parallel_core.parallel_acompletions(
                router,
                [
                    request(0, mock_response=text, n=number, stream=stream)
                    for stream in (False, True)
                ],
                preserve_order=True,
            )
            assert plain.ok or not text  # to older versions, a mock without text is none
            assert streamed.ok == plain.ok
            if plain.ok:
                choices = streamed.response.choices
                assert [choice.message.content for choice in choices] == [text] * number

    run_with_routers(HOSTS[1], main)


def test_a_whole_answer_has_the_logprobs_of_its_chunks() -> None:
    def token(text: str) -> dict[str, Any]:
        return {"token": text, "logprob": -0.5, "bytes": None, "top_logprobs": []}

    async def main() -> None:
        events = [event(text, None, {"content": [token(text)]}) for text in ("a", "b", "c")]
        result = await answer_of_server([*events, event(None, "stop")])
        logprobs = result.unwrap().choices[0].logprobs
        assert [entry.token for entry in logprobs.content] == ["a", "b", "c"]

    run_with_routers(HOSTS[1], main)
