"""The body of a streamed answer, in lines that the lane can look at before litellm reads them."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator

import httpx


class BodyLines(httpx.AsyncByteStream):
    """A body that is read in whole lines, and whose next lines can be looked at first.

    An incomplete line is kept back until its rest has come. Nothing is read ahead: the network is
    asked when somebody waits for a line.

    Attributes:
        data_lines: how many lines with data litellm has read.
        has_lines: False once a carriage return has ended a line, which the standard allows. From
            then on, its readers get the body in the pieces in which it comes.
        is_over: True if the body has ended, has failed, or is closed.
    """

    def __init__(self, body: httpx.AsyncByteStream) -> None:
        self.data_lines = 0
        self.has_lines = True
        self.is_over = False
        self._body = body
        self._source: AsyncIterator[bytes] | None = None
        self._ready: deque[bytes] = deque()
        self._incomplete: list[bytes] = []
        self._error: Exception | None = None

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Read the rest of the body; raise its error at the end."""
        while self._ready or await self.look() is not None:
            line = self._ready.popleft()
            self.data_lines += line.startswith(b"data:")
            yield line
        if self._error is not None:
            raise self._error

    async def look(self, ahead: int = 0) -> bytes | None:
        """Wait for the next line, or for one after it, and leave it there.

        Returns:
            The line. None: the body has ended, or failed, before it.
        """
        while len(self._ready) <= ahead:
            if self.is_over:
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
        return self._ready[ahead]

    def take(self) -> None:
        """Take away the line that was looked at."""
        self._ready.popleft()

    async def aclose(self) -> None:
        """Close the body, and with it the connection if the body has not ended."""
        self.is_over = True
        self._ready.clear()
        close = getattr(self._source, "aclose", None)
        try:
            if close is not None:
                await close()
        finally:
            await self._body.aclose()

    def _cut(self, data: bytes) -> None:
        if self.has_lines:
            *whole, rest = data.split(b"\n")
            if whole:
                whole[0] = b"".join([*self._incomplete, whole[0]])
                self._incomplete = []
                self._ready.extend([line + b"\n" for line in whole])
            before = self._incomplete[-1][-1:] if self._incomplete else b""
            self.has_lines = b"\r" not in (before + rest)[:-1]
            data = rest
        if data:
            self._incomplete.append(data)
        if not self.has_lines:
            self._release()

    def _end(self) -> None:
        self.is_over = True
        self._release()

    def _release(self) -> None:
        if rest := b"".join(self._incomplete):
            self._ready.append(rest)
        self._incomplete = []
