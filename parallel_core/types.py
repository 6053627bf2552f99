"""The values that go into a batch and come out of it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final, Generic, Protocol, TypeVar, cast

import msgspec

ItemT = TypeVar("ItemT")
ValueT = TypeVar("ValueT")


CHAT: Final = "acompletion"
"""The operation of chat, whose requests have messages and whose answers may be streamed. An
operation is named by the method of the Router that serves it."""


class SupportsAcompletion(Protocol):
    """Anything with an ``acompletion`` coroutine method: a ``litellm.Router``, or a stand-in."""

    @property
    def acompletion(self) -> Callable[..., Awaitable[Any]]: ...


class Usage(msgspec.Struct, frozen=True):
    """Tokens and cost of calls.

    Two Usage objects can be added.

    Attributes:
        prompt_tokens: tokens of the prompts, cached ones included.
        completion_tokens: tokens of the answers, reasoning included.
        cached_tokens: tokens of the prompts that the provider had in its cache.
        reasoning_tokens: tokens of the answers that are reasoning.
        cost: USD of the calls whose price is known.
        unpriced_calls: calls whose price is unknown; ``cost`` does not include them.
        estimated_calls: calls with estimated tokens, because the provider did not report them.
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
        """Number of tokens of prompts and answers together."""
        return self.prompt_tokens + self.completion_tokens

    @property
    def known_cost(self) -> float | None:
        """USD of the calls whose price is known; None if there were calls but none has a price."""
        return None if self.unpriced_calls and not self.cost else self.cost

    @property
    def estimated(self) -> bool:
        """True if some of the tokens are estimated."""
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
    """A reporter of what calls use.

    Requests to a Router have one already. For other calls, and for your own prices, pass one as the
    option ``meter``.
    """

    def worst_case(self, item: Any, /) -> Usage:
        """Return the most that a call of this item (for a Router: this request) can use."""
        ...

    def usage(self, value: Any, /) -> Usage | None:
        """Return the usage of a call that returned this value (for a Router: this response).

        Return None if it is unknown.
        """
        ...


class RouterParallelRequest(msgspec.Struct, frozen=True):
    """The arguments of one call.

    Wherever a request is accepted, a plain mapping ``{"model": …, "messages": …, **kwargs}`` is
    accepted too; its ``timeout`` means the same as here. A request of another operation than chat
    (:func:`parallel_core.parallel_calls`) has no messages: all arguments of the Router's method
    except ``model`` are in ``kwargs``, as in ``RouterParallelRequest("small", kwargs={"input":
    ["text"]})``. Requests that name their ``operation`` may be mixed in one batch.

    Attributes:
        model: name of a model (group) of the Router.
        messages: the conversation, as ``acompletion`` takes it; empty if the operation has none.
        kwargs: the other arguments of the method, for instance ``{"temperature": 0.2}``.
        timeout: seconds for each attempt of the batch, with the Router's own retries; takes
            precedence over the timeout of the batch. (``kwargs["timeout"]`` is litellm's own, for
            each attempt of the Router.)
        operation: name of the Router's method, for instance ``"aembedding"``. None: the operation
            of the batch, which is ``"acompletion"`` unless ``parallel_calls`` names another.
    """

    model: str
    messages: Sequence[Any] = ()
    kwargs: Mapping[str, Any] | None = None
    timeout: float | None = None
    operation: str | None = None

    @property
    def is_chat(self) -> bool:
        """True if the request is for a chat completion."""
        return self.operation is None or self.operation == CHAT

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments of the Router's method, by name."""
        messages = {"messages": self.messages} if self.messages else {}
        return {"model": self.model, **messages, **(self.kwargs or {})}

    def __repr__(self) -> str:
        """Return a repr without message contents and argument values, since it may be logged."""
        model: object = self.model
        messages: object = self.messages
        kwargs: object = self.kwargs
        arguments = ""
        if isinstance(kwargs, Mapping):
            names = ", ".join(str(name) for name in cast("Mapping[object, object]", kwargs))
            arguments = f", kwargs=<{names}>" if names else ""
        elif kwargs is not None:
            arguments = f", kwargs={_kind(kwargs)}"
        conversation = "" if messages == () else f", messages={_count(messages)}"
        of = "" if self.operation is None else f", operation={_name(self.operation)}"
        return f"RouterParallelRequest(model={_name(model)}{conversation}{arguments}{of})"


