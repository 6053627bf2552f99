"""The values that go into a batch and come out of it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Generic, Protocol, TypeVar, cast

import msgspec

ItemT = TypeVar("ItemT")
ValueT = TypeVar("ValueT")


class SupportsAcompletion(Protocol):
    """Anything with an ``acompletion`` coroutine method: a ``litellm.Router``, or a stand-in."""

    @property
    def acompletion(self) -> Callable[..., Awaitable[Any]]: ...


class Usage(msgspec.Struct, frozen=True):
    """Tokens and money.

    Two of them can be added.

    Attributes:
        prompt_tokens: tokens of the prompts, those from a cache included.
        completion_tokens: tokens of the answers, those of the reasoning included.
        cached_tokens: tokens of the prompts that the provider had in its cache.
        reasoning_tokens: tokens of the answers that are reasoning.
        cost: USD, of those calls whose price is known.
        unpriced_calls: calls whose price is unknown; ``cost`` is without them.
        estimated_calls: calls whose tokens the provider has not told, so that they are estimated.
    """

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    cost: float = 0.0
    unpriced_calls: int = 0
    estimated_calls: int = 0

    @property
    def total_tokens(self) -> int:
        """Tokens of prompts and answers together."""
        return self.prompt_tokens + self.completion_tokens

    @property
    def known_cost(self) -> float | None:
        """USD of the calls whose price is known; None if there were calls, and none has a price."""
        return None if self.unpriced_calls and not self.cost else self.cost

    @property
    def estimated(self) -> bool:
        """Whether some of the tokens are estimated."""
        return self.estimated_calls > 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            self.cached_tokens + other.cached_tokens,
            self.reasoning_tokens + other.reasoning_tokens,
            self.cost + other.cost,
            self.unpriced_calls + other.unpriced_calls,
            self.estimated_calls + other.estimated_calls,
        )


class Meter(Protocol):
    """Tells what calls use. Requests to a Router have one already; for other calls, and for prices
    of your own, it is the option ``meter``."""

    def worst_case(self, item: Any, /) -> Usage:
        """The most that a call of this item (of a Router: this request) can use."""
        ...

    def usage(self, value: Any, /) -> Usage | None:
        """What a call that has returned this value (of a Router: this response) has used; None
        where that cannot be told."""
        ...


class RouterParallelRequest(msgspec.Struct, frozen=True):
    """What one call is made of.

    Wherever a request is accepted, a plain mapping ``{"model": …, "messages": …, **kwargs}`` is
    accepted too; its ``timeout`` means the same as here.

    Attributes:
        model: the name of a model (group) that the Router knows.
        messages: the conversation, as ``acompletion`` takes it.
        kwargs: extra arguments of ``acompletion``, for instance ``{"temperature": 0.2}``.
        timeout: seconds that the whole call may take, with the Router's retries; takes precedence
            over that of the batch. (``kwargs["timeout"]`` is litellm's own, for each attempt.)
    """

    model: str
    messages: Sequence[Any]
    kwargs: Mapping[str, Any] | None = None
    timeout: float | None = None

    def __repr__(self) -> str:
        """Shows no message contents and no argument values: a repr ends up in logs."""
        model: object = self.model
        messages: object = self.messages
        kwargs: object = self.kwargs
        arguments = ""
        if isinstance(kwargs, Mapping):
            names = ", ".join(str(name) for name in cast("Mapping[object, object]", kwargs))
            arguments = f", kwargs=<{names}>" if names else ""
        elif kwargs is not None:
            arguments = f", kwargs={_kind(kwargs)}"
        return (
            f"RouterParallelRequest(model={_name(model)}, messages={_count(messages)}{arguments})"
        )


class ParallelResult(msgspec.Struct, Generic[ItemT, ValueT], frozen=True, eq=False):
    """How one item of :func:`parallel_map` ended: with a value, or with an exception.

    Attributes:
        index: position of the item in its source, from 0.
        item: the item.
        value: what the call returned; ``None`` when it failed.
        exception: what the call raised; ``None`` when it succeeded.
        started_at: when the call began, in seconds since the epoch (``time.time``).
        duration: how long the call took, in seconds.
        attempts: how often the batch made the call: several times if it was made again, 0 if it
            was refused before.
    """

    index: int
    item: ItemT
    value: ValueT | None = None
    exception: Exception | None = None
    started_at: float = 0.0
    duration: float = 0.0
    attempts: int = 1

    @property
    def ok(self) -> bool:
        """Whether the call succeeded."""
        return self.exception is None

    def unwrap(self) -> ValueT:
        """Return the value, or raise the exception of the call."""
        if self.exception is not None:
            try:
                raise self.exception
            finally:
                del self  # no reference cycle through the traceback
        return cast("ValueT", self.value)

    def __repr__(self) -> str:
        return f"<ParallelResult index={self.index} {_outcome(self.exception, self.duration)}>"


class StreamedResponse(msgspec.Struct, frozen=True, eq=False):
    """What a call returns inside of a batch when its answer was streamed."""

    response: Any
    usage: Usage | None
    time_to_first_chunk: float | None


class RouterParallelResult(msgspec.Struct, frozen=True, eq=False):
    """How one request ended: with a response, or with an exception.

    Attributes:
        index: position of the request in its source, from 0.
        request: the request. A mapping has become a :class:`RouterParallelRequest`; only an item
            of a lazy source that is no valid request (``exception`` is then an
            ``InvalidRequestError``) is here as it was given.
        response: what ``acompletion`` returned; ``None`` when it failed.
        exception: what ``acompletion`` raised; ``None`` when it succeeded.
        started_at: when the call began, in seconds since the epoch (``time.time``).
        duration: how long the call took, retries and fallbacks included, in seconds.
        time_to_first_chunk: seconds from the beginning of a streamed call to its first chunk;
            ``None`` where nothing was streamed, or nothing came.
        usage: tokens and cost of a streamed call (``usage.estimated_calls`` is 1 where the provider
            did not tell them), and of one that failed with an ``EmptyResponseError``; ``None``
            where nothing was streamed.
        attempts: how often the batch sent the request: several times if it was sent again
            (``retry``), 0 if it was refused before. The Router's own retries are not counted.
    """

    index: int
    request: RouterParallelRequest
    response: Any = None
    exception: Exception | None = None
    started_at: float = 0.0
    duration: float = 0.0
    time_to_first_chunk: float | None = None
    usage: Usage | None = None
    attempts: int = 1

    @property
    def ok(self) -> bool:
        """Whether the call succeeded."""
        return self.exception is None

    def unwrap(self) -> Any:
        """Return the response, or raise the exception of the call."""
        if self.exception is not None:
            try:
                raise self.exception
            finally:
                del self  # no reference cycle through the traceback
        return self.response

    def __repr__(self) -> str:
        request = cast("object", self.request)  # a bad item of a lazy source may be anything
        is_request = isinstance(request, RouterParallelRequest)
        model = _name(self.request.model) if is_request else _kind(request)
        return (
            f"<RouterParallelResult index={self.index} model={model} "
            f"{_outcome(self.exception, self.duration)}>"
        )


class StreamChunk(msgspec.Struct, frozen=True, eq=False):
    """A piece of a streamed answer.

    Attributes:
        index: position of the request in its source, from 0.
        request: the request.
        chunk: what litellm's stream gave.
        text: what it adds to the text of the answer; often nothing.
        choice: of which of the answers it is, from 0, where the request asks for ``n`` of them.
    """

    index: int
    request: RouterParallelRequest
    chunk: Any
    text: str
    choice: int = 0

    def __repr__(self) -> str:
        return f"<StreamChunk index={self.index} {len(self.text)} characters>"


class StreamEnd(msgspec.Struct, frozen=True, eq=False):
    """A stream has ended, well or not. It comes after all of its chunks.

    Attributes:
        result: ``response`` is the whole answer, as if it had not been streamed: text, tool calls,
            finish reason and usage.
    """

    result: RouterParallelResult

    @property
    def index(self) -> int:
        """Position of the request in its source, from 0."""
        return self.result.index


def _outcome(exception: Exception | None, duration: float) -> str:
    # The text of an exception may quote the prompt; its type does not.
    outcome = "ok" if exception is None else f"exception={type(exception).__qualname__}"
    return f"{outcome} duration={duration:.3f}s"


# A request that is not valid yet has to have a repr too, and it may hold a prompt anywhere.


def _name(model: object) -> str:
    return repr(model) if isinstance(model, str) else _kind(model)


def _count(messages: object) -> str:
    if isinstance(messages, str | bytes) or not isinstance(messages, Sequence):
        return _kind(messages)
    count = len(cast("Sequence[object]", messages))
    return f"<{count} message{'' if count == 1 else 's'}>"


def _kind(value: object) -> str:
    return f"<{type(value).__qualname__}>"
