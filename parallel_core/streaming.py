"""Streamed answers inside of a batch: read in their slots, handed on in pieces, and made whole."""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, cast

import anyio
import anyio.lowlevel
import msgspec

from .control._call import Call
from .control._engine import Engine
from .control._metering import ItemMeter, RouterMeter
from .errors import StreamInterruptedError, StreamStalledError
from .types import (
    RouterParallelRequest,
    RouterParallelResult,
    StreamChunk,
    StreamedResponse,
    StreamEnd,
    Usage,
)

# Pieces that may wait for the consumer, as a multiple of the concurrency.
PIECES_PER_SLOT = 2

# A stream whose chunks are all there must not keep everybody else on the loop waiting.
_CHUNKS_BETWEEN_PAUSES = 32

# A timer that is late by more than this part of its time tells that the loop was held up.
_LATE = 0.1

logger = logging.getLogger("parallel_core")


def completion_result(
    index: int,
    request: RouterParallelRequest,
    value: Any,
    exception: Exception | None,
    started_at: float,
    duration: float,
) -> RouterParallelResult:
    """The result of a call, whether its answer was streamed or not."""
    first: float | None = None
    usage: Usage | None = None
    if type(value) is StreamedResponse:
        first, usage, value = value.time_to_first_chunk, value.usage, value.response
    elif isinstance(exception, StreamInterruptedError | StreamStalledError):
        first, usage = exception.time_to_first_chunk, exception.usage
    return RouterParallelResult(
        index, request, value, exception, started_at, duration, first, usage
    )


def stream_end(*fields: Any) -> StreamEnd:
    """The same, as the end of a stream."""
    return StreamEnd(completion_result(*fields))


def is_streamed(request: object) -> bool:
    """Whether a request asks for a stream itself."""
    return isinstance(request, RouterParallelRequest) and bool((request.kwargs or {}).get("stream"))


class Streams:
    """Reads the streams of one batch.

    Args:
        meter: tells what an answer has used, or estimates it.
        all_of_them: every request is streamed, whether it says so or not.
        emit: hand the chunks to the consumer, at its pace.
        on_chunk: called with each chunk; what it raises ends the batch.
        stall_timeout: seconds to the first chunk, and from one to the next.
    """

    def __init__(
        self,
        meter: RouterMeter | ItemMeter,
        *,
        all_of_them: bool = False,
        emit: bool = False,
        on_chunk: Callable[[StreamChunk], object] | None = None,
        stall_timeout: float | None = None,
    ) -> None:
        self._meter = meter
        self._all_of_them = all_of_them
        self._emit = emit
        self._on_chunk = on_chunk
        self._stall_timeout = stall_timeout
        self._engine: Engine

    def begin(self, engine: Engine) -> None:
        self._engine = engine

    def end(self) -> None:
        pass

    def wrap(self, call: Call) -> Call:
        """Have a call that answers with a stream return the whole answer."""

        def streamed(index: int, request: Any) -> Awaitable[Any]:
            if not self._all_of_them and not is_streamed(request):
                return call(index, request)
            return self._whole_answer(call, index, request)

        return streamed

    async def _whole_answer(self, call: Call, index: int, request: RouterParallelRequest) -> Any:
        reading = _Reading(index, request, self._meter)
        limit = self._stall_timeout
        if limit is None:
            return await self._read(call, reading, None)
        with anyio.CancelScope() as scope:
            watch = _StallWatch(self._engine, limit, scope.cancel)
            try:
                return await self._read(call, reading, watch)
            finally:
                watch.end()
        usage = await reading.usage_of_a_part() if reading.chunks else None
        raise StreamStalledError(
            index, request.model, limit, reading.text, usage, reading.time_to_first_chunk
        )

    async def _read(self, call: Call, reading: _Reading, watch: _StallWatch | None) -> Any:
        stream = await call(reading.index, _as_stream(reading.request))
        if not hasattr(stream, "__anext__") and not hasattr(stream, "__aiter__"):
            return stream  # answered as a whole, by a callable that knows no streams
        chunks = aiter(stream)
        try:
            await self._read_chunks(chunks, reading, watch)
        finally:
            if watch is not None:
                watch.end()
            await _close(chunks)
            if stream is not chunks:
                await _close(stream)
        return await reading.whole(stream)

    async def _read_chunks(
        self, stream: AsyncIterator[Any], reading: _Reading, watch: _StallWatch | None
    ) -> None:
        for number in itertools.count(1):
            if not number % _CHUNKS_BETWEEN_PAUSES:
                await anyio.lowlevel.checkpoint()
            try:
                chunk = await anext(stream)
            except StopAsyncIteration:
                return
            except Exception as error:
                if watch is not None:
                    watch.end()
                if not reading.chunks:
                    raise
                raise await reading.interrupted() from error
            piece = reading.take(chunk)
            if self._on_chunk is not None:
                self._call_back(self._on_chunk, piece)
            if self._emit:
                if watch is not None:
                    watch.pause()  # a consumer that takes its time is no stall
                await self._engine.emit(piece)
            if watch is not None:
                watch.go_on()

    def _call_back(self, on_chunk: Callable[[StreamChunk], object], piece: StreamChunk) -> None:
        try:
            on_chunk(piece)
        except Exception as error:  # noqa: BLE001 - of the user: raised by the batch
            self._on_chunk = None
            self._engine.fail(error)


