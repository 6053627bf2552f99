"""Odd providers and odd consumers get from the direct lane the streams that litellm gives them."""

from __future__ import annotations

import asyncio
import json
import tracemalloc
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from litellm.litellm_core_utils import streaming_handler

from helpers.hosts import ASYNCIO_HOSTS
from helpers.odd_streams import (
    FIRST,
    LAST,
    OTHER_STREAMS,
    PLAIN_STREAMS,
    USAGE,
    WORDS,
    body,
    event,
    words,
)
from helpers.routers import run_with_routers
from helpers.stream_parity import differences, read
from helpers.thorough import thorough_but
from parallel_core.router.direct import seam
from parallel_core.router.direct.chunks import ChunkTemplate
from parallel_core.router.direct.lines import BodyLines

ASYNCIO = ASYNCIO_HOSTS[0]
CHARSETS = ["", "; charset=utf-8", "; charset=iso-8859-1"]
MODELS = pytest.mark.parametrize("model", ["openai/fast", "hosted_vllm/fast"])


class Pieces(httpx.AsyncByteStream):
    """The body of another one, in pieces of a few bytes. ``given`` is how many were read."""

    def __init__(self, whole: httpx.AsyncByteStream, size: int) -> None:
        self.whole = whole
        self.size = size
        self.given = 0

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for data in self.whole:
            for start in range(0, len(data), self.size):
                self.given += 1
                yield data[start : start + self.size]

    async def aclose(self) -> None:
        await self.whole.aclose()


class Given(httpx.AsyncByteStream):
    """A body of given pieces, after which nothing comes."""

    def __init__(self, *pieces: bytes) -> None:
        self.pieces = pieces

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for piece in self.pieces:
            yield piece
        raise AssertionError("somebody waits for more")

    async def aclose(self) -> None:
        pass


