"""The thread that writes a journal in groups."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from .files import Disk, LockedFile
from .result_files import JournalEntry, ResultFiles
from .statistics_file import StatisticsFile
from .waiting_tasks import WaitingTasks

T = TypeVar("T")


class JournalWriter:
    """Takes entries from any task and writes them in its own thread.

    A group is written when ``group_size`` entries wait, or ``group_seconds`` after the first one
    arrived.

    Attributes:
        results: the files that the results go to.
        finished: True if the thread has ended.
    """

    def __init__(
        self,
        results: ResultFiles,
        statistics: Path,
        *,
        group_size: int,
        group_seconds: float,
        disk: Disk,
    ) -> None:
        self.results = results
        self.finished = False
        self._statistics = StatisticsFile(statistics, disk)
        self._group_size = group_size
        self._group_seconds = group_seconds
        # Guards all fields below. Its holder may also use the files while nothing is unwritten.
        # The lock is reentrant: garbage collection may close an unused journal in any thread.
        self._changed = threading.Condition(threading.RLock())
        self._entries: list[JournalEntry] = []
        self._records: list[bytes] = []
        self._unwritten = 0
        self._waiting = WaitingTasks(self._changed)
        self._closing = False
        self._write_now = False  # a caller waits for the queued entries: do not wait for more
        self._thread = threading.Thread(target=self._run, name="parallel_core journal", daemon=True)
        self._thread.start()

    def put(self, entry: JournalEntry) -> None:
        """Queue an entry. Raises RuntimeError if the journal is closed."""
        with self._changed:
            if self._closing:
                raise RuntimeError("the journal is closed: append results before closing it")
            self._entries.append(entry)
            self._unwritten += 1
            if len(self._entries) in (1, self._group_size):
                self._changed.notify_all()

    def put_record(self, line: bytes) -> None:
        """Queue a line of statistics."""
        with self._changed:
            if not self._closing:
                self._records.append(line)
                if len(self._records) in (1, self._group_size):
                    self._changed.notify_all()

    async def wait_for_room(self) -> None:
        """Wait until less than a group is unwritten."""
        await self._waiting.wait_while(lambda: self._unwritten >= self._group_size)

    async def wait_until_finished(self) -> None:
        """Wait until the thread has ended after ``close_soon``."""
        await self._waiting.wait_while(lambda: not self.finished)
        self._thread.join()  # it has nothing left to do

    def close_soon(self) -> None:
        """Make the thread write the remaining entries and end."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()

    def close(self) -> None:
        """Make the thread write the remaining entries and end, and wait for it."""
        self.close_soon()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def while_idle(self, function: Callable[[list[LockedFile]], T]) -> T:
        """Call a function with the files when everything queued is written."""
        with self._changed:
            while self._unwritten:
                self._write_now = True
                self._changed.notify_all()
                self._changed.wait()
            if self._closing:
                raise RuntimeError("the journal is closed")
            return function(self.results.files)

    def _run(self) -> None:
        try:
            while self._write_next_group():
                pass
            self.results.drop_superseded_at_the_end()
        finally:
            for file in self.results.files:
                with contextlib.suppress(OSError):
                    file.close()
            self._statistics.close()
            with self._changed:
                if not self._closing:  # a bug ended the thread, which prints the traceback
                    self._closing = True
                    self.results.failure = (
                        self.results.failure or "the thread that writes the journal has ended"
                    )
                self._unwritten = 0
                self.finished = True
                self._changed.notify_all()
            self._waiting.wake_all()

    def _write_next_group(self) -> bool:
        with self._changed:
            while not (self._entries or self._records or self._closing):
                self._changed.wait()
            self._gather()
            entries, self._entries = self._entries, []
            records, self._records = self._records, []
            if not entries and not records:
                return False
        if entries:
            self.results.commit(entries)
        if self.results.takes_statistics:
            lines = [entry.statistics for entry in entries if entry.statistics is not None]
            self._statistics.write(records + lines)
        with self._changed:
            self._unwritten -= len(entries)
            self._changed.notify_all()
        self._waiting.wake_all()
        return True

    def _gather(self) -> None:
        deadline = time.monotonic() + self._group_seconds
        while max(len(self._entries), len(self._records)) < self._group_size:
            left = deadline - time.monotonic()
            if left <= 0 or self._closing or self._write_now:
                break
            self._changed.wait(left)
        self._write_now = False
