"""Read streamed answers inside a batch: emit their chunks and assemble the whole answers."""

from __future__ import annotations

import inspect
import itertools
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import anyio
import anyio.lowlevel
import msgspec

from parallel_core.control import BatchMeter, Call, Engine
from parallel_core.errors import (
    BatchTimeoutError,
    PartialAnswerError,
    RequestTimeoutError,
    StreamStalledError,
)
from parallel_core.types import (
    RouterParallelRequest,
    RouterParallelResult,
    StreamChunk,
    StreamedResponse,
    StreamEnd,
    Usage,
)

from .stream_reading import StreamReading
from .stream_source import recording, watch_litellm

# Maximum number of chunks that wait for the consumer, as a multiple of the concurrency.
CHUNKS_PER_SLOT = 2

# A stream whose chunks have all arrived must not block the other tasks on the loop.
_CHUNKS_BETWEEN_PAUSES = 32

# A timer that is late by more than this part of the stall timeout shows that the loop was blocked.
_LATE = 0.1

logger = logging.getLogger("parallel_core")


def completion_result(
    index: int,
    request: RouterParallelRequest,
    value: Any,
    exception: Exception | None,
    started_at: float,
    duration: float,
    attempts: int,
) -> RouterParallelResult:
    """Return the result of a call, streamed or not."""
    first: float | None = None
    usage: Usage | None = None
    if type(value) is StreamedResponse:
        first, usage, value = value.time_to_first_chunk, value.usage, value.response
    elif isinstance(exception, PartialAnswerError):
        first, usage = exception.time_to_first_chunk, exception.usage
    return RouterParallelResult(
        index, request, value, exception, started_at, duration, first, usage, attempts
    )


def stream_end(*fields: Any) -> StreamEnd:
    """Return the result of a call (:func:`completion_result`) as the end of a stream."""
    return StreamEnd(completion_result(*fields))


def is_streamed(request: object) -> bool:
    """Return True if the request itself asks for a stream."""
    return isinstance(request, RouterParallelRequest) and bool((request.kwargs or {}).get("stream"))


def refuse_streams(call: Call) -> Call:
    """Wrap a call: unless it is a chat, it raises TypeError if its answer is a stream.

    Only the streams of chat can be read to their end as one answer. Others are closed.
    """

    async def whole(index: int, request: RouterParallelRequest) -> Any:
        value = await call(index, request)
        if not any(hasattr(value, name) for name in ("__anext__", "__aiter__")):
            return value
        await _close(value)
        raise TypeError(
            f"{request.operation} has returned a stream ({type(value).__qualname__}), and a batch "
            "hands out whole answers: use iter_parallel_streams for chat"
        )

    def checked(index: int, request: RouterParallelRequest) -> Awaitable[Any]:
        return call(index, request) if request.is_chat else whole(index, request)

    return checked


