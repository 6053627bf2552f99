"""Find out how a stream ended: with the finish reasons of its provider, or because it was cut off.

litellm adds a finish reason (``stop``) if the provider sent none, and keeps a single reason if the
provider sent one for each choice. So the chunks are recorded before litellm reads them:
:func:`watch_litellm` wraps the methods of litellm through which every chunk passes.
"""

from __future__ import annotations

import contextlib
import functools
import sys
import threading
from collections.abc import Callable, Generator, Mapping
from contextvars import ContextVar
from typing import Any, cast

_STREAMS = "litellm.litellm_core_utils.streaming_handler"
_PARSERS = "litellm.llms.base_llm.base_model_iterator"
_GEMINI = "litellm.llms.vertex_ai.gemini.vertex_and_google_ai_studio_gemini"

# Names of attributes that are set on litellm's objects.
_RECORD = "_parallel_core_record"  # on a stream: its ProviderRecord
READS_PROVIDER = "_parallel_core_reads_provider"  # on a class of ours that reads like litellm's
_FINISHED = "_parallel_core_finished"  # on a parser: the finish reasons in its last line

_installing = threading.Lock()

_records: ContextVar[list[ProviderRecord] | None] = ContextVar("_records", default=None)


class ProviderRecord:
    """Finish reasons and usage that a provider sent in one stream.

    Attributes:
        begun: the indexes of the choices that had a chunk.
        finish_reasons: the finish reason of each finished choice, by its index.
        is_readable: False if a chunk had a format without choices. Then litellm's own finish
            reasons count.
        usage: the last usage that the provider reported; None if there was none.
    """

    def __init__(self) -> None:
        self.begun: set[int] = set()
        self.finish_reasons: dict[int, str] = {}
        self.is_readable = True
        self.usage: Any = None
        self._has_chunks = False

    @property
    def is_whole(self) -> bool:
        """Return True if each choice that has begun has a finish reason."""
        return bool(self.finish_reasons) and self.begun <= self.finish_reasons.keys()

    @property
    def is_empty(self) -> bool:
        """Return True if chunks came, and none of them had a choice."""
        return self._has_chunks and self.is_readable and not self.begun

    def add(self, chunk: Any, finished: Mapping[int, str] | None) -> None:
        """Record a chunk.

        Args:
            chunk: the chunk that the provider's client or parser gives to litellm.
            finished: the finish reasons that the provider sent, if those of the chunk may differ.
        """
        found: dict[int, str] = {}
        choices: Any = getattr(chunk, "choices", None)
        if choices.__class__ is list:
            self._has_chunks = True
            self.usage = getattr(chunk, "usage", None) or self.usage
            for choice in choices:
                index = choice_index(choice)
                self.begun.add(index)
                if reason := getattr(choice, "finish_reason", None):
                    found[index] = str(reason)
        elif isinstance(chunk, dict) and "is_finished" in chunk:
            # litellm's own chunk format has one choice. Its index counts content blocks.
            fields = cast("dict[str, Any]", chunk)
            if finished != {}:  # [DONE] begins no choice
                self.begun.add(0)
            if fields["is_finished"] or fields.get("finish_reason"):
                found[0] = str(fields.get("finish_reason") or "stop")
        elif chunk is not None and chunk != "None":
            self.is_readable = False
        self.finish_reasons.update(found if finished is None else finished)


@contextlib.contextmanager
def recording() -> Generator[list[ProviderRecord]]:
    """Collect the records of the streams that are read inside this block, oldest first.

    Newer versions of litellm read a stream up to its first choice before they return it. If there
    is no choice, they raise, and the record is available only here.
    """
    records: list[ProviderRecord] = []
    token = _records.set(records)
    try:
        yield records
    finally:
        _records.reset(token)


class StreamSource:
    """The object of litellm that reads a provider's stream.

    Args:
        stream: the stream that a call returned.
    """

    def __init__(self, stream: Any) -> None:
        # A Router host returns a wrapper; the Router's stream belongs to another loop.
        self._stream: Any = getattr(stream, "response", stream)
        self.is_of_litellm = _is_wrapper(self._stream)
        self.is_mock = False
        self._reader: Any = None
        self._look()

    @property
    def logging(self) -> Any:
        """Logging object of litellm for the call, or None."""
        return getattr(self._stream, "logging_obj", None)

    @property
    def chunks(self) -> list[Any] | None:
        """Chunks that litellm kept, or None if they cannot be found."""
        kept: Any = getattr(self._reader or self._stream, "chunks", None)
        return kept if isinstance(kept, list) else None  # pyright: ignore[reportUnknownVariableType]

    @property
    def has_no_finish_reason(self) -> bool:
        """True if the provider sent no finish reason. litellm then makes one up."""
        self._look()
        reader = self._reader
        if reader is None or self.is_mock:
            return False
        record = self._record
        if record is not None:
            return not record.finish_reasons
        return not (
            reader.received_finish_reason
            or reader.intermittent_finish_reason
            or getattr(reader, "received_any_finish_reason", False)
        )

    @property
    def is_cut_off(self) -> bool:
        """Return True if a choice has begun and has no finish reason."""
        record = self._record
        if record is None or self.is_mock:
            return self.has_no_finish_reason
        return not record.is_whole

    @property
    def is_whole(self) -> bool:
        """Return True if the provider is known to have finished every choice that has begun."""
        self._look()
        record = self._record
        return record is not None and record.is_whole

    @property
    def finish_reasons(self) -> Mapping[int, str]:
        """Finish reasons that the provider sent, by the index of the choice."""
        record = self._record
        return {} if record is None else record.finish_reasons

    @property
    def _record(self) -> ProviderRecord | None:
        record = getattr(self._reader, _RECORD, None)
        return record if isinstance(record, ProviderRecord) and record.is_readable else None

    def _look(self) -> None:
        # The reader of a fallback can be found only while the stream is being read.
        reader = _reader_of(self._stream)
        if reader is not None and reader is not self._reader:
            self._reader = reader
            self.is_mock = _is_mock(reader)


