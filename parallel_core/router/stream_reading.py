"""Read one stream: collect its chunks and its usage, and assemble the whole answer."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

import anyio.to_thread

from parallel_core.control import BatchMeter, ItemMeter, RouterMeter
from parallel_core.errors import EmptyResponseError, StreamInterruptedError
from parallel_core.types import RouterParallelRequest, StreamChunk, StreamedResponse, Usage

from .stream_merging import merge_texts
from .stream_source import (
    ProviderRecord,
    StreamSource,
    choice_index,
    is_cut_off_before_its_first_chunk,
)

# litellm takes 50 us per chunk to assemble an answer. More chunks than this would block the loop.
_MAX_CHUNKS_ASSEMBLED_ON_LOOP = 200


class CutOffError(EOFError):
    """A stream ended without a finish reason for each of its choices."""

    def __init__(self) -> None:
        super().__init__("it ended without a finish reason")

    def __reduce__(self) -> tuple[type[CutOffError], tuple[()]]:
        return type(self), ()


class StreamReading:
    """Collect the chunks of one stream.

    Args:
        index: index of the request.
        request: the request.
        meter: returns, or estimates, the usage of an answer.
        records: records of the provider streams that litellm reads for this call; the list grows.
    """

    def __init__(
        self,
        index: int,
        request: RouterParallelRequest,
        meter: BatchMeter,
        records: list[ProviderRecord],
    ) -> None:
        self.index = index
        self.request = request
        self._records = records
        self.chunks: list[Any] = []
        self.time_to_first_chunk: float | None = None
        self._texts: list[str] = []
        self._meter = meter
        self._source: StreamSource | None = None
        self._cut_off = False
        # Origin of the chunks, if the stream itself does not show it.
        self._is_of_openai = False
        self._is_of_litellm = False
        self._began = time.perf_counter()

    @property
    def text(self) -> str:
        """Text of the first choice so far."""
        return "".join(self._texts)

    def begin(self, stream: Any) -> None:
        """Set the stream that the call returned."""
        self._source = StreamSource(stream)

    def take(self, chunk: Any) -> StreamChunk:
        """Add a chunk.

        Raises:
            Exception: the chunk reports an error, or the stream was cut off.
        """
        if type(chunk).__module__.startswith("openai."):
            self._is_of_openai = True
            chunk = chunk.model_dump(exclude_unset=True)
        if isinstance(chunk, dict):
            chunk = _as_litellm_chunk(cast("dict[str, Any]", chunk))
        else:
            self._is_of_litellm = type(chunk).__module__.startswith("litellm.")
        if _finished_in(chunk) and self._source is not None and self._source.has_no_finish_reason:
            raise CutOffError
        if self.time_to_first_chunk is None:
            self.time_to_first_chunk = time.perf_counter() - self._began
        self.chunks.append(chunk)
        choice, text = _text_of(chunk)
        if text and choice == 0:
            self._texts.append(text)
        return StreamChunk(self.index, self.request, chunk, text, choice)

    async def whole(self) -> StreamedResponse:
        """Assemble the answer that the provider would have sent without streaming.

        If the provider reported no usage, the answer has none, and the result has an estimate.

        Raises:
            EmptyResponseError: the answer has no choices.
            StreamInterruptedError: the answer is incomplete, or cannot be assembled.
        """
        if not self._has_answer():
            self._cut_off = True
            raise await self.failure()
        if self._is_cut_off():
            self._cut_off = True
            raise await self.failure() from CutOffError()
        is_reported = self._last_reported_usage() is not None
        estimate = None if is_reported else await self._estimate(at_once=False)
        try:
            if len(self.chunks) > _MAX_CHUNKS_ASSEMBLED_ON_LOOP:
                response = await anyio.to_thread.run_sync(self._build)
            else:
                response = self._build()
        except Exception as error:
            raise await self.failure(is_complete=True) from error
        if response is None:
            raise await self.failure(is_complete=True)
        if is_reported:
            _add_cost(response, self._source)
        else:
            response.usage = None  # litellm's estimate
        usage = estimate
        if usage is None:
            try:
                usage = self._meter.usage_of(self.request, response)
            except Exception:  # noqa: BLE001 - the batch calls the user's meter again and raises it
                usage = None
        return StreamedResponse(response, usage, self.time_to_first_chunk)

    def _has_answer(self) -> bool:
        # litellm adds a last chunk to every stream, even to an empty one.
        is_empty = self._kept_by_litellm() == [] and not any(map(_has_written, self.chunks))
        is_mock = self._source is not None and self._source.is_mock
        return bool(self.chunks) and (is_mock or not is_empty)

    def _is_cut_off(self) -> bool:
        """Return True if a choice has begun and has no finish reason."""
        source = self._source
        if source is not None and source.is_of_litellm:
            return source.is_cut_off
        finished = {index for chunk in self.chunks for index in _finished_in(chunk)}
        if self._is_of_litellm and finished:
            # This is a generator around a litellm stream, which keeps one reason for all choices.
            return False
        # A user's generator may send no finish reasons. Then its end counts as the end of the
        # answer. OpenAI's client ends in the same way for complete and incomplete answers.
        begun = {choice_index(choice) for chunk in self.chunks for choice in _choices_of(chunk)}
        return (self._is_of_openai or bool(finished)) and not begun <= finished

    def is_whole_after_an_error(self) -> bool:
        """Return True if the provider had finished all of its answer when the stream failed."""
        source = self._source
        if not self.chunks or self._cut_off or source is None:
            return False
        if source.is_of_litellm:
            return source.is_whole
        finished = any(map(_finished_in, self.chunks))
        return self._is_of_openai and finished and not self._is_cut_off()

    def _build(self) -> Any:
        import litellm
        from litellm.litellm_core_utils.core_helpers import map_finish_reason

        build = cast("Callable[..., Any]", cast("Any", litellm).stream_chunk_builder)
        messages = list(self.request.messages)
        readable = [_with_readable_audio(chunk) for chunk in merge_texts(self.chunks)]
        by_choice = _split(readable)
        chunks = by_choice.pop(0, readable)
        response: Any = build(chunks, messages=messages)
        if response is None:
            return None
        _add_logprobs(response.choices[0], chunks)
        # litellm would merge all choices into one.
        for index, chunks in sorted(by_choice.items()):
            choice = build(chunks, messages=messages).choices[0]
            _add_logprobs(choice, chunks)
            choice.index = index
            response.choices.append(choice)
        reasons: Mapping[int, str] = {}
        if self._source is not None:
            reasons = self._source.finish_reasons
        built = {choice.index for choice in response.choices}
        for index in sorted(reasons.keys() - built):
            # litellm drops the chunks of a choice without content.
            empty = litellm.Choices(index=index, message=litellm.Message(content=""))
            response.choices.append(empty)
        for choice in response.choices:
            if reason := reasons.get(choice.index):
                reason = map_finish_reason(reason)
                # litellm does the same for an answer that is not streamed.
                calls_tools = reason == "stop" and choice.message.tool_calls
                choice.finish_reason = "tool_calls" if calls_tools else reason
        usage = _last_complete([_usage_of(chunk) for chunk in self._provider_chunks()])
        if isinstance(usage, litellm.Usage):
            response.usage = usage  # without the counts that the builder adds
        return response

    def may_raise(self, error: Exception) -> bool:
        """Return True if an error came before the first chunk. Such an error is raised as it is."""
        if isinstance(error, CutOffError) or is_cut_off_before_its_first_chunk(error):
            self._cut_off = True
        return not self.chunks and not self._cut_off

    async def failure(
        self, *, is_complete: bool = False
    ) -> EmptyResponseError | StreamInterruptedError:
        """Make the error of a stream that has no whole answer.

        Args:
            is_complete: all chunks have arrived, but cannot be assembled.
        """
        record = self._records[-1] if self._records else None
        is_empty = self._cut_off and record is not None and record.is_empty
        usage = await self.usage_of_a_part()
        first = self.time_to_first_chunk
        if is_empty:
            return EmptyResponseError(self.index, self.request.model, usage, first)
        fields = (self.index, self.request.model, self.text, usage, first)
        return StreamInterruptedError(*fields, is_complete=is_complete)

    async def usage_of_a_part(self) -> Usage | None:
        """Return the usage of a stream that failed, or None if it is unknown.

        The usage that the provider reported covers the chunks before the report. The tokens of
        later chunks are estimated.
        """
        if not self.chunks and not self._cut_off:
            return None
        last: tuple[Any, list[Any]] | None = self._last_reported_usage()
        # This must be fast: a timeout or the end of the batch may be near.
        estimate = await self._estimate(at_once=True)
        if last is None and self._records and self._records[-1].usage is not None:
            last = self._records[-1].usage, []
        if last is not None and isinstance(self._meter, RouterMeter):
            reported, after = last
            more = 0
            if any(map(_has_written, after)):
                more = 0 if estimate is None else estimate.completion_tokens
            estimate = self._meter.usage_reported(self.request, reported, more)
        self.chunks.clear()  # the error keeps this object alive through its traceback
        return estimate

    def _last_reported_usage(self) -> tuple[Any, list[Any]] | None:
        """Return the last usage that the provider reported, and the chunks after it."""
        chunks = self._provider_chunks()
        for position in range(len(chunks) - 1, -1, -1):
            usage = _usage_of(chunks[position])
            counts: list[Any] = [
                getattr(usage, name, None) for name in ("prompt_tokens", "completion_tokens")
            ]
            if any(counts):
                return usage, chunks[position + 1 :]
        return None

    def _provider_chunks(self) -> list[Any]:
        """Return the chunks without the estimate of usage that litellm may append."""
        # The list that litellm keeps has no estimate. But it may belong to a model that failed
        # before a fallback answered. Then the chunks of the fallback are used unchanged.
        own = self._kept_by_litellm() or []
        last = getattr(self.chunks[-1], "id", None) if self.chunks else None
        is_its_own = any(getattr(chunk, "id", None) == last for chunk in own)
        return own if is_its_own else self.chunks

    def _kept_by_litellm(self) -> list[Any] | None:
        """Return the chunks that litellm kept, or None if they cannot be found."""
        return None if self._source is None else self._source.chunks

    async def _estimate(self, *, at_once: bool) -> Usage | None:
        if isinstance(self._meter, ItemMeter):
            return None
        text = "".join(part for chunk in self.chunks for part in _written(chunk))
        return await self._meter.estimate(self.request, text, at_once=at_once)


def _as_litellm_chunk(chunk: dict[str, Any]) -> Any:
    if not chunk.get("choices") and chunk.get("error"):
        # The text of the provider's error may quote the prompt, so it is left out.
        raise RuntimeError("the provider reported an error in the middle of its stream")

    from litellm.types.utils import ModelResponseStream

    return ModelResponseStream(**chunk)


def _choices_of(chunk: Any) -> list[Any]:
    return getattr(chunk, "choices", None) or []


def _usage_of(chunk: Any) -> Any:
    return getattr(chunk, "usage", None)


def _finished_in(chunk: Any) -> set[int]:
    """Return the indexes of the choices that end in a chunk."""
    choices = _choices_of(chunk)
    return {choice_index(choice) for choice in choices if getattr(choice, "finish_reason", None)}


def _text_of(chunk: Any) -> tuple[int, str]:
    """Return the index of a chunk's first choice and the text that the chunk adds to it."""
    choices = _choices_of(chunk)
    if not choices:
        return 0, ""
    text = getattr(getattr(choices[0], "delta", None), "content", None)
    return choice_index(choices[0]), text if isinstance(text, str) else ""


