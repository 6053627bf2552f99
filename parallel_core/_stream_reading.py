"""What has come of one stream: its pieces, its usage, and the whole answer that they make."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

import anyio.to_thread

from .control._metering import ItemMeter, RouterMeter
from .errors import StreamInterruptedError
from .types import RouterParallelRequest, StreamChunk, StreamedResponse, Usage

# litellm takes 50 us for each chunk of a whole answer: more of them would hold up the loop.
_CHUNKS_MADE_WHOLE_AT_ONCE = 200


class StreamReading:
    """Takes the chunks of one stream."""

    def __init__(
        self, index: int, request: RouterParallelRequest, meter: RouterMeter | ItemMeter
    ) -> None:
        self.index = index
        self.request = request
        self.chunks: list[Any] = []
        self.time_to_first_chunk: float | None = None
        self._texts: list[str] = []
        self._meter = meter
        self._stream: Any = None
        self._began = time.perf_counter()

    @property
    def text(self) -> str:
        """What has come of the first choice."""
        return "".join(self._texts)

    def begin(self, stream: Any) -> None:
        """The call has answered with this stream."""
        self._stream = stream

    def take(self, chunk: Any) -> StreamChunk:
        """A chunk has come.

        Raises:
            Exception: it is none, but tells of an error.
        """
        if isinstance(chunk, dict):
            chunk = _as_litellm_has_it(cast("dict[str, Any]", chunk))
        if self.time_to_first_chunk is None:
            self.time_to_first_chunk = time.perf_counter() - self._began
        self.chunks.append(chunk)
        choice, text = _text_of(chunk)
        if text and choice == 0:
            self._texts.append(text)
        return StreamChunk(self.index, self.request, chunk, text, choice)

    async def whole(self) -> StreamedResponse:
        """The whole answer, as if it had not been streamed.

        Raises:
            StreamInterruptedError: what has come is no answer.
        """
        if not self._has_answer():
            raise await self.interrupted()
        told = self._last_told() is not None
        estimate = None if told else await self._estimate(at_once=False)
        try:
            if len(self.chunks) > _CHUNKS_MADE_WHOLE_AT_ONCE:
                response = await anyio.to_thread.run_sync(self._build)
            else:
                response = self._build()
        except Exception as error:
            # Of pieces that are none: what has come is told all the same.
            raise await self.interrupted() from error
        if response is None:
            raise await self.interrupted()
        if estimate is None:
            _tell_cost(response, self._stream)
        else:
            import litellm

            response.usage = cast("Any", litellm).Usage(
                prompt_tokens=estimate.prompt_tokens,
                completion_tokens=estimate.completion_tokens,
                total_tokens=estimate.total_tokens,
            )
        usage = estimate
        if usage is None:
            try:
                usage = self._meter.usage_of(self.request, response)
            except Exception:  # noqa: BLE001 - of a user's meter: the batch asks again, and raises it
                usage = None
        return StreamedResponse(response, usage, self.time_to_first_chunk)

    def _has_answer(self) -> bool:
        # litellm ends every stream with a chunk of its own, also one that has had none.
        invented = self._really_came() == [] and not any(map(_has_written, self.chunks))
        return bool(self.chunks) and not invented

    def _build(self) -> Any:
        import litellm

        build = cast("Callable[..., Any]", cast("Any", litellm).stream_chunk_builder)
        messages = list(self.request.messages)
        by_choice = _split(self.chunks)
        chunks = by_choice.pop(0, self.chunks)
        response: Any = build(chunks, messages=messages)
        if response is None:
            return None
        _add_logprobs(response.choices[0], chunks)
        # litellm would make one choice of all.
        for index, chunks in sorted(by_choice.items()):
            choice = build(chunks, messages=messages).choices[0]
            _add_logprobs(choice, chunks)
            choice.index = index
            response.choices.append(choice)
        return response

    async def interrupted(self) -> StreamInterruptedError:
        """The error of a stream that has broken off."""
        usage = await self.usage_of_a_part()
        return StreamInterruptedError(
            self.index, self.request.model, self.text, usage, self.time_to_first_chunk
        )

    async def usage_of_a_part(self) -> Usage | None:
        """What has been used by a stream that has failed; None where nobody can tell.

        What the provider has told goes before an estimate. It tells for all that came before; of
        what came after, the tokens are estimated.
        """
        if not self.chunks:
            return None
        told = self._last_told()
        # It must not take time: a timeout, or the end of the batch, may be near.
        estimate = await self._estimate(at_once=True)
        if told is not None and isinstance(self._meter, RouterMeter):
            reported, after = told
            more = 0
            if any(map(_has_written, after)):
                more = 0 if estimate is None else estimate.completion_tokens
            estimate = self._meter.usage_told(self.request, reported, more)
        self.chunks.clear()  # the error keeps this object, in the frames of its traceback
        return estimate

    def _last_told(self) -> tuple[Any, list[Any]] | None:
        """The last usage that the provider has told, and the chunks after it."""
        # Where the provider is silent, litellm appends a chunk with an estimate of its own. What
        # really came is in the stream's own list; but not where another model has answered in the
        # place of the first one, whose list it is: then it has to be believed.
        own = self._really_came() or []
        last = getattr(self.chunks[-1], "id", None)
        is_its_own = any(getattr(chunk, "id", None) == last for chunk in own)
        chunks = own if is_its_own else self.chunks
        for position in range(len(chunks) - 1, -1, -1):
            usage: Any = getattr(chunks[position], "usage", None)
            told: list[Any] = [
                getattr(usage, name, None) for name in ("prompt_tokens", "completion_tokens")
            ]
            if any(told):
                return usage, chunks[position + 1 :]
        return None

    def _really_came(self) -> list[Any] | None:
        """The chunks that litellm itself has had; None where that cannot be told."""
        came: Any = getattr(getattr(self._stream, "response", self._stream), "chunks", None)
        return came if isinstance(came, list) else None  # pyright: ignore[reportUnknownVariableType]

    async def _estimate(self, *, at_once: bool) -> Usage | None:
        if isinstance(self._meter, ItemMeter):
            return None
        text = "".join(part for chunk in self.chunks for part in _written(chunk))
        return await self._meter.estimate(self.request, text, at_once=at_once)


def _as_litellm_has_it(chunk: dict[str, Any]) -> Any:
    if not chunk.get("choices") and chunk.get("error"):
        # Its text may quote the prompt.
        raise RuntimeError("the provider has told of an error in the middle of its stream")

    from litellm.types.utils import ModelResponseStream

    return ModelResponseStream(**chunk)


def _choices_of(chunk: Any) -> list[Any]:
    return getattr(chunk, "choices", None) or []


def _text_of(chunk: Any) -> tuple[int, str]:
    """Which choice a chunk adds to, and what to its text."""
    choices = _choices_of(chunk)
    if not choices:
        return 0, ""
    index = getattr(choices[0], "index", 0)
    text = getattr(getattr(choices[0], "delta", None), "content", None)
    return index if isinstance(index, int) else 0, text if isinstance(text, str) else ""


def _written(chunk: Any) -> Iterator[str]:
    """Whatever a model has written, in all choices: text, reasoning, calls of tools."""
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
    """litellm leaves them out of the whole answer."""
    if getattr(choice, "logprobs", None) is not None:
        return
    parts: list[Any] = [
        part for chunk in chunks for of_chunk in _choices_of(chunk)
        if (part := getattr(of_chunk, "logprobs", None)) is not None
    ]  # fmt: skip
    tokens = [token for part in parts for token in getattr(part, "content", None) or ()]
    if tokens:
        choice.logprobs = parts[0].model_copy(update={"content": tokens})


def _split(chunks: list[Any]) -> dict[int, list[Any]]:
    """The chunks of each choice; those without a choice, as of usage, are with the first one."""
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
