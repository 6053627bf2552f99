"""The body of a streamed answer, read line by line: by litellm, or by the lane before it."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator

import httpx


class BodyLines(httpx.AsyncByteStream):
    """A body that its readers get in whole lines, and that can be looked at before it is read.

    An incomplete line is kept back until its rest has come. Nothing is read ahead: the network is
    asked when somebody waits for a line.

    Attributes:
        data_lines: how many lines with data litellm has read.
        reads_blank_lines: True if litellm has waited for the blank line after an event.
    """

    def __init__(self, body: httpx.AsyncByteStream) -> None:
        self.data_lines = 0
        self.reads_blank_lines = False
        self._body = body
        self._source: AsyncIterator[bytes] | None = None
        self._ready: deque[bytes] = deque()
        self._incomplete: list[bytes] = []
        self._error: Exception | None = None
        self._is_over = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Read the rest of the body; raise its error at the end."""
        while self._ready or await self.look() is not None:
            line = self._ready.popleft()
            if line.strip():
                self.data_lines += line.startswith(b"data:")
            elif self.data_lines:
                self.reads_blank_lines = True
            yield line
        if self._error is not None:
            raise self._error

    async def look(self) -> bytes | None:
        """Wait for the next line and leave it there. None: the body has ended, or failed."""
        while not self._ready:
            if self._is_over:
                return None
            if self._source is None:
                self._source = aiter(self._body)
            try:
                data = await anext(self._source)
            except StopAsyncIteration:
                self._end()
            except Exception as error:  # noqa: BLE001 - raised where litellm reads it
                self._error = error
                self._end()
            else:
                self._cut(data)
        return self._ready[0]

    def after(self) -> bytes | None:
        """Return the line after the next one if it has come."""
        return self._ready[1] if len(self._ready) > 1 else None

    def take(self) -> None:
        """Take away the line that was looked at."""
        self._ready.popleft()

    def put_back(self, line: bytes) -> None:
        """Put a line that was taken away before the others."""
        self._ready.appendleft(line)

    async def aclose(self) -> None:
        """Close the body, and with it the connection if the body has not ended."""
        self._is_over = True
        self._ready.clear()
        close = getattr(self._source, "aclose", None)
        try:
            if close is not None:
                await close()
        finally:
            await self._body.aclose()

    def _cut(self, data: bytes) -> None:
        if b"\n" not in data:
            self._incomplete.append(data)
            return
        *whole, rest = b"".join([*self._incomplete, data]).split(b"\n")
        self._ready.extend([line + b"\n" for line in whole])
        self._incomplete = [rest] if rest else []

    def _end(self) -> None:
        self._is_over = True
        if rest := b"".join(self._incomplete):
            self._ready.append(rest)
        self._incomplete = []
