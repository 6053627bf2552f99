"""Streams on the direct lane: litellm makes the request, reads the beginning, the end and errors.

1. An attempt with ``stream=True`` is litellm's. The body of its answer is cut into lines, so that
   the lane can look at the next one before litellm's own reader gets it.
2. litellm reads a chunk of text, and a template is made of it. litellm reads the next chunk that
   matches, too. If ours is equal, and the state of the stream is the same after both, the next
   chunks that match the template are made of it.
3. A template counts for the state in which it was proved. When litellm has read another line and
   the state differs from that one, litellm reads the next chunk that matches, as in step 2.
4. Every other line, the end and every failure go to litellm's reader.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from parallel_core.router.stream_merging import merge_texts
from parallel_core.router.stream_source import READS_PROVIDER

from .chunks import ChunkTemplate, unlike
from .lines import BodyLines

_READING = "_parallel_core_reading"  # on a stream of litellm: its ChunkReading
_MOST_TEMPLATES = 4  # of one stream: some providers send each of several choices in turn
_COMMON_PARSER = "OpenAIChatCompletionStreamingHandler"
_OF_TEXTS = {"chunks", "response_uptil_now", "_repeated_messages_count"}  # each text changes them
_BLANK = (b"\n", b"\r\n")
_NO_CHUNK = "its stream had no chunks that differ in their text alone"


def reason_for_litellm(stream: Any, lines: BodyLines | None) -> str:
    """Return why litellm reads all of a stream that it returned; empty if it need not."""
    if type(stream) is not _classes().stream:
        return "litellm returned another kind of stream"
    if lines is None:
        return "its answer is not a plain event stream"
    if stream.merge_reasoning_content_in_choices:
        return "litellm merges its reasoning into the text"
    if not _is_of_openai(stream) and type(stream.completion_stream).__name__ != _COMMON_PARSER:
        return "litellm reads its chunks in a way of their own"
    return ""


def read_directly(stream: Any, reading: ChunkReading) -> None:
    """Let the lane read those chunks of a litellm stream that it can read."""
    reading.waits_for_blank_line = _is_of_openai(stream)
    setattr(stream, _READING, reading)
    stream.__class__ = _classes().direct


def _is_of_openai(stream: Any) -> bool:
    """Return True if openai's client parses the body: it waits until an event has ended."""
    return type(stream.completion_stream).__module__.partition(".")[0] == "openai"


@dataclass(eq=False)
class ChunkReading:
    """Reads the chunks of one stream that need nothing of litellm, and leaves it the others.

    Attributes:
        lines: the body.
        settled: called once: with an empty text when the lane makes its first chunk, or with the
            reason when the stream ends without one.
        differs: called with the name of the member in which our chunk differs from litellm's.
        verify: litellm reads every chunk, and ours are compared with them.
        waits_for_blank_line: an event ends with a blank line; otherwise each line is an event.
        is_in_time: True if litellm's maximum duration of a stream was checked before the lane
            waited for the next line. litellm then does not check it again after the wait.
    """

    lines: BodyLines
    settled: Callable[[str], None]
    differs: Callable[[str], None]
    verify: bool
    waits_for_blank_line: bool = True
    is_in_time: bool = False
    # With the state of the stream in which each was proved.
    _proved: dict[ChunkTemplate, dict[str, Any]] = field(
        default_factory=dict[ChunkTemplate, dict[str, Any]]
    )
    _unproved: list[ChunkTemplate] = field(default_factory=list[ChunkTemplate])
    _is_settled: bool = False

    async def next_line(self) -> bytes | None:
        """Wait for the next line that is not blank. None if litellm has to read what comes."""
        lines = self.lines
        while (line := await lines.look()) in _BLANK:
            lines.take()
        return line if lines.has_lines else None

    async def make(self, stream: Any, line: bytes) -> Any:
        """Take a line and make its chunk. None if litellm has to."""
        if self.verify or sys.modules["litellm"].post_call_rules:
            return None
        if b"[DONE]" in line:  # some readers of litellm end a stream at these letters anywhere
            return None
        for template in self._proved:
            if found := template.texts_in(line):
                if self.waits_for_blank_line and await self.lines.look(1) not in _BLANK:
                    return None
                try:
                    chunk = template.make(found)
                    _note(stream, chunk)
                except Exception:  # noqa: BLE001 - litellm raises its own error
                    return None
                self.lines.take()
                self.settle("")
                return chunk
        return None

    def make_beside(self, stream: Any, line: bytes) -> tuple[ChunkTemplate, Any, Any] | None:
        """Make the chunk of a line that litellm reads, too. None if no template needs a proof.

        Returns:
            The template, our chunk, and a copy of the stream with the state that ours leads to.
        """
        for template in [*self._unproved, *(self._proved if self.verify else ())]:
            if found := template.texts_in(line):
                twin: Any = object.__new__(_classes().twin)
                twin.__dict__.update(stream.__dict__, chunks=list(stream.chunks))
                try:
                    chunk = template.make(found)
                    _note(twin, chunk)
                except Exception:  # noqa: BLE001 - litellm raises its own error
                    return None
                return template, chunk, twin
        return None

    def learn(
        self, stream: Any, line: bytes, theirs: Any, ours: tuple[ChunkTemplate, Any, Any] | None
    ) -> None:
        """Learn from the chunk that litellm has made of a line, and from ours beside it."""
        if ours is not None:
            template, chunk, twin = ours
            member = unlike(chunk, theirs) or _unlike_states(twin, stream)
            if template in self._proved:
                if member is not None:
                    self.differs(member)
                return
            self._unproved.remove(template)
            if member is None:
                while len(self._proved) >= _MOST_TEMPLATES:
                    self._proved.pop(next(iter(self._proved)))
                self._proved[template] = _state_of(stream)
                return
        if found := ChunkTemplate.of(line, theirs):
            self._unproved = [found, *self._unproved[: _MOST_TEMPLATES - 1]]

    def doubt(self, stream: Any) -> None:
        """Forget the proof of each template that was proved in another state of the stream."""
        state = _state_of(stream)
        doubtful = [template for template, proved_in in self._proved.items() if proved_in != state]
        for template in doubtful:
            del self._proved[template]
        self._unproved = [*doubtful, *self._unproved][:_MOST_TEMPLATES]

    def settle(self, reason: str) -> None:
        """Report once that the stream is direct, or the reason why not."""
        if not self._is_settled:
            self._is_settled = True
            self.settled(reason)


