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


class RouterParallelRequest(msgspec.Struct, frozen=True):
    """What one call is made of.

    Wherever a request is accepted, a plain mapping ``{"model": …, "messages": …, **kwargs}`` is
    accepted too.

    Attributes:
        model: the name of a model (group) that the Router knows.
        messages: the conversation, as ``acompletion`` takes it.
        kwargs: extra arguments of ``acompletion``, for instance ``{"temperature": 0.2}``.
    """

    model: str
    messages: Sequence[Any]
    kwargs: Mapping[str, Any] | None = None

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
    """

    index: int
    item: ItemT
    value: ValueT | None = None
    exception: Exception | None = None
    started_at: float = 0.0
    duration: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether the call succeeded."""
        return self.exception is None

    def unwrap(self) -> ValueT:
        """Return the value, or raise the exception of the call."""
        if self.exception is not None:
            raise self.exception
        return cast("ValueT", self.value)

    def __repr__(self) -> str:
        return f"<ParallelResult index={self.index} {_outcome(self.exception, self.duration)}>"


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
    """

    index: int
    request: RouterParallelRequest
    response: Any = None
    exception: Exception | None = None
    started_at: float = 0.0
    duration: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether the call succeeded."""
        return self.exception is None

    def unwrap(self) -> Any:
        """Return the response, or raise the exception of the call."""
        if self.exception is not None:
            raise self.exception
        return self.response

    def __repr__(self) -> str:
        request = cast("object", self.request)  # a bad item of a lazy source may be anything
        is_request = isinstance(request, RouterParallelRequest)
        model = _name(self.request.model) if is_request else _kind(request)
        return (
            f"<RouterParallelResult index={self.index} model={model} "
            f"{_outcome(self.exception, self.duration)}>"
        )


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