def _written(chunk: Any) -> Iterator[str]:
    """Yield all that the model wrote in a chunk, in all choices: text, reasoning, tool calls."""
    for choice in _choices_of(chunk):
        delta = getattr(choice, "delta", None)
        fields: list[Any] = [
            getattr(delta, "content", None),
            getattr(delta, "reasoning_content", None),
        ]
        calls: list[Any] = getattr(delta, "tool_calls", None) or []
        for call in calls:
            function: Any = getattr(call, "function", None)
            fields += [getattr(function, "name", None), getattr(function, "arguments", None)]
        yield from (field for field in fields if isinstance(field, str) and field)


def _has_written(chunk: Any) -> bool:
    return any(True for _ in _written(chunk))


def _add_logprobs(choice: Any, chunks: list[Any]) -> None:
    """Add the logprobs of the chunks to a choice. litellm leaves them out of the whole answer."""
    if getattr(choice, "logprobs", None) is not None:
        return
    parts: list[Any] = [
        part for chunk in chunks for of_chunk in _choices_of(chunk)
        if (part := getattr(of_chunk, "logprobs", None)) is not None
    ]  # fmt: skip
    tokens = [token for part in parts for token in getattr(part, "content", None) or ()]
    if tokens:
        choice.logprobs = parts[0].model_copy(update={"content": tokens})