class ParallelResult(msgspec.Struct, Generic[ItemT, ValueT], frozen=True, eq=False):
    """The result of one item of :func:`parallel_map`: a value or an exception.

    Attributes:
        index: position of the item in its source, from 0.
        item: the item.
        value: what the call returned; ``None`` when it failed.
        exception: what the call raised; ``None`` when it succeeded.
        started_at: start of the call, in seconds since the epoch (``time.time``).
        duration: seconds from when the call first had a slot to its end: the waits for a rate limit
            and between attempts are included.
        attempts: number of times that the batch made the call: above 1 if it was made again, 0 if
            it was refused first.
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
        """True if the call succeeded."""
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
    """The value that a call returns inside a batch when its answer was streamed."""

    response: Any
    usage: Usage | None
    time_to_first_chunk: float | None


class RouterParallelResult(msgspec.Struct, frozen=True, eq=False):
    """The result of one request: a response or an exception.

    Attributes:
        index: position of the request in its source, from 0.
        request: the request. A mapping becomes a :class:`RouterParallelRequest`; only an invalid
            item of a lazy source (``exception`` is then an ``InvalidRequestError``) stays as it was
            given.
        response: what the Router's method returned; ``None`` when it failed.
        exception: what the Router's method raised; ``None`` when it succeeded.
        started_at: start of the call, in seconds since the epoch (``time.time``).
        duration: seconds from when the request first had a slot to its end: retries, fallbacks, and
            the waits for a rate limit, for a budget and between attempts are included.
        time_to_first_chunk: seconds from the beginning of a streamed call to its first chunk;
            ``None`` if nothing was streamed or nothing arrived.
        usage: tokens and cost of a streamed call (``usage.estimated_calls`` is 1 if the provider
            did not report them), and of a call that failed with an ``EmptyResponseError``; ``None``
            if nothing was streamed.
        attempts: number of times that the batch sent the request: above 1 if it was sent again
            (``retry``), 0 if it was refused first. The Router's own retries are not counted.
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
        """True if the call succeeded."""
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
        request = cast("object", self.request)  # an invalid item of a lazy source may be anything
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
        chunk: the chunk of litellm's stream.
        text: the text that it adds to the answer; often empty.
        choice: index of its answer, from 0, if the request asks for ``n`` answers.
    """

    index: int
    request: RouterParallelRequest
    chunk: Any
    text: str
    choice: int = 0

    def __repr__(self) -> str:
        size = "1 character" if len(self.text) == 1 else f"{len(self.text)} characters"
        return f"<StreamChunk index={self.index} {size}>"


class StreamEnd(msgspec.Struct, frozen=True, eq=False):
    """The end of a stream, successful or not. It comes after all chunks of the stream.

    Attributes:
        result: the result. Its ``response`` is the whole answer, as if it had not been streamed:
            text, tool calls, finish reason and usage.
    """

    result: RouterParallelResult

    @property
    def index(self) -> int:
        """Position of the request in its source, from 0."""
        return self.result.index


def _outcome(exception: Exception | None, duration: float) -> str:
    # The text of an exception may quote the prompt, so show only its type.
    outcome = "ok" if exception is None else f"exception={type(exception).__qualname__}"
    return f"{outcome} duration={duration:.3f}s"


# An unchecked request needs a repr too, and any of its fields may hold a prompt.


def _name(model: object) -> str:
    return repr(model) if isinstance(model, str) else _kind(model)


def _count(messages: object) -> str:
    if isinstance(messages, str | bytes) or not isinstance(messages, Sequence):
        return _kind(messages)
    count = len(cast("Sequence[object]", messages))
    return f"<{count} message{'' if count == 1 else 's'}>"


def _kind(value: object) -> str:
    return f"<{type(value).__qualname__}>"
