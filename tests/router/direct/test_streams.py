"""Streams on the direct lane are those of litellm, chunk by chunk."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from litellm.integrations.custom_logger import CustomLogger

import parallel_core
from helpers import odd_streams
from helpers.direct_parity import LISTENERS, normal, router_of
from helpers.hosts import ASYNCIO_HOSTS, HOSTS
from helpers.odd_streams import LAST, OTHER_STREAMS, PLAIN_STREAMS, USAGE, body, event
from helpers.recording_provider import Canned, recording_provider
from helpers.routers import run_with_routers
from helpers.stream_parity import chunk_of, differences, outcome_of_stream, read
from parallel_core import StreamEnd
from parallel_core.router.direct.lines import BodyLines

ASYNCIO = ASYNCIO_HOSTS[0]


@pytest.mark.parametrize(
    "model", ["openai/fast", pytest.param("hosted_vllm/fast", marks=pytest.mark.thorough)]
)
def test_streams_are_alike(model: str) -> None:
    bodies = {**PLAIN_STREAMS, **OTHER_STREAMS}

    async def main() -> None:
        plain = await read(bodies, False, model=model)
        ours = await read(bodies, True, model=model)
        assert not any(differences(plain[name], ours[name]) for name in bodies)
        for name in bodies:
            way = ours[name][2]
            assert way.differences == {}, name
            assert way.direct_calls == (name in PLAIN_STREAMS), name
            assert way.indirect_calls.total() == (name in OTHER_STREAMS), name

    run_with_routers(ASYNCIO, main)


@pytest.mark.thorough
def test_verified_streams_show_no_difference() -> None:
    async def main() -> None:
        plain = await read(PLAIN_STREAMS, False)
        ours = await read(PLAIN_STREAMS, "verify")
        assert not any(differences(plain[name], ours[name]) for name in PLAIN_STREAMS)
        assert not any(way.differences for _, _, way in ours.values())

    run_with_routers(ASYNCIO, main)


@pytest.mark.parametrize("host", HOSTS, ids=lambda host: host.name)
def test_each_host_reads_streams_directly(host: Any) -> None:
    async def main() -> None:
        ((chunks, outcome, way),) = (await read({"words": PLAIN_STREAMS["words"]}, True)).values()
        assert "".join(chunk["text"] for chunk in chunks) == "".join(odd_streams.WORDS)
        assert outcome["response"]["usage"]["total_tokens"] == 8
        assert way.direct_calls == 1

    run_with_routers(host, main)


class Listener(CustomLogger):  # type: ignore[misc,unused-ignore]
    """Keeps the whole answers that litellm reports."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call,unused-ignore]
        self.heard: list[Any] = []
        self.has_heard = asyncio.Event()

    async def async_log_success_event(
        self, kwargs: Any, response_obj: Any, start_time: Any, end_time: Any
    ) -> None:
        self.heard.append(normal(response_obj.model_dump(warnings=False)))
        self.has_heard.set()


def test_listeners_hear_of_the_whole_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    import litellm

    async def main() -> None:
        heard: list[Any] = []
        for direct in (False, True):
            listener = Listener()
            monkeypatch.setattr(litellm, "callbacks", [listener])
            seen = await read({"words": PLAIN_STREAMS["words"]}, direct)
            await listener.has_heard.wait()
            heard.append(listener.heard)
            for name in LISTENERS:
                getattr(litellm, name).clear()
            assert seen["words"][2].direct_calls == direct
        assert heard[0] == heard[1]
        assert len(heard[0]) == 1

    run_with_routers(ASYNCIO, main)


def test_rules_of_litellm_read_each_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    import litellm

    read_texts: list[str] = []

    def rule(text: str) -> bool:
        read_texts.append(text)
        return True

    async def main() -> None:
        monkeypatch.setattr(litellm, "post_call_rules", [rule])
        plain = await read({"words": PLAIN_STREAMS["words"]}, False)
        told = list(read_texts)
        read_texts.clear()
        ours = await read({"words": PLAIN_STREAMS["words"]}, True)
        assert differences(plain["words"], ours["words"]) == {}
        assert read_texts == told
        assert len(told) >= len(odd_streams.WORDS)

    run_with_routers(ASYNCIO, main)