def _with_readable_audio(chunk: Any) -> Any:
    """Convert audio into a dict. litellm's builder fails on the type that its own chunks have."""
    choices = _choices_of(chunk)
    audios = [getattr(getattr(choice, "delta", None), "audio", None) for choice in choices]
    if not any(hasattr(audio, "model_dump") for audio in audios):
        return chunk
    readable: list[Any] = []
    for choice, audio in zip(choices, audios, strict=True):
        if hasattr(audio, "model_dump"):
            delta = choice.delta.model_copy(update={"audio": cast("Any", audio).model_dump()})
            choice = choice.model_copy(update={"delta": delta})
        readable.append(choice)
    return chunk.model_copy(update={"choices": readable})


def _last_complete(reported: list[Any]) -> Any:
    """Return the last usage if it includes the ones before it; otherwise None.

    Some servers send the usage so far with every chunk. Others send the usage in parts.
    """
    usages = [usage for usage in reported if usage is not None]
    for name in ("prompt_tokens", "completion_tokens"):
        counts: list[int] = [getattr(usage, name, None) or 0 for usage in usages]
        if not counts or counts[-1] < max(counts):
            return None
    return usages[-1]


def _split(chunks: list[Any]) -> dict[int, list[Any]]:
    """Return the chunks by choice; empty if there is only the first choice.

    Chunks without a choice, such as those with the usage, belong to the first choice.
    """
    others = {
        choice.index
        for chunk in chunks
        for choice in _choices_of(chunk)
        if getattr(choice, "index", 0)
    }
    if not others:
        return {}
    by_choice: dict[int, list[Any]] = {0: []}
    for chunk in chunks:
        choices = _choices_of(chunk)
        if not choices:
            by_choice[0].append(chunk)
        for choice in choices:
            copied = chunk.model_copy()
            copied.choices = [choice.model_copy(update={"index": 0})]
            by_choice.setdefault(choice.index, []).append(copied)
    return by_choice


def _add_cost(response: Any, source: StreamSource | None) -> None:
    """Add the cost. For a stream, litellm calculates it after the end, for its callbacks only."""
    hidden = getattr(response, "_hidden_params", None)
    if not isinstance(hidden, dict) or cast("Mapping[str, Any]", hidden).get("response_cost"):
        return
    logging = None if source is None else source.logging
    calculate = getattr(logging, "_response_cost_calculator", None)
    if calculate is None:
        return
    cost = calculate(result=response)
    if cost is not None:
        hidden["response_cost"] = cost