class Streams:
    """Read the streams of one batch.

    Args:
        meter: returns, or estimates, the usage of an answer.
        all_of_them: stream every request, even if it does not ask for it.
        emit: pass the chunks to the consumer, at its pace.
        on_chunk: called with each chunk; an exception that it raises ends the batch.
        stall_timeout: seconds to the first chunk, and from one chunk to the next.
        read_by_workers: workers read the streams and return whole answers. They do not know the
            prices and the meter of the batch.
    """

    def __init__(
        self,
        meter: BatchMeter,
        *,
        all_of_them: bool = False,
        emit: bool = False,
        on_chunk: Callable[[StreamChunk], object] | None = None,
        stall_timeout: float | None = None,
        read_by_workers: bool = False,
    ) -> None:
        self._meter = meter
        self._read_by_workers = read_by_workers
        self._all_of_them = all_of_them
        self._emit = emit
        self._on_chunk = on_chunk
        self._stall_timeout = stall_timeout
        self._cut_off: dict[int, StreamReading] = {}  # by the index of the request
        self._engine: Engine

    def begin(self, engine: Engine) -> None:
        self._engine = engine

    def end(self) -> None:
        self._cut_off.clear()

    def wrap(self, call: Call) -> Call:
        """Wrap a call so that it returns the whole answer instead of a stream."""

        def streamed(index: int, request: Any) -> Awaitable[Any]:
            if not self._is_streamed(request):
                return call(index, request)
            if self._read_by_workers:
                return self._metered(call, index, request)
            return self._whole_answer(call, index, request)

        return streamed

    def wrap_controls(self, call: Call) -> Call:
        """Wrap the controls of a call: an error that cuts off a stream gets its text and usage."""

        async def cut_off(index: int, request: Any) -> Any:
            try:
                return await call(index, request)
            except (RequestTimeoutError, BatchTimeoutError) as error:
                reading = self._cut_off.get(index)
                if reading is not None:
                    error.text = reading.text
                    error.time_to_first_chunk = reading.time_to_first_chunk
                    error.usage = await reading.usage_of_a_part()
                raise
            finally:
                self._cut_off.pop(index, None)

        def streamed(index: int, request: Any) -> Awaitable[Any]:
            return (cut_off if self._is_streamed(request) else call)(index, request)

        return streamed

    def _is_streamed(self, request: object) -> bool:
        return self._all_of_them or is_streamed(request)

    async def _metered(self, call: Call, index: int, request: RouterParallelRequest) -> Any:
        try:
            value = await call(index, request)
        except PartialAnswerError as error:
            error.usage = self._meter.usage_of_part(request, error.usage)
            raise
        if type(value) is not StreamedResponse:
            return value
        try:
            usage = self._meter.usage_of(request, value)
        except Exception:  # noqa: BLE001 - the batch calls the user's meter again and raises it
            usage = None
        return StreamedResponse(value.response, usage, value.time_to_first_chunk)

    async def _whole_answer(self, call: Call, index: int, request: RouterParallelRequest) -> Any:
        with recording() as records:
            reading = StreamReading(index, request, self._meter, records)
            try:
                return await self._in_time(call, reading)
            except anyio.get_cancelled_exc_class():
                if reading.chunks:
                    self._cut_off[index] = reading
                raise

    async def _in_time(self, call: Call, reading: StreamReading) -> Any:
        limit = self._stall_timeout
        if limit is None:
            return await self._read(call, reading, None)
        scope = self._engine.new_scope()
        with scope:
            watch = _StallWatch(self._engine, limit, scope.cancel)
            try:
                return await self._read(call, reading, watch)
            finally:
                watch.end()
        usage = await reading.usage_of_a_part()
        raise StreamStalledError(
            reading.index,
            reading.request.model,
            limit,
            reading.text,
            usage,
            reading.time_to_first_chunk,
        )

    async def _read(self, call: Call, reading: StreamReading, watch: _StallWatch | None) -> Any:
        watch_litellm()
        try:
            stream = await call(reading.index, _as_stream(reading.request))
        except Exception as error:
            if reading.may_raise(error):
                raise
            raise await reading.failure() from error
        if not hasattr(stream, "__anext__") and not hasattr(stream, "__aiter__"):
            return stream  # a whole answer, from a callable that does not support streams
        reading.begin(stream)
        chunks = aiter(stream)
        try:
            await self._read_chunks(chunks, reading, watch)
        finally:
            if watch is not None:
                watch.end()
            await _close(chunks)
            if stream is not chunks:
                await _close(stream)
        return await reading.whole()

    async def _read_chunks(
        self, stream: AsyncIterator[Any], reading: StreamReading, watch: _StallWatch | None
    ) -> None:
        for number in itertools.count(1):
            if not number % _CHUNKS_BETWEEN_PAUSES:
                await anyio.lowlevel.checkpoint()
            try:
                piece = reading.take(await anext(stream))
            except StopAsyncIteration:
                return
            except Exception as error:
                if watch is not None:
                    watch.end()
                if reading.may_raise(error):
                    raise
                if reading.is_whole_after_an_error():
                    return
                raise await reading.failure() from error
            if self._on_chunk is not None:
                self._call_back(self._on_chunk, piece)
            if self._emit:
                if watch is not None:
                    watch.pause()  # a slow consumer is not a stall
                await self._engine.emit(piece)
            if watch is not None:
                watch.resume()

    def _call_back(self, on_chunk: Callable[[StreamChunk], object], piece: StreamChunk) -> None:
        try:
            on_chunk(piece)
        except Exception as error:  # noqa: BLE001 - from the user's code: the batch raises it
            self._on_chunk = None
            self._engine.fail(error)


class _StallWatch:
    """Call a function after a number of seconds without a chunk.

    A stream has one timer. When it is due, it checks the time of the last chunk. This is cheaper
    than a new timer for each chunk.
    """

    def __init__(self, engine: Engine, limit: float, stalled: Callable[[], None]) -> None:
        self._engine = engine
        self._limit = limit
        self._stalled = stalled
        self._paused = False
        self._since = engine.current_time()
        self._cancel_timer: Callable[[], None]
        self._due = 0.0
        self._set(limit)

    def pause(self) -> None:
        self._paused = True

    def resume(self) -> None:
        self._paused = False
        self._since = self._engine.current_time()

    def end(self) -> None:
        self._cancel_timer()

    def _set(self, seconds: float) -> None:
        self._due = self._engine.current_time() + seconds
        self._cancel_timer = self._engine.call_later(seconds, self._check)

    def _check(self) -> None:
        now = self._engine.current_time()
        left = self._limit if self._paused else self._since + self._limit - now
        late = now - self._due
        if left > 0:
            self._set(left)
        elif late > self._limit * _LATE:
            # The loop was blocked: chunks that arrived in that time have not been read yet.
            self._set(min(late, self._limit))
        else:
            self._stalled()


def _as_stream(request: RouterParallelRequest) -> RouterParallelRequest:
    kwargs = dict(request.kwargs or {})
    options: Any = kwargs.get("stream_options")
    # Without this option, most providers report no usage.
    kwargs["stream_options"] = {"include_usage": True, **(options or {})}
    kwargs["stream"] = True
    return msgspec.structs.replace(request, kwargs=kwargs)


async def _close(stream: Any) -> None:
    """Close a stream and its connection, despite a cancellation.

    An error is only logged, so that the answer is not lost.
    """
    # The streams of openai's client have only close(), which is async as well.
    close = getattr(stream, "aclose", None) or getattr(stream, "close", None)
    if not callable(close):
        return
    with anyio.CancelScope(shield=True):
        try:
            closing: object = close()
            if inspect.isawaitable(closing):
                await closing
        except Exception as error:  # noqa: BLE001 - of any provider
            logger.warning("a stream could not be closed: %s", type(error).__qualname__)