class _StallWatch:
    """Calls a function when nothing has come for so many seconds.

    One timer for a whole stream, which looks at the time of the last chunk when it is due: cheaper
    than one that is set anew for each chunk.
    """

    def __init__(self, engine: Engine, limit: float, stalled: Callable[[], None]) -> None:
        self._engine = engine
        self._limit = limit
        self._stalled = stalled
        self._paused = False
        self._since = engine.current_time()
        self._take_back: Callable[[], None]
        self._due = 0.0
        self._set(limit)

    def pause(self) -> None:
        self._paused = True

    def go_on(self) -> None:
        self._paused = False
        self._since = self._engine.current_time()

    def end(self) -> None:
        self._take_back()

    def _set(self, seconds: float) -> None:
        self._due = self._engine.current_time() + seconds
        self._take_back = self._engine.call_later(seconds, self._look)

    def _look(self) -> None:
        now = self._engine.current_time()
        left = self._limit if self._paused else self._since + self._limit - now
        late = now - self._due
        if left > 0:
            self._set(left)
        elif late > self._limit * _LATE:
            # Somebody has held up the loop: what came meanwhile has not been read yet.
            self._set(min(late, self._limit))
        else:
            self._stalled()


class _Reading:
    """What has come of one stream."""

    def __init__(
        self, index: int, request: RouterParallelRequest, meter: RouterMeter | ItemMeter
    ) -> None:
        self.index = index
        self.request = request
        self.chunks: list[Any] = []
        self.time_to_first_chunk: float | None = None
        self._texts: list[str] = []
        self._meter = meter
        self._began = time.perf_counter()

    @property
    def text(self) -> str:
        return "".join(self._texts)

    def take(self, chunk: Any) -> StreamChunk:
        if self.time_to_first_chunk is None:
            self.time_to_first_chunk = time.perf_counter() - self._began
        if isinstance(chunk, dict):
            chunk = _as_litellm_has_it(cast("dict[str, Any]", chunk))
        self.chunks.append(chunk)
        text = _text_of(chunk)
        if text:
            self._texts.append(text)
        return StreamChunk(self.index, self.request, chunk, text)

    async def whole(self, stream: Any) -> StreamedResponse:
        """The whole answer, as if it had not been streamed."""
        import litellm

        estimate = None if self._tells_usage(stream) else await self._estimate(at_once=False)
        try:
            response: Any = cast("Any", litellm).stream_chunk_builder(
                self.chunks, messages=list(self.request.messages)
            )
        except Exception as error:
            # Of pieces that are none: what has come is told all the same.
            raise await self.interrupted() from error
        if response is not None:
            if estimate is not None:
                response.usage = cast("Any", litellm).Usage(
                    prompt_tokens=estimate.prompt_tokens,
                    completion_tokens=estimate.completion_tokens,
                    total_tokens=estimate.total_tokens,
                )
            else:
                _tell_cost(response, stream)
        usage = estimate
        if usage is None:
            usage = self._meter.usage_of(self.request, response)
        return StreamedResponse(response, usage, self.time_to_first_chunk)

    def _tells_usage(self, stream: Any) -> bool:
        # Where the provider is silent, litellm appends a chunk with an estimate of its own. What
        # really came is in the stream's own list; but not where another model has answered in the
        # place of the first one, whose list it is: then it has to be believed.
        came: Any = getattr(getattr(stream, "response", stream), "chunks", None)
        own: list[Any] = came if isinstance(came, list) else []  # pyright: ignore[reportUnknownVariableType]
        last = getattr(self.chunks[-1], "id", None) if self.chunks else None
        is_its_own = any(getattr(chunk, "id", None) == last for chunk in own)
        chunks = own if is_its_own else self.chunks
        usages: list[Any] = [getattr(chunk, "usage", None) for chunk in chunks]
        return any(usage is not None and getattr(usage, "total_tokens", 0) for usage in usages)

    async def interrupted(self) -> StreamInterruptedError:
        usage = await self.usage_of_a_part()
        return StreamInterruptedError(
            self.index, self.request.model, self.text, usage, self.time_to_first_chunk
        )

    async def usage_of_a_part(self) -> Usage | None:
        """What has been used by a stream that has failed."""
        # It must not take time: a timeout, or the end of the batch, may be near.
        usage = await self._estimate(at_once=True)
        self.chunks.clear()  # the error keeps this object, in the frames of its traceback
        return usage

    async def _estimate(self, *, at_once: bool) -> Usage | None:
        if isinstance(self._meter, ItemMeter):
            return None
        text = self.text + _tool_arguments(self.chunks)
        return await self._meter.estimate(self.request, text, at_once=at_once)