@pytest.fixture(params=[1, pytest.param(7, marks=pytest.mark.thorough)])
def _in_pieces(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut what the lane gets into pieces, so that a line comes without the next one."""

    def lines(whole: httpx.AsyncByteStream) -> BodyLines:
        return BodyLines(Pieces(whole, request.param))

    monkeypatch.setattr(seam, "BodyLines", lines)


def with_ids_after_the_data() -> bytes:
    plain = body([FIRST, *words(*WORDS)], end=b"")
    named = body(words(*WORDS), end=b"").replace(b"}\n\n", b"}\nid: 3\n\n")
    return plain + named + body([LAST])


@pytest.mark.usefixtures("_in_pieces")
@pytest.mark.parametrize(
    "model", ["openai/fast", pytest.param("hosted_vllm/fast", marks=pytest.mark.thorough)]
)
def test_lines_in_pieces(model: str) -> None:
    """A line that belongs to the event before it is waited for, where litellm waits for it."""
    bodies = {
        **PLAIN_STREAMS,
        **OTHER_STREAMS,
        "an id after the data": with_ids_after_the_data(),
    }
    bodies.pop("repeats for ever")

    async def main() -> None:
        plain = await read(bodies, False, model=model)
        ours = await read(bodies, True, model=model)
        assert not any(differences(plain[name], ours[name]) for name in bodies)
        assert sum(way.direct_calls for _, _, way in ours.values()) == len(PLAIN_STREAMS)

    run_with_routers(ASYNCIO, main)


def of_bytes(*texts: bytes) -> bytes:
    before = b'data: {"id":"1","created":7,"choices":[{"index":0,"delta":{"content":"'
    return b"".join(before + text + b'"}}]}\n\n' for text in texts)


ODD_BYTES = {
    "other line ends": body([FIRST, *words(*WORDS), LAST]).replace(b"\n", b"\r"),
    "both line ends": body([FIRST, *words(*WORDS)], end=b"").replace(b"\n", b"\r\n")
    + body([*words(*WORDS), LAST]),
    "a line of blanks": body([FIRST, *words(*WORDS), *words("a")], end=b"")[:-1]
    + b" \n"
    + body([*words("b"), LAST]),
    "a byte order mark": b"\xef\xbb\xbf" + body([FIRST, *words(*WORDS), LAST]),
    "separators of Unicode": of_bytes(b"a", b"b", "c\u2028\u0085d".encode(), b"e") + body([LAST]),
    "controls": of_bytes(b"a", b"b", b"c\rd", b"e") + body([LAST]),
    "half a character": of_bytes(b"a", b"b", b"c\xc3", b"e") + body([LAST]),
    "Latin-1": of_bytes(b"a", b"b", "\u00e9\u00fc".encode("latin-1"), b"e") + body([LAST]),
    "UTF-8": of_bytes(b"a", b"b", "\u00e9\u00fc".encode(), b"e") + body([LAST]),
}


@pytest.mark.parametrize("charset", thorough_but(["; charset=iso-8859-1"], CHARSETS))
@MODELS
def test_odd_bytes(model: str, charset: str) -> None:
    async def main() -> None:
        options: dict[str, Any] = {"model": model, "content_type": f"text/event-stream{charset}"}
        plain = await read(ODD_BYTES, False, **options)
        ours = await read(ODD_BYTES, True, **options)
        assert not any(differences(plain[name], ours[name]) for name in ODD_BYTES)

    run_with_routers(ASYNCIO, main)


def test_an_event_that_a_carriage_return_ends_is_read_when_it_comes() -> None:
    async def main() -> None:
        lines = BodyLines(Given(b"data: 1\n", b"\ndata: 2\r", b"\rda", b"ta: 3"))
        assert [await lines.look(), await lines.look(1)] == [b"data: 1\n", b"\n"]
        lines.take()
        lines.take()
        assert await lines.look() == b"data: 2\r\rda"
        assert not lines.has_lines
        lines.take()
        assert await lines.look() == b"ta: 3"

    asyncio.run(main())


def test_a_long_text_takes_little_memory() -> None:
    """A match of an expression that can go back took a hundred bytes for each character."""
    line = of_bytes(b"a")
    chunk = streaming_handler.ModelResponseStream(**json.loads(line.removeprefix(b"data:")))
    template = ChunkTemplate.of(line, chunk)
    assert template is not None
    longer = of_bytes(b"a\\n" * 300_000)
    tracemalloc.start()
    try:
        assert template.texts_in(longer) == [b"a\\n" * 300_000]
        assert ChunkTemplate.of(longer, chunk) is None
        assert tracemalloc.get_traced_memory()[1] < 8 * len(longer)
    finally:
        tracemalloc.stop()


STATES = {
    "models change": body(
        [
            *words("a", "b", "c", model="one"),
            *words("d", "e", "f", model="two"),
            *words("g", "h", model="one"),
        ],
        end=b"",
    ),
    "ids change": body(
        [*words("a", "b", "c"), *words("d", "e", "f", id="other"), *words("g", "h")], end=b""
    ),
    "one choice ends before the other": body(
        [
            *(event({"content": text}, index=number % 2) for number, text in enumerate(WORDS * 2)),
            event({}, "stop", 0),
            *(event({"content": text}, index=1) for text in WORDS),
        ],
        end=b"",
    ),
}


@pytest.mark.parametrize("model", ["openai/fast", "azure/fast"])
def test_a_template_counts_in_the_state_of_its_proof(
    monkeypatch: pytest.MonkeyPatch, model: str
) -> None:
    """litellm keeps the last id, the last model (for Azure) and the last finish reason."""
    kept: list[dict[str, Any]] = []
    close = streaming_handler.CustomStreamWrapper.aclose

    async def noting(self: Any) -> None:
        names = ("model", "response_id", "received_model_id", "intermittent_finish_reason")
        if self.chunks:
            kept.append({name: getattr(self, name) for name in names})
        await close(self)  # type: ignore[no-untyped-call,unused-ignore]

    monkeypatch.setattr(streaming_handler.CustomStreamWrapper, "aclose", noting)

    async def main() -> None:
        plain = await read(STATES, False, model=model)
        told = list(kept)
        kept.clear()
        ours = await read(STATES, True, model=model)
        assert not any(differences(plain[name], ours[name]) for name in STATES)
        assert kept == told
        assert len(told) >= len(STATES)
        assert all(way.direct_calls == 1 for _, _, way in ours.values())

    run_with_routers(ASYNCIO, main)


def change(chunk: Any) -> None:
    """Change all that a consumer can reach."""
    for choice in chunk.choices:
        choice.delta.content = "changed"
        choice.delta.role = "changed"
        choice.finish_reason = "changed"
        for name in ("annotations", "tool_calls"):
            if isinstance(found := getattr(choice.delta, name, None), list):
                found.append("changed")
    for name in ("citations", "own"):
        found = getattr(chunk, name, None)
        if isinstance(found, list):
            found.append("changed")
    chunk.id = chunk.model = "changed"
    chunk._hidden_params["changed"] = True


def test_a_consumer_may_change_its_chunks() -> None:
    bodies = {
        "texts": PLAIN_STREAMS["words"],
        "lists": body([FIRST, *words(*WORDS, citations=[], own=[]), LAST, USAGE]),
        "lists in it": body(
            [FIRST, *(event({"content": w, "annotations": []}) for w in WORDS), LAST]
        ),
    }

    async def main() -> None:
        plain = await read(bodies, False, then=change)
        ours = await read(bodies, True, then=change)
        for name in bodies:
            assert differences(plain[name], ours[name]) == {}, name
            assert len(ours[name][0]) > len(WORDS)
        assert ours["texts"][2].direct_calls == 1

    run_with_routers(ASYNCIO, main)


def test_the_longest_duration_is_checked_before_a_line_is_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A chunk that has come in the meantime is given."""
    kind = streaming_handler.CustomStreamWrapper
    check = kind._check_max_streaming_duration
    bodies: list[Pieces] = []

    def lines(whole: httpx.AsyncByteStream) -> BodyLines:
        bodies.append(Pieces(whole, 10_000))
        return BodyLines(Late(bodies[-1]))

    class Late(httpx.AsyncByteStream):
        """Time is over when the fourth word comes."""

        def __init__(self, whole: Pieces) -> None:
            self.whole = whole

        async def __aiter__(self) -> AsyncIterator[bytes]:
            async for data in self.whole:
                *events, rest = data.split(b"\n\n")
                for number, one in enumerate(events):
                    if number == 4:
                        monkeypatch.setattr(
                            "litellm.constants.LITELLM_MAX_STREAMING_DURATION_SECONDS", -1
                        )
                    yield one + b"\n\n"
                yield rest

        async def aclose(self) -> None:
            await self.whole.aclose()

    monkeypatch.setattr(seam, "BodyLines", lines)
    assert check is kind._check_max_streaming_duration

    async def main() -> None:
        ((chunks, outcome, way),) = (await read({"x": PLAIN_STREAMS["words"]}, True)).values()
        assert [chunk["text"] for chunk in chunks if chunk["text"]] == list(WORDS[:4])
        assert "Timeout" in str(outcome["cause"])
        assert way.direct_calls == 1

    run_with_routers(ASYNCIO, main)