def watch_litellm() -> None:
    """Make litellm's streams record the chunks of their providers, once per process.

    The Router reads the first chunk before it returns a stream, so it is too late to wrap a single
    stream. The wrapped methods return the same values as before. Does nothing until litellm is
    imported.
    """
    reader = _wrapper_class()
    if reader is None or hasattr(reader.chunk_creator, _RECORD):
        return
    with _installing:
        if hasattr(reader.chunk_creator, _RECORD):
            return
        parsers: tuple[tuple[str, str, str, Callable[[Any, Any], dict[int, str] | None]], ...] = (
            (_PARSERS, "BaseModelResponseIterator", "_handle_string_chunk", _finished_in_line),
            (_GEMINI, "ModelResponseIterator", "chunk_parser", _finished_in_gemini),
        )
        for module, name, method, finished_in in parsers:
            kind: Any = getattr(sys.modules.get(module), name, None)
            if kind is not None:
                setattr(kind, method, _watched_parser(getattr(kind, method), finished_in))
        reader.chunk_creator = _watched_reader(reader.chunk_creator)


def _watched_reader(chunk_creator: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(chunk_creator)
    def recorded(self: Any, chunk: Any) -> Any:
        notes = cast("dict[str, Any]", self.__dict__)
        record = notes.get(_RECORD)
        if record is None:
            record = notes[_RECORD] = ProviderRecord()
            records = _records.get()
            if records is not None:
                records.append(record)
        of_parser = cast("dict[str, Any]", getattr(self.completion_stream, "__dict__", {}))
        record.add(chunk, of_parser.pop(_FINISHED, None))
        return chunk_creator(self, chunk=chunk)

    setattr(recorded, _RECORD, True)
    return recorded


def _watched_parser(
    parse: Callable[..., Any], finished_in: Callable[[Any, Any], dict[int, str] | None]
) -> Callable[..., Any]:
    @functools.wraps(parse)
    def recorded(self: Any, *args: Any, **kwargs: Any) -> Any:
        chunk = parse(self, *args, **kwargs)
        sent: Any = args[0] if args else next(iter(kwargs.values()))
        self.__dict__[_FINISHED] = finished_in(sent, chunk)
        return chunk

    return recorded


def _finished_in_line(line: str, chunk: Any) -> dict[int, str] | None:
    """Return the finish reasons that the provider sent in a line; None if the chunk has them.

    litellm parses ``data: [DONE]`` into the finish reason ``stop``, which no provider sent.
    """
    if "[DONE]" not in line or not isinstance(chunk, dict):
        return None
    has_text = bool(cast("dict[str, Any]", chunk).get("text"))
    return None if has_text else {}


def _finished_in_gemini(sent: Any, chunk: Any) -> dict[int, str] | None:
    """Return the finish reasons that Gemini sent in a chunk; None if the chunk has them.

    litellm's parser for Gemini writes ``stop`` into every chunk with content.
    """
    candidates: list[Any] = sent.get("candidates") or []
    if not candidates:
        return None  # A blocked prompt has no candidate, and litellm sets its finish reason.
    ended = {
        candidate.get("index", position)
        for position, candidate in enumerate(candidates)
        if candidate.get("finishReason")
    }
    return {
        index: str(choice.finish_reason)
        for choice in getattr(chunk, "choices", None) or ()
        if (index := choice_index(choice)) in ended and choice.finish_reason
    }


def is_cut_off_before_its_first_chunk(error: BaseException) -> bool:
    """Return True if litellm raised this error because a stream ended without a finish reason.

    Newer versions read a stream up to its first chunk before they return it.
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


def choice_index(choice: Any) -> int:
    """Return the index of a choice; 0 if it has none."""
    index = getattr(choice, "index", 0)
    return index if isinstance(index, int) else 0


def _wrapper_class() -> Any:
    return getattr(sys.modules.get(_STREAMS), "CustomStreamWrapper", None)


def _is_wrapper(stream: object) -> bool:
    kind = _wrapper_class()
    return kind is not None and isinstance(stream, kind)


def _reader_of(wrapper: Any) -> Any:
    """Return litellm's reader of the provider, or None if it cannot be found.

    A Router puts the reader into a generator. When the reader fails, the generator continues with
    the reader of a fallback.
    """
    if not _is_wrapper(wrapper):
        return None
    frame = getattr(wrapper.completion_stream, "ag_frame", None)
    inside: dict[str, Any] = {} if frame is None else frame.f_locals
    for name in ("fallback_response", "model_response"):
        reader = _reader_of(inside.get(name))
        if reader is not None:
            return reader
    # The stream of a Router overrides ``__anext__`` and has no information about the provider.
    kind = cast("Any", type(wrapper))
    reads = kind.__anext__ is _wrapper_class().__anext__ or hasattr(kind, READS_PROVIDER)
    return wrapper if reads else None


def _is_mock(reader: Any) -> bool:
    """Return True for ``mock_response``: litellm makes up the answer, without a finish reason."""
    if getattr(reader, "is_mock", False):
        return True
    made_up: Any = sys.modules["litellm"].utils.async_mock_completion_streaming_obj
    return getattr(reader.completion_stream, "ag_code", None) is made_up.__code__