def _as_stream(request: RouterParallelRequest) -> RouterParallelRequest:
    kwargs = dict(request.kwargs or {})
    options: Any = kwargs.get("stream_options")
    # Without it, most providers tell no usage.
    kwargs["stream_options"] = {"include_usage": True, **(options or {})}
    kwargs["stream"] = True
    return msgspec.structs.replace(request, kwargs=kwargs)


async def _close(stream: Any) -> None:
    """Close a stream and its connection, in spite of a cancellation.

    An answer that is there is not lost for an error in this; that goes to the log.
    """
    aclose = getattr(stream, "aclose", None)
    if aclose is None:
        return
    with anyio.CancelScope(shield=True):
        try:
            await aclose()
        except Exception as error:  # noqa: BLE001 - of any provider
            logger.warning("a stream could not be closed: %s", type(error).__qualname__)


def _as_litellm_has_it(chunk: dict[str, Any]) -> Any:
    from litellm.types.utils import ModelResponseStream

    return ModelResponseStream(**chunk)


def _text_of(chunk: Any) -> str:
    choices = getattr(chunk, "choices", None)
    if not choices:
        return ""
    text = getattr(getattr(choices[0], "delta", None), "content", None)
    return text if isinstance(text, str) else ""


def _tool_arguments(chunks: list[Any]) -> str:
    """What a model has written into the calls of tools: tokens as well."""
    parts: list[str] = []
    for chunk in chunks:
        choices: list[Any] = getattr(chunk, "choices", None) or []
        for choice in choices:
            calls: list[Any] = getattr(getattr(choice, "delta", None), "tool_calls", None) or []
            for call in calls:
                function: Any = getattr(call, "function", None)
                fields: list[Any] = [getattr(function, name, "") for name in ("name", "arguments")]
                parts += [field for field in fields if isinstance(field, str)]
    return "".join(parts)


def _tell_cost(response: Any, stream: Any) -> None:
    """litellm reckons the cost of a stream for its own callbacks only, after the end."""
    hidden = getattr(response, "_hidden_params", None)
    if not isinstance(hidden, dict) or cast("Mapping[str, Any]", hidden).get("response_cost"):
        return
    logging = getattr(getattr(stream, "response", stream), "logging_obj", None)
    calculate = getattr(logging, "_response_cost_calculator", None)
    if calculate is None:
        return
    cost = calculate(result=response)
    if cost is not None:
        hidden["response_cost"] = cost