def _reading_of(stream: Any) -> ChunkReading:
    reading: ChunkReading = stream.__dict__[_READING]
    return reading


def _note(stream: Any, chunk: Any) -> None:
    """Note a chunk in the state of its stream, as litellm does."""
    stream.raise_on_model_repetition()
    stream.response_uptil_now += chunk.choices[0].delta.content or ""
    stream.chunks.append(chunk)


def _state_of(stream: Any) -> dict[str, Any]:
    """Return the state of a stream, without what each text changes."""
    return {name: value for name, value in stream.__dict__.items() if name not in _OF_TEXTS}


def _is_last(line: bytes) -> bool:
    return line.removeprefix(b"data:").lstrip().startswith(b"[DONE]")


def _unlike_states(ours: Any, theirs: Any) -> str | None:
    mine: dict[str, Any] = ours.__dict__
    its: dict[str, Any] = theirs.__dict__
    for name in sorted(mine.keys() | its.keys()):
        one: Any = mine.get(name)
        other: Any = its.get(name)
        if name == "chunks":
            if len(one) != len(other) or unlike(one[-1], other[-1]):
                return "stream.chunks"
        elif one is not other and one != other:
            return f"stream.{name}"
    return None


@dataclass(frozen=True)
class _Classes:
    """Classes of streams.

    Attributes:
        stream: litellm's.
        direct: one that the lane reads.
        twin: one that does nothing at its end.
    """

    stream: Any
    direct: Any
    twin: Any


@functools.cache
def _classes() -> _Classes:
    from litellm.litellm_core_utils import streaming_handler

    stream: Any = streaming_handler.CustomStreamWrapper

    async def next_chunk(self: Any) -> Any:
        reading = _reading_of(self)
        try:
            return await read_chunk(self, reading)
        except BaseException:
            reading.settle(_NO_CHUNK)
            raise

    async def read_chunk(self: Any, reading: ChunkReading) -> Any:
        reading.is_in_time = False
        if self._closed or is_too_long(self):
            return await stream.__anext__(self)
        reading.is_in_time = True
        line = await reading.next_line()
        ours = None
        if line is not None:
            chunk = await reading.make(self, line)
            if chunk is not None:
                return chunk
            ours = reading.make_beside(self, line)
        if _is_last(line) if line is not None else reading.lines.is_over:
            # litellm makes the whole answer of them.
            self.chunks[:] = merge_texts(self.chunks)
        read = reading.lines.data_lines
        chunk = await stream.__anext__(self)
        if line is not None and reading.lines.data_lines == read + 1:
            reading.learn(self, line, chunk, ours)
        reading.doubt(self)
        return chunk

    def is_too_long(self: Any) -> bool:
        try:
            stream._check_max_streaming_duration(self)
        except Exception:  # noqa: BLE001 - litellm raises it again
            return True
        return False

    def check_duration(self: Any) -> None:
        if not _reading_of(self).is_in_time:
            stream._check_max_streaming_duration(self)

    async def aclose(self: Any) -> None:
        _reading_of(self).settle(_NO_CHUNK)
        await stream.aclose(self)

    def end(self: Any) -> None:
        """Do nothing: litellm's class restores a context when a stream is dropped."""

    own = {
        "__anext__": next_chunk,
        "aclose": aclose,
        "_check_max_streaming_duration": check_duration,
        READS_PROVIDER: True,
    }
    return _Classes(
        stream,
        type("DirectStream", (stream,), own),
        type("_Twin", (stream,), {"__del__": end}),
    )
