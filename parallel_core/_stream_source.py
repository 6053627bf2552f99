"""How a stream has ended: whether the provider has finished its answer, or something cut it off.

A provider ends each choice with a finish reason. Where none has come, litellm makes one up
(``stop``): what it really had is known to its own objects only.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from typing import Any, Self, cast


class StreamSource:
    """What is known of the source of one stream, beside its chunks.

    Args:
        stream: what a call has returned.
    """

    def __init__(self, stream: Any) -> None:
        # A Router host has the stream of the Router in another loop.
        self._stream: Any = getattr(stream, "response", stream)
        self.is_of_litellm = _is_wrapper(self._stream)
        self._reader: Any = None
        self._is_made_up = False
        self._look()
        self._first = self._reader
        self._watched: _Watched | None = None
        if self._first is not None and _number_of_choices(self._first) > 1:
            source: Any = self._first.completion_stream
            if hasattr(source, "__aiter__"):
                self._watched = self._first.completion_stream = _Watched(source)

    @property
    def logging(self) -> Any:
        """What litellm notes of the call; None where that cannot be told."""
        return getattr(self._stream, "logging_obj", None)

    @property
    def chunks(self) -> list[Any] | None:
        """What litellm itself has had; None where that cannot be told."""
        came: Any = getattr(self._reader or self._stream, "chunks", None)
        return came if isinstance(came, list) else None  # pyright: ignore[reportUnknownVariableType]

    @property
    def was_cut_off(self) -> bool:
        """Whether litellm's next or last finish reason is made up, as far as that can be told."""
        self._look()
        reader = self._reader
        if reader is None or self._is_made_up:
            return False
        return not (
            reader.received_finish_reason
            or reader.intermittent_finish_reason
            or getattr(reader, "received_any_finish_reason", False)
        )

    @property
    def finish_reasons(self) -> dict[int, str | None] | None:
        """The finish reason of each choice that has one, by its index; the reason is None where
        only its being there is known. None where the choices cannot be told apart."""
        if self._watched is None or self._reader is not self._first:
            return None
        if not self._watched.has_choices:
            return None
        early = getattr(self._reader, "received_finish_choice_fields", ())
        return {**dict.fromkeys(early), **self._watched.finish_reasons}

    def _look(self) -> None:
        # The reader of a fallback can be found as long as the stream is on its way.
        reader = _reader_of(self._stream)
        if reader is not None and reader is not self._reader:
            self._reader = reader
            self._is_made_up = _is_mock(reader)


def is_cut_off_before_its_first_chunk(error: BaseException) -> bool:
    """Whether litellm has raised this because a stream had ended without a finish reason.

    Newer versions read a stream up to its first chunk before they give it away.
    """
    of_litellm = getattr(_wrapper_class(), "_stream_eof_error", None)
    if of_litellm is None:
        return False
    text = str(of_litellm())
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        if text in str(cause):
            return True
        seen.add(id(cause))
        cause = cause.__cause__ or cause.__context__
    return False


class _Watched:
    """The chunks of a provider on their way to litellm, which forgets the finish reasons of all
    choices but one."""

    def __init__(self, source: Any) -> None:
        self._source = source
        self._chunks: AsyncIterator[Any] = aiter(source)
        self.finish_reasons: dict[int, str | None] = {}
        self.has_choices = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        chunk = await anext(self._chunks)
        for choice in getattr(chunk, "choices", None) or ():
            self.has_choices = True
            if getattr(choice, "finish_reason", None):
                self.finish_reasons[choice.index] = choice.finish_reason
        return chunk

    def __getattr__(self, name: str) -> Any:
        return getattr(self._source, name)


def _wrapper_class() -> Any:
    module: Any = sys.modules.get("litellm.litellm_core_utils.streaming_handler")
    return getattr(module, "CustomStreamWrapper", None)


def _is_wrapper(stream: object) -> bool:
    kind = _wrapper_class()
    return kind is not None and isinstance(stream, kind)


def _reader_of(wrapper: Any) -> Any:
    """litellm's reader of the provider; None where it cannot be found.

    A Router puts the reader into a generator, which goes on with that of a fallback when the first
    one fails.
    """
    if not _is_wrapper(wrapper):
        return None
    frame = getattr(wrapper.completion_stream, "ag_frame", None)
    inside: dict[str, Any] = {} if frame is None else frame.f_locals
    for name in ("fallback_response", "model_response"):
        reader = _reader_of(inside.get(name))
        if reader is not None:
            return reader
    # Those of a Router give away what they are given, and know nothing themselves.
    kind = cast("Any", type(wrapper))
    return wrapper if kind.__anext__ is _wrapper_class().__anext__ else None


def _number_of_choices(reader: Any) -> int:
    parameters: Any = getattr(reader.logging_obj, "optional_params", None) or {}
    number = parameters.get("n")
    return number if isinstance(number, int) else 1


def _is_mock(reader: Any) -> bool:
    """Whether litellm makes the answer up (``mock_response``): it has no finish reason, ever."""
    if getattr(reader, "is_mock", False):
        return True
    made_up: Any = sys.modules["litellm"].utils.async_mock_completion_streaming_obj
    return getattr(reader.completion_stream, "ag_code", None) is made_up.__code__