def test_a_stream_that_fails_at_once_falls_back() -> None:
    """And the stream of the other deployment is direct."""
    headers = [("Content-Type", "text/event-stream")]
    bodies = {"bad": OTHER_STREAMS["an error at once"], "good": PLAIN_STREAMS["words"]}

    async def main() -> None:
        outcomes: list[Any] = []
        for direct in (False, True):
            with recording_provider(
                lambda path, asked: Canned(bodies[asked["model"]], 200, headers)
            ) as provider:
                groups = {"a": [{"model": "openai/bad"}], "b": [{"model": "openai/good"}]}
                router = router_of(provider.url, groups, fallbacks=[{"a": ["b"]}], num_retries=0)
                request = {"model": "a", "messages": [{"role": "user", "content": "x"}]}
                async with parallel_core.iter_parallel_streams(
                    router, [request], direct=direct
                ) as batch:
                    pieces = [piece async for piece in batch]
                end = pieces.pop()
                assert isinstance(end, StreamEnd)
                outcomes.append(
                    ([chunk_of(piece) for piece in pieces], outcome_of_stream(end.result))
                )
                assert batch.direct_calls == direct
        assert differences(*outcomes) == {}

    run_with_routers(ASYNCIO, main)


kinds = st.sampled_from(["text", "text", "text", "reasoning", "empty", "null", "role", "finish"])
events = st.lists(
    st.tuples(kinds, st.text(max_size=4), st.integers(0, 1), st.booleans()), max_size=12
)


def stream_of(drawn: Sequence[tuple[str, str, int, bool]]) -> bytes:
    made: list[Any] = []
    for kind, text, index, has_more in drawn:
        deltas: dict[str, dict[str, Any]] = {
            "text": {"content": text},
            "reasoning": {"reasoning_content": text},
            "empty": {},
            "null": {"content": None},
            "role": {"role": "assistant", "content": text},
            "finish": {},
        }
        finish = "stop" if kind == "finish" else None
        made.append(
            event(deltas[kind], finish, index, **({"system_fingerprint": "f"} if has_more else {}))
        )
    return body([*made, LAST, USAGE])


@pytest.mark.thorough
@settings(max_examples=60)
@given(st.lists(events, min_size=1, max_size=6))
def test_any_streams_are_alike(drawn: list[list[tuple[str, str, int, bool]]]) -> None:
    bodies = {str(number): stream_of(one) for number, one in enumerate(drawn)}

    async def main() -> None:
        plain = await read(bodies, False)
        ours = await read(bodies, True)
        assert not any(differences(plain[name], ours[name]) for name in bodies)

    run_with_routers(ASYNCIO, main)


class Body(httpx.AsyncByteStream):
    """A body that comes in given pieces, and may fail at its end."""

    def __init__(self, pieces: Sequence[bytes], error: Exception | None = None) -> None:
        self.pieces = pieces
        self.error = error
        self.is_closed = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for one in self.pieces:
            yield one
        if self.error is not None:
            raise self.error

    async def aclose(self) -> None:
        self.is_closed = True


@given(st.lists(st.sampled_from([b"", b"a", b"data: b", b"\n", b"\n\n", b"\r\n", b"c\nd"])))
def test_a_body_comes_in_whole_lines(pieces: list[bytes]) -> None:
    async def main() -> None:
        source = Body(pieces)
        lines = BodyLines(source)
        first = await lines.look()
        assert await lines.look() == first
        read = [line async for line in lines]
        assert b"".join(read) == b"".join(pieces)
        assert all(line.endswith(b"\n") and line.count(b"\n") == 1 for line in read[:-1])
        assert await lines.look() is None
        await lines.aclose()
        assert source.is_closed

    asyncio.run(main())


def test_the_error_of_a_body_comes_after_its_lines() -> None:
    async def main() -> None:
        lines = BodyLines(Body([b"a\nb"], httpx.ReadError("gone")))
        read: list[bytes] = []
        with pytest.raises(httpx.ReadError, match="gone"):
            async for line in lines:
                read.append(line)
        assert read == [b"a\n", b"b"]
        assert await lines.look() is None

    asyncio.run(main())
